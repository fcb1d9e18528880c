//! Jobs that the job store remembers.

use super::*;
use crate::job::JobState;

#[track_caller]
fn restored(rules: Rules, standing: JobState, expected: &[&str]) {
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
    restored(rules(), JobState::Accepted, &["start a"]);
    restored(rules(), JobState::Started, &["finish a died"]);
    restored(rules(), JobState::Killing, &["finish a killed None"]);
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
fn a_clock_that_jumped_makes_no_storm_and_no_long_silence() {
    for (started, due) in [(T0 - 400, 600), (T0 - 1_000_000, 0), (T0 + 1_000_000_000, 1000)] {
        let mut policy = Scheduler::new(10, 1);
        let memory = Memory { standing: JobState::Scheduled, started, reported: true };
        policy.restore("a", Rules { period: Some(1000), ..rules() }, memory, now(0));
        assert_eq!(policy.deadline(), Some(due));
    }
}

#[test]
fn job_whose_processes_live_waits_for_their_end_and_keeps_its_queue() {
    let queued = || Rules { queue: Some("q".into()), ..rules() };
    let held = |rules: Rules| {
        let mut desk = Desk::new(10);
        desk.policy.hold("a", rules, Memory { standing: JobState::Started, started: T0 - 400, reported: false });
        desk.accept("b", queued());
        desk.accept("c", super::rules());
        desk.said(&["start c"]);
        assert_eq!(desk.policy.place_of("a").map(|(place, _)| place), Some(Place::Stopping));
        desk
    };
    let cleared = || Event::Cleared { id: "a".into() };
    let mut desk = held(queued());
    desk.event(cleared());
    desk.said(&["finish a died", "start b"]);
    let mut desk = held(Rules { long: true, ..queued() });
    desk.event(cleared());
    desk.said(&["start a"]);
    let mut desk = held(Rules { long: true, ..queued() });
    desk.event(Event::Kill { id: "a".into() });
    desk.said(&["a is Killing"]);
    desk.event(cleared());
    desk.said(&["finish a killed None", "start b"]);
    let mut desk = held(Rules { long: true, ..queued() });
    desk.event(Event::Unschedule { id: "a".into() });
    desk.event(cleared());
    desk.said(&["a is FinalRun", "finish a died", "start b"]);
}
