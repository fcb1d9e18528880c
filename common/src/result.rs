//! The result of a job.

use crate::Command;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// It did what was asked.
    Ok,
    /// It failed, could not be run, or was refused; `data` says why.
    Error,
    /// It was ended because its time was up.
    Timeout,
    /// Somebody ended it.
    Killed,
}

/// A result as it travels to the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// The id of the command.
    pub id: String,
    /// The node that ran it; where the controller answers itself, as in the command (0: none named).
    #[serde(default)]
    pub gid: u32,
    /// See `gid`.
    #[serde(default)]
    pub nid: u32,
    /// The command's name.
    #[serde(default)]
    pub cmd: String,
    /// The command's arguments.
    #[serde(default)]
    pub args: Map<String, Value>,
    /// The last message of levels 20-23, a built-in command's answer, or a sentence that says what went wrong.
    #[serde(default)]
    pub data: String,
    /// The level of `data`, 0 when it is no message.
    #[serde(default)]
    pub level: u8,
    /// How it ended.
    pub state: State,
    /// The exit status, or 128 + n for an end by signal n.
    #[serde(default)]
    pub code: i32,
    /// How long it ran, in milliseconds.
    #[serde(default)]
    pub time: u64,
    /// When it started, in milliseconds since 1970.
    #[serde(default)]
    pub starttime: i64,
    /// The last 1000 lines, at most 64 KiB each, of unmarked stdout and stderr.
    #[serde(default)]
    pub streams: [String; 2],
    /// Bytes that the process wrote to stdout and to stderr; zeros where none ran.
    #[serde(default)]
    pub bytes: [u64; 2],
    /// Whether `streams` or `data` is not all of it.
    #[serde(default)]
    pub truncated: bool,
    /// The last message of level 9, or the alert that its restarts are used up.
    #[serde(default)]
    pub critical: String,
    /// The command's tags.
    #[serde(default)]
    pub tags: String,
    /// A recurring job's success that brought no message: it updates the job's hash, and is delivered to nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
    /// The command's `ticket`, by which the controller knows that the job was for this node; a client never sees it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ticket: String,
}

impl JobResult {
    /// A result for `command` that ran nothing: `state` and the sentence `data` that says why.
    pub fn unrun(command: &Command, state: State, data: impl Into<String>) -> JobResult {
        JobResult {
            id: command.id.clone(),
            gid: command.gid,
            nid: command.nid,
            cmd: command.cmd.clone(),
            args: command.args.clone(),
            data: data.into(),
            level: 0,
            state,
            code: 0,
            time: 0,
            starttime: 0,
            streams: [String::new(), String::new()],
            bytes: [0, 0],
            truncated: false,
            critical: String::new(),
            tags: command.tags.clone(),
            quiet: false,
            ticket: command.ticket().unwrap_or_default().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn unrun() -> JobResult {
        let command = Command::from_value(json!({"id": "a", "gid": 1, "nid": 2, "cmd": "execute"}));
        JobResult::unrun(&command.unwrap_or_else(|bad| panic!("{}", bad.reason)), State::Error, "no")
    }

    #[test]
    fn result_without_a_run_has_no_bytes_and_is_whole() {
        let value = serde_json::to_value(unrun()).unwrap();
        assert_eq!((&value["bytes"], &value["truncated"]), (&json!([0, 0]), &json!(false)));
    }

    #[test]
    fn result_carries_the_ticket_of_its_command() {
        let command = Command::from_value(json!({"id": "a", "gid": 1, "nid": 2, "cmd": "ping", "ticket": "r60.x"}));
        let result = JobResult::unrun(&command.unwrap(), State::Error, "no");
        let value = serde_json::to_value(&result).unwrap();
        assert_eq!(value["ticket"], "r60.x");
        assert_eq!(serde_json::from_value::<JobResult>(value).unwrap(), result);
        assert!(serde_json::to_value(unrun()).unwrap().get("ticket").is_none());
    }

    #[test]
    fn byte_counts_travel_as_numbers() {
        let result = JobResult { bytes: [1 << 40, 7], truncated: true, ..unrun() };
        let value = serde_json::to_value(&result).unwrap();
        assert_eq!((&value["bytes"], &value["truncated"]), (&json!([1u64 << 40, 7]), &json!(true)));
        assert_eq!(serde_json::from_value::<JobResult>(value).unwrap(), result);
    }

    #[test]
    fn result_of_an_older_agent_is_read() {
        let old = json!({"id": "a", "gid": 1, "nid": 2, "state": "OK", "streams": ["x", ""]});
        let result: JobResult = serde_json::from_value(old).unwrap();
        assert_eq!((result.bytes, result.truncated), ([0, 0], false));
    }
}
