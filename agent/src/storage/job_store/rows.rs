//! Rows of the job store and changes of them.

use crate::job::JobState;

/// One change of the row of the job `id`. Several go into one commit. Times are in milliseconds since 1970; commands and
/// results are JSON.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum JobUpdate {
    /// A new job; a startup job has no controller.
    Accept { id: String, controller: String, command: String, now: i64 },
    /// A run begins.
    Start { id: String, started: i64 },
    /// The job goes on, in another state: any but `Started`, `Done` and `Sent`.
    SetState { id: String, state: JobState },
    /// The result of one run of a job that goes on. Only the newest quiet one is kept until it is sent.
    Report { id: String, started: i64, result: String, quiet: bool },
    /// The job is over; no result where nobody is to be told. With `deferred_sync` it survives the agent's death at once,
    /// and power loss only after [`super::JobStore::sync`]. That is for a job whose row is on the disk as started and that
    /// does not start again: what a power cut leaves of it is answered in the name of the same run, so that a client that
    /// had this result keeps it.
    Finish { id: String, result: Option<String>, deferred_sync: bool },
}

impl JobUpdate {
    /// The job whose result it brings.
    pub(super) fn result_of(&self) -> Option<&str> {
        match self {
            JobUpdate::Report { id, .. } | JobUpdate::Finish { id, result: Some(_), .. } => Some(id),
            _ => None,
        }
    }

    pub(super) fn is_deferred(&self) -> bool {
        matches!(self, JobUpdate::Finish { deferred_sync: true, .. })
    }
}

/// A job that is not over, as it stands in the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// The job's id.
    pub(crate) id: String,
    /// The controller that it came from; empty for a startup job.
    pub(crate) controller: String,
    /// The command as JSON.
    pub(crate) command: String,
    /// Where it stands.
    pub(crate) state: JobState,
    /// When it was accepted, in milliseconds since 1970.
    pub(crate) accepted: i64,
    /// When its last run began, in milliseconds since 1970; 0: never.
    pub(crate) started: i64,
    /// Whether a result of it was reported.
    pub(crate) reported: bool,
}

/// A result on its way to the controller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unsent {
    /// For [`super::JobStore::mark_sent`]; it holds for one generation of the file.
    pub(crate) key: i64,
    /// The result as JSON.
    pub(crate) json: String,
}
