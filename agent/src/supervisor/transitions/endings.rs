//! The end of a run, on request or by itself, and what follows it.

use super::{Context, Job, Killing, PROBE, Phase, Run, YOUNG};
use crate::job::JobState;
use crate::supervisor::types::{Action, Cause, Conclusion, Outcome};
use jscommon::State;

impl Job {
    pub(super) fn kill(&mut self, cx: &mut Context) {
        match &mut self.phase {
            Phase::Waiting | Phase::Sleeping { .. } | Phase::Starting { launch: None, .. } => {
                self.killed(Cause::Kill, None, cx);
            }
            // Its processes are being ended, and its result follows their end.
            Phase::Held(persisted) => {
                persisted.state = JobState::Killing;
                self.set_state(JobState::Killing, cx);
            }
            // Its result is known already.
            Phase::Failed => self.finish(None, None, cx),
            // Nobody can end a thread of the agent; one that hangs holds up no answer.
            Phase::Running(_) if !self.rules.process => self.killed(Cause::Kill, None, cx),
            Phase::Starting { launch: Some(launch), .. } => {
                let is_killed = matches!(launch.ending, Some((Cause::Kill, _)));
                launch.end(Cause::Kill, cx.now);
                if !is_killed {
                    self.set_state(JobState::Killing, cx);
                }
            }
            // It has ended by itself, and only the end of its output is waited for: its result stands as
            // it ended, and nothing follows it.
            Phase::Running(Run { exited: Some(_), ending: None, .. }) => {
                if !std::mem::replace(&mut self.last, true) {
                    self.set_state(JobState::FinalRun, cx);
                }
            }
            Phase::Running(_) => {
                if self.cause() != Some(Cause::Kill) {
                    self.set_state(JobState::Killing, cx);
                }
                self.begin_ending(Cause::Kill, cx);
            }
            Phase::Over => {}
        }
    }

    /// `killall` and the agent's stop: what runs is ended, what waits stays.
    pub(super) fn end(&mut self, cause: Cause, cx: &mut Context) {
        if !self.rules.process {
            return;
        }
        match &mut self.phase {
            // Its process may be there at any moment.
            Phase::Starting { launch: Some(launch), .. } => launch.end(cause, cx.now),
            // Nothing of it ever ran (its script is still being fetched, say): it waits for the agent's return.
            Phase::Starting { run, .. } if cause == Cause::Stop && self.restarts == 0 && !self.rules.remembered() => {
                let (id, run) = (self.id.clone(), *run);
                cx.out.push(Action::RunOver { id: id.clone(), run });
                cx.out.push(Action::SetState { id, state: JobState::Accepted });
                self.phase = Phase::Sleeping { until: u64::MAX, restart: false };
            }
            Phase::Starting { run, .. } => {
                let run = *run;
                self.interrupted(run, None, cause, cx);
            }
            // A process that has ended by itself has its result, and what it left behind lives on.
            Phase::Running(Run { exited: Some(_), .. }) => {}
            Phase::Running(_) => self.begin_ending(cause, cx),
            _ => {}
        }
    }

    pub(super) fn stop(&mut self, cx: &mut Context) {
        if let Some(run) = self.run().filter(|_| self.rules.goes_on) {
            // Its row says that a run was under way: that is carried out again when the agent is back.
            cx.out.push(Action::RunOver { id: self.id.clone(), run });
            self.phase = Phase::Sleeping { until: u64::MAX, restart: false };
            return;
        }
        let is_cut_off = match &self.phase {
            Phase::Starting { .. } | Phase::Running(_) => !self.rules.process,
            // It ran, and would have done so again.
            Phase::Sleeping { restart: true, .. } => !self.rules.remembered(),
            Phase::Waiting => self.last_start.is_some() && !self.rules.remembered(),
            _ => false,
        };
        match is_cut_off {
            true => self.killed(Cause::Stop, None, cx),
            false => self.end(Cause::Stop, cx),
        }
    }

    pub(super) fn unschedule(&mut self, cx: &mut Context) {
        self.last = true;
        match &mut self.phase {
            Phase::Starting { .. } | Phase::Running(_) => {
                if self.rules.remembered() && self.cause() != Some(Cause::Kill) {
                    self.set_state(JobState::FinalRun, cx);
                }
            }
            Phase::Waiting | Phase::Sleeping { .. } => {
                // A client that waits for a first result is told that there will be none.
                let why = "unscheduled, no run follows".to_owned();
                let outcome = (!self.reported).then_some(Outcome::Killed { code: None, why });
                self.finish(None, outcome, cx);
            }
            Phase::Held(persisted) => {
                if persisted.state == JobState::Started && self.rules.remembered() {
                    persisted.state = JobState::FinalRun;
                    self.set_state(JobState::FinalRun, cx);
                }
            }
            Phase::Failed => self.finish(None, None, cx),
            Phase::Over => {}
        }
    }

    pub(super) fn begin_ending(&mut self, cause: Cause, cx: &mut Context) {
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
                    kill_at: cx.now.mono + timeout,
                    killed: false,
                    probe_at: cx.now.mono + PROBE.0,
                    probe_gap: PROBE.0,
                    gone: false,
                });
                cx.out.push(Action::Term { id, run: current.run });
            }
        }
    }

    /// Ends the run once nothing of it is waited for any more.
    pub(super) fn finish_if_drained(&mut self, cx: &mut Context) {
        let Phase::Running(current) = &self.phase else { return };
        let Some(code) = current.exited else { return };
        let gave_up = current.ending.as_ref().is_some_and(|e| e.gone && current.drain_until.is_none());
        let quiet = current.drain_until.is_some_and(|until| current.drained || cx.now.mono >= until);
        if !quiet && !gave_up {
            return;
        }
        let (run, lived) = (current.run, cx.now.mono.saturating_sub(current.started));
        match current.ending.as_ref().map(|ending| ending.cause) {
            None if code == 0 => self.conclude(run, Outcome::Exited { code }, false, None, cx),
            None => self.failed(run, Outcome::Exited { code }, lived, cx),
            Some(Cause::Timeout) => {
                self.failed(run, Outcome::TimedOut { code }, lived, cx);
            }
            Some(Cause::Kill) => self.killed(Cause::Kill, Some(code), cx),
            Some(cause) => self.interrupted(run, Some(code), cause, cx),
        }
    }

    /// A run was ended by `killall` or by the agent's stop.
    pub(super) fn interrupted(&mut self, run: u64, code: Option<i32>, cause: Cause, cx: &mut Context) {
        if self.last || !self.rules.remembered() {
            return self.killed(cause, code, cx);
        }
        self.last_state = Some(State::Killed);
        cx.out.push(Action::RunOver { id: self.id.clone(), run });
        if cx.stopping {
            // The row still says that a run was under way: it starts again with the agent.
            self.phase = Phase::Sleeping { until: u64::MAX, restart: false };
        } else if self.rules.period.is_some() {
            self.schedule(cx);
        } else {
            self.restarts += 1;
            self.again = true;
            self.phase = Phase::Waiting;
        }
    }

    /// A run failed by itself or ran out of time: again, or never again.
    pub(super) fn failed(&mut self, run: u64, outcome: Outcome, lived: u64, cx: &mut Context) {
        let earlier = if lived > YOUNG { 0 } else { self.backoff.failures() };
        let wait = match earlier {
            0 => {
                // The first restart comes at once, and takes no part in the backoff of the later ones.
                self.backoff.succeed();
                self.backoff.fail(0.0);
                0
            }
            _ => self.backoff.fail(cx.random).as_millis() as u64,
        };
        // A failure after a long life does not count, yet is a failure: it is restarted, at once.
        let counted = if lived > YOUNG { 0 } else { earlier + 1 };
        if lived > YOUNG {
            self.backoff.succeed();
        }
        let allowed = self.rules.max_restart;
        if allowed == 0 || self.last || cx.stopping {
            return self.conclude(run, outcome, true, None, cx);
        }
        if counted > allowed {
            let alert = format!("job {} failed {counted} times and is not restarted: {}", self.id, outcome.brief());
            return self.conclude(run, outcome, true, Some(alert), cx);
        }
        self.restarts += 1;
        self.again = true;
        cx.out.push(Action::RunOver { id: self.id.clone(), run });
        self.phase = match wait {
            0 => Phase::Waiting,
            wait => Phase::Sleeping { until: cx.now.mono + wait, restart: true },
        };
    }

    /// A run has ended for good: the job goes on after it, or is over.
    pub(super) fn conclude(
        &mut self,
        run: u64,
        outcome: Outcome,
        failed: bool,
        alert: Option<String>,
        cx: &mut Context,
    ) {
        self.last_state = Some(outcome.state());
        let conclusion = Conclusion { outcome, suppress_if_ok: self.reported && !failed, alert };
        let id = self.id.clone();
        self.backoff.succeed();
        if self.rules.period.is_some() && !self.last {
            self.reported = true;
            cx.out.push(Action::Report { id, run, conclusion });
            match cx.stopping {
                true => {
                    self.set_state(JobState::Scheduled, cx);
                    self.phase = Phase::Sleeping { until: u64::MAX, restart: false };
                }
                false => self.schedule(cx),
            }
        } else if self.rules.remembered() && failed && !self.last {
            self.reported = true;
            cx.out.push(Action::Report { id: id.clone(), run, conclusion });
            cx.out.push(Action::SetState { id, state: JobState::Failed });
            self.phase = Phase::Failed;
        } else {
            self.phase = Phase::Over;
            cx.out.push(Action::Finish { id, run: Some(run), conclusion: Some(conclusion) });
        }
    }

    /// Sleeps until the next recurrence: counted from the last start, at once when that is past.
    fn schedule(&mut self, cx: &mut Context) {
        self.set_state(JobState::Scheduled, cx);
        let period = self.rules.period.unwrap_or(0);
        let until = self.last_start.unwrap_or(cx.now.mono).saturating_add(period).max(cx.now.mono);
        self.phase = Phase::Sleeping { until, restart: false };
    }

    pub(super) fn finish(&mut self, run: Option<u64>, outcome: Option<Outcome>, cx: &mut Context) {
        self.phase = Phase::Over;
        cx.out.push(Action::Finish { id: self.id.clone(), run, conclusion: outcome.map(Conclusion::from) });
    }

    /// Ends the job with the result that `cause` ended it.
    pub(super) fn killed(&mut self, cause: Cause, code: Option<i32>, cx: &mut Context) {
        self.finish(self.run(), Some(Outcome::Killed { code, why: cause.sentence() }), cx);
    }

    fn set_state(&self, state: JobState, cx: &mut Context) {
        cx.out.push(Action::SetState { id: self.id.clone(), state });
    }
}
