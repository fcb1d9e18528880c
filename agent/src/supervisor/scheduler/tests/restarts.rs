//! What follows a run: restarts, their limit, recurrence.

use super::*;
use crate::supervisor::transitions::YOUNG;

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
    desk.said(&["report a exited 0 quiet if ok", "a is Scheduled"]);
    desk.at(4500);
    desk.said(&["start a"]);
    run = desk.last_run;
    desk.spawned(run);
    desk.exit(run, 2);
    desk.said(&["report a exited 2", "a is Scheduled"]);
    assert_eq!(desk.policy.deadline(), Some(5500));
}
