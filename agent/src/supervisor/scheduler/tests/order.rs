//! Who starts when: slots and queues.

use super::*;

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
