//! The supervisor: every job of this node, from its acceptance to its result.

use crate::builtin;
use crate::config::Config;
use crate::ledger::Ledger;
use crate::output::Outlets;
use anyhow::Result;
use crossbeam_channel::Receiver;
use jscommon::Command;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

pub mod spawn;

/// What the supervisor works with.
pub struct Parts {
    /// The agent's configuration.
    pub config: Arc<Config>,
    /// The memory of jobs.
    pub ledger: Arc<Ledger>,
    /// Where records and figures of jobs go.
    pub outlets: Outlets,
    /// What the built-in commands may use.
    pub builtins: Arc<builtin::Context>,
    /// Told of what others must act upon; called on the supervisor's thread, so it must not wait.
    pub notify: Arc<dyn Fn(Notice) + Send + Sync>,
}

/// What others must act upon.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A result for this controller is in the ledger.
    Result {
        /// The controller's name.
        controller: String,
    },
    /// An event to send.
    Event {
        /// The controller's name; nothing is all of them.
        controller: Option<String>,
        /// The event's name: `critical`, `duplicate`, `job_failed`.
        name: &'static str,
        /// What it says.
        data: Value,
    },
    /// The agent is to end with status 0, for its service manager to start it again.
    Restart,
}

/// One job's process tree.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessEntry {
    /// The job's id.
    pub id: String,
    /// The command's name.
    pub cmd: String,
    /// The job's domain.
    pub domain: String,
    /// The job's name.
    pub name: String,
    /// The first process of the tree; 0 when none runs.
    pub pid: u32,
    /// `RUNNING`, `STOPPING`, and for a single job also `QUEUED` or `SCHEDULED`.
    pub state: &'static str,
    /// Percent of one core since the sample before, of the whole tree.
    pub cpu: f64,
    /// Resident memory of the tree, in bytes.
    pub rss: u64,
    /// Virtual memory of the tree, in bytes.
    pub vms: u64,
    /// Bytes that the tree's living processes have read from storage.
    pub read: u64,
    /// Bytes that they have written to storage.
    pub written: u64,
    /// Processes in the tree.
    pub processes: u64,
    /// When the run began, in milliseconds since 1970.
    pub starttime: i64,
    /// Restarts of this job since it was accepted, or since the agent started.
    pub restarts: u64,
}

/// The running supervisor; dropping it stops it as [`Handle::stop`] does.
pub struct Handle {
    remote: Remote,
}

impl Handle {
    /// Ends what is left of jobs that ran when the agent died, takes up the remembered jobs and the
    /// configured startup jobs, and begins to supervise.
    pub fn start(_parts: Parts) -> Result<Handle> {
        Ok(Handle { remote: Remote {} })
    }

    /// The way to it from other threads.
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// Ends every job: its stop signal, its stop timeout, KILL; their results are in the ledger when
    /// this returns.
    pub fn stop(self) {}
}

/// The way to the supervisor from other threads.
#[derive(Clone)]
pub struct Remote {}

impl Remote {
    /// Hands over commands of a controller. The answer comes once all of them are stored durably, and
    /// never when that failed or the supervisor has stopped: then nothing may be acknowledged.
    pub fn submit(&self, _controller: &str, _commands: Vec<Command>) -> Receiver<()> {
        crossbeam_channel::bounded(1).1
    }

    /// The jobs that have processes, with the figures of their trees: one pass over all processes.
    pub fn processes(&self) -> Vec<ProcessEntry> {
        Vec::new()
    }
}
