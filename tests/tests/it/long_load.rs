//! The remains of a load, of nodes and of controllers: each of them ends.

use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, fresh_id, now_ms, wait_until};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const NODES: u32 = 30;

/// Keys without an end, each with its bound: the last so many entries, the nodes of a month, what waits,
/// controllers that live.
const ENDLESS: &[&str] = &[
    "cmds_queue",
    "jsacc:acs",
    "jsacc:agents",
    "jsacc:audit",
    "jsacc:events",
    "jsacc:expiring",
    "jsacc:jobs",
    "jsacc:rejected",
    "jsacc:secret",
    "jsacc:seen:{jsacc:events}",
    "jsacc:ticket_key",
    "jsacc:{revoked}",
    "jsacc:{revoked}:version",
    "jsacc:{roles}",
    "jsacc:{roles}:version",
];

/// Keys without an end that are there once for each node that was ever enrolled: what was granted to it is not to be
/// claimed by another once it was away for long.
const OF_ENROLLED_NODES: &[&str] = &["jsacc:grant:", "jsacc:enrolled:{"];

fn is_of_enrolled_node(key: &str) -> bool {
    OF_ENROLLED_NODES.iter().any(|start| key.starts_with(start)) || key.ends_with("}:revoked")
}

fn keys(client: &mut Client) -> BTreeSet<String> {
    client.redis(&["KEYS", "*"])
}

/// Lets a year pass: whatever has an end has come to it, and nobody was seen.
fn let_a_year_pass(client: &mut Client) {
    for key in keys(client) {
        if client.redis::<i64>(&["TTL", &key]) >= 0 {
            // A time that has passed removes the key at once.
            let _: i64 = client.redis(&["PEXPIREAT", &key, "1"]);
        }
    }
    for key in ["jsacc:agents", "jsacc:acs"] {
        for member in client.redis::<Vec<String>>(&["ZRANGE", key, "0", "-1"]) {
            let _: i64 = client.redis(&["ZADD", key, "XX", "1", &member]);
        }
    }
}

/// A node that does everything once and is never seen again.
fn one_of_each(client: &mut Client, node: &FakeNode) {
    assert!(node.poll_as(&["web"], 0, None).is_none());
    assert_eq!(
        node.post("event", &json!({"name": "startup", "data": {"hostname": "x", "roles": ["web"]}})).status,
        200
    );
    let record = json!({"id": 1, "jobdomain": "d", "jobname": "n", "level": 4, "data": "x"});
    assert_eq!(node.post("log", &json!({"batch": now_ms(), "records": [record]})).status, 200);
    let series = json!([[format!("{}.{}.d.n.x", node.gid, node.nid), 1]]);
    assert_eq!(node.post("stats", &json!({"batch": now_ms(), "timestamp": 1, "series": series})).status, 200);
    let push = |client: &mut Client, more: serde_json::Value| {
        let mut command = json!({"gid": node.gid, "nid": node.nid, "cmd": "ping"});
        more.as_object().unwrap().iter().for_each(|(key, value)| command[key] = value.clone());
        client.push(command)
    };
    // One that recurs once a month, one that ends, one that is stored and never answered, and some that
    // nobody comes for.
    let recurring = push(client, json!({"args": {"recurring_period": 30 * 86_400}}));
    let ended = push(client, json!({}));
    push(client, json!({}));
    let mut batch = None;
    let mut got = Vec::new();
    wait_until("three commands have come", LONG, || {
        if let Some(more) = node.poll(1, batch.as_deref()) {
            got.extend(more.cmds);
            batch = Some(more.batch);
        }
        got.len() >= 3
    });
    assert!(node.poll(0, batch.as_deref()).is_none());
    for id in [&recurring, &ended] {
        let command = got.iter().find(|command| command["id"] == json!(id)).unwrap();
        assert_eq!(node.post("result", &json!([node.result_of(command, "ERROR", "x")])).status, 200);
    }
    push(client, json!({"expires": 1}));
    push(client, json!({}));
    push(client, json!({"gid": 7, "nid": 7}));
    push(client, json!({"gid": 7, "nid": 0, "roles": ["web"]}));
    push(client, json!({"cmd": "cancel", "data": {"id": ended}}));
    client.push_raw("no command");
    client.push(json!({"id": ended, "gid": node.gid, "nid": node.nid, "cmd": "ping"}));
}

#[test]
fn nothing_stays_of_a_load_nor_of_nodes_and_controllers_that_are_gone() {
    let redis = Redis::start();
    let state = tempfile::tempdir().unwrap();
    let family = || {
        let options = AccOptions { state_dir: Some(state.path().to_owned()), ..AccOptions::secure() };
        Acc::start(&redis, AccOptions { args: vec!["--log-level".into(), "info".into()], ..options })
    };
    let mut client = Client::new(&redis);
    for round in 1..=3 {
        let mut accs = [family(), family()];
        let controllers = accs.iter().map(|acc| ([127, 0, 0, 1], acc.port()).into()).collect();
        let chatter = Some(Duration::from_millis(200));
        let options = SwarmOptions {
            controllers,
            chatter,
            startup: true,
            wait: 5,
            gid: 10 + round,
            ..SwarmOptions::new(([127, 0, 0, 1], 1).into(), NODES)
        };
        let swarm = Swarm::start(options.secured_by(state.path()).unwrap()).unwrap();
        swarm.wait_polling(LONG * 2).unwrap();
        let jobs = 300;
        for _ in 0..jobs {
            let nid = fastrand::u32(1..=NODES);
            client.push(json!({"id": fresh_id(), "gid": 10 + round, "nid": nid, "cmd": "ping"}));
        }
        wait_until("all have run", LONG * 2, || swarm.tally.results.load(Relaxed) >= jobs);
        one_of_each(&mut client, &accs[0].node(1, round));
        assert_eq!(accs[1].command(&["revoke", "1", "99"]).code, 0);
        wait_until("all is taken", LONG, || client.redis::<u64>(&["LLEN", "cmds_queue"]) == 0);
        // They die with whatever they have taken; the nodes of this round are never seen again.
        accs.iter_mut().for_each(Acc::kill);
        drop(swarm);
        let endless: Vec<String> = keys(&mut client)
            .into_iter()
            .filter(|key| client.redis::<i64>(&["TTL", key]) == -1)
            .filter(|key| !ENDLESS.contains(&key.as_str()) && !key.starts_with("jsacc:{cmds_queue}:taken:"))
            .filter(|key| !is_of_enrolled_node(key))
            .collect();
        assert!(endless.is_empty(), "without an end: {endless:?}");
    }

    let_a_year_pass(&mut client);
    let acc = family();
    let wanted: BTreeSet<&str> = ENDLESS
        .iter()
        .copied()
        .filter(|key| !["cmds_queue", "jsacc:agents", "jsacc:{roles}", "jsacc:expiring"].contains(key))
        .collect();
    wait_until("only what has its bound is left", LONG, || {
        let_time_pass_for_what_expires(&mut client);
        let left = keys(&mut client);
        left.iter().all(|key| wanted.contains(key.as_str()) || is_of_enrolled_node(key))
            && client.redis::<Vec<String>>(&["ZRANGE", "jsacc:acs", "0", "-1"]).len() == 1
    });
    assert_eq!(acc.anonymous().get("/health").status, 200);
    // In each round the swarm, one node more, and one that was revoked.
    let enrolled = keys(&mut client).iter().filter(|key| is_of_enrolled_node(key)).count();
    assert!(enrolled <= (OF_ENROLLED_NODES.len() + 1) * 3 * (NODES as usize + 2), "{enrolled} keys of enrolled nodes");
}

/// The answers that the new controller has given for the old ones end too.
fn let_time_pass_for_what_expires(client: &mut Client) {
    for member in client.redis::<Vec<String>>(&["ZRANGE", "jsacc:expiring", "0", "-1"]) {
        let _: i64 = client.redis(&["ZADD", "jsacc:expiring", "XX", "1", &member]);
    }
    for key in keys(client) {
        if client.redis::<i64>(&["TTL", &key]) >= 0 {
            let _: i64 = client.redis(&["PEXPIREAT", &key, "1"]);
        }
    }
}
