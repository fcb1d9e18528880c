//! Commands that are refused, known already, or meant for other jobs.

use super::*;

#[test]
fn bad_commands_are_answered() {
    let node = Node::new();
    let life = node.live();
    for (id, command, reason) in [
        ("a", json!({"cmd": "nope"}), "unknown command 'nope'"),
        ("b", json!({"cmd": "execute"}), "cmd is missing"),
        ("c", json!({"cmd": "execute", "args": {"cmd": "/no/such"}}), "program not found: /no/such"),
        ("d", json!({"cmd": "execute", "args": {"cmd": "no-such-program x"}}), "program not found: no-such-program"),
        ("e", json!({"cmd": "execute", "args": {"cmd": "ls", "max_time": "x"}}), "max_time must be"),
        ("f", json!({"cmd": "execute", "args": {"cmd": "ls", "workingdir": "/no"}}), "there is no folder /no"),
        ("g", json!({"cmd": "execute", "args": {"cmd": "ls", "user": "nobody-there"}}), "no user 'nobody-there'"),
        ("h", json!({"cmd": "execute", "args": {"cmd": "/etc/passwd"}}), "permission denied"),
        ("i", json!({"cmd": "kill", "data": {"id": "zzz"}}), "no job 'zzz'"),
        ("j", json!({"cmd": "kill"}), "data has no id"),
        ("k", json!({"cmd": "signal", "data": {"id": "a", "signal": "X"}}), "is no signal"),
        ("l", json!({"cmd": "get_process_stats", "data": {"id": "zzz"}}), "no job 'zzz'"),
        ("m", json!({"cmd": "get_processes_stats", "data": "{"}), "not JSON"),
    ] {
        let mut command = command;
        command["id"] = id.into();
        life.push(command);
        let result = life.result(id);
        assert_eq!((result.state, result.level), (State::Error, 0), "{id}");
        assert!(result.data.contains(reason), "{} does not say {reason}", result.data);
    }
    assert!(life.ledger.live().unwrap().is_empty());
}

#[test]
fn a_known_id_does_not_run_again() {
    let node = Node::new();
    let script = format!("echo x >> {}", node.path("out").display());
    {
        let life = node.live();
        life.shell("a", &script, json!({}));
        life.result("a");
        life.shell("a", &script, json!({}));
        assert_eq!(life.event("duplicate")["id"], "a");
        life.push(json!([{"id": "p", "cmd": "ping"}, {"id": "p", "cmd": "ping"}]));
        assert_eq!(life.event("duplicate")["id"], "p");
    }
    let life = node.live();
    life.shell("a", &script, json!({}));
    assert_eq!(life.event("duplicate")["id"], "a");
    assert_eq!(node.read("out"), "x\n");
}

#[test]
fn signals_reach_the_group() {
    let node = Node::new();
    let life = node.live();
    let script = format!(
        "trap 'echo usr1 > {}; exit 0' USR1; echo x > {}; while :; do :; done",
        node.path("out").display(),
        node.path("ready").display()
    );
    life.shell("a", &script, json!({}));
    life.wait_running("a");
    let answer = life.ask("s", "signal", json!({"id": "a", "signal": "CONT"}));
    assert!(answer.data.contains("CONT"), "{}", answer.data);
    until("the trap", || (!node.read("ready").is_empty()).then_some(()));
    life.ask("u", "signal", json!({"id": "a", "signal": "USR1"}));
    assert_eq!((life.result("a").state, node.read("out").as_str()), (State::Ok, "usr1\n"));
}
