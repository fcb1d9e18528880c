//! A run from its start to its result, when nobody interferes.

use super::super::job::DRAIN;
use super::*;

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
fn what_cannot_start_is_not_tried_again_at_once() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", Rules { max_restart: 5, ..rules() });
    desk.event(Event::Unstartable { run, code: 127, why: "program not found".into() });
    desk.said(&["start a", "finish a unstartable"]);
    let run = desk.accept("b", Rules { period: Some(1000), ..rules() });
    desk.event(Event::Unstartable { run, code: 127, why: "program not found".into() });
    desk.said(&["start b", "report b unstartable", "b is Scheduled"]);
}
