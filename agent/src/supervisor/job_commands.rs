//! The built-in commands that concern jobs: what they are asked, and the figures that they answer.
//!
//! Owns the reading of their `data` and the two `get_process…` commands. Ending, signalling and
//! unscheduling are done by the supervisor, which alone knows the jobs.

use super::Remote;
use crate::commands::Answer;
use crate::platform::Signal;
use jscommon::Command;
use serde_json::{Map, Value};

/// The job that `kill`, `unschedule` or `get_process_stats` is about: data `{"id": …}`.
pub(super) fn target(command: &Command) -> Result<String, String> {
    id_in(&object(command)?, &command.cmd)
}

/// The job and the signal of `signal`: data `{"id": …, "signal": …}`.
pub(super) fn signal(command: &Command) -> Result<(String, Signal), String> {
    let data = object(command)?;
    let id = id_in(&data, &command.cmd)?;
    match data.get("signal") {
        Some(value) => Ok((id, Signal::from_json(value)?)),
        None => Err("signal: data has no signal, as in {\"id\": \"…\", \"signal\": \"HUP\"}".into()),
    }
}

/// `get_process_stats`: one job's entry, whether it runs or waits.
pub(super) fn process_stats(remote: &Remote, command: &Command) -> Answer {
    let id = target(command)?;
    match remote.process(&id) {
        Some(entry) => serde_json::to_value(entry).map_err(|fault| fault.to_string()),
        None => Err(format!("no job '{id}' runs or waits here")),
    }
}

/// `get_processes_stats`: the entries of all jobs that have processes, or of those with the domain and
/// the name that data asks for.
pub(super) fn processes_stats(remote: &Remote, command: &Command) -> Answer {
    let data = object(command)?;
    let wanted = |name: &str| match data.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("{}: {name} must be a string, not {other}", command.cmd)),
    };
    let (domain, name) = (wanted("domain")?, wanted("name")?);
    let mut entries = remote.processes();
    entries.retain(|entry| {
        domain.as_ref().is_none_or(|domain| *domain == entry.domain)
            && name.as_ref().is_none_or(|name| *name == entry.name)
    });
    serde_json::to_value(entries).map_err(|fault| fault.to_string())
}

fn object(command: &Command) -> Result<Map<String, Value>, String> {
    if command.data.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(&command.data) {
        Ok(Value::Object(data)) => Ok(data),
        Ok(_) => Err(format!("{}: data must be a JSON object", command.cmd)),
        Err(fault) => Err(format!("{}: data is not JSON: {fault}", command.cmd)),
    }
}

fn id_in(data: &Map<String, Value>, cmd: &str) -> Result<String, String> {
    match data.get("id") {
        Some(Value::String(id)) => Ok(id.clone()),
        Some(other) => Err(format!("{cmd}: id must be a job's id, not {other}")),
        None => Err(format!("{cmd}: data has no id, as in {{\"id\": \"…\"}}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn command(data: Value) -> Command {
        Command::from_value(json!({"id": "c", "gid": 1, "nid": 1, "cmd": "signal", "data": data})).unwrap()
    }

    #[test]
    fn what_is_asked() {
        assert_eq!(target(&command(json!({"id": "a"}))), Ok("a".into()));
        assert_eq!(signal(&command(json!({"id": "a", "signal": "TERM"}))), Ok(("a".into(), Signal::TERM)));
        for (data, reason) in [
            (json!(""), "data has no id"),
            (json!("x"), "not JSON"),
            (json!("[]"), "JSON object"),
            (json!({"id": 1}), "id must be"),
            (json!({"id": "a"}), "data has no signal"),
            (json!({"id": "a", "signal": "X"}), "is no signal"),
        ] {
            let fault = signal(&command(data)).unwrap_err();
            assert!(fault.contains(reason), "{fault}");
        }
    }
}
