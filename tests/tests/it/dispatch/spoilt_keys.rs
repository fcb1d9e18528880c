//! Keys of Redis that somebody has spoilt.

use super::*;

/// Puts a string where Redis is to hold something else.
fn spoil(client: &mut Client, key: &str) {
    client.redis::<()>(&["SET", key, "spoilt"]);
}

/// Nothing is on any taken list.
#[track_caller]
fn all_is_passed_on(client: &mut Client, what: &str) {
    wait_until(&format!("{what}: nothing is left on the taken list"), LONG, || {
        client.redis::<Vec<String>>(&["KEYS", "jsacc:{cmds_queue}:taken:*"]).is_empty()
    });
}

#[test]
fn a_spoilt_key_of_one_command_is_named_and_holds_up_no_other() {
    let (_redis, acc, mut client) = site();
    let good = acc.node(1, 99);
    let each = [
        ("jsacc:job:ID", "SET", true),
        ("jsacc:{1:NID}:queue", "SET", true),
        ("jsacc:{1:NID}:cmds", "SET", true),
        ("jsacc:{1:NID}:meta", "SET", true),
        // Of its type, and what stands there is no number.
        ("jsacc:{1:NID}:meta", "HSET", true),
        ("cmds_queue_ID", "SET", false),
        ("jsacc:done:{cmds_queue_ID}", "SET", false),
    ];
    for (nid, (key, how, is_answered)) in (1..).zip(each) {
        let id = jstests::fresh_id();
        let key = key.replace("ID", &id).replace(&format!("1:N{id}"), &format!("1:{nid}"));
        match how {
            "SET" => spoil(&mut client, &key),
            _ => client.redis(&["HSET", &key, "seq", "spoilt"]),
        }
        // Where the answer cannot be written, the command must need one: nobody has that role.
        let target = if is_answered { json!({"gid": 1, "nid": nid}) } else { json!({"roles": ["nobody"]}) };
        let mut command = json!({"id": id, "cmd": "ping"});
        command.as_object_mut().unwrap().extend(target.as_object().unwrap().clone());
        client.push(command);
        let other = client.push(json!({"gid": 1, "nid": 99, "cmd": "ping"}));
        serve(&good);
        assert_eq!(client.pop(&other)["state"], "OK", "{key}");
        wait_until(&format!("{key} is named in jsacc:rejected"), LONG, || {
            let named = |entry: &Value| entry["id"] == json!(id) && entry["reason"].to_string().contains(&key);
            client.rejected().iter().any(named)
        });
        all_is_passed_on(&mut client, &key);
        if is_answered {
            let answer = client.pop(&id);
            assert_eq!(answer["state"], "ERROR");
            assert!(answer["data"].as_str().is_some_and(|data| data.contains(&key)), "{answer}");
        }
        client.redis::<i64>(&["DEL", &key]);
    }
}

#[test]
fn spoilt_lists_of_what_has_happened_hold_up_no_command() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 10);
    for key in ["jsacc:jobs", "jsacc:audit", "jsacc:rejected", "jsacc:events", "jsacc:agents", "jsacc:{roles}:version"]
    {
        client.redis::<i64>(&["DEL", key]);
        client.redis::<()>(&["SET", key, "spoilt"]);
        client.push_raw("no command");
        let roles = client.push(json!({"roles": ["web"], "cmd": "ping"}));
        let id = client.send("ping", json!({}));
        client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping"}));
        serve(&node);
        assert_eq!(client.pop(&id)["state"], "OK", "{key}");
        let answer = client.pop(&roles);
        assert_eq!(answer["state"], "ERROR");
        if key == "jsacc:agents" {
            assert!(answer["data"].as_str().is_some_and(|data| data.contains(key)), "{answer}");
        }
        all_is_passed_on(&mut client, key);
        client.redis::<i64>(&["DEL", key]);
    }
    assert!(acc.output().contains("the key jsacc:audit in redis is a string and must be a list"));
}

#[test]
fn a_spoilt_command_is_inherited_once() {
    let (_redis, acc, mut client) = site();
    let address = Address::new(Target::parse(acc.redis_url()).unwrap(), None, &jsacc::model::SCHEMA);
    controllers::beat(&mut Conn::connect(&address, LONG).unwrap(), "dead").unwrap();
    let id = jstests::fresh_id();
    spoil(&mut client, &format!("jsacc:job:{id}"));
    let text = json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping"}).to_string();
    client.redis::<i64>(&["LPUSH", &taken("dead"), &text]);
    silence(&mut client, "dead");
    assert_eq!(client.pop(&id)["state"], "ERROR");
    all_is_passed_on(&mut client, "inherited");
    assert_eq!(client.rejected().iter().filter(|entry| entry["id"] == json!(id)).count(), 1);
}

#[test]
fn a_spoilt_command_that_expires_holds_up_no_other() {
    let (_redis, _acc, mut client) = site();
    let spoilt = client.push(json!({"gid": 1, "nid": 1, "cmd": "ping"}));
    let good = client.push(json!({"gid": 1, "nid": 2, "cmd": "ping"}));
    wait_until("both wait", LONG, || client.redis::<usize>(&["ZCARD", "jsacc:expiring"]) == 2);
    client.redis::<i64>(&["DEL", "jsacc:{1:1}:queue"]);
    spoil(&mut client, "jsacc:{1:1}:queue");
    // The time of both is up, and that of the spoilt one first.
    let (first, second) = (format!("1:1:{spoilt}"), format!("1:2:{good}"));
    client.redis::<i64>(&["ZADD", "jsacc:expiring", "XX", "1", &first, "2", &second]);
    assert!(client.pop(&good)["data"].as_str().is_some_and(|data| data.starts_with("expired:")));
    assert_eq!(client.results(&spoilt), 0);
}
