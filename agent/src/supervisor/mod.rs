//! The supervisor: every job of this node, from its acceptance to its result.
//!
//! **Owns** the supervisor thread ([`event_loop`]) and the way to it. The rules are [`scheduler`]'s, pure; what
//! a process is started from is [`process_tree::spawn`]'s, which processes belong together [`process_tree::members`]'s.
//!
//! **Does not** read output (`output` does, and tells the end of the pipes), speak to controllers (it
//! leaves results in the job store and gives [`Notice`]), or keep records.
//!
//! Pollers [`Remote::submit`] commands, the monitor asks for [`Remote::processes`]. Both go through one
//! unbounded inbox: control must never wait behind output. The scheduler's orders are written to the job store
//! first, in one commit for everything that lay in the inbox. Only then they are carried out.

use crate::commands;
use crate::config::Config;
use crate::output::Outlets;
use crate::process_tree::{self, JobTag, NotStarted, Proc, Spawned, members};
use crate::storage::job_store::JobStore;
use anyhow::Result;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use jscommon::Command;
use jscommon::lock::lock;
use jscommon::worker::Worker;
use read_only::ReadOnly;
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

mod event_loop;
mod job_commands;
mod job_table;
mod launcher;
mod read_only;
mod results;
pub(crate) mod scheduler;
mod task_pool;
#[cfg(test)]
mod tests;
mod transitions;
mod types;

/// The name of the threads that answer commands.
pub(crate) const COMMAND_THREAD: &str = "builtin";

/// The parts of the agent that the supervisor uses.
pub(crate) struct Parts {
    /// The agent's configuration.
    pub(crate) config: Arc<Config>,
    /// The memory of jobs.
    pub(crate) job_store: Arc<JobStore>,
    /// Where output and records go.
    pub(crate) outlets: Outlets,
    /// The context of the built-in commands.
    pub(crate) builtins: Arc<commands::Context>,
    /// Told of what others must act upon; called on the threads of the supervisor and the pollers, so it must not wait.
    pub(crate) notify: Arc<dyn Fn(Notice) + Send + Sync>,
}

/// A notice that others must act upon.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Notice {
    /// A result for this controller is in the job store, on the disk or in memory.
    Result { controller: String },
    /// An event for one controller, or for all: `critical`, `duplicate`, `job_failed`.
    Event { controller: Option<String>, name: &'static str, data: Value },
    /// Nothing has happened for a while: what only work needs can go.
    Idle,
    /// The agent is to end with status 0, for its service manager to start it again.
    Restart,
}

/// One job's process tree.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ProcessEntry {
    /// The job's id.
    pub(crate) id: String,
    /// The command's name.
    pub(crate) cmd: String,
    /// The job's domain.
    pub(crate) domain: String,
    /// The job's name.
    pub(crate) name: String,
    /// The first process of the tree; 0 when none runs.
    pub(crate) pid: u32,
    /// `RUNNING`, `STOPPING`, and for a job without a process `QUEUED`, `SCHEDULED` or `FAILED`.
    pub(crate) state: &'static str,
    #[serde(flatten)]
    pub(crate) figures: members::Figures,
    /// When the run began, in milliseconds since 1970; 0 when none runs.
    pub(crate) starttime: i64,
    /// Restarts of this job since it was accepted, or since the agent started.
    pub(crate) restarts: u64,
    /// Seconds between two samples of this job, where it asked for its own.
    #[serde(skip)]
    pub(crate) stats_interval: Option<u64>,
}

/// The running supervisor; dropping it ends every job: its stop signal, its stop timeout, KILL. Their results
/// are in the job store then.
pub(crate) struct Handle {
    remote: Remote,
    _worker: Worker,
}

impl Handle {
    /// Ends what is left of jobs that ran when the agent died, takes up the remembered jobs and the
    /// configured startup jobs, and begins to supervise.
    pub(crate) fn start(parts: Parts) -> Result<Handle> {
        let (sender, inbox) = unbounded();
        let remote = Remote { sender, baselines: Arc::default(), read_only: Arc::new(ReadOnly::new(&parts)) };
        let worker = event_loop::start(parts, remote.clone(), inbox)?;
        Ok(Handle { remote, _worker: worker })
    }

    /// The way to it from other threads.
    pub(crate) fn remote(&self) -> Remote {
        self.remote.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The worker is joined by its own field after this.
        let _ = self.remote.sender.send(Message::Stop);
    }
}

/// The way to the supervisor from other threads.
#[derive(Clone)]
pub(crate) struct Remote {
    sender: Sender<Message>,
    /// By run: when its processor time was last looked at, and what it was.
    baselines: Arc<Mutex<HashMap<u64, (Instant, u64)>>>,
    read_only: Arc<ReadOnly>,
}

/// A message to the supervisor's thread.
enum Message {
    /// Commands of a controller; the answer comes once they are stored.
    Submit { controller: Arc<str>, commands: Vec<Command>, stored: Sender<()> },
    /// Stores the read-only commands of a controller; the answer comes once they are.
    StoreReadOnly { controller: Arc<str>, stored: Sender<()> },
    /// The first process of a run has ended.
    Exited { run: u64, code: i32 },
    /// A run's pipes have ended.
    Drained { run: u64 },
    /// Both at once, as it is with most.
    Ended { run: u64, code: i32 },
    /// The start of a run's process is over.
    Launched { run: u64, mark: JobTag, group: Option<GroupUse>, child: Result<Spawned, NotStarted> },
    /// A script is ready to start.
    Prepared { run: u64, spec: Result<process_tree::Spec, NotStarted> },
    /// A task has its answer.
    Answered { run: u64, answer: commands::Answer },
    /// Nothing lives any more of a run that an earlier agent had started; its cgroup is this.
    Cleared { id: String, group: String },
    /// Asks for the jobs, or for the one with this id.
    View { id: Option<String>, reply: Sender<Vec<View>> },
    /// End everything, then yourself.
    Stop,
}

impl Message {
    /// Whether it may leave memory behind that is to be given back: the question of the watchdog does not. The
    /// monitor's does: its sample reads pages of code in, and kept ones are 2.3 MiB more in an idle agent.
    fn is_work(&self) -> bool {
        !matches!(self, Message::Submit { commands, .. } if commands.is_empty())
    }
}

/// The state of the group that was made for a process.
enum GroupUse {
    /// It is there, and the process may be in it.
    Made,
    /// The kernel starts no processes inside groups.
    Refused,
}

/// A job as the supervisor sees it; the figures are looked up elsewhere.
struct View {
    entry: ProcessEntry,
    root: Option<members::Root>,
    since: Instant,
}

impl Remote {
    /// Hands over commands of a controller, which are not acknowledged before both channels have told: the answer on the
    /// first comes once all that are stored are so durably, and never when that failed or the supervisor has stopped; the
    /// second is closed once the controller has taken the results of those that are not stored.
    pub(crate) fn submit(&self, controller: &str, commands: Vec<Command>) -> (Receiver<()>, Receiver<()>) {
        let ((stored, answer), (open, taken)) = (bounded(1), bounded(0));
        self.read_only.expect(controller, &commands, &open);
        let commands = self.read_only.answer(controller, commands);
        match commands {
            Some(commands) => {
                drop(self.sender.send(Message::Submit { controller: controller.into(), commands, stored }))
            }
            None => drop(stored.send(())),
        }
        (answer, taken)
    }

    /// Has the read-only commands of a controller stored as any other, for it did not take their results in time. The
    /// answer comes as that of `submit`.
    pub(crate) fn store_read_only(&self, controller: &str) -> Receiver<()> {
        let (stored, answer) = bounded(1);
        let _ = self.sender.send(Message::StoreReadOnly { controller: controller.into(), stored });
        answer
    }

    /// The jobs that have processes, with the figures of their trees: one pass over all processes.
    pub(crate) fn processes(&self) -> Vec<ProcessEntry> {
        self.entries(None)
    }

    /// The job of this id, whether it runs or waits.
    pub(crate) fn process(&self, id: &str) -> Option<ProcessEntry> {
        self.entries(Some(id.to_owned())).pop()
    }

    fn entries(&self, id: Option<String>) -> Vec<ProcessEntry> {
        let (reply, answer) = bounded(1);
        let all = id.is_none();
        if self.sender.send(Message::View { id, reply }).is_err() {
            return Vec::new();
        }
        let views = answer.recv().unwrap_or_default();
        let roots: Vec<members::Root> = views.iter().filter_map(|view| view.root.clone()).collect();
        let mut trees = match roots.is_empty() {
            true => HashMap::new(),
            false => members::living(&process_tree::processes(), &roots),
        };
        let mut baselines = lock(&self.baselines);
        if all {
            baselines.retain(|run, _| roots.iter().any(|root| root.run == *run));
        }
        views
            .into_iter()
            .map(|view| match &view.root {
                Some(root) => {
                    let tree = trees.remove(&root.run).unwrap_or_default();
                    with_figures(view.entry, &tree, baselines.entry(root.run).or_insert((view.since, 0)))
                }
                None => view.entry,
            })
            .collect()
    }
}

/// Fills in the figures; the processor's share is counted from the baseline, which moves on once it is
/// a second old (a shorter time would measure noise).
fn with_figures(entry: ProcessEntry, tree: &[Proc], baseline: &mut (Instant, u64)) -> ProcessEntry {
    let (used, figures) = members::figures(tree);
    let (since, before) = *baseline;
    let passed = since.elapsed();
    let cpu = match passed.is_zero() {
        true => 0.0,
        false => used.saturating_sub(before) as f64 / (passed.as_secs_f64() * 1000.0) * 100.0,
    };
    if passed >= Duration::from_secs(1) {
        *baseline = (Instant::now(), used);
    }
    ProcessEntry { figures: members::Figures { cpu: (cpu * 10.0).round() / 10.0, ..figures }, ..entry }
}
