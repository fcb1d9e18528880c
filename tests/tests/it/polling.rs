//! The poll: batches, acknowledgements, waiting, and who a command is for.

use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, SHORT, wait_for, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

struct Setup {
    client: Client,
    acc: Acc,
    _redis: Redis,
}

fn setup() -> Setup {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    Setup { client: Client::new(&redis), acc, _redis: redis }
}

/// Polls until something comes.
#[track_caller]
fn next(node: &FakeNode, ack: Option<&str>) -> jstests::Batch {
    wait_for("a batch comes", LONG, || node.poll(5, ack))
}

fn ids(batch: &jstests::Batch) -> Vec<&str> {
    batch.cmds.iter().map(|cmd| cmd["id"].as_str().expect("id")).collect()
}

/// Makes a node live with these roles.
#[track_caller]
fn live(setup: &mut Setup, gid: u32, nid: u32, roles: &[&str]) -> FakeNode {
    let node = setup.acc.node(gid, nid);
    assert!(node.poll_as(roles, 0, None).is_none());
    setup.client.wait_seen(&format!("{gid}:{nid}"));
    node
}

#[test]
fn a_batch_comes_again_until_it_is_acknowledged() {
    let mut setup = setup();
    let node = setup.acc.node(1, 10);
    let command = json!({"gid": 1, "nid": 10, "cmd": "ping", "colour": "red", "tags": "t", "data": {"a": 1}});
    let id = setup.client.push(command);
    let first = next(&node, None);
    assert_eq!(ids(&first), [id.as_str()]);
    let sent = &first.cmds[0];
    assert_eq!((&sent["colour"], &sent["tags"], &sent["cmd"]), (&json!("red"), &json!("t"), &json!("ping")), "{sent}");
    assert_eq!((&sent["gid"], &sent["nid"]), (&json!(1), &json!(10)), "{sent}");
    let again = node.poll(0, None).expect("what is not acknowledged comes again");
    assert_eq!(ids(&again), [id.as_str()]);
    assert_eq!(setup.client.state(&id, "1:10").as_deref(), Some("QUEUED"), "not stored on the node yet");
    assert!(node.poll(0, Some(&again.batch)).is_none(), "acknowledged");
    assert!(node.poll(0, None).is_none(), "and gone for good");
    let client = &mut setup.client;
    wait_until("an acknowledged command is RUNNING", LONG, || client.state(&id, "1:10").as_deref() == Some("RUNNING"));
}

#[test]
fn an_old_acknowledgement_takes_nothing_new_away() {
    let mut setup = setup();
    let node = setup.acc.node(1, 10);
    let one = setup.client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    let first = next(&node, None);
    assert_eq!(ids(&first), [one.as_str()]);
    let two = setup.client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    let second = next(&node, Some(&first.batch));
    assert_eq!(ids(&second), [two.as_str()]);
    let second = next(&node, Some(&first.batch));
    assert_eq!(ids(&second), [two.as_str()]);
    for bad in ["x", "-1", "99999999999999999999999999"] {
        let reply = node.get(&node.path(&format!("cmd?wait=0&ack={bad}")));
        assert!(reply.status == 400 || reply.status == 200, "{bad}: {reply:?}");
    }
    assert_eq!(ids(&next(&node, None)), [two.as_str()], "a strange acknowledgement takes nothing away");
}

#[test]
fn commands_come_in_the_order_of_their_push() {
    let mut setup = setup();
    let node = setup.acc.node(1, 10);
    let pushed: Vec<String> =
        (0..200).map(|_| setup.client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}))).collect();
    let mut come: Vec<String> = Vec::new();
    let mut ack: Option<String> = None;
    while come.len() < pushed.len() {
        let batch = next(&node, ack.as_deref());
        come.extend(ids(&batch).iter().map(|id| (*id).to_owned()));
        ack = Some(batch.batch);
    }
    assert_eq!(come, pushed);
}

#[test]
fn a_waiting_poll_is_woken_at_once() {
    let mut setup = setup();
    let node = setup.acc.node(1, 10);
    let poll = std::thread::spawn({
        let node = node.clone();
        move || node.poll(60, None)
    });
    setup.client.wait_seen("1:10");
    std::thread::sleep(Duration::from_millis(200)); // Lets the poll be parked; it must be right either way.
    let id = setup.client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    // A poll that is not woken ends after its minute, with nothing.
    let batch = poll.join().expect("the poll").expect("the poll ends with the command");
    assert_eq!(ids(&batch), [id.as_str()]);
}

#[test]
fn an_idle_poll_ends_with_204_when_its_time_is_up() {
    let setup = setup();
    let node = setup.acc.node(1, 10);
    for _ in 0..3 {
        let start = Instant::now();
        assert!(node.poll(1, None).is_none());
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(900), "{took:?}");
    }
}

#[test]
fn a_second_poll_of_a_node_takes_the_place_of_the_first() {
    let mut setup = setup();
    let node = setup.acc.node(1, 10);
    let first = std::thread::spawn({
        let node = node.clone();
        move || {
            let start = Instant::now();
            node.get(&node.path("cmd?wait=30"));
            start.elapsed()
        }
    });
    setup.client.wait_seen("1:10");
    std::thread::sleep(Duration::from_millis(200));
    let second = std::thread::spawn({
        let node = node.clone();
        move || node.poll(30, None)
    });
    let took = first.join().expect("the first poll");
    assert!(took < Duration::from_secs(30), "the first poll waited until its own time was up");
    let id = setup.client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    let batch = second.join().expect("the second poll").expect("a batch");
    assert_eq!(ids(&batch), [id.as_str()]);
}

#[test]
fn roles_choose_a_node_that_has_all_of_them() {
    let mut setup = setup();
    let web = live(&mut setup, 1, 1, &["web"]);
    let both = live(&mut setup, 1, 2, &["web", "db"]);
    let other = live(&mut setup, 2, 3, &["db"]);
    let id = setup.client.push(json!({"cmd": "ping", "roles": ["web", "db"]}));
    assert_eq!(ids(&next(&both, None)), [id.as_str()]);
    let id = setup.client.push(json!({"gid": 2, "cmd": "ping", "roles": ["*"]}));
    assert_eq!(ids(&next(&other, None)), [id.as_str()]);
    let result: Value = {
        let id = setup.client.push(json!({"gid": 2, "cmd": "ping", "roles": ["web"]}));
        setup.client.pop(&id)
    };
    assert_eq!((&result["state"], &result["gid"], &result["nid"]), (&json!("ERROR"), &json!(2), &json!(0)), "{result}");
    assert!(web.poll(0, None).is_none());
}

#[test]
fn without_fanout_one_node_gets_it_and_all_of_them_in_time() {
    let mut setup = setup();
    let nodes: Vec<FakeNode> = (1..=3).map(|nid| live(&mut setup, 1, nid, &["web"])).collect();
    let count = 40;
    for _ in 0..count {
        setup.client.push(json!({"cmd": "ping", "roles": ["web"]}));
    }
    let client = &mut setup.client;
    wait_until("all are handed out", LONG, || client.redis::<i64>(&["LLEN", "cmds_queue"]) == 0);
    let mut shares = [0usize; 3];
    wait_until("each command is queued at one node", LONG, || {
        shares = [0; 3];
        nodes.iter().zip(&mut shares).for_each(|(node, share)| {
            *share = node.poll(0, None).map_or(0, |batch| batch.cmds.len());
        });
        shares.iter().sum::<usize>() == count
    });
    // The list comes last: what is handed out is not held up by it.
    wait_until("each is listed once", LONG, || client.redis::<usize>(&["LLEN", "jsacc:jobs"]) == count);
    assert!(shares.iter().all(|share| *share > 0), "not at random: {shares:?}");
}

#[test]
fn fanout_reaches_every_live_node_and_each_answers() {
    let mut setup = setup();
    let nodes: Vec<FakeNode> = (1..=3).map(|nid| live(&mut setup, 1, nid, &["web"])).collect();
    live(&mut setup, 1, 9, &["db"]);
    let id = setup.client.push(json!({"cmd": "ping", "roles": ["web"], "fanout": true, "tags": "all"}));
    for node in &nodes {
        let batch = next(node, None);
        assert_eq!(ids(&batch), [id.as_str()]);
        let result = node.result_of(&batch.cmds[0], "OK", "\"pong\"");
        assert_eq!(node.post("result", &json!([result])).status, 200);
    }
    let mut answered: Vec<i64> = (0..3).map(|_| setup.client.pop(&id)["nid"].as_i64().expect("nid")).collect();
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3]);
    let job = setup.client.job(&id);
    let mut targets: Vec<String> = serde_json::from_str(&job["targets"]).expect("targets");
    targets.sort_unstable();
    assert_eq!(targets, ["1:1", "1:2", "1:3"]);
    assert_eq!(setup.client.pop_within(&id, SHORT), None);
}

#[test]
fn a_role_of_yesterday_is_forgotten() {
    let mut setup = setup();
    let node = live(&mut setup, 1, 1, &["web"]);
    assert!(node.poll_as(&["db"], 0, None).is_none());
    let client = &mut setup.client;
    wait_until("the node's hash has the new role", LONG, || {
        client.redis::<Option<String>>(&["HGET", "jsacc:agent:1:1", "roles"]).is_some_and(|r| !r.contains("web"))
    });
    let id = setup.client.push(json!({"cmd": "ping", "roles": ["web"]}));
    assert_eq!(setup.client.pop(&id)["state"], "ERROR");
}

#[test]
fn a_node_that_was_not_seen_for_ninety_seconds_is_not_live() {
    let mut setup = setup();
    live(&mut setup, 1, 1, &["web"]);
    let long_ago = (jstests::now_ms() - 91_000).to_string();
    let _: i64 = setup.client.redis(&["ZADD", "jsacc:agents", &long_ago, "1:1"]);
    let id = setup.client.push(json!({"cmd": "ping", "roles": ["web"]}));
    assert_eq!(setup.client.pop(&id)["state"], "ERROR");
    // A direct target needs not be live: the command waits for its node.
    let id = setup.client.push(json!({"gid": 1, "nid": 1, "cmd": "ping"}));
    let client = &mut setup.client;
    wait_until("it is queued", LONG, || client.state(&id, "1:1").as_deref() == Some("QUEUED"));
}

#[test]
fn a_second_command_with_a_known_id_goes_nowhere() {
    let mut setup = setup();
    let node = setup.acc.node(1, 10);
    let id = setup.client.push(json!({"gid": 1, "nid": 10, "cmd": "ping", "tags": "first"}));
    let batch = next(&node, None);
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    setup.client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping", "tags": "second"}));
    setup.client.push(json!({"id": id, "gid": 1, "nid": 11, "cmd": "ping", "tags": "third"}));
    let client = &mut setup.client;
    let tells = |event: &Value| event.to_string().contains(&id);
    wait_until("two events tell of the duplicates", LONG, || client.events().iter().filter(|e| tells(e)).count() == 2);
    assert!(node.poll(0, None).is_none(), "the second went nowhere");
    assert!(setup.acc.node(1, 11).poll(0, None).is_none(), "nor did the third");
    assert_eq!(setup.client.results(&id), 0);
    let jobs: Vec<String> = setup.client.redis(&["LRANGE", "jsacc:jobs", "0", "-1"]);
    assert_eq!(jobs, [id]);
}
