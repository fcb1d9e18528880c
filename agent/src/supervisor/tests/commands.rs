//! Commands that are refused, known already, or meant for other jobs.

use super::*;

#[test]
fn bad_commands_are_answered() {
    let node = Node::new();
    let life = node.live();
    for (id, code, command, reason) in [
        ("a", 127, json!({"cmd": "nope"}), "unknown command 'nope'"),
        ("b", 126, json!({"cmd": "execute"}), "cmd is missing"),
        ("c", 127, json!({"cmd": "execute", "args": {"cmd": "/no/such"}}), "program not found: /no/such"),
        (
            "d",
            127,
            json!({"cmd": "execute", "args": {"cmd": "no-such-program x"}}),
            "program not found: no-such-program",
        ),
        ("e", 126, json!({"cmd": "execute", "args": {"cmd": "ls", "max_time": "x"}}), "max_time must be"),
        ("f", 126, json!({"cmd": "execute", "args": {"cmd": "ls", "workingdir": "/no"}}), "there is no folder /no"),
        ("g", 126, json!({"cmd": "execute", "args": {"cmd": "ls", "user": "nobody-there"}}), "no user 'nobody-there'"),
        ("h", 126, json!({"cmd": "execute", "args": {"cmd": "/etc/passwd"}}), "permission denied"),
        ("i", 0, json!({"cmd": "kill", "data": {"id": "zzz"}}), "no job 'zzz'"),
        ("j", 0, json!({"cmd": "kill"}), "data has no id"),
        ("k", 0, json!({"cmd": "signal", "data": {"id": "a", "signal": "X"}}), "is no signal"),
        ("l", 0, json!({"cmd": "get_process_stats", "data": {"id": "zzz"}}), "no job 'zzz'"),
        ("m", 0, json!({"cmd": "get_processes_stats", "data": "{"}), "not JSON"),
        ("n", 127, json!({"cmd": "execute_js_py", "args": {"domain": "no", "name": "such"}}), "such"),
        ("o", 126, json!({"cmd": "execute_js_py"}), "which script?"),
    ] {
        let mut command = command;
        command["id"] = id.into();
        life.push(command);
        let result = life.result(id);
        assert_eq!((result.state, result.code, result.level), (State::Error, code, 0), "{id}");
        assert!(result.data.contains(reason), "{} does not say {reason}", result.data);
    }
    assert!(life.job_store.live().unwrap().is_empty());
}

#[test]
fn the_step_that_failed_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    let file = |name: &str, text: &str, mode: u32| {
        std::fs::write(node.path(name), text).unwrap();
        std::fs::set_permissions(node.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        node.path(name)
    };
    file("lost", "#!/no/such/interpreter\n", 0o755);
    file("windows", "#!/bin/sh\r\necho\r\n", 0o755);
    file("plain", "echo\n", 0o755);
    file("closed", "#!/bin/sh\n", 0o644);
    let life = node.live();
    let folder = |args: Value| {
        let mut args = args;
        args["workingdir"] = node.path("").to_str().unwrap().into();
        args
    };
    for (id, args, reason) in [
        ("a", folder(json!({"cmd": "./lost"})), "cannot run ./lost: its interpreter /no/such/interpreter is not there"),
        ("b", folder(json!({"cmd": "./windows"})), "ends with a carriage return"),
        ("c", folder(json!({"cmd": "./plain"})), "neither a program for this machine nor a script"),
        ("d", folder(json!({"cmd": "./closed"})), "is not executable"),
        ("e", folder(json!({"cmd": "lost", "env": {"PATH": node.path("")}})), "its interpreter /no/such/interpreter"),
        ("f", json!({"cmd": "true", "workingdir": node.path("plain")}), "plain is no folder"),
        ("g", json!({"cmd": "true", "rlimits": {"core": 0, "nofile": 1u64 << 40}}), "rlimits: nofile is above"),
    ] {
        life.push(json!({"id": id, "cmd": "execute", "args": args}));
        let result = life.result(id);
        assert_eq!((result.state, result.code), (State::Error, 126), "{id}: {}", result.data);
        assert!(result.data.contains(reason), "{} does not say {reason}", result.data);
    }
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
        life.push(json!([{"id": "p", "cmd": "unschedule"}, {"id": "p", "cmd": "unschedule"}]));
        assert_eq!(life.event("duplicate")["id"], "p");
    }
    let life = node.live();
    life.shell("a", &script, json!({}));
    assert_eq!(life.duplicates(), 0, "the last batch comes again where its acknowledgement was lost");
    life.shell("a", &script, json!({}));
    assert_eq!((life.duplicates(), node.read("out").as_str()), (1, "x\n"));
}

#[test]
fn commands_that_come_again_after_a_restart_are_no_duplicates() {
    let node = Node::new();
    let batch = || {
        json!([{"id": "a", "cmd": "execute", "args": {"cmd": "true"}}, {"id": "b", "cmd": "restart"},
               {"id": "c", "cmd": "execute", "args": {"cmd": "true", "recurring_period": 1000}}])
    };
    let life = node.live();
    life.push(batch());
    for id in ["a", "b", "c"] {
        life.result(id);
    }
    life.stop();
    let life = node.live();
    life.push(json!([]));
    life.push(batch());
    assert_eq!(life.duplicates(), 0);
    life.push(batch());
    assert_eq!(life.duplicates(), 3);
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
