//! `POST /{gid}/{nid}/log`: batches of records.

use super::{Fault, Outcome, bad, batch_number, json};
use crate::context::Context;
use crate::server::Reply;
use crate::store::{Batch, lists, nodes};
use jscommon::{NodeId, series};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// For how long (ms) a node may save up its allowance.
const SPAN: u64 = 60_000;

/// How much each node has sent here of late.
pub(super) struct Limits {
    per_second: u64,
    spent: Mutex<HashMap<NodeId, (u64, f64)>>,
}

impl Limits {
    pub(super) fn new(per_second: u64) -> Limits {
        Limits { per_second, spent: Mutex::default() }
    }

    /// Takes `count` records of `node` at `now` (ms), or says after how many seconds there is room.
    fn take(&self, node: NodeId, count: usize, now: u64) -> Result<(), u32> {
        let rate = self.per_second as f64 / 1000.0;
        let most = rate * SPAN as f64;
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.len() > 20_000 {
            spent.retain(|_, (at, _)| now.saturating_sub(*at) < SPAN);
        }
        let (at, used) = spent.entry(node).or_insert((now, 0.0));
        *used = (*used - rate * now.saturating_sub(*at) as f64).max(0.0);
        *at = now;
        // A batch larger than the whole allowance goes when nothing else was spent.
        if *used > 0.0 && *used + count as f64 > most {
            return Err(((*used + count as f64 - most).min(*used) / rate / 1000.0).ceil().clamp(1.0, 60.0) as u32);
        }
        *used += count as f64;
        Ok(())
    }
}

pub(super) fn post(context: &Context, limits: &Limits, node: NodeId, body: &[u8]) -> Outcome {
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
    if let Some(last) = context.pool.with(|conn| nodes::last_log(conn, node))?.filter(|last| number <= *last) {
        return Ok(super::taken_before(last));
    }
    if let Err(seconds) = limits.take(node, count, context.clock.now()) {
        context.metrics.refused("records");
        let sentence = format!("node {node} sends more than {} records a second", context.config.max_records);
        return Err(Fault::Reply(Reply::busy(429, sentence, seconds)));
    }
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
    fn an_allowance_fills_again() {
        let limits = Limits::new(10);
        assert_eq!(limits.take(NODE, 600, 0), Ok(()));
        let wait = limits.take(NODE, 100, 0).unwrap_err();
        assert_eq!(wait, 10);
        assert_eq!(limits.take(NODE, 100, 10_000), Ok(()));
        assert!(limits.take(NODE, 10_000, 10_000).is_err());
        assert_eq!(limits.take(NODE, 10_000, 100_000), Ok(()), "a huge batch goes alone");
        assert_eq!(limits.take(NodeId { gid: 9, nid: 9 }, 5, 100_000), Ok(()));
    }
}
