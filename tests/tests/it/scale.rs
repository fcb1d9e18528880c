//! Many nodes, several controllers, bounds: a fleet in small.

use crossbeam_channel::RecvTimeoutError;
use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, LONG, Redis, fresh_id, now_ms, proc, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long a whole fleet may take to be back.
const FLEET: Duration = Duration::from_secs(60);

fn quiet(options: AccOptions) -> AccOptions {
    AccOptions { args: [options.args, vec!["--log-level".into(), "info".into()]].concat(), ..options }
}

fn addr(acc: &Acc) -> SocketAddr {
    ([127, 0, 0, 1], acc.port()).into()
}

/// Sends `ping` to every node of the swarm and waits until each has answered, exactly once.
#[track_caller]
fn ping_all(client: &mut Client, nodes: usize) {
    let id = client.push(json!({"roles": ["swarm"], "fanout": true, "cmd": "ping"}));
    wait_until("all have answered", FLEET, || client.results(&id) >= nodes);
    let results: Vec<Value> = client.list(&format!("cmds_queue_{id}"));
    let mut by_node: BTreeMap<u64, usize> = BTreeMap::new();
    results.iter().for_each(|result| *by_node.entry(result["nid"].as_u64().unwrap()).or_default() += 1);
    assert!(by_node.len() == nodes && by_node.values().all(|count| *count == 1), "{by_node:?}");
}

/// Waits until each node is written down as one that a fanout is for: it has its roles with its first event or poll,
/// and is live with its first poll.
#[track_caller]
fn known(client: &mut Client, nodes: u32) {
    wait_until("all have their roles and are live", FLEET, || {
        client.redis::<u32>(&["HLEN", "jsacc:{roles}"]) == nodes
            && client.redis::<u32>(&["ZCARD", "jsacc:agents"]) == nodes
    });
}

#[test]
fn a_fleet_comes_is_cut_and_comes_back() {
    const NODES: u32 = 300;
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::secure()));
    let mut client = Client::new(&redis);
    let options = SwarmOptions {
        chatter: Some(Duration::from_secs(1)),
        // A node of the swarm has one connection, and speaks between its polls.
        wait: 2,
        startup: true,
        threads: 2,
        ..SwarmOptions::new(addr(&acc), NODES)
    };
    let swarm = Swarm::start(options.secured_by(&acc.state_dir()).unwrap()).unwrap();
    known(&mut client, NODES);
    ping_all(&mut client, NODES as usize);
    wait_until("each has said that it started", LONG, || swarm.tally.startups.load(Relaxed) == u64::from(NODES));
    wait_until("records come", LONG, || swarm.tally.records.load(Relaxed) > u64::from(NODES));
    wait_until("stats come", LONG, || swarm.tally.stats.load(Relaxed) > u64::from(NODES));

    swarm.cut(0.3);
    swarm.half_open(0.3);
    ping_all(&mut client, NODES as usize);
    swarm.restart();
    wait_until("each has started again", FLEET, || swarm.tally.startups.load(Relaxed) == 2 * u64::from(NODES));
    ping_all(&mut client, NODES as usize);
    assert!(proc::threads(acc.pid()).unwrap() < 64);
    well_behaved(&swarm);
}

/// No answer was a surprise, and who was asked to wait did.
#[track_caller]
fn well_behaved(swarm: &Swarm) {
    let tally = &swarm.tally;
    assert!(tally.others.lock().unwrap().is_empty(), "{tally:?}");
    assert_eq!((tally.put_off_without_time.load(Relaxed), tally.too_early.load(Relaxed)), (0, 0), "{tally:?}");
}

#[test]
fn a_controller_that_was_killed_meets_a_herd() {
    const NODES: u32 = 1_500;
    proc::open_files(2 * u64::from(NODES));
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, quiet(AccOptions::secure()));
    let options = SwarmOptions { threads: 2, spread: Duration::from_secs(1), ..SwarmOptions::new(addr(&acc), NODES) };
    let swarm = Swarm::start(options.secured_by(&acc.state_dir()).unwrap()).unwrap();
    known(&mut Client::new(&redis), NODES);
    acc.kill();
    wait_until("all are cut off", LONG, || swarm.tally.connected.load(Relaxed) == 0);
    acc.resume_unready();
    wait_until("it listens", LONG, || TcpStream::connect(addr(&acc)).is_ok());
    // However long they had meant to wait by then.
    swarm.come(Duration::from_secs(1));
    swarm.wait_polling(FLEET).unwrap();
    ping_all(&mut Client::new(&redis), NODES as usize);
    well_behaved(&swarm);
}

#[test]
fn a_herd_that_finds_no_redis_is_put_off_and_comes_back() {
    const NODES: u32 = 400;
    let mut redis = Redis::start_durable();
    let mut acc = Acc::start(&redis, quiet(AccOptions::secure()));
    let swarm = Swarm::start(SwarmOptions::new(addr(&acc), NODES).secured_by(&acc.state_dir()).unwrap()).unwrap();
    known(&mut Client::new(&redis), NODES);
    // The cost of admitting one node on this machine under its present load: a handshake, a poll and its writes.
    let let_in = proc::cpu(acc.pid()).unwrap() / f64::from(NODES);
    acc.kill();
    redis.kill();
    wait_until("all are cut off", LONG, || swarm.tally.connected.load(Relaxed) == 0);
    acc.resume_unready();
    wait_until("it listens", LONG, || TcpStream::connect(addr(&acc)).is_ok());
    let used = proc::cpu(acc.pid()).unwrap();
    swarm.come(Duration::from_secs(1));
    let put_off = || swarm.tally.put_off.load(Relaxed);
    wait_until("every one is put off", FLEET, || put_off() >= u64::from(NODES));
    // A refusal costs a handshake and little else, however often they come.
    let each = (proc::cpu(acc.pid()).unwrap() - used) / put_off() as f64;
    assert!(each < 3.0 * let_in, "{each} s for each of {} refusals, and {let_in} s to let one in", put_off());
    redis.resume();
    swarm.wait_polling(FLEET).unwrap();
    ping_all(&mut Client::new(&redis), NODES as usize);
    well_behaved(&swarm);
}

/// A second or third controller of one family: same Redis, same state directory.
fn family(redis: &Redis, state_dir: &Path) -> Acc {
    let state_dir = Some(state_dir.to_owned());
    Acc::start(redis, quiet(AccOptions { state_dir, ..AccOptions::secure() }))
}

#[test]
fn controllers_are_replaced_under_load_and_nothing_is_lost_or_doubled() {
    const NODES: u32 = 200;
    let redis = Redis::start_durable_lazily();
    let state = tempfile::tempdir().unwrap();
    let mut accs = [family(&redis, state.path()), family(&redis, state.path()), family(&redis, state.path())];
    let controllers = accs.iter().map(addr).collect();
    let options = SwarmOptions { controllers, ..SwarmOptions::new(addr(&accs[0]), NODES) };
    let swarm = Swarm::start(options.secured_by(state.path()).unwrap()).unwrap();
    swarm.wait_polling(FLEET).unwrap();

    // Commands come without a pause, and all the while nodes lose their connection and go elsewhere.
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let load = std::thread::spawn({
        let (mut client, stopped) = (Client::new(&redis), stopped.clone());
        move || {
            let mut ids = Vec::new();
            while stopped.recv_timeout(Duration::from_millis(2)) == Err(RecvTimeoutError::Timeout) {
                ids.push(client.push(json!({"gid": 1, "nid": fastrand::u32(1..=NODES), "cmd": "ping"})));
            }
            ids
        }
    });
    let connects = || swarm.tally.connects.load(Relaxed);
    let mut under_load = Vec::new();
    for round in 0..accs.len() * 2 {
        let acc = &mut accs[round % 3];
        let before = swarm.tally.results.load(Relaxed);
        // First as an upgrade does it, then as a power cut does.
        if round < 3 {
            assert_eq!(acc.stop(), Some(0));
        } else {
            acc.kill();
        }
        swarm.cut(0.1);
        // While it is away the others serve its nodes, and the nodes change between them too.
        wait_until("jobs go on", FLEET, || swarm.tally.results.load(Relaxed) > before + 50);
        swarm.cut(0.1);
        acc.resume();
        swarm.cut(0.2);
        under_load.push(swarm.tally.results.load(Relaxed) - before);
    }
    assert!(connects() > 2 * u64::from(NODES), "nodes changed their controller: {}", connects());
    drop(stop);
    let ids = load.join().expect("the load");
    let mut client = Client::new(&redis);
    for id in &ids {
        wait_until(&format!("{id} has its result"), FLEET, || client.results(id) >= 1);
    }
    let doubled: Vec<&String> = ids.iter().filter(|id| client.results(id) != 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    let lost: Vec<&String> = ids.iter().filter(|id| !client.job(id).values().any(|v| v.contains("pong"))).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(ids.len() > 500, "{} commands are no load: {under_load:?}", ids.len());
    well_behaved(&swarm);
}

#[test]
fn a_node_that_sends_too_many_records_is_told_to_wait() {
    let redis = Redis::start();
    let args = vec!["--max-records".to_owned(), "20".to_owned()];
    let acc = Acc::start(&redis, quiet(AccOptions { args, ..AccOptions::default() }));
    let node = acc.node(1, 10);
    let record = |id: u32| {
        json!({"id": id, "jobid": "j", "jobdomain": "d", "jobname": "n", "epoch": now_ms(), "level": 4,
            "data": "x", "gid": 1, "nid": 10})
    };
    let mut taken = 0;
    let start = Instant::now();
    for batch in 1..=1000_u32 {
        let records: Vec<Value> = (0..20).map(|i| record(batch * 20 + i)).collect();
        let reply = node.post("log", &json!({"batch": batch, "records": records}));
        if reply.status == 429 {
            let wait: u64 = reply.retry_after.as_deref().unwrap_or_default().parse().expect("Retry-After in seconds");
            assert!((1..=60).contains(&wait) && reply.error().len() > 10, "{reply:?}");
            // A batch that was put off is taken once the time has passed.
            wait_until("the batch is taken", LONG, || {
                std::thread::sleep(Duration::from_millis(200));
                node.post("log", &json!({"batch": batch, "records": records})).status == 200
            });
            return;
        }
        assert_eq!(reply.status, 200, "{reply:?}");
        taken += 20;
        assert!(start.elapsed() < LONG, "{taken} records and never too many");
    }
    panic!("{taken} records and never too many");
}

#[test]
fn a_node_that_sends_too_many_events_is_told_to_wait() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let node = acc.node(1, 10);
    let mut replies = (0..5000).map(|_| node.post("event", &json!({"name": "noise", "data": {}})));
    let reply = replies.find(|reply| reply.status != 200).expect("never too many");
    let wait: u64 = reply.retry_after.as_deref().unwrap_or_default().parse().expect("Retry-After in seconds");
    assert!(reply.status == 429 && (1..=60).contains(&wait), "{reply:?}");
    assert_eq!(acc.node(1, 11).post("event", &json!({"name": "word", "data": {}})).status, 200, "others may");
}

#[test]
fn a_node_that_sends_too_many_results_is_told_to_wait() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let node = acc.node(1, 10);
    // Results of another node are refused one by one, and count as any others.
    let foreign: Vec<Value> = (0..1000).map(|_| json!({"id": "x", "gid": 1, "nid": 11, "state": "OK"})).collect();
    let foreign = json!(foreign).to_string();
    let mut replies = (0..500).map(|_| node.post_text(&node.path("result"), &foreign));
    let reply = replies.find(|reply| reply.status != 403).expect("never too many");
    let wait: u64 = reply.retry_after.as_deref().unwrap_or_default().parse().expect("Retry-After in seconds");
    assert!(reply.status == 429 && (1..=60).contains(&wait), "{reply:?}");
    assert!(reply.error().contains("results a second"), "{reply:?}");
    Client::new(&redis).push(json!({"gid": 1, "nid": 11, "cmd": "ping"}));
    let other = acc.node(1, 11);
    let batch = other.poll(30, None).expect("the command");
    let own = json!([other.result_of(&batch.cmds[0], "OK", "")]);
    assert_eq!(other.post("result", &own).status, 200, "others may");
}

#[test]
fn a_request_with_too_many_entries_is_refused_with_the_bound() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let (mut client, node) = (Client::new(&redis), acc.node(1, 10));
    let empty = |count: usize| format!("[{}{{}}]", "{},".repeat(count - 1));
    let (results, records) = (empty(1001), format!("{{\"batch\": 1, \"records\": {}}}", empty(10_001)));
    let series = format!("{{\"batch\": 1, \"series\": [{}[\"a\", 1]]}}", "[\"a\",1],".repeat(50_000));
    // As many as bytes allow; each takes many times its text in memory.
    let all = format!("{{\"batch\": 1, \"records\": {}}}", empty(5_500_000));
    for (what, body, bound) in [
        ("result", &results, "1000 results"),
        ("log", &records, "10000 records"),
        ("stats", &series, "50000 series"),
        ("log", &all, "8388608 bytes"),
        ("stats", &all, "8388608 bytes"),
        ("result", &empty(5_500_000), "250000 JSON values"),
        ("event", &all, "65536 bytes"),
    ] {
        let reply = node.post_text(&node.path(what), body);
        assert!(reply.status == 413 && reply.error().contains(bound), "{what}: {reply:?}");
    }
    let keys: Vec<String> = client.redis(&["KEYS", "log.*"]);
    assert!(keys.is_empty(), "{keys:?}");
    let records = format!("{{\"batch\": 1, \"records\": {}}}", empty(10_000));
    assert_eq!(node.post_text(&node.path("log"), &records).status, 200, "as many as an agent may be told to send");
}

#[test]
fn a_key_of_another_type_holds_up_only_its_own_records() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let (mut client, node) = (Client::new(&redis), acc.node(1, 10));
    let _: () = client.redis(&["SET", "log.d.bad", "no list"]);
    let record = |name: &str| json!({"jobdomain": "d", "jobname": name, "level": 4, "data": name});
    for batch in 1..=2 {
        let body = json!({"batch": batch, "records": [record("a"), record("bad"), record("z")]});
        assert_eq!(node.post("log", &body).status, 200);
    }
    for (list, name) in [("log.d.a", "a"), ("log.d.z", "z"), ("log.unknown.wrong_type", "bad")] {
        let kept = client.list(list);
        assert!(kept.len() == 2 && kept.iter().all(|record| record["jobname"] == name), "{list}: {kept:?}");
    }
    wait_until("an event names the key", LONG, || {
        client.events().iter().any(|event| event["name"] == "wrong_type" && event["data"]["key"] == "log.d.bad")
    });
    let said =
        "records of log.d.bad go to log.unknown.wrong_type: the key log.d.bad in redis is a string and must be a list";
    assert_eq!(acc.output().matches(said).count(), 1, "{}", acc.output());
    let _: i64 = client.redis(&["DEL", "log.d.bad"]);
    // The list is good here, and the key beside it is not: nobody is told to delete the list.
    let _: () = client.redis(&["SET", "jsacc:seen:{log.d.beside}", "no hash"]);
    assert_eq!(node.post("log", &json!({"batch": 3, "records": [record("beside")]})).status, 200);
    let beside = "jsacc:seen:{log.d.beside}";
    wait_until("an event names the key beside the list", LONG, || {
        client.events().iter().any(|event| event["name"] == "wrong_type" && event["data"]["key"] == beside)
    });
    assert!(acc.output().contains(&format!("the key {beside} in redis is a string and must be a hash")));
    assert!(!acc.output().contains("the key log.d.beside in redis"), "{}", acc.output());
    assert_eq!(node.post("log", &json!({"batch": 4, "records": [record("bad")]})).status, 200);
    assert_eq!(client.list("log.d.bad").len(), 1);
}

#[test]
fn a_list_of_records_is_bounded_by_bytes_too() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let mut client = Client::new(&redis);
    let data = "x".repeat(5 << 20);
    // From several nodes: one alone would have to wait.
    for nid in 1..=7 {
        let node = acc.node(1, nid);
        for batch in 1..=2 {
            let record = |id: u32| json!({"id": id, "jobdomain": "d", "jobname": "n", "level": 4, "data": data});
            let reply = node.post("log", &json!({"batch": batch, "records": [record(1)]}));
            assert_eq!(reply.status, 200, "{reply:?}");
        }
    }
    assert_eq!(client.redis::<u64>(&["LLEN", "log.d.n"]), 12, "64 MiB hold twelve of 5 MiB");
    let newest: String = client.redis(&["LINDEX", "log.d.n", "0"]);
    assert!(newest.contains("\"nid\":7"), "the oldest went");
}

#[test]
fn the_lists_that_one_node_makes_are_bounded() {
    let redis = Redis::start();
    let acc = Acc::start(
        &redis,
        quiet(AccOptions { args: vec!["--max-records".into(), "20000".into()], ..AccOptions::default() }),
    );
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let record =
        |name: u32| json!({"id": name, "jobdomain": "d", "jobname": name.to_string(), "level": 4, "data": "x"});
    for batch in 0..12 {
        let records: Vec<Value> = (1..=1000).map(|i| record(batch * 1000 + i)).collect();
        let reply = node.post("log", &json!({"batch": batch + 1, "records": records}));
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let names: Vec<String> = client.redis(&["KEYS", "log.d.*"]);
    assert_eq!(names.len(), 10_000);
    assert_eq!(client.redis::<u64>(&["LLEN", "log.unknown.unknown"]), 2_000, "nothing is lost");
    // The node may go on with lists that it has written to, and it delays no other node.
    assert_eq!(node.post("log", &json!({"batch": 13, "records": [record(1), record(99_999)]})).status, 200);
    assert_eq!(client.redis::<u64>(&["LLEN", "log.d.1"]), 2);
    assert_eq!(acc.node(1, 11).post("log", &json!({"batch": 1, "records": [record(20_000)]})).status, 200);
    assert_eq!(client.redis::<u64>(&["LLEN", "log.d.20000"]), 1);
}

#[test]
fn a_queue_that_is_full_says_so_to_the_client() {
    let redis = Redis::start();
    let args = vec!["--max-queue".to_owned(), "5".to_owned()];
    let acc = Acc::start(&redis, quiet(AccOptions { args, ..AccOptions::default() }));
    let mut client = Client::new(&redis);
    let ids: Vec<String> = (0..8).map(|_| client.send("ping", json!({}))).collect();
    let refused: Vec<Value> = ids[5..].iter().map(|id| client.pop(id)).collect();
    for result in &refused {
        assert_eq!(result["state"], "ERROR", "{result}");
        assert!(result["data"].as_str().is_some_and(|text| text.len() > 10), "{result}");
    }
    let node = acc.node(1, 10);
    let batch = node.poll_as(&[], 10, None).expect("those that fit");
    assert_eq!(batch.cmds.len(), 5, "{batch:?}");
}

/// Keys and bytes of a Redis.
fn size(client: &mut Client) -> (u64, u64) {
    let info: String = client.redis(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("used_memory");
    (client.redis(&["DBSIZE"]), used.trim().parse().expect("a number"))
}

/// Lets the time of every key that has one pass; but for what is kept about nodes, for these are there.
fn let_time_pass(client: &mut Client) {
    let keys: Vec<String> = client.redis(&["KEYS", "*"]);
    for key in keys.iter().filter(|key| !key.starts_with("jsacc:{1:")) {
        if client.redis::<i64>(&["TTL", key]) >= 0 {
            // A time that has passed removes the key at once, where one that comes leaves it to be counted
            // until Redis finds it.
            let _: i64 = client.redis(&["PEXPIREAT", key, "1"]);
        }
    }
}

#[test]
fn after_a_long_load_redis_is_as_it_was() {
    const NODES: u32 = 50;
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let mut client = Client::new(&redis);
    let chatter = Some(Duration::from_millis(100));
    let options = SwarmOptions { chatter, startup: true, ..SwarmOptions::new(addr(&acc), NODES) };
    let swarm = Swarm::start(options).unwrap();
    swarm.wait_polling(FLEET).unwrap();
    let load = |client: &mut Client, jobs: usize| {
        let before = swarm.tally.results.load(Relaxed);
        for _ in 0..jobs {
            client.push(json!({"id": fresh_id(), "gid": 1, "nid": fastrand::u32(1..=NODES), "cmd": "ping"}));
        }
        client.push_raw("this is no command");
        wait_until("all have run", FLEET, || swarm.tally.results.load(Relaxed) >= before + jobs as u64);
        // Commands that wait for a node that never comes, until their time is up.
        let id = client.push(json!({"gid": 9, "nid": 9, "cmd": "ping", "expires": 1}));
        assert_eq!(client.pop(&id)["state"], "ERROR");
    };
    load(&mut client, 500);
    let_time_pass(&mut client);
    let before = size(&mut client);
    load(&mut client, 5000);
    let loaded = size(&mut client);
    assert!(loaded.0 > before.0 + 5000, "jobs are kept for a day: {before:?} {loaded:?}");
    // The lists of the last so many remain, which have their bound. The last results of the load may still
    // be on their way into the hashes of their jobs. So the test looks more than once.
    wait_until("keys and memory are as they were", FLEET, || {
        let_time_pass(&mut client);
        let after = size(&mut client);
        after.0 <= before.0 + 20 && after.1 < before.1 + 4_000_000
    });
}
