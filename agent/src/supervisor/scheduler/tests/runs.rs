//! A run from its start to its result, when nobody interferes.

use super::*;
use crate::supervisor::transitions::DRAIN;

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
        desk.said(&["start a", "a is FinalRun"]);
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

#[test]
fn recurring_job_tells_when_it_runs_next_and_how_it_ended() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", Rules { period: Some(60_000), ..rules() });
    desk.accept("b", rules());
    let told = |desk: &Desk| {
        let mut found = desk.policy.recurring(now(desk.time));
        assert_eq!(found.len(), 1, "only what recurs");
        let it = found.remove(0);
        assert_eq!((&*it.id, it.period), ("a", 60_000));
        (it.next, it.last_start, it.last_state)
    };
    desk.spawned(run);
    assert_eq!(told(&desk), (None, Some(T0), None));
    desk.time = 5_000;
    desk.exit(run, 3);
    assert_eq!(told(&desk), (Some(T0 + 60_000), Some(T0), Some(State::Error)));
    desk.time = 20_000;
    assert_eq!(told(&desk).0, Some(T0 + 60_000), "time passes");
    desk.at(60_000);
    let run = desk.last_run;
    desk.spawned(run);
    desk.exit(run, 0);
    assert_eq!(told(&desk), (Some(T0 + 120_000), Some(T0 + 60_000), Some(State::Ok)));
    desk.at(120_000);
    desk.spawned(desk.last_run);
    desk.event(Event::Unschedule { id: "a".into() });
    assert_eq!(desk.policy.recurring(now(desk.time)), [], "no run follows the one under way");
    // After a restart of the agent.
    let memory = Memory { standing: JobState::Scheduled, started: T0 - 10_000, reported: true };
    let mut desk = Desk::new(10);
    let actions = desk.policy.restore("a", Rules { period: Some(60_000), ..rules() }, memory, now(0));
    desk.take(actions);
    assert_eq!(told(&desk), (Some(T0 + 50_000), Some(T0 - 10_000), None));
    desk.event(Event::Unschedule { id: "a".into() });
    assert_eq!(desk.policy.recurring(now(0)), []);
}
