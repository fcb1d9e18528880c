//! Redis away, full, read-only, behind a password, with few rights: nothing is lost, all is told.

use jstests::redis_server::free_port;
use jstests::{Acc, AccOptions, Client, FakeRedis, LONG, Redis, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::time::Duration;

#[test]
fn a_controller_starts_before_its_redis() {
    let mut redis = Redis::start();
    redis.kill();
    let acc = Acc::start_unready(&redis.url(), AccOptions::default());
    wait_until("it says that redis is away", LONG, || {
        let answer = acc.anonymous().get("/health");
        answer.status == 503 && answer.retry_after.is_some()
    });
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(acc.output().matches("no answer from redis").count(), 1, "once: {}", acc.output());
    redis.resume();
    wait_until("it finds redis", LONG, || acc.anonymous().get("/health").status == 200);
    let mut client = Client::new(&redis);
    let id = client.send("ping", json!({}));
    assert_eq!(acc.node(1, 10).poll(30, None).unwrap().cmds[0]["id"], json!(id));
}

#[test]
fn redis_goes_and_comes_back_in_the_middle() {
    let mut redis = Redis::start_durable();
    let acc = Acc::start(&redis, AccOptions::default());
    let node = acc.node(1, 10);
    let mut client = Client::new(&redis);
    let first = client.send("ping", json!({}));
    let batch = node.poll(30, None).unwrap();
    let parked = acc.node(1, 11);
    // Like an agent, it tries again when it is told 503.
    let waiting = std::thread::spawn(move || {
        wait_for("a command for the node that waits", LONG * 3, || {
            let answer = parked.get("/1/11/cmd?wait=60");
            (answer.status == 200).then(|| answer.json()["cmds"][0]["id"].clone())
        })
    });
    client.wait_seen("1:11");
    redis.kill();
    let result = json!([node.result_of(&batch.cmds[0], "OK", "kept")]);
    for _ in 0..20 {
        // More of them than there are threads: none is stuck.
        let answer = node.post("result", &result);
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.retry_after.is_some());
    }
    assert_eq!(node.get("/1/10/cmd?wait=0").status, 503);
    redis.resume();
    wait_until("the result is taken", LONG, || node.post("result", &result).status == 200);
    let mut client = Client::new(&redis);
    assert_eq!(client.pop(&first)["data"], "kept");
    // A poll that waited all the time still gets its wake-up.
    let second = client.push(json!({"gid": 1, "nid": 11, "cmd": "ping"}));
    assert_eq!(waiting.join().unwrap(), json!(second));
    assert_eq!(node.post("result", &result).status, 200);
    assert_eq!(client.results(&first), 0, "nothing is doubled");
}

#[test]
fn a_stop_ends_in_time_though_redis_hangs() {
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, AccOptions::default());
    // The connections stand and nothing answers: worse than a Redis that is gone.
    kill(Pid::from_raw(redis.pid() as i32), Signal::SIGSTOP).unwrap();
    let code = acc.stop();
    kill(Pid::from_raw(redis.pid() as i32), Signal::SIGCONT).unwrap();
    assert_eq!(code, Some(0), "{}", acc.output());
}

#[test]
fn controller_that_is_stopped_and_continued_takes_redis_for_present() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let (mut client, node, pid) = (Client::new(&redis), acc.node(1, 10), Pid::from_raw(acc.pid() as i32));
    for _ in 0..10 {
        // The end of such a stop interrupts reads that wait for Redis, as the end of a tracer does.
        kill(pid, Signal::SIGSTOP).expect("the controller is stopped");
        wait_until("it stands still", LONG, || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the controller's state");
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        });
        kill(pid, Signal::SIGCONT).expect("the controller goes on");
        assert_eq!(acc.anonymous().get("/health").status, 200);
        let id = client.send("ping", json!({}));
        let batch = node.poll(30, None).expect("the command");
        assert_eq!(batch.cmds[0]["id"], json!(id));
        assert_eq!(node.post("result", &json!([node.result_of(&batch.cmds[0], "OK", "")])).status, 200);
        assert!(node.poll(0, Some(&batch.batch)).is_none());
        assert_eq!(client.pop(&id)["state"], "OK");
    }
    for said in ["no answer from redis", "cannot be passed on"] {
        assert!(!acc.output().contains(said), "{}", acc.output());
    }
}

#[test]
fn controllers_that_have_left_are_forgotten_after_a_day() {
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, AccOptions::default());
    let (mut client, gone) = (Client::new(&redis), "jsacc:{cmds_queue}:gone");
    let name: Vec<String> = client.redis(&["ZRANGE", "jsacc:acs", "0", "-1"]);
    client.redis::<()>(&["ZADD", gone, "1", "long-gone"]);
    assert_eq!(acc.stop(), Some(0));
    assert_eq!(client.redis::<Vec<String>>(&["ZRANGE", gone, "0", "-1"]), name);
    let left: i64 = client.redis(&["TTL", gone]);
    assert!((86_000..=86_400).contains(&left), "{left}");
}

#[test]
fn data_that_redis_lost_does_not_deafen_a_waiting_node() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let waiting = std::thread::spawn(move || node.poll(60, None));
    client.wait_seen("1:10");
    client.redis::<()>(&["FLUSHALL"]);
    client.wait_seen("1:10");
    let id = client.send("ping", json!({}));
    assert_eq!(waiting.join().unwrap().unwrap().cmds[0]["id"], json!(id));
}

/// A node has a job, and its result meets a Redis that refuses (by `refuse`) until it does not (by
/// `mend`). Gives the refusal, and what goes on from there.
fn refused_for_a_while(
    refuse: &[&str],
    mend: &[&str],
    meanwhile: impl FnOnce(&Acc),
) -> (jstests::Reply, Redis, Acc, Client, jstests::FakeNode, String) {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let id = client.send("ping", json!({}));
    let batch = node.poll(30, None).unwrap();
    client.redis::<()>(refuse);
    let result = json!([node.result_of(&batch.cmds[0], "OK", "kept")]);
    let answer = node.post("result", &result);
    assert_eq!(answer.status, 503, "{answer:?}");
    meanwhile(&acc);
    client.redis::<()>(mend);
    wait_until("the result is taken", LONG, || node.post("result", &result).status == 200);
    assert_eq!(client.pop(&id)["data"], "kept");
    (answer, redis, acc, client, node, batch.batch)
}

#[test]
fn a_full_redis_refuses_and_goes_on_later() {
    let set = |bytes| ["CONFIG", "SET", "maxmemory", bytes];
    let (answer, _redis, _acc, mut client, node, batch) = refused_for_a_while(&set("1"), &set("0"), |acc| {
        assert_eq!(acc.anonymous().get("/health").status, 200, "it answers");
    });
    assert!(answer.error().contains("full"), "{answer:?}");
    let id = client.send("ping", json!({}));
    assert_eq!(node.poll(30, Some(&batch)).unwrap().cmds[0]["id"], json!(id));
}

#[test]
fn a_read_only_redis_refuses_and_goes_on_later() {
    let (_, _redis, _acc, mut client, node, batch) =
        refused_for_a_while(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], |_| {});
    wait_for("commands pass again", LONG, || {
        let id = client.send("ping", json!({}));
        // A thread that finds its own connection cut only now has the poll told 503; a node comes again then.
        let reply = node.get(&format!("/1/10/cmd?wait=5&ack={batch}"));
        assert!([200, 204, 503].contains(&reply.status), "{reply:?}");
        let cmds = reply.json()["cmds"].as_array().cloned().unwrap_or_default();
        cmds.iter().any(|command| command["id"] == json!(id)).then_some(())
    });
}

#[test]
fn a_server_that_takes_no_connection_is_quoted_once() {
    let denied = "DENIED Redis is running in protected mode because protected mode is enabled and no password is set \
                  for the default user. In this mode connections are only accepted from the loopback interface. If you \
                  want to connect from external computers to Redis you may adopt one of the following solutions: 1) ...";
    for (words, quoted) in
        [(denied, "DENIED Redis is running in protected mode"), ("ERR max number of clients reached", "")]
    {
        let quoted = if quoted.is_empty() { words } else { quoted };
        let fake = FakeRedis::refusing(words);
        for login in ["", "me:geheim@"] {
            let acc = Acc::start_unready(&format!("redis://{login}{}", fake.address()), AccOptions::default());
            wait_until("it says what the server said", LONG, || acc.output().contains(quoted));
            // It tries on, and says it once.
            let tries = fake.accepted() + 8;
            wait_until("it tries again and again", LONG, || fake.accepted() >= tries);
            let output = acc.output();
            let output: Vec<&str> = output.lines().filter(|line| !line.contains("[DEBUG]")).collect();
            let output = output.join("\n");
            assert_eq!(output.matches(quoted).count(), 1, "{output}");
            for other in ["end of file", "reset", "Broken pipe", "no answer"] {
                assert!(!output.contains(other), "{other}: {output}");
            }
            let answer = acc.anonymous().get("/health");
            assert_eq!(answer.status, 503, "{answer:?}");
        }
    }
}

#[test]
fn a_full_table_of_clients_is_told_in_the_servers_words() {
    let port = free_port();
    let redis = Redis::start_with(&["--maxclients", "1"], Some(port));
    let only = redis.connect();
    let acc = Acc::start_unready(&format!("127.0.0.1:{port}"), AccOptions::default());
    wait_until("it says why", LONG, || acc.output().contains("refuses: ERR max number of clients reached"));
    assert!(!acc.output().contains("no answer"), "{}", acc.output());
    drop(only);
}

#[test]
fn a_redis_that_is_too_old_ends_the_start_with_its_version() {
    for (version, good) in [("5.0.14", false), ("6.0.5", false), ("6.0.6", true), ("7.2.4", true), ("255.0.0", true)] {
        let fake = FakeRedis::of_version(version);
        let mut acc = Acc::start_unready(&fake.address(), AccOptions::default());
        if good {
            wait_until("it works with it", LONG, || acc.output().contains("listening") && fake.accepted() > 2);
            assert!(!acc.output().contains("upgrade"), "{version}: {}", acc.output());
            continue;
        }
        assert_eq!(acc.wait(), 1, "{version}: {}", acc.output());
        let want =
            format!("redis at {}: it is version {version}, and at least 6.0.6 is needed: upgrade it", fake.address());
        assert!(acc.output().contains(&want), "{}", acc.output());
        let done = acc.command(&["revoke", "1", "10"]);
        assert!(done.code == 1 && done.stderr.contains("upgrade it"), "{done:?}");
    }
}

#[test]
fn passwords_and_users() {
    let port = free_port();
    let redis = Redis::start_with(&[], Some(port));
    let mut client = Client::new(&redis);
    client.redis::<()>(&["CONFIG", "SET", "requirepass", "geheim"]);
    let refused = |url: &str, word: &str| {
        let acc = Acc::start_unready(url, AccOptions::default());
        wait_until("it says why", LONG, || acc.output().contains(word));
        wait_until("health says it too", LONG, || acc.anonymous().get("/health").status == 503);
        assert!(!acc.output().contains("falsch"), "no password in a log");
    };
    refused(&format!("127.0.0.1:{port}"), "asks for a password");
    refused(&format!("redis://:falsch@127.0.0.1:{port}"), "refuses the password");
    let acc = Acc::start_at(&format!("redis://:geheim@127.0.0.1:{port}/3"), AccOptions::default());
    assert_eq!(acc.anonymous().get("/health").status, 200);
    assert!(!acc.output().contains("geheim"));
}

#[test]
fn redis_over_tls() {
    // The certificate that a controller has made for itself serves this Redis.
    let plain = Redis::start();
    let other = Acc::start(&plain, AccOptions::secure());
    let file = |name: &str| other.state_dir().join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let port = free_port().to_string();
    let tls = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let _redis = Redis::start_with(&[&tls[..], &["--tls-auth-clients", "no"]].concat(), None);
    let url = format!("rediss://localhost:{port}");
    let without_ca = Acc::start_unready(&url, AccOptions::default());
    wait_until("a CA that it does not know is refused", LONG, || without_ca.output().contains("UnknownIssuer"));
    let acc = Acc::start_at(&url, AccOptions { args: vec!["--redis-ca".into(), ca], ..AccOptions::default() });
    assert_eq!(acc.anonymous().get("/health").status, 200);
}

/// The rights that `docs/how-to/set-up-redis.md` names for a controller.
const CONTROLLER: &[&str] = &[
    "~cmds_queue*",
    "~log.*",
    "~jsacc:*",
    "+@connection",
    "+@read",
    "+@write",
    "+@scripting",
    "+eval",
    "+multi",
    "+exec",
    "+time",
    "-@dangerous",
    "-@admin",
    "-flushall",
    "-flushdb",
    "-swapdb",
    "-keys",
];
/// And for a client.
const CLIENT: &[&str] = &[
    "~cmds_queue*",
    "~log.*",
    "~jsacc:*",
    "+@connection",
    "+@read",
    "+lpush",
    "+brpop",
    "+rpop",
    "+set",
    "+expire",
    "+time",
    "-@dangerous",
];

#[test]
fn few_rights_are_enough() {
    let port = free_port();
    let redis = Redis::start_with(&[], Some(port));
    let mut admin = Client::new(&redis);
    for (user, rights) in [("acc", CONTROLLER), ("cli", CLIENT)] {
        let mut words = vec!["ACL", "SETUSER", user, "reset", "on", ">pw"];
        words.extend(rights);
        admin.redis::<()>(&words);
    }
    let acc = Acc::start_at(&format!("redis://acc:pw@127.0.0.1:{port}"), AccOptions::default());
    let mut client = Client { conn: redis.connect() };
    client.redis::<()>(&["AUTH", "cli", "pw"]);
    let node = acc.node(1, 10);
    assert!(node.poll_as(&["web"], 0, None).is_none());
    let id = client.push(json!({"roles": ["web"], "cmd": "ping"}));
    let batch = node.poll(30, None).unwrap();
    assert!(node.poll(0, Some(&batch.batch)).is_none());
    assert_eq!(node.post("result", &json!([node.result_of(&batch.cmds[0], "OK", "x")])).status, 200);
    assert_eq!(client.pop(&id)["state"], "OK");
    let id = client.push(json!({"gid": 1, "nid": 99, "cmd": "ping", "expires": 1}));
    assert_eq!(client.pop(&id)["state"], "ERROR");
    for what in ["log", "stats"] {
        let body = json!({"batch": 1, "records": [{"data": "x"}], "series": [["k", 1]]});
        assert_eq!(node.post(what, &body).status, 200, "{what}");
    }
    assert_eq!(node.post("event", &json!({"name": "x"})).status, 200);
    assert_eq!(acc.anonymous().get("/metrics/nodes").status, 200);
    let denied: Vec<String> =
        admin.redis::<Vec<redis::Value>>(&["ACL", "LOG"]).iter().map(|e| format!("{e:?}")).collect();
    assert!(denied.is_empty(), "{denied:?}");
}
