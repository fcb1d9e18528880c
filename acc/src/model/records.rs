//! Records and series of nodes: their lists, the queue for a monitor, and the latest value of each series.

use super::{DAY, HISTORY, keys, scripts};
use crate::redis::Batch;
use jscommon::NodeId;
use redis::{FromRedisValue, RedisResult, Value};

/// Most bytes of a list of records, or of stats that wait to be fetched; a single entry may be longer.
pub(crate) const MAX_LIST_BYTES: usize = 64 << 20;
/// Most series that are kept of a node.
const MAX_SERIES: usize = 10_000;

/// Adds the records of `node`'s batch `number` to the list `list`, oldest first, once.
pub(crate) fn records(batch: &mut Batch, list: &str, node: NodeId, number: u64, records: &[String]) {
    let args = (node.to_string(), number, HISTORY, 7 * DAY, MAX_LIST_BYTES, false, records);
    batch.script(&scripts::RECORDS, &[list.to_owned(), keys::seen(list)], args);
}

/// Adds `node`'s batch `number` of stats, as it came, to the queue for others, once; where the node has `no_share`
/// left, only while the queue is less than half full.
pub(crate) fn stats_queue(batch: &mut Batch, node: NodeId, number: u64, text: &str, no_share: bool) {
    let args = (node.to_string(), number, HISTORY, 7 * DAY, MAX_LIST_BYTES, no_share, text);
    batch.script(&scripts::RECORDS, &[keys::STATS_QUEUE.to_owned(), keys::STATS_SEEN.to_owned()], args);
}

/// The outcome of a batch that went to [`stats_queue`] or [`records`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// The bytes by which the list has grown.
    pub(crate) growth: usize,
    /// The list was too full for this node's batch.
    pub(crate) left_out: bool,
    /// The node's last batch, when this one was taken before.
    pub(crate) last: Option<u64>,
}

/// Reads the answer to [`stats_queue`] or [`records`].
pub(crate) fn pushed(answer: Value) -> RedisResult<Pushed> {
    let (growth, last): (i64, i64) = FromRedisValue::from_redis_value(answer)?;
    Ok(Pushed { growth: usize::try_from(growth).unwrap_or(0), left_out: growth < 0, last: u64::try_from(last).ok() })
}

/// Writes the latest values of `node`'s series, of its batch `number`: key and `[value, seconds]`. Unless
/// they are `fresh`, a value that is newer stays; of a batch that was written whole before, nothing is written. At most `new` series are written that
/// Redis did not know of the node. The answers say how many were new, and how many were left out.
pub fn stats(batch: &mut Batch, node: NodeId, number: u64, series: &[(String, String)], fresh: bool, new: usize) {
    let parts = series.chunks(1000);
    let last = parts.len();
    for (i, part) in parts.enumerate() {
        // As if all of the parts before had been new.
        let room = new.saturating_sub(1000 * i);
        let args = (MAX_SERIES, DAY, fresh, number, i + 1 == last, room, part);
        batch.script(&scripts::STATS, &[keys::stats(node), keys::stats_written(node)], args);
    }
}
