//! Commands that are taken back.

use super::*;

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
fn a_waiting_command_can_be_cancelled() {
    let (_redis, acc, mut client) = site();
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping"}));
    wait_for("queued", LONG, || client.state(&id, "1:10"));
    let cancel = |client: &mut Client, id: &str| {
        let own = client.push(json!({"gid": 1, "nid": 10, "cmd": "cancel", "data": {"id": id}}));
        client.pop(&own)
    };
    let answer = cancel(&mut client, &id);
    assert_eq!((&answer["state"], &answer["level"]), (&json!("OK"), &json!(20)), "{answer}");
    assert_eq!(client.pop(&id)["state"], "KILLED");
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("KILLED"));
    let node = acc.node(1, 10);
    assert!(node.poll(0, None).is_none());
    assert!(cancel(&mut client, &id)["data"].as_str().unwrap().contains("has ended"));
    assert!(cancel(&mut client, "never")["data"].as_str().unwrap().contains("no such job"));
    let id = client.send("ping", json!({}));
    node.poll(10, None).unwrap();
    assert!(cancel(&mut client, &id)["data"].as_str().unwrap().contains("already with node"));
}
