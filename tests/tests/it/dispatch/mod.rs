//! Tests of how a controller handles single commands and results: quiet ones, lists of nodes, large fleets, and keys
//! of Redis that somebody has spoilt.

mod cancel;
mod dead_controllers;
mod spoilt_keys;

use jsacc::config::redis_address::Target;
use jsacc::model::{controllers, inbox};
use jsacc::redis::{Address, Conn};
use jstests::redis_cluster::Cluster;
use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, fresh_id, wait_for, wait_until};
use redis::{ConnectionLike, FromRedisValue};
use serde_json::{Value, json};

fn site() -> (Redis, Acc, Client) {
    jstests::site(AccOptions::default())
}

/// Polls until a command comes, and answers it with `OK`.
#[track_caller]
fn serve(node: &FakeNode) -> Value {
    let batch = node.poll(30, None).expect("a command");
    let results: Vec<Value> = batch.cmds.iter().map(|cmd| node.result_of(cmd, "OK", "\"pong\"")).collect();
    assert_eq!(node.post("result", &json!(results)).status, 200);
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    batch.cmds[0].clone()
}

/// The taken list of a controller.
fn taken(controller: &str) -> String {
    format!("jsacc:{{cmds_queue}}:taken:{controller}")
}

/// The names of all controllers that are known.
fn controllers(client: &mut Client) -> Vec<String> {
    client.redis(&["ZRANGE", "jsacc:acs", "0", "-1"])
}

/// Makes a controller silent for long.
fn silence(client: &mut Client, controller: &str) {
    for key in ["jsacc:acs", "jsacc:{cmds_queue}:acs"] {
        client.redis::<i64>(&["ZADD", key, "XX", "1", controller]);
    }
}

#[test]
fn a_quiet_command_is_in_no_list_and_is_soon_forgotten() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let quiet = client.push(json!({"gid": 1, "nid": 10, "cmd": "get_msgs", "quiet": true, "expires": 3600}));
    let command = serve(&node);
    assert_eq!((&command["quiet"], &command["expires"]), (&json!(true), &json!(60)));
    assert_eq!(client.pop(&quiet)["state"], "OK");
    assert_eq!(client.state(&quiet, "1:10").as_deref(), Some("OK"));
    let gone = client.push(json!({"roles": ["nobody"], "cmd": "ping", "quiet": true}));
    assert_eq!(client.pop(&gone)["state"], "ERROR");
    for key in [format!("jsacc:job:{quiet}"), format!("jsacc:done:{{cmds_queue_{quiet}}}"), format!("jsacc:job:{gone}")]
    {
        let seconds: i64 = client.redis(&["TTL", &key]);
        assert!((1..=120).contains(&seconds), "{key} lives for {seconds} s");
    }
    let plain = client.send("ping", json!({}));
    serve(&node);
    assert_eq!(client.pop(&plain)["state"], "OK");
    wait_until("the other command is listed", LONG, || client.list("jsacc:audit").len() == 1);
    assert_eq!(client.list("jsacc:audit")[0]["id"], json!(plain));
    let jobs: Vec<String> = client.redis(&["LRANGE", "jsacc:jobs", "0", "-1"]);
    assert_eq!(jobs, std::slice::from_ref(&plain));
    let counts: Vec<String> = client.redis(&["HKEYS", "jsacc:audit:results"]);
    assert_eq!(counts, [format!("{plain} OK")]);
    let seconds: i64 = client.redis(&["TTL", &format!("jsacc:job:{plain}")]);
    assert!(seconds > 3600, "{seconds}");
}

#[test]
fn a_list_of_nodes_is_one_job_of_all_of_them() {
    let (_redis, acc, mut client) = site();
    let id = client.push(json!({"nodes": [[1, 11], [1, 10], [2, 5]], "cmd": "ping"}));
    for (gid, nid) in [(1, 10), (1, 11)] {
        let command = serve(&acc.node(gid, nid));
        assert_eq!((&command["gid"], &command["nid"], command.get("nodes")), (&json!(gid), &json!(nid), None));
    }
    client.redis::<i64>(&["ZADD", "jsacc:expiring", "XX", "CH", "1", &format!("2:5:{id}")]);
    let mut ends: Vec<Value> = (0..3).map(|_| client.pop(&id)).collect();
    ends.sort_by_key(|end| end["nid"].as_u64());
    // The controller's answer for the third target names that target.
    let expired = &ends[0];
    assert_eq!((&expired["gid"], &expired["nid"], &expired["state"]), (&json!(2), &json!(5), &json!("ERROR")));
    assert!(expired["data"].as_str().is_some_and(|data| data.contains("node 2:5")), "{expired}");
    assert_eq!((&ends[1]["nid"], &ends[2]["nid"]), (&json!(10), &json!(11)));
    assert_eq!(client.state(&id, "2:5").as_deref(), Some("ERROR"));
    assert_eq!(client.list("jsacc:audit")[0]["count"], 3);

    let both = client.push(json!({"nodes": [[1, 10]], "roles": ["*"], "cmd": "ping"}));
    let answer = client.pop(&both);
    assert!(answer["data"].as_str().is_some_and(|data| data.contains("beside nid or roles")), "{answer}");
}

#[test]
fn the_id_of_a_quiet_command_that_has_expired_can_be_used_again() {
    let (_redis, acc, mut client) = site();
    let command = json!({"id": "probe", "gid": 1, "nid": 10, "cmd": "ping", "quiet": true, "expires": 300});
    client.push_raw(&command.to_string());
    wait_until("it waits", LONG, || client.redis::<bool>(&["HEXISTS", "jsacc:{1:10}:cmds", "probe"]));
    client.redis::<i64>(&["ZADD", "jsacc:expiring", "XX", "CH", "1", "1:10:probe"]);
    let answer = client.pop("probe");
    assert!(answer["data"].as_str().is_some_and(|data| data.starts_with("expired:")), "{answer}");
    // The controller removes its text after it has answered.
    wait_until("its text is removed", LONG, || !client.redis::<bool>(&["HEXISTS", "jsacc:{1:10}:cmds", "probe"]));
    wait_until("its end is removed", LONG, || {
        client.redis::<Option<f64>>(&["ZSCORE", "jsacc:expiring", "1:10:probe"]).is_none()
    });
    // Two minutes pass, in which its keys end.
    client.redis::<f64>(&["ZINCRBY", "jsacc:{1:10}:withdrawn", "-480000", "probe"]);
    for key in client.redis::<Vec<String>>(&["KEYS", "*probe*"]) {
        client.redis::<i64>(&["DEL", &key]);
    }
    client.push_raw(&command.to_string());
    let batch = acc.node(1, 10).poll(30, None).expect("it is a new command");
    assert_eq!(batch.cmds[0]["id"], "probe");
}

#[test]
fn results_of_more_than_10000_targets_are_all_kept() {
    const TARGETS: usize = 10_050;
    let (_redis, acc, mut client) = site();
    let mut seen = redis::cmd("ZADD");
    seen.arg("jsacc:agents");
    for nid in 1..=TARGETS {
        seen.arg(jstests::now_ms()).arg(format!("1:{nid}"));
    }
    seen.query::<()>(&mut client.conn).expect("ZADD");
    let id = client.push(json!({"roles": ["*"], "fanout": true, "cmd": "ping"}));
    let node = acc.node(1, 1);
    let batch = node.poll(30, None).expect("a command");
    // All others but one have answered, and nobody has taken their answers yet.
    let list = format!("cmds_queue_{id}");
    let others: Vec<String> = (3..=TARGETS).map(|nid| nid.to_string()).collect();
    redis::cmd("LPUSH").arg(&list).arg(&others).query::<()>(&mut client.conn).expect("LPUSH");
    assert_eq!(node.post("result", &json!([node.result_of(&batch.cmds[0], "OK", "")])).status, 200);
    assert_eq!(client.results(&id), TARGETS - 1);
    let cancel = client.push(json!({"gid": 1, "nid": 2, "cmd": "cancel", "data": {"id": id}}));
    assert_eq!(client.pop(&cancel)["state"], "OK");
    assert_eq!(client.results(&id), TARGETS);
}

#[test]
fn a_text_that_is_no_json_and_has_an_id_is_answered() {
    let (_redis, _acc, mut client) = site();
    let id = jstests::fresh_id();
    client
        .push_raw(&format!(r#"{{"id": "{id}", "gid": 1, "nid": 10, "cmd": "get", "args": {{"path": "caf\udce9"}}}}"#));
    let answer = client.pop(&id);
    assert_eq!((&answer["state"], &answer["nid"]), (&json!("ERROR"), &json!(10)));
    assert!(answer["data"].as_str().is_some_and(|data| data.contains("surrogate")), "{answer}");
    wait_until("it is told why", LONG, || client.rejected().iter().any(|entry| entry["id"] == json!(id)));
}

#[test]
fn a_result_is_pushed_once_its_list_is_no_other_type_any_more() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    for recurring in [false, true] {
        let args = if recurring { json!({"cmd": "true", "recurring_period": 60}) } else { json!({"cmd": "true"}) };
        let id = client.send("execute", args);
        let batch = node.poll(30, None).expect("a command");
        let list = format!("cmds_queue_{id}");
        client.redis::<()>(&["SET", &list, "spoilt"]);
        let result = json!([node.result_of(&batch.cmds[0], "OK", "kept")]);
        assert_ne!(node.post("result", &result).status, 200);
        client.redis::<()>(&["DEL", &list]);
        assert_eq!(node.post("result", &result).status, 200);
        assert_eq!(client.pop(&id)["data"], "kept", "recurring: {recurring}");
        assert_eq!(node.post("result", &result).status, 200);
        assert_eq!(client.results(&id), 0, "once");
        assert!(node.poll(0, Some(&batch.batch)).is_none());
    }
}

/// The name of the only controller.
fn controller(client: &mut Client) -> String {
    let names: Vec<String> = client.redis(&["ZRANGE", "jsacc:acs", "0", "-1"]);
    assert_eq!(names.len(), 1, "{names:?}");
    names[0].clone()
}

#[test]
fn text_with_a_known_id_answers_for_nothing_when_it_is_taken_up_again() {
    for text in [
        json!({"gid": 1, "nid": 10, "cmd": 5}),
        json!({"gid": 1, "nid": 10, "cmd": "cancel", "data": "{\"id\": \"waiting\"}"}),
    ] {
        let redis = Redis::start();
        let mut acc = Acc::start(&redis, AccOptions::dying_at("acc.answered:3"));
        let mut client = Client::new(&redis);
        let dead = controller(&mut client);
        for id in ["waiting", "known"] {
            client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping"}));
            wait_until("the command is passed on", LONG, || {
                let taken: i64 = client.redis(&["LLEN", &format!("jsacc:{{cmds_queue}}:taken:{dead}")]);
                let listed: Vec<String> = client.redis(&["LRANGE", "jsacc:jobs", "0", "-1"]);
                taken == 0 && listed.iter().any(|listed| listed == id)
            });
        }
        let mut again = text.clone();
        again["id"] = json!("known");
        client.push(again);
        acc.wait();
        // The next one need not wait until the dead one has been silent for long.
        for key in ["jsacc:acs", "jsacc:{cmds_queue}:acs"] {
            client.redis::<i64>(&["ZADD", key, "1", &dead]);
        }
        acc.resume();
        wait_until("it is a duplicate", LONG, || {
            client.events().iter().any(|event| event["name"] == "duplicate" && event["data"]["id"] == "known")
        });
        for id in ["waiting", "known"] {
            assert_eq!(client.state(id, "1:10").as_deref(), Some("QUEUED"), "{text}");
            assert_eq!(client.results(id), 0, "{text}");
        }
        let batch = acc.node(1, 10).poll(30, None).expect("both commands");
        assert_eq!(batch.cmds.len(), 2, "{batch:?}");
    }
}

#[test]
fn malformed_commands_are_rejected_and_answered() {
    let (_redis, _acc, mut client) = site();
    for text in ["{", "[]", "\"x\"", "{\"cmd\": \"ping\", \"gid\": 1, \"nid\": 1}", "{\"id\": \"a b\", \"cmd\": \"x\"}"]
    {
        client.push_raw(text);
    }
    wait_until("all are rejected", LONG, || client.rejected().len() == 5);
    assert!(client.rejected().iter().all(|entry| entry["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
    let id = fresh_id();
    for (command, word) in [
        (json!({"id": id, "gid": 1, "nid": 10, "cmd": 5}), "cmd must be"),
        (json!({"id": format!("{id}1"), "cmd": "ping"}), "no target"),
        (json!({"id": format!("{id}2"), "cmd": "ping", "nid": 5}), "gid"),
        (json!({"id": format!("{id}3"), "cmd": "ping", "gid": 1, "nid": 1, "args": "x"}), "args"),
    ] {
        let id = client.push(command.clone());
        let result = client.pop(&id);
        assert_eq!(result["state"], "ERROR");
        assert!(result["data"].as_str().unwrap().contains(word), "{command}: {result}");
    }
    assert_eq!(client.redis::<usize>(&["LLEN", "cmds_queue"]), 0);
}

#[test]
fn a_second_command_with_an_id_goes_nowhere() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let id = client.send("ping", json!({}));
    let batch = node.poll(10, None).unwrap();
    client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping"}));
    client.push(json!({"id": id, "gid": 1, "nid": 11, "cmd": "ping"}));
    wait_until("two events", LONG, || {
        client.events().iter().filter(|event| event["name"] == "duplicate" && event["data"]["id"] == json!(id)).count()
            == 2
    });
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    assert!(acc.node(1, 11).poll(0, None).is_none());
}

#[test]
fn a_command_expires_unless_a_poll_has_carried_it() {
    let (_redis, acc, mut client) = site();
    let id = client.push(json!({"gid": 1, "nid": 99, "cmd": "ping", "expires": 1}));
    let result = client.pop(&id);
    assert_eq!((&result["state"], &result["gid"], &result["nid"]), (&json!("ERROR"), &json!(1), &json!(99)));
    assert!(result["data"].as_str().unwrap().contains("expired"), "{result}");
    assert_eq!(client.state(&id, "1:99").as_deref(), Some("ERROR"));
    assert!(acc.node(1, 99).poll(0, None).is_none());

    let node = acc.node(1, 10);
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    let batch = node.poll(10, None).unwrap();
    let (key, member) = ("jsacc:expiring", format!("1:10:{id}"));
    client.redis::<i64>(&["ZADD", key, "XX", "1", &member]);
    wait_until("the end of its wait is put off", LONG, || {
        client.redis::<Option<f64>>(&["ZSCORE", key, &member]).is_some_and(|until| until > 1.0)
    });
    assert_eq!(node.poll(0, None).unwrap().batch, batch.batch, "it was carried and stays");
    assert_eq!(client.results(&id), 0);
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    assert_eq!(node.post("result", &json!([node.result_of(&batch.cmds[0], "OK", "x")])).status, 200);
    assert_eq!(client.pop(&id)["state"], "OK");
}

#[test]
fn a_full_queue_says_so() {
    let redis = Redis::start();
    let options = AccOptions { args: vec!["--max-queue".into(), "2".into()], ..AccOptions::default() };
    let _acc = Acc::start(&redis, options);
    let mut client = Client::new(&redis);
    let ids: Vec<String> = (0..3).map(|_| client.send("ping", json!({}))).collect();
    let result = client.pop(&ids[2]);
    assert_eq!(result["state"], "ERROR");
    assert!(result["data"].as_str().unwrap().contains("wait for node 1:10"), "{result}");
    assert_eq!((client.results(&ids[0]), client.results(&ids[1])), (0, 0));
}
