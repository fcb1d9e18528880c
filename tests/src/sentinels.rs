//! A master, its replica, and three Sentinels that watch them.

use crate::process::Process;
use crate::redis_cluster::is_followed;
use crate::redis_server::{Redis, free_port};
use crate::wait::{LONG, wait_until};
use nix::sys::signal::Signal;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// How long all of it may take to find each other on a busy machine.
const MEET: Duration = Duration::from_secs(60);

/// A group that is watched.
pub struct Watched {
    /// The master at the start.
    pub master: Redis,
    /// Its replica.
    pub replica: Redis,
    ports: Vec<u16>,
    password: String,
    sentinels: Vec<(Process, TempDir)>,
}

impl Watched {
    /// Starts the group `group`; with a `password` the Sentinels want that, and the servers none.
    #[track_caller]
    pub fn start(password: &str) -> Watched {
        let master = Redis::start_with(
            &["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"],
            Some(free_port()),
        );
        let port = master.port().expect("a port").to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port], Some(free_port()));
        wait_until("the replica follows", LONG, || is_followed(&info(&master, "replication")));
        let mut watched =
            Watched { master, replica, ports: Vec::new(), password: password.to_owned(), sentinels: Vec::new() };
        for _ in 0..3 {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let (file, own) = (dir.path().join("sentinel.conf"), free_port());
            let mut text = format!(
                "port {own}\nbind 127.0.0.1\nsentinel monitor group 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds group 1500\nsentinel failover-timeout group 5000\n"
            );
            if !password.is_empty() {
                text += &format!("requirepass {password}\nsentinel sentinel-pass {password}\n");
            }
            std::fs::write(&file, text).expect("the Sentinel's settings");
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel");
            let process = Process::spawn(&mut command, "sentinel", dir.path(), Signal::SIGKILL);
            watched.ports.push(own);
            watched.sentinels.push((process, dir));
        }
        wait_until("the Sentinels know each other and the replica", MEET, || {
            watched.ports.iter().all(|port| {
                let login = if password.is_empty() { String::new() } else { format!(":{password}@") };
                let conn = redis::Client::open(format!("redis://{login}127.0.0.1:{port}"));
                let conn = conn.and_then(|client| client.get_connection());
                let text: Option<String> =
                    conn.ok().and_then(|mut conn| redis::cmd("INFO").arg("sentinel").query(&mut conn).ok());
                text.is_some_and(|text| text.contains("slaves=1,sentinels=3"))
            })
        });
        watched
    }

    /// Its address, as `jsacc -r` takes it; `first` is named before the Sentinels.
    pub fn address(&self, first: Option<u16>) -> String {
        let hosts = first.iter().chain(&self.ports).map(|port| format!("127.0.0.1:{port}"));
        let hosts = hosts.collect::<Vec<String>>().join(",");
        match self.password.as_str() {
            "" => format!("sentinel://{hosts}/group"),
            password => format!("sentinel://{hosts}/group?sentinel_password={password}"),
        }
    }

    /// Process ids of the Sentinels, in the order of the address.
    pub fn pids(&self) -> Vec<u32> {
        self.sentinels.iter().map(|(process, _)| process.pid()).collect()
    }

    /// Waits until the replica has become the master.
    #[track_caller]
    pub fn wait_promoted(&self) {
        wait_until("the replica is master", MEET, || info(&self.replica, "replication").contains("role:master"));
    }
}

fn info(redis: &Redis, section: &str) -> String {
    redis::cmd("INFO").arg(section).query(&mut redis.connect()).unwrap_or_default()
}
