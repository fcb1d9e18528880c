//! Tests the scheduler after a run: restarts, their limit, recurrence.

use super::*;
use crate::supervisor::transitions::YOUNG;

#[test]
fn restarts_come_at_once_then_later_and_then_an_alert() {
    let mut sim = Simulation::new(10);
    let mut run = sim.accept("a", Rules { max_restart: 2, ..rules() });
    sim.said(&["start a"]);
    sim.spawned(run);
    sim.exit(run, 1);
    sim.said(&["over a", "start a"]);
    run = sim.last_run;
    sim.spawned(run);
    sim.exit(run, 1);
    sim.said(&["over a"]);
    let due = sim.scheduler.deadline().unwrap();
    assert!(due <= 400, "{due}");
    sim.at(due);
    sim.said(&["start a"]);
    run = sim.last_run;
    sim.spawned(run);
    sim.exit(run, 1);
    sim.said(&["finish a exited 1 alert"]);
}

#[test]
fn a_long_life_sets_the_count_back() {
    let mut sim = Simulation::new(10);
    let mut run = sim.accept("a", Rules { max_restart: 1, ..rules() });
    for round in 0..3 {
        sim.spawned(run);
        sim.time += YOUNG + 1;
        sim.exit(run, 1);
        sim.said(if round == 0 { &["start a", "over a", "start a"] } else { &["over a", "start a"] });
        run = sim.last_run;
    }
    sim.spawned(run);
    sim.exit(run, 1);
    run = sim.last_run;
    sim.said(&["over a", "start a"]);
    sim.spawned(run);
    sim.exit(run, 1);
    sim.said(&["finish a exited 1 alert"]);
}

#[test]
fn success_needs_no_restart_and_a_timeout_does() {
    let mut sim = Simulation::new(10);
    let run = sim.accept("a", Rules { max_restart: 5, ..rules() });
    sim.spawned(run);
    sim.exit(run, 0);
    sim.said(&["start a", "finish a exited 0"]);
    let run = sim.accept("b", Rules { max_restart: 5, limit: Some(10), ..rules() });
    sim.spawned(run);
    sim.at(10);
    sim.exit(run, 0);
    sim.said(&["start b", "term b", "probe b", "over b", "start b"]);
}

#[test]
fn recurrence_counts_from_the_start_and_spares_quiet_successes() {
    let mut sim = Simulation::new(10);
    let mut run = sim.accept("a", Rules { period: Some(1000), ..rules() });
    sim.spawned(run);
    sim.time = 300;
    sim.exit(run, 0);
    sim.said(&["start a", "report a exited 0", "a is Scheduled"]);
    assert_eq!(sim.scheduler.deadline(), Some(1000));
    sim.at(1000);
    run = sim.last_run;
    sim.spawned(run);
    sim.said(&["start a"]);
    // It takes longer than its period: the next follows at once, one and not three.
    sim.time = 4500;
    sim.exit(run, 0);
    sim.said(&["report a exited 0 quiet if ok", "a is Scheduled"]);
    sim.at(4500);
    sim.said(&["start a"]);
    run = sim.last_run;
    sim.spawned(run);
    sim.exit(run, 2);
    sim.said(&["report a exited 2", "a is Scheduled"]);
    assert_eq!(sim.scheduler.deadline(), Some(5500));
}
