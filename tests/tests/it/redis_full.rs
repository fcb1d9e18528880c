//! A Redis that is full again and again: what was accepted is done, once, and everything that is kept about
//! it is there when memory is given back.

use jstests::load::Load;
use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, LONG, Redis, fresh_id, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const NODES: u32 = 20;

fn fill(client: &mut Client, full: bool) {
    client.redis::<()>(&["CONFIG", "SET", "maxmemory", if full { "1" } else { "0" }]);
}

#[test]
fn nothing_is_lost_while_redis_is_full_again_and_again() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let chatter = Some(Duration::from_millis(500));
    let addr = ([127, 0, 0, 1], acc.port()).into();
    let swarm = Swarm::start(SwarmOptions { chatter, wait: 5, ..SwarmOptions::new(addr, NODES) }).unwrap();
    swarm.wait_polling(LONG).unwrap();
    let mut own = redis.connect();
    let push = move |text: &str| redis::cmd("LPUSH").arg("cmds_queue").arg(text).query::<u64>(&mut own).is_ok();
    let load = Load::start(NODES, Duration::from_micros(200), push);
    let mut rejected = 0;
    for _ in 0..60 {
        std::thread::sleep(Duration::from_micros(fastrand::u64(500..20_000)));
        // A text that is no command is kept too.
        if redis::cmd("LPUSH").arg("cmds_queue").arg("no command").query::<u64>(&mut client.conn).is_ok() {
            rejected += 1;
        }
        fill(&mut client, true);
        std::thread::sleep(Duration::from_micros(fastrand::u64(100..20_000)));
        fill(&mut client, false);
    }
    let ids = load.stop();
    for id in &ids {
        wait_until(&format!("{id} has its result"), LONG, || client.results(id) >= 1);
    }
    wait_until("all of them stand in their hashes", LONG, || {
        ids.iter().all(|id| client.job(id).values().any(|value| value.contains("\"state\":\"OK\"")))
    });
    let doubled: Vec<&String> = ids.iter().filter(|id| client.results(id) != 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");

    // Acknowledgements that were put off come with the next poll.
    wait_until("nothing waits", LONG, || client.redis::<u64>(&["ZCARD", "jsacc:expiring"]) == 0);
    let listed: Vec<String> = client.redis(&["LRANGE", "jsacc:jobs", "0", "-1"]);
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    listed.iter().for_each(|id| *times.entry(id).or_default() += 1);
    let wrong: Vec<&String> = ids.iter().filter(|id| times.get(id.as_str()) != Some(&1)).collect();
    assert!(wrong.is_empty(), "{} of {} are not listed once: {:?}", wrong.len(), ids.len(), wrong.first());
    let audit: Vec<Value> = client.list("jsacc:audit");
    let audited = |id: &&String| audit.iter().filter(|entry| entry["id"] == json!(id)).count() != 1;
    let wrong: Vec<&String> = ids.iter().filter(audited).collect();
    assert!(wrong.is_empty(), "{} of {} are not in the audit list once: {:?}", wrong.len(), ids.len(), wrong.first());
    let counts: BTreeMap<String, u64> = client.redis(&["HGETALL", "jsacc:audit:results"]);
    let wrong: Vec<&String> = ids.iter().filter(|id| counts.get(&format!("{id} OK")) != Some(&1)).collect();
    assert!(wrong.is_empty(), "{} of {} results are not counted once: {:?}", wrong.len(), ids.len(), wrong.first());
    wait_until("what was no command is told of", LONG, || client.rejected().len() >= rejected);
    assert_eq!(client.rejected().len(), rejected);
}

#[test]
fn command_that_redis_has_lost_on_its_way_to_a_node_is_answered_in_the_end() {
    let redis = Redis::start();
    let _acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping", "tags": "t", "expires": 2}));
    wait_until("it waits", LONG, || client.state(&id, "1:10").as_deref() == Some("QUEUED"));
    wait_until("for its node", LONG, || client.redis::<u64>(&["ZCARD", "jsacc:{1:10}:queue"]) == 1);
    // As a failover to a replica that lags does it.
    client.redis::<()>(&["DEL", "jsacc:{1:10}:queue", "jsacc:{1:10}:cmds", "jsacc:{1:10}:meta"]);
    let result = client.pop(&id);
    assert_eq!((&result["state"], &result["tags"]), (&json!("ERROR"), &json!("t")), "{result}");
    assert!(result["data"].as_str().unwrap().contains("lost"), "{result}");
}

#[test]
fn command_is_known_to_run_also_when_redis_was_full_at_the_acknowledgement() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let id = client.send("ping", json!({}));
    let batch = node.poll(30, None).unwrap();
    fill(&mut client, true);
    let answer = node.get(&format!("/1/10/cmd?wait=0&ack={}", batch.batch));
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.error().contains("full"), "{answer:?}");
    fill(&mut client, false);
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("RUNNING"));
}

#[test]
fn result_is_not_pushed_while_its_hash_cannot_be_written() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    // A large one goes to Redis apart from its hash.
    for length in [1, 300 << 10] {
        let id = client.send("ping", json!({}));
        let batch = node.poll(30, None).unwrap();
        assert!(node.poll(0, Some(&batch.batch)).is_none());
        let result = node.result_of(&batch.cmds[0], "OK", &"x".repeat(length));
        client.redis::<()>(&["ACL", "SETUSER", "default", "resetkeys", "~cmds_queue*", "~jsacc:done*", "~jsacc:{*"]);
        client.redis::<()>(&["ACL", "SETUSER", "default", "~jsacc:a*", "~jsacc:e*", "%R~jsacc:job:*"]);
        let answer = node.post("result", &json!([result]));
        assert!(answer.status >= 500, "{answer:?}");
        client.redis::<()>(&["ACL", "SETUSER", "default", "allkeys"]);
        assert_eq!((client.results(&id), client.state(&id, "1:10").as_deref()), (0, Some("RUNNING")), "{length}");
        assert_eq!(node.post("result", &json!([result])).status, 200);
        assert_eq!((client.results(&id), client.state(&id, "1:10").as_deref()), (1, Some("OK")), "{length}");
    }
}

#[test]
fn a_result_is_in_its_hash_before_it_is_popped_also_when_redis_forgets_its_scripts() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let addr = ([127, 0, 0, 1], acc.port()).into();
    let swarm = Swarm::start(SwarmOptions { wait: 5, ..SwarmOptions::new(addr, NODES) }).unwrap();
    swarm.wait_polling(LONG).unwrap();
    let mut other = Client::new(&redis);
    let flush = std::thread::spawn(move || {
        for _ in 0..300 {
            other.redis::<()>(&["SCRIPT", "FLUSH"]);
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let mut client = Client::new(&redis);
    while !flush.is_finished() {
        let ids: Vec<String> = (0..10)
            .map(|_| client.push(json!({"id": fresh_id(), "gid": 1, "nid": fastrand::u32(1..=NODES), "cmd": "ping"})))
            .collect();
        for id in ids {
            let result = client.pop(&id);
            let node = format!("1:{}", result["nid"]);
            assert_eq!(client.state(&id, &node).as_deref(), Some("OK"), "{id}");
            assert_eq!(client.results(&id), 0);
        }
    }
    flush.join().unwrap();
}

#[test]
fn a_command_that_was_taken_and_never_heard_of_goes_on() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let controllers: Vec<String> = client.redis(&["ZRANGE", "jsacc:acs", "0", "-1"]);
    // As if the answer to its BRPOPLPUSH had been lost with a connection that was made anew.
    let text = json!({"id": fresh_id(), "gid": 1, "nid": 10, "cmd": "ping"});
    client.redis::<u64>(&["LPUSH", &format!("jsacc:{{cmds_queue}}:taken:{}", controllers[0]), &text.to_string()]);
    let batch = acc.node(1, 10).poll(30, None).expect("it comes");
    assert_eq!(batch.cmds[0]["id"], text["id"]);
}
