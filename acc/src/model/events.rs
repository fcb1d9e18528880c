//! The list of events: what somebody should look at.
//!
//! Owns: `jsacc:events`, its bounds, and the share of it that one node may have. Does not own: what is told there, or how
//! often (the handlers).

use crate::model::{HISTORY, keys, scripts};
use crate::redis::{Batch, Conn};
use jscommon::NodeId;
use redis::RedisResult;
use serde_json::{Value, json};

/// Names of events that the controller tells of a node: the node itself cannot tell them.
pub const RESERVED: [&str; 7] =
    ["enrolled", "late_result", "not_granted", "refused", "refused_result", "revoked", "two_agents"];

/// Most bytes of the list.
const MAX_BYTES: usize = 16 << 20;
/// Most events of one node in the list, and of refused credentials, which anybody can cause.
const MAX_OF_ONE: usize = HISTORY / 10;
/// Most bytes of these.
const MAX_BYTES_OF_ONE: usize = 2 << 20;

/// Adds an event: `name`, the node it is about, the time (ms), and what there is to say.
pub fn add(batch: &mut Batch, name: &str, node: Option<NodeId>, now: u64, data: &Value) {
    let (gid, nid) = node.map_or((0, 0), |node| (node.gid, node.nid));
    // In this order, for the script reads name and node from the beginning.
    let entry = format!(r#"{{"name":{},"gid":{gid},"nid":{nid},"time":{now},"data":{data}}}"#, json!(name));
    let source = match node {
        _ if name == "refused" => name.to_owned(),
        Some(node) => node.to_string(),
        None => String::new(),
    };
    let args = (entry, source, HISTORY, MAX_BYTES, MAX_OF_ONE, MAX_BYTES_OF_ONE);
    batch.script(&scripts::EVENT, &[keys::EVENTS.to_owned(), keys::seen(keys::EVENTS)], args);
}

/// Adds an event by a call of its own.
pub(crate) fn tell(conn: &mut Conn, name: &str, node: Option<NodeId>, now: u64, data: &Value) -> RedisResult<()> {
    let mut batch = Batch::new();
    add(&mut batch, name, node, now, data);
    conn.run(&batch).map(drop)
}
