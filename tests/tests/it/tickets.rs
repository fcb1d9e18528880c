//! A node answers for the jobs that it was given, and for no other: tickets.

use jstests::{Acc, AccOptions, AgentOptions, Client, FakeNode, LONG, Redis, Stage, fresh_id, wait_for, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const KEY: &str = "jsacc:ticket_key";

struct Site {
    redis: Redis,
    acc: Acc,
    client: Client,
    node: FakeNode,
    other: FakeNode,
}

fn site() -> Site {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let (client, node, other) = (Client::new(&redis), acc.node(1, 10), acc.node(1, 11));
    Site { redis, acc, client, node, other }
}

impl Site {
    /// Sends a command to 1:10, and returns it as the node has it.
    #[track_caller]
    fn taken(&mut self, args: Value) -> Value {
        self.client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": args, "later": [1]}));
        take(&self.node)
    }
}

/// The next command of a node, acknowledged.
#[track_caller]
fn take(node: &FakeNode) -> Value {
    let batch = wait_for("a command comes", LONG, || node.poll(5, None));
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    assert_eq!(batch.cmds.len(), 1, "{batch:?}");
    batch.cmds[0].clone()
}

fn id_of(command: &Value) -> String {
    command["id"].as_str().expect("id").to_owned()
}

#[track_caller]
fn refused(node: &FakeNode, result: &Value, why: &str) {
    let reply = node.post("result", &json!([result]));
    assert_eq!(reply.status, 403, "{reply:?}");
    assert!(reply.error().contains(why), "{reply:?}");
    assert_eq!(reply.json()["refused"], json!([result["id"]]));
}

#[track_caller]
fn accepted(node: &FakeNode, result: &Value) {
    let reply = node.post("result", &json!([result]));
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn result_before_the_command_is_handed_over_is_refused() {
    let mut site = site();
    let (id, made_up) = (fresh_id(), "r60.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let forged = |node: &FakeNode, ticket: Value| {
        node.result_of(&json!({"id": id, "cmd": "ping", "args": {}, "tags": "", "ticket": ticket}), "OK", "forged")
    };
    // Nobody has sent such a command yet, and what is refused does not make the next one good.
    for _ in 0..2 {
        refused(&site.node, &forged(&site.node, Value::Null), "redis knows no such job");
        refused(&site.node, &forged(&site.node, made_up.into()), "its ticket is not that");
        refused(&site.node, &forged(&site.node, "".into()), "its ticket is not that");
        refused(&site.node, &forged(&site.node, 5.into()), "its ticket is not that");
    }
    site.client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping"}));
    let command = take(&site.node);
    // Another node forges it while the first one has it.
    refused(&site.other, &forged(&site.other, command["ticket"].clone()), "its ticket is not that");
    refused(&site.other, &forged(&site.other, Value::Null), "its job was for other nodes");
    assert_eq!(site.client.results(&id), 0);
    accepted(&site.node, &site.node.result_of(&command, "OK", "good"));
    let result = site.client.pop(&id);
    assert_eq!((&result["data"], result.get("ticket")), (&json!("good"), None), "clients do not get it");
    assert_eq!(site.client.results(&id), 0);
    let told: Vec<Value> = site.client.events().into_iter().filter(|event| event["name"] == "refused_result").collect();
    // One a minute for each node, of ten refusals.
    assert!(
        (2..10).contains(&told.len()) && [10, 11].iter().all(|nid| told.iter().any(|e| e["nid"] == *nid)),
        "{told:?}"
    );
    assert!(told.iter().all(|event| event["data"]["id"] == id.as_str()), "{told:?}");
}

#[test]
fn ticket_of_another_node_or_job_is_refused() {
    let mut site = site();
    let targets = json!([[1, 10], [1, 11]]);
    let id = site.client.push(json!({"nodes": targets, "cmd": "ping"}));
    let (mine, others) = (take(&site.node), take(&site.other));
    assert_ne!(mine["ticket"], others["ticket"]);
    refused(&site.other, &site.other.result_of(&mine, "OK", "forged"), "its ticket is not that");
    let next = site.taken(json!({"cmd": "/bin/true"}));
    let mut replayed = site.node.result_of(&next, "OK", "forged");
    replayed["ticket"] = mine["ticket"].clone();
    refused(&site.node, &replayed, "its ticket is not that");
    assert_eq!((site.client.results(&id), site.client.results(&id_of(&next))), (0, 0));
    accepted(&site.other, &site.other.result_of(&others, "OK", "11"));
    accepted(&site.node, &site.node.result_of(&mine, "OK", "10"));
    let got = [site.client.pop(&id)["data"].clone(), site.client.pop(&id)["data"].clone()];
    assert_eq!(got, [json!("11"), json!("10")]);
}

#[test]
fn job_that_does_not_recur_brings_one_result_whatever_its_results_say() {
    let mut site = site();
    let command = site.taken(json!({"cmd": "/bin/true"}));
    let id = id_of(&command);
    let ticket = command["ticket"].as_str().expect("a ticket").to_owned();
    assert!(ticket.starts_with('.'), "{ticket}");
    for run in 0..20 {
        let mut result = site.node.result_of(&command, "ERROR", &run.to_string());
        (result["starttime"], result["args"]) = (json!(1000 + run), json!({"recurring_period": 1}));
        accepted(&site.node, &result);
        result["ticket"] = format!("r1{ticket}").into();
        refused(&site.node, &result, "its ticket is not that");
    }
    assert_eq!((site.client.pop(&id)["data"].clone(), site.client.results(&id)), (json!("0"), 0));
    let runs: Vec<String> = site.client.redis(&["KEYS", &format!("jsacc:done:*{id}*:1:10:*")]);
    assert_eq!(runs, Vec::<String>::new());
}

#[test]
fn recurring_job_brings_its_runs_also_when_redis_has_forgotten_it() {
    let mut site = site();
    let command = site.taken(json!({"cmd": "/bin/true", "recurring_period": 60}));
    let id = id_of(&command);
    assert!(command["ticket"].as_str().is_some_and(|ticket| ticket.starts_with("r60.")), "{command}");
    for run in 0..4 {
        if run == 2 {
            let _: i64 = site.client.redis(&["DEL", &format!("jsacc:job:{id}")]);
        }
        let mut result = site.node.result_of(&command, "ERROR", &run.to_string());
        // The period in the result has no effect.
        (result["starttime"], result["args"]) = (json!(1000 + run), json!({"recurring_period": 1e9}));
        accepted(&site.node, &result);
        accepted(&site.node, &result);
    }
    let got: Vec<Value> = (0..4).map(|_| site.client.pop(&id)["data"].clone()).collect();
    assert_eq!(got, ["0", "1", "2", "3"]);
    assert_eq!(site.client.results(&id), 0);
    for key in site.client.redis::<Vec<String>>(&["KEYS", &format!("jsacc:done:*{id}*")]) {
        assert!(site.client.redis::<i64>(&["TTL", &key]) <= 2 * 86_400, "{key}");
    }
}

#[test]
fn agent_without_tickets_is_believed_until_its_node_returns_one() {
    let mut site = site();
    // A job is its word for it, and later what was delivered of it.
    let recurring = site.taken(json!({"cmd": "/bin/true", "recurring_period": 60}));
    let once = site.taken(json!({"cmd": "/bin/true"}));
    for run in 0..3 {
        let mut result = site.node.old_result_of(&recurring, "ERROR", &run.to_string());
        result["starttime"] = json!(1000 + run);
        accepted(&site.node, &result);
        let mut result = site.node.old_result_of(&once, "ERROR", &run.to_string());
        (result["starttime"], result["args"]) = (json!(1000 + run), json!({"recurring_period": 60}));
        accepted(&site.node, &result);
        if run == 0 {
            let _: i64 = site.client.redis(&["DEL", &format!("jsacc:job:{}", id_of(&recurring))]);
        }
    }
    assert_eq!(site.client.results(&id_of(&recurring)), 3);
    assert_eq!(site.client.results(&id_of(&once)), 1);
    // One node's word does not count for another.
    let mut foreign = site.other.old_result_of(&recurring, "ERROR", "forged");
    foreign["starttime"] = json!(5);
    refused(&site.other, &foreign, "redis knows no such job");

    let (last, first) = (site.taken(json!({"cmd": "/bin/true"})), site.taken(json!({"cmd": "/bin/true"})));
    accepted(&site.node, &site.node.result_of(&first, "OK", "new"));
    for command in [&last, &recurring, &first] {
        refused(&site.node, &site.node.old_result_of(command, "OK", "old"), "has returned tickets before");
    }
    // Another controller knows it too.
    let options = AccOptions { state_dir: Some(site.acc.state_dir()), ..AccOptions::default() };
    let second = Acc::start(&site.redis, options);
    refused(&second.node(1, 10), &site.node.old_result_of(&last, "OK", "old"), "has returned tickets before");
    assert_eq!(site.client.results(&id_of(&last)), 0);
    accepted(&site.node, &site.node.result_of(&last, "OK", "new"));
    assert_eq!(site.client.pop(&id_of(&last))["data"], "new");
}

#[test]
fn result_with_its_ticket_is_delivered_when_redis_has_lost_everything() {
    let mut site = site();
    let command = site.taken(json!({"cmd": "/bin/true"}));
    let key: String = site.client.redis(&["GET", KEY]);
    site.client.redis::<()>(&["FLUSHALL"]);
    refused(&site.node, &site.node.old_result_of(&command, "OK", "forged"), "redis knows no such job");
    accepted(&site.node, &site.node.result_of(&command, "OK", "good"));
    assert_eq!(site.client.pop(&id_of(&command))["data"], "good");
    wait_until("the key is back", LONG, || site.client.redis::<Option<String>>(&["GET", KEY]).as_ref() == Some(&key));
    // Also when the controller was not there, and by one that starts then.
    let next = site.taken(json!({"cmd": "/bin/true"}));
    site.acc.kill();
    site.client.redis::<()>(&["FLUSHALL"]);
    site.acc.resume();
    assert_eq!(site.client.redis::<String>(&["GET", KEY]), key);
    accepted(&site.node, &site.node.result_of(&next, "OK", "good"));
    assert_eq!(site.client.pop(&id_of(&next))["data"], "good");
}

/// The state directory as a copy that was made before there was a ticket key.
fn copy_without_key(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("the state directory").flatten() {
        if entry.file_name() != "ticket.key" {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
}

#[test]
fn controllers_of_one_redis_take_each_others_tickets() {
    let redis = Redis::start();
    let first = Acc::start(&redis, AccOptions::default());
    let dir = tempfile::tempdir().expect("a folder");
    copy_without_key(&first.state_dir(), dir.path());
    let second = Acc::start(&redis, AccOptions { state_dir: Some(dir.path().to_owned()), ..AccOptions::default() });
    let mut client = Client::new(&redis);
    let key: String = client.redis(&["GET", KEY]);
    for dir in [first.state_dir(), dir.path().to_owned()] {
        let file = dir.join("ticket.key");
        assert_eq!(fs::read_to_string(&file).expect("the key's file").trim(), key);
        assert_eq!(fs::metadata(&file).expect("the key's file").permissions().mode() & 0o777, 0o600);
    }
    for (here, there) in [(&first, &second), (&second, &first)] {
        let id = client.send("ping", json!({}));
        let command = take(&here.node(1, 10));
        let node = there.node(1, 10);
        refused(&there.node(1, 11), &there.node(1, 11).result_of(&command, "OK", ""), "its ticket is not that");
        accepted(&node, &node.result_of(&command, "OK", ""));
        assert_eq!(client.pop(&id)["state"], "OK");
    }
}

#[test]
fn ticket_holds_after_a_rotation_and_a_change_of_the_key() {
    let mut site = site();
    let command = site.taken(json!({"cmd": "/bin/true"}));
    let key: String = site.client.redis(&["GET", KEY]);
    let done = site.acc.command(&["rotate"]);
    assert_eq!(done.code, 0, "{done:?}");
    site.acc.kill();
    site.acc.resume();
    assert_eq!(site.client.redis::<String>(&["GET", KEY]), key);
    accepted(&site.node, &site.node.result_of(&command, "OK", ""));

    // A key that Redis has and this controller does not know wins: others use it.
    let command = site.taken(json!({"cmd": "/bin/true"}));
    let other = "0123456789abcdef".repeat(4);
    let _: String = site.client.redis(&["SET", KEY, &other]);
    let file = site.acc.state_dir().join("ticket.key");
    wait_until("it is kept", LONG, || {
        fs::read_to_string(&file).expect("the key's file") == format!("{other}\n{key}\n")
    });
    let next = site.taken(json!({"cmd": "/bin/true"}));
    for command in [&command, &next] {
        accepted(&site.node, &site.node.result_of(command, "OK", ""));
    }
    // The controller does not take a text that is no key for one.
    let _: String = site.client.redis(&["SET", KEY, "nonsense"]);
    site.acc.kill();
    site.acc.resume();
    let last = site.taken(json!({"cmd": "/bin/true"}));
    accepted(&site.node, &site.node.result_of(&last, "OK", ""));
    assert_eq!(fs::read_to_string(&file).expect("the key's file"), format!("{other}\n{key}\n"));
    assert!(!site.acc.output().contains(&key) && !site.acc.output().contains(&other));
}

#[test]
fn ticket_of_a_client_is_replaced_also_where_a_command_waits() {
    let mut site = site();
    let id = site.client.push(json!({"gid": 1, "nid": 10, "cmd": "ping", "ticket": "mine", "later": [1]}));
    let command = take(&site.node);
    assert_eq!(command["later"], json!([1]));
    assert!(!site.client.job(&id)["cmd"].contains("mine"));
    accepted(&site.node, &site.node.result_of(&command, "OK", ""));

    // As a controller of 0.1.0 has queued it.
    let id = site.client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": {"recurring_period": 7}}));
    wait_until("it waits", LONG, || site.client.redis::<i64>(&["HEXISTS", "jsacc:{1:10}:cmds", &id]) == 1);
    let old = json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "/bin/true", "recurring_period": 7},
        "data": "", "ticket": "mine", "later": [1]});
    let _: i64 = site.client.redis(&["HSET", "jsacc:{1:10}:cmds", &id, &format!("1766385000123:{old}")]);
    let command = take(&site.node);
    assert_eq!(command["later"], json!([1]));
    assert!(command["ticket"].as_str().is_some_and(|ticket| ticket.starts_with("r7.")), "{command}");
    accepted(&site.node, &site.node.result_of(&command, "OK", ""));
    assert_eq!(site.client.pop(&id)["state"], "OK");
}

#[test]
fn agent_returns_tickets_with_each_result_over_its_restarts() {
    let mut stage = Stage::start_with(AccOptions::default(), AgentOptions::default());
    let recurring =
        stage.client.send("execute", json!({"cmd": "/bin/sh", "args": ["-c", "echo 20::1"], "recurring_period": 1}));
    let interrupted = stage.client.shell("sleep 1000");
    assert_eq!(stage.client.pop(&recurring)["state"], "OK");
    assert_eq!(stage.client.redis::<String>(&["HGET", "jsacc:{1:10}:meta", "tickets"]), "1");
    // From now on every result of this node needs one: of what was refused, of a death, of a built-in command too.
    assert_eq!(stage.client.run("no_such_command", json!({}))["state"], "ERROR");
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
    stage.client.wait_running(&interrupted);
    stage.agent.kill();
    // Nothing but the ticket says whose jobs these are.
    for id in [&recurring, &interrupted] {
        let _: i64 = stage.client.redis(&["DEL", &format!("jsacc:job:{id}"), &format!("cmds_queue_{id}")]);
    }
    stage.agent.resume();
    let result = stage.client.pop(&interrupted);
    assert!(result["state"] == "ERROR" && result.get("ticket").is_none(), "{result}");
    assert_eq!(stage.client.pop(&recurring)["state"], "OK");
    let refused = |event: &Value| event["name"] == "refused_result" || event["name"] == "delivery_refused";
    assert!(!stage.client.events().iter().any(refused), "{:?}", stage.client.events());
}
