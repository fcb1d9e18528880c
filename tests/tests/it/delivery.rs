//! Death by -9 at every step between take and acknowledge (`docs/explanation/delivery.md`): what was pushed is run
//! once, and its result is there once.

use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

/// Where a controller dies on the way of a command, in the order of its life.
const CONTROLLER: &[&str] = &[
    "acc.taken",
    "acc.dispatching",
    "acc.dispatched",
    "acc.hashed",
    "acc.enqueued",
    "acc.handed",
    "acc.answered",
    "acc.untaken",
    "acc.running",
    "acc.polled",
    "acc.result.delivering",
    "acc.result.guarded",
    "acc.result.pushed",
];

/// Where an agent dies, in the order of a command's life.
const AGENT: &[&str] = &[
    "agent.received",
    "agent.stored",
    "agent.acked",
    "agent.spawned",
    "agent.exited",
    "agent.done",
    "agent.posted",
    "agent.sent",
];

/// A line that a job appends once for each of its runs.
fn runs(file: &std::path::Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

/// A controller dies at `point`; another one, which was there before or comes after, goes on.
fn controller_dies_at(point: &str) {
    let redis = Redis::start_durable();
    let mut dying = Acc::start(&redis, AccOptions::dying_at(point));
    let agent = Agent::start(&dying, AgentOptions::default());
    let mut client = Client::new(&redis);
    if point != "acc.polled" {
        // The very first poll passes that one; the others want a node that waits.
        client.wait_seen("1:10");
    }
    let file = agent.scratch().join("runs");
    let id = client.shell(&format!("echo run >> {}; echo '20::done'", file.display()));
    wait_until(&format!("the controller dies at {point}"), LONG, || dying.ended());
    dying.resume();
    let result = client.pop_within(&id, Duration::from_secs(60)).unwrap_or_else(|| panic!("{point}: no result"));
    assert_eq!((&result["state"], &result["data"]), (&json!("OK"), &json!("done")), "{point}: {result}");
    wait_until("the hash has it too", LONG, || client.state(&id, "1:10").as_deref() == Some("OK"));
    assert_eq!(runs(&file), 1, "{point}: it ran once");
    // A command that is left over is put back within 20 s: it must not run or answer again.
    let taken = || -> usize {
        let keys: Vec<String> = Client::new(&redis).redis(&["KEYS", "jsacc:{cmds_queue}:taken:*"]);
        keys.len()
    };
    wait_until(&format!("{point}: the taken list is empty"), LONG, || taken() == 0);
    let again = client.send("ping", json!({}));
    assert_eq!(client.pop(&again)["state"], "OK", "{point}: the node still hears");
    assert_eq!((client.results(&id), runs(&file)), (0, 1), "{point}: once");
}

/// An agent dies at `point` and is started again.
fn agent_dies_at(point: &str) {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut agent = Agent::start(&acc, AgentOptions::default().dying_at(point));
    let mut client = Client::new(&redis);
    client.wait_seen("1:10");
    let file = agent.scratch().join("runs");
    let id = client.shell(&format!("echo run >> {}; echo '20::done'", file.display()));
    // Some points are passed only with the answer to its next poll.
    wait_until(&format!("the agent dies at {point}"), LONG * 3, || agent.ended());
    agent.resume();
    let result = client.pop_within(&id, Duration::from_secs(60)).unwrap_or_else(|| panic!("{point}: no result"));
    match result["state"].as_str() {
        Some("OK") => assert_eq!(runs(&file), 1, "{point}: it ran once"),
        Some("ERROR") => {
            assert!(runs(&file) <= 1, "{point}: at most once");
            assert!(result["data"].as_str().is_some_and(|data| data.contains("agent")), "{point}: {result}");
        }
        _ => panic!("{point}: {result}"),
    }
    let again = client.send("ping", json!({}));
    assert_eq!(client.pop(&again)["state"], "OK", "{point}: the node still hears");
    assert_eq!(client.results(&id), 0, "{point}: once");
}

macro_rules! deaths {
    ($($name:ident: $die:ident $list:ident [$range:expr],)*) => {
        $(#[test]
        fn $name() {
            for point in &$list[$range] {
                $die(point);
            }
        })*
    };
}

// A few tests, so that they run side by side.
deaths! {
    a_controller_dies_while_it_dispatches: controller_dies_at CONTROLLER [..5],
    a_controller_dies_while_it_hands_over: controller_dies_at CONTROLLER [5..8],
    a_controller_dies_while_it_is_polled: controller_dies_at CONTROLLER [8..10],
    a_controller_dies_while_it_takes_results: controller_dies_at CONTROLLER [10..],
    an_agent_dies_before_it_runs: agent_dies_at AGENT [..3],
    an_agent_dies_while_it_runs: agent_dies_at AGENT [3..6],
    an_agent_dies_while_it_sends: agent_dies_at AGENT [6..],
}

/// Only the controller stores a command that only looks, until its result is taken.
#[test]
fn an_agent_dies_with_a_command_that_only_looks() {
    for point in ["agent.received", "agent.stored", "agent.posted", "agent.sent", "agent.acked"] {
        for cmd in ["ping", "get_mem_info"] {
            let redis = Redis::start();
            let acc = Acc::start(&redis, AccOptions::default());
            let mut agent = Agent::start(&acc, AgentOptions::default().dying_at(point));
            let mut client = Client::new(&redis);
            client.wait_seen("1:10");
            let id = client.send(cmd, json!({}));
            wait_until(&format!("the agent dies at {point}"), LONG * 3, || agent.ended());
            agent.resume();
            let result =
                client.pop_within(&id, Duration::from_secs(60)).unwrap_or_else(|| panic!("{point}: no result"));
            assert_eq!(result["state"], "OK", "{point}: {result}");
            let again = client.send(cmd, json!({}));
            assert_eq!(client.pop(&again)["state"], "OK", "{point}: the node still hears");
            assert_eq!(client.results(&id), 0, "{point}: once");
        }
    }
}

/// A result that the controller does not take for a while is stored, and survives the agent.
#[test]
fn result_of_a_command_that_only_looks_is_stored_while_redis_is_away() {
    let mut redis = Redis::start_durable();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut agent = Agent::start(&acc, AgentOptions::default());
    let mut client = Client::new(&redis);
    client.wait_seen("1:10");
    let stored = |agent: &Agent| {
        let db = rusqlite::Connection::open(agent.data_dir().join("state.db")).unwrap();
        db.query_row("SELECT count(*) FROM jobs", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    agent.signal(Signal::SIGSTOP);
    let id = client.send("ping", json!({}));
    wait_until("it is handed over", LONG, || {
        let handed: Option<String> = client.redis(&["HGET", "jsacc:{1:10}:meta", "handed_at"]);
        handed.is_some()
    });
    redis.kill();
    agent.signal(Signal::SIGCONT);
    wait_until("it is stored", LONG, || stored(&agent) == 1);
    agent.kill();
    redis.resume();
    agent.resume();
    let mut client = Client::new(&redis);
    assert_eq!(client.pop_within(&id, Duration::from_secs(60)).unwrap()["state"], "OK");
    wait_until("it is acknowledged", LONG, || {
        let waiting: i64 = client.redis(&["ZCARD", "jsacc:{1:10}:queue"]);
        waiting == 0
    });
    assert_eq!((client.results(&id), stored(&agent)), (0, 1));
}

#[test]
fn a_result_that_a_power_cut_takes_back_stands_where_it_was_delivered() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut agent = Agent::start(&acc, AgentOptions::default());
    let mut client = Client::new(&redis);
    client.wait_seen("1:10");
    let (file, go) = (agent.scratch().join("runs"), agent.scratch().join("go"));
    let id = client.shell(&format!(
        "echo run >> {}; while [ ! -e {} ]; do sleep 0.02; done; echo '20::done'",
        file.display(),
        go.display()
    ));
    wait_until("it runs", LONG, || runs(&file) == 1);
    // A power cut may leave no more of the job store than the disk has before the job's end.
    let (files, home, aside) = (["state.db", "state.db-wal"], agent.data_dir(), agent.scratch().join("aside"));
    std::fs::create_dir(&aside).unwrap();
    agent.signal(Signal::SIGSTOP);
    for name in files {
        std::fs::copy(home.join(name), aside.join(name)).unwrap();
    }
    agent.signal(Signal::SIGCONT);
    std::fs::write(&go, "").unwrap();
    assert_eq!(client.pop(&id)["data"], "done");
    agent.kill();
    let _ = std::fs::remove_file(home.join("state.db-shm"));
    for name in files {
        std::fs::copy(aside.join(name), home.join(name)).unwrap();
    }
    agent.resume();
    // The node no longer knows how it ended and says so, which goes no further.
    let repeated = || acc.anonymous().get("/metrics").body.contains("results_total{outcome=\"repeat\"} 1");
    wait_until("it answers for that run again", LONG, repeated);
    assert_eq!((client.results(&id), runs(&file)), (0, 1), "once");
    assert_eq!(client.state(&id, "1:10").as_deref(), Some("OK"));
    let again = client.send("ping", json!({}));
    assert_eq!(client.pop(&again)["state"], "OK", "the node still hears");
}

#[test]
fn another_controller_takes_over() {
    let redis = Redis::start_durable();
    let mut dying = Acc::start(&redis, AccOptions::dying_at("acc.taken"));
    let mut client = Client::new(&redis);
    let id = client.send("ping", json!({}));
    wait_until("the controller dies", LONG, || dying.ended());
    let other = Acc::start(&redis, AccOptions { state_dir: Some(dying.state_dir()), ..AccOptions::default() });
    let batch = other.node(1, 10).poll(60, None).unwrap();
    assert_eq!(batch.cmds[0]["id"], json!(id));
}

#[test]
fn a_controller_that_dies_with_its_first_command_is_inherited() {
    let redis = Redis::start_durable();
    let mut client = Client::new(&redis);
    for _ in 0..3 {
        let id = client.push(json!({"roles": ["nobody"], "cmd": "ping"}));
        let mut dying = Acc::start_unready(&redis.url(), AccOptions::dying_at("acc.taken"));
        wait_until("the controller dies", LONG, || dying.ended());
        // Others find what it had taken by its name, so that one must be there first.
        let taken: Vec<String> = client.redis(&["KEYS", "jsacc:{cmds_queue}:taken:*"]);
        assert_eq!(taken.len(), 1, "{taken:?}");
        let name = taken[0].rsplit_once("taken:").unwrap().1;
        let beat: Option<f64> = client.redis(&["ZSCORE", "jsacc:acs", name]);
        assert!(beat.is_some(), "nobody would look for what {name} had taken");
        let _: i64 = client.redis(&["DEL", &taken[0], "jsacc:secret"]);
        assert_eq!(client.results(&id), 0);
    }
}

#[test]
fn a_controllers_own_answer_survives_its_death() {
    for point in ["acc.hashed", "acc.answered"] {
        let redis = Redis::start_durable();
        let mut dying = Acc::start(&redis, AccOptions::dying_at(point));
        let mut client = Client::new(&redis);
        let id = client.push(json!({"roles": ["nobody"], "cmd": "ping"}));
        wait_until("the controller dies", LONG, || dying.ended());
        dying.resume();
        assert_eq!(client.pop_within(&id, Duration::from_secs(60)).unwrap()["state"], "ERROR", "{point}");
        wait_until(&format!("{point}: it is off the taken list"), LONG, || {
            let keys: Vec<String> = client.redis(&["KEYS", "jsacc:{cmds_queue}:taken:*"]);
            keys.is_empty()
        });
        assert_eq!(client.results(&id), 0, "{point}: once");
    }
    let redis = Redis::start_durable();
    let mut dying = Acc::start(&redis, AccOptions::dying_at("acc.withdrawn"));
    let mut client = Client::new(&redis);
    let id = client.push(json!({"gid": 1, "nid": 99, "cmd": "ping", "expires": 1}));
    wait_until("the controller dies", LONG, || dying.ended());
    dying.resume();
    assert!(client.pop(&id)["data"].as_str().unwrap().contains("expired"));
}

#[test]
fn redis_dies_at_any_moment() {
    let mut redis = Redis::start_durable();
    let acc = Acc::start(&redis, AccOptions::default());
    let agent = Agent::start(&acc, AgentOptions::default());
    Client::new(&redis).wait_seen("1:10");
    let file = agent.scratch().join("runs");
    let mut ids = Vec::new();
    for round in 0..4u64 {
        let mut client = Client::new(&redis);
        for _ in 0..25 {
            ids.push(client.shell(&format!("echo run >> {}; echo '20::done'", file.display())));
        }
        std::thread::sleep(Duration::from_millis(15 * round));
        redis.kill();
        redis.resume();
    }
    let mut client = Client::new(&redis);
    for id in &ids {
        assert_eq!(client.pop_within(id, Duration::from_secs(60)).unwrap()["state"], "OK");
    }
    assert_eq!(runs(&file), ids.len());
    for id in &ids {
        assert_eq!(client.results(id), 0, "once");
    }
}
