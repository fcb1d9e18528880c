//! A node with good credentials sends as much as it can: what it may send is bounded on every path, in bytes, in
//! entries and in time, and others are served meanwhile. Honest traffic of any size that is documented passes.

use jsacc::model::records;
use jsacc::redis::{Address, Batch, Conn};
use jscommon::NodeId;
use jstests::hostile::{Connection, Requests, Target};
use jstests::{
    Acc, AccOptions, AgentOptions, Client, FakeNode, LONG, Redis, Reply, Stage, now_ms, proc, wait_for, wait_until,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const NODE: NodeId = NodeId { gid: 1, nid: 10 };

fn start() -> (Redis, Acc, Client) {
    let args = vec!["--log-level".to_owned(), "error".to_owned()];
    jstests::site(AccOptions { args, ..AccOptions::default() })
}

/// Gives `node` jobs with these periods, and returns its commands.
fn given(client: &mut Client, node: &FakeNode, periods: &[u64]) -> Vec<Value> {
    for period in periods {
        let args = json!({"cmd": "/bin/true", "recurring_period": period});
        client.push(json!({"gid": node.gid, "nid": node.nid, "cmd": "execute", "args": args}));
    }
    let (mut commands, mut ack) = (Vec::new(), None);
    wait_until("the node has its jobs", LONG, || {
        if let Some(batch) = node.poll(1, ack.as_deref()) {
            commands.extend(batch.cmds);
            ack = Some(batch.batch);
        }
        commands.len() >= periods.len()
    });
    node.poll(0, ack.as_deref());
    commands
}

fn used_memory(client: &mut Client) -> u64 {
    let info: String = client.redis(&["INFO", "memory"]);
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("used_memory of INFO");
    line.trim().parse().expect("a number of bytes")
}

/// Another node gets a command and answers it.
#[track_caller]
fn is_served(client: &mut Client, other: &FakeNode) {
    let id = client.push(json!({"gid": other.gid, "nid": other.nid, "cmd": "ping"}));
    let batch = wait_for("another node gets its command", LONG, || other.poll(5, None));
    assert_eq!(other.post("result", &json!([other.result_of(&batch.cmds[0], "OK", "\"pong\"")])).status, 200);
    assert_eq!(client.pop(&id)["state"], "OK");
    other.poll(0, Some(&batch.batch));
}

#[track_caller]
fn is_told_to_wait(reply: &Reply) {
    let wait = reply.retry_after.as_deref().and_then(|seconds| seconds.parse::<u64>().ok());
    assert!(reply.status == 429 && wait.is_some_and(|wait| (1..=60).contains(&wait)), "{reply:?}");
    assert!(reply.error().contains("try again in"), "{reply:?}");
}

/// Sends what `make` makes until it is refused as too much; returns how often it was taken.
#[track_caller]
fn until_refused(most: usize, mut make: impl FnMut(usize) -> Reply) -> usize {
    for n in 0..most {
        let reply = make(n);
        if reply.status == 429 {
            is_told_to_wait(&reply);
            return n;
        }
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    panic!("{most} requests and never too much");
}

#[test]
fn values_that_are_no_numbers_or_short_texts_are_refused() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let post = |value: Value| node.post("stats", &json!({"batch": now_ms(), "series": [["1.10.a.b.c", value]]})).status;
    for bad in [json!("x".repeat(7 << 20)), json!("x".repeat(257)), json!([1]), json!({}), json!(true)] {
        assert_eq!(post(bad), 400);
    }
    assert_eq!(post(json!("x".repeat(8 << 20))), 413);
    let exists = client.redis::<u64>(&["EXISTS", "jsacc:stats:1:10", "jsacc:stats_queue"]);
    assert_eq!(exists, 0, "nothing is stored");
    assert_eq!((post(json!(1.5)), post(json!("up"))), (200, 200));
}

#[test]
fn bytes_of_records_series_and_events_are_bounded_and_leave_room_for_results() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let commands = given(&mut client, &node, &[0]);
    let data = "x".repeat(1 << 20);
    let record = json!({"jobdomain": "d", "jobname": "n", "level": 4, "data": data});
    let taken = until_refused(100, |n| node.post("log", &json!({"batch": n + 1, "records": [record]})));
    assert!((14..60).contains(&taken), "{taken} MiB at once");
    let series: Vec<Value> = (0..20_000).map(|n| json!([format!("1.10.d.n.{n:050}"), 1])).collect();
    until_refused(60, |n| node.post("stats", &json!({"batch": n + 1, "series": series})));
    let result = json!([node.result_of(&commands[0], "OK", &data)]);
    assert_eq!(node.post("result", &result).status, 200, "results have their own");
    is_served(&mut client, &acc.node(1, 11));
}

#[test]
fn new_names_of_series_are_bounded_and_known_ones_are_written_on() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let mut batch = 0;
    let mut post = |from: usize, count: usize, value: u64| {
        batch += 1;
        let series: Vec<Value> = (from..from + count).map(|n| json!([format!("1.10.d.n.k{n}"), value])).collect();
        assert_eq!(node.post("stats", &json!({"batch": batch, "timestamp": value, "series": series})).status, 200);
    };
    post(0, 9000, 1);
    for n in 1..6 {
        post(n * 9000, 9000, 1);
    }
    let fields = |client: &mut Client| client.redis::<usize>(&["HLEN", "jsacc:stats:1:10"]);
    assert!((9000..=10_000).contains(&fields(&mut client)), "{}", fields(&mut client));
    let last: Option<String> = client.redis(&["HGET", "jsacc:stats:1:10", "1.10.d.n.k53999"]);
    assert_eq!(last, None, "it was one too many");
    post(0, 9000, 2);
    let all: BTreeMap<String, String> = client.redis(&["HGETALL", "jsacc:stats:1:10"]);
    assert!((0..9000).all(|n| all.get(&format!("1.10.d.n.k{n}")).is_some_and(|pair| pair == "[2,2]")));
    let metrics = acc.anonymous().get("/metrics").body;
    assert!(metrics.contains("jsacc_refusals_total{reason=\"new-series\"}"), "it is told");
}

#[test]
fn full_hash_of_series_keeps_those_that_still_come() {
    let redis = Redis::start();
    let mut client = Client::new(&redis);
    let target =
        jsacc::config::redis_address::Target::parse(&redis.url()).expect("the address of the private redis-server");
    let mut conn = Conn::connect(&Address::new(target, None, &jsacc::model::SCHEMA), LONG).expect("a connection to it");
    let mut number = 0;
    let mut write = |from: usize, count: usize, seconds: u64| {
        number += 1;
        let series: Vec<(String, String)> =
            (from..from + count).map(|n| (format!("k{n}"), format!("[1,{seconds}]"))).collect();
        let mut batch = Batch::new();
        records::stats(&mut batch, NODE, number, &series, true, count);
        conn.run(&batch).expect("written");
    };
    write(0, 10_000, 1);
    write(20_000, 7, 1);
    let keys = |client: &mut Client| client.redis::<BTreeSet<String>>(&["HKEYS", "jsacc:stats:1:10"]);
    let all = keys(&mut client);
    assert!(all.len() == 10_000 && (0..10_000).all(|n| all.contains(&format!("k{n}"))), "{}", all.len());
    write(0, 9990, 2);
    write(20_000, 7, 2);
    let all = keys(&mut client);
    assert!(all.len() == 10_000 && (0..9990).chain(20_000..20_007).all(|n| all.contains(&format!("k{n}"))));
}

#[test]
fn queue_of_series_is_not_pushed_full_by_one_node() {
    let redis = Redis::start();
    // More bytes than usual, so that it is the share that counts.
    let args = vec!["--log-level".into(), "error".into(), "--max-records".into(), "100000".into()];
    let acc = Acc::start(&redis, AccOptions { args, ..AccOptions::default() });
    let mut client = Client::new(&redis);
    let batches_of = |client: &mut Client, nid: u32| {
        let entries: Vec<String> = client.redis(&["LRANGE", "jsacc:stats_queue", "0", "-1"]);
        entries.iter().filter(|entry| entry.contains(&format!("\"nid\":{nid},"))).count()
    };
    let big = |nid: u32| -> Vec<Value> { (0..10_000).map(|n| json!([format!("1.{nid}.d.n.{n:0390}"), 1])).collect() };
    // Four MiB each; nobody fetches them.
    let others: Vec<FakeNode> = (11..=18).map(|nid| acc.node(1, nid)).collect();
    for node in &others {
        let body = json!({"batch": 1, "series": big(node.nid)});
        assert_eq!(node.post("stats", &body).status, 200);
    }
    let (node, series) = (acc.node(1, 10), big(10));
    for batch in 1..=20 {
        assert_eq!(node.post("stats", &json!({"batch": batch, "series": series})).status, 200);
    }
    assert!((1..=5).contains(&batches_of(&mut client, 10)), "{}", batches_of(&mut client, 10));
    assert!(others.iter().all(|other| batches_of(&mut client, other.nid) == 1), "none of the others' is gone");
    // As soon as somebody fetches them there is room.
    client.redis::<()>(&["DEL", "jsacc:stats_queue"]);
    assert_eq!(node.post("stats", &json!({"batch": 21, "series": series})).status, 200);
    assert_eq!(batches_of(&mut client, 10), 1);
}

#[test]
fn events_are_bounded_in_bytes_and_of_each_node() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let data = "x".repeat(60 << 10);
    let taken = until_refused(100, |_| node.post("event", &json!({"name": "noise", "data": {"text": data}})));
    assert!((10..40).contains(&taken), "{taken} of 60 KiB");
    assert_eq!(acc.node(1, 11).post("event", &json!({"name": "word"})).status, 200);
    // The whole list is bounded too: by many nodes it is filled, and the newest stay.
    for nid in 100..130 {
        let other = acc.node(1, nid);
        for _ in 0..10 {
            assert_eq!(other.post("event", &json!({"name": "noise", "data": {"text": data}})).status, 200);
        }
    }
    let events: Vec<String> = client.redis(&["LRANGE", "jsacc:events", "0", "-1"]);
    let bytes: usize = events.iter().map(String::len).sum();
    assert!(bytes <= 16 << 20 && bytes > 15 << 20 && events[0].contains("\"nid\":129"), "{bytes} bytes");
}

#[test]
fn results_that_come_too_late_are_told_so_often_and_no_more() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let command = given(&mut client, &node, &[0]).remove(0);
    let result = |n: i64| {
        let mut result = node.result_of(&command, "OK", "");
        result["starttime"] = json!(n);
        result
    };
    let many: Vec<Value> = (1..=1000).map(result).collect();
    for _ in 0..2 {
        assert_eq!(node.post("result", &json!(many)).status, 200);
    }
    let told = client.events().iter().filter(|event| event["name"] == "late_result").count();
    assert!((1..=150).contains(&told), "{told} events");
    assert_eq!(client.results(command["id"].as_str().expect("id")), 1);
}

#[test]
fn made_up_runs_of_a_recurring_job_are_bounded_in_bytes_and_in_what_is_remembered() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let command = given(&mut client, &node, &[1]).remove(0);
    let id = command["id"].as_str().expect("id").to_owned();
    for request in 0..12 {
        let runs: Vec<Value> = (0..500)
            .map(|n| {
                let mut run = node.result_of(&command, "ERROR", "x");
                run["starttime"] = json!(1 + request * 500 + n);
                run
            })
            .collect();
        for _ in 0..2 {
            assert_eq!(node.post("result", &json!(runs)).status, 200);
        }
    }
    assert_eq!(client.results(&id), 6000, "each once");
    let key = format!("jsacc:done:{{cmds_queue_{id}}}:1:10");
    assert_eq!(client.redis::<usize>(&["ZCARD", &key]), 4000);
    let keys: Vec<String> = client.redis(&["KEYS", &format!("*{id}*")]);
    assert_eq!(keys.len(), 4, "no key for each run: {keys:?}");
}

#[test]
fn polls_and_look_ups_that_bring_nothing_are_bounded() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let hash = "0".repeat(64);
    for path in ["cmd?wait=0".to_owned(), format!("script?hash={hash}")] {
        let refused = (0..5000).map(|_| node.get(&node.path(&path))).find(|reply| ![204, 404].contains(&reply.status));
        is_told_to_wait(&refused.unwrap_or_else(|| panic!("never too many: {path}")));
    }
    is_served(&mut client, &acc.node(1, 11));
    // A command is fetched once the time has passed.
    client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    wait_until("it gets its command", LONG, || node.get(&node.path("cmd?wait=5")).status == 200);
}

#[test]
fn requests_for_credentials_are_bounded() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let node = acc.node(1, 10);
    let taken = until_refused(200, |_| node.post("renew", &json!({"certificate": true})));
    assert!((20..60).contains(&taken), "{taken}");
    let large = json!({"certificate": true, "junk": vec![json!({}); 10_000]});
    assert_eq!(node.post("renew", &large).status, 413);
}

#[test]
fn node_that_sends_too_fast_is_answered_slowly_and_others_are_not() {
    let (_redis, acc, mut client) = start();
    let target = Target { addr: ([127, 0, 0, 1], acc.port()).into(), tls: None, token: None };
    let path = NODE;
    let request = jstests::hostile::Request {
        method: "POST",
        path: format!("/{}/{}/nothing-such", path.gid, path.nid),
        body: Some(Vec::new()),
    };
    // Another path than a node's is nobody's; a bad batch is this node's.
    let bad = jstests::hostile::Request {
        path: format!("/{}/{}/stats", path.gid, path.nid),
        body: Some(vec![b'x'; 8 << 20]),
        ..request.clone()
    };
    let mut connection = Connection::new(target);
    assert_eq!(connection.send(&request).expect("an answer"), 404);
    let refused = (0..200).map(|_| connection.send(&bad).expect("an answer")).position(|status| status == 429);
    assert!(refused.is_some(), "1600 MiB are too much");
    is_served(&mut client, &acc.node(1, 11));
}

#[test]
fn flush_of_as_many_series_as_an_agent_has_is_taken() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let start = Instant::now();
    // As the agent sends it: batches of 20,000 with one timestamp, each again until it is taken.
    for batch in 0..13 {
        let (from, to) = (batch * 20_000, (250_000).min((batch + 1) * 20_000));
        let series: Vec<Value> =
            (from..to).map(|n| json!([format!("1.10.shop.frontend.requests.route{n}.mean"), n as f64 / 3.0])).collect();
        let body = json!({"batch": batch + 1, "timestamp": 5, "series": series});
        send_until_taken(&node, "stats", &body);
    }
    assert_eq!(client.redis::<u64>(&["LLEN", "jsacc:stats_queue"]), 13, "after {:?}", start.elapsed());
}

#[test]
fn results_and_records_that_have_gathered_in_an_outage_are_taken() {
    let (_redis, acc, mut client) = start();
    let node = acc.node(1, 10);
    let command = given(&mut client, &node, &[60]).remove(0);
    let id = command["id"].as_str().expect("id").to_owned();
    // As the agent sends them: 500 results at once, and batches of records below 1 MiB.
    let text = "x".repeat(2000);
    for request in 0..20 {
        let results: Vec<Value> = (0..500)
            .map(|n| {
                let mut result = node.result_of(&command, "ERROR", &text);
                result["starttime"] = json!(1 + request * 500 + n);
                result
            })
            .collect();
        send_until_taken(&node, "result", &json!(results));
        let record = json!({"jobdomain": "d", "jobname": "n", "level": 4, "data": text});
        let records = vec![record; 400];
        send_until_taken(&node, "log", &json!({"batch": request + 1, "records": records}));
    }
    assert_eq!(client.results(&id), 10_000, "each once");
    assert_eq!(client.redis::<u64>(&["LLEN", "log.d.n"]), 8000);
}

/// Sends it as an agent does: a 429 is waited for.
#[track_caller]
fn send_until_taken(node: &FakeNode, what: &str, body: &Value) {
    let end = Instant::now() + 4 * LONG;
    loop {
        let reply = node.post(what, body);
        if reply.status == 200 {
            return;
        }
        is_told_to_wait(&reply);
        assert!(Instant::now() < end, "it is never taken: {reply:?}");
        let wait = reply.retry_after.and_then(|seconds| seconds.parse().ok()).unwrap_or(1);
        std::thread::sleep(Duration::from_secs(wait));
    }
}

/// Requests by chance of a node with good credentials. `JS_FUZZ_REQUESTS` makes it longer, and `JS_FUZZ_SEED` repeats
/// one that failed.
#[test]
#[allow(clippy::print_stdout)] // The seed of a failure.
fn requests_by_chance_stay_within_the_bounds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("JS_FUZZ_REQUESTS").unwrap_or(300);
    let seed = number("JS_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("JS_FUZZ_SEED={seed} JS_FUZZ_REQUESTS={count}");
    let redis = Redis::start();
    let args = vec!["--log-level".to_owned(), "error".to_owned()];
    // Free memory is given back at once, so that the test measures present use and not past use.
    let env = [("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "0")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let acc = Acc::start(&redis, AccOptions { auth: true, args, env, ..AccOptions::default() });
    let mut client = Client::new(&redis);
    let (node, other) = (acc.node(1, 10), acc.node(1, 11));
    let commands = given(&mut client, &node, &[0, 0, 0, 1, 3600, 400 * 86_400]);
    let target = Target {
        addr: ([127, 0, 0, 1], acc.port()).into(),
        tls: None,
        token: Some(acc.enroll(NODE.gid, NODE.nid).token),
    };
    is_served(&mut client, &other);
    let (before_redis, before_acc) = (used_memory(&mut client), proc::memory(acc.pid()).expect("the controller runs"));
    let mut requests = Requests::new(seed, NODE, commands);
    let mut connection = Connection::new(target);
    let mut answers: BTreeMap<u16, u64> = BTreeMap::new();
    let begin = Instant::now();
    for n in 1..=count {
        let request = requests.next_request();
        let status = connection.send(&request).expect("a connection");
        let what = || format!("request {n}: {} {}", request.method, request.path);
        assert!(!matches!(status, 500 | 502 | 504), "{}: {status}", what());
        *answers.entry(status).or_default() += 1;
        if n % 100 == 0 {
            is_served(&mut client, &other);
        }
    }
    println!("{answers:?}");
    within_bounds(&mut client, begin.elapsed(), before_redis);
    let grown = proc::memory(acc.pid()).expect("the controller runs").saturating_sub(before_acc);
    assert!(grown < 64 << 20, "the controller grew by {} MiB", grown >> 20);
    is_served(&mut client, &other);
}

/// Redis has grown by no more than one node can cause in so much time.
#[track_caller]
fn within_bounds(client: &mut Client, time: Duration, before: u64) {
    // 24 MiB at once and 1 MiB a second are text; what Redis keeps beside it is less than as much again.
    let most = 2 * ((24 + time.as_secs()) << 20);
    let grown = used_memory(client).saturating_sub(before);
    assert!(grown < most, "Redis grew by {} MiB in {time:?}", grown >> 20);
    let keys: Vec<String> = client.redis(&["KEYS", "*"]);
    assert!(keys.len() < 25_000, "{} keys", keys.len());
    for key in &keys {
        let kind: String = client.redis(&["TYPE", key]);
        let (length, most) = match kind.as_str() {
            "list" => (client.redis::<usize>(&["LLEN", key]), 10_000),
            "hash" => (client.redis(&["HLEN", key]), 10_001),
            "zset" => (client.redis(&["ZCARD", key]), 10_001),
            _ => (client.redis(&["STRLEN", key]), 16 << 20),
        };
        assert!(length <= most, "{key}: {length}");
        // 400 days is the longest that anything of a job is kept.
        assert!(client.redis::<i64>(&["TTL", key]) <= 400 * 86_400, "{key}");
    }
}

#[test]
fn agent_keeps_what_is_too_much_and_sends_it_again() {
    let args = vec!["--max-records".to_owned(), "200".to_owned()];
    let mut stage = Stage::start_with(AccOptions { args, ..AccOptions::default() }, AgentOptions::default());
    // 12,000 are taken at once.
    let line = "seq -f '4::%.0f' 13500";
    let args = json!({"cmd": "/bin/sh", "args": ["-c", line], "domain": "d", "name": "n", "loglevels_ac": "4"});
    let result = stage.client.run("execute", args);
    assert_eq!(result["state"], "OK", "{result}");
    wait_until("some are refused", 2 * LONG, || {
        stage.acc.anonymous().get("/metrics").body.contains("jsacc_refusals_total{reason=\"records\"}")
    });
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK", "results are sent meanwhile");
    let newest = |client: &mut Client| -> Option<String> { client.redis(&["LINDEX", "log.d.n", "0"]) };
    wait_until("the last record comes", 4 * LONG, || {
        newest(&mut stage.client).is_some_and(|record| record.contains("\"data\":\"13500\""))
    });
    let records = stage.client.list("log.d.n");
    let data: Vec<String> =
        records.iter().rev().map(|record| record["data"].as_str().unwrap_or("").to_owned()).collect();
    let want: Vec<String> = (3501..=13_500).map(|n| n.to_string()).collect();
    assert!(data == want, "each once and in order: {:?}…{:?}", data.first(), data.last());
}
