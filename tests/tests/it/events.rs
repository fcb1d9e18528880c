//! The list of events, and what a node can do to it.

use jsacc::model::events;
use jsacc::redis::{Address, Batch, Conn};
use jscommon::NodeId;
use jstests::{Acc, AccOptions, Client, LONG, Redis, wait_until};
use serde_json::json;

fn connect(redis: &Redis) -> Conn {
    let target =
        jsacc::config::redis_address::Target::parse(&redis.url()).expect("the address of the private redis-server");
    Conn::connect(&Address::new(target, None, &jsacc::model::SCHEMA), LONG).expect("a connection to it")
}

fn node(nid: u32) -> Option<NodeId> {
    NodeId::new(1, nid)
}

fn tell(conn: &mut Conn, name: &str, node: Option<NodeId>, count: u64, data: &serde_json::Value) {
    let mut batch = Batch::new();
    (0..count).for_each(|i| events::add(&mut batch, name, node, i, data));
    conn.run(&batch).expect("an answer");
}

fn of(client: &mut Client, nid: u32) -> usize {
    client.events().iter().filter(|event| event["nid"] == nid).count()
}

#[test]
fn one_node_has_a_share_of_the_events_and_pushes_out_its_own() {
    let redis = Redis::start();
    let (mut conn, mut client) = (connect(&redis), Client::new(&redis));
    tell(&mut conn, "startup", node(2), 10, &json!({}));
    tell(&mut conn, "duplicate", None, 10, &json!({}));
    // Data that looks like an event of another node.
    let data = json!({"x": r#"{"name":"startup","gid":1,"nid":2,"#, "name": "startup", "gid": 1, "nid": 2, "time": 1});
    for _ in 0..5 {
        tell(&mut conn, "critical", node(1), 500, &data);
    }
    // Anybody who reaches the port can cause these, for any node.
    for nid in 3..13 {
        tell(&mut conn, "refused", node(nid), 300, &json!({}));
    }
    let (first, other, nobody) = (of(&mut client, 1), of(&mut client, 2), of(&mut client, 0));
    assert!((900..=1000).contains(&first), "{first}");
    assert_eq!((other, nobody), (10, 10));
    let refused: usize = client.events().iter().filter(|event| event["name"] == "refused").count();
    assert!((900..=1000).contains(&refused), "{refused}");
    let newest = client.events().into_iter().find(|event| event["nid"] == 1).expect("an event");
    assert_eq!(newest["time"], 499, "its newest are kept");
    let counted: usize = client.redis(&["HGET", "jsacc:seen:{jsacc:events}", "1:1"]);
    assert_eq!(counted, first);
}

#[test]
fn events_are_bounded_in_number_and_bytes_for_all_and_for_each() {
    let redis = Redis::start();
    let (mut conn, mut client) = (connect(&redis), Client::new(&redis));
    let large = json!("x".repeat(60_000));
    tell(&mut conn, "critical", node(1), 100, &large);
    let first = of(&mut client, 1);
    assert!((30..=34).contains(&first), "2 MiB: {first}");
    // Many nodes together fill the list, and the oldest of all go.
    for nid in 2..14 {
        tell(&mut conn, "critical", node(nid), 60, &large);
    }
    let bytes: usize = client.redis(&["HGET", "jsacc:seen:{jsacc:events}", "/bytes"]);
    let listed: usize =
        client.redis::<Vec<String>>(&["LRANGE", "jsacc:events", "0", "-1"]).iter().map(String::len).sum();
    assert!(bytes == listed && bytes <= 16 << 20, "{bytes} {listed}");
    assert_eq!(of(&mut client, 1), 0);
    let fields: Vec<String> = client.redis(&["HKEYS", "jsacc:seen:{jsacc:events}"]);
    assert!(!fields.iter().any(|field| field.starts_with("1:1/") || field == "1:1"), "{fields:?}");
    for nid in 100..130 {
        tell(&mut conn, "startup", node(nid), 500, &json!({}));
    }
    assert_eq!(client.redis::<usize>(&["LLEN", "jsacc:events"]), 10_000);
    let entries: Vec<usize> = client
        .redis::<Vec<String>>(&["HKEYS", "jsacc:seen:{jsacc:events}"])
        .iter()
        .filter(|field| !field.contains('/'))
        .map(|field| client.redis(&["HGET", "jsacc:seen:{jsacc:events}", field]))
        .collect();
    assert_eq!(entries.iter().sum::<usize>(), 10_000);
}

#[test]
fn events_that_an_earlier_version_wrote_and_trimmed_are_no_hindrance() {
    let redis = Redis::start();
    let (mut conn, mut client) = (connect(&redis), Client::new(&redis));
    for i in 0..10_000 {
        let entry = json!({"data": {}, "gid": 1, "name": "startup", "nid": 1, "time": i});
        let _: i64 = client.redis(&["LPUSH", "jsacc:events", &entry.to_string()]);
    }
    tell(&mut conn, "startup", node(1), 600, &json!({}));
    assert_eq!(client.redis::<usize>(&["LLEN", "jsacc:events"]), 10_000);
    // It is counted for the node, and is there no more.
    let _: i64 = client.redis(&["DEL", "jsacc:events"]);
    tell(&mut conn, "startup", node(1), 600, &json!({}));
    assert_eq!(of(&mut client, 1), 600);
    tell(&mut conn, "startup", node(1), 600, &json!({}));
    let left = of(&mut client, 1);
    assert!((900..=1000).contains(&left), "{left}");
}

#[test]
fn names_of_the_controllers_events_are_refused_from_a_node() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 1);
    for name in jsacc::model::events::RESERVED {
        let reply = node.post("event", &json!({"name": name, "data": {"addr": "10.0.0.1"}}));
        assert!(reply.status == 400 && reply.error().contains("the controller's own"), "{reply:?}");
    }
    for name in ["a b", "x\u{1b}[1m", "\"", "", &"x".repeat(65)] {
        assert_eq!(node.post("event", &json!({"name": name})).status, 400, "{name}");
    }
    assert!(client.events().is_empty());
    // All that agents tell.
    for name in [
        "startup",
        "shutdown",
        "critical",
        "duplicate",
        "job_failed",
        "bad_command",
        "dropped",
        "delivery_refused",
        "local_fault",
        "damaged",
        "facts",
    ] {
        let reply = node.post("event", &json!({"name": name, "data": {}}));
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
    }
    assert_eq!(client.events().len(), 11);
}

#[test]
fn alternating_instances_are_told_once_a_minute() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 1);
    let poll = |instance: u32| node.get(&format!("/1/1/cmd?wait=0&instance=i{instance}")).status;
    let refused = (0..25).map(|i| poll(i % 5)).filter(|status| *status == 409).count();
    assert!(refused > 10, "{refused}");
    let told = |client: &mut Client| client.events().iter().filter(|event| event["name"] == "two_agents").count();
    assert_eq!(told(&mut client), 1);
    let _: i64 = client.redis(&["HSET", "jsacc:{1:1}:meta", "told_at", "1"]);
    // A node may poll so often and no more, so this may take a moment.
    wait_until("it is told once more", LONG, || {
        (0..5).for_each(|i| assert!([204, 409, 429].contains(&poll(i))));
        told(&mut client) == 2
    });
    (0..5).for_each(|i| assert!([204, 409, 429].contains(&poll(i))));
    assert_eq!(told(&mut client), 2);
}
