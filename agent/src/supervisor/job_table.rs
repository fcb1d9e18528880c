//! Jobs and runs as the supervisor keeps them, beside the scheduler's own state.

use crate::commands::{self, Answer, JobControl};
use crate::job::{JobLabel, RunArgs};
use crate::output::Capture;
use crate::process_tree::{self, JobTag};
use crate::stdin::Stdin;
use crate::stream::{Position, Spool};
use jscommon::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything about a job that the scheduler does not need.
pub(super) struct Job {
    /// Empty for a startup job.
    pub(super) controller: Arc<str>,
    /// Bytes of its command.
    pub(super) size: usize,
    pub(super) work: Work,
    /// The job store has it, or will with the next commit; a read-only command is in memory alone.
    pub(super) stored: bool,
    /// Kept while the job has a run; one that waits is read from the job store again, so that thousands
    /// of them cost the disk and not the memory.
    pub(super) detail: Option<Arc<Detail>>,
    /// A watch is to open with its first run: it asked for one, and never ran.
    pub(super) opens_watch: bool,
    /// Its output, where it is watched or was.
    pub(super) spool: Option<Arc<Spool>>,
    /// Its stdin, where that stays open.
    pub(super) stdin: Option<Arc<Stdin>>,
    /// The bytes that its runs before this one wrote.
    pub(super) written: Position,
}

/// The larger part of a job.
pub(super) struct Detail {
    pub(super) command: Arc<Command>,
    pub(super) args: RunArgs,
    pub(super) source: Arc<JobLabel>,
}

#[derive(Clone, Copy)]
pub(super) enum Work {
    Execute,
    /// Made ready on a thread, before each run: a script may have to be fetched.
    Prepared,
    Inline(commands::Function),
    Threaded(commands::Function),
    Control(JobControl),
}

impl Work {
    pub(super) fn is_process(self) -> bool {
        matches!(self, Work::Execute | Work::Prepared)
    }
}

/// A run that was started.
pub(super) struct Run {
    pub(super) id: Arc<str>,
    /// When, in milliseconds since 1970, as the job store has it.
    pub(super) at: i64,
    /// The job store has its start, on the disk.
    pub(super) stored: bool,
    pub(super) since: Instant,
    /// When its first process ended: how long its output is waited for is no part of its time.
    pub(super) ended: Option<Instant>,
    pub(super) pid: u32,
    pub(super) reaped: bool,
    /// Its status, where that came before the news of its start.
    pub(super) early: Option<i32>,
    pub(super) capture: Option<Arc<Capture>>,
    /// A way to its pipes, for the keeper.
    pub(super) ends: Option<process_tree::Ends>,
    /// How long its readers had waited for the message log when that was last looked at.
    pub(super) stalled: Duration,
    pub(super) mark: Option<JobTag>,
    /// Its cgroup, where it has one.
    pub(super) group: Option<String>,
    pub(super) known: Vec<(u32, u64)>,
    pub(super) answer: Option<Answer>,
}

impl Run {
    /// One of which nothing but its beginning is known.
    pub(super) fn new(id: Arc<str>, at: i64, stored: bool) -> Run {
        Run {
            id,
            at,
            stored,
            since: Instant::now(),
            ended: None,
            pid: 0,
            reaped: true,
            early: None,
            capture: None,
            ends: None,
            stalled: Duration::ZERO,
            mark: None,
            group: None,
            known: Vec::new(),
            answer: None,
        }
    }
}

/// Returns the name of a run's cgroup, which follows from its row in the job store.
pub(super) fn group_name(id: &str, started: i64) -> String {
    format!("{started}-{id}")
}
