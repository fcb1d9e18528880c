//! The processes of one run: starts them, finds them again, signals and reaps them.
//!
//! One interface, and the folder of this system behind it: [`Children`] starts and waits, [`processes`] lists,
//! [`signal_process`] signals. Nothing here decides anything, and nobody else starts a process.

use crate::platform::{Identity, Limit, TerminalSize, UMASK};
use std::io::{self, PipeWriter};
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::time::Instant;

mod extension;
pub(crate) mod leftovers;
pub(crate) mod members;
mod not_started;
pub(crate) mod spawn;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

pub(crate) use extension::extension;
pub(crate) use not_started::NotStarted;
pub(crate) use spawn::{PathVars, Spec};
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

/// A step of starting a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(windows, allow(dead_code, reason = "Windows has not all of these steps"))]
pub(crate) enum Step {
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
pub(crate) struct StartError {
    /// The step.
    pub(crate) step: Step,
    /// The error of the system.
    pub(crate) error: io::Error,
    /// More details about a program that was not executed; `None` when none are known.
    pub(crate) detail: Option<String>,
}

impl StartError {
    /// Returns a function that adds this step to an error of the system.
    pub(crate) fn at<E: Into<io::Error>>(step: Step) -> impl FnOnce(E) -> StartError {
        move |error| StartError { step, error: error.into(), detail: None }
    }
}

/// A child that was just started, and the agent's ends of its pipes.
pub(crate) struct Spawned {
    /// Its process id.
    pub(crate) pid: u32,
    /// When it was made; it may have run for a while before its maker goes on.
    pub(crate) since: Instant,
    /// Its stdin, where one was asked for.
    pub(crate) stdin: Option<ChildStdin>,
    /// Its stdout.
    pub(crate) stdout: Option<ChildStdout>,
    /// Its stderr.
    pub(crate) stderr: Option<ChildStderr>,
    /// Of a child with a terminal, whose stdin and stdout are both its master: once this is closed, stderr ends.
    pub(crate) hangup: Option<PipeWriter>,
    /// The first bytes of a stdin that stays open.
    pub(crate) first: Vec<u8>,
    /// It was started inside the group that it was to be in.
    pub(crate) placed: bool,
}

/// One process of this machine, as one pass over all of them found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proc {
    /// Its id.
    pub(crate) pid: u32,
    /// The id of its parent.
    pub(crate) parent: u32,
    /// The id of its process group; 0 where there are none.
    pub(crate) group: u32,
    /// When it started, in a unit of the system's: together with the id it names one process for ever.
    pub(crate) started: u64,
    /// Processor time that it has used, in milliseconds.
    pub(crate) cpu: u64,
    /// Resident memory, in bytes.
    pub(crate) rss: u64,
    /// Virtual memory, in bytes.
    pub(crate) vms: u64,
    /// It has ended, and only its parent has not asked yet.
    pub(crate) dead: bool,
}

/// The job that a process belongs to, as its environment says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct JobTag {
    /// `AGENT_HOME`: the data folder of the agent that started the job.
    pub(crate) home: String,
    /// `AGENT_JOB_ID`.
    pub(crate) job: String,
    /// `AGENT_JOB_START`: when the run began, in milliseconds since 1970.
    pub(crate) start: i64,
}

/// The settings that a child gets before it becomes its program; Windows applies only the niceness.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// The user that it runs as; `None` is the agent's own user.
    pub(crate) identity: Option<Identity>,
    /// Its resource limits.
    pub(crate) limits: Vec<Limit>,
    /// Its niceness.
    pub(crate) nice: Option<i32>,
    /// Its umask.
    pub(crate) umask: u32,
    /// Its `oom_score_adj`; nothing is 0, where the agent may set that.
    pub(crate) oom_score_adj: Option<i32>,
    /// The size of the terminal that it runs on; nothing is pipes.
    pub(crate) terminal: Option<TerminalSize>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { identity: None, limits: Vec::new(), nice: None, umask: UMASK, oom_score_adj: None, terminal: None }
    }
}
