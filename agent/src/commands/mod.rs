//! The built-in commands: a table from name to function.
//!
//! Owns the table and what every command is given. The commands themselves have a file a family, and
//! hold no business but their own: what concerns jobs is done by the supervisor, which asks here what
//! a command's name means and runs it where its [`Kind`] says.

pub(crate) mod info;
pub(crate) mod messages;
mod put;
pub(crate) mod stdin;

use crate::config::Config;
use crate::script;
use crate::storage::message_log;
use crate::stream::Streams;
use crate::uplink::Controller;
use jscommon::Command;
use serde_json::Value;
use std::sync::Arc;

/// The answer of a command: a value (level 20, `OK`) or a sentence that says what is wrong (`ERROR`).
pub(crate) type Answer = Result<Value, String>;

/// The function of a command.
pub(crate) type Function = fn(&Context, &Command) -> Answer;

/// Where a command runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// At once, on the thread of the poller or the supervisor: it must not wait for anything.
    Inline(Function),
    /// On a thread for built-in commands: it may take its time.
    Threaded(Function),
    /// By the supervisor itself, for it concerns other jobs.
    Supervisor(JobControl),
}

/// The commands that concern jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobControl {
    /// Ends a job and forgets it.
    Kill,
    /// Ends every process.
    KillAll,
    /// Sends a signal to a job's process group.
    Signal,
    /// Lets the run under way be the last.
    Unschedule,
    /// Answers, then ends the agent with status 0.
    Restart,
    /// The recurring jobs.
    Schedules,
    /// One job's entry.
    ProcessStats,
    /// The entries of all jobs.
    ProcessesStats,
    /// Opens a watch on a job.
    Attach,
    /// Opens a watch on a file.
    Get,
    /// Opens a watch on records.
    Follow,
    /// Gives a job's stdin a piece.
    Input,
    /// Sets the size of a job's terminal.
    Resize,
}

/// The parts of the agent that built-in commands may use.
pub(crate) struct Context {
    /// The agent's configuration.
    pub(crate) config: Arc<Config>,
    /// Where records are found; only a whole agent has it.
    pub(crate) message_log: Option<message_log::LogReader>,
    /// The controllers that files are fetched from.
    pub(crate) controllers: Vec<Arc<Controller>>,
    /// The scripts that this node can run.
    pub(crate) scripts: Arc<script::Store>,
    /// Live output; only a whole agent has it.
    pub(crate) streams: Option<Arc<Streams>>,
}

impl Context {
    /// Makes the context for an agent with this configuration. It has no controllers to ask for scripts.
    pub(crate) fn new(config: Arc<Config>) -> Context {
        let scripts = Arc::new(script::Store::new(&config, Vec::new()));
        Context { config, message_log: None, controllers: Vec::new(), scripts, streams: None }
    }
}

/// The built-in command of this name. `execute`, scripts and extensions are processes and none of these.
pub(crate) fn lookup(name: &str) -> Option<Kind> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
}

/// Whether this built-in command may be done twice, and so is not stored: it only looks, or says where its bytes stand,
/// or sets what it set before.
pub(crate) fn is_read_only(command: &Command) -> bool {
    match command.cmd.as_str() {
        "ping" | "resize" => true,
        "input" => stdin::has_offset(command),
        name => name.starts_with("get_") && lookup(name).is_some(),
    }
}

/// Whether this built-in command is carried out again when the agent ended meanwhile.
pub(crate) fn goes_on(command: &Command) -> bool {
    put::is_large(command)
}

/// Whether the end of this built-in command is a record of level 30: it has done something. One that
/// only looks leaves none, for a client that follows the records would follow itself, and neither does
/// `del_msgs`, which is to leave nothing.
pub(crate) fn leaves_record(name: &str) -> bool {
    ["kill", "killall", "put", "restart", "signal", "unschedule"].contains(&name)
}

const TABLE: &[(&str, Kind)] = &[
    ("attach", Kind::Supervisor(JobControl::Attach)),
    ("del_msgs", Kind::Threaded(messages::delete)),
    ("follow", Kind::Supervisor(JobControl::Follow)),
    ("get", Kind::Supervisor(JobControl::Get)),
    ("get_cpu_info", Kind::Threaded(info::cpu)),
    ("get_disk_info", Kind::Threaded(info::disks)),
    ("get_mem_info", Kind::Threaded(info::memory)),
    ("get_msgs", Kind::Threaded(messages::get)),
    ("get_nic_info", Kind::Threaded(info::nics)),
    ("get_os_info", Kind::Threaded(info::system)),
    ("get_process_stats", Kind::Supervisor(JobControl::ProcessStats)),
    ("get_processes_stats", Kind::Supervisor(JobControl::ProcessesStats)),
    ("get_schedules", Kind::Supervisor(JobControl::Schedules)),
    ("input", Kind::Supervisor(JobControl::Input)),
    ("kill", Kind::Supervisor(JobControl::Kill)),
    ("killall", Kind::Supervisor(JobControl::KillAll)),
    ("ping", Kind::Inline(|_, _| Ok(Value::from("pong")))),
    ("put", Kind::Threaded(put::put)),
    ("resize", Kind::Supervisor(JobControl::Resize)),
    ("restart", Kind::Supervisor(JobControl::Restart)),
    ("signal", Kind::Supervisor(JobControl::Signal)),
    ("unschedule", Kind::Supervisor(JobControl::Unschedule)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_the_names_of_the_built_in_commands() {
        let names: Vec<_> = TABLE.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, crate::job::command_names::BUILTIN, "command_names.rs must list the names of the table");
    }

    #[test]
    fn names_are_known_or_not() {
        assert!(matches!(lookup("ping"), Some(Kind::Inline(_))));
        assert!(matches!(lookup("kill"), Some(Kind::Supervisor(JobControl::Kill))));
        let is_read_only = |cmd: &str, data: &str| {
            let command = serde_json::json!({"id": "a", "gid": 1, "nid": 1, "cmd": cmd, "data": data});
            is_read_only(&Command::from_value(command).unwrap())
        };
        assert!(is_read_only("ping", "") && is_read_only("get_msgs", "") && is_read_only("resize", ""));
        assert!(!is_read_only("get_x", "") && !is_read_only("put", ""));
        for (data, expected) in [
            (r#"{"id": "a", "data": "YQ==", "offset": 0}"#, true),
            (r#"{"offset": "x"}"#, true),
            (r#"{"offset": null}"#, false),
            (r#"{"id": "offset"}"#, false),
            ("", false),
        ] {
            assert_eq!(is_read_only("input", data), expected, "{data}");
        }
        assert!(leaves_record("kill") && !leaves_record("ping") && !leaves_record("get_msgs"));
        assert!(lookup("execute").is_none() && lookup("").is_none());
    }
}
