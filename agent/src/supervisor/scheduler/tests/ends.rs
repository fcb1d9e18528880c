//! Ending a run: time, `kill`, `killall`, `unschedule`, the agent's stop.

use super::*;
use crate::supervisor::transitions::{GIVE_UP, LAUNCH};

#[test]
fn time_is_up_escalates_and_ends_as_timeout() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", Rules { limit: Some(1000), ..rules() });
    sim.time = 10;
    sim.spawned(run);
    assert_eq!(sim.scheduler.deadline(), Some(1010));
    sim.at(1009);
    sim.said(&["start a"]);
    sim.at(1010);
    sim.said(&["term a"]);
    sim.at(1016);
    sim.said(&["probe a"]);
    sim.event(Event::Tree { run, alive: 1 });
    sim.at(6010);
    sim.said(&["kill a"]);
    sim.event(Event::Exited { run, code: 137 });
    sim.said(&["probe a"]);
    sim.event(Event::Tree { run, alive: 0 });
    sim.event(Event::Drained { run });
    sim.said(&["finish a timeout 137"]);
}

#[test]
fn descendant_that_ignores_term_is_killed_after_its_leader() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", rules());
    sim.spawned(run);
    sim.event(Event::Kill { id: "a".into() });
    sim.said(&["start a", "a is Killing", "term a"]);
    sim.event(Event::Exited { run, code: 143 });
    sim.event(Event::Drained { run });
    sim.event(Event::Tree { run, alive: 2 });
    sim.said(&["probe a"]);
    sim.at(5000);
    sim.said(&["kill a"]);
    sim.event(Event::Tree { run, alive: 2 });
    sim.at(5010);
    sim.said(&["kill a"]);
    sim.event(Event::Tree { run, alive: 0 });
    sim.said(&["finish a killed Some(143)"]);
}

#[test]
fn process_that_survives_kill_is_given_up() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", rules());
    sim.spawned(run);
    sim.event(Event::Kill { id: "a".into() });
    sim.at(5000);
    sim.said.clear();
    sim.at(5000 + GIVE_UP);
    sim.said(&["finish a killed Some(137)"]);
}

#[test]
fn kill_forgets_wherever_the_job_is() {
    // Waiting.
    let mut sim = Simulation::new(1);
    let run = sim.accept("a", Rules { max_restart: 3, long: true, ..rules() });
    sim.accept("b", rules());
    sim.event(Event::Kill { id: "b".into() });
    sim.said(&["start a", "finish b killed None"]);
    // Starting.
    sim.event(Event::Kill { id: "a".into() });
    sim.said(&["finish a killed None"]);
    sim.spawned(run);
    sim.said(&[]);
    // Running: no restart follows, though it failed and is remembered.
    let run = sim.accept("c", Rules { max_restart: 3, long: true, ..rules() });
    sim.spawned(run);
    sim.event(Event::Kill { id: "c".into() });
    sim.exit(run, 143);
    sim.said(&["start c", "c is Killing", "term c", "probe c", "finish c killed Some(143)"]);
    // Between two recurrences.
    let run = sim.accept("d", Rules { period: Some(1000), ..rules() });
    sim.spawned(run);
    sim.exit(run, 0);
    sim.event(Event::Kill { id: "d".into() });
    sim.said(&["start d", "report d exited 0", "d is Scheduled", "finish d killed None"]);
    // Failed for good: its result was told.
    let run = sim.accept("e", Rules { long: true, ..rules() });
    sim.spawned(run);
    sim.exit(run, 1);
    sim.event(Event::Kill { id: "e".into() });
    sim.said(&["start e", "report e exited 1", "e is Failed", "finish e silently"]);
    // Being ended by killall.
    let run = sim.accept("f", Rules { long: true, ..rules() });
    sim.spawned(run);
    sim.event(Event::KillAll);
    sim.event(Event::Kill { id: "f".into() });
    sim.exit(run, 143);
    sim.said(&["start f", "term f", "f is Killing", "probe f", "finish f killed Some(143)"]);
}

#[test]
fn killall_starts_remembered_jobs_again_and_keeps_schedules() {
    let mut sim = Simulation::new(10);
    let plain = sim.accept("plain", rules());
    let long = sim.accept("long", Rules { long: true, ..rules() });
    let recurring = sim.accept("often", Rules { period: Some(60_000), ..rules() });
    for run in [plain, long, recurring] {
        sim.spawned(run);
    }
    sim.said.clear();
    sim.event(Event::KillAll);
    sim.said(&["term plain", "term long", "term often"]);
    sim.time = 10;
    sim.exit(plain, 143);
    sim.said(&["probe plain", "finish plain killed Some(143)"]);
    sim.exit(long, 143);
    sim.said(&["probe long", "over long", "start long"]);
    sim.exit(recurring, 143);
    sim.said(&["probe often", "over often", "often is Scheduled"]);
    assert_eq!(sim.scheduler.deadline(), Some(60_000));
}

#[test]
fn stop_interrupts_silently_what_is_remembered() {
    let mut sim = Simulation::new(3);
    let plain = sim.accept("plain", rules());
    let long = sim.accept("long", Rules { long: true, ..rules() });
    let recurring = sim.accept("often", Rules { period: Some(60_000), ..rules() });
    sim.accept("waits", rules());
    for run in [plain, long, recurring] {
        sim.spawned(run);
    }
    sim.said.clear();
    sim.event(Event::Stop);
    sim.said(&["term plain", "term long", "term often"]);
    for run in [plain, long, recurring] {
        sim.exit(run, 143);
    }
    sim.said(&["probe plain", "finish plain killed Some(143)", "probe long", "over long", "probe often", "over often"]);
    assert!(sim.scheduler.is_idle() && sim.scheduler.has("waits"));
}

#[test]
fn job_that_never_ran_stays_accepted_at_a_stop() {
    let mut sim = Simulation::new(3);
    sim.accept("fetches", rules());
    let again = sim.accept("again", Rules { max_restart: 1, ..rules() });
    sim.spawned(again);
    sim.exit(again, 1);
    sim.said.clear();
    sim.event(Event::Stop);
    sim.said(&["over fetches", "fetches is Accepted", "finish again killed None"]);
    assert!(sim.scheduler.is_idle() && sim.scheduler.has("fetches"));
    sim.event(Event::Kill { id: "fetches".into() });
    sim.said(&["finish fetches killed None"]);
}

#[test]
fn unschedule_lets_the_run_end_by_itself() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", Rules { period: Some(1000), ..rules() });
    sim.spawned(run);
    sim.event(Event::Unschedule { id: "a".into() });
    sim.exit(run, 0);
    sim.said(&["start a", "a is FinalRun", "finish a exited 0"]);
    let run = sim.accept("b", Rules { period: Some(1000), ..rules() });
    sim.spawned(run);
    sim.exit(run, 0);
    sim.event(Event::Unschedule { id: "b".into() });
    sim.said(&["start b", "report b exited 0", "b is Scheduled", "finish b silently"]);
    let run = sim.accept("c", Rules { long: true, max_restart: 9, ..rules() });
    sim.spawned(run);
    sim.event(Event::Unschedule { id: "c".into() });
    sim.exit(run, 1);
    sim.said(&["start c", "c is FinalRun", "finish c exited 1"]);
}

#[test]
fn drain_time_does_not_pass_while_readers_wait_for_the_logger() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", rules());
    sim.spawned(run);
    sim.event(Event::Exited { run, code: 0 });
    let due = sim.scheduler.deadline().unwrap();
    assert!(sim.scheduler.drain_ends(now(due - 1)).is_empty());
    assert_eq!(sim.scheduler.drain_ends(now(due)), [run]);
    // All of the time was spent waiting.
    sim.time = due;
    sim.event(Event::Stalled { run, millis: due });
    sim.at(due + 1);
    sim.said(&["start a"]);
    assert_eq!(sim.scheduler.deadline(), Some(2 * due));
    sim.at(2 * due);
    sim.said(&["finish a exited 0"]);
    // It says nothing about a run that is over or still at work.
    let other = sim.accept("b", rules());
    sim.spawned(other);
    sim.event(Event::Stalled { run: other, millis: 1000 });
    sim.event(Event::Stalled { run, millis: 1000 });
    assert_eq!(sim.scheduler.deadline(), None);
}

/// A run whose process is being started.
fn launching(rules: Rules) -> (Simulation, u64) {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", rules);
    sim.event(Event::Launching { run });
    sim.said(&["start a"]);
    (sim, run)
}

#[test]
fn start_that_is_under_way_is_ended_once_it_is_over() {
    for (event, said) in [
        (Event::Kill { id: "a".into() }, vec!["a is Killing", "term a"]),
        (Event::KillAll, vec!["term a"]),
        (Event::Stop, vec!["term a"]),
    ] {
        let (mut sim, run) = launching(rules());
        sim.event(event);
        // The same news once more takes nothing back.
        sim.event(Event::Launching { run });
        sim.spawned(run);
        sim.said(&said);
        sim.exit(run, 143);
        sim.said(&["probe a", "finish a killed Some(143)"]);
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
        let (mut sim, run) = launching(rules);
        sim.event(event);
        sim.at(LAUNCH);
        sim.said(&said);
        assert!(sim.scheduler.is_idle());
        sim.spawned(run);
        sim.said(&[]);
    }
    let (mut sim, _) = launching(Rules { limit: Some(2000), ..rules() });
    sim.at(2000);
    sim.said(&[]);
    sim.at(2000 + LAUNCH);
    sim.said(&["abort a", "finish a timeout 137"]);
}
