//! Tests of how a controller handles single commands and results: quiet ones, lists of nodes, large fleets, and keys
//! of Redis that somebody has spoilt.

use jsacc::config::redis_address::Target;
use jsacc::model::{controllers, inbox};
use jsacc::redis::{Address, Conn};
use jstests::redis_cluster::Cluster;
use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, wait_for, wait_until};
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
fn cancel_that_is_gone_through_again_keeps_its_answer() {
    let (_redis, _acc, mut client) = site();
    let id = client.push(json!({"gid": 1, "nid": 99, "cmd": "ping"}));
    let cancel = json!({"id": "take-back", "gid": 1, "nid": 99, "cmd": "cancel", "data": {"id": id}}).to_string();
    client.push_raw(&cancel);
    assert_eq!(client.pop("take-back")["state"], "OK");
    assert_eq!(client.pop(&id)["state"], "KILLED");
    // A controller that died between forgetting the job and taking the command off its list, as a cluster lets it.
    let _: i64 = client.redis(&["LPUSH", "jsacc:{cmds_queue}:taken:ghost", &cancel]);
    let _: i64 = client.redis(&["ZADD", "jsacc:{cmds_queue}:acs", "1", "ghost"]);
    wait_until("another one has gone through it again", LONG, || {
        client.redis::<Vec<String>>(&["KEYS", "jsacc:{cmds_queue}:taken:*"]).is_empty()
    });
    assert_eq!(client.results("take-back"), 0, "once");
    assert_eq!(client.state("take-back", "1:99").as_deref(), Some("OK"), "who looks there finds what was delivered");
}

/// A controller looks where a job stands, another one cancels it, and then the first one queues it once more.
fn cancelled_job_that_is_queued_once_more_is_not_handed_over(conn: &mut dyn ConnectionLike, node: &FakeNode) {
    fn call<T: FromRedisValue>(conn: &mut dyn ConnectionLike, words: &[&str]) -> T {
        let mut cmd = redis::cmd(words[0]);
        let value = conn.req_command(cmd.arg(&words[1..])).expect("Redis answers");
        T::from_redis_value(value).expect("the answer's type")
    }
    let job = json!({"id": "job", "gid": 1, "nid": 10, "cmd": "ping"}).to_string();
    let cancel = json!({"id": "take-back", "gid": 1, "nid": 10, "cmd": "cancel", "data": {"id": "job"}}).to_string();
    for text in [&job, &cancel] {
        call::<i64>(conn, &["LPUSH", "cmds_queue", text]);
    }
    wait_until("it is cancelled", LONG, || call::<i64>(conn, &["LLEN", "cmds_queue_take-back"]) == 1);
    let answer: String = call(conn, &["RPOP", "cmds_queue_job"]);
    assert!(answer.contains("\"KILLED\""), "{answer}");
    // The state that the first controller has read.
    call::<i64>(conn, &["HSET", "jsacc:job:job", "1:10", r#"{"state":"QUEUED"}"#]);
    call::<i64>(conn, &["LPUSH", &taken("ghost"), &job]);
    call::<i64>(conn, &["ZADD", "jsacc:{cmds_queue}:acs", "1", "ghost"]);
    wait_until("it was gone through again", LONG, || {
        let names: Vec<String> = call(conn, &["ZRANGE", "jsacc:{cmds_queue}:acs", "0", "-1"]);
        let taken: Vec<i64> = names.iter().map(|name| call(conn, &["LLEN", &taken(name)])).collect();
        !names.contains(&"ghost".to_owned()) && taken.iter().all(|n| *n == 0)
    });
    let batch = node.poll(0, None);
    assert!(batch.is_none(), "a cancelled job is handed over: {batch:?}");
    assert_eq!(call::<i64>(conn, &["LLEN", "cmds_queue_job"]), 0, "its answer stands");
}

#[test]
fn a_cancelled_job_that_is_queued_once_more_is_not_handed_over() {
    let (redis, acc, _client) = site();
    let mut conn = redis.connect();
    cancelled_job_that_is_queued_once_more_is_not_handed_over(&mut conn, &acc.node(1, 10));
    let cluster = Cluster::start(false);
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    let mut conn = cluster.connect().expect("a connection");
    cancelled_job_that_is_queued_once_more_is_not_handed_over(&mut conn, &acc.node(1, 10));
}

#[test]
fn a_cancel_that_meets_the_end_of_the_wait_leaves_one_answer() {
    let redis = Redis::start();
    let mut dying = Acc::start(&redis, AccOptions::dying_at("acc.withdrawn"));
    let mut client = Client::new(&redis);
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping", "expires": 1}));
    wait_until("the controller dies with the command withdrawn", LONG, || dying.ended());
    // Its end comes again after the cancel.
    client.redis::<i64>(&["ZADD", "jsacc:expiring", "XX", "CH", "9999999999999", &format!("1:10:{id}")]);
    let _acc = Acc::start(&redis, AccOptions { state_dir: Some(dying.state_dir()), ..AccOptions::default() });
    let answer = {
        let cancel = client.push(json!({"gid": 1, "nid": 10, "cmd": "cancel", "data": {"id": id}}));
        client.pop(&cancel)
    };
    assert_eq!(answer["state"], "ERROR", "{answer}");
    assert!(answer["data"].as_str().is_some_and(|data| data.contains("has expired")), "{answer}");
    client.redis::<i64>(&["ZADD", "jsacc:expiring", "XX", "CH", "1", &format!("1:10:{id}")]);
    let answer = client.pop(&id);
    assert!(answer["data"].as_str().is_some_and(|data| data.starts_with("expired:")), "{answer}");
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("ERROR"));
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
fn command_that_a_node_had_before_it_was_queued_once_more_is_not_cancelled() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "execute"}));
    let batch = wait_for("the job", LONG, || node.poll(1, None));
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("RUNNING"));
    client.redis::<i64>(&["HSET", "jsacc:{1:10}:cmds", &id, &format!("1t:{}", batch.cmds[0])]);
    client.redis::<i64>(&["ZADD", "jsacc:{1:10}:queue", "9000000000000000", &id]);
    let answer = {
        let cancel = client.push(json!({"gid": 1, "nid": 10, "cmd": "cancel", "data": {"id": id}}));
        client.pop(&cancel)
    };
    assert!(answer["data"].as_str().is_some_and(|data| data.contains("kill it instead")), "{answer}");
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("RUNNING"));
    assert!(node.poll(0, None).is_none(), "it does not come twice");
}

#[test]
fn a_cancel_with_a_list_of_nodes_takes_back_those_alone() {
    let (_redis, _acc, mut client) = site();
    let id = client.push(json!({"nodes": [[1, 1], [1, 2], [1, 3]], "cmd": "ping"}));
    let cancel = client.push(json!({"nodes": [[1, 1], [1, 3]], "cmd": "cancel", "data": {"id": id}}));
    assert_eq!(client.pop(&cancel)["data"], r#"{"cancelled":true,"count":2}"#);
    assert_eq!(
        (client.pop(&id)["state"].clone(), client.pop(&id)["state"].clone()),
        (json!("KILLED"), json!("KILLED"))
    );
    assert_eq!(client.state(&id, "1:2").as_deref(), Some("QUEUED"));
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
fn a_controller_that_has_beaten_since_its_verdict_keeps_what_it_has_taken() {
    let redis = Redis::start();
    let mut client = Client::new(&redis);
    let address = Address::new(Target::parse(&redis.url()).unwrap(), None, &jsacc::model::SCHEMA);
    let conn = &mut Conn::connect(&address, LONG).unwrap();
    controllers::beat(conn, "one").unwrap();
    let now = controllers::beat(conn, "two").unwrap().now;
    silence(&mut client, "one");
    assert_eq!(controllers::dead(conn, "two", now).unwrap(), ["one"]);
    // It was away for a while, as when Redis is full, and goes on before the other one acts.
    controllers::beat(conn, "one").unwrap();
    client.push_raw("a");
    assert!(inbox::take(conn, "one").unwrap().is_some());
    controllers::reclaim(conn, "two", "one").unwrap();
    assert_eq!(client.redis::<usize>(&["LLEN", &taken("one")]), 1);
    assert_eq!(controllers(&mut client).len(), 2);
}

#[test]
fn command_that_a_controller_takes_after_it_was_held_to_be_dead_is_found() {
    let (_redis, acc, mut client) = site();
    let first = controllers(&mut client).remove(0);
    let address = Address::new(Target::parse(acc.redis_url()).unwrap(), None, &jsacc::model::SCHEMA);
    let conn = &mut Conn::connect(&address, LONG).unwrap();
    controllers::beat(conn, "dead").unwrap();
    silence(&mut client, "dead");
    wait_until("it is held to be dead", LONG, || controllers(&mut client) == [first.clone()]);
    // It is stopped in the middle of taking a command, and ends right after that.
    let id = jstests::fresh_id();
    let text = json!({"id": id, "roles": ["nobody"], "cmd": "ping"}).to_string();
    client.redis::<i64>(&["LPUSH", &taken("dead"), &text]);
    assert_eq!(client.pop(&id)["state"], "ERROR");
    wait_until("nothing is left", LONG, || client.redis::<usize>(&["EXISTS", &taken("dead"), &taken(&first)]) == 0);
    // One that lives again is none of those.
    assert!(!controllers::beat(conn, &first).unwrap().new && controllers::beat(conn, "dead").unwrap().new);
    assert_eq!(client.redis::<usize>(&["ZCARD", "jsacc:{cmds_queue}:gone"]), 0);
}

#[test]
fn a_command_that_expired_before_it_is_passed_on_again_is_answered_once() {
    let redis = Redis::start();
    let mut dying = Acc::start(&redis, AccOptions::dying_at("acc.enqueued"));
    let mut client = Client::new(&redis);
    assert!(dying.node(1, 10).poll_as(&["web"], 0, None).is_none());
    let id = client.push(json!({"roles": ["web"], "cmd": "ping", "expires": 1}));
    wait_until("the controller dies", LONG, || dying.ended());
    let dead = controllers(&mut client).remove(0);
    let other = Acc::start(&redis, AccOptions { state_dir: Some(dying.state_dir()), ..AccOptions::default() });
    let answer = client.pop(&id);
    assert!(answer["data"].as_str().is_some_and(|data| data.starts_with("expired:")), "{answer}");
    silence(&mut client, &dead);
    wait_until("it is passed on again", LONG, || {
        let names: Vec<String> = client.redis(&["KEYS", "jsacc:{cmds_queue}:taken:*"]);
        names.is_empty() && !controllers(&mut client).contains(&dead)
    });
    assert_eq!(client.results(&id), 0, "{}", other.output());
    let fields: Vec<String> = client.redis(&["HKEYS", &format!("jsacc:job:{id}")]);
    assert!(!fields.contains(&"0:0".to_owned()), "{fields:?}");
    assert_eq!(client.list("jsacc:audit")[0]["targets"], json!(["1:10"]));
}

#[test]
fn command_for_an_agent_that_has_stopped_is_not_handed_to_its_last_poll() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    let poll = |instance: &str, wait: u32| node.get(&format!("/1/10/cmd?wait={wait}&instance={instance}"));
    let shutdown = |instance: &str| json!({"name": "shutdown", "data": {"instance": instance}});
    let cancelled = |client: &mut Client| {
        let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
        let cancel = client.push(json!({"gid": 1, "nid": 10, "cmd": "cancel", "data": {"id": id}}));
        client.pop(&cancel)["state"] == "OK"
    };
    // This controller holds the poll of the node from then on.
    assert_eq!(poll("i1", 1).status, 204);
    assert_eq!(node.post("event", &shutdown("i0")).status, 200);
    assert!(!cancelled(&mut client), "what an earlier agent says late is no news");
    assert_eq!(poll("i1", 0).status, 200);
    let batch = client.redis::<String>(&["HGET", "jsacc:{1:10}:meta", "handed"]);
    assert_eq!(node.get(&format!("/1/10/cmd?wait=1&instance=i1&ack={batch}")).status, 204);
    assert_eq!(node.post("event", &shutdown("i1")).status, 200);
    assert!(cancelled(&mut client), "no node was handed it");
}

/// Puts a string where Redis is to hold something else.
fn spoil(client: &mut Client, key: &str) {
    client.redis::<()>(&["SET", key, "spoilt"]);
}

/// Nothing is on any taken list.
#[track_caller]
fn all_is_passed_on(client: &mut Client, what: &str) {
    wait_until(&format!("{what}: nothing is left on the taken list"), LONG, || {
        client.redis::<Vec<String>>(&["KEYS", "jsacc:{cmds_queue}:taken:*"]).is_empty()
    });
}

#[test]
fn a_spoilt_key_of_one_command_is_named_and_holds_up_no_other() {
    let (_redis, acc, mut client) = site();
    let good = acc.node(1, 99);
    let each = [
        ("jsacc:job:ID", "SET", true),
        ("jsacc:{1:NID}:queue", "SET", true),
        ("jsacc:{1:NID}:cmds", "SET", true),
        ("jsacc:{1:NID}:meta", "SET", true),
        // Of its type, and what stands there is no number.
        ("jsacc:{1:NID}:meta", "HSET", true),
        ("cmds_queue_ID", "SET", false),
        ("jsacc:done:{cmds_queue_ID}", "SET", false),
    ];
    for (nid, (key, how, is_answered)) in (1..).zip(each) {
        let id = jstests::fresh_id();
        let key = key.replace("ID", &id).replace(&format!("1:N{id}"), &format!("1:{nid}"));
        match how {
            "SET" => spoil(&mut client, &key),
            _ => client.redis(&["HSET", &key, "seq", "spoilt"]),
        }
        // Where the answer cannot be written, the command must need one: nobody has that role.
        let target = if is_answered { json!({"gid": 1, "nid": nid}) } else { json!({"roles": ["nobody"]}) };
        let mut command = json!({"id": id, "cmd": "ping"});
        command.as_object_mut().unwrap().extend(target.as_object().unwrap().clone());
        client.push(command);
        let other = client.push(json!({"gid": 1, "nid": 99, "cmd": "ping"}));
        serve(&good);
        assert_eq!(client.pop(&other)["state"], "OK", "{key}");
        wait_until(&format!("{key} is named in jsacc:rejected"), LONG, || {
            let named = |entry: &Value| entry["id"] == json!(id) && entry["reason"].to_string().contains(&key);
            client.rejected().iter().any(named)
        });
        all_is_passed_on(&mut client, &key);
        if is_answered {
            let answer = client.pop(&id);
            assert_eq!(answer["state"], "ERROR");
            assert!(answer["data"].as_str().is_some_and(|data| data.contains(&key)), "{answer}");
        }
        client.redis::<i64>(&["DEL", &key]);
    }
}

#[test]
fn spoilt_lists_of_what_has_happened_hold_up_no_command() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    for key in ["jsacc:jobs", "jsacc:audit", "jsacc:rejected", "jsacc:events", "jsacc:agents", "jsacc:{roles}:version"]
    {
        client.redis::<i64>(&["DEL", key]);
        client.redis::<()>(&["SET", key, "spoilt"]);
        client.push_raw("no command");
        let roles = client.push(json!({"roles": ["web"], "cmd": "ping"}));
        let id = client.send("ping", json!({}));
        client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping"}));
        serve(&node);
        assert_eq!(client.pop(&id)["state"], "OK", "{key}");
        let answer = client.pop(&roles);
        assert_eq!(answer["state"], "ERROR");
        if key == "jsacc:agents" {
            assert!(answer["data"].as_str().is_some_and(|data| data.contains(key)), "{answer}");
        }
        all_is_passed_on(&mut client, key);
        client.redis::<i64>(&["DEL", key]);
    }
    assert!(acc.output().contains("the key jsacc:audit in redis is a string and must be a list"));
}

#[test]
fn a_spoilt_command_is_inherited_once() {
    let (_redis, acc, mut client) = site();
    let address = Address::new(Target::parse(acc.redis_url()).unwrap(), None, &jsacc::model::SCHEMA);
    controllers::beat(&mut Conn::connect(&address, LONG).unwrap(), "dead").unwrap();
    let id = jstests::fresh_id();
    spoil(&mut client, &format!("jsacc:job:{id}"));
    let text = json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping"}).to_string();
    client.redis::<i64>(&["LPUSH", &taken("dead"), &text]);
    silence(&mut client, "dead");
    assert_eq!(client.pop(&id)["state"], "ERROR");
    all_is_passed_on(&mut client, "inherited");
    assert_eq!(client.rejected().iter().filter(|entry| entry["id"] == json!(id)).count(), 1);
}

#[test]
fn a_spoilt_command_that_expires_holds_up_no_other() {
    let (_redis, _acc, mut client) = site();
    let spoilt = client.push(json!({"gid": 1, "nid": 1, "cmd": "ping"}));
    let good = client.push(json!({"gid": 1, "nid": 2, "cmd": "ping"}));
    wait_until("both wait", LONG, || client.redis::<usize>(&["ZCARD", "jsacc:expiring"]) == 2);
    client.redis::<i64>(&["DEL", "jsacc:{1:1}:queue"]);
    spoil(&mut client, "jsacc:{1:1}:queue");
    // The time of both is up, and that of the spoilt one first.
    let (first, second) = (format!("1:1:{spoilt}"), format!("1:2:{good}"));
    client.redis::<i64>(&["ZADD", "jsacc:expiring", "XX", "1", &first, "2", &second]);
    assert!(client.pop(&good)["data"].as_str().is_some_and(|data| data.starts_with("expired:")));
    assert_eq!(client.results(&spoilt), 0);
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
