//! Redis as a cluster, and under Sentinels: a controller outlives the loss of a server, with jobs in flight.

use jsacc::api::Handlers;
use jsacc::config::Config;
use jsacc::config::redis_address::Target;
use jsacc::http::Handler;
use jstests::load::Load;
use jstests::redis_cluster::Cluster;
use jstests::redis_server::free_port;
use jstests::sentinels::Watched;
use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::ConnectionLike;
use redis::cluster::ClusterConnection;
use serde_json::json;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a failover may take on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);
const NODES: u32 = 20;

fn nodes(accs: &[&Acc]) -> Swarm {
    let controllers: Vec<_> = accs.iter().map(|acc| ([127, 0, 0, 1], acc.port()).into()).collect();
    let chatter = Some(Duration::from_secs(1));
    let swarm = Swarm::start(SwarmOptions {
        chatter,
        wait: 5,
        controllers,
        ..SwarmOptions::new(([127, 0, 0, 1], 1).into(), NODES)
    });
    let swarm = swarm.expect("the swarm starts");
    swarm.wait_polling(FAILOVER).expect("all poll");
    swarm
}

/// A second controller of one family.
fn family(url: &str, first: &Acc) -> Acc {
    Acc::start_at(url, AccOptions { state_dir: Some(first.state_dir()), ..AccOptions::default() })
}

/// A push over a connection that is made anew when it fails.
fn pusher(cluster: &Cluster) -> impl FnMut(&str) -> bool + Send + 'static {
    let urls: Vec<String> =
        cluster.servers.iter().map(|server| format!("redis://127.0.0.1:{}", server.port().unwrap())).collect();
    let mut conn: Option<ClusterConnection> = None;
    move |text| {
        if conn.is_none() {
            let client = redis::cluster::ClusterClient::builder(urls.clone())
                .connection_timeout(Duration::from_secs(1))
                .response_timeout(Duration::from_secs(2))
                .retries(4);
            conn = client.build().and_then(|client| client.get_connection()).ok();
        }
        let pushed = conn.as_mut().is_some_and(|conn| {
            let mut cmd = redis::cmd("LPUSH");
            conn.req_command(cmd.arg("cmds_queue").arg(text)).is_ok()
        });
        if !pushed {
            conn = None;
        }
        pushed
    }
}

fn push_text(cluster: &Cluster, text: &str) -> bool {
    pusher(cluster)(text)
}

/// Waits until each job has its result, and looks that none has two; all of them stand in the hashes too.
///
/// `killed` is how many had been accepted when a master was killed: what it had answered and its replica did
/// not have at that moment is gone, which `docs/how-to/set-up-redis.md` says. That is nothing most of the time, and a
/// step or two of the jobs of that moment at most.
#[track_caller]
#[allow(clippy::print_stderr)] // The test passes all the same, and what it let pass is to be seen.
fn all_ran_once(ids: &[String], killed: Option<usize>, mut count: impl FnMut(&[String]) -> Option<Vec<(usize, bool)>>) {
    let moment = killed.map_or(0..0, |at| at.saturating_sub(100)..(at + 20).min(ids.len()));
    let mut open: Vec<String> = ids.to_vec();
    let (end, mut patience) = (Instant::now() + FAILOVER, Duration::from_secs(10));
    while !open.is_empty() {
        let before = open.len();
        if before <= 3 && patience.is_zero() && open.iter().all(|id| ids[moment.clone()].contains(id)) {
            eprintln!("gone with the master that was killed: {open:?}");
            return;
        }
        if let Some(counts) = count(&open) {
            let doubled: Vec<_> = open.iter().zip(&counts).filter(|(_, (count, _))| *count > 1).collect();
            assert!(doubled.is_empty(), "{doubled:?}");
            open = open
                .into_iter()
                .zip(counts)
                .filter(|(_, (count, done))| *count == 0 || !done)
                .map(|(id, _)| id)
                .collect();
        }
        assert!(Instant::now() < end, "{} of {} without a result: {:?}", open.len(), ids.len(), open.first());
        let pause = Duration::from_millis(50);
        std::thread::sleep(pause);
        patience = if open.len() < before { Duration::from_secs(10) } else { patience.saturating_sub(pause) };
    }
}

/// Results on the list, and whether the job's hash says that it ended.
fn counted(conn: &mut impl ConnectionLike, id: &str) -> Option<(usize, bool)> {
    let count = redis::cmd("LLEN").arg(format!("cmds_queue_{id}")).query(conn).ok()?;
    let states: Vec<String> = redis::cmd("HVALS").arg(format!("jsacc:job:{id}")).query(conn).ok()?;
    Some((count, states.iter().any(|state| state.contains("\"state\":\"OK\""))))
}

fn on_cluster(cluster: &Cluster) -> impl FnMut(&[String]) -> Option<Vec<(usize, bool)>> {
    let mut conn = cluster.connect();
    let again = move || cluster.connect();
    move |ids| {
        conn = conn.take().or_else(&again);
        let counts: Option<Vec<_>> = ids.iter().map(|id| counted(conn.as_mut()?, id)).collect();
        if counts.is_none() {
            conn = None;
        }
        counts
    }
}

/// Waits until so many more commands were accepted.
#[track_caller]
fn more(load: &Load, count: usize) {
    let before = load.accepted();
    wait_until("commands are accepted", FAILOVER, || load.accepted() >= before + count);
}

#[test]
fn a_cluster_loses_servers_with_jobs_in_flight() {
    let mut cluster = Cluster::start(true);
    let first = Acc::start_at(&cluster.address(), AccOptions::default());
    let second = family(&cluster.address(), &first);
    let swarm = nodes(&[&first, &second]);
    let load = Load::start(NODES, Duration::from_millis(2), pusher(&cluster));
    more(&load, 200);
    // The one that holds the queue of commands is the worst to lose.
    let holder = cluster.holder(cluster.slot("cmds_queue"));
    let killed = load.accepted();
    cluster.servers[holder].kill();
    more(&load, 200);
    // A master is made a replica in peace, as for an upgrade.
    let replica = wait_for("a replica that can take over", FAILOVER, || {
        let alive = (0..6).filter(|i| *i != holder);
        alive.into_iter().find(|i| {
            let info: String = cluster.on(*i, &["INFO", "replication"]).unwrap_or_default();
            info.contains("role:slave") && info.contains("master_link_status:up")
        })
    });
    cluster.on::<()>(replica, &["CLUSTER", "FAILOVER"]).expect("a failover");
    more(&load, 200);
    let ids = load.stop();
    all_ran_once(&ids, Some(killed), on_cluster(&cluster));
    assert!(swarm.tally.others.lock().unwrap().is_empty(), "{:?}", swarm.tally);
    assert_eq!(first.anonymous().get("/health").status, 200);
}

#[test]
fn slots_move_and_servers_fill_up_under_load() {
    let cluster = Cluster::start(false);
    let first = Acc::start_at(&cluster.address(), AccOptions::default());
    let second = family(&cluster.address(), &first);
    let swarm = nodes(&[&first, &second]);
    let load = Load::start(NODES, Duration::from_millis(2), pusher(&cluster));
    more(&load, 100);
    // The keys that every command needs, and the queues of some nodes.
    let mut keys = vec!["cmds_queue".to_owned(), "jsacc:jobs".into(), "jsacc:agents".into(), "jsacc:expiring".into()];
    keys.extend((1..=4).map(|nid| format!("{{1:{nid}}}")));
    for round in 1..=2 {
        for key in &keys {
            let slot = cluster.slot(key);
            let from = (cluster.first_holder(slot) + round - 1) % 3;
            cluster.move_slot(slot, from, (from + 1) % 3, Duration::from_millis(150));
        }
        more(&load, 100);
    }
    for _ in 0..10 {
        cluster.fill(true);
        std::thread::sleep(Duration::from_millis(fastrand::u64(1..60)));
        cluster.fill(false);
        more(&load, 10);
    }
    let ids = load.stop();
    all_ran_once(&ids, None, on_cluster(&cluster));
    assert!(swarm.tally.others.lock().unwrap().is_empty(), "{:?}", swarm.tally);
    let listed: Vec<String> = wait_for("the list of jobs", LONG, || {
        redis::cmd("LRANGE").arg("jsacc:jobs").arg(0).arg(-1).query(&mut cluster.connect()?).ok()
    });
    let missing: Vec<&String> = ids.iter().filter(|id| !listed.contains(id)).collect();
    assert!(missing.is_empty(), "{missing:?} are not listed");
}

#[test]
fn one_address_of_a_cluster_is_enough() {
    let cluster = Cluster::start(false);
    let one = |server: usize| format!("127.0.0.1:{}", cluster.servers[server].port().unwrap());
    // The second controller may not ask the servers how they work.
    for (server, may_ask) in [(0, true), (1, false)] {
        if !may_ask {
            (0..3).for_each(|i| cluster.on::<()>(i, &["ACL", "SETUSER", "default", "-hello"]).expect("a user"));
        }
        let acc = Acc::start_at(&one(server), AccOptions::default());
        // Nodes whose queues lie on each of the servers.
        for holder in 0..3 {
            let nid = (10..).find(|nid| cluster.holder(cluster.slot(&format!("{{1:{nid}}}"))) == holder).unwrap();
            run_on(&cluster, &acc.node(1, nid), nid);
        }
        assert_eq!(acc.anonymous().get("/health").status, 200);
        assert!(!acc.output().contains("being moved"), "{}", acc.output());
        // The next controller has another node secret.
        cluster.forget_all();
    }
    let socket = cluster.servers[0].url();
    let acc = Acc::start_unready(&socket, AccOptions::default());
    wait_until("it says what to do", LONG, || acc.output().contains("cluster, which a Unix socket does not lead to"));
    // It says so before it listens.
    wait_until("its health says so too", LONG, || {
        let reply = acc.anonymous().get("/health");
        reply.status == 503 && reply.error().contains("cluster")
    });
}

#[test]
fn cluster_of_one_server_that_may_not_be_asked_is_found() {
    let (port, bus) = (free_port(), free_port().to_string());
    let redis = Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus], Some(port));
    let mut client = Client::new(&redis);
    client.redis::<()>(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    wait_until("it serves", LONG, || client.redis::<String>(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    client.redis::<()>(&["ACL", "SETUSER", "default", "-hello"]);
    // It takes no call of two slots, and says so only when all calls of a transaction are there.
    let acc = Acc::start_at(&format!("127.0.0.1:{port}"), AccOptions::default());
    let id = client.send("ping", json!({}));
    let node = acc.node(1, 10);
    let batch = wait_for("the command comes", LONG, || node.poll(1, None));
    assert_eq!(batch.cmds[0]["id"], json!(id));
    assert_eq!(node.post("result", &json!([node.result_of(&batch.cmds[0], "OK", "pong")])).status, 200);
    assert_eq!(client.pop(&id)["state"], "OK");
}

#[test]
fn a_slot_that_stays_open_holds_up_only_what_lies_in_it() {
    let cluster = Cluster::start(false);
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    let (held, free) = (acc.node(1, 10), acc.node(1, 11));
    assert!(held.poll(0, None).is_none() && free.poll(0, None).is_none());
    let slot = cluster.slot("{1:10}");
    let from = cluster.holder(slot);
    cluster.open_slot(slot, from, (from + 1) % 3);
    let mut push = pusher(&cluster);
    let mut send = |nid: u32, name: &str| {
        let text = json!({"id": name, "gid": 1, "nid": nid, "cmd": "ping"}).to_string();
        wait_until("the command is pushed", FAILOVER, || push(&text));
    };
    let taken = |acc: &Acc, node: &FakeNode, count: usize| {
        let (mut ids, mut ack) = (Vec::new(), None);
        wait_until("its commands come", LONG, || {
            let batch = node.poll(1, ack.as_deref());
            ack = batch.as_ref().map(|batch| batch.batch.clone());
            ids.extend(
                batch.into_iter().flat_map(|batch| batch.cmds).map(|cmd| cmd["id"].as_str().unwrap().to_owned()),
            );
            ids.len() >= count && ack.is_none()
        });
        assert_eq!(acc.anonymous().get("/health").status, 200);
        ids
    };
    send(10, "held-1");
    (1..=6).for_each(|i| send(11, &format!("free-{i}")));
    assert_eq!(taken(&acc, &free, 6), (1..=6).map(|i| format!("free-{i}")).collect::<Vec<_>>());
    // Several times as long as a call waits for its keys, and both nodes poll meanwhile.
    for round in 2..=4 {
        let reply = held.get("/1/10/cmd?wait=0");
        assert!(reply.status == 503 && reply.error().contains("being moved"), "{reply:?}");
        send(10, &format!("held-{round}"));
        // A cancellation that meets the slot waits as well.
        if round == 2 {
            let text = json!({"id": "back", "gid": 1, "nid": 10, "cmd": "cancel", "data": "{\"id\": \"held-1\"}"});
            wait_until("the command is pushed", FAILOVER, || push_text(&cluster, &text.to_string()));
        }
        send(11, &format!("more-{round}"));
        assert_eq!(taken(&acc, &free, 1), [format!("more-{round}")]);
    }
    assert!(acc.output().contains("is being moved") && !acc.output().contains("no answer from redis"));
    cluster.close_slot(slot, from, (from + 1) % 3);
    // Each once, in their order; of the first one and its cancellation either may have been first.
    let ids = taken(&acc, &held, 3);
    let rest: Vec<_> = ids.iter().filter(|id| *id != "held-1").collect();
    assert_eq!(rest, ["held-2", "held-3", "held-4"], "{ids:?}");
    let mut conn = cluster.connect().unwrap();
    wait_until("the cancellation is answered", LONG, || {
        redis::cmd("LLEN").arg("cmds_queue_back").query::<usize>(&mut conn).is_ok_and(|count| count == 1)
    });
    wait_until("nothing is held any more", LONG, || acc.output().contains("what waited for that is passed on"));
    assert!(held.poll(0, None).is_none());
}

#[test]
fn a_server_of_a_cluster_that_is_away_holds_up_only_what_lies_there() {
    let mut cluster = Cluster::start(false);
    for server in 0..3 {
        cluster.on::<()>(server, &["CONFIG", "SET", "cluster-require-full-coverage", "no"]).expect("a setting");
    }
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    // The one that has none of the lists that all share.
    let away = cluster.holder(cluster.slot("jsacc:{revoked}"));
    let lies = |key: &str| cluster.holder(cluster.slot(key));
    for shared in ["cmds_queue", "jsacc:acs", "jsacc:agents", "jsacc:expiring", "jsacc:jobs", "jsacc:audit"] {
        assert_ne!(lies(shared), away, "{shared}");
    }
    let nid = |there: bool| (10..).find(|nid| (lies(&format!("{{1:{nid}}}")) == away) == there).unwrap();
    let (gone, good) = (nid(true), nid(false));
    // The keys of a job lie in two more slots.
    let id = |job: bool, results: bool| {
        std::iter::repeat_with(jstests::fresh_id)
            .find(|id| {
                let (hash, list) = (lies(&format!("jsacc:job:{id}")), lies(&format!("cmds_queue_{id}")));
                ((hash == away), (list == away)) == (job, results)
            })
            .unwrap()
    };
    let (of_node, of_job, of_list, fine) = (id(false, false), id(true, false), id(false, true), id(false, false));
    let more: Vec<String> = (0..20).map(|_| id(false, false)).collect();
    let node = acc.node(1, good);
    assert!(node.poll(0, None).is_none());
    cluster.servers[away].kill();

    let push = |text: serde_json::Value| assert!(push_text(&cluster, &text.to_string()), "{text}");
    push(json!({"id": of_node, "gid": 1, "nid": gone, "cmd": "ping"}));
    push(json!({"id": of_job, "gid": 1, "nid": good, "cmd": "ping"}));
    push(json!({"id": of_list, "roles": ["nobody"], "cmd": "ping"}));
    push(json!({"id": fine, "gid": 1, "nid": good, "cmd": "ping"}));
    more.iter().for_each(|id| push(json!({"id": id, "gid": 1, "nid": good, "cmd": "ping"})));
    let (mut came, mut ack): (Vec<String>, Option<String>) = (Vec::new(), None);
    let mut poll = |ids: &[String]| {
        wait_until("its commands come", LONG, || {
            let query = ack.as_ref().map(|ack| format!("&ack={ack}")).unwrap_or_default();
            let reply = node.get(&format!("/1/{good}/cmd?wait=1{query}"));
            if reply.status == 200 {
                let body = reply.json();
                ack = body["batch"].as_str().map(str::to_owned);
                let cmds = body["cmds"].as_array().unwrap();
                came.extend(cmds.iter().map(|cmd| cmd["id"].as_str().unwrap().to_owned()));
            }
            ids.iter().all(|id| came.contains(id))
        });
        came.clone()
    };
    let mut ids = more.clone();
    ids.push(fine.clone());
    let came = poll(&ids);
    assert!(!came.contains(&of_job), "{came:?}");
    let result = json!([{"id": fine, "gid": 1, "nid": good, "state": "OK", "starttime": 1}]);
    wait_until("a result is taken", LONG, || node.post("result", &result).status == 200);
    assert_eq!(acc.anonymous().get("/health").status, 200);
    assert!(acc.output().contains("what lies there waits"), "{}", acc.output());

    cluster.servers[away].resume();
    poll(std::slice::from_ref(&of_job));
    let mut conn = cluster.connect().unwrap();
    wait_until("what waited is passed on", FAILOVER, || {
        let answered = redis::cmd("LLEN").arg(format!("cmds_queue_{of_list}")).query::<usize>(&mut conn);
        let queued = redis::cmd("ZCARD").arg(format!("jsacc:{{1:{gone}}}:queue")).query::<usize>(&mut conn);
        answered.is_ok_and(|count| count == 1) && queued.is_ok_and(|count| count == 1)
    });
}

#[test]
fn lists_of_what_happened_hold_up_nothing_while_their_server_is_away() {
    let mut cluster = Cluster::start(false);
    for server in 0..3 {
        cluster.on::<()>(server, &["CONFIG", "SET", "cluster-require-full-coverage", "no"]).expect("a setting");
    }
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    let away = cluster.holder(cluster.slot("jsacc:audit:results"));
    for list in ["jsacc:jobs", "jsacc:audit", "jsacc:events", "jsacc:rejected"] {
        let (slot, from) = (cluster.slot(list), cluster.holder(cluster.slot(list)));
        assert_ne!(from, away, "{list}");
        cluster.move_slot(slot, from, away, Duration::ZERO);
    }
    let lies = |key: &str| cluster.holder(cluster.slot(key));
    for needed in ["cmds_queue", "jsacc:expiring"] {
        assert_ne!(lies(needed), away, "{needed}");
    }
    let nid = (10..).find(|nid| lies(&format!("{{1:{nid}}}")) != away).unwrap();
    let mut ids = std::iter::repeat_with(jstests::fresh_id)
        .filter(|id| ![format!("jsacc:job:{id}"), format!("cmds_queue_{id}")].iter().any(|key| lies(key) == away));
    let mut id = || ids.next().unwrap();
    let (bad, good, last, holder) = (id(), id(), id(), lies("cmds_queue"));
    let node = acc.node(1, nid);
    assert!(node.poll(0, None).is_none());
    cluster.servers[away].kill();
    let push = |text: serde_json::Value| assert!(push_text(&cluster, &text.to_string()), "{text}");
    let answers = |id: &str| {
        let mut conn = cluster.connect().unwrap();
        redis::cmd("LLEN").arg(format!("cmds_queue_{id}")).query::<usize>(&mut conn).is_ok_and(|count| count == 1)
    };
    push(json!({"id": bad, "gid": 1, "nid": nid, "cmd": 5}));
    push(json!({"id": good, "gid": 1, "nid": nid, "cmd": "ping"}));
    push(json!({"id": last, "gid": 1, "nid": nid, "cmd": "ping"}));
    wait_until("the bad text is answered", LONG, || answers(&bad));
    let mut commands: Vec<serde_json::Value> = Vec::new();
    wait_until("the commands come", LONG, || {
        let reply = node.get(&format!("/1/{nid}/cmd?wait=1"));
        commands = reply.json()["cmds"].as_array().cloned().unwrap_or_default();
        commands.len() == 2
    });
    // The second final answer for one node is an event, which cannot be written.
    let mut results = vec![node.result_of(&commands[0], "TIMEOUT", ""), node.result_of(&commands[1], "OK", "")];
    for state in ["OK", "ERROR"] {
        wait_until("the results are taken", LONG, || node.post("result", &json!(results)).status == 200);
        (results[0]["state"], results[0]["starttime"]) =
            (json!(state), json!(results[0]["starttime"].as_i64().unwrap() + 5));
    }
    assert!(answers(&good) && answers(&last));
    // A command that it has taken by now is passed on though nobody can look whether it is listed.
    let taken = "jsacc:{cmds_queue}:taken:*";
    wait_until("nothing is left on the taken list", LONG, || {
        cluster.on::<Vec<String>>(holder, &["KEYS", taken]).is_ok_and(|keys| keys.is_empty())
    });
    assert_eq!(acc.anonymous().get("/health").status, 200);
}

#[test]
fn controller_beats_while_the_server_of_the_fingerprint_is_away() {
    let mut cluster = Cluster::start(false);
    for server in 0..3 {
        cluster.on::<()>(server, &["CONFIG", "SET", "cluster-require-full-coverage", "no"]).expect("a setting");
    }
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    let (away, holder) = (cluster.holder(cluster.slot("jsacc:secret")), cluster.holder(cluster.slot("cmds_queue")));
    assert_eq!(away, cluster.holder(cluster.slot("jsacc:acs")));
    assert_ne!(away, holder);
    let beat = || {
        let beats: Vec<(String, f64)> =
            cluster.on(holder, &["ZRANGE", "jsacc:{cmds_queue}:acs", "0", "-1", "WITHSCORES"]).unwrap_or_default();
        beats.first().map(|(_, at)| *at)
    };
    let first = wait_for("it beats", LONG, beat);
    cluster.on::<()>(away, &["SHUTDOWN", "NOSAVE"]).expect_err("the server is gone");
    wait_until("it is noticed", LONG, || acc.output().contains("what lies there waits"));
    let second = wait_for("it goes on to beat", LONG, || beat().filter(|at| *at > first));
    wait_for("and on", LONG, || beat().filter(|at| *at > second));
    cluster.servers[away].kill();
}

#[test]
fn spoilt_hash_of_a_job_does_not_stop_the_polls_of_its_node() {
    let cluster = Cluster::start(false);
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    let node = acc.node(1, 10);
    let mut push = pusher(&cluster);
    let mut send = |id: &str| {
        let text = json!({"id": id, "gid": 1, "nid": 10, "cmd": "ping"}).to_string();
        wait_until("the command is pushed", FAILOVER, || push(&text));
    };
    send("spoilt");
    let batch = wait_for("the command comes", LONG, || node.poll(5, None));
    let mut conn = cluster.connect().unwrap();
    redis::cmd("SET").arg("jsacc:job:spoilt").arg("no hash").query::<()>(&mut conn).expect("SET");
    assert!(node.poll(0, Some(&batch.batch)).is_none(), "the acknowledgement is taken");
    send("next");
    let next = wait_for("the next command comes", LONG, || node.poll(5, None));
    assert_eq!(next.cmds[0]["id"], json!("next"));
    assert!(acc.output().contains("the key jsacc:job:spoilt in redis is a string and must be a hash"));
}

#[test]
fn requests_travel_alone_once_redis_is_known_to_be_a_cluster() {
    let cluster = Cluster::start(false);
    let one = format!("127.0.0.1:{}", cluster.servers[0].port().unwrap());
    let dir = tempfile::tempdir().expect("a folder");
    let config = Config {
        redis: Target::parse(&one).expect("an address"),
        state_dir: dir.path().to_owned(),
        ..Config::default()
    };
    let context = Arc::new(jsacc::app::daemon::prepare(config, false).expect("a controller that is ready to start"));
    let handlers = Handlers::new(context.clone());
    assert!(!handlers.apart() && handlers.max_batch() > 1, "nothing is known of it yet");
    drop(context.pool.open(LONG).expect("a connection"));
    assert_eq!((handlers.apart(), handlers.max_batch()), (true, 1));
}

#[test]
fn polls_wait_on_while_only_the_wakeups_are_away() {
    let mut cluster = Cluster::start(false);
    for server in 0..3 {
        cluster.on::<()>(server, &["CONFIG", "SET", "cluster-require-full-coverage", "no"]).expect("a setting");
    }
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    let mut conn = cluster.connect().unwrap();
    let names: Vec<String> = wait_for("the controller is known", LONG, || {
        redis::cmd("ZRANGE")
            .arg("jsacc:acs")
            .arg(0)
            .arg(-1)
            .query(&mut conn)
            .ok()
            .filter(|names: &Vec<String>| !names.is_empty())
    });
    let away = cluster.holder(cluster.slot(&format!("jsacc:bell:{}", names[0])));
    let nid = (10..).find(|nid| cluster.holder(cluster.slot(&format!("{{1:{nid}}}"))) != away).unwrap();
    let node = acc.node(1, nid);
    let parked = std::thread::spawn(move || node.poll(8, None));
    wait_until("the poll waits", LONG, || acc.anonymous().get("/metrics").body.contains("jsacc_polls_parked 1"));
    cluster.servers[away].kill();
    wait_until("it is noticed", LONG, || acc.output().contains("no answer from redis"));
    // Whatever is not 204 fails there.
    assert!(parked.join().expect("it is answered when its time is over").is_none());
}

#[test]
fn a_server_of_a_cluster_that_falls_silent_holds_nobody_up() {
    let cluster = Cluster::start(true);
    // Named first, and silent when the second controller starts.
    let first = Acc::start_at(&cluster.address(), AccOptions::default());
    let node = first.node(1, 10);
    assert!(node.poll(0, None).is_none());
    let stopped = Pid::from_raw(cluster.servers[0].pid() as i32);
    kill(stopped, Signal::SIGSTOP).unwrap();
    let second = family(&cluster.address(), &first);
    let node = second.node(1, 10);
    run(&cluster, &node);
    kill(stopped, Signal::SIGCONT).unwrap();
}

/// A command for node 1:10 goes through the whole of it.
#[track_caller]
fn run(cluster: &Cluster, node: &FakeNode) {
    run_on(cluster, node, 10);
}

/// A command goes through the whole of it.
#[track_caller]
fn run_on(cluster: &Cluster, node: &FakeNode, nid: u32) {
    let id = jstests::fresh_id();
    let text = json!({"id": id, "gid": 1, "nid": nid, "cmd": "ping"}).to_string();
    let mut push = pusher(cluster);
    wait_until("the command is pushed", FAILOVER, || push(&text));
    let command = wait_for("the command comes", FAILOVER, || {
        let answer = node.get(&format!("/1/{nid}/cmd?wait=1"));
        answer.json()["cmds"].as_array().and_then(|cmds| cmds.iter().find(|cmd| cmd["id"] == json!(id)).cloned())
    });
    let result = json!([node.result_of(&command, "OK", "\"pong\"")]);
    wait_until("the result is taken", FAILOVER, || node.post("result", &result).status == 200);
}

#[test]
fn sentinels_make_the_replica_master_with_jobs_in_flight() {
    let mut watched = Watched::start("");
    let acc = Acc::start_at(&watched.address(None), AccOptions::default());
    let swarm = nodes(&[&acc]);
    let urls = [watched.master.url(), watched.replica.url()];
    let load = Load::start(NODES, Duration::from_millis(2), move |text| {
        // To whichever of the two is the master and has a replica, or is left alone.
        urls.iter().any(|url| {
            let conn = redis::Client::open(url.as_str()).and_then(|client| client.get_connection());
            conn.is_ok_and(|mut conn| redis::cmd("LPUSH").arg("cmds_queue").arg(text).query::<u64>(&mut conn).is_ok())
        })
    });
    more(&load, 200);
    let killed = load.accepted();
    watched.master.kill();
    watched.wait_promoted();
    more(&load, 200);
    let ids = load.stop();
    let mut conn = watched.replica.connect();
    all_ran_once(&ids, Some(killed), |ids| ids.iter().map(|id| counted(&mut conn, id)).collect());
    assert!(swarm.tally.others.lock().unwrap().is_empty(), "{:?}", swarm.tally);
}

#[test]
fn a_silent_sentinel_holds_nobody_up_and_their_password_is_not_the_servers() {
    let watched = Watched::start("geheim");
    // It accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = watched.address(Some(silent.local_addr().unwrap().port()));
    // Nor does the one behind it.
    let stopped = Pid::from_raw(watched.pids()[0] as i32);
    kill(stopped, Signal::SIGSTOP).unwrap();
    let acc = Acc::start_at(&address, AccOptions::default());
    let node = acc.node(1, 10);
    let mut client = Client::new(&watched.master);
    let id = client.send("ping", json!({}));
    assert_eq!(node.poll(30, None).unwrap().cmds[0]["id"], json!(id));
    // Once is enough: new connections go to the one that has answered.
    let silences = || acc.output().matches("does not answer").count();
    let before = silences();
    assert!(before > 0);
    client.redis::<()>(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    wait_until("it is back", LONG, || acc.anonymous().get("/health").status == 200);
    assert_eq!(silences(), before);
    kill(stopped, Signal::SIGCONT).unwrap();
    assert!(!acc.output().contains("geheim"));
    let wrong = address.replace("geheim", "falsch");
    let unauthenticated = Acc::start_unready(&wrong, AccOptions::default());
    wait_until("it says why", LONG, || unauthenticated.output().contains("password"));
    assert!(!unauthenticated.output().contains("falsch"));
}
