//! A process and its result, its surroundings, its output and its figures.

use super::*;

#[test]
fn a_process_and_its_result() {
    let node = Node::new();
    let life = node.live();
    life.push(json!({"id": "a", "cmd": "execute", "tags": "t", "data": "hello",
        "args": {"cmd": "/bin/sh", "args": ["-c", "cat; echo; echo err >&2; echo '20::{\"a\": 1}'; exit 3"]}}));
    let result = life.result("a");
    assert_eq!((result.state, result.code, result.level), (State::Error, 3, 20));
    assert_eq!((result.data.as_str(), result.tags.as_str()), ("{\"a\": 1}", "t"));
    assert_eq!(result.streams.map(|stream| stream.trim_end().to_owned()), ["hello".to_owned(), "err".into()]);
    assert!(result.starttime > 1_600_000_000_000);
    assert_eq!(life.ask("p", "ping", json!("")).data, "\"pong\"");
}

#[test]
fn output_that_ends_long_before_its_process() {
    let node = Node::new();
    let life = node.live();
    life.shell("a", "echo 20::1; exec >&- 2>&-; sleep 0.3; exit 3", json!({}));
    life.shell("b", "exec >&- 2>&-; exec sleep 1000", json!({}));
    let result = life.result("a");
    assert_eq!((result.code, result.data.as_str()), (3, "1"));
    assert!(result.time >= 300, "{}", result.time);
    life.wait_running("b");
    assert_eq!(life.ask("k", "kill", json!({"id": "b"})).state, State::Ok);
    assert_eq!(life.result("b").state, State::Killed);
}

#[test]
fn a_child_sees_its_job_and_its_places() {
    let node = Node::new();
    let life = node.live_with(|config| {
        let controller = crate::config::Controller { urls: vec!["https://c:1".into()], ..Default::default() };
        config.controllers.insert("main".into(), controller);
    });
    let script =
        "echo $AGENT_GID $AGENT_NID $AGENT_JOB_ID $AGENT_CONTROLLER_NAME $AGENT_CONTROLLER_URL $A; pwd; cd $tmp && pwd";
    life.shell("a", script, json!({"env": {"A": "b"}, "workingdir": "$agentroot"}));
    let home = life.config.main.data_dir.canonicalize().unwrap();
    let expected = format!("1 10 a main https://c:1 b\n{0}\n{0}/tmp", home.display());
    assert_eq!(life.result("a").streams[0].trim_end(), expected);
}

#[cfg(target_os = "linux")]
#[test]
fn limits_niceness_and_user() {
    let node = Node::new();
    let life = node.live();
    life.shell("a", "ulimit -n; nice; id -un", json!({"rlimits": {"nofile": 33}, "nice": 3}));
    let text = life.result("a").streams[0].clone();
    assert!(text.starts_with("33\n3\n"), "{text}");
    if nix::unistd::Uid::effective().is_root() {
        life.shell("b", "id -un; id -u; echo $HOME", json!({"user": "nobody"}));
        let result = life.result("b");
        assert!(result.streams[0].starts_with("nobody\n"), "{result:?}");
        // Its streams by their names, and a $tmp that is its own and nobody else's.
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let pass = |name: &str| std::fs::set_permissions(node.path(name), PermissionsExt::from_mode(0o711)).unwrap();
        pass("");
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin; echo x > $T/f; pwd";
        let args = json!({"cmd": "sh", "args": ["-c", script, "$tmp"], "user": "nobody", "workingdir": "$tmp"});
        let mut command = json!({"id": "c", "cmd": "execute", "args": args, "data": "in\n"});
        command["args"]["env"] = json!({"T": node.path("data-tmp/nobody")});
        life.push(command);
        let result = life.result("c");
        let expected = format!("out\nin\n{}\n", node.path("data-tmp/nobody").display());
        assert_eq!(
            (result.streams[0].trim_end(), result.streams[1].trim_end()),
            (expected.trim_end(), "err"),
            "{result:?}"
        );
        let mode = |name: &str| node.path(name).metadata().unwrap().mode() & 0o777;
        assert_eq!((mode("data-tmp"), mode("data-tmp/nobody")), (0o711, 0o700));
        // The folder of another is not taken, and no link is followed.
        std::fs::remove_dir_all(node.path("data-tmp/nobody")).unwrap();
        std::os::unix::fs::symlink("/", node.path("data-tmp/nobody")).unwrap();
        life.shell("d", "true", json!({"user": "nobody", "workingdir": "$tmp"}));
        let result = life.result("d");
        assert!((result.code, result.data.contains("cannot have a $tmp")) == (126, true), "{result:?}");
        assert_eq!(std::path::Path::new("/").metadata().unwrap().uid(), 0);
        // The result names the user that may not enter the folder.
        std::fs::create_dir(node.path("shut")).unwrap();
        std::fs::set_permissions(node.path("shut"), PermissionsExt::from_mode(0o700)).unwrap();
        life.shell("e", "true", json!({"user": "nobody", "workingdir": node.path("shut")}));
        assert!(life.result("e").data.contains("workingdir: nobody may not enter"));
    }
}

#[test]
fn stdin_blocks_nobody() {
    let node = Node::new();
    let life = node.live();
    let data = "x".repeat(3_000_000);
    life.push(json!({"id": "deaf", "cmd": "execute", "data": data, "args": {"cmd": "sleep 1000"}}));
    life.push(json!({"id": "count", "cmd": "execute", "data": data, "args": {"cmd": "wc -c"}}));
    assert_eq!(life.result("count").streams[0].trim(), "3000000");
    life.ask("k", "kill", json!({"id": "deaf"}));
    assert_eq!(life.result("deaf").state, State::Killed);
}

#[test]
fn figures_of_a_tree() {
    let node = Node::new();
    let life = node.live();
    life.shell("a", "sleep 1000 & while :; do :; done", json!({"domain": "d", "name": "n"}));
    life.wait_running("a");
    let entry = until("the tree to work", || {
        life.remote().process("a").filter(|e| e.figures.cpu > 5.0 && e.figures.processes == 2)
    });
    assert!(
        entry.figures.rss > 0
            && entry.figures.vms > entry.figures.rss
            && entry.state == "RUNNING"
            && entry.starttime > 0
    );
    let answer = life.ask("s", "get_process_stats", json!({"id": "a"}));
    let entry: Value = serde_json::from_str(&answer.data).unwrap();
    assert_eq!(
        (entry["id"].as_str(), entry["domain"].as_str(), entry["restarts"].as_u64()),
        (Some("a"), Some("d"), Some(0))
    );
    let none = life.ask("t", "get_processes_stats", json!({"domain": "x"}));
    assert_eq!(none.data, "[]");
}

#[test]
fn a_quiet_agent_rests_once() {
    let node = Node::new();
    let life = node.live();
    until("the agent rests", || matches!(life.notices.recv_timeout(LONG), Ok(Notice::Idle)).then_some(()));
    // Nothing happens, so nothing follows; whatever happens is followed by another rest.
    assert!(life.notices.recv_timeout(Duration::from_millis(2500)).is_err());
    assert!(life.remote().processes().is_empty());
    until("it rests again", || matches!(life.notices.recv_timeout(LONG), Ok(Notice::Idle)).then_some(()));
}

/// Has the log store take nothing until the answer is dropped, and hands it more than may wait for it.
fn stall_message_log(life: &Life, bytes: usize) -> crossbeam_channel::Sender<()> {
    let (free, held) = crossbeam_channel::bounded::<()>(0);
    let message_log = life._message_log.inlet();
    message_log.then(move || {
        let _ = held.recv();
    });
    let mut batch = message_log::batch::Batch::new(&crate::output::tests::source(), 1, 0);
    batch.push(1, &"x".repeat(bytes));
    message_log.push(batch);
    free
}

/// Its reader takes the first bytes and waits for the message log before it reads the result.
const LATE_RESULT: &str = "echo first; sleep 0.3; echo 20::42; : > $F";

#[test]
fn result_comes_with_its_data_while_the_log_store_stalls() {
    let node = Node::new();
    let life = node.live();
    let free = stall_message_log(&life, 4 << 20);
    life.shell("a", LATE_RESULT, json!({"env": {"F": node.path("done")}}));
    let result = life.result("a");
    assert_eq!((result.state, result.data.as_str(), result.level), (State::Ok, "42", 20));
    assert_eq!((result.bytes, result.truncated), ([13, 0], false));
    drop(free);
}

#[test]
fn result_waits_where_more_cannot_wait_for_the_log_store() {
    let node = Node::new();
    let life = node.live();
    let free = stall_message_log(&life, 20 << 20);
    let done = node.path("done");
    life.shell("a", LATE_RESULT, json!({"env": {"F": done}}));
    until("the process has ended", || done.exists().then_some(()));
    // Several times as long as output is waited for otherwise.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        assert!(life.job_store.unsent("main", 10, 1000).unwrap().is_empty(), "it was not waited for");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(free);
    let result = life.result("a");
    assert_eq!((result.state, result.data.as_str(), result.level), (State::Ok, "42", 20));
}

#[test]
fn bytes_and_truncation_are_in_the_result_and_its_record() {
    let node = Node::new();
    let life = node.live();
    let result = |id: &str, script: &str| {
        life.shell(id, script, json!({}));
        life.result(id)
    };
    let small = result("a", "printf 'abc\\n7::x\\n'; printf é >&2; exit 3");
    assert_eq!((small.bytes, small.truncated), ([9, 2], false));
    let large = result("b", "yes 0123456789 | head -n 20000");
    assert_eq!((large.bytes, large.truncated), ([220_000, 0], true));
    let lines = result("c", "yes x | head -n 1001 >&2");
    assert_eq!((lines.bytes, lines.truncated), ([0, 2002], true));
    let answer = life.ask("p", "ping", json!(""));
    assert_eq!((answer.bytes, answer.truncated), ([0, 0], false));
    let query = message_log::Query {
        jobid: Some("b".into()),
        levels: Some(jscommon::LevelSet::parse("30").unwrap()),
        ..Default::default()
    };
    let records =
        until("its record", || Some(life._message_log.remote().get(&query).unwrap()).filter(|r| !r.is_empty()));
    let record: Value = serde_json::from_str(&records[0].data).unwrap();
    assert_eq!((&record["bytes"], &record["truncated"]), (&json!([220_000, 0]), &json!(true)));
}
