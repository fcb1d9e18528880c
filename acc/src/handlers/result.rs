//! `POST /{gid}/{nid}/result`: results, each delivered once.

use super::allowance::Limits;
use super::{Fault, Outcome, bad, json};
use crate::answer;
use crate::context::Context;
use crate::server::Reply;
use crate::store::jobs::{self, Known, Writing};
use crate::store::pool::is_broken;
use crate::store::results::{self, Bounds, Delivery, Push, Recurring, Verdict};
use crate::store::{Batch, Conn, lists};
use jscommon::{JobResult, NodeId, State, death};
use redis::RedisResult;
use serde_json::{Value, json as object};

/// Most calls of one transaction, for Redis does nothing else meanwhile.
const TOGETHER: usize = 256;

/// Most results of one request; an agent sends half of that.
const MAX_BATCH: usize = 1000;

/// Results that a node may send a second.
pub(super) const MAX_RESULTS: f64 = 2000.0;

/// A result that its node may deliver, as far as it says itself.
struct Entry {
    node: NodeId,
    result: JobResult,
    target: String,
    run: String,
    text: String,
    recurring: Option<Recurring>,
}

impl Entry {
    fn delivery(&self) -> Delivery<'_> {
        Delivery {
            id: &self.result.id,
            target: &self.target,
            run: &self.run,
            text: &self.text,
            recurring: self.recurring,
        }
    }
}

/// What one node has sent.
struct Posted {
    node: NodeId,
    entries: Vec<Entry>,
    /// Results that are none of its own, and why.
    refused: Vec<(String, &'static str)>,
    /// What it has paid for: how many, and their bytes.
    paid: (usize, usize),
}

/// Takes what nodes have sent, one body each, in as few round trips as one alone would take.
pub(super) fn post_all(context: &Context, limits: &Limits, posts: &[(NodeId, &[u8])]) -> Vec<Outcome> {
    let posted = posts.iter().map(|(node, body)| pay(context, limits, read(*node, body)?)).collect();
    deliver_all(context, limits, posted)
}

/// Refuses the results of a node that sends too many.
fn pay(context: &Context, limits: &Limits, posted: Posted) -> Result<Posted, Fault> {
    let (count, bytes) = posted.paid;
    match limits.take(posted.node, count, bytes, context.clock.now()) {
        Ok(()) => Ok(posted),
        Err((seconds, sentence)) => Err(super::too_often(context, "results", seconds, sentence)),
    }
}

fn deliver_all(context: &Context, limits: &Limits, posted: Vec<Result<Posted, Fault>>) -> Vec<Outcome> {
    let entries: Vec<&Entry> = posted.iter().flatten().flat_map(|posted| &posted.entries).collect();
    if entries.is_empty() {
        return posted.into_iter().map(|posted| reply(context, posted?, &mut std::iter::empty())).collect();
    }
    let meant = match context.pool.with(|conn| deliver(context, conn, &entries)) {
        Ok(meant) => meant,
        // What Redis has against one of them is not held against the others.
        Err(e) if posted.len() > 1 && !is_broken(&e) => {
            return posted.into_iter().flat_map(|one| deliver_all(context, limits, vec![one])).collect();
        }
        Err(e) => {
            let failed = |posted: Posted| {
                limits.give_back(posted.node, posted.paid.0, posted.paid.1);
                Fault::Redis(e.clone())
            };
            return posted.into_iter().map(|posted| Err(posted.map_or_else(|fault| fault, failed))).collect();
        }
    };
    let mut meant = meant.into_iter();
    posted.into_iter().map(|posted| posted.and_then(|posted| reply(context, posted, &mut meant))).collect()
}

fn read(node: NodeId, body: &[u8]) -> Result<Posted, Fault> {
    let Value::Array(list) = json(body)? else { return Err(bad("the body is a list of results")) };
    let count = list.len();
    if count > MAX_BATCH {
        return Err(super::too_many(format!("a request has at most {MAX_BATCH} results, and this one {count}")));
    }
    let paid = (count, body.len());
    let mut posted = Posted { node, entries: Vec::with_capacity(count), refused: Vec::new(), paid };
    for (i, value) in list.into_iter().enumerate() {
        match entry(node, value).map_err(|reason| bad(format!("result {i}: {reason}")))? {
            Ok(entry) => posted.entries.push(entry),
            Err(id) => posted.refused.push((id, "it names another node")),
        }
    }
    Ok(posted)
}

/// The answer to who has sent this; `meant` says of each entry in turn whether its job was for the node.
fn reply(context: &Context, posted: Posted, meant: &mut impl Iterator<Item = bool>) -> Outcome {
    let Posted { node, entries, mut refused, .. } = posted;
    let unmeant = entries.into_iter().zip(meant).filter(|(_, meant)| !meant);
    refused.extend(unmeant.map(|(entry, _)| (entry.result.id, "its job was for other nodes")));
    if refused.is_empty() {
        return Ok(Reply::json("{}"));
    }
    let ids: Vec<&str> = refused.iter().map(|(id, _)| id.as_str()).collect();
    let (id, why) = &refused[0];
    let error = format!("result of job {id}: {why}; node {node} may not answer for it");
    let body = object!({"error": error, "refused": ids, "time": context.clock.now()});
    Err(Fault::Reply(Reply { status: 403, ..Reply::json(body.to_string()) }))
}

/// One entry: `Err` when it is no result, `Ok(Err(id))` when it names another node.
fn entry(node: NodeId, mut value: Value) -> Result<Result<Entry, String>, String> {
    let fields = value.as_object_mut().ok_or("a result is an object")?;
    fields.retain(|_, field| !field.is_null());
    let quiet = fields.remove("quiet").is_some_and(|quiet| quiet == Value::Bool(true));
    for (name, own) in [("gid", node.gid), ("nid", node.nid)] {
        fields.entry(name).or_insert(own.into());
    }
    if let Some(Value::Object(args)) = fields.get("args") {
        let shown = jscommon::command::shown_args(args);
        fields.insert("args".into(), Value::Object(shown));
    }
    let text = value.to_string();
    let result: JobResult = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if !jscommon::command::is_job_id(&result.id) {
        return Err("'id' is no job id".into());
    }
    if (result.gid, result.nid) != (node.gid, node.nid) {
        return Ok(Err(result.id));
    }
    let period = result.args.get("recurring_period").and_then(Value::as_f64).unwrap_or(0.0);
    let recurring = (period > 0.0).then(|| Recurring {
        node,
        starttime: result.starttime,
        period: period as u64,
        quiet: quiet || (result.state == State::Ok && !(20..=23).contains(&result.level)),
    });
    Ok(Ok(Entry { node, target: node.to_string(), run: result.starttime.to_string(), text, recurring, result }))
}

/// Delivers; answers for each entry whether its job was for its node.
fn deliver(context: &Context, conn: &mut Conn, entries: &[&Entry]) -> RedisResult<Vec<bool>> {
    // Both questions in one round trip, so it is decided before it is known whether the node may answer.
    // What a node leaves behind by that where it may not is its own name among those who have answered,
    // which no other node's answer is measured by, for a day.
    let mut batch = Batch::new();
    for entry in entries {
        jobs::ask(&mut batch, entry.node, &entry.result.id);
        results::decide(&mut batch, &entry.delivery());
    }
    let mut answers = conn.run(&batch)?.into_iter();
    let mut next = || answers.next().unwrap_or(redis::Value::Nil);
    death::point("acc.result.guarded");

    let now = context.clock.now();
    let mut meant = Vec::with_capacity(entries.len());
    let (mut hashes, mut pushes) = (Batch::new(), Vec::new());
    for entry in entries {
        let result = &entry.result;
        let known = jobs::known(next(), next(), next())?;
        let verdict = results::verdict(next())?;
        meant.push(known != Known::NotMeant);
        if known == Known::NotMeant {
            count(context, "refused");
            continue;
        }
        if verdict == Verdict::Late {
            count(context, "late");
            let data = object!({"id": result.id, "state": answer::state_name(result.state)});
            lists::event(&mut hashes, "late_result", Some(entry.node), now, &data);
            continue;
        }
        if hashes.len() + pushes.len() >= TOGETHER {
            results::push_all(conn, std::mem::take(&mut hashes), &std::mem::take(&mut pushes))?;
        }
        let writing = if verdict == Verdict::Repeat { Writing::Repeated } else { Writing::Counts };
        jobs::result(&mut hashes, &entry.target, &result.id, &entry.text, writing);
        results::remember(&mut hashes, &entry.delivery(), matches!(known, Known::Meant(_)));
        let meant = match known {
            Known::Meant(meant) => Some(meant),
            _ => None,
        };
        match verdict {
            Verdict::Quiet => count(context, "quiet"),
            Verdict::First => {
                count(context, "first");
                let quiet = meant.is_some_and(|meant| meant.quiet);
                let bounds = meant.map_or(Bounds::UNKNOWN, |meant| Bounds::of(meant.targets, quiet));
                let counted = (!quiet).then(|| answer::state_name(result.state));
                pushes.push(Push { delivery: entry.delivery(), bounds, counted });
                if let Some(meant) = meant {
                    context.metrics.result_seconds.observe(now.saturating_sub(meant.created) as f64 / 1000.0);
                }
            }
            Verdict::Repeat | Verdict::Late => count(context, "repeat"),
        }
    }
    results::push_all(conn, hashes, &pushes)?;
    death::point("acc.result.pushed");
    Ok(meant)
}

fn count(context: &Context, outcome: &str) {
    context.metrics.results.with_label_values(&[outcome]).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    #[test]
    fn entries_are_read_with_care() {
        let read = |value| entry(NODE, value);
        let good = read(object!({"id": "a", "state": "OK", "starttime": 5, "later": 1})).unwrap().unwrap();
        assert_eq!((good.target.as_str(), good.run.as_str()), ("1:10", "5"));
        let text: Value = serde_json::from_str(&good.text).unwrap();
        assert_eq!(text, object!({"id": "a", "state": "OK", "starttime": 5, "later": 1, "gid": 1, "nid": 10}));
        assert_eq!(read(object!({"id": "a", "state": "OK", "gid": 1, "nid": 11})).unwrap().err(), Some("a".into()));
        for bad in
            [object!(5), object!({}), object!({"id": "a b", "state": "OK"}), object!({"id": "a", "state": "Fine"})]
        {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn runs_of_recurring_jobs() {
        let read = |state: &str, level: u8| {
            let value = object!({"id": "a", "state": state, "level": level, "starttime": 7,
                "args": {"recurring_period": 5}});
            entry(NODE, value).unwrap().unwrap().recurring.unwrap().quiet
        };
        assert!(read("OK", 0));
        assert!(!read("OK", 20));
        assert!(!read("ERROR", 0));
    }

    #[test]
    fn secrets_are_hidden() {
        let value = object!({"id": "a", "state": "OK", "args": {"secret": true, "env": {"PW": "geheim"}}});
        assert!(!entry(NODE, value).unwrap().unwrap().text.contains("geheim"));
    }
}
