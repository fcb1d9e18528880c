//! `cancel`: a command that the controller answers itself, by taking another one back.
//!
//! Owns: what is said about each node of the job. Does not own: giving the answers (the dispatcher does, and
//! forgets then what was taken back).

use crate::model::jobs;
use crate::model::own_results::OwnResult;
use crate::model::queue::{self, Reason, Withdrawn};
use crate::redis::{Batch, Conn};
use crate::work::targets;
use jscommon::{Command, NodeId, State};
use redis::RedisResult;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Longest `data` of a cancellation, in bytes: it names one job.
const MAX_DATA: usize = 4096;

fn with_node(id: &str, node: NodeId) -> String {
    format!("job {id} is already with node {node}: kill it instead")
}

/// Takes back what still waits; the answers to both commands, and the job that was cancelled. Until
/// the answers are given and its text is forgotten, asking again finds the same. At most `max_queue` commands wait for a node.
pub(crate) fn take_back(
    conn: &mut Conn,
    command: &Command,
    now: u64,
    max_queue: usize,
) -> RedisResult<(Vec<OwnResult>, String)> {
    let data = Some(command.data.as_str()).filter(|data| data.len() <= MAX_DATA);
    let data: Value = data.and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default();
    let Some(id) = data.get("id").and_then(Value::as_str).filter(|id| jscommon::command::is_job_id(id)) else {
        let own = OwnResult::error(command, None, "cancel wants data {\"id\": \"<job>\"}");
        return Ok((vec![own], String::new()));
    };
    let job: HashMap<String, String> = jobs::read(conn, id)?.into_iter().collect();
    let wanted: Vec<NodeId> = match targets::named(command) {
        Some(node) => vec![node],
        None if !command.nodes.is_empty() => command.nodes.clone(),
        None => job.keys().filter_map(|field| field.parse().ok()).collect(),
    };
    let mut answers = Vec::new();
    let mut cancelled = 0;
    let mut sentence = format!("no such job {id}");
    for node in wanted {
        match queue::withdraw(conn, node, id, now, Reason::Cancelled, max_queue)? {
            Withdrawn::Out(..) if jobs::has_node(conn, node, id)? => {
                let mut batch = Batch::new();
                queue::forget(&mut batch, node, id);
                conn.run(&batch)?;
                sentence = with_node(id, node);
            }
            Withdrawn::Out(waiting, Reason::Cancelled) => {
                cancelled += 1;
                answers.extend(waiting.map(|waiting| OwnResult::withdrawn(&waiting, node, Reason::Cancelled)));
            }
            // The one that withdrew it answers it.
            Withdrawn::Out(_, Reason::Expired) => {
                sentence = format!("job {id} has expired: node {node} did not come for it")
            }
            Withdrawn::Out(_, Reason::Revoked) => sentence = format!("job {id} has ended: node {node} was revoked"),
            Withdrawn::Handed(_) => sentence = with_node(id, node),
            Withdrawn::Gone => {
                let state = job.get(&node.to_string()).and_then(|text| serde_json::from_str::<Value>(text).ok());
                sentence = match state.as_ref().and_then(|state| state["state"].as_str()) {
                    None => format!("no such job {id} for node {node}"),
                    Some("QUEUED" | "RUNNING") => with_node(id, node),
                    Some(_) => format!("job {id} has ended on node {node}"),
                };
            }
        }
    }
    let own = if cancelled > 0 {
        let data = json!({"cancelled": true, "count": cancelled}).to_string();
        OwnResult { state: State::Ok, level: 20, ..OwnResult::error(command, None, data) }
    } else {
        OwnResult::error(command, None, sentence)
    };
    answers.push(own);
    Ok((answers, id.to_owned()))
}
