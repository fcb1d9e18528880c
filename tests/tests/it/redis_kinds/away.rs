//! A cluster of which a server is away or falls silent: only what lies there waits.

use super::*;

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
fn requests_are_handled_alone_once_redis_is_known_to_be_a_cluster() {
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
    assert!(handlers.max_batch() > 1, "nothing is known of it yet");
    drop(context.pool.open(LONG).expect("a connection"));
    assert_eq!(handlers.max_batch(), 1);
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
