//! A run from its start to its result, when nobody interferes.

use super::*;
use crate::supervisor::transitions::DRAIN;

#[test]
fn one_run_one_result() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", rules());
    sim.said(&["start a"]);
    sim.spawned(run);
    sim.event(Event::Exited { run, code: 3 });
    sim.said(&[]);
    sim.event(Event::Drained { run });
    sim.said(&["finish a exited 3"]);
    assert!(!sim.scheduler.has("a") && sim.scheduler.is_idle() && sim.scheduler.deadline().is_none());
}

#[test]
fn a_held_pipe_does_not_hold_the_result() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", rules());
    sim.spawned(run);
    sim.event(Event::Exited { run, code: 0 });
    assert_eq!(sim.scheduler.deadline(), Some(DRAIN));
    sim.at(DRAIN);
    sim.said(&["start a", "finish a exited 0"]);
}

#[test]
fn job_that_ended_by_itself_is_not_killed() {
    // The kill comes while only the end of the output is waited for.
    for (more, code, said) in [
        (Rules::default(), 0, "finish a exited 0"),
        (Rules { max_restart: 5, ..Rules::default() }, 3, "finish a exited 3"),
        (Rules { long: true, max_restart: 5, ..Rules::default() }, 3, "finish a exited 3"),
        (Rules { long: true, ..Rules::default() }, 0, "finish a exited 0"),
        (Rules { period: Some(1000), ..Rules::default() }, 0, "finish a exited 0"),
    ] {
        let mut sim = Simulation::new(10);
        let run = sim.accept("a", Rules { process: true, stop_timeout: 5000, ..more });
        sim.spawned(run);
        sim.event(Event::Exited { run, code });
        sim.event(Event::Kill { id: "a".into() });
        sim.event(Event::Kill { id: "a".into() });
        sim.said(&["start a", "a is FinalRun"]);
        sim.event(Event::Drained { run });
        sim.said(&[said]);
        assert!(!sim.scheduler.has("a"));
    }
}

#[test]
fn output_that_ends_before_the_process_waits_for_it() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", rules());
    sim.spawned(run);
    sim.event(Event::Drained { run });
    sim.said(&["start a"]);
    sim.event(Event::Exited { run, code: 0 });
    sim.said(&["finish a exited 0"]);
}

#[test]
fn unstartable_job_is_not_tried_again_at_once() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", Rules { max_restart: 5, ..rules() });
    sim.event(Event::Unstartable { run, code: 127, why: "program not found".into() });
    sim.said(&["start a", "finish a unstartable"]);
    let run = sim.accept("b", Rules { period: Some(1000), ..rules() });
    sim.event(Event::Unstartable { run, code: 127, why: "program not found".into() });
    sim.said(&["start b", "report b unstartable", "b is Scheduled"]);
}

#[test]
fn recurring_job_tells_when_it_runs_next_and_how_it_ended() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", Rules { period: Some(60_000), ..rules() });
    sim.accept("b", rules());
    let told = |sim: &Simulation| {
        let mut found = sim.scheduler.recurring(now(sim.time));
        assert_eq!(found.len(), 1, "only what recurs");
        let it = found.remove(0);
        assert_eq!((&*it.id, it.period), ("a", 60_000));
        (it.next, it.last_start, it.last_state)
    };
    sim.spawned(run);
    assert_eq!(told(&sim), (None, Some(T0), None));
    sim.time = 5_000;
    sim.exit(run, 3);
    assert_eq!(told(&sim), (Some(T0 + 60_000), Some(T0), Some(State::Error)));
    sim.time = 20_000;
    assert_eq!(told(&sim).0, Some(T0 + 60_000), "time passes");
    sim.at(60_000);
    let run = sim.last_run;
    sim.spawned(run);
    sim.exit(run, 0);
    assert_eq!(told(&sim), (Some(T0 + 120_000), Some(T0 + 60_000), Some(State::Ok)));
    sim.at(120_000);
    sim.spawned(sim.last_run);
    sim.event(Event::Unschedule { id: "a".into() });
    assert_eq!(sim.scheduler.recurring(now(sim.time)), [], "no run follows the one under way");
    // After a restart of the agent.
    let memory = PersistedJob { state: JobState::Scheduled, started: T0 - 10_000, reported: true };
    let mut sim = Simulation::new(10);
    let actions = sim.scheduler.restore("a", Rules { period: Some(60_000), ..rules() }, memory, now(0));
    sim.take(actions);
    assert_eq!(told(&sim), (Some(T0 + 50_000), Some(T0 - 10_000), None));
    sim.event(Event::Unschedule { id: "a".into() });
    assert_eq!(sim.scheduler.recurring(now(0)), []);
}
