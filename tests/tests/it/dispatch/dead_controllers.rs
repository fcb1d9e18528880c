//! Commands that another controller, or another agent, had taken before.

use super::*;

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
