//! Clusters that lose servers, move slots, or are named by one address.

use super::*;

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
