//! Where a job stands.

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum JobState {
    /// Stored, and not started yet.
    Accepted = 0,
    /// A run is under way.
    Started = 1,
    /// Over; its result waits for the controller.
    Done = 2,
    /// Over, and the controller has the result (or nobody wants it).
    Sent = 3,
    /// A remembered job whose restarts are used up: it starts again with the agent.
    Failed = 4,
    /// A recurring job between two runs.
    Scheduled = 5,
    /// A run under way was killed: nothing follows it.
    Killing = 6,
    /// A run under way is the last.
    FinalRun = 7,
}

impl JobState {
    pub(crate) fn from_number(number: i64) -> JobState {
        match number {
            0 => JobState::Accepted,
            1 => JobState::Started,
            2 => JobState::Done,
            4 => JobState::Failed,
            5 => JobState::Scheduled,
            6 => JobState::Killing,
            7 => JobState::FinalRun,
            _ => JobState::Sent,
        }
    }
}
