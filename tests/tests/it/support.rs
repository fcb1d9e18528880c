//! The support crate itself: what everything else here stands on.

use jstests::{Client, Redis};
use serde_json::json;
use std::time::Duration;

#[test]
fn a_private_redis_takes_and_gives() {
    let redis = Redis::start();
    let mut client = Client::new(&redis);
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    let waiting: Vec<String> = client.redis(&["LRANGE", "cmds_queue", "0", "-1"]);
    assert!(waiting.len() == 1 && waiting[0].contains(&id), "{waiting:?}");
    assert_eq!(client.pop_within(&id, Duration::from_millis(100)), None);
}

#[test]
fn a_durable_redis_survives_a_kill() {
    let mut redis = Redis::start_durable();
    Client::new(&redis).push_raw("kept");
    redis.kill();
    redis.resume();
    let kept: Vec<String> = Client::new(&redis).redis(&["LRANGE", "cmds_queue", "0", "-1"]);
    assert_eq!(kept, ["kept"]);
}
