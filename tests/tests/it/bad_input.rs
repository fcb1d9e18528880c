//! Bad input: always an error that says what is wrong, and nothing else changes.

use jstests::{Acc, AccOptions, AgentOptions, Client, LONG, Redis, Stage, wait_until};
use serde_json::{Value, json};

/// The text is in `jsacc:rejected` with a reason that contains `reason`.
#[track_caller]
fn rejected(client: &mut Client, text: &str, reason: &str) {
    client.push_raw(text);
    let expected = |entry: &Value| {
        let whole = entry.to_string().to_lowercase();
        whole.contains(&reason.to_lowercase())
    };
    wait_until(&format!("{text} is rejected with {reason}"), LONG, || client.rejected().iter().any(expected));
}

/// The command is answered with `ERROR` and a sentence that contains all of `words`.
#[track_caller]
fn answered(client: &mut Client, command: Value, words: &[&str]) -> Value {
    let id = client.push(command);
    let result = client.pop(&id);
    assert_eq!(result["state"], "ERROR", "{result}");
    let data = result["data"].as_str().expect("a sentence");
    for word in words {
        assert!(data.contains(word), "`{data}` does not say {word}");
    }
    assert_eq!(result["id"], json!(id));
    result
}

#[test]
fn text_that_is_no_command_is_rejected_with_its_reason() {
    let redis = Redis::start();
    let _acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    rejected(&mut client, "not json at all", "not JSON");
    rejected(&mut client, "", "not JSON");
    rejected(&mut client, "[1, 2]", "object");
    rejected(&mut client, r#"{"cmd": "ping", "gid": 1, "nid": 10}"#, "id is missing");
    rejected(&mut client, r#"{"id": "a b", "cmd": "ping", "gid": 1, "nid": 10}"#, "id must be");
    rejected(&mut client, r#"{"id": 7, "cmd": "ping", "gid": 1, "nid": 10}"#, "id must be");
    rejected(&mut client, &format!(r#"{{"id": "{}", "cmd": "ping", "gid": 1, "nid": 1}}"#, "x".repeat(129)), "id must");
    // Bytes that are no UTF-8, straight into Redis.
    let _: i64 = redis::cmd("LPUSH").arg("cmds_queue").arg(&b"\xff\xfe"[..]).query(&mut client.conn).expect("LPUSH");
    wait_until("eight entries are rejected", LONG, || client.rejected().len() == 8);
    let queue: i64 = client.redis(&["LLEN", "cmds_queue"]);
    assert_eq!(queue, 0, "nothing is left behind");
}

#[test]
fn text_of_very_many_values_is_refused_unread() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let (client, node) = (&mut Client::new(&redis), acc.node(1, 10));
    let many = vec![0; 300_000];
    let words = ["more than 200000 JSON values"];
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "ping", "args": {"args": many}}), &words);
    for path in ["renew", "result", "log", "stats", "event"] {
        let reply = node.post(path, &json!({"certificate": many}));
        assert_eq!(reply.status, 413, "{path}: {reply:?}");
        // These two have a bound of bytes that is met first.
        assert!(
            ["renew", "event"].contains(&path) || reply.error().contains("more than 250000 JSON values"),
            "{reply:?}"
        );
    }
    assert_eq!(node.post_text("/1/10/renew", "").status, 200, "an empty body asks for credentials");
}

#[test]
fn a_bad_command_with_a_good_id_is_answered() {
    let redis = Redis::start();
    let _acc = Acc::start(&redis, AccOptions::default());
    let client = &mut Client::new(&redis);
    answered(client, json!({"gid": 1, "nid": 10}), &["cmd"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": 5}), &["cmd"]);
    answered(client, json!({"gid": "one", "nid": 10, "cmd": "ping"}), &["gid"]);
    answered(client, json!({"gid": 1, "nid": -10, "cmd": "ping"}), &["nid"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "ping", "args": [1]}), &["args"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "ping", "data": 1}), &["data"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "ping", "roles": "web"}), &["roles"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "ping", "fanout": "yes"}), &["fanout"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "ping", "tags": 1}), &["tags"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "ping", "expires": "soon"}), &["expires"]);
    let result = answered(client, json!({"gid": 7, "nid": 8, "cmd": ""}), &["cmd"]);
    assert_eq!((&result["gid"], &result["nid"]), (&json!(7), &json!(8)), "{result}");
    wait_until("each of them is in the list of the rejected", LONG, || client.rejected().len() == 11);
}

#[test]
fn a_command_that_is_too_long_is_answered_and_holds_up_nobody() {
    let mut stage = Stage::start();
    let long = json!({"cmd": "execute", "gid": 1, "nid": 10, "data": "x".repeat(17 << 20), "args": {"cmd": "cat"}});
    let result = answered(&mut stage.client, long, &["the most is 16777216"]);
    assert_eq!((&result["args"], &result["nid"]), (&json!({}), &json!(10)));
    assert_eq!(stage.client.ask("ping", json!("")), json!("pong"));
}

#[test]
fn a_command_without_a_target_is_answered() {
    let redis = Redis::start();
    let _acc = Acc::start(&redis, AccOptions::default());
    let client = &mut Client::new(&redis);
    answered(client, json!({"cmd": "ping"}), &["target"]);
    answered(client, json!({"cmd": "ping", "nid": 10}), &["gid"]);
    let result = answered(client, json!({"cmd": "ping", "roles": ["nobody-has-this"]}), &["nobody-has-this"]);
    assert_eq!((&result["gid"], &result["nid"]), (&json!(0), &json!(0)), "{result}");
    let id = result["id"].as_str().expect("id").to_owned();
    wait_until("its hash says that there were no targets", LONG, || {
        client.job(&id).get("targets").map(String::as_str) == Some("[]")
    });
    answered(client, json!({"cmd": "ping", "roles": ["*"]}), &[]);
    answered(client, json!({"cmd": "ping", "roles": ["*"], "fanout": true, "gid": 3}), &[]);
}

#[test]
fn command_that_a_node_cannot_run_is_an_error_that_says_why() {
    let mut stage = Stage::start();
    let client = &mut stage.client;
    let execute = |args: Value| json!({"gid": 1, "nid": 10, "cmd": "execute", "args": args});
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "no_such_command"}), &["no_such_command"]);
    answered(client, execute(json!({"cmd": "/no/such/program"})), &["/no/such/program"]);
    answered(client, execute(json!({"cmd": "no-such-program-in-path"})), &["no-such-program-in-path"]);
    answered(client, execute(json!({"cmd": "/etc/passwd"})), &["/etc/passwd"]);
    answered(client, execute(json!({})), &["cmd"]);
    answered(client, execute(json!({"cmd": ""})), &["cmd"]);
    answered(client, execute(json!({"cmd": 5})), &["cmd"]);
    answered(client, execute(json!({"cmd": "/bin/echo 'open"})), &["cmd"]);
    answered(client, execute(json!({"cmd": "/bin/true", "args": "x"})), &["args"]);
    answered(client, execute(json!({"cmd": "/bin/true", "args": [[]]})), &["args"]);
    answered(client, execute(json!({"cmd": "/bin/true", "args": ["a\u{0}b"]})), &[]);
    answered(client, execute(json!({"cmd": "/bin/true", "env": ["A=1"]})), &["env"]);
    answered(client, execute(json!({"cmd": "/bin/true", "env": {"A": [1]}})), &["env"]);
    answered(client, execute(json!({"cmd": "/bin/true", "workingdir": 1})), &["workingdir"]);
    answered(client, execute(json!({"cmd": "/bin/true", "workingdir": "/no/such/folder"})), &["/no/such/folder"]);
    answered(client, execute(json!({"cmd": "/bin/true", "max_time": "long"})), &["max_time"]);
    answered(client, execute(json!({"cmd": "/bin/true", "max_time": -2})), &["max_time"]);
    answered(client, execute(json!({"cmd": "/bin/true", "stop_signal": "NOSUCH"})), &["stop_signal"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "kill", "data": {}}), &["id"]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "kill", "data": "nonsense"}), &[]);
    answered(client, json!({"gid": 1, "nid": 10, "cmd": "kill", "data": {"id": "no-such-job"}}), &["no-such-job"]);
    // And the node is as it was.
    assert_eq!(client.run("ping", json!({}))["state"], "OK");
    assert_eq!(client.run("execute", json!({"cmd": "/bin/true"}))["state"], "OK");
}

#[test]
fn bad_commands_between_good_ones_hold_up_nobody() {
    let mut stage = Stage::start();
    let mut ids = Vec::new();
    for n in 0..50 {
        stage.client.push_raw(["{", "null", "[]", "\"text\"", "{\"id\": \"\"}"][n % 5]);
        ids.push(stage.client.send("execute", json!({"cmd": "/bin/true"})));
    }
    for id in &ids {
        assert_eq!(stage.client.pop(id)["state"], "OK");
    }
    let client = &mut stage.client;
    wait_until("all fifty are listed", LONG, || client.rejected().len() == 50);
}

#[test]
fn a_command_that_nobody_fetches_expires_with_an_answer() {
    let redis = Redis::start();
    let _acc = Acc::start(&redis, AccOptions::default());
    let client = &mut Client::new(&redis);
    let command = json!({"gid": 5, "nid": 6, "cmd": "ping", "expires": 1, "tags": "late"});
    let result = answered(client, command, &["expire"]);
    assert_eq!((&result["gid"], &result["nid"], &result["tags"]), (&json!(5), &json!(6), &json!("late")), "{result}");
}

#[test]
fn fields_that_nobody_knows_change_nothing() {
    let mut stage = Stage::start_with(AccOptions::default(), AgentOptions::default());
    let id = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "ping", "colour": {"of": "today"}}));
    assert_eq!(stage.client.pop(&id)["state"], "OK");
}
