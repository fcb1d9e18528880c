//! The words that the rules are told and answer in: rules, events, outcomes, actions.

use crate::job::JobState;
use jscommon::State;
use std::sync::Arc;

/// The time, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Milliseconds on a clock that never jumps: every deadline is on this one.
    pub(crate) mono: u64,
    /// Milliseconds since 1970: for people, and for what must outlive the agent.
    pub(crate) wall: i64,
}

/// The row of a job in the job store at the agent's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PersistedJob {
    /// Where it stood.
    pub(crate) state: JobState,
    /// When its last run began, in milliseconds since 1970.
    pub(crate) started: i64,
    /// Whether a result of it was reported.
    pub(crate) reported: bool,
}

/// Why a run is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its `max_time` has passed.
    Timeout,
    /// `kill`.
    Kill,
    /// `killall`.
    KillAll,
    /// The agent stops.
    Stop,
}

impl Cause {
    /// Returns the sentence for the result.
    pub(super) fn sentence(self) -> String {
        match self {
            Cause::Timeout => "its time was up",
            Cause::Kill => "killed on request",
            Cause::KillAll => "killed by killall",
            Cause::Stop => "ended because the agent was told to stop",
        }
        .to_owned()
    }
}

/// Something happened to a run, whose number is unique in the agent's life, or to a job. A `code` is a status: 128 + n
/// for signal n.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A thread has been told to start the process of this run, which may take any time.
    Launching { run: u64 },
    /// The process or task of this run was started.
    Spawned { run: u64 },
    /// It could not be started: the status that a shell gives for that, and a sentence.
    Unstartable { run: u64, code: i32, why: String },
    /// A task has its answer.
    Answered { run: u64 },
    /// The first process of this run has ended.
    Exited { run: u64, code: i32 },
    /// Both pipes of this run have ended and all was read.
    Drained { run: u64 },
    /// The readers of this run waited for the message log so long, since it was said last, and could read nothing.
    Stalled { run: u64, millis: u64 },
    /// So many processes of its tree live: the answer to [`Action::Probe`] and [`Action::Kill`].
    Tree { run: u64, alive: usize },
    /// Nothing lives any more of a run of this job, which is held, that an agent before this one had started.
    Cleared { id: String },
    /// `kill`.
    Kill { id: String },
    /// `killall`.
    KillAll,
    /// `unschedule`.
    Unschedule { id: String },
    /// The agent stops: nothing starts any more.
    Stop,
    /// A deadline has passed.
    Tick,
}

/// How a run or a job ended: its status (128 + n for signal n), and a sentence for the result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// By itself.
    Exited { code: i32 },
    /// A task has its answer.
    Answered,
    /// Nothing could be started.
    Unstartable { code: i32, why: String },
    /// Its time was up.
    TimedOut { code: i32 },
    /// It was ended; no status where it was not running.
    Killed { code: Option<i32>, why: String },
    /// The agent died while it ran, since `at` (milliseconds since 1970).
    Died { at: i64 },
}

impl Outcome {
    /// The state of a process that ended so.
    pub(super) fn state(&self) -> State {
        match self {
            Outcome::Exited { code: 0 } | Outcome::Answered => State::Ok,
            Outcome::Exited { .. } | Outcome::Unstartable { .. } | Outcome::Died { .. } => State::Error,
            Outcome::TimedOut { .. } => State::Timeout,
            Outcome::Killed { .. } => State::Killed,
        }
    }

    pub(super) fn brief(&self) -> String {
        match self {
            Outcome::Exited { code } => format!("it ended with status {code}"),
            Outcome::TimedOut { .. } => "its time was up".into(),
            Outcome::Unstartable { why, .. } | Outcome::Killed { why, .. } => why.clone(),
            Outcome::Answered => "it was answered".into(),
            Outcome::Died { .. } => "the agent died while it ran".into(),
        }
    }
}

/// How a run or a job ended, and how that is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conclusion {
    pub(crate) outcome: Outcome,
    /// Quiet, unless the run brought a result of its own.
    pub(crate) suppress_if_ok: bool,
    /// Its restarts are used up: what to alert people with.
    pub(crate) alert: Option<String>,
}

impl From<Outcome> for Conclusion {
    fn from(outcome: Outcome) -> Conclusion {
        Conclusion { outcome, suppress_if_ok: false, alert: None }
    }
}

/// Something is to be done; `at` is in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    /// Start a run, once the job store says so durably; answered by `Spawned` or `Unstartable`.
    Start { id: Arc<str>, run: u64, at: i64 },
    /// Give up the start of this run, which hangs: should it succeed all the same, its process is ended.
    Abort { id: Arc<str>, run: u64 },
    /// Note the tree, and send it the stop signal.
    Term { id: Arc<str>, run: u64 },
    /// Look whether something of the tree lives; answered by `Tree`.
    Probe { id: Arc<str>, run: u64 },
    /// KILL whatever of the tree lives; answered by `Tree`.
    Kill { id: Arc<str>, run: u64 },
    /// Write down where the job stands.
    SetState { id: Arc<str>, state: JobState },
    /// A run is over, and nobody is told: it is restarted, or was interrupted.
    RunOver { id: Arc<str>, run: u64 },
    /// A run is over and its result is to be told; the job goes on.
    Report { id: Arc<str>, run: u64, conclusion: Conclusion },
    /// The job is over. No `conclusion` where its result is known already.
    Finish { id: Arc<str>, run: Option<u64>, conclusion: Option<Conclusion> },
}

/// Where a job is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Ready, waiting for a slot or its turn.
    Queued,
    /// Waiting for a time.
    Scheduled,
    /// At work.
    Running,
    /// Being ended.
    Stopping,
    /// Remembered until the agent's next start.
    Failed,
}

/// When a recurring job runs; times in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recurrence {
    /// The job.
    pub(crate) id: Arc<str>,
    /// Milliseconds between the starts of two runs.
    pub(crate) period: u64,
    /// The start of the next run; nothing while one is under way, or waits for its turn.
    pub(crate) next: Option<i64>,
    /// The start of the last run.
    pub(crate) last_start: Option<i64>,
    /// How the last run ended; nothing where none has since the agent's start.
    pub(crate) last_state: Option<State>,
}
