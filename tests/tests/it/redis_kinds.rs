//! Redis as a cluster, and under Sentinels: a controller outlives the loss of a server.

use jstests::process::Process;
use jstests::redis_server::free_port;
use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, LONG, Redis, fresh_id, run_with, wait_for, wait_until};
use nix::sys::signal::Signal;
use redis::cluster::{ClusterClient, ClusterConnection};
use serde_json::json;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// How long a failover may take on a busy machine.
const FAILOVER: Duration = Duration::from_secs(60);

fn nodes(acc: &Acc) -> Swarm {
    let options = SwarmOptions::new(([127, 0, 0, 1], acc.port()).into(), 10);
    let swarm = Swarm::start(options).expect("the swarm starts");
    swarm.wait_polling(FAILOVER).expect("all poll");
    swarm
}

fn command(nid: usize) -> (String, String) {
    let id = fresh_id();
    let text = json!({"id": id, "gid": 1, "nid": nid, "cmd": "ping"}).to_string();
    (id, text)
}

/// Three masters with a replica each.
struct Cluster {
    servers: Vec<Redis>,
}

impl Cluster {
    fn start() -> Cluster {
        let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0"];
        let server = |_| {
            let (port, bus) = (free_port(), free_port().to_string());
            Redis::start_with(&[&args[..], &["--cluster-port", &bus]].concat(), Some(port))
        };
        let servers: Vec<Redis> = (0..6).map(server).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(servers.iter().map(|server| format!("127.0.0.1:{}", server.port().unwrap())));
        let made = run_with(create.args(["--cluster-replicas", "1", "--cluster-yes"]));
        assert_eq!(made.code, 0, "{made:?}");
        let cluster = Cluster { servers };
        wait_until("the cluster is well", FAILOVER, || {
            cluster.servers.iter().all(|server| {
                let mut conn = server.connect();
                let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut conn).unwrap_or_default();
                let role: String = redis::cmd("INFO").arg("replication").query(&mut conn).unwrap_or_default();
                // A replica that has never followed cannot take over.
                let follows = role.contains("connected_slaves:1") || role.contains("master_link_status:up");
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6") && follows
            })
        });
        cluster
    }

    fn address(&self) -> String {
        let ports = self.servers.iter().take(3).map(|server| format!("127.0.0.1:{}", server.port().unwrap()));
        ports.collect::<Vec<String>>().join(",")
    }

    fn connect(&self) -> Option<ClusterConnection> {
        let urls = self.servers.iter().map(|server| format!("redis://127.0.0.1:{}", server.port().unwrap()));
        ClusterClient::new(urls).ok()?.get_connection().ok()
    }

    /// Pushes a command and waits for its result, over as many connections as it takes.
    fn run(&self, nid: usize) {
        let (id, text) = command(nid);
        wait_for("the command is pushed", FAILOVER, || {
            redis::cmd("LPUSH").arg("cmds_queue").arg(&text).query::<u64>(&mut self.connect()?).ok()
        });
        wait_for(&format!("the result of {id}"), FAILOVER, || {
            let list = format!("cmds_queue_{id}");
            redis::cmd("RPOP").arg(list).query::<Option<String>>(&mut self.connect()?).ok()?
        });
    }
}

#[test]
fn a_cluster_loses_a_server() {
    let mut cluster = Cluster::start();
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    let _swarm = nodes(&acc);
    (1..=10).for_each(|nid| cluster.run(nid));
    // The one that holds the queue of commands is the worst to lose.
    let slot: u16 =
        redis::cmd("CLUSTER").arg("KEYSLOT").arg("cmds_queue").query(&mut cluster.servers[0].connect()).unwrap();
    let holder = usize::from(slot) * 3 / 16384;
    cluster.servers[holder].kill();
    (1..=10).for_each(|nid| cluster.run(nid));
    assert_eq!(acc.anonymous().get("/health").status, 200);
}

/// A master, its replica, and three Sentinels that watch them.
struct Watched {
    master: Redis,
    replica: Redis,
    ports: Vec<u16>,
    _sentinels: Vec<(Process, TempDir)>,
}

impl Watched {
    fn start() -> Watched {
        let master = Redis::start_tcp();
        let port = master.port().expect("a port").to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port], Some(free_port()));
        wait_until("the replica follows", LONG, || {
            let info: String = redis::cmd("INFO").arg("replication").query(&mut replica.connect()).unwrap_or_default();
            info.contains("master_link_status:up")
        });
        let (mut ports, mut sentinels) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let (file, own) = (dir.path().join("sentinel.conf"), free_port());
            let text = format!(
                "port {own}\nbind 127.0.0.1\nsentinel monitor group 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds group 1500\nsentinel failover-timeout group 5000\n"
            );
            std::fs::write(&file, text).expect("the Sentinel's settings");
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel");
            let process = Process::spawn(&mut command, "sentinel", dir.path(), Signal::SIGKILL);
            ports.push(own);
            sentinels.push((process, dir));
        }
        let watched = Watched { master, replica, ports, _sentinels: sentinels };
        wait_until("the Sentinels know each other and the replica", FAILOVER, || {
            watched.ports.iter().all(|port| {
                let url = format!("redis://127.0.0.1:{port}");
                let conn = redis::Client::open(url).and_then(|client| client.get_connection());
                let text: Option<String> =
                    conn.ok().and_then(|mut conn| redis::cmd("INFO").arg("sentinel").query(&mut conn).ok());
                text.is_some_and(|text| text.contains("slaves=1,sentinels=3"))
            })
        });
        watched
    }

    fn address(&self) -> String {
        let hosts: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("sentinel://{}/group", hosts.join(","))
    }
}

#[test]
fn sentinels_make_the_replica_master() {
    let mut watched = Watched::start();
    let acc = Acc::start_at(&watched.address(), AccOptions::default());
    let _swarm = nodes(&acc);
    let run = |client: &mut Client, nid: usize| {
        let (id, text) = command(nid);
        client.push_raw(&text);
        assert!(client.pop_within(&id, FAILOVER).is_some(), "no result of {id}");
    };
    let mut client = Client::new(&watched.master);
    (1..=10).for_each(|nid| run(&mut client, nid));
    watched.master.kill();
    wait_until("the replica is master", FAILOVER, || {
        let info: String =
            redis::cmd("INFO").arg("replication").query(&mut watched.replica.connect()).unwrap_or_default();
        info.contains("role:master")
    });
    let mut client = Client::new(&watched.replica);
    (1..=10).for_each(|nid| run(&mut client, nid));
}
