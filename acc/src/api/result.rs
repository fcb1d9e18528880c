//! `POST /{gid}/{nid}/result`: results, each delivered once.

use super::result_delivery::{Entry, Refusal, deliver};
use super::{Fault, Outcome, bad, expect_room, json, spend};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::auth::tickets::{BadTicket, Flags, Tickets};
use crate::http::Reply;
use crate::model::events;
use crate::model::results::Recurring;
use crate::redis::describe;
use crate::redis::errors::is_broken;
use jscommon::command::TICKET;
use jscommon::{JobResult, NodeId, State};
use serde_json::{Map, Value, json as object};

/// Most results of one request; an agent sends half of that.
const MAX_RESULTS: usize = 1000;

/// The text of a result is written twice: for who waits for it, and into the job's hash.
const COPIES: usize = 2;

/// The bytes that a result takes in Redis beside its text.
const RESULT_OVERHEAD_BYTES: usize = 256;

/// The results of one request.
struct Posted {
    node: NodeId,
    entries: Vec<Entry>,
    /// Results that are none of its own, and why.
    refused: Vec<(String, Refusal)>,
    /// The cost charged to the node.
    paid: [Charge; 2],
}

/// Takes what nodes have sent, one body each, in as few round trips as one alone would take.
pub(super) fn post_all(context: &Context, posts: Vec<(NodeId, Vec<u8>)>) -> Vec<Outcome> {
    let read = |(node, body): (NodeId, Vec<u8>)| {
        expect_room(context, node, &[Charge::new(Resource::Bytes, body.len())])?;
        let body = json(&context.values, &context.metrics, node, body)?;
        let posted = read(&context.tickets, node, body.value)?;
        spend(context, node, &posted.paid)?;
        Ok(posted)
    };
    deliver_all(context, posts.into_iter().map(read).collect())
}

fn deliver_all(context: &Context, posted: Vec<Result<Posted, Fault>>) -> Vec<Outcome> {
    let entries: Vec<&Entry> = posted.iter().flatten().flat_map(|posted| &posted.entries).collect();
    if entries.is_empty() {
        return posted.into_iter().map(|posted| reply(context, posted?, &mut std::iter::empty())).collect();
    }
    let refusals = match context.pool.with(|conn| deliver(context, conn, &entries)) {
        Ok(refusals) => refusals,
        // An error about one of them does not fail the others.
        Err(e) if posted.len() > 1 && !is_broken(&e) => {
            return posted.into_iter().flat_map(|one| deliver_all(context, vec![one])).collect();
        }
        Err(e) => {
            let failed = |posted: Posted| {
                context.rate_limiter.give_back(posted.node, &posted.paid);
                Fault::Redis(e.clone())
            };
            return posted.into_iter().map(|posted| Err(posted.map_or_else(|fault| fault, failed))).collect();
        }
    };
    let mut refusals = refusals.into_iter();
    posted.into_iter().map(|posted| posted.and_then(|posted| reply(context, posted, &mut refusals))).collect()
}

fn read(tickets: &Tickets, node: NodeId, body: Value) -> Result<Posted, Fault> {
    let Value::Array(list) = body else { return Err(bad("the body is a list of results")) };
    let count = list.len();
    if count > MAX_RESULTS {
        return Err(super::too_many(format!("a request has at most {MAX_RESULTS} results, and this one {count}")));
    }
    let (mut entries, mut refused) = (Vec::with_capacity(count), Vec::new());
    for (i, value) in list.into_iter().enumerate() {
        match entry(tickets, node, value).map_err(|reason| bad(format!("result {i}: {reason}")))? {
            Ok(entry) => entries.push(entry),
            Err(why) => refused.push(why),
        }
    }
    let stored = entries.iter().map(|entry| COPIES * entry.text.len() + RESULT_OVERHEAD_BYTES).sum();
    let paid = [Charge::new(Resource::Results, count), Charge::new(Resource::Bytes, stored)];
    Ok(Posted { node, entries, refused, paid })
}

/// The answer to who has sent this; `refusals` says of each entry in turn whether it was refused.
fn reply(context: &Context, posted: Posted, refusals: &mut impl Iterator<Item = Option<Refusal>>) -> Outcome {
    let Posted { node, entries, mut refused, .. } = posted;
    refused.extend(entries.into_iter().zip(refusals).filter_map(|(entry, why)| Some((entry.id, why?))));
    let Some((id, why)) = refused.first() else { return Ok(Reply::json("{}")) };
    let now = context.clock.now();
    // Somebody may send them without end, and one is news enough.
    if context.rate_limiter.take(node, &[Charge::new(Resource::RefusedEvents, 1)], now).is_ok() {
        let data = object!({"id": id, "reason": why.sentence(), "count": refused.len()});
        if let Err(e) = context.pool.with(|conn| events::tell(conn, "refused_result", Some(node), now, &data)) {
            ::log::debug!("a refused result of node {node} is not told: {}", describe(&e));
        }
    }
    let rooms = refused.iter().filter_map(|(_, why)| match why {
        Refusal::TooMany(seconds) => Some(*seconds),
        _ => None,
    });
    if let Some(seconds) = rooms.max() {
        // All of them come again; what was delivered now is known then.
        let sentence = format!("results of node {node} are too many: {}", Refusal::TooMany(seconds).sentence());
        context.metrics.refused("results");
        return Err(Fault::Reply(Reply::busy(429, sentence, seconds)));
    }
    let ids: Vec<&str> = refused.iter().map(|(id, _)| id.as_str()).collect();
    let error = format!("result of job {id}: {}; node {node} may not answer for it", why.sentence());
    let body = object!({"error": error, "refused": ids, "time": now});
    Err(Fault::Reply(Reply { status: 403, ..Reply::json(body.to_string()) }))
}

/// One entry: `Err` when it is no result, `Ok(Err(id, why))` when its node may not answer for it.
fn entry(tickets: &Tickets, node: NodeId, mut value: Value) -> Result<Result<Entry, (String, Refusal)>, String> {
    let fields = value.as_object_mut().ok_or("a result is an object")?;
    fields.retain(|_, field| !field.is_null());
    let quiet = fields.remove("quiet").is_some_and(|quiet| quiet == Value::Bool(true));
    let ticket = fields.remove(TICKET);
    for (name, own) in [("gid", node.gid), ("nid", node.nid)] {
        fields.entry(name).or_insert(own.into());
    }
    if let Some(Value::Object(args)) = fields.get_mut("args") {
        jscommon::command::hide_secrets(args);
    }
    let text = value.to_string();
    // Apart, for reading a value as another type builds it anew.
    let args = match value.as_object_mut().and_then(|fields| fields.remove("args")) {
        None => Map::new(),
        Some(Value::Object(args)) => args,
        Some(_) => return Err("'args' is no object".into()),
    };
    let result: JobResult = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if !jscommon::command::is_job_id(&result.id) {
        return Err("'id' is no job id".into());
    }
    if (result.gid, result.nid) != (node.gid, node.nid) {
        return Ok(Err((result.id, Refusal::OtherNode)));
    }
    // Fields of a result count only where it has no ticket, and then Redis is asked as well.
    let flags = match &ticket {
        None => Ok(Flags::of(&args)),
        Some(Value::String(ticket)) => tickets.check(node, &result.id, ticket),
        Some(_) => Err(BadTicket),
    };
    let Ok(flags) = flags else { return Ok(Err((result.id, Refusal::WrongTicket))) };
    let recurring = flags.recurring.map(|period| Recurring {
        node,
        starttime: result.starttime,
        period,
        quiet: quiet || (result.state == State::Ok && !(20..=23).contains(&result.level)),
    });
    let (target, run) = (node.to_string(), result.starttime.to_string());
    let JobResult { id, state, .. } = result;
    Ok(Ok(Entry { node, id, state, target, run, text, has_ticket: ticket.is_some(), recurring }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tickets::{TicketKey, TicketKeys};

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    fn tickets() -> Tickets {
        Tickets::new(TicketKeys { current: TicketKey::new(&[7; 32]), previous: None })
    }

    fn taken(value: Value) -> Entry {
        entry(&tickets(), NODE, value).unwrap().map_err(|refused| format!("{refused:?}")).unwrap()
    }

    #[test]
    fn damaged_results_are_refused() {
        let good = taken(object!({"id": "a", "state": "OK", "starttime": 5, "later": 1}));
        assert_eq!((good.target.as_str(), good.run.as_str()), ("1:10", "5"));
        let text: Value = serde_json::from_str(&good.text).unwrap();
        assert_eq!(text, object!({"id": "a", "state": "OK", "starttime": 5, "later": 1, "gid": 1, "nid": 10}));
        let other = entry(&tickets(), NODE, object!({"id": "a", "state": "OK", "gid": 1, "nid": 11})).unwrap();
        assert_eq!(other.err(), Some(("a".into(), Refusal::OtherNode)));
        for bad in
            [object!(5), object!({}), object!({"id": "a b", "state": "OK"}), object!({"id": "a", "state": "Fine"})]
        {
            assert!(entry(&tickets(), NODE, bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn result_with_a_wrong_ticket_is_refused() {
        let read = |ticket: Value| {
            let value = object!({"id": "a", "state": "OK", "ticket": ticket});
            entry(&tickets(), NODE, value).unwrap().map(|entry| (entry.has_ticket, entry.text.contains("ticket")))
        };
        let good = tickets().issue(NODE, "a", Flags::default());
        assert_eq!(read(good.clone().into()), Ok((true, false)), "clients do not get it");
        assert_eq!(read(Value::Null), Ok((false, false)));
        let others = tickets().issue(NodeId { gid: 1, nid: 11 }, "a", Flags::default());
        for wrong in [object!(""), object!(5), object!([good]), format!("r60{good}").into(), others.into()] {
            assert_eq!(read(wrong.clone()), Err(("a".into(), Refusal::WrongTicket)), "{wrong}");
        }
    }

    #[test]
    fn recurrence_comes_from_the_ticket() {
        let period = |flags: Flags, args: Value| {
            let ticket = tickets().issue(NODE, "a", flags);
            let read = taken(object!({"id": "a", "state": "OK", "ticket": ticket, "args": args}));
            read.recurring.map(|run| run.period)
        };
        assert_eq!(period(Flags::default(), object!({"recurring_period": 5})), None);
        assert_eq!(period(Flags { recurring: Some(60) }, object!({})), Some(60));
        assert_eq!(period(Flags { recurring: Some(60) }, object!({"recurring_period": 1e9})), Some(60));
    }

    #[test]
    fn successful_run_of_a_recurring_job_is_quiet() {
        let read = |state: &str, level: u8| {
            let ticket = tickets().issue(NODE, "a", Flags { recurring: Some(5) });
            let value = object!({"id": "a", "state": state, "level": level, "starttime": 7, "ticket": ticket});
            taken(value).recurring.unwrap().quiet
        };
        assert!(read("OK", 0));
        assert!(!read("OK", 20));
        assert!(!read("ERROR", 0));
    }

    #[test]
    fn secrets_are_hidden() {
        let value = object!({"id": "a", "state": "OK", "args": {"secret": true, "env": {"PW": "geheim"}}});
        assert!(!taken(value).text.contains("geheim"));
    }
}
