//! A Redis Cluster of private servers, and the moving of its slots.

use crate::process::run_with;
use crate::redis_server::{Redis, free_port};
use crate::wait::wait_until;
use redis::cluster::{ClusterClient, ClusterConnection};
use redis::{FromRedisValue, RedisResult};
use std::process::Command;
use std::time::Duration;

/// How long a cluster may take to come up or to heal on a busy machine.
const HEAL: Duration = Duration::from_secs(60);

/// Three masters, with a replica each or without.
pub struct Cluster {
    /// The masters first, as they were at the start.
    pub servers: Vec<Redis>,
}

impl Cluster {
    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(replicas: bool) -> Cluster {
        let args = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1500",
            "--repl-diskless-sync-delay",
            "0",
            "--repl-ping-replica-period",
            "1",
        ];
        let server = |_| {
            let (port, bus) = (free_port(), free_port().to_string());
            Redis::start_with(&[&args[..], &["--cluster-port", &bus]].concat(), Some(port))
        };
        let count = if replicas { 6 } else { 3 };
        let cluster = Cluster { servers: (0..count).map(server).collect() };
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]);
        create.args(cluster.servers.iter().map(|server| format!("127.0.0.1:{}", server.port().unwrap_or(0))));
        let each = if replicas { "1" } else { "0" };
        let made = run_with(create.args(["--cluster-replicas", each, "--cluster-yes"]));
        assert_eq!(made.code, 0, "{made:?}");
        wait_until("the cluster is well", HEAL, || {
            (0..count).all(|i| {
                let info: String = cluster.on(i, &["CLUSTER", "INFO"]).unwrap_or_default();
                let role: String = cluster.on(i, &["INFO", "replication"]).unwrap_or_default();
                let follows = is_followed(&role) || role.contains("master_link_status:up");
                info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_known_nodes:{count}"))
                    && (follows || !replicas)
            })
        });
        cluster
    }

    /// Its masters' addresses, as `jsacc -r` takes them.
    pub fn address(&self) -> String {
        let ports = self.servers.iter().take(3).map(|server| format!("127.0.0.1:{}", server.port().unwrap_or(0)));
        ports.collect::<Vec<String>>().join(",")
    }

    /// A connection to the whole, when it can be had.
    pub fn connect(&self) -> Option<ClusterConnection> {
        let urls = self.servers.iter().map(|server| format!("redis://127.0.0.1:{}", server.port().unwrap_or(0)));
        let client = ClusterClient::builder(urls).connection_timeout(Duration::from_secs(2));
        client.response_timeout(Duration::from_secs(5)).build().ok()?.get_connection().ok()
    }

    /// Runs a command on one server, whatever the others say.
    pub fn on<T: FromRedisValue>(&self, server: usize, words: &[&str]) -> RedisResult<T> {
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(&words[1..]);
        // Not `Redis::connect`, which fails the test when the server is gone.
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.servers[server].port().unwrap_or(0)))?;
        cmd.query(&mut client.get_connection_with_timeout(Duration::from_secs(2))?)
    }

    /// The slot of a key.
    #[track_caller]
    pub fn slot(&self, key: &str) -> u16 {
        self.on(0, &["CLUSTER", "KEYSLOT", key]).expect("a slot")
    }

    /// Which of the first three servers has a slot at the start.
    pub fn first_holder(&self, slot: u16) -> usize {
        // As `redis-cli --cluster create` shares them out.
        [5461, 10923].iter().filter(|first| slot >= **first).count()
    }

    /// Which of the servers says that a slot is its own.
    #[track_caller]
    pub fn holder(&self, slot: u16) -> usize {
        let slots: redis::Value = self.on(0, &["CLUSTER", "SLOTS"]).expect("slots");
        let ranges: Vec<(u16, u16, (String, u16, redis::Value))> = match slots {
            redis::Value::Array(list) => list
                .into_iter()
                .filter_map(|range| match range {
                    redis::Value::Array(mut parts) => {
                        parts.truncate(3);
                        let redis::Value::Array(server) = &mut parts[2] else { return None };
                        server.truncate(3);
                        FromRedisValue::from_redis_value(redis::Value::Array(parts)).ok()
                    }
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        let range = ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).expect("a range");
        let port = range.2.1;
        self.servers.iter().position(|server| server.port() == Some(port)).expect("a server of this cluster")
    }

    /// Begins to move a slot from one master to another, and leaves it so.
    #[track_caller]
    pub fn open_slot(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        let id = |server: usize| self.on::<String>(server, &["CLUSTER", "MYID"]).expect("an id");
        let (source, target) = (id(from), id(to));
        self.on::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]).expect("importing");
        self.on::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]).expect("migrating");
    }

    /// A slot that was opened stays where it was, and none of its keys has moved.
    #[track_caller]
    pub fn close_slot(&self, slot: u16, from: usize, to: usize) {
        for server in [from, to] {
            self.on::<()>(server, &["CLUSTER", "SETSLOT", &slot.to_string(), "STABLE"]).expect("stable");
        }
    }

    /// Moves a slot from one master to another as an operator does, key by key, and takes `time` for it:
    /// half of its keys have moved in the middle of that.
    #[track_caller]
    pub fn move_slot(&self, slot: u16, from: usize, to: usize, time: Duration) {
        let slot = slot.to_string();
        let id = |server: usize| self.on::<String>(server, &["CLUSTER", "MYID"]).expect("an id");
        let (source, target) = (id(from), id(to));
        self.on::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]).expect("importing");
        self.on::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]).expect("migrating");
        let port = self.servers[to].port().unwrap_or(0).to_string();
        let some = |most: &str| -> Vec<String> {
            self.on(from, &["CLUSTER", "GETKEYSINSLOT", &slot, most]).expect("the keys of a slot")
        };
        let carry = |keys: Vec<String>| {
            for key in keys {
                let answer: RedisResult<String> = self.on(from, &["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
                assert!(answer.is_ok(), "{key}: {answer:?}");
            }
        };
        let half = some("1000").len() / 2;
        carry(some(&half.to_string()));
        std::thread::sleep(time);
        loop {
            let keys = some("100");
            if keys.is_empty() {
                break;
            }
            carry(keys);
        }
        for server in [to, from] {
            self.on::<()>(server, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]).expect("the slot has moved");
        }
        for server in (0..self.servers.len()).filter(|server| ![from, to].contains(server)) {
            // Others hear of it by themselves as well; replicas may not be told.
            let _: RedisResult<()> = self.on(server, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        }
    }

    /// Deletes every key.
    #[track_caller]
    pub fn forget_all(&self) {
        for server in 0..3 {
            self.on::<()>(server, &["FLUSHALL"]).expect("FLUSHALL");
        }
    }

    /// Limits the memory of all masters to a byte, or lifts that.
    pub fn fill(&self, full: bool) {
        for server in 0..self.servers.len() {
            let _: RedisResult<()> = self.on(server, &["CONFIG", "SET", "maxmemory", if full { "1" } else { "0" }]);
        }
    }
}

/// Whether what a master tells of its replication names a replica that has all of it. A replica that has never
/// followed cannot take over, and until its first acknowledgement, which comes up to a second after its link
/// is up, it is sent nothing: what was written until then would be gone with the master.
pub(crate) fn is_followed(told: &str) -> bool {
    let field = |name: &str| told.split([',', '\r', '\n']).find_map(|field| field.strip_prefix(name));
    let (sent, had) = (field("master_repl_offset:"), field("offset="));
    told.contains("connected_slaves:1") && had != Some("0") && sent.is_some() && sent == had
}

#[test]
fn a_replica_that_has_acknowledged_nothing_follows_not() {
    let told = |offset: u64| {
        format!(
            "role:master\r\nconnected_slaves:1\r\nslave0:ip=127.0.0.1,port=1,state=online,offset={offset},lag=0\r\n\
             master_repl_offset:28\r\n"
        )
    };
    assert!(is_followed(&told(28)));
    for offset in [0, 14] {
        assert!(!is_followed(&told(offset)), "{offset}");
    }
    assert!(!is_followed("role:master\r\nconnected_slaves:0\r\nmaster_repl_offset:0\r\n"));
}
