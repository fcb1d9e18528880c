//! Results that the controller makes itself: no matching node, expired, cancelled, malformed.
//!
//! Owns: the result's form and the order of its steps (decision, hash, list).
//! Does not own: when there is such a result (dispatcher, periodic tasks).
//! `redacted` also keeps secrets out of what is written down about a command.

use crate::metrics::Metrics;
use crate::model::DAY;
use crate::model::jobs::{self, Writing};
use crate::model::queue::Reason;
use crate::model::results::{self, Bounds, Delivery, Push, Verdict};
use crate::redis::{Batch, Conn};
use jscommon::command::{is_secret, shown_args};
use jscommon::{Command, JobResult, NodeId, State};
use redis::{FromRedisValue, RedisResult, Value};

/// Most calls of one transaction, for Redis does nothing else meanwhile.
const MAX_TRANSACTION_CALLS: usize = 256;

/// A result of the controller itself.
#[derive(Clone, Debug)]
pub(crate) struct OwnResult {
    /// The command.
    pub(crate) command: Command,
    /// The node for which it is given; nothing where the command reached none.
    pub(crate) target: Option<NodeId>,
    /// `OK`, `ERROR` or `KILLED`.
    pub(crate) state: State,
    /// The sentence, or JSON with level 20.
    pub(crate) data: String,
    /// The level of `data`.
    pub(crate) level: u8,
}

impl OwnResult {
    /// `ERROR` with a sentence.
    pub(crate) fn error(command: &Command, target: Option<NodeId>, data: impl Into<String>) -> OwnResult {
        OwnResult { command: command.clone(), target, state: State::Error, data: data.into(), level: 0 }
    }

    /// For a command that was withdrawn from the queue of `node`.
    pub(crate) fn withdrawn(command: &Command, node: NodeId, reason: Reason) -> OwnResult {
        let sentence = match reason {
            Reason::Cancelled => "cancelled before its node took it".to_owned(),
            Reason::Expired => {
                let seconds = if command.expires == 0 { DAY } else { command.expires };
                format!("expired: node {node} did not come for it within {seconds} s")
            }
            Reason::Revoked => format!("node {node} was revoked before it had acknowledged the command"),
        };
        let state = if reason == Reason::Cancelled { State::Killed } else { State::Error };
        OwnResult { state, ..OwnResult::error(command, Some(node), sentence) }
    }

    fn result(&self) -> JobResult {
        let mut result = JobResult::unrun(&self.command, self.state, self.data.clone());
        if let Some(node) = self.target {
            (result.gid, result.nid) = (node.gid, node.nid);
        }
        result.args = shown_args(&self.command.args);
        result.level = self.level;
        result.ticket.clear();
        result
    }

    fn delivery<'a>(&'a self, field: &'a str, text: &'a str) -> Delivery<'a> {
        Delivery { id: &self.command.id, target: field, run: "ac", text, recurring: None }
    }

    /// `gid:nid` of the target, or what the command names.
    fn field(&self) -> String {
        self.target.map_or(format!("{}:{}", self.command.gid, self.command.nid), |node| node.to_string())
    }
}

/// Delivers results of a controller.
#[derive(Clone, Copy)]
pub(crate) struct Deliverer<'a> {
    /// Counts them.
    pub(crate) metrics: &'a Metrics,
    /// Seconds that a finished job is kept.
    pub(crate) keep: u64,
}

impl Deliverer<'_> {
    /// Delivers results, each once; may be repeated.
    pub(crate) fn deliver(self, conn: &mut Conn, own: &[OwnResult]) -> RedisResult<()> {
        deliver(self, conn, own, true)
    }

    /// Delivers a result and leaves the job's hash alone, for that cannot be written.
    pub(crate) fn deliver_alone(self, conn: &mut Conn, own: &OwnResult) -> RedisResult<()> {
        deliver(self, conn, std::slice::from_ref(own), false)
    }
}

fn deliver(to: Deliverer<'_>, conn: &mut Conn, own: &[OwnResult], has_hash: bool) -> RedisResult<()> {
    let Deliverer { metrics, keep } = to;
    if own.is_empty() {
        return Ok(());
    }
    let texts: Vec<(String, String)> =
        own.iter().map(|own| (own.field(), serde_json::to_string(&own.result()).unwrap_or_default())).collect();
    let deliveries: Vec<Delivery<'_>> =
        own.iter().zip(&texts).map(|(own, (field, text))| own.delivery(field, text)).collect();
    let mut batch = Batch::new();
    for delivery in &deliveries {
        results::decide(&mut batch, delivery, false);
        if has_hash {
            jobs::size(&mut batch, delivery.id);
        }
    }
    let mut said = conn.run(&batch)?.into_iter();
    let mut next = || said.next().unwrap_or(Value::Nil);
    let decided = deliveries.iter().map(|_| {
        let verdict = results::verdict(next())?;
        Ok((verdict, if has_hash { usize::from_redis_value(next())? } else { 0 }))
    });
    let decided = decided.collect::<RedisResult<Vec<_>>>()?;
    let mut push_all = |hashes: Batch, pushes: Vec<Push<'_>>| {
        results::push_all(conn, hashes, &pushes)?;
        metrics.results.with_label_values(&["own"]).inc_by(pushes.len() as u64);
        RedisResult::Ok(())
    };
    let (mut hashes, mut pushes) = (Batch::new(), Vec::new());
    for ((own, delivery), (verdict, size)) in own.iter().zip(&deliveries).zip(decided) {
        if hashes.len() + pushes.len() >= MAX_TRANSACTION_CALLS {
            push_all(std::mem::take(&mut hashes), std::mem::take(&mut pushes))?;
        }
        if has_hash && verdict != Verdict::Late {
            let writing = match own.target {
                Some(_) => Writing::Withdrawn,
                // Asked again a `cancel` finds less to do, and says something else: what was pushed stands.
                None if verdict == Verdict::Repeat => Writing::Repeated,
                None => Writing::Counts,
            };
            jobs::result(
                &mut hashes,
                delivery.target,
                delivery.id,
                delivery.text,
                writing,
                jobs::hash_kept(keep, own.command.args.contains_key("recurring_period")),
            );
        }
        if verdict == Verdict::First {
            let quiet = own.command.quiet;
            let counted = (!quiet).then_some(own.state);
            pushes.push(Push { delivery: delivery.clone(), bounds: Bounds::of(size, quiet, keep), counted });
        }
    }
    push_all(hashes, pushes)
}

/// The command as JSON, without what is secret.
pub(crate) fn redacted(command: &Command) -> String {
    if !is_secret(&command.args) {
        return command.to_value().to_string();
    }
    let mut shown = command.clone();
    shown.args = shown_args(&command.args);
    if !shown.data.is_empty() {
        shown.data = "***".into();
    }
    shown.to_value().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn result_for_a_node_names_that_node() {
        let command = |value: Value| Command::from_value(value).unwrap();
        let many = command(json!({"id": "a", "cmd": "ping", "nodes": [[1, 2], [3, 4]]}));
        let all = command(json!({"id": "a", "cmd": "ping", "gid": 3, "roles": ["*"], "fanout": true}));
        for command in [many, all] {
            let answer = |target| serde_json::to_value(OwnResult::error(&command, target, "no").result()).unwrap();
            let named = answer(Some(NodeId { gid: 3, nid: 4 }));
            assert_eq!((&named["gid"], &named["nid"]), (&json!(3), &json!(4)));
            let nobody = answer(None);
            assert_eq!((&nobody["gid"], &nobody["nid"]), (&json!(command.gid), &json!(0)));
        }
    }

    #[test]
    fn secrets_are_hidden_when_marked() {
        let command = |secret: Value| {
            let value = json!({"id": "a", "cmd": "execute", "gid": 1, "nid": 1, "data": "geheim",
                "args": {"cmd": "x", "env": {"PW": "geheim"}, "secret": secret}});
            Command::from_value(value).unwrap()
        };
        assert!(redacted(&command(json!(false))).contains("geheim"));
        for marked in [json!(true), json!("true"), json!(1), json!("yes")] {
            let shown = redacted(&command(marked.clone()));
            assert!(!shown.contains("geheim") && shown.contains("PW"), "{shown}");
            let answer = OwnResult::error(&command(marked), None, "no");
            assert!(!serde_json::to_string(&answer.result()).unwrap().contains("geheim"));
        }
    }
}
