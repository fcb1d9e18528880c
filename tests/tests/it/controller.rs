//! The controller as a client and a node see it: targets, acknowledgement, results, refusals.

use jstests::{Acc, AccOptions, Client, LONG, Redis, SHORT, wait_for, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A Redis, a controller without credentials, a client.
fn site() -> (Redis, Acc, Client) {
    jstests::site(AccOptions::default())
}

fn event(client: &mut Client, name: &str) -> Value {
    wait_for(&format!("an event {name}"), LONG, || client.events().into_iter().find(|event| event["name"] == name))
}

#[test]
fn a_batch_comes_again_until_it_is_acknowledged() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping", "later": [1]}));
    let first = node.poll(10, None).unwrap();
    assert_eq!((first.cmds.len(), &first.cmds[0]["id"], &first.cmds[0]["later"]), (1, &json!(id), &json!([1])));
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("QUEUED"));
    let again = node.poll(0, None).unwrap();
    assert_eq!((again.batch.as_str(), again.cmds.len()), (first.batch.as_str(), 1));
    assert!(node.poll(0, Some(&first.batch)).is_none());
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("RUNNING"));

    let result = node.result_of(&first.cmds[0], "OK", "\"pong\"");
    for _ in 0..3 {
        assert_eq!(node.post("result", &json!([result])).status, 200);
    }
    assert_eq!(client.pop(&id)["data"], "\"pong\"");
    assert_eq!(client.results(&id), 0, "a result that was sent three times is there once");
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("OK"));
    let job = client.job(&id);
    assert_eq!(job["targets"], "[\"1:10\"]");
    assert!(job["created"].parse::<u64>().unwrap() > 1_700_000_000_000);
    let jobs: Vec<String> = client.redis(&["LRANGE", "jsacc:jobs", "0", "-1"]);
    assert_eq!(jobs, [id]);
}

#[test]
fn a_waiting_poll_is_answered_at_once() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    const WAIT: u32 = 60;
    let waiting = std::thread::spawn(move || node.poll(WAIT, None).unwrap());
    client.wait_seen("1:10");
    let begin = Instant::now();
    let id = client.send("ping", json!({}));
    let batch = waiting.join().unwrap();
    assert_eq!(batch.cmds[0]["id"], json!(id));
    assert!(begin.elapsed() < Duration::from_secs(WAIT.into()) / 2, "it did not wait for the poll's own end");
}

#[test]
fn an_unknown_acknowledgement_loses_nothing() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let id = client.send("ping", json!({}));
    wait_for("queued", LONG, || client.state(&id, "1:10"));
    assert_eq!(node.poll(0, Some("9007199254740000")).unwrap().cmds.len(), 1);
    assert_eq!(node.get("/1/10/cmd?wait=0&ack=x").status, 400);
    assert_eq!(node.get("/1/10/cmd?wait=61").status, 400);
    assert_eq!(node.get("/1/10/cmd?wait=x").status, 400);
}

#[test]
fn roles_choose_live_nodes() {
    let (_redis, acc, mut client) = site();
    let nodes: Vec<_> = [(1, 1, "web"), (1, 2, "web"), (2, 1, "db")]
        .iter()
        .map(|(gid, nid, role)| {
            let node = acc.node(*gid, *nid);
            assert!(node.poll_as(&[role], 0, None).is_none());
            node
        })
        .collect();
    let roles: String = client.redis(&["HGET", "jsacc:agent:1:1", "roles"]);
    assert_eq!(roles, "[\"web\"]");

    let targets = |client: &mut Client, command: Value| -> Vec<String> {
        let id = client.push(command);
        let text = wait_for("the job's hash", LONG, || client.job(&id).remove("targets"));
        serde_json::from_str(&text).unwrap()
    };
    let fanout = targets(&mut client, json!({"roles": ["web"], "fanout": true, "cmd": "ping"}));
    assert_eq!(fanout, ["1:1", "1:2"]);
    assert_eq!(targets(&mut client, json!({"roles": ["*"], "fanout": true, "cmd": "ping"})), ["1:1", "1:2", "2:1"]);
    assert_eq!(targets(&mut client, json!({"roles": ["*"], "gid": 2, "cmd": "ping"})), ["2:1"]);
    let one = targets(&mut client, json!({"roles": ["web"], "cmd": "ping"}));
    assert!(one == ["1:1"] || one == ["1:2"], "{one:?}");
    let copy = nodes[2].poll(10, None).unwrap();
    assert_eq!((&copy.cmds[0]["gid"], &copy.cmds[0]["nid"]), (&json!(2), &json!(1)), "its copy names the node");

    let id = client.push(json!({"roles": ["mail"], "gid": 0, "cmd": "ping", "tags": "t"}));
    let result = client.pop(&id);
    assert_eq!((&result["state"], &result["gid"], &result["nid"]), (&json!("ERROR"), &json!(0), &json!(0)));
    assert_eq!(result["tags"], "t");
    assert!(result["data"].as_str().unwrap().contains("mail"), "{result}");
    assert_eq!(client.job(&id)["targets"], "[]");
}

#[test]
fn roles_of_other_characters_are_passed_over_and_told() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 1);
    let long = "x".repeat(200);
    let hostile = ["x;touch${IFS}/tmp/p;:", "$(reboot)", "a\nb", "a b", "*", "\u{1b}[1m", "ü", long.as_str()];
    let roles: Vec<&str> = hostile.into_iter().chain(["web"]).collect();
    let bytes = |role: &&str| role.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let encoded: Vec<String> = roles.iter().map(bytes).collect();
    let encoded: Vec<&str> = encoded.iter().map(String::as_str).collect();
    assert!(node.poll_as(&encoded, 0, None).is_none());
    assert_eq!(client.redis::<String>(&["HGET", "jsacc:agent:1:1", "roles"]), "[\"web\"]");
    assert!(!client.redis::<String>(&["HGET", "jsacc:{roles}", "1:1"]).contains("touch"));

    let data = json!({"hostname": "h", "instance": "i1", "roles": roles});
    assert_eq!(node.post("event", &json!({"name": "startup", "data": data})).status, 200);
    assert_eq!(client.redis::<String>(&["HGET", "jsacc:agent:1:1", "roles"]), "[\"web\"]");
    let told = event(&mut client, "startup");
    assert_eq!(told["data"]["roles"], json!(["web"]));
    let refused = told["data"]["refused_roles"].as_array().expect("what was refused");
    assert!(refused.len() == hostile.len() && refused.contains(&json!("a\\nb")), "{told}");
    // It goes on fetching its commands.
    let id = client.push(json!({"roles": ["web"], "cmd": "ping"}));
    let fetched = node.poll(10, None).expect("a command").cmds;
    assert_eq!(fetched[0]["id"], json!(id));
    let id = client.push(json!({"roles": ["$(reboot)"], "cmd": "ping"}));
    assert_eq!(client.pop(&id)["state"], "ERROR");
}

#[test]
fn of_two_final_answers_the_first_stands() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let id = client.send("ping", json!({}));
    let batch = node.poll(10, None).unwrap();
    let mut result = node.result_of(&batch.cmds[0], "TIMEOUT", "late");
    assert_eq!(node.post("result", &json!([result])).status, 200);
    result["starttime"] = json!(result["starttime"].as_i64().unwrap() + 5);
    result["state"] = "OK".into();
    assert_eq!(node.post("result", &json!([result])).status, 200);
    let late = event(&mut client, "late_result");
    assert_eq!(late["data"]["id"], json!(id));
    assert_eq!(client.pop(&id)["state"], "TIMEOUT");
    assert_eq!((client.results(&id), client.state(&id, "1:10").as_deref()), (0, Some("TIMEOUT")));
}

#[test]
fn runs_of_a_recurring_job_are_delivered_when_they_say_something() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let id = client.send("execute", json!({"cmd": "x", "recurring_period": 1}));
    let batch = node.poll(10, None).unwrap();
    let run = |starttime: i64, state: &str, level: u8| {
        let mut result = node.result_of(&batch.cmds[0], state, &starttime.to_string());
        result["starttime"] = starttime.into();
        result["level"] = level.into();
        for _ in 0..2 {
            assert_eq!(node.post("result", &json!([result])).status, 200);
        }
    };
    run(1, "OK", 0);
    run(2, "OK", 0);
    run(3, "ERROR", 0);
    run(4, "OK", 20);
    let delivered: Vec<Value> = (0..3).map(|_| client.pop(&id)["data"].clone()).collect();
    assert_eq!(delivered, ["1", "3", "4"]);
    assert_eq!(client.results(&id), 0);
    run(5, "OK", 0);
    assert!(client.job(&id)["1:10"].contains("\"starttime\":5"), "a quiet run is in the hash");
}

#[test]
fn results_of_others_are_refused_and_good_ones_beside_them_taken() {
    let (_redis, acc, mut client) = site();
    let (node, other) = (acc.node(1, 10), acc.node(1, 11));
    let id = client.send("ping", json!({}));
    let batch = node.poll(10, None).unwrap();
    let good = node.result_of(&batch.cmds[0], "OK", "good");
    let stolen = other.result_of(&batch.cmds[0], "OK", "stolen");
    let forgotten = client.push(json!({"gid": 1, "nid": 11, "cmd": "ping"}));
    let others = other.poll(10, None).unwrap();
    let _: i64 = client.redis(&["DEL", &format!("jsacc:job:{forgotten}")]);
    let unknown = other.result_of(&others.cmds[0], "OK", "gone");
    let answer = other.post("result", &json!([stolen, unknown]));
    assert_eq!(answer.status, 403);
    assert_eq!(answer.json()["refused"], json!([id]));
    assert_eq!(client.pop(&forgotten)["data"], "gone", "a job that Redis forgot is delivered");
    assert_eq!(other.post("result", &json!([good])).status, 403, "one that names another node");
    assert_eq!(client.results(&id), 0);
    assert_eq!(node.post("result", &json!([good])).status, 200);
    assert_eq!(client.pop(&id)["data"], "good");
    for bad in [json!({}), json!([5]), json!([{"id": "a b", "state": "OK"}]), json!([{"id": "a", "state": "Fine"}])] {
        let answer = node.post("result", &bad);
        assert_eq!(answer.status, 400, "{bad}");
        assert!(!answer.error().is_empty());
    }
    assert_eq!(node.post_text("/1/10/result", "{").status, 400);
}

#[test]
fn records_and_stats_are_taken_once() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let record = |id: u32| json!({"id": id, "jobid": "j", "jobdomain": "web.x", "jobname": "", "epoch": 5, "level": 3, "data": "d"});
    for _ in 0..2 {
        assert_eq!(node.post("log", &json!({"batch": 17, "records": [record(1), record(2)]})).status, 200);
    }
    assert_eq!(node.post("log", &json!({"batch": 16, "records": [record(3)]})).status, 200);
    assert_eq!(node.post("log", &json!({"batch": 18, "records": [record(4)]})).status, 200);
    let ids: Vec<Value> = client.list("log.web_x.unknown").iter().map(|record| record["id"].clone()).collect();
    assert_eq!(ids, [4, 2, 1]);
    assert_eq!(client.list("log.web_x.unknown")[0]["nid"], 10);
    assert!(client.redis::<i64>(&["TTL", "log.web_x.unknown"]) > 6 * 86_400);

    let stats = json!({"batch": 1, "timestamp": 1000, "series": [["key", 1.5], ["1.10.web.nginx.x", 2]]});
    for _ in 0..2 {
        assert_eq!(node.post("stats", &stats).status, 200);
    }
    let changed = json!({"batch": 1, "timestamp": 1001, "series": [["key", 9], ["new", 1]]});
    assert_eq!(node.post("stats", &changed).status, 200);
    assert_eq!(client.redis::<String>(&["HGET", "jsacc:stats:1:10", "key"]), "[1.5,1000]");
    assert_eq!(client.redis::<usize>(&["HLEN", "jsacc:stats:1:10"]), 2, "a known number changes nothing");
    assert_eq!(client.redis::<usize>(&["LLEN", "jsacc:stats_queue"]), 1);
    let other = json!({"batch": 2, "timestamp": 1000, "series": [["1.11.web.nginx.x", 2]]});
    assert_eq!(node.post("stats", &other).status, 403);
    let text = acc.anonymous().get("/metrics/nodes").body;
    assert!(text.contains("js_x{gid=\"1\",nid=\"10\",domain=\"web\",name=\"nginx\"} 2"), "{text}");
    for (what, bad) in [
        ("log", json!({"records": []})),
        ("log", json!({"batch": -1, "records": []})),
        ("log", json!({"batch": 50, "records": [{"gid": 1, "nid": 11}, 5]})),
        ("stats", json!({"batch": 50})),
        ("stats", json!({"batch": 50, "series": [["a"]]})),
        ("event", json!({"data": {}})),
    ] {
        let status = node.post(what, &bad).status;
        assert!(status == 400 || status == 403, "{what} {bad}: {status}");
    }
}

#[test]
fn events_and_what_is_known_of_a_node() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let data = json!({"hostname": "h", "os": "linux", "version": "1", "instance": "i1", "roles": ["web"]});
    assert_eq!(node.post("event", &json!({"name": "startup", "data": data})).status, 200);
    let told = event(&mut client, "startup");
    assert_eq!((&told["gid"], &told["nid"], &told["data"]["hostname"]), (&json!(1), &json!(10), &json!("h")));
    assert_eq!(client.redis::<String>(&["HGET", "jsacc:agent:1:10", "hostname"]), "h");
    // An agent's report of its end is news only while no other has come in its place.
    let stopped = |instance| json!({"name": "shutdown", "data": {"instance": instance}});
    assert_eq!(node.post("event", &stopped("i0")).status, 200);
    assert!(!client.redis::<bool>(&["HEXISTS", "jsacc:agent:1:10", "stopped"]));
    assert_eq!(node.post("event", &stopped("i1")).status, 200);
    assert!(client.redis::<bool>(&["HEXISTS", "jsacc:agent:1:10", "stopped"]));
    assert!(node.poll_as(&["web"], 0, None).is_none());
    let ac: String = client.redis(&["HGET", "jsacc:agent:1:10", "ac"]);
    let acs: Vec<String> = client.redis(&["ZRANGE", "jsacc:acs", "0", "-1"]);
    assert_eq!(acs, [ac]);
}

#[test]
fn two_agents_with_one_name_are_told_apart() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    assert_eq!(node.get("/1/10/cmd?wait=0&instance=a").status, 204);
    assert_eq!(node.get("/1/10/cmd?wait=0&instance=b").status, 204);
    let answer = node.get("/1/10/cmd?wait=0&instance=a");
    assert_eq!((answer.status, answer.retry_after.as_deref()), (409, Some("30")));
    assert_eq!(node.get("/1/10/cmd?wait=0&instance=a").status, 409);
    assert_eq!(node.get("/1/10/cmd?wait=0&instance=b").status, 204, "the newer one is served");
    let told = event(&mut client, "two_agents");
    assert_eq!((&told["data"]["older"], &told["data"]["newer"]), (&json!("127.0.0.1"), &json!("127.0.0.1")));
    assert_eq!(client.events().iter().filter(|event| event["name"] == "two_agents").count(), 1);
}

#[test]
fn spoilt_keys_of_a_node_hide_neither_its_second_agent_nor_its_end() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let poll = |instance: &str| node.get(&format!("/1/10/cmd?wait=0&instance={instance}"));
    assert_eq!((poll("a").status, poll("b").status), (204, 204));
    client.redis::<i64>(&["HSET", "jsacc:agent:1:10", "stopped", "soon"]);
    let reply = poll("a");
    assert_eq!(reply.status, 409, "{reply:?}");
    client.redis::<()>(&["SET", "jsacc:agent:1:10", "spoilt"]);
    let reply = poll("a");
    assert_eq!(reply.status, 409, "{reply:?}");
    client.redis::<i64>(&["DEL", "jsacc:agent:1:10"]);
    client.redis::<()>(&["SET", "jsacc:{1:10}:meta", "spoilt"]);
    let reply = node.post("event", &json!({"name": "shutdown", "data": {"instance": "b"}}));
    assert_eq!(reply.status, 200, "{reply:?}");
    event(&mut client, "shutdown");
}

#[test]
fn older_agent_is_served_again_once_the_newer_has_stopped() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let poll = |instance: &str| node.get(&format!("/1/10/cmd?wait=0&instance={instance}")).status;
    let stop = |instance: &str| {
        let reply = node.post("event", &json!({"name": "shutdown", "data": {"instance": instance}}));
        assert_eq!(reply.status, 200, "{reply:?}");
    };
    assert_eq!((poll("a"), poll("b"), poll("a")), (204, 204, 409));
    stop("a");
    assert_eq!((poll("b"), poll("a")), (204, 409), "only the stop of the newer one counts");
    stop("b");
    assert_eq!(poll("a"), 204);
    assert_eq!(client.redis::<String>(&["HGET", "jsacc:agent:1:10", "instance"]), "a");
}

#[test]
fn secrets_stay_out_of_history() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let args = json!({"cmd": "x", "env": {"PW": "geheim"}, "secret": true});
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": args, "data": "geheim"}));
    let batch = node.poll(10, None).unwrap();
    assert_eq!((&batch.cmds[0]["data"], &batch.cmds[0]["args"]["env"]["PW"]), (&json!("geheim"), &json!("geheim")));
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    assert_eq!(node.post("result", &json!([node.result_of(&batch.cmds[0], "OK", "done")])).status, 200);
    // It is off the taken list only when all that follows from it is written.
    wait_until("it is passed on", LONG, || {
        client.redis::<Vec<String>>(&["KEYS", "jsacc:{cmds_queue}:taken:*"]).is_empty()
    });
    let keys: Vec<String> = client.redis(&["KEYS", "*"]);
    for key in keys {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query(&mut client.conn).unwrap();
        assert!(!String::from_utf8_lossy(&dump).contains("geheim"), "{key}");
    }
    assert!(!acc.output().contains("geheim"));
    assert_eq!(client.pop(&id)["state"], "OK");
    let audit = &client.list("jsacc:audit")[0];
    assert_eq!((&audit["id"], &audit["cmd"], &audit["count"]), (&json!(id), &json!("execute"), &json!(1)));
    assert_eq!(client.redis::<i64>(&["HGET", "jsacc:audit:results", &format!("{id} OK")]), 1);
}

#[test]
fn two_controllers_are_one() {
    let redis = Redis::start();
    let one = Acc::start(&redis, AccOptions::default());
    let two = Acc::start(&redis, AccOptions { state_dir: Some(one.state_dir()), ..AccOptions::default() });
    let mut client = Client::new(&redis);
    let (here, there) = (one.node(1, 10), two.node(1, 11));
    let waiting: Vec<_> =
        [here.clone(), there].into_iter().map(|node| std::thread::spawn(move || node.poll(30, None))).collect();
    client.wait_seen("1:10");
    client.wait_seen("1:11");
    let id = client.push(json!({"roles": ["*"], "fanout": true, "cmd": "ping"}));
    for poll in waiting {
        assert_eq!(poll.join().unwrap().unwrap().cmds[0]["id"], json!(id), "whichever controller took it");
    }
    // One controller takes the acknowledgement of a batch that the other has handed over.
    let moved = two.node(1, 10);
    let batch = moved.poll(0, None).unwrap();
    assert!(moved.poll(0, Some(&batch.batch)).is_none());
    assert!(here.poll(0, None).is_none());
}

#[test]
fn bad_usage_and_bad_starts_are_told() {
    let run = |args: &[&str]| jstests::run("jsacc", args);
    let help = run(&["--help"]);
    assert!(help.code == 0 && help.stdout.contains("usage"), "{help:?}");
    assert!(run(&["--version"]).stdout.starts_with("jsacc "));
    for args in [vec!["--prot", "1"], vec!["-p", "x"], vec!["-c", "/nonexistent.toml"], vec!["frobnicate"]] {
        let done = run(&args);
        assert_eq!(done.code, 2, "{args:?}: {done:?}");
        assert_eq!(done.stderr.trim_end().lines().count(), 1, "{done:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let state = dir.path().join("state");
    let state = state.to_str().unwrap();
    let done = run(&["-b", "127.0.0.1", "-p", &port, "--state-dir", state, "-r", "127.0.0.1:1"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("in use"), "{done:?}");
    std::fs::write(dir.path().join("state/ca.key"), "x").unwrap();
    let done = run(&["-b", "127.0.0.1", "-p", "0", "--state-dir", state, "-r", "127.0.0.1:1"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("ca.key"), "{done:?}");
}

#[test]
fn a_polite_stop_lets_polls_go() {
    let (_redis, mut acc, mut client) = site();
    let node = acc.node(1, 10);
    let waiting = std::thread::spawn(move || node.get("/1/10/cmd?wait=60"));
    client.wait_seen("1:10");
    std::thread::sleep(SHORT);
    assert_eq!(acc.stop(), Some(0), "before the poll ends by itself");
    assert_eq!(waiting.join().unwrap().status, 204);
    assert_eq!(client.redis::<usize>(&["ZCARD", "jsacc:acs"]), 0);
}

#[test]
fn commands_that_wait_are_counted_for_the_metrics() {
    let (_redis, acc, mut client) = site();
    client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    wait_until("the command is counted", LONG, || {
        let text = acc.anonymous().get("/metrics").body;
        text.contains("jsacc_queued_commands 1\n") && text.contains("jsacc_pending_commands 0\n")
    });
}
