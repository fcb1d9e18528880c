//! Tests the order of starts: slots and queues.

use super::*;

#[test]
fn slots_are_given_in_order_and_tasks_need_none() {
    let mut sim = Simulation::new(2);
    let a = sim.accept("a", rules());
    sim.accept("b", rules());
    sim.accept("c", rules());
    sim.accept("d", rules());
    let task = sim.accept("t", Rules { process: false, ..Rules::default() });
    sim.said(&["start a", "start b", "start t"]);
    sim.spawned(task);
    sim.event(Event::Answered { run: task });
    sim.said(&["finish t answered"]);
    sim.spawned(a);
    sim.exit(a, 0);
    sim.said(&["finish a exited 0", "start c"]);
}

#[test]
fn a_queue_runs_one_at_a_time_and_a_restart_keeps_its_turn() {
    let queue = |rules: Rules| Rules { queue: Some("q".into()), ..rules };
    let mut sim = Simulation::new(10);
    let a = sim.accept("a", queue(Rules { max_restart: 1, ..rules() }));
    sim.accept("b", queue(rules()));
    sim.accept("c", queue(rules()));
    sim.said(&["start a"]);
    sim.spawned(a);
    sim.exit(a, 1);
    sim.said(&["over a", "start a"]);
    let a = sim.last_run;
    sim.event(Event::Kill { id: "b".into() });
    sim.said(&["finish b killed None"]);
    sim.spawned(a);
    sim.exit(a, 0);
    sim.said(&["finish a exited 0", "start c"]);
    let c = sim.last_run;
    sim.spawned(c);
    sim.exit(c, 0);
    sim.said(&["finish c exited 0"]);
    assert!(sim.scheduler.queues.is_empty());
}
