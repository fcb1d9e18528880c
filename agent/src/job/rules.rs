//! The properties of a job that the scheduler uses.

use std::sync::Arc;

/// The properties of a job that the scheduler uses.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Rules {
    /// A process, which takes a slot of `max_jobs`; else a task of the agent's own.
    pub(crate) process: bool,
    /// A task that is carried out again when the agent ended meanwhile.
    pub(crate) goes_on: bool,
    /// `max_time` -1.
    pub(crate) long: bool,
    /// `max_time` above 0, in milliseconds.
    pub(crate) limit: Option<u64>,
    /// `recurring_period`, in milliseconds.
    pub(crate) period: Option<u64>,
    /// `max_restart`.
    pub(crate) max_restart: u32,
    /// `queue`.
    pub(crate) queue: Option<Arc<str>>,
    /// `stop_timeout`, in milliseconds.
    pub(crate) stop_timeout: u64,
}

impl Rules {
    /// Whether the job starts again after whatever happens to the agent.
    pub(crate) fn remembered(&self) -> bool {
        self.long || self.period.is_some()
    }
}
