//! The rules for one job: phase × event × now → actions.
//!
//! **Owns** what a job is doing and what it does next: limits, restarts, recurrence, the escalation
//! from its stop signal to KILL, and which of its runs report a result.
//!
//! **Does not** know other jobs: slots, queues and their order are [`super::scheduler`]'s, which calls
//! [`Job::handle`] and looks at [`Job::phase`] afterwards.

mod endings;

use super::types::{Action, Cause, Event, Now, Outcome, PersistedJob, Recurrence};
use crate::job::{JobState, Rules};
use jscommon::State;
use jscommon::backoff::Backoff;
use std::sync::Arc;
use std::time::Duration;

/// Failures of a run that lived longer than this do not count, and set the count back; milliseconds.
pub(super) const YOUNG: u64 = 5 * 60 * 1000;
/// How long a result waits for the end of the output once the process has ended; milliseconds.
///
/// A grandchild that holds the pipe must not hold the result: it is due within a second.
pub(super) const DRAIN: u64 = 500;
/// After KILL, how long until a tree is given up: only the kernel can hold a process so long; milliseconds.
pub(super) const GIVE_UP: u64 = 10_000;
/// How long the end of a job waits for a start that is under way; milliseconds.
pub(super) const LAUNCH: u64 = 1000;
/// Shortest and longest time between two looks at a tree that is being ended; milliseconds.
const PROBE: (u64, u64) = (5, 100);
/// Restarts after the first: the base and the cap of their backoff.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// One job that is not over, or (phase `Over`) has just ended.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: Arc<str>,
    pub(super) rules: Rules,
    pub(super) phase: Phase,
    /// Restarts by `max_restart` and after `killall`.
    pub(super) restarts: u64,
    backoff: Backoff,
    /// A result of it was reported: from now on a recurring job says nothing of runs that go well.
    reported: bool,
    /// No other run follows the one under way.
    last: bool,
    /// The next run repeats one that failed or was interrupted: it goes before waiting jobs.
    pub(super) again: bool,
    /// Start of the last run on the monotonic clock.
    last_start: Option<u64>,
    /// The same in milliseconds since 1970, of a run before the agent's start too.
    started: Option<i64>,
    /// How the last run ended, of those since the agent's start.
    last_state: Option<State>,
}

/// The phase of a job.
#[derive(Debug, PartialEq)]
pub(super) enum Phase {
    /// Ready, and waiting for a slot and its turn.
    Waiting,
    /// Waiting for a time. Between a failure and a `restart` it keeps its turn in its queue.
    Sleeping { until: u64, restart: bool },
    /// The order to start was given; a `launch` where a thread starts its process.
    Starting { run: u64, at: i64, launch: Option<Launch> },
    /// A process or a task is at work, or has ended and is being wound up.
    Running(Run),
    /// Processes of a run of an earlier agent live: it goes on from there once they have ended.
    Held(PersistedJob),
    /// Its restarts are used up; it is remembered and starts again with the agent.
    Failed,
    /// Nothing is left to do.
    Over,
}

#[derive(Debug, PartialEq)]
pub(super) struct Launch {
    since: u64,
    /// Why it is to end as soon as it has started, and when the start is given up.
    ending: Option<(Cause, u64)>,
}

impl Launch {
    fn end(&mut self, cause: Cause, now: Now) {
        match &mut self.ending {
            Some((known, _)) if cause == Cause::Kill => *known = cause,
            Some(_) => {}
            None => self.ending = Some((cause, now.mono + LAUNCH)),
        }
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Run {
    pub(super) run: u64,
    started: u64,
    exited: Option<i32>,
    drained: bool,
    /// Set once only the output is waited for.
    drain_until: Option<u64>,
    ending: Option<Killing>,
}

#[derive(Debug, PartialEq)]
struct Killing {
    cause: Cause,
    kill_at: u64,
    killed: bool,
    probe_at: u64,
    probe_gap: u64,
    gone: bool,
}

/// The circumstances of an event, and the actions that follow from it.
pub(super) struct Context<'a> {
    pub(super) now: Now,
    /// The agent stops.
    pub(super) stopping: bool,
    /// For the jitter of pauses, from 0 to 1.
    pub(super) random: f64,
    pub(super) out: &'a mut Vec<Action>,
}

impl Job {
    pub(super) fn new(id: Arc<str>, rules: Rules) -> Job {
        Job {
            id,
            rules,
            phase: Phase::Waiting,
            restarts: 0,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            reported: false,
            last: false,
            again: false,
            last_start: None,
            started: None,
            last_state: None,
        }
    }

    /// A job as the job store remembers it after the agent was away.
    pub(super) fn restored(id: Arc<str>, rules: Rules, persisted: PersistedJob, cx: &mut Context) -> Job {
        let mut job = Job::new(id, rules);
        job.reported = persisted.reported;
        job.started = Some(persisted.started).filter(|started| *started > 0);
        match persisted.state {
            JobState::Accepted | JobState::Failed => {}
            JobState::Scheduled => {
                if let Some(period) = job.rules.period {
                    // The clock may have jumped while the agent was away: never later than one period.
                    let left = persisted.started.saturating_add_unsigned(period).saturating_sub(cx.now.wall);
                    let left = u64::try_from(left).unwrap_or(0).min(period);
                    job.phase = Phase::Sleeping { until: cx.now.mono + left, restart: false };
                }
            }
            JobState::Started if job.rules.remembered() || job.rules.goes_on => {}
            JobState::Started | JobState::FinalRun => {
                job.finish(None, Some(Outcome::Died { at: persisted.started }), cx)
            }
            JobState::Killing => {
                let why = "killed on request; the agent was interrupted meanwhile".into();
                job.finish(None, Some(Outcome::Killed { code: None, why }), cx);
            }
            JobState::Done | JobState::Sent => job.phase = Phase::Over,
        }
        job
    }

    /// The run under way.
    pub(super) fn run(&self) -> Option<u64> {
        match &self.phase {
            Phase::Starting { run, .. } => Some(*run),
            Phase::Running(run) => Some(run.run),
            _ => None,
        }
    }

    /// The run that has ended and whose output is still waited for.
    pub(super) fn draining(&self) -> Option<u64> {
        match &self.phase {
            Phase::Running(run) if !run.drained => run.drain_until.map(|_| run.run),
            _ => None,
        }
    }

    /// Whether a run is being ended.
    pub(super) fn is_ending(&self) -> bool {
        self.cause().is_some()
    }

    fn cause(&self) -> Option<Cause> {
        match &self.phase {
            Phase::Running(run) => run.ending.as_ref().map(|ending| ending.cause),
            Phase::Starting { launch: Some(launch), .. } => launch.ending.map(|(cause, _)| cause),
            _ => None,
        }
    }

    /// When it wants to be looked at again, on the monotonic clock.
    pub(super) fn deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::Sleeping { until, .. } => Some(*until),
            Phase::Starting { launch: Some(launch), .. } => match launch.ending {
                Some((_, give_up)) => Some(give_up),
                None => self.rules.limit.map(|limit| launch.since + limit),
            },
            Phase::Running(run) => match (&run.drain_until, &run.ending) {
                (Some(until), _) => Some(*until),
                (None, Some(ending)) if ending.killed => Some(ending.probe_at),
                (None, Some(ending)) => Some(ending.probe_at.min(ending.kill_at)),
                (None, None) => self.rules.limit.map(|limit| run.started + limit),
            },
            _ => None,
        }
    }

    /// When it runs, where it recurs; `None` also where the run under way is the last one.
    pub(super) fn recurrence(&self, now: Now) -> Option<Recurrence> {
        let period = self.rules.period.filter(|_| !self.last)?;
        let next = match self.phase {
            Phase::Sleeping { until, .. } if until != u64::MAX => {
                Some(now.wall.saturating_add_unsigned(until.saturating_sub(now.mono)))
            }
            _ => None,
        };
        Some(Recurrence { id: self.id.clone(), period, next, last_start: self.started, last_state: self.last_state })
    }

    /// Gives the order to start, as run number `run`.
    pub(super) fn start(&mut self, run: u64, now: Now, out: &mut Vec<Action>) {
        self.last_start = Some(now.mono);
        self.started = Some(now.wall);
        self.again = false;
        self.phase = Phase::Starting { run, at: now.wall, launch: None };
        out.push(Action::Start { id: self.id.clone(), run, at: now.wall });
    }

    /// Every event has an answer in every phase; what cannot matter any more changes nothing.
    pub(super) fn handle(&mut self, event: &Event, cx: &mut Context) {
        match event {
            Event::Cleared { .. } => self.cleared(cx),
            Event::Kill { .. } => self.kill(cx),
            Event::KillAll => self.end(Cause::KillAll, cx),
            Event::Stop => self.stop(cx),
            Event::Unschedule { .. } => self.unschedule(cx),
            Event::Tick => self.tick(cx),
            Event::Launching { run: launched } => {
                // Told twice it changes nothing: the start may be ending by now.
                if let Phase::Starting { run, launch, .. } = &mut self.phase
                    && run == launched
                {
                    launch.get_or_insert(Launch { since: cx.now.mono, ending: None });
                }
            }
            Event::Spawned { run } => self.spawned(*run, cx),
            Event::Unstartable { run, code, why } => {
                let outcome = Outcome::Unstartable { code: *code, why: why.clone() };
                self.unstartable(*run, outcome, cx);
            }
            Event::Answered { run } => {
                if self.run() == Some(*run) {
                    self.finish(Some(*run), Some(Outcome::Answered), cx);
                }
            }
            Event::Exited { run, code } => self.exited(*run, *code, cx),
            Event::Drained { run } => {
                if let Some(current) = self.running(*run) {
                    current.drained = true;
                }
            }
            Event::Stalled { run, millis } => {
                if let Some(current) = self.running(*run)
                    && let Some(until) = &mut current.drain_until
                {
                    *until += millis;
                }
            }
            Event::Tree { run, alive } => self.tree(*run, *alive, cx),
        }
        self.finish_if_drained(cx);
    }

    fn cleared(&mut self, cx: &mut Context) {
        if let Phase::Held(persisted) = self.phase {
            *self = Job::restored(self.id.clone(), self.rules.clone(), persisted, cx);
        }
    }

    fn running(&mut self, run: u64) -> Option<&mut Run> {
        match &mut self.phase {
            Phase::Running(current) if current.run == run => Some(current),
            _ => None,
        }
    }

    fn spawned(&mut self, run: u64, cx: &mut Context) {
        if self.phase_starts(run) {
            let ending = self.cause();
            self.phase = Phase::Running(Run {
                run,
                started: cx.now.mono,
                exited: None,
                drained: false,
                drain_until: None,
                ending: None,
            });
            if let Some(cause) = ending {
                self.begin_ending(cause, cx);
            }
        }
    }

    fn phase_starts(&self, run: u64) -> bool {
        matches!(self.phase, Phase::Starting { run: starting, .. } if starting == run)
    }

    /// Nothing was started. Trying again at once would fail again, so no restart follows, only the
    /// next recurrence or the agent's next start.
    fn unstartable(&mut self, run: u64, outcome: Outcome, cx: &mut Context) {
        if self.phase_starts(run) {
            match self.cause() {
                Some(cause) if cause != Cause::Timeout => self.never_started(run, cause, cx),
                _ => self.conclude(run, outcome, true, None, cx),
            }
        }
    }

    /// The run is over before its process was there, for somebody has ended it.
    fn never_started(&mut self, run: u64, cause: Cause, cx: &mut Context) {
        match cause {
            Cause::Kill => self.killed(cause, None, cx),
            cause => self.interrupted(run, None, cause, cx),
        }
    }

    fn exited(&mut self, run: u64, code: i32, cx: &mut Context) {
        let id = self.id.clone();
        if let Some(current) = self.running(run)
            && current.exited.is_none()
        {
            current.exited = Some(code);
            match &mut current.ending {
                // Whether the rest of its tree lives is seen at once: most often nothing is left.
                Some(ending) => {
                    ending.probe_at = cx.now.mono + ending.probe_gap;
                    cx.out.push(Action::Probe { id, run });
                }
                None => current.drain_until = Some(cx.now.mono + DRAIN),
            }
        }
    }

    fn tree(&mut self, run: u64, alive: usize, cx: &mut Context) {
        if let Some(current) = self.running(run)
            && let Some(ending) = &mut current.ending
            && alive == 0
            && !ending.gone
            && current.exited.is_some()
        {
            ending.gone = true;
            current.drain_until = Some(cx.now.mono + DRAIN);
        }
    }

    fn tick(&mut self, cx: &mut Context) {
        let id = self.id.clone();
        match &mut self.phase {
            Phase::Starting { run, launch: Some(launch), .. } => match launch.ending {
                Some((cause, give_up)) if give_up <= cx.now.mono => {
                    let (run, lived) = (*run, cx.now.mono.saturating_sub(launch.since));
                    cx.out.push(Action::Abort { id, run });
                    match cause {
                        Cause::Timeout => {
                            self.failed(run, Outcome::TimedOut { code: 128 + 9 }, lived, cx);
                        }
                        cause => self.never_started(run, cause, cx),
                    }
                }
                None if self.rules.limit.is_some_and(|limit| cx.now.mono >= launch.since + limit) => {
                    launch.end(Cause::Timeout, cx.now);
                }
                _ => {}
            },
            Phase::Sleeping { until, .. } if *until <= cx.now.mono => self.phase = Phase::Waiting,
            Phase::Running(Run { run, exited, drain_until: None, ending: Some(ending), .. }) => {
                let run = *run;
                if !ending.killed && cx.now.mono >= ending.kill_at {
                    ending.killed = true;
                    ending.probe_gap = PROBE.0;
                    ending.probe_at = cx.now.mono + PROBE.0;
                    cx.out.push(Action::Kill { id, run });
                } else if cx.now.mono >= ending.kill_at + GIVE_UP {
                    exited.get_or_insert(128 + 9);
                    ending.gone = true;
                } else if cx.now.mono >= ending.probe_at {
                    ending.probe_gap = (ending.probe_gap * 2).min(PROBE.1);
                    ending.probe_at = cx.now.mono + ending.probe_gap;
                    // A process that was forked between the look and the signal gets the signal at the next look.
                    cx.out.push(if ending.killed { Action::Kill { id, run } } else { Action::Probe { id, run } });
                }
            }
            Phase::Running(Run { started, exited: None, ending: None, .. })
                if self.rules.limit.is_some_and(|limit| cx.now.mono >= *started + limit) =>
            {
                self.begin_ending(Cause::Timeout, cx);
            }
            _ => {}
        }
    }
}
