//! The built-in commands that concern jobs: what they are asked, and the figures that they answer.
//!
//! Owns the reading of their `data` and the two `get_process…` commands. Ending, signalling and
//! unscheduling are done by the supervisor, which alone knows the jobs.

use super::Remote;
use crate::commands::{Answer, Context, stdin};
use crate::job::fields::{Fields, object};
use crate::platform::{Signal, TerminalSize};
use crate::stdin::Piece;
use crate::stream::From;
use jscommon::Command;
use std::path::Path;

/// The job that `kill`, `unschedule` or `get_process_stats` is about: data `{"id": …}`.
pub(super) fn target(command: &Command) -> Result<String, String> {
    read(command, id)
}

/// The job and the signal of `signal`: data `{"id": …, "signal": …}`.
pub(super) fn signal(command: &Command) -> Result<(String, Signal), String> {
    read(command, |data| {
        let id = id(data);
        if data.get("signal").is_none() {
            data.fault("data has no signal, as in {\"id\": \"…\", \"signal\": \"HUP\"}");
        }
        // Without a signal there is a fault.
        (id, data.read("signal", Signal::from_json).unwrap_or(Signal::TERM))
    })
}

/// The job of `attach` and where its watch begins: data `{"id", "tail"}` or `{"id", "from": [stdout, stderr]}`.
pub(super) fn attach(command: &Command) -> Result<(String, From), String> {
    read(command, |data| {
        let (id, tail) = (id(data), data.whole("tail", 0..=i64::MAX));
        let from = data.read("from", |value| {
            let position = value.as_array().and_then(|list| match list.as_slice() {
                [out, err] => Some([out.as_u64()?, err.as_u64()?]),
                _ => None,
            });
            position.ok_or_else(|| "from must be the positions in stdout and stderr, as in [1000, 0]".to_owned())
        });
        if tail.is_some() && from.is_some() {
            data.fault("data has tail and from: give one of them");
        }
        (id, from.map_or(From::Tail(tail.unwrap_or(0) as u64), From::Position))
    })
}

/// The job of `input` and the piece for its stdin.
pub(super) fn input(command: &Command) -> Result<(String, Piece), String> {
    read(command, |data| (id(data), stdin::piece(data)))
}

/// The job of `resize` and the size of its terminal.
pub(super) fn resize(command: &Command) -> Result<(String, TerminalSize), String> {
    read(command, |data| (id(data), stdin::size(data)))
}

/// `get`: opens a watch on a regular file: data `{"path", "offset", "length"}`.
pub(super) fn get(context: &Context, controller: &str, command: &Command) -> Answer {
    let (path, offset, length) = read(command, |data| {
        let path = data.text("path").unwrap_or_default().to_owned();
        if !Path::new(&path).is_absolute() {
            data.fault("path must be an absolute path, as in {\"path\": \"/var/log/syslog\"}");
        }
        let length = data.whole("length", 0..=i64::MAX).map(|length| length as u64);
        (path, data.whole("offset", 0..=i64::MAX).unwrap_or(0) as u64, length)
    })?;
    let streams = context.streams.as_ref().ok_or("this agent sends no live output")?;
    streams.send_file(controller, command, Path::new(&path), offset, length)
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
    let wanted = |data: &mut Fields, name| data.text(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let (domain, name) = read(command, |data| (wanted(data, "domain"), wanted(data, "name")))?;
    let mut entries = remote.processes();
    entries.retain(|entry| {
        domain.as_ref().is_none_or(|domain| *domain == entry.domain)
            && name.as_ref().is_none_or(|name| *name == entry.name)
    });
    serde_json::to_value(entries).map_err(|fault| fault.to_string())
}

/// Reads the data of a command; a fault begins with the command's name.
fn read<T>(command: &Command, read: impl FnOnce(&mut Fields) -> T) -> Result<T, String> {
    let read = object(&command.data).and_then(|data| {
        let mut data = Fields::new(&data);
        let value = read(&mut data);
        data.finish(value)
    });
    read.map_err(|why| format!("{}: {why}", command.cmd))
}

fn id(data: &mut Fields) -> String {
    if data.get("id").is_none() {
        data.fault("data has no id, as in {\"id\": \"…\"}");
    }
    data.text("id").unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn command(data: Value) -> Command {
        Command::from_value(json!({"id": "c", "gid": 1, "nid": 1, "cmd": "signal", "data": data})).unwrap()
    }

    #[test]
    fn data_without_id_or_signal_is_refused() {
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
