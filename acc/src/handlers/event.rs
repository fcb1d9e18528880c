//! `POST /{gid}/{nid}/event`: starts and stops, alerts, what an agent noticed.

use super::allowance::Allowance;
use super::{Outcome, bad, json};
use crate::context::Context;
use crate::server::Reply;
use crate::store::{Batch, lists, nodes};
use jscommon::NodeId;
use serde_json::{Map, Value};

/// Longest text of an event that is kept, in bytes.
const MAX_DATA: usize = 64 << 10;

/// Events that a node may send a second: what somebody should look at, so not many.
pub(super) const MAX_EVENTS: f64 = 20.0;

pub(super) fn post(context: &Context, limits: &Allowance, node: NodeId, body: &[u8]) -> Outcome {
    let body = json(body)?;
    let name = body
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| (1..=64).contains(&name.len()))
        .ok_or_else(|| bad("'name' must be the event's name, at most 64 bytes long"))?;
    let data = body.get("data").cloned().unwrap_or(Value::Object(Map::new()));
    if data.to_string().len() > MAX_DATA {
        return Err(bad(format!("'data' is longer than {MAX_DATA} bytes")));
    }
    if let Err(seconds) = limits.take(node, 1.0, context.clock.now()) {
        let sentence = format!("node {node} sends more than {MAX_EVENTS} events a second");
        return Err(super::too_often(context, "events", seconds, sentence));
    }
    let mut facts: Vec<(&str, String)> = Vec::new();
    if name == "startup" {
        for field in ["hostname", "os", "version", "instance"] {
            if let Some(value) = data.get(field).and_then(Value::as_str) {
                facts.push((field, value.chars().take(256).collect()));
            }
        }
        if let Some(roles) = data.get("roles").filter(|roles| roles.is_array()) {
            facts.push(("roles", roles.to_string()));
        }
    }
    context.pool.with(|conn| {
        // Last what is not to happen twice when the node sends it again.
        let (mut known, mut event) = (Batch::new(), Batch::new());
        nodes::describe(&mut known, node, &facts);
        if let ("shutdown", Some(instance)) = (name, data.get("instance").and_then(Value::as_str)) {
            nodes::stopped(&mut known, node, instance, context.clock.now());
        }
        lists::event(&mut event, name, Some(node), context.clock.now(), &data);
        conn.run_in_turn(known, event).map(drop)
    })?;
    Ok(Reply::json("{}"))
}
