//! `jsagent status`: the jobs of this node, read from its job store without a controller.

use crate::job::{JobState, RunArgs};
use crate::platform::unix_ms;
use crate::storage::job_store::{self, Row};
use anyhow::Result;
use jscommon::Command;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// A table of the jobs that are not over, ready to print; `data_dir` is the agent's.
pub(crate) fn status(data_dir: &Path) -> Result<String> {
    let now = unix_ms();
    Ok(table(&job_store::read_only(data_dir)?, now))
}

fn table(rows: &[Row], now: i64) -> String {
    if rows.is_empty() {
        return "no jobs\n".to_owned();
    }
    let mut lines = vec![["ID", "STATE", "SINCE", "FROM", "COMMAND"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| line(row, now)));
    let widths: Vec<usize> =
        (0..4).map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for [id, state, since, from, command] in &lines {
        let _ = writeln!(
            text,
            "{id:0$}  {state:1$}  {since:>2$}  {from:3$}  {command}",
            widths[0], widths[1], widths[2], widths[3]
        );
    }
    text
}

fn line(row: &Row, now: i64) -> [String; 5] {
    let (state, since) = match row.state {
        JobState::Accepted => ("waiting", row.accepted),
        JobState::Started => ("running", row.started),
        JobState::Failed => ("failed", row.started),
        JobState::Scheduled => ("scheduled", row.started),
        JobState::Killing => ("stopping", row.started),
        JobState::FinalRun => ("last run", row.started),
        JobState::Done | JobState::Sent => ("over", row.accepted),
    };
    let from = if row.controller.is_empty() { "startup" } else { &row.controller };
    [row.id.clone(), state.to_owned(), ago(now - since), from.to_owned(), describe(&row.command)]
}

fn describe(command: &str) -> String {
    let Ok(command) = Command::parse(command.as_bytes()) else { return "?".to_owned() };
    let mut text = command.cmd.clone();
    if let Some(program) = command.args.get("cmd").and_then(|value| value.as_str()) {
        let _ = write!(text, " {program}");
    }
    if let Ok(args) = RunArgs::parse(&command.args) {
        if !args.domain.is_empty() || !args.name.is_empty() {
            let _ = write!(text, " ({}.{})", args.domain, args.name);
        }
        match args.period {
            Some(period) => _ = write!(text, ", every {}", ago(period.as_millis() as i64)),
            None if args.long => text.push_str(", long running"),
            None => {}
        }
    }
    text
}

/// A time in its largest two units: `3d 4h`, `5m 1s`.
fn ago(millis: i64) -> String {
    let seconds = Duration::from_millis(millis.max(0) as u64).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_job() {
        let row = |id: &str, state, controller: &str, command: &str| Row {
            id: id.into(),
            controller: controller.into(),
            command: command.into(),
            state,
            accepted: 1_000,
            started: 2_000,
            reported: false,
        };
        let command = r#"{"id":"a","gid":1,"nid":1,"cmd":"execute","args":{"cmd":"/bin/x","name":"n","max_time":-1}}"#;
        let text = table(&[row("a", JobState::Started, "main", command), row("b", JobState::Accepted, "", "")], 65_000);
        assert_eq!(
            text,
            "ID  STATE     SINCE  FROM     COMMAND\n\
             a   running  1m 3s  main     execute /bin/x (.n), long running\n\
             b   waiting  1m 4s  startup  ?\n"
                .replace("STATE     SINCE", "STATE    SINCE")
        );
        assert_eq!(table(&[], 0), "no jobs\n");
    }
}
