//! `POST /{gid}/{nid}/log`: batches of records.

use super::{ENTRY_BYTES, Fault, Outcome, bad, batch_number, bytes, expect_room, json, refuse, spend};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::bounded_map::Throttle;
use crate::http::Reply;
use crate::model::nodes::MayWrite;
use crate::model::{events, keys, nodes, records};
use crate::redis::errors::{describe, is_wrong_type};
use crate::redis::{Batch, Conn};
use jscommon::lock::lock;
use jscommon::{NodeId, series};
use redis::{RedisError, RedisResult};
use serde_json::{Map, Value, json as object};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Most records of one batch, and most that an agent can be told to send at once.
const MAX_RECORDS: usize = 10_000;
/// The name of the list for records whose own list is a key of another type.
const WRONG_TYPE: &str = "wrong_type";
/// The bytes that a list takes in Redis beside its records.
const LIST_OVERHEAD_BYTES: usize = 1024;
/// How often one such key is reported, and how many.
const NOTICE_INTERVAL: Duration = Duration::from_secs(3600);
const MAX_NOTICED_KEYS: usize = 100;

pub(super) fn post(context: &Context, notices: &Notices, node: NodeId, body: Vec<u8>) -> Outcome {
    super::within_batch(&body)?;
    expect_room(context, node, &[bytes(body.len())])?;
    let mut body = json(&context.values, &context.metrics, node, body)?;
    let number = batch_number(&body.value)?;
    let Some(Value::Array(records)) = body.value.get_mut("records").map(Value::take) else {
        return Err(bad("'records' must be a list"));
    };
    let count = records.len();
    if count > MAX_RECORDS {
        return Err(super::too_many(format!("a batch has at most {MAX_RECORDS} records, and this one {count}")));
    }
    let mut by_list: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut stored = 0;
    for (i, record) in records.into_iter().enumerate() {
        let Value::Object(record) = record else { return Err(bad(format!("record {i} is no object"))) };
        let (list, text) = read(node, record).map_err(|fault| fault.reply(i))?;
        stored += text.len() + ENTRY_BYTES;
        by_list.entry(list).or_default().push(text);
    }
    drop(body);
    let now = context.clock.now();
    let (last, may) = context.pool.with(|conn| nodes::log_state(conn, node, by_list.keys(), now))?;
    if let Some(last) = last.filter(|last| number <= *last) {
        return Ok(super::taken_before(last));
    }
    let made = may.iter().filter(|may| **may == MayWrite::New).count();
    spend(context, node, &[Charge::new(Resource::Records, count), bytes(stored + made * LIST_OVERHEAD_BYTES)])?;
    // Lists that are full grow no more, so this is spent by a node that makes more and more of them.
    let grows = context.rate_limiter.left(node, Resource::Growth, now) > 0.0;
    let by_list = within_bound(by_list, &may, grows);
    let written = context.pool.with(|conn| {
        let written = write(conn, node, number, &by_list)?;
        // Last, so that a death before it only means that the lists say "seen" one by one.
        nodes::set_last_log(conn, node, number)?;
        Ok(written)
    });
    let (wrong, growth) = match written {
        Ok(written) => written,
        Err(e) => {
            // It is sent again, and pays then.
            context.rate_limiter.give_back(node, &[Charge::new(Resource::Records, count), bytes(stored)]);
            return Err(e.into());
        }
    };
    context.rate_limiter.owe(node, Charge::new(Resource::Growth, growth + made * LIST_OVERHEAD_BYTES), now);
    report_wrong_types(context, notices, &wrong);
    Ok(Reply::json("{}"))
}

/// Writes the records of `node`'s batch `number`; answers the keys that are of another type than they must be, each with
/// the sentence that says so, and by how many bytes the lists have grown. Records of such keys go to another list: one of
/// them does not hold up all that the node sends.
fn write(
    conn: &mut Conn,
    node: NodeId,
    number: u64,
    by_list: &BTreeMap<String, Vec<String>>,
) -> RedisResult<(Vec<(String, String)>, usize)> {
    let mut growth = 0;
    let mut batch = Batch::new();
    by_list.iter().for_each(|(list, records)| records::records(&mut batch, list, node, number, records));
    let (mut wrong, mut records) = (Vec::new(), Vec::new());
    for ((list, texts), answer) in by_list.iter().zip(conn.run_each(&batch)?) {
        match answer {
            Err(e) if is_wrong_type(&e) => {
                wrong.push(at_fault(list, &e));
                records.extend(texts.iter().cloned());
            }
            answer => growth += records::pushed(answer?)?.growth,
        }
    }
    if wrong.is_empty() {
        return Ok((wrong, growth));
    }
    let instead = series::log_key("", WRONG_TYPE);
    let mut batch = Batch::new();
    records::records(&mut batch, &instead, node, number, &records);
    match conn.run(&batch) {
        // Then there is no place for them; they are on their node still.
        Err(e) if is_wrong_type(&e) => wrong.push(at_fault(&instead, &e)),
        answer => {
            for answer in answer? {
                growth += records::pushed(answer)?.growth;
            }
        }
    }
    Ok((wrong, growth))
}

/// The key that keeps records from the list `list`, and the sentence that says so. It is the list itself, or the hash
/// beside it that knows the last batches: then the list is good, and nobody is to delete it.
fn at_fault(list: &str, error: &RedisError) -> (String, String) {
    let (sentence, beside) = (describe(error), keys::seen(list));
    let key = if sentence.starts_with(&format!("the key {beside} ")) { beside } else { list.to_owned() };
    let instead = series::log_key("", WRONG_TYPE);
    (key, format!("records of {list} go to {instead}: {sentence}"))
}

/// Says of each key that is of another type than it must be, once an hour, that it is so.
fn report_wrong_types(context: &Context, notices: &Notices, wrong: &[(String, String)]) {
    let now = context.clock.now();
    for (key, sentence) in wrong {
        if !lock(notices).admits(key, Instant::now()) {
            continue;
        }
        let instead = series::log_key("", WRONG_TYPE);
        ::log::error!("{sentence}");
        let data = object!({"key": key, "instead": instead});
        // The records are stored whether it is told or not.
        let _ = context.pool.with(|conn| events::tell(conn, "wrong_type", None, now, &data));
    }
}

/// Keys of another type that were reported lately.
pub(super) type Notices = Mutex<Throttle<String>>;

/// None was reported yet.
pub(super) fn no_notices() -> Notices {
    Mutex::new(Throttle::new(NOTICE_INTERVAL, MAX_NOTICED_KEYS))
}

/// Records of lists that are too many go to the one of records without a name, and all of them where the node's
/// lists may not grow; they say themselves what they belong to.
fn within_bound(
    by_list: BTreeMap<String, Vec<String>>,
    may: &[MayWrite],
    grows: bool,
) -> BTreeMap<String, Vec<String>> {
    let mut kept: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (i, (list, records)) in by_list.into_iter().enumerate() {
        let may = grows && may.get(i).is_none_or(|may| *may != MayWrite::No);
        let list = if may { list } else { series::log_key("", "") };
        kept.entry(list).or_default().extend(records);
    }
    kept
}

#[derive(Debug)]
enum BadRecord {
    OtherNode,
    Field(&'static str),
}

impl BadRecord {
    fn reply(&self, index: usize) -> Fault {
        match self {
            BadRecord::OtherNode => {
                refuse(403, format!("record {index} names another node than the one that sends it"))
            }
            BadRecord::Field(name) => bad(format!("record {index} has a bad '{name}'")),
        }
    }
}

/// The list that a record goes to, and its text.
fn read(node: NodeId, mut record: Map<String, Value>) -> Result<(String, String), BadRecord> {
    for (name, own) in [("gid", node.gid), ("nid", node.nid)] {
        match record.get(name) {
            None | Some(Value::Null) => {
                record.insert(name.into(), own.into());
            }
            Some(value) if value.as_u64() == Some(own.into()) => {}
            Some(_) => return Err(BadRecord::OtherNode),
        }
    }
    let word = |name: &'static str| match record.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(word)) => Ok(word.as_str()),
        Some(_) => Err(BadRecord::Field(name)),
    };
    word("data")?;
    word("jobid")?;
    if record.get("level").is_some_and(|level| level.as_u64().is_none_or(|level| level > 31)) {
        return Err(BadRecord::Field("level"));
    }
    // A name is cut like this by nobody but a hostile node: it would only make its own long key.
    let list = series::log_key(word("jobdomain")?, word("jobname")?);
    let list = if list.len() > 512 { list.chars().take(512).collect() } else { list };
    Ok((list, Value::Object(record).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    #[test]
    fn damaged_records_are_refused() {
        let check = |value: Value| read(NODE, value.as_object().unwrap().clone());
        let (list, text) = check(json!({"jobdomain": "a/b", "level": 3, "data": "x"})).unwrap();
        assert_eq!(list, "log.a_b.unknown");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["nid"], 10);
        assert!(matches!(check(json!({"gid": 2})), Err(BadRecord::OtherNode)));
        assert!(matches!(check(json!({"jobname": 5})), Err(BadRecord::Field("jobname"))));
        assert!(matches!(check(json!({"level": 99})), Err(BadRecord::Field("level"))));
    }

    #[test]
    fn records_of_too_many_lists_go_where_those_without_a_name_are() {
        let by_list = |names: &[(&str, &str)]| {
            names.iter().map(|(list, record)| ((*list).to_owned(), vec![(*record).to_owned()])).collect()
        };
        let before: BTreeMap<String, Vec<String>> = by_list(&[("log.a.b", "1"), ("log.a.c", "2"), ("log.x.y", "3")]);
        assert_eq!(within_bound(before.clone(), &[MayWrite::Known, MayWrite::New, MayWrite::Known], true), before);
        let after = within_bound(before.clone(), &[MayWrite::New, MayWrite::No, MayWrite::No], true);
        assert_eq!(after["log.a.b"], ["1"]);
        assert_eq!(after["log.unknown.unknown"], ["2", "3"]);
        let after = within_bound(before, &[MayWrite::Known; 3], false);
        assert_eq!(after["log.unknown.unknown"], ["1", "2", "3"], "they may not grow");
    }
}
