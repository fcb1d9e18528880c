//! Redis as a cluster, and under Sentinels: a controller outlives the loss of a server, with jobs in flight.

mod away;
mod clusters;
mod sentinels;

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
