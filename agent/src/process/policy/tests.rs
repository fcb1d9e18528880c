//! The rules in tables, and under random orders of events.

use super::job::{DRAIN, GIVE_UP, YOUNG};
use super::*;
use crate::ledger::Standing;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const T0: i64 = 1_000_000;

fn rules() -> Rules {
    Rules { process: true, stop_timeout: 5000, ..Rules::default() }
}

fn now(mono: u64) -> Now {
    Now { mono, wall: T0 + mono as i64 }
}

/// Drives one policy and keeps what it ordered, in words.
struct Desk {
    policy: Policy,
    time: u64,
    said: Vec<String>,
    last_run: u64,
}

impl Desk {
    fn new(max_jobs: usize) -> Desk {
        Desk { policy: Policy::new(max_jobs, 7), time: 0, said: Vec::new(), last_run: 0 }
    }

    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.said.push(match action {
                Action::Start { id, run, .. } => {
                    self.last_run = run;
                    format!("start {id}")
                }
                Action::Term { id, .. } => format!("term {id}"),
                Action::Probe { id, .. } => format!("probe {id}"),
                Action::Kill { id, .. } => format!("kill {id}"),
                Action::Stand { id, standing } => format!("{id} is {standing:?}"),
                Action::RunOver { id, .. } => format!("over {id}"),
                Action::Report { id, outcome, sparing, alert, .. } => {
                    format!("report {id} {}", words(&Some(outcome), sparing, alert.is_some()))
                }
                Action::Finish { id, outcome, sparing, alert, .. } => {
                    format!("finish {id} {}", words(&outcome, sparing, alert.is_some()))
                }
            });
        }
    }

    fn accept(&mut self, id: &str, rules: Rules) -> u64 {
        let actions = self.policy.accept(id, rules, now(self.time));
        self.take(actions);
        self.last_run
    }

    fn event(&mut self, event: Event) {
        let actions = self.policy.handle(event, now(self.time));
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

fn words(outcome: &Option<Outcome>, sparing: bool, alert: bool) -> String {
    let mut text = match outcome {
        None => "silently".to_owned(),
        Some(Outcome::Exited { code }) => format!("exited {code}"),
        Some(Outcome::Answered) => "answered".into(),
        Some(Outcome::Unstartable { .. }) => "unstartable".into(),
        Some(Outcome::TimedOut { code }) => format!("timeout {code}"),
        Some(Outcome::Killed { code, .. }) => format!("killed {code:?}"),
        Some(Outcome::Died { .. }) => "died".into(),
    };
    if sparing {
        text.push_str(" sparing");
    }
    if alert {
        text.push_str(" alert");
    }
    text
}

#[test]
fn one_run_one_result() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", rules());
    desk.said(&["start a"]);
    desk.spawned(run);
    desk.event(Event::Exited { run, code: 3 });
    desk.said(&[]);
    desk.event(Event::Drained { run });
    desk.said(&["finish a exited 3"]);
    assert!(!desk.policy.has("a") && desk.policy.is_idle() && desk.policy.deadline().is_none());
}

#[test]
fn a_held_pipe_does_not_hold_the_result() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", rules());
    desk.spawned(run);
    desk.event(Event::Exited { run, code: 0 });
    assert_eq!(desk.policy.deadline(), Some(DRAIN));
    desk.at(DRAIN);
    desk.said(&["start a", "finish a exited 0"]);
}

#[test]
fn who_ended_by_itself_was_not_killed() {
    // The kill comes while only the end of the output is waited for.
    for (more, code, said) in [
        (Rules::default(), 0, "finish a exited 0"),
        (Rules { max_restart: 5, ..Rules::default() }, 3, "finish a exited 3"),
        (Rules { long: true, max_restart: 5, ..Rules::default() }, 3, "finish a exited 3"),
        (Rules { long: true, ..Rules::default() }, 0, "finish a exited 0"),
        (Rules { period: Some(1000), ..Rules::default() }, 0, "finish a exited 0"),
    ] {
        let mut desk = Desk::new(10);
        let run = desk.accept("a", Rules { process: true, stop_timeout: 5000, ..more });
        desk.spawned(run);
        desk.event(Event::Exited { run, code });
        desk.event(Event::Kill { id: "a".into() });
        desk.event(Event::Kill { id: "a".into() });
        desk.said(&["start a", "a is Last"]);
        desk.event(Event::Drained { run });
        desk.said(&[said]);
        assert!(!desk.policy.has("a"));
    }
}

#[test]
fn output_that_ends_before_the_process_waits_for_it() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", rules());
    desk.spawned(run);
    desk.event(Event::Drained { run });
    desk.said(&["start a"]);
    desk.event(Event::Exited { run, code: 0 });
    desk.said(&["finish a exited 0"]);
}

#[test]
fn time_is_up_escalates_and_ends_as_timeout() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", Rules { limit: Some(1000), ..rules() });
    desk.time = 10;
    desk.spawned(run);
    assert_eq!(desk.policy.deadline(), Some(1010));
    desk.at(1009);
    desk.said(&["start a"]);
    desk.at(1010);
    desk.said(&["term a"]);
    desk.at(1016);
    desk.said(&["probe a"]);
    desk.event(Event::Tree { run, alive: 1 });
    desk.at(6010);
    desk.said(&["kill a"]);
    desk.event(Event::Exited { run, code: 137 });
    desk.said(&["probe a"]);
    desk.event(Event::Tree { run, alive: 0 });
    desk.event(Event::Drained { run });
    desk.said(&["finish a timeout 137"]);
}

#[test]
fn what_ignores_term_below_a_gone_leader_is_killed() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", rules());
    desk.spawned(run);
    desk.event(Event::Kill { id: "a".into() });
    desk.said(&["start a", "a is Ending", "term a"]);
    desk.event(Event::Exited { run, code: 143 });
    desk.event(Event::Drained { run });
    desk.event(Event::Tree { run, alive: 2 });
    desk.said(&["probe a"]);
    desk.at(5000);
    desk.said(&["kill a"]);
    desk.event(Event::Tree { run, alive: 2 });
    desk.at(5010);
    desk.said(&["kill a"]);
    desk.event(Event::Tree { run, alive: 0 });
    desk.said(&["finish a killed Some(143)"]);
}

#[test]
fn what_even_kill_does_not_end_is_given_up() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", rules());
    desk.spawned(run);
    desk.event(Event::Kill { id: "a".into() });
    desk.at(5000);
    desk.said.clear();
    desk.at(5000 + GIVE_UP);
    desk.said(&["finish a killed Some(137)"]);
}

#[test]
fn restarts_come_at_once_then_later_and_then_an_alert() {
    let mut desk = Desk::new(10);
    let mut run = desk.accept("a", Rules { max_restart: 2, ..rules() });
    desk.said(&["start a"]);
    desk.spawned(run);
    desk.exit(run, 1);
    desk.said(&["over a", "start a"]);
    run = desk.last_run;
    desk.spawned(run);
    desk.exit(run, 1);
    desk.said(&["over a"]);
    let due = desk.policy.deadline().unwrap();
    assert!(due <= 400, "{due}");
    desk.at(due);
    desk.said(&["start a"]);
    run = desk.last_run;
    desk.spawned(run);
    desk.exit(run, 1);
    desk.said(&["finish a exited 1 alert"]);
}

#[test]
fn a_long_life_sets_the_count_back() {
    let mut desk = Desk::new(10);
    let mut run = desk.accept("a", Rules { max_restart: 1, ..rules() });
    for round in 0..3 {
        desk.spawned(run);
        desk.time += YOUNG + 1;
        desk.exit(run, 1);
        desk.said(if round == 0 { &["start a", "over a", "start a"] } else { &["over a", "start a"] });
        run = desk.last_run;
    }
    desk.spawned(run);
    desk.exit(run, 1);
    run = desk.last_run;
    desk.said(&["over a", "start a"]);
    desk.spawned(run);
    desk.exit(run, 1);
    desk.said(&["finish a exited 1 alert"]);
}

#[test]
fn success_needs_no_restart_and_a_timeout_does() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", Rules { max_restart: 5, ..rules() });
    desk.spawned(run);
    desk.exit(run, 0);
    desk.said(&["start a", "finish a exited 0"]);
    let run = desk.accept("b", Rules { max_restart: 5, limit: Some(10), ..rules() });
    desk.spawned(run);
    desk.at(10);
    desk.exit(run, 0);
    desk.said(&["start b", "term b", "probe b", "over b", "start b"]);
}

#[test]
fn recurrence_counts_from_the_start_and_spares_quiet_successes() {
    let mut desk = Desk::new(10);
    let mut run = desk.accept("a", Rules { period: Some(1000), ..rules() });
    desk.spawned(run);
    desk.time = 300;
    desk.exit(run, 0);
    desk.said(&["start a", "report a exited 0", "a is Scheduled"]);
    assert_eq!(desk.policy.deadline(), Some(1000));
    desk.at(1000);
    run = desk.last_run;
    desk.spawned(run);
    desk.said(&["start a"]);
    // It takes longer than its period: the next follows at once, one and not three.
    desk.time = 4500;
    desk.exit(run, 0);
    desk.said(&["report a exited 0 sparing", "a is Scheduled"]);
    desk.at(4500);
    desk.said(&["start a"]);
    run = desk.last_run;
    desk.spawned(run);
    desk.exit(run, 2);
    desk.said(&["report a exited 2", "a is Scheduled"]);
    assert_eq!(desk.policy.deadline(), Some(5500));
}

#[test]
fn kill_forgets_wherever_the_job_is() {
    // Waiting.
    let mut desk = Desk::new(1);
    let run = desk.accept("a", Rules { max_restart: 3, long: true, ..rules() });
    desk.accept("b", rules());
    desk.event(Event::Kill { id: "b".into() });
    desk.said(&["start a", "finish b killed None"]);
    // Starting.
    desk.event(Event::Kill { id: "a".into() });
    desk.said(&["finish a killed None"]);
    desk.spawned(run);
    desk.said(&[]);
    // Running: no restart follows, though it failed and is remembered.
    let run = desk.accept("c", Rules { max_restart: 3, long: true, ..rules() });
    desk.spawned(run);
    desk.event(Event::Kill { id: "c".into() });
    desk.exit(run, 143);
    desk.said(&["start c", "c is Ending", "term c", "probe c", "finish c killed Some(143)"]);
    // Between two recurrences.
    let run = desk.accept("d", Rules { period: Some(1000), ..rules() });
    desk.spawned(run);
    desk.exit(run, 0);
    desk.event(Event::Kill { id: "d".into() });
    desk.said(&["start d", "report d exited 0", "d is Scheduled", "finish d killed None"]);
    // Failed for good: its result was told.
    let run = desk.accept("e", Rules { long: true, ..rules() });
    desk.spawned(run);
    desk.exit(run, 1);
    desk.event(Event::Kill { id: "e".into() });
    desk.said(&["start e", "report e exited 1", "e is Failed", "finish e silently"]);
    // Being ended by killall.
    let run = desk.accept("f", Rules { long: true, ..rules() });
    desk.spawned(run);
    desk.event(Event::KillAll);
    desk.event(Event::Kill { id: "f".into() });
    desk.exit(run, 143);
    desk.said(&["start f", "term f", "f is Ending", "probe f", "finish f killed Some(143)"]);
}

#[test]
fn killall_starts_remembered_jobs_again_and_keeps_schedules() {
    let mut desk = Desk::new(10);
    let plain = desk.accept("plain", rules());
    let long = desk.accept("long", Rules { long: true, ..rules() });
    let recurring = desk.accept("often", Rules { period: Some(60_000), ..rules() });
    for run in [plain, long, recurring] {
        desk.spawned(run);
    }
    desk.said.clear();
    desk.event(Event::KillAll);
    desk.said(&["term plain", "term long", "term often"]);
    desk.time = 10;
    desk.exit(plain, 143);
    desk.said(&["probe plain", "finish plain killed Some(143)"]);
    desk.exit(long, 143);
    desk.said(&["probe long", "over long", "start long"]);
    desk.exit(recurring, 143);
    desk.said(&["probe often", "over often", "often is Scheduled"]);
    assert_eq!(desk.policy.deadline(), Some(60_000));
}

#[test]
fn stop_interrupts_silently_what_is_remembered() {
    let mut desk = Desk::new(3);
    let plain = desk.accept("plain", rules());
    let long = desk.accept("long", Rules { long: true, ..rules() });
    let recurring = desk.accept("often", Rules { period: Some(60_000), ..rules() });
    desk.accept("waits", rules());
    for run in [plain, long, recurring] {
        desk.spawned(run);
    }
    desk.said.clear();
    desk.event(Event::Stop);
    desk.said(&["term plain", "term long", "term often"]);
    for run in [plain, long, recurring] {
        desk.exit(run, 143);
    }
    desk.said(&[
        "probe plain",
        "finish plain killed Some(143)",
        "probe long",
        "over long",
        "probe often",
        "over often",
    ]);
    assert!(desk.policy.is_idle() && desk.policy.has("waits"));
}

#[test]
fn what_never_ran_waits_for_the_agents_return() {
    let mut desk = Desk::new(3);
    desk.accept("fetches", rules());
    let again = desk.accept("again", Rules { max_restart: 1, ..rules() });
    desk.spawned(again);
    desk.exit(again, 1);
    desk.said.clear();
    desk.event(Event::Stop);
    desk.said(&["over fetches", "fetches is Accepted", "finish again killed None"]);
    assert!(desk.policy.is_idle() && desk.policy.has("fetches"));
    desk.event(Event::Kill { id: "fetches".into() });
    desk.said(&["finish fetches killed None"]);
}

#[test]
fn unschedule_lets_the_run_end_by_itself() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", Rules { period: Some(1000), ..rules() });
    desk.spawned(run);
    desk.event(Event::Unschedule { id: "a".into() });
    desk.exit(run, 0);
    desk.said(&["start a", "a is Last", "finish a exited 0"]);
    let run = desk.accept("b", Rules { period: Some(1000), ..rules() });
    desk.spawned(run);
    desk.exit(run, 0);
    desk.event(Event::Unschedule { id: "b".into() });
    desk.said(&["start b", "report b exited 0", "b is Scheduled", "finish b silently"]);
    let run = desk.accept("c", Rules { long: true, max_restart: 9, ..rules() });
    desk.spawned(run);
    desk.event(Event::Unschedule { id: "c".into() });
    desk.exit(run, 1);
    desk.said(&["start c", "c is Last", "finish c exited 1"]);
}

#[test]
fn slots_are_given_in_order_and_tasks_need_none() {
    let mut desk = Desk::new(2);
    let a = desk.accept("a", rules());
    desk.accept("b", rules());
    desk.accept("c", rules());
    desk.accept("d", rules());
    let task = desk.accept("t", Rules { process: false, ..Rules::default() });
    desk.said(&["start a", "start b", "start t"]);
    desk.spawned(task);
    desk.event(Event::Answered { run: task });
    desk.said(&["finish t answered"]);
    desk.spawned(a);
    desk.exit(a, 0);
    desk.said(&["finish a exited 0", "start c"]);
}

#[test]
fn a_queue_runs_one_at_a_time_and_a_restart_keeps_its_turn() {
    let queue = |rules: Rules| Rules { queue: Some("q".into()), ..rules };
    let mut desk = Desk::new(10);
    let a = desk.accept("a", queue(Rules { max_restart: 1, ..rules() }));
    desk.accept("b", queue(rules()));
    desk.accept("c", queue(rules()));
    desk.said(&["start a"]);
    desk.spawned(a);
    desk.exit(a, 1);
    desk.said(&["over a", "start a"]);
    let a = desk.last_run;
    desk.event(Event::Kill { id: "b".into() });
    desk.said(&["finish b killed None"]);
    desk.spawned(a);
    desk.exit(a, 0);
    desk.said(&["finish a exited 0", "start c"]);
    let c = desk.last_run;
    desk.spawned(c);
    desk.exit(c, 0);
    desk.said(&["finish c exited 0"]);
    assert!(desk.policy.queues.is_empty());
}

#[test]
fn what_cannot_start_is_not_tried_again_at_once() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", Rules { max_restart: 5, ..rules() });
    desk.event(Event::Unstartable { run, why: "program not found".into() });
    desk.said(&["start a", "finish a unstartable"]);
    let run = desk.accept("b", Rules { period: Some(1000), ..rules() });
    desk.event(Event::Unstartable { run, why: "program not found".into() });
    desk.said(&["start b", "report b unstartable", "b is Scheduled"]);
}

#[track_caller]
fn restored(rules: Rules, standing: Standing, expected: &[&str]) {
    let mut desk = Desk::new(10);
    let memory = Memory { standing, started: T0 - 400, reported: false };
    let actions = desk.policy.restore("a", rules, memory, now(0));
    desk.take(actions);
    desk.event(Event::Tick);
    desk.said(expected);
}

#[test]
fn a_new_life_goes_on_where_the_last_one_ended() {
    let long = || Rules { long: true, ..rules() };
    let often = || Rules { period: Some(1000), ..rules() };
    restored(rules(), Standing::Accepted, &["start a"]);
    restored(rules(), Standing::Started, &["finish a died"]);
    restored(rules(), Standing::Ending, &["finish a killed None"]);
    restored(long(), Standing::Accepted, &["start a"]);
    restored(long(), Standing::Started, &["start a"]);
    restored(long(), Standing::Failed, &["start a"]);
    restored(long(), Standing::Ending, &["finish a killed None"]);
    restored(long(), Standing::Last, &["finish a died"]);
    restored(often(), Standing::Started, &["start a"]);
    restored(often(), Standing::Scheduled, &[]);
    restored(often(), Standing::Last, &["finish a died"]);
}

#[test]
fn a_clock_that_jumped_makes_no_storm_and_no_long_silence() {
    for (started, due) in [(T0 - 400, 600), (T0 - 1_000_000, 0), (T0 + 1_000_000_000, 1000)] {
        let mut policy = Policy::new(10, 1);
        let memory = Memory { standing: Standing::Scheduled, started, reported: true };
        policy.restore("a", Rules { period: Some(1000), ..rules() }, memory, now(0));
        assert_eq!(policy.deadline(), Some(due));
    }
}

/// Something that happens to the node, in the property test.
#[derive(Clone, Debug)]
enum Step {
    Accept { kind: u8, queue: u8 },
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

/// The world around the policy: processes that start, end and linger.
struct World {
    policy: Policy,
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
        let actions = self.policy.handle(event, now(self.time));
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
                Action::Term { .. } => {}
                Action::Stand { id, standing } => {
                    let seen = self.jobs.get_mut(&*id).unwrap();
                    seen.failed_for_good |= standing == Standing::Failed;
                    seen.finals += usize::from(standing == Standing::Failed);
                }
                Action::RunOver { run, .. } | Action::Report { run, .. } => self.over(run),
                Action::Finish { id, run, outcome, .. } => {
                    if let Some(run) = run {
                        self.over(run);
                    }
                    let seen = self.jobs.get_mut(&*id).unwrap();
                    assert!(!seen.gone, "{id} is finished twice");
                    seen.gone = true;
                    seen.finals += usize::from(outcome.is_some());
                    let told_before = seen.failed_for_good || seen.rules.period.is_some();
                    assert!(outcome.is_some() || told_before, "{id} ends without a result");
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
                let actions = self.policy.accept(&id, rules, now(self.time));
                self.perform(actions);
            }
            Step::Spawn { which, works } => {
                if let Some((run, id)) = World::pick(&self.starting, which) {
                    if works {
                        self.starting.remove(&run);
                        self.running.insert(run, id);
                        self.handle(Event::Spawned { run });
                    } else {
                        self.handle(Event::Unstartable { run, why: "no".into() });
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
                while let Some(due) = self.policy.deadline().filter(|due| *due <= until) {
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
            policy: Policy::new(SLOTS, 3),
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
            world.handle(Event::Unstartable { run, why: "the end".into() });
        }
        world.step(Step::Pass { millis: 60_000 });
        prop_assert!(world.policy.is_idle() && world.running.is_empty());
        prop_assert!(world.policy.jobs.is_empty() && world.policy.ids.is_empty() && world.policy.ready.is_empty());
        prop_assert!(world.policy.queues.is_empty() && world.policy.timers.is_empty());
        prop_assert_eq!(world.policy.slots_taken, 0);
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
