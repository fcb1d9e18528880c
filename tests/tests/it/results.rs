//! A result reaches its client once, however often it is sent.

use jsacc::model::results::{self, Bounds, Delivery, Push, Verdict};
use jsacc::redis::{Address, Batch, Conn};
use jscommon::State;
use jstests::{Acc, AccOptions, Client, LONG, Redis, wait_for, wait_until};
use serde_json::{Value, json};

/// A controller, a node that took a job, and the job's command.
fn taken() -> (Redis, Acc, Client, jstests::FakeNode, Value) {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    client.push(json!({"gid": 1, "nid": 10, "cmd": "ping", "tags": "t"}));
    let batch = wait_for("the job comes", LONG, || node.poll(5, None));
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    let command = batch.cmds[0].clone();
    (redis, acc, client, node, command)
}

fn id_of(command: &Value) -> String {
    command["id"].as_str().expect("id").to_owned()
}

fn without_ticket(result: &Value) -> Value {
    let mut result = result.clone();
    result.as_object_mut().expect("a result").remove("ticket");
    result
}

#[test]
fn a_result_sent_twice_arrives_once() {
    let (_redis, _acc, mut client, node, command) = taken();
    let id = id_of(&command);
    let result = node.result_of(&command, "OK", "\"pong\"");
    for _ in 0..3 {
        assert_eq!(node.post("result", &json!([result])).status, 200);
    }
    assert_eq!(node.post("result", &json!([result, result])).status, 200);
    assert_eq!(client.pop(&id), without_ticket(&result), "what comes is what was sent, but for the ticket");
    assert_eq!(node.post("result", &json!([result])).status, 200, "a repetition after the pop");
    assert_eq!(client.results(&id), 0);
    let ttl: i64 = {
        let other = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
        let batch = wait_for("the job comes", LONG, || node.poll(5, None));
        node.post("result", &json!([node.result_of(&batch.cmds[0], "OK", "")]));
        client.redis(&["TTL", &format!("cmds_queue_{other}")])
    };
    assert!((86_000..=86_400).contains(&ttl), "results are kept a day, not {ttl} s");
}

#[test]
fn a_job_is_kept_for_a_day_once_all_have_answered() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let nodes = [acc.node(1, 10), acc.node(1, 11)];
    for node in &nodes {
        assert!(node.poll_as(&["web"], 0, None).is_none());
    }
    let id = client.push(json!({"roles": ["web"], "fanout": true, "cmd": "ping", "expires": 100_000}));
    let mut left = Vec::new();
    for node in &nodes {
        let batch = wait_for("the job comes", LONG, || node.poll(5, None));
        assert_eq!(node.post("result", &json!([node.result_of(&batch.cmds[0], "OK", "")])).status, 200);
        left.push(client.redis::<i64>(&["TTL", &format!("jsacc:job:{id}")]));
    }
    assert!(left[0] > 100_000, "one is waited for still, and {} s are left", left[0]);
    assert!((86_000..=86_400).contains(&left[1]), "{} s are left", left[1]);
}

#[test]
fn of_two_final_answers_the_first_stands_and_the_second_becomes_an_event() {
    let (_redis, _acc, mut client, node, command) = taken();
    let id = id_of(&command);
    let first = node.result_of(&command, "TIMEOUT", "too slow");
    let mut second = node.result_of(&command, "OK", "done after all");
    second["starttime"] = json!(first["starttime"].as_i64().expect("starttime") + 5);
    assert_eq!(node.post("result", &json!([first])).status, 200);
    assert_eq!(node.post("result", &json!([second])).status, 200);
    assert_eq!(client.pop(&id)["state"], "TIMEOUT");
    assert_eq!(client.results(&id), 0);
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("TIMEOUT"));
    wait_until("an event tells of the second", LONG, || client.events().iter().any(|e| e.to_string().contains(&id)));
}

#[test]
fn a_run_that_is_answered_again_in_other_words_keeps_its_first_answer() {
    let (_redis, _acc, mut client, node, command) = taken();
    let id = id_of(&command);
    let first = node.result_of(&command, "OK", "done");
    // The answer of a node that lost power after the first one was taken.
    let mut second = node.result_of(&command, "ERROR", "the agent died while the job ran");
    second["starttime"] = first["starttime"].clone();
    assert_eq!(node.post("result", &json!([first])).status, 200);
    assert_eq!(node.post("result", &json!([second])).status, 200);
    assert_eq!(client.pop(&id)["state"], "OK");
    assert_eq!(client.results(&id), 0);
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("OK"));
}

#[test]
fn every_run_of_a_recurring_job_arrives() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let args = json!({"cmd": "/bin/true", "recurring_period": 1});
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": args}));
    let batch = wait_for("the job comes", LONG, || node.poll(5, None));
    let start = jstests::now_ms();
    for run in 0..3 {
        let mut result = node.result_of(&batch.cmds[0], "OK", &format!("run {run}"));
        result["starttime"] = json!(start + run * 1000);
        assert_eq!(node.post("result", &json!([result])).status, 200);
        assert_eq!(node.post("result", &json!([result])).status, 200);
    }
    let runs: Vec<String> = (0..3).map(|_| client.pop(&id)["data"].as_str().expect("data").to_owned()).collect();
    assert_eq!(runs, ["run 0", "run 1", "run 2"]);
    assert_eq!(client.results(&id), 0);
}

#[test]
fn a_result_of_a_job_that_redis_has_forgotten_is_delivered_all_the_same() {
    let (_redis, _acc, mut client, node, command) = taken();
    let id = id_of(&command);
    client.redis::<()>(&["DEL", &format!("jsacc:job:{id}")]);
    let result = node.result_of(&command, "OK", "\"pong\"");
    assert_eq!(node.post("result", &json!([result])).status, 200);
    assert_eq!(client.pop(&id), without_ticket(&result));
}

#[test]
fn good_results_beside_a_refused_one_arrive() {
    let (_redis, _acc, mut client, node, command) = taken();
    let other = client.push(json!({"gid": 1, "nid": 11, "cmd": "ping"}));
    wait_until("the other job is queued", LONG, || client.state(&other, "1:11").is_some());
    let good = node.result_of(&command, "OK", "");
    let bad = node.result_of(&json!({"id": other, "cmd": "ping", "args": {}, "tags": ""}), "OK", "");
    let reply = node.post("result", &json!([bad, good]));
    assert_eq!(reply.status, 403, "{reply:?}");
    assert_eq!(client.pop(&id_of(&command))["state"], "OK");
    assert_eq!(client.results(&other), 0);
}

#[test]
fn results_wait_for_redis_and_come_once() {
    let mut redis = Redis::start_durable();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    let batch = wait_for("the job comes", LONG, || node.poll(5, None));
    let result = json!([node.result_of(&batch.cmds[0], "OK", "")]);
    redis.kill();
    let reply = node.post("result", &result);
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.retry_after.is_some(), "{reply:?}");
    redis.resume();
    wait_until("the result is taken", LONG, || node.post("result", &result).status == 200);
    let mut client = Client::new(&redis);
    assert_eq!(client.pop(&id)["state"], "OK");
    assert_eq!(client.results(&id), 0);
}

#[test]
fn only_who_may_answer_for_a_job_makes_redis_remember_it_for_long() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let (mut client, node, other) = (Client::new(&redis), acc.node(1, 10), acc.node(1, 11));
    let args = json!({"cmd": "/bin/true", "recurring_period": 100 * 86_400});
    client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": args}));
    let command = wait_for("the job comes", LONG, || node.poll(5, None)).cmds[0].clone();
    let id = id_of(&command);
    let recurring = |node: &jstests::FakeNode, id: &str, with_ticket: bool| {
        let mut result = node.result_of(&command, "ERROR", "x");
        result["id"] = json!(id);
        json!([if with_ticket { result } else { without_ticket(&result) }])
    };
    let mut kept = |id: &str| client.redis::<i64>(&["TTL", &format!("jsacc:done:{{cmds_queue_{id}}}")]);
    for with_ticket in [true, false] {
        assert_eq!(other.post("result", &recurring(&other, &id, with_ticket)).status, 403);
        // Nor does a job that Redis does not know.
        let unknown = recurring(&other, "never-heard-of", with_ticket);
        assert_eq!(other.post("result", &unknown).status, 403);
        assert_eq!((kept(&id), kept("never-heard-of")), (-2, -2), "nothing is remembered");
    }
    // From an agent of 0.1.0, the job itself says how often it runs.
    assert_eq!(node.post("result", &recurring(&node, &id, false)).status, 200);
    assert!(kept(&id) > 190 * 86_400, "{}", kept(&id));
    // Its next run comes when the job's hash is long gone.
    client.redis::<()>(&["DEL", &format!("jsacc:job:{id}")]);
    let mut next = recurring(&node, &id, true);
    next[0]["starttime"] = json!(jstests::now_ms() + 5);
    assert_eq!(node.post("result", &next).status, 200);
    let runs = format!("jsacc:done:{{cmds_queue_{id}}}:1:10");
    assert_eq!(client.redis::<u64>(&["ZCARD", &runs]), 2);
    assert!(client.redis::<i64>(&["TTL", &runs]) > 190 * 86_400);
    assert_eq!(client.results(&id), 2);
}

/// A connection as the controller has them.
fn store(redis: &Redis) -> Conn {
    let target =
        jsacc::config::redis_address::Target::parse(&redis.url()).expect("the address of the private redis-server");
    Conn::connect(&Address::new(target, None, &jsacc::model::SCHEMA), LONG).expect("a connection to it")
}

#[test]
fn a_result_that_two_threads_push_is_counted_once() {
    let redis = Redis::start();
    let mut client = Client::new(&redis);
    let mut conn = store(&redis);
    let delivery = Delivery { id: "twice", target: "1:10", run: "5", text: "{}", recurring: None };
    // The node sent it again while the first request was under way: both are told that it is the first.
    for _ in 0..2 {
        let mut batch = Batch::new();
        results::decide(&mut batch, &delivery, false);
        let answer = conn.run(&batch).expect("a decision").pop().expect("one answer");
        assert_eq!(results::verdict(answer).expect("a verdict"), Verdict::First);
    }
    for _ in 0..2 {
        let push = Push { delivery: delivery.clone(), bounds: Bounds::of(1, false, 86_400), counted: Some(State::Ok) };
        results::push_all(&mut conn, Batch::new(), &[push]).expect("pushed");
    }
    assert_eq!(client.results("twice"), 1);
    assert_eq!(client.redis::<i64>(&["HGET", "jsacc:audit:results", "twice OK"]), 1);
    let kept: i64 = client.redis(&["TTL", "jsacc:audit:results"]);
    assert!(kept > 29 * 86_400, "{kept}");
}

#[test]
fn result_with_a_ticket_is_kept_for_a_day_though_redis_has_forgotten_its_job() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let (mut client, node) = (Client::new(&redis), acc.node(1, 10));
    for period in [0, 60] {
        let id = format!("stray{period}");
        let args = json!({"cmd": "/bin/true", "recurring_period": period});
        client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": args}));
        let batch = wait_for("the job comes", LONG, || node.poll(5, None));
        assert!(node.poll(0, Some(&batch.batch)).is_none());
        client.redis::<()>(&["DEL", &format!("jsacc:job:{id}")]);
        assert_eq!(node.post("result", &json!([node.result_of(&batch.cmds[0], "ERROR", "x")])).status, 200);
    }
    let keys = client.redis::<Vec<String>>(&["KEYS", "*{cmds_queue_stray*"]);
    assert_eq!(keys.len(), 3, "{keys:?}");
    for key in keys.iter().map(String::as_str).chain(["cmds_queue_stray0", "cmds_queue_stray60"]) {
        let kept: i64 = client.redis(&["TTL", key]);
        // Two periods more, for what is remembered of the one that recurs.
        assert!((86_000..=86_520).contains(&kept), "{key}: {kept} s");
    }
    assert_eq!(client.pop("stray0")["state"], "ERROR", "it is delivered all the same");
}

/// A node with a job that recurs, and the job's command.
fn recurring(period: u32) -> (Redis, Acc, Client, jstests::FakeNode, Value) {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let (mut client, node) = (Client::new(&redis), acc.node(1, 10));
    let args = json!({"cmd": "/bin/true", "recurring_period": period});
    client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": args}));
    let batch = wait_for("the job comes", LONG, || node.poll(5, None));
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    (redis, acc, client, node, batch.cmds[0].clone())
}

/// Runs of a job that failed, at these times.
fn runs(node: &jstests::FakeNode, command: &Value, starts: impl Iterator<Item = i64>) -> Value {
    let run = |start: i64| {
        let mut result = node.result_of(command, "ERROR", "");
        result["starttime"] = json!(start);
        result
    };
    json!(starts.map(run).collect::<Vec<_>>())
}

#[test]
fn node_that_makes_up_runs_of_a_recurring_job_is_slowed_down() {
    let (_redis, acc, mut client, node, command) = recurring(86_400);
    let (id, now) = (id_of(&command), jstests::now_ms());
    let other = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    let batch = wait_for("the other job comes", LONG, || node.poll(5, None));
    let mut body = runs(&node, &command, (0..900).map(|n| now - n));
    body.as_array_mut().expect("a list").push(node.result_of(&batch.cmds[0], "OK", ""));
    for _ in 0..2 {
        let reply = node.post("result", &body);
        assert_eq!((reply.status, reply.retry_after.as_deref()), (429, Some("60")), "{reply:?}");
        assert!(reply.error().contains("recurring_period"), "{reply:?}");
    }
    // Times of long ago make no more room than a month of runs has.
    let reply = node.post("result", &runs(&node, &command, 0..900));
    assert_eq!(reply.status, 429, "{reply:?}");
    let taken = client.results(&id);
    assert!((50..=300).contains(&taken), "{taken} runs were taken");
    assert_eq!(client.pop(&other)["state"], "OK", "what came with them is delivered");
    let told = |event: &Value| event["name"] == "refused_result" && event["data"]["id"] == json!(id);
    wait_until("an event tells it", LONG, || client.events().iter().any(told));
    drop(acc);
}

#[test]
fn runs_of_a_week_without_a_controller_are_all_taken_at_once() {
    let (_redis, _acc, mut client, node, command) = recurring(600);
    let (id, now, week) = (id_of(&command), jstests::now_ms(), 7 * 144);
    let starts: Vec<i64> = (0..week).map(|n| now - (week - n) * 600_000).collect();
    for some in starts.chunks(500) {
        let reply = node.post("result", &runs(&node, &command, some.iter().copied()));
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert_eq!(client.results(&id) as i64, week);
}

#[test]
fn a_result_is_delivered_once_its_list_is_a_list_again() {
    let (_redis, _acc, mut client, node, command) = taken();
    let id = id_of(&command);
    let key = format!("cmds_queue_{id}");
    let _: () = client.redis(&["SET", &key, "no list"]);
    let result = node.result_of(&command, "OK", "");
    assert_eq!(node.post("result", &json!([result])).status, 503);
    let _: i64 = client.redis(&["DEL", &key]);
    assert_eq!(node.post("result", &json!([result])).status, 200);
    assert_eq!(client.pop(&id)["state"], "OK");
}
