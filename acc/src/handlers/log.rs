//! `POST /{gid}/{nid}/log`: batches of records.

use super::allowance::Allowance;
use super::{Fault, Outcome, bad, batch_number, json};
use crate::context::Context;
use crate::server::Reply;
use crate::store::{Batch, lists, nodes};
use jscommon::{NodeId, series};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Bytes of records that a node may send a second.
const MAX_BYTES: f64 = 4_194_304.0;

/// How much each node has sent here of late, in records and in bytes.
pub(super) struct Limits {
    records: Allowance,
    bytes: Allowance,
}

impl Limits {
    pub(super) fn new(per_second: u64) -> Limits {
        Limits { records: Allowance::new(per_second as f64), bytes: Allowance::new(MAX_BYTES) }
    }

    /// Takes a batch of `node`, or says after how many seconds there is room, and for what.
    fn take(&self, node: NodeId, count: usize, bytes: usize, now: u64) -> Result<(), (u32, String)> {
        let more = |what: String| move |seconds| (seconds, format!("node {node} sends more than {what} a second"));
        let records = format!("{} records", self.records.per_second());
        self.records.take(node, count as f64, now).map_err(more(records))?;
        self.bytes.take(node, bytes as f64, now).map_err(|seconds| {
            // What is refused is sent again, and pays then.
            self.records.give_back(node, count as f64);
            more(format!("{MAX_BYTES} bytes of records"))(seconds)
        })
    }
}

pub(super) fn post(context: &Context, limits: &Limits, node: NodeId, body: &[u8]) -> Outcome {
    let length = body.len();
    let mut body = json(body)?;
    let number = batch_number(&body)?;
    let Some(Value::Array(records)) = body.get_mut("records").map(Value::take) else {
        return Err(bad("'records' must be a list"));
    };
    let count = records.len();
    let mut by_list: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (i, record) in records.into_iter().enumerate() {
        let Value::Object(record) = record else { return Err(bad(format!("record {i} is no object"))) };
        let (list, text) = read(node, record).map_err(|fault| fault.reply(i))?;
        by_list.entry(list).or_default().push(text);
    }
    let now = context.clock.now();
    let (last, may) = context.pool.with(|conn| nodes::log_state(conn, node, by_list.keys(), now))?;
    if let Some(last) = last.filter(|last| number <= *last) {
        return Ok(super::taken_before(last));
    }
    if let Err((seconds, sentence)) = limits.take(node, count, length, now) {
        context.metrics.refused("records");
        return Err(Fault::Reply(Reply::busy(429, sentence, seconds)));
    }
    let by_list = within_bound(by_list, &may);
    context.pool.with(|conn| {
        let mut batch = Batch::new();
        for (list, records) in &by_list {
            lists::records(&mut batch, list, node, number, records);
        }
        conn.run(&batch)?;
        // Last, so that a death before it only means that the lists say "seen" one by one.
        nodes::set_last_log(conn, node, number)
    })?;
    Ok(Reply::json("{}"))
}

/// Records of lists that are too many go to the one of records without a name; they say themselves what
/// they belong to.
fn within_bound(by_list: BTreeMap<String, Vec<String>>, may: &[bool]) -> BTreeMap<String, Vec<String>> {
    let mut kept: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (i, (list, records)) in by_list.into_iter().enumerate() {
        let list = if may.get(i).copied().unwrap_or(true) { list } else { series::log_key("", "") };
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
                Fault::Reply(Reply::error(403, format!("record {index} names another node than the one that sends it")))
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
    fn records_are_read_with_care() {
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
        assert_eq!(within_bound(before.clone(), &[true; 3]), before);
        let after = within_bound(before, &[true, false, false]);
        assert_eq!(after["log.a.b"], ["1"]);
        assert_eq!(after["log.unknown.unknown"], ["2", "3"]);
    }

    #[test]
    fn few_records_may_be_too_many_bytes() {
        let limits = Limits::new(10);
        assert_eq!(limits.take(NODE, 1, 16 << 20, 0), Ok(()));
        assert_eq!(limits.take(NODE, 1, 210 << 20, 0), Ok(()));
        let (seconds, why) = limits.take(NODE, 1, 20 << 20, 0).unwrap_err();
        assert!((1..=60).contains(&seconds) && why.contains("bytes"), "{seconds} {why}");
        assert_eq!(limits.take(NODE, 1, 1, 70_000), Ok(()));
        assert!(limits.take(NODE, 10_000, 1, 70_000).unwrap_err().1.contains("10 records"));
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let limits = Limits::new(10);
        assert_eq!(limits.take(NODE, 599, 1, 0), Ok(()));
        for _ in 0..100 {
            assert!(limits.take(NODE, 2, 16 << 20, 0).unwrap_err().1.contains("10 records"));
        }
        assert_eq!(limits.take(NODE, 1, 239 << 20, 0), Ok(()), "its bytes are all there");
        for _ in 0..100 {
            assert!(limits.take(NODE, 90, 200 << 20, 10_000).unwrap_err().1.contains("bytes"));
        }
        assert_eq!(limits.take(NODE, 100, 1, 10_000), Ok(()), "its records are all there");
    }
}
