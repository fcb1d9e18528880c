//! The end of commands that wait for a node that is revoked.

use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, bin, run_with, wait_for, wait_until};
use serde_json::{Value, json};
use std::process::Command;

fn site() -> (Redis, Acc, Client) {
    jstests::site(AccOptions::with_auth())
}

#[track_caller]
fn push(client: &mut Client, more: Value) -> String {
    let mut command = json!({"gid": 1, "nid": 1, "cmd": "ping"});
    more.as_object().expect("an object").iter().for_each(|(key, value)| command[key] = value.clone());
    let id = client.push(command);
    wait_for("it is known", LONG, || client.job(&id).remove("created"));
    id
}

#[track_caller]
fn is_answered(client: &mut Client, id: &str) {
    let answer = client.pop(id);
    assert_eq!(answer["state"], "ERROR", "{answer}");
    assert!(answer["data"].as_str().is_some_and(|data| data.contains("node 1:1 was revoked")), "{answer}");
    assert_eq!(client.state(id, "1:1").as_deref(), Some("ERROR"));
}

#[track_caller]
fn nothing_is_left(client: &mut Client) {
    assert_eq!(client.redis::<Option<f64>>(&["ZSCORE", "jsacc:agents", "1:1"]), None);
    assert!(!client.redis::<bool>(&["HEXISTS", "jsacc:{roles}", "1:1"]));
    for key in ["jsacc:grant:1:1", "jsacc:agent:1:1", "jsacc:{1:1}:cmds", "jsacc:{1:1}:queue"] {
        assert!(!client.redis::<bool>(&["EXISTS", key]), "{key}");
    }
    // It lies in another slot than the answer, and goes after it.
    wait_until("no command of it waits for its end", LONG, || {
        let waiting: Vec<String> = client.redis(&["ZRANGE", "jsacc:expiring", "0", "-1"]);
        waiting.iter().all(|member| !member.starts_with("1:1:"))
    });
}

#[test]
fn commands_for_a_revoked_node_are_answered_and_nobody_gets_them() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 1);
    assert!(node.poll_as(&["web"], 0, None).is_none());
    let handed = push(&mut client, json!({}));
    let batch = wait_for("it comes", LONG, || node.poll(5, None));
    assert_eq!(batch.cmds.len(), 1);
    let waiting = push(&mut client, json!({"args": {"x": 1}, "tags": "t"}));
    let by_role = push(&mut client, json!({"gid": 0, "nid": 0, "roles": ["web"], "fanout": true}));
    let secret = push(&mut client, json!({"args": {"secret": true}, "data": "geheim"}));
    wait_until("all wait", LONG, || client.redis::<usize>(&["HLEN", "jsacc:{1:1}:cmds"]) == 4);

    let output = acc.command(&["revoke", "1", "1"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("4 commands waited for it and were answered with ERROR"), "{output:?}");
    for id in [&handed, &waiting, &by_role, &secret] {
        is_answered(&mut client, id);
    }
    assert!(!client.job(&secret).values().any(|text| text.contains("geheim")));
    wait_until("the node is refused", LONG, || node.get("/1/1/cmd?wait=0").status == 401);
    nothing_is_left(&mut client);
    let told = client.events().into_iter().find(|event| event["name"] == "revoked").expect("an event");
    assert_eq!((&told["nid"], &told["data"]["waited"]), (&json!(1), &json!(4)));

    // A later command waits for nobody, and nobody has the node's role.
    let later = push(&mut client, json!({}));
    is_answered(&mut client, &later);
    let id = client.push(json!({"roles": ["web"], "fanout": true, "cmd": "ping"}));
    let answer = client.pop(&id);
    assert!(answer["data"].as_str().is_some_and(|data| data.contains("no live node")), "{answer}");

    let again = acc.node(1, 1);
    assert!(again.poll_as(&["vault"], 0, Some(&batch.batch)).is_none(), "nothing waited for it");
    assert_eq!(client.state(&handed, "1:1").as_deref(), Some("ERROR"));
    assert_eq!(client.redis::<String>(&["HGET", "jsacc:agent:1:1", "roles"]), "[\"vault\"]", "its first start");
    let id = push(&mut client, json!({}));
    let batch = wait_for("it is a node again", LONG, || again.poll(5, None));
    assert_eq!(batch.cmds[0]["id"], json!(id));
    let output = acc.command(&["revoke", "1", "99"]);
    assert!(output.code == 0 && output.stdout.contains("no command waited"), "{output:?}");
}

#[test]
fn command_handed_out_by_a_clock_that_is_ahead_is_withdrawn_by_a_revocation() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 1);
    let id = push(&mut client, json!({}));
    assert!(wait_for("it comes", LONG, || node.poll(5, None)).cmds[0]["id"] == json!(id));
    let ahead = (jstests::now_ms() + 600_000).to_string();
    client.redis::<i64>(&["HSET", "jsacc:{1:1}:meta", "handed_at", &ahead]);
    assert_eq!(acc.command(&["revoke", "1", "1"]).code, 0);
    is_answered(&mut client, &id);
    assert!(client.redis::<Option<f64>>(&["ZSCORE", "jsacc:{1:1}:withdrawn", &id]).is_some(), "it is marked");
    assert!(!client.redis::<bool>(&["EXISTS", "jsacc:{1:1}:queue"]));
}

#[test]
fn node_that_polls_at_another_controller_leaves_the_live_set_too() {
    let (redis, acc, mut client) = site();
    let other = Acc::start(&redis, AccOptions { state_dir: Some(acc.state_dir()), ..AccOptions::with_auth() });
    let enrolled = acc.enroll(1, 1);
    let node = FakeNode::new(&other.url(), None, 1, 1, Some(enrolled.token));
    let waiting = std::thread::spawn(move || {
        let mut status = 204;
        while status == 204 {
            status = node.get("/1/1/cmd?wait=30&role=web").status;
        }
        status
    });
    client.wait_seen("1:1");
    let parked = |client: &mut Client| client.redis::<Option<String>>(&["HGET", "jsacc:{1:1}:meta", "ac"]);
    wait_for("its poll waits", LONG, || parked(&mut client));
    assert_eq!(acc.command(&["revoke", "1", "1"]).code, 0);
    // Its connection is closed, or its next poll refused.
    assert!(matches!(waiting.join().expect("the node"), 0 | 401));
    // The controller writes down every five seconds which nodes wait there.
    let since = jstests::now_ms();
    wait_until("the controller has written down who waits", LONG, || {
        let id = client.push(json!({"gid": 1, "nid": 1, "cmd": "ping"}));
        is_answered(&mut client, &id);
        jstests::now_ms() - since > 7_000
    });
    nothing_is_left(&mut client);
}

#[test]
fn revocation_that_was_interrupted_is_finished_by_the_next_enrolment() {
    let (_redis, acc, mut client) = site();
    assert!(acc.node(1, 1).poll_as(&["web"], 0, None).is_none());
    let id = push(&mut client, json!({}));
    wait_until("it waits", LONG, || client.redis::<usize>(&["HLEN", "jsacc:{1:1}:cmds"]) == 1);
    let mut revoke = Command::new(bin("jsacc"));
    revoke.args(["revoke", "1", "1", "-r", acc.redis_url(), "--state-dir"]).arg(acc.state_dir());
    let output = run_with(revoke.env("JS_DIE_AT", "acc.revoked"));
    assert_ne!(output.code, 0, "{output:?}");
    assert_eq!(client.results(&id), 0);
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let reply = acc.anonymous().with_token(Some(&token)).post_text("/enroll", r#"{"gid": 1, "nid": 1}"#);
    assert_eq!(reply.status, 200, "{reply:?}");
    is_answered(&mut client, &id);
    let again = acc.anonymous().with_token(reply.json()["token"].as_str());
    assert!(again.poll_as(&["vault"], 0, None).is_none(), "nothing waited for it");
    assert_eq!(client.redis::<Vec<String>>(&["HKEYS", "jsacc:grant:1:1"]), ["role:vault"]);
    let id = push(&mut client, json!({}));
    assert_eq!(wait_for("it is a node again", LONG, || again.poll(5, None)).cmds[0]["id"], json!(id));
}
