//! Many jobs: queues, `max_jobs`, floods of output.

use super::*;

#[test]
fn a_queue_keeps_its_order_and_max_jobs_its_bound() {
    let node = Node::new();
    let life = node.live_with(|config| config.main.max_jobs = 3);
    let out = node.path("out").display().to_string();
    let jobs: Vec<Value> = (0..6)
        .map(|n| {
            let script = format!("echo start{n} >> {out}; sleep 0.05; echo end{n} >> {out}");
            json!({"id": format!("q{n}"), "cmd": "execute", "args": {"cmd": "sh", "args": ["-c", script], "queue": "q"}})
        })
        .collect();
    life.push(Value::Array(jobs));
    (0..6).for_each(|n| assert_eq!(life.result(&format!("q{n}")).state, State::Ok));
    let expected: String = (0..6).map(|n| format!("start{n}\nend{n}\n")).collect();
    assert_eq!(node.read("out"), expected);

    let jobs: Vec<Value> =
        (0..5).map(|n| json!({"id": format!("m{n}"), "cmd": "execute", "args": {"cmd": "sleep 1000"}})).collect();
    life.push(Value::Array(jobs));
    until("three jobs to run", || (life.remote().processes().len() == 3).then_some(()));
    assert_eq!(life.remote().process("m4").unwrap().state, "QUEUED");
    // Built-in commands are not held up, and what waits can be killed.
    assert_eq!(life.ask("k", "kill", json!({"id": "m4"})).state, State::Ok);
    assert_eq!(life.result("m4").state, State::Killed);
    let answer = life.ask("s", "get_processes_stats", json!(""));
    assert_eq!(serde_json::from_str::<Value>(&answer.data).unwrap().as_array().unwrap().len(), 3);
    assert_eq!(life.ask("ka", "killall", json!("")).state, State::Ok);
    for id in ["m0", "m1", "m2"] {
        assert_eq!(life.result(id).state, State::Killed, "{id}");
    }
    life.wait_running("m3");
}

#[test]
fn so_many_jobs_wait_and_no_more() {
    let node = Node::new();
    let life = node.live_with(|config| config.main.max_jobs = 1);
    let many: Vec<Value> =
        (0..300).map(|n| json!({"id": format!("w{n}"), "cmd": "execute", "args": {"cmd": "sleep 1000"}})).collect();
    life.push(Value::Array(many));
    life.shell("more", "true", json!({}));
    let refused = life.result("more");
    assert_eq!(refused.state, State::Error);
    assert!(refused.data.contains("300 jobs run or wait"), "{}", refused.data);
    // Commands that look at jobs or end them always have room, and ending one makes room.
    assert_eq!(life.ask("p", "ping", json!({})).state, State::Ok);
    assert_eq!(life.ask("k", "kill", json!({"id": "w200"})).state, State::Ok);
    life.shell("now", "true", json!({}));
    assert_eq!(life.ask("s", "get_process_stats", json!({"id": "now"})).state, State::Ok);
}

#[test]
fn a_flood_of_output_delays_nobody() {
    let node = Node::new();
    let life = node.live();
    life.shell("flood", "exec yes 0123456789", json!({}));
    life.wait_running("flood");
    life.shell("other", "true", json!({}));
    life.result("other");
    life.ask("k", "kill", json!({"id": "flood"}));
    assert_eq!(life.result("flood").state, State::Killed);
}

/// A writer that waits because nothing that it writes is taken.
fn is_stuck(pid: u32) -> bool {
    let written = || std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let before = written();
    std::thread::sleep(Duration::from_millis(50));
    !before.is_empty() && written() == before
}

#[test]
fn output_that_nobody_takes_delays_no_start_no_result_and_no_kill() {
    let node = Node::new();
    let life = node.live();
    // The message log waits for this lock, its inbox fills up, and so do the pipes.
    let lock = rusqlite::Connection::open(node.path("data/logs/current.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let floods = ["f1", "f2"].map(|name| {
        life.shell(name, "exec yes 0123456789", json!({"stats_interval": 1}));
        let pid = life.wait_running(name).pid;
        until("the flood to stand still", || is_stuck(pid).then_some(()));
        pid
    });
    life.shell("fails", "echo 9::alarm; exit 3", json!({"max_restart": 1, "domain": "d"}));
    assert_eq!((life.result("fails").code), 3);
    assert_eq!(life.event("critical")["id"], "fails");
    life.shell("kept", "exec sleep 1000", json!({}));
    assert_eq!(life.wait_running("kept").state, "RUNNING");
    // The message log still waits for the lock: the above happened before it took output again.
    assert!(floods.iter().all(|&pid| is_stuck(pid)));
    for id in ["kept", "f1", "f2"] {
        assert_eq!(life.ask(&format!("k-{id}"), "kill", json!({"id": id})).state, State::Ok);
        assert_eq!(life.result(id).state, State::Killed);
    }
    drop(lock);
}
