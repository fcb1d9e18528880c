//! What both systems' `process` rooms share: how a process is named, listed and signalled.
//!
//! `unix::process` and `windows::process` offer the same names with the same meaning: [`super::Children`]
//! starts and waits, [`super::processes`] lists, [`super::signal_process`] signals. They decide nothing;
//! the supervisor calls them, and nobody else starts a process.

use serde_json::Value;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::{fmt, io};

/// The umask of a child that asks for none.
pub const UMASK: u32 = 0o022;

/// A step of starting a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Making its pipes.
    Pipes,
    /// Making the process.
    Process,
    /// Making a session and connecting its streams.
    Session,
    /// Setting the resource limit of this index.
    Limit(usize),
    /// Setting its niceness.
    Nice,
    /// Setting its `oom_score_adj`.
    OomScore,
    /// Becoming its user.
    User,
    /// Entering its working directory.
    WorkingDir,
    /// Executing its program.
    Program,
}

/// The step at which a process could not be started, and why.
#[derive(Debug)]
pub struct StartError {
    /// The step.
    pub step: Step,
    /// The error of the system.
    pub error: io::Error,
    /// More details about a program that was not executed; `None` when none are known.
    pub detail: Option<String>,
}

impl StartError {
    /// Returns a function that adds this step to an error of the system.
    pub fn at<E: Into<io::Error>>(step: Step) -> impl FnOnce(E) -> StartError {
        move |error| StartError { step, error: error.into(), detail: None }
    }
}

/// A child that was just started, and the agent's ends of its pipes.
pub struct Spawned {
    /// Its process id.
    pub pid: u32,
    /// Its stdin, where one was asked for.
    pub stdin: Option<ChildStdin>,
    /// Its stdout.
    pub stdout: Option<ChildStdout>,
    /// Its stderr.
    pub stderr: Option<ChildStderr>,
    /// It was started inside the group that it was to be in.
    pub placed: bool,
}

/// One process of this machine, as one pass over all of them found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proc {
    /// Its id.
    pub pid: u32,
    /// The id of its parent.
    pub parent: u32,
    /// The id of its process group; 0 where there are none.
    pub group: u32,
    /// When it started, in a unit of the system's: together with the id it names one process for ever.
    pub started: u64,
    /// Processor time that it has used, in milliseconds.
    pub cpu: u64,
    /// Resident memory, in bytes.
    pub rss: u64,
    /// Virtual memory, in bytes.
    pub vms: u64,
    /// It has ended, and only its parent has not asked yet.
    pub dead: bool,
}

/// What the environment of a process says about the job that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobTag {
    /// `AGENT_HOME`: the data folder of the agent that started the job.
    pub home: String,
    /// `AGENT_JOB_ID`.
    pub job: String,
    /// `AGENT_JOB_START`: when the run began, in milliseconds since 1970.
    pub start: i64,
}

/// A signal by its number. On Windows there are only those that end a process, and they all do it alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub(crate) i32);

const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("WINCH", 28),
];

/// Those whose meaning is an end, unless a program says otherwise.
const ENDS: &[i32] = &[1, 2, 3, 6, 9, 15];

impl Signal {
    /// Please end.
    pub const TERM: Signal = Signal(15);
    /// End.
    pub const KILL: Signal = Signal(9);
    /// Continue after a stop.
    #[cfg(unix)]
    pub(crate) const CONT: Signal = Signal(18);

    /// Reads a name (`TERM`, `SIGTERM`, in any case) or a number.
    pub fn from_json(value: &Value) -> Result<Signal, String> {
        let named = |name: &str| {
            let name = name.to_ascii_uppercase();
            let name = name.strip_prefix("SIG").unwrap_or(&name);
            SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| Signal(*number))
        };
        let numbered =
            |number: i64| SIGNALS.iter().find(|(_, known)| i64::from(*known) == number).map(|(_, n)| Signal(*n));
        let found = match value {
            Value::String(text) => named(text).or_else(|| text.parse().ok().and_then(numbered)),
            Value::Number(number) => number.as_i64().and_then(numbered),
            _ => None,
        };
        let found = found
            .ok_or_else(|| format!("{value} is no signal; HUP, INT, QUIT, TERM, KILL, USR1, USR2, CONT, STOP… are"))?;
        // Nothing but an end can be told to a process there.
        if cfg!(windows) && !ENDS.contains(&found.0) {
            return Err(format!(
                "{found} cannot be sent on Windows; HUP, INT, QUIT, ABRT, TERM and KILL end a process"
            ));
        }
        Ok(found)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn signals_by_name_and_number() {
        for value in [json!("TERM"), json!("SIGTERM"), json!("sigterm"), json!(15), json!("15")] {
            assert_eq!(Signal::from_json(&value), Ok(Signal::TERM), "{value}");
        }
        assert_eq!(Signal(10).to_string(), "USR1");
        for value in [json!("NOPE"), json!(0), json!(99), json!(null), json!([]), json!("")] {
            assert!(Signal::from_json(&value).is_err(), "{value}");
        }
    }
}
