//! The rules in tables, and under random orders of events. Here: what drives them.

mod ends;
mod memory;
mod order;
mod restarts;
mod runs;
mod world;

use super::*;
use crate::job::JobState;
use jscommon::State;

const T0: i64 = 1_000_000;

fn rules() -> Rules {
    Rules { process: true, stop_timeout: 5000, ..Rules::default() }
}

fn now(mono: u64) -> Now {
    Now { mono, wall: T0 + mono as i64 }
}

/// Drives one policy and keeps what it ordered, in words.
struct Simulation {
    scheduler: Scheduler,
    time: u64,
    said: Vec<String>,
    last_run: u64,
}

impl Simulation {
    fn new(max_jobs: usize) -> Simulation {
        Simulation { scheduler: Scheduler::new(max_jobs, 7), time: 0, said: Vec::new(), last_run: 0 }
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.said.push(match action {
                Action::Start { id, run, .. } => {
                    self.last_run = run;
                    format!("start {id}")
                }
                Action::Abort { id, .. } => format!("abort {id}"),
                Action::Term { id, .. } => format!("term {id}"),
                Action::Probe { id, .. } => format!("probe {id}"),
                Action::Kill { id, .. } => format!("kill {id}"),
                Action::SetState { id, state } => format!("{id} is {state:?}"),
                Action::RunOver { id, .. } => format!("over {id}"),
                Action::Report { id, conclusion, .. } => format!("report {id} {}", words(Some(conclusion))),
                Action::Finish { id, conclusion, .. } => format!("finish {id} {}", words(conclusion)),
            });
        }
    }

    fn accept(&mut self, id: &str, rules: Rules) -> u64 {
        let actions = self.scheduler.accept(id, rules, now(self.time));
        self.take(actions);
        self.last_run
    }

    fn event(&mut self, event: Event) {
        let actions = self.scheduler.handle(event, now(self.time));
        self.take(actions);
    }

    fn spawned(&mut self, run: u64) {
        self.event(Event::Spawned { run });
    }

    /// The whole of a run's end: exit, empty tree where one is looked for, end of the pipes.
    fn exit(&mut self, run: u64, code: i32) {
        self.event(Event::Exited { run, code });
        self.event(Event::Tree { run, alive: 0 });
        self.event(Event::Drained { run });
    }

    fn at(&mut self, time: u64) {
        self.time = time;
        self.event(Event::Tick);
    }

    #[track_caller]
    fn said(&mut self, expected: &[&str]) {
        assert_eq!(std::mem::take(&mut self.said), expected);
    }
}

fn words(conclusion: Option<Conclusion>) -> String {
    let Some(Conclusion { outcome, suppress_if_ok, alert }) = conclusion else { return "silently".to_owned() };
    let mut text = match outcome {
        Outcome::Exited { code } => format!("exited {code}"),
        Outcome::Answered => "answered".into(),
        Outcome::Unstartable { .. } => "unstartable".into(),
        Outcome::TimedOut { code } => format!("timeout {code}"),
        Outcome::Killed { code, .. } => format!("killed {code:?}"),
        Outcome::Died { .. } => "died".into(),
    };
    if suppress_if_ok {
        text.push_str(" quiet if ok");
    }
    if alert.is_some() {
        text.push_str(" alert");
    }
    text
}
