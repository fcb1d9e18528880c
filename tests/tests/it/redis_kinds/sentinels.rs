//! A group under Sentinels.

use super::*;

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
