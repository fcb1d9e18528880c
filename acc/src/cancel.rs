//! `cancel`: a command that the controller answers itself, by taking another one back.
//!
//! Owns: what is said about each node of the job. Does not own: giving the answers (the dispatcher does, and
//! forgets then what was taken back).

use crate::answer::Answer;
use crate::store::queue::{self, Withdrawn};
use crate::store::{Conn, jobs};
use crate::targets;
use jscommon::{Command, NodeId, State};
use redis::RedisResult;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Longest `data` of a cancellation, in bytes: it names one job.
const MAX_DATA: usize = 4096;

/// Takes back what still waits; the answers to both commands, and the job that was cancelled. Until
/// the answers are given and its text is forgotten, asking again finds the same.
pub fn take_back(conn: &mut Conn, command: &Command, now: u64) -> RedisResult<(Vec<Answer>, String)> {
    let data = Some(command.data.as_str()).filter(|data| data.len() <= MAX_DATA);
    let data: Value = data.and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default();
    let Some(id) = data.get("id").and_then(Value::as_str).filter(|id| jscommon::command::is_job_id(id)) else {
        let own = Answer::error(command, None, "cancel wants data {\"id\": \"<job>\"}");
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
        match queue::withdraw(conn, node, id, now)? {
            Withdrawn::Out(waiting) => {
                cancelled += 1;
                if let Some(waiting) = waiting {
                    answers.push(Answer {
                        state: State::Killed,
                        ..Answer::error(&waiting, Some(node), "cancelled before its node took it")
                    });
                }
            }
            Withdrawn::Handed(_) => sentence = format!("job {id} is already with node {node}: kill it instead"),
            Withdrawn::Gone => {
                let state = job.get(&node.to_string()).and_then(|text| serde_json::from_str::<Value>(text).ok());
                sentence = match state.as_ref().and_then(|state| state["state"].as_str()) {
                    None => format!("no such job {id} for node {node}"),
                    Some("QUEUED" | "RUNNING") => format!("job {id} is already with node {node}: kill it instead"),
                    Some(_) => format!("job {id} has ended on node {node}"),
                };
            }
        }
    }
    let own = if cancelled > 0 {
        let data = json!({"cancelled": true, "count": cancelled}).to_string();
        Answer { state: State::Ok, level: 20, ..Answer::error(command, None, data) }
    } else {
        Answer::error(command, None, sentence)
    };
    answers.push(own);
    Ok((answers, id.to_owned()))
}
