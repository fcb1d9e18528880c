//! The invariants of the rules, under any order of events.

use super::*;
use crate::job::JobState;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Something that happens to the node, in the property test.
#[derive(Clone, Debug)]
enum Step {
    Accept { kind: u8, queue: u8 },
    Launch { which: usize },
    Spawn { which: usize, works: bool },
    Exit { which: usize, code: i32 },
    Drain { which: usize },
    Kill { which: usize },
    KillAll,
    Unschedule { which: usize },
    Pass { millis: u64 },
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..7, 0u8..4).prop_map(|(kind, queue)| Step::Accept { kind, queue }),
        4 => any::<usize>().prop_map(|which| Step::Launch { which }),
        6 => (any::<usize>(), prop::bool::weighted(0.9)).prop_map(|(which, works)| Step::Spawn { which, works }),
        6 => (any::<usize>(), prop_oneof![Just(0), Just(1)]).prop_map(|(which, code)| Step::Exit { which, code }),
        4 => any::<usize>().prop_map(|which| Step::Drain { which }),
        2 => any::<usize>().prop_map(|which| Step::Kill { which }),
        1 => Just(Step::KillAll),
        1 => any::<usize>().prop_map(|which| Step::Unschedule { which }),
        5 => prop_oneof![0u64..50, 0u64..7000, Just(400_000u64)].prop_map(|millis| Step::Pass { millis }),
        1 => prop_oneof![9 => Just(Step::KillAll), 1 => Just(Step::Stop)],
    ]
}

#[derive(Default)]
struct Seen {
    rules: Rules,
    accepted: usize,
    first_start: Option<usize>,
    starts: usize,
    killed: bool,
    /// Final answers: a finish with an outcome, or the report of one that failed for good.
    finals: usize,
    failed_for_good: bool,
    gone: bool,
}

/// The world around the scheduler: processes that start, end and linger.
struct World {
    scheduler: Scheduler,
    time: u64,
    jobs: BTreeMap<String, Seen>,
    starting: BTreeMap<u64, String>,
    running: BTreeMap<u64, String>,
    exited: BTreeSet<u64>,
    clock: usize,
    stopped: bool,
}

const SLOTS: usize = 3;

impl World {
    fn open(&self) -> impl Iterator<Item = (&u64, &String)> {
        self.starting.iter().chain(&self.running)
    }

    fn handle(&mut self, event: Event) {
        let actions = self.scheduler.handle(event, now(self.time));
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.clock += 1;
            match action {
                Action::Start { id, run, .. } => {
                    assert!(!self.stopped, "{id} starts though the agent stops");
                    assert!(self.open().all(|(_, other)| *other != *id), "{id} has two runs");
                    let seen = &self.jobs[&*id];
                    assert!(!seen.killed && !seen.gone, "{id} starts after it was killed");
                    if let Some(queue) = &seen.rules.queue {
                        let beside = self.open().any(|(_, other)| self.jobs[other].rules.queue.as_ref() == Some(queue));
                        assert!(!beside, "two of queue {queue} at once");
                    }
                    let clock = self.clock;
                    let seen = self.jobs.get_mut(&*id).unwrap();
                    seen.first_start.get_or_insert(clock);
                    seen.starts += 1;
                    self.starting.insert(run, id.to_string());
                    let processes = self.open().filter(|(_, id)| self.jobs[*id].rules.process).count();
                    assert!(processes <= SLOTS, "{processes} processes in {SLOTS} slots");
                }
                Action::Probe { run, .. } => {
                    let alive = usize::from(!self.exited.contains(&run));
                    self.handle(Event::Tree { run, alive });
                }
                Action::Kill { run, .. } => {
                    self.exited.insert(run);
                    self.handle(Event::Exited { run, code: 137 });
                    self.handle(Event::Tree { run, alive: 0 });
                }
                Action::Term { .. } | Action::Abort { .. } => {}
                Action::SetState { id, state } => {
                    let seen = self.jobs.get_mut(&*id).unwrap();
                    seen.failed_for_good |= state == JobState::Failed;
                    seen.finals += usize::from(state == JobState::Failed);
                }
                Action::RunOver { run, .. } | Action::Report { run, .. } => self.over(run),
                Action::Finish { id, run, conclusion } => {
                    if let Some(run) = run {
                        self.over(run);
                    }
                    let seen = self.jobs.get_mut(&*id).unwrap();
                    assert!(!seen.gone, "{id} is finished twice");
                    seen.gone = true;
                    seen.finals += usize::from(conclusion.is_some());
                    let told_before = seen.failed_for_good || seen.rules.period.is_some();
                    assert!(conclusion.is_some() || told_before, "{id} ends without a result");
                }
            }
        }
    }

    fn over(&mut self, run: u64) {
        let known = self.starting.remove(&run).or_else(|| self.running.remove(&run));
        assert!(known.is_some(), "run {run} is over twice");
    }

    fn pick<V: Clone>(map: &BTreeMap<u64, V>, which: usize) -> Option<(u64, V)> {
        let index = which.checked_rem(map.len())?;
        map.iter().nth(index).map(|(run, value)| (*run, value.clone()))
    }

    fn name(&self, which: usize) -> Option<String> {
        let index = which.checked_rem(self.jobs.len())?;
        self.jobs.keys().nth(index).cloned()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Accept { kind, queue } => {
                if self.stopped {
                    return;
                }
                let id = format!("job{:04}", self.jobs.len());
                let plain = Rules { queue: (queue < 2).then(|| format!("q{queue}").into()), ..rules() };
                let rules = match kind {
                    0 | 1 => plain,
                    2 => Rules { limit: Some(2000), ..plain },
                    3 => Rules { max_restart: 2, ..plain },
                    4 => Rules { long: true, max_restart: 2, ..plain },
                    5 => Rules { period: Some(3000), ..plain },
                    _ => Rules { process: false, ..Rules::default() },
                };
                let accepted = self.clock;
                self.jobs.insert(id.clone(), Seen { rules: rules.clone(), accepted, ..Seen::default() });
                let actions = self.scheduler.accept(&id, rules, now(self.time));
                self.perform(actions);
            }
            Step::Launch { which } => {
                if let Some((run, _)) = World::pick(&self.starting, which) {
                    self.handle(Event::Launching { run });
                }
            }
            Step::Spawn { which, works } => {
                if let Some((run, id)) = World::pick(&self.starting, which) {
                    if works {
                        self.starting.remove(&run);
                        self.running.insert(run, id);
                        self.handle(Event::Spawned { run });
                    } else {
                        self.handle(Event::Unstartable { run, code: 126, why: "no".into() });
                    }
                }
            }
            Step::Exit { which, code } => {
                if let Some((run, id)) = World::pick(&self.running, which) {
                    if !self.jobs[&id].rules.process {
                        self.handle(Event::Answered { run });
                    } else if self.exited.insert(run) {
                        self.handle(Event::Exited { run, code });
                    }
                }
            }
            Step::Drain { which } => {
                if let Some((run, _)) = World::pick(&self.running, which) {
                    self.handle(Event::Drained { run });
                }
            }
            Step::Kill { which } => {
                if let Some(id) = self.name(which) {
                    self.jobs.get_mut(&id).unwrap().killed = true;
                    self.handle(Event::Kill { id });
                }
            }
            Step::KillAll => self.handle(Event::KillAll),
            Step::Unschedule { which } => {
                if let Some(id) = self.name(which) {
                    self.handle(Event::Unschedule { id });
                }
            }
            Step::Pass { millis } => {
                let until = self.time + millis;
                // Deadlines are met one by one, as the supervisor meets them.
                while let Some(due) = self.scheduler.deadline().filter(|due| *due <= until) {
                    self.time = self.time.max(due);
                    self.handle(Event::Tick);
                }
                self.time = until;
            }
            Step::Stop => {
                self.stopped = true;
                self.handle(Event::Stop);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_under_any_order_of_events(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World {
            scheduler: Scheduler::new(SLOTS, 3),
            time: 0,
            jobs: BTreeMap::new(),
            starting: BTreeMap::new(),
            running: BTreeMap::new(),
            exited: BTreeSet::new(),
            clock: 0,
            stopped: false,
        };
        for step in steps {
            world.step(step);
        }

        // A queue keeps the order of acceptance, for what is not started a second time.
        let mut last: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for seen in world.jobs.values() {
            if let (Some(queue), Some(start)) = (&seen.rules.queue, seen.first_start) {
                if let Some((accepted, started)) = last.get(&**queue) {
                    prop_assert!(*accepted <= seen.accepted && *started < start, "queue {} out of order", queue);
                }
                last.insert(queue.to_string(), (seen.accepted, start));
            }
        }

        // In the end everything is killed, and every job has had its one end.
        let stopped = world.stopped;
        for which in 0..world.jobs.len() {
            world.step(Step::Kill { which });
        }
        while let Some((run, _)) = World::pick(&world.starting.clone(), 0) {
            world.handle(Event::Unstartable { run, code: 126, why: "the end".into() });
        }
        world.step(Step::Pass { millis: 60_000 });
        prop_assert!(world.scheduler.is_idle() && world.running.is_empty());
        prop_assert!(world.scheduler.jobs.is_empty() && world.scheduler.ids.is_empty() && world.scheduler.ready.is_empty());
        prop_assert!(world.scheduler.queues.is_empty() && world.scheduler.timers.is_empty());
        prop_assert_eq!(world.scheduler.slots_taken, 0);
        for (id, seen) in &world.jobs {
            prop_assert!(seen.gone, "{} has no end", id);
            prop_assert!(seen.finals <= 1, "{} has {} final results", id, seen.finals);
            if seen.rules.period.is_none() {
                prop_assert_eq!(seen.finals, 1, "{} has no result", id);
            }
            if !seen.rules.remembered() && seen.rules.max_restart == 0 {
                prop_assert!(seen.starts <= 1, "{} started {} times", id, seen.starts);
            }
            let _ = stopped;
        }
    }
}
