//! Ending a run: time, `kill`, `killall`, `unschedule`, the agent's stop.

use super::*;
use crate::supervisor::transitions::{GIVE_UP, LAUNCH};

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
    desk.said(&["start a", "a is Killing", "term a"]);
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
    desk.said(&["start c", "c is Killing", "term c", "probe c", "finish c killed Some(143)"]);
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
    desk.said(&["start f", "term f", "f is Killing", "probe f", "finish f killed Some(143)"]);
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
    desk.said(&["start a", "a is FinalRun", "finish a exited 0"]);
    let run = desk.accept("b", Rules { period: Some(1000), ..rules() });
    desk.spawned(run);
    desk.exit(run, 0);
    desk.event(Event::Unschedule { id: "b".into() });
    desk.said(&["start b", "report b exited 0", "b is Scheduled", "finish b silently"]);
    let run = desk.accept("c", Rules { long: true, max_restart: 9, ..rules() });
    desk.spawned(run);
    desk.event(Event::Unschedule { id: "c".into() });
    desk.exit(run, 1);
    desk.said(&["start c", "c is FinalRun", "finish c exited 1"]);
}

#[test]
fn drain_time_does_not_pass_while_readers_wait_for_the_logger() {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", rules());
    desk.spawned(run);
    desk.event(Event::Exited { run, code: 0 });
    let due = desk.policy.deadline().unwrap();
    assert!(desk.policy.drain_ends(now(due - 1)).is_empty());
    assert_eq!(desk.policy.drain_ends(now(due)), [run]);
    // All of the time was spent waiting.
    desk.time = due;
    desk.event(Event::Stalled { run, millis: due });
    desk.at(due + 1);
    desk.said(&["start a"]);
    assert_eq!(desk.policy.deadline(), Some(2 * due));
    desk.at(2 * due);
    desk.said(&["finish a exited 0"]);
    // It says nothing about a run that is over or still at work.
    let other = desk.accept("b", rules());
    desk.spawned(other);
    desk.event(Event::Stalled { run: other, millis: 1000 });
    desk.event(Event::Stalled { run, millis: 1000 });
    assert_eq!(desk.policy.deadline(), None);
}

/// A run whose process is being started.
fn launching(rules: Rules) -> (Desk, u64) {
    let mut desk = Desk::new(10);
    let run = desk.accept("a", rules);
    desk.event(Event::Launching { run });
    desk.said(&["start a"]);
    (desk, run)
}

#[test]
fn start_that_is_under_way_is_ended_once_it_is_over() {
    for (event, said) in [
        (Event::Kill { id: "a".into() }, vec!["a is Killing", "term a"]),
        (Event::KillAll, vec!["term a"]),
        (Event::Stop, vec!["term a"]),
    ] {
        let (mut desk, run) = launching(rules());
        desk.event(event);
        // The same news once more takes nothing back.
        desk.event(Event::Launching { run });
        desk.spawned(run);
        desk.said(&said);
        desk.exit(run, 143);
        desk.said(&["probe a", "finish a killed Some(143)"]);
    }
}

#[test]
fn start_that_hangs_is_given_up_when_its_job_is_to_end() {
    for (event, rules, said) in [
        (Event::Kill { id: "a".into() }, rules(), vec!["a is Killing", "abort a", "finish a killed None"]),
        (
            Event::Kill { id: "a".into() },
            Rules { long: true, ..rules() },
            vec!["a is Killing", "abort a", "finish a killed None"],
        ),
        (Event::Stop, rules(), vec!["abort a", "finish a killed None"]),
        (Event::Stop, Rules { long: true, ..rules() }, vec!["abort a", "over a"]),
    ] {
        let (mut desk, run) = launching(rules);
        desk.event(event);
        desk.at(LAUNCH);
        desk.said(&said);
        assert!(desk.policy.is_idle());
        desk.spawned(run);
        desk.said(&[]);
    }
    let (mut desk, _) = launching(Rules { limit: Some(2000), ..rules() });
    desk.at(2000);
    desk.said(&[]);
    desk.at(2000 + LAUNCH);
    desk.said(&["abort a", "finish a timeout 137"]);
}
