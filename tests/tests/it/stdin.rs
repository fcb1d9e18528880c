//! Jobs with open stdin and on terminals: `input` and `resize` from end to end.

use jscommon::base64_text;
use jstests::{Client, LONG, Stage, fresh_id, wait_until};
use serde_json::{Value, json};
use std::path::Path;

const PIECE_BYTES: usize = 256 << 10;

/// Starts a shell line with more args than that.
fn start(client: &mut Client, line: &str, more: Value) -> String {
    let mut args = json!({"cmd": "/bin/sh", "args": ["-c", line]});
    for (name, value) in more.as_object().expect("an object") {
        args[name] = value.clone();
    }
    let id = client.send("execute", args);
    client.wait_running(&id);
    id
}

/// Gives a piece at `offset`; returns `have` and `room`.
#[track_caller]
fn give(client: &mut Client, id: &str, offset: Option<usize>, bytes: &[u8], eof: bool) -> [usize; 2] {
    let data = json!({"id": id, "offset": offset, "data": base64_text::encode(bytes), "eof": eof});
    let answer = client.ask("input", data);
    ["have", "room"].map(|name| answer[name].as_u64().expect("a number") as usize)
}

/// Types something on a terminal.
#[track_caller]
fn type_in(client: &mut Client, id: &str, text: &str) {
    give(client, id, None, text.as_bytes(), false);
}

/// The sentence of a command that fails.
#[track_caller]
fn refusal(client: &mut Client, cmd: &str, data: Value) -> String {
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": cmd, "data": data}));
    let result = client.pop(&id);
    assert_eq!(result["state"], "ERROR", "{result}");
    result["data"].as_str().expect("a sentence").to_owned()
}

#[track_caller]
fn wait_for_text(path: &Path, text: &str) {
    let read = || std::fs::read_to_string(path).unwrap_or_default();
    wait_until(&format!("{} has {text:?}, not {:?}", path.display(), read()), LONG, || read().contains(text));
}

/// The agent's threads that write to stdin, its terminals, and its pipes.
fn ends(stage: &Stage) -> Vec<String> {
    let pid = stage.agent.pid();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the agent").flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the agent").flatten();
    let links = fds.filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned()));
    let is_end = |name: &String| ["stdin", "/dev/pt", "pipe:"].iter().any(|start| name.starts_with(start));
    names.chain(links).filter(is_end).collect()
}

/// Waits until the agent has no more of them than before.
fn wait_clean(stage: &Stage, before: &[String]) {
    wait_until("nothing of the job is left", LONG, || ends(stage).iter().all(|end| before.contains(end)));
}

#[test]
fn bytes_of_open_stdin_arrive_once_and_in_order() {
    let mut stage = Stage::start();
    let before = ends(&stage);
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let client = &mut stage.client;
    let id = start(client, &format!("cat > {}", out.display()), json!({"stdin": "open"}));
    let mut bytes = vec![0; 5 * PIECE_BYTES + 77];
    bytes.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * 31 + n / 251) as u8);
    let mut at = 0;
    while at < bytes.len() {
        let piece = &bytes[at..bytes.len().min(at + PIECE_BYTES)];
        let [have, _] = give(client, &id, Some(at), piece, false);
        assert!(have == at || have == at + piece.len(), "a piece is taken whole or not at all");
        if have > at {
            assert_eq!(give(client, &id, Some(at), piece, false)[0], have, "a repeated piece is not taken");
            assert_eq!(give(client, &id, Some(have + 1), b"x", true)[0], have, "nothing may be missing");
        }
        at = have;
    }
    assert_eq!(give(client, &id, None, b"end\n", false)[0], at + 4);
    assert_eq!(give(client, &id, Some(at + 4), b"", true)[0], at + 4);
    bytes.extend(b"end\n");
    assert_eq!(client.pop(&id)["state"], "OK");
    assert!(std::fs::read(&out).expect("the file") == bytes, "the bytes differ");
    wait_clean(&stage, &before);
}

#[test]
fn data_comes_before_what_is_given() {
    let mut stage = Stage::start();
    let id = fresh_id();
    let args = json!({"cmd": "/bin/cat", "args": [], "stdin": "open"});
    stage.client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": args, "data": "first "}));
    stage.client.wait_running(&id);
    assert_eq!(give(&mut stage.client, &id, Some(0), b"second", true)[0], 6);
    let refused = refusal(&mut stage.client, "input", json!({"id": id, "offset": 6, "data": "YQ=="}));
    assert!(refused.contains("had the end of its stdin") || refused.contains("no job"), "{refused}");
    assert_eq!(stage.client.pop(&id)["streams"][0], "first second");
}

#[test]
fn process_that_does_not_read_holds_up_nobody() {
    let mut stage = Stage::start();
    let before = ends(&stage);
    let client = &mut stage.client;
    let id = start(client, "exec sleep 1000", json!({"stdin": "open"}));
    let (mut at, mut room, mut size) = (0, 1, PIECE_BYTES);
    while room > 0 {
        let [have, left] = give(client, &id, Some(at), &vec![7; size], false);
        (at, room, size) = (have, left, left.min(PIECE_BYTES));
    }
    assert_eq!(give(client, &id, Some(at), b"x", false), [at, 0], "nothing more is taken");
    assert!((1 << 20..(1 << 20) + (128 << 10)).contains(&at), "{at} bytes were taken");
    let other = start(client, "exec cat", json!({"stdin": "open"}));
    give(client, &other, Some(0), b"goes on", true);
    assert_eq!(client.pop(&other)["streams"][0], "goes on");
    client.ask("kill", json!({"id": id}));
    assert_eq!(client.pop(&id)["state"], "KILLED");
    wait_clean(&stage, &before);
}

#[test]
fn closed_stdin_is_told() {
    let mut stage = Stage::start();
    let client = &mut stage.client;
    let id = start(client, "exec <&-; exec sleep 1000", json!({"stdin": "open"}));
    let mut refused = String::new();
    wait_until("the stdin is closed", LONG, || {
        let command = json!({"gid": 1, "nid": 10, "cmd": "input", "data": {"id": id, "data": "YQ=="}});
        let input = client.push(command);
        let result = client.pop(&input);
        refused = result["data"].as_str().expect("text").to_owned();
        result["state"] == "ERROR"
    });
    assert_eq!(refused, format!("job {id} has closed its stdin"));
    for (cmd, data, reason) in [
        ("input", json!({"id": "none", "data": "YQ=="}), "no job 'none'"),
        ("input", json!({"id": id, "data": "Y"}), "data must be base64"),
        ("resize", json!({"id": id, "rows": 5, "cols": 5}), "has no terminal"),
        ("resize", json!({"id": id, "rows": 0, "cols": 1001}), "rows must be a whole number from 1 to 1000"),
    ] {
        let fault = refusal(client, cmd, data);
        assert!(fault.contains(reason), "{fault}");
    }
    let plain = start(client, "exec sleep 1000", json!({}));
    assert!(refusal(client, "input", json!({"id": plain, "eof": true})).contains("has no open stdin"));
}

#[test]
fn each_run_has_its_own_stdin_and_have_counts_on() {
    let mut stage = Stage::start();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let line = format!("read line; echo \"$line\" >> {}; exit 1", out.display());
    let client = &mut stage.client;
    let id = start(client, &line, json!({"stdin": "open", "max_restart": 2}));
    let mut have = 0;
    for (n, text) in ["one\n", "two\n", "three\n"].into_iter().enumerate() {
        wait_until("the next run is there", LONG, || {
            let stats = client.ask("get_process_stats", json!({"id": id}));
            stats["restarts"] == n && stats["pid"] != 0
        });
        assert_eq!(give(client, &id, Some(have), text.as_bytes(), false)[0], have + text.len());
        have += text.len();
        wait_for_text(&out, text);
    }
    assert_eq!(client.pop(&id)["state"], "ERROR");
    assert_eq!(std::fs::read_to_string(&out).expect("the file"), "one\ntwo\nthree\n");
}

#[test]
fn process_runs_on_a_terminal_of_the_size_that_was_asked_for() {
    let mut stage = Stage::start();
    let before = ends(&stage);
    let dir = tempfile::tempdir().expect("a folder");
    let (client, out) = (&mut stage.client, dir.path().join("out"));
    let line = format!(
        "echo $TERM > {0}; stty size >> {0}; tty >> {0}; test -t 0 && test -t 1 && test -t 2 && echo all >> {0}; \
         echo shown > /dev/tty; trap 'stty size >> {0}; echo resized >> {0}' WINCH; echo ready >> {0}; \
         until test \"$word\" = quit; do word=; read word && echo \"got $word\" >> {0}; done; \
         cat >> {0}; echo over >> {0}",
        out.display()
    );
    let id = start(client, &line, json!({"tty": {"rows": 31, "cols": 97, "term": "vt100"}}));
    wait_for_text(&out, "ready");
    let text = std::fs::read_to_string(&out).expect("the file");
    assert!(text.starts_with("vt100\n31 97\n/dev/pts/") && text.contains("\nall\n"), "{text}");
    assert_eq!(client.ask("resize", json!({"id": id, "rows": 40, "cols": 132})), json!({"rows": 40, "cols": 132}));
    // A shell runs its trap once its read is over.
    type_in(client, &id, "a\n");
    wait_for_text(&out, "40 132\nresized");
    type_in(client, &id, "quit\n");
    wait_for_text(&out, "got quit");
    // The end is Ctrl-D, at the begin of a line.
    give(client, &id, None, b"c\n", true);
    let result = client.pop(&id);
    assert_eq!(result["state"], "OK", "{result}");
    wait_for_text(&out, "got quit\nc\nover");
    let shown = result["streams"][0].as_str().expect("text").replace('\r', "");
    assert!(shown.starts_with("shown\na\n") && result["streams"][1] == "", "{result}");
    wait_clean(&stage, &before);
}

#[test]
fn ctrl_c_ends_the_process_in_the_foreground() {
    let mut stage = Stage::start();
    let before = ends(&stage);
    let client = &mut stage.client;
    let id = client.send("execute", json!({"cmd": "/bin/sleep", "args": ["1000"], "tty": {}}));
    client.wait_running(&id);
    wait_until("the terminal is there", LONG, || client.ask("get_process_stats", json!({"id": id}))["pid"] != 0);
    type_in(client, &id, "\x03");
    let result = client.pop(&id);
    assert_eq!((&result["state"], &result["code"]), (&json!("ERROR"), &json!(130)), "{result}");
    wait_clean(&stage, &before);
}

#[test]
fn lapse_of_the_watch_ends_stdin_and_hangs_the_terminal_up() {
    let mut stage = Stage::start();
    let before = ends(&stage);
    let dir = tempfile::tempdir().expect("a folder");
    let client = &mut stage.client;
    let jobs = [json!({"stdin": "open"}), json!({"tty": {}})].map(|mut more| {
        let id = fresh_id();
        let _: String = client.redis(&["SET", &format!("jsacc:watch:{id}"), "1", "EX", "2"]);
        let file = dir.path().join(&id);
        let line = format!(
            "trap 'echo hangup >> {0}; kill $!; exit' HUP; (while :; do echo x; sleep 0.3; done) & \
             cat > /dev/null; echo end >> {0}; kill $!",
            file.display()
        );
        more["cmd"] = "/bin/sh".into();
        more["args"] = json!(["-c", line]);
        more["stream"] = true.into();
        client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": more}));
        (id, file)
    });
    for ((id, file), text) in jobs.iter().zip(["end\n", "hangup\n"]) {
        wait_for_text(file, text);
        client.pop(id);
    }
    wait_clean(&stage, &before);
}
