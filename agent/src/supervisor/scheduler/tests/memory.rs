//! Jobs that the job store remembers.

use super::*;
use crate::job::JobState;

#[track_caller]
fn restored(rules: Rules, state: JobState, expected: &[&str]) {
    let mut sim = Simulation::new(10);
    let memory = PersistedJob { state, started: T0 - 400, reported: false };
    let actions = sim.scheduler.restore("a", rules, memory, now(0));
    sim.take(actions);
    sim.event(Event::Tick);
    sim.said(expected);
}

#[test]
fn a_new_life_goes_on_where_the_last_one_ended() {
    let long = || Rules { long: true, ..rules() };
    let often = || Rules { period: Some(1000), ..rules() };
    restored(rules(), JobState::Accepted, &["start a"]);
    restored(rules(), JobState::Started, &["finish a died"]);
    restored(rules(), JobState::Killing, &["finish a killed None"]);
    let task = |goes_on| Rules { goes_on, ..Rules::default() };
    restored(task(false), JobState::Started, &["finish a died"]);
    restored(task(true), JobState::Started, &["start a"]);
    restored(task(true), JobState::Killing, &["finish a killed None"]);
    restored(long(), JobState::Accepted, &["start a"]);
    restored(long(), JobState::Started, &["start a"]);
    restored(long(), JobState::Failed, &["start a"]);
    restored(long(), JobState::Killing, &["finish a killed None"]);
    restored(long(), JobState::FinalRun, &["finish a died"]);
    restored(often(), JobState::Started, &["start a"]);
    restored(often(), JobState::Scheduled, &[]);
    restored(often(), JobState::FinalRun, &["finish a died"]);
}

#[test]
fn stop_leaves_a_task_that_goes_on_as_it_is() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("t", Rules { goes_on: true, ..Rules::default() });
    sim.event(Event::Spawned { run });
    sim.said(&["start t"]);
    sim.event(Event::Stop);
    sim.event(Event::Answered { run });
    sim.event(Event::Tick);
    sim.said(&["over t"]);
}

#[test]
fn a_clock_that_jumped_makes_no_storm_and_no_long_silence() {
    for (started, due) in [(T0 - 400, 600), (T0 - 1_000_000, 0), (T0 + 1_000_000_000, 1000)] {
        let mut scheduler = Scheduler::new(10, 1);
        let memory = PersistedJob { state: JobState::Scheduled, started, reported: true };
        scheduler.restore("a", Rules { period: Some(1000), ..rules() }, memory, now(0));
        assert_eq!(scheduler.deadline(), Some(due));
    }
}

#[test]
fn job_whose_processes_live_waits_for_their_end_and_keeps_its_queue() {
    let queued = || Rules { queue: Some("q".into()), ..rules() };
    let held = |rules: Rules| {
        let mut sim = Simulation::new(10);
        sim.scheduler.hold("a", rules, PersistedJob { state: JobState::Started, started: T0 - 400, reported: false });
        sim.accept("b", queued());
        sim.accept("c", super::rules());
        sim.said(&["start c"]);
        assert_eq!(sim.scheduler.place_of("a").map(|(place, _)| place), Some(Place::Stopping));
        sim
    };
    let cleared = || Event::Cleared { id: "a".into() };
    let mut sim = held(queued());
    sim.event(cleared());
    sim.said(&["finish a died", "start b"]);
    let mut sim = held(Rules { long: true, ..queued() });
    sim.event(cleared());
    sim.said(&["start a"]);
    let mut sim = held(Rules { long: true, ..queued() });
    sim.event(Event::Kill { id: "a".into() });
    sim.said(&["a is Killing"]);
    sim.event(cleared());
    sim.said(&["finish a killed None", "start b"]);
    let mut sim = held(Rules { long: true, ..queued() });
    sim.event(Event::Unschedule { id: "a".into() });
    sim.event(cleared());
    sim.said(&["a is FinalRun", "finish a died", "start b"]);
}
