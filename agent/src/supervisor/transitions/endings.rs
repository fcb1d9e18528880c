//! The end of a run, on request or by itself, and what follows it.

use super::{Job, Killing, PROBE, Phase, Run, YOUNG};
use crate::job::JobState;
use crate::supervisor::types::{Action, Cause, Now, Outcome};
use jscommon::State;

impl Job {
    pub(super) fn kill(&mut self, now: Now, out: &mut Vec<Action>) {
        let why = || "killed on request".to_owned();
        match &mut self.phase {
            Phase::Waiting | Phase::Sleeping { .. } => {
                self.finish(None, Some(Outcome::Killed { code: None, why: why() }), out);
            }
            // Its processes are being ended, and its result follows their end.
            Phase::Held(persisted) => {
                persisted.state = JobState::Killing;
                out.push(Action::SetState { id: self.id.clone(), state: JobState::Killing });
            }
            // Its result is known already.
            Phase::Failed => self.finish(None, None, out),
            // Nobody can end a thread of the agent; one that hangs holds up no answer.
            Phase::Running(Run { run, .. }) if !self.rules.process => {
                let run = *run;
                self.finish(Some(run), Some(Outcome::Killed { code: None, why: why() }), out);
            }
            Phase::Starting { launch: Some(launch), .. } => {
                if !matches!(launch.ending, Some((Cause::Kill, _))) {
                    out.push(Action::SetState { id: self.id.clone(), state: JobState::Killing });
                }
                launch.end(Cause::Kill, now);
            }
            Phase::Starting { run, .. } => {
                let run = *run;
                self.finish(Some(run), Some(Outcome::Killed { code: None, why: why() }), out);
            }
            // It has ended by itself, and only the end of its output is waited for: its result stands as
            // it ended, and nothing follows it.
            Phase::Running(Run { exited: Some(_), ending: None, .. }) => {
                if !self.last {
                    self.last = true;
                    out.push(Action::SetState { id: self.id.clone(), state: JobState::FinalRun });
                }
            }
            Phase::Running(_) => {
                if self.cause() != Some(Cause::Kill) {
                    out.push(Action::SetState { id: self.id.clone(), state: JobState::Killing });
                }
                self.begin_ending(Cause::Kill, now, out);
            }
            Phase::Over => {}
        }
    }

    /// `killall` and the agent's stop: what runs is ended, what waits stays.
    pub(super) fn end(&mut self, cause: Cause, stopping: bool, now: Now, out: &mut Vec<Action>) {
        if !self.rules.process {
            return;
        }
        match &mut self.phase {
            // Its process may be there at any moment.
            Phase::Starting { launch: Some(launch), .. } => launch.end(cause, now),
            // Nothing of it ever ran (its script is still being fetched, say): it waits for the agent's return.
            Phase::Starting { run, .. } if cause == Cause::Stop && self.restarts == 0 && !self.rules.remembered() => {
                let (id, run) = (self.id.clone(), *run);
                out.push(Action::RunOver { id: id.clone(), run });
                out.push(Action::SetState { id, state: JobState::Accepted });
                self.phase = Phase::Sleeping { until: u64::MAX, restart: false };
            }
            Phase::Starting { run, .. } => {
                let run = *run;
                self.interrupted(run, None, cause, stopping, now, out);
            }
            // A process that has ended by itself has its result, and what it left behind lives on.
            Phase::Running(Run { exited: Some(_), .. }) => {}
            Phase::Running(_) => self.begin_ending(cause, now, out),
            _ => {}
        }
    }

    pub(super) fn stop(&mut self, now: Now, out: &mut Vec<Action>) {
        match &self.phase {
            Phase::Starting { run, .. } | Phase::Running(Run { run, .. }) if !self.rules.process => {
                let run = *run;
                self.finish(Some(run), Some(Outcome::Killed { code: None, why: Cause::Stop.sentence() }), out);
            }
            // It ran, and what it was about to do again is cut off.
            Phase::Sleeping { restart: true, .. } if !self.rules.remembered() => {
                self.finish(None, Some(Outcome::Killed { code: None, why: Cause::Stop.sentence() }), out);
            }
            Phase::Waiting if self.last_start.is_some() && !self.rules.remembered() => {
                self.finish(None, Some(Outcome::Killed { code: None, why: Cause::Stop.sentence() }), out);
            }
            _ => self.end(Cause::Stop, true, now, out),
        }
    }

    pub(super) fn unschedule(&mut self, out: &mut Vec<Action>) {
        self.last = true;
        match &mut self.phase {
            Phase::Starting { .. } | Phase::Running(_) => {
                if self.rules.remembered() && self.cause() != Some(Cause::Kill) {
                    out.push(Action::SetState { id: self.id.clone(), state: JobState::FinalRun });
                }
            }
            Phase::Waiting | Phase::Sleeping { .. } => {
                // A client that waits for a first result is told that there will be none.
                let why = "unscheduled, no run follows".to_owned();
                let outcome = (!self.reported).then_some(Outcome::Killed { code: None, why });
                self.finish(None, outcome, out);
            }
            Phase::Held(persisted) => {
                if persisted.state == JobState::Started && self.rules.remembered() {
                    persisted.state = JobState::FinalRun;
                    out.push(Action::SetState { id: self.id.clone(), state: JobState::FinalRun });
                }
            }
            Phase::Failed => self.finish(None, None, out),
            Phase::Over => {}
        }
    }

    pub(super) fn begin_ending(&mut self, cause: Cause, now: Now, out: &mut Vec<Action>) {
        let (id, timeout) = (self.id.clone(), self.rules.stop_timeout);
        let Phase::Running(current) = &mut self.phase else { return };
        match &mut current.ending {
            // Only `kill` has more to say than what is under way already: that nothing follows.
            Some(ending) => {
                if cause == Cause::Kill {
                    ending.cause = Cause::Kill;
                }
            }
            None => {
                current.drain_until = None;
                current.ending = Some(Killing {
                    cause,
                    kill_at: now.mono + timeout,
                    killed: false,
                    probe_at: now.mono + PROBE.0,
                    probe_gap: PROBE.0,
                    gone: false,
                });
                out.push(Action::Term { id, run: current.run });
            }
        }
    }

    /// Ends the run once nothing of it is waited for any more.
    pub(super) fn finish_if_drained(&mut self, stopping: bool, now: Now, random: f64, out: &mut Vec<Action>) {
        let Phase::Running(current) = &self.phase else { return };
        let Some(code) = current.exited else { return };
        let gave_up = current.ending.as_ref().is_some_and(|e| e.gone && current.drain_until.is_none());
        let quiet = current.drain_until.is_some_and(|until| current.drained || now.mono >= until);
        if !quiet && !gave_up {
            return;
        }
        let (run, lived) = (current.run, now.mono.saturating_sub(current.started));
        match current.ending.as_ref().map(|ending| ending.cause) {
            None if code == 0 => self.conclude(run, Outcome::Exited { code }, false, None, stopping, now, out),
            None => self.failed(run, Outcome::Exited { code }, lived, stopping, now, random, out),
            Some(Cause::Timeout) => {
                self.failed(run, Outcome::TimedOut { code }, lived, stopping, now, random, out);
            }
            Some(Cause::Kill) => {
                let why = Cause::Kill.sentence();
                self.finish(Some(run), Some(Outcome::Killed { code: Some(code), why }), out);
            }
            Some(cause) => self.interrupted(run, Some(code), cause, stopping, now, out),
        }
    }

    /// A run was ended by `killall` or by the agent's stop.
    pub(super) fn interrupted(
        &mut self,
        run: u64,
        code: Option<i32>,
        cause: Cause,
        stopping: bool,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        if self.last || !self.rules.remembered() {
            return self.finish(Some(run), Some(Outcome::Killed { code, why: cause.sentence() }), out);
        }
        self.last_state = Some(State::Killed);
        out.push(Action::RunOver { id: self.id.clone(), run });
        if stopping {
            // The row still says that a run was under way: it starts again with the agent.
            self.phase = Phase::Sleeping { until: u64::MAX, restart: false };
        } else if self.rules.period.is_some() {
            self.schedule(now, out);
        } else {
            self.restarts += 1;
            self.again = true;
            self.phase = Phase::Waiting;
        }
    }

    /// A run failed by itself or ran out of time: again, or never again.
    #[allow(clippy::too_many_arguments)] // one run's end has so many sides; a struct would only rename them
    pub(super) fn failed(
        &mut self,
        run: u64,
        outcome: Outcome,
        lived: u64,
        stopping: bool,
        now: Now,
        random: f64,
        out: &mut Vec<Action>,
    ) {
        let earlier = if lived > YOUNG { 0 } else { self.backoff.failures() };
        let wait = match earlier {
            0 => {
                // The first restart comes at once, and takes no part in the backoff of the later ones.
                self.backoff.succeed();
                self.backoff.fail(0.0);
                0
            }
            _ => self.backoff.fail(random).as_millis() as u64,
        };
        // A failure after a long life does not count, yet is a failure: it is restarted, at once.
        let counted = if lived > YOUNG { 0 } else { earlier + 1 };
        if lived > YOUNG {
            self.backoff.succeed();
        }
        let allowed = self.rules.max_restart;
        if allowed == 0 || self.last || stopping {
            return self.conclude(run, outcome, true, None, stopping, now, out);
        }
        if counted > allowed {
            let alert = format!("job {} failed {counted} times and is not restarted: {}", self.id, outcome.brief());
            return self.conclude(run, outcome, true, Some(alert), stopping, now, out);
        }
        self.restarts += 1;
        self.again = true;
        out.push(Action::RunOver { id: self.id.clone(), run });
        self.phase = match wait {
            0 => Phase::Waiting,
            wait => Phase::Sleeping { until: now.mono + wait, restart: true },
        };
    }

    /// A run has ended for good: the job goes on after it, or is over.
    #[allow(clippy::too_many_arguments)] // as above
    pub(super) fn conclude(
        &mut self,
        run: u64,
        outcome: Outcome,
        failed: bool,
        alert: Option<String>,
        stopping: bool,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let suppress_if_ok = self.reported && !failed;
        self.last_state = Some(outcome.state());
        let id = self.id.clone();
        self.backoff.succeed();
        if self.rules.period.is_some() && !self.last {
            self.reported = true;
            out.push(Action::Report { id, run, outcome, suppress_if_ok, alert });
            match stopping {
                true => {
                    out.push(Action::SetState { id: self.id.clone(), state: JobState::Scheduled });
                    self.phase = Phase::Sleeping { until: u64::MAX, restart: false };
                }
                false => self.schedule(now, out),
            }
        } else if self.rules.remembered() && failed && !self.last {
            self.reported = true;
            out.push(Action::Report { id: id.clone(), run, outcome, suppress_if_ok, alert });
            out.push(Action::SetState { id, state: JobState::Failed });
            self.phase = Phase::Failed;
        } else {
            self.phase = Phase::Over;
            out.push(Action::Finish { id, run: Some(run), outcome: Some(outcome), suppress_if_ok, alert });
        }
    }

    /// Sleeps until the next recurrence: counted from the last start, at once when that is past.
    fn schedule(&mut self, now: Now, out: &mut Vec<Action>) {
        out.push(Action::SetState { id: self.id.clone(), state: JobState::Scheduled });
        let period = self.rules.period.unwrap_or(0);
        let until = self.last_start.unwrap_or(now.mono).saturating_add(period).max(now.mono);
        self.phase = Phase::Sleeping { until, restart: false };
    }

    pub(super) fn finish(&mut self, run: Option<u64>, outcome: Option<Outcome>, out: &mut Vec<Action>) {
        self.phase = Phase::Over;
        out.push(Action::Finish { id: self.id.clone(), run, outcome, suppress_if_ok: false, alert: None });
    }
}
