//! A private `redis-server`: its own folder, its own socket, gone with its handle.

use crate::process::Process;
use crate::wait::{LONG, wait_for};
use nix::sys::signal::Signal;
use redis::{Connection, ConnectionLike};
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A running `redis-server` that nobody else knows of.
#[derive(Debug)]
pub struct Redis {
    // Declared before the folder: the server ends before its files go.
    process: Option<Process>,
    args: Vec<String>,
    port: Option<u16>,
    dir: TempDir,
}

impl Redis {
    /// A server on a Unix socket that keeps nothing on disk.
    pub fn start() -> Redis {
        Redis::start_with(&[], None)
    }

    /// A server with an append-only file that loses nothing that it has answered.
    pub fn start_durable() -> Redis {
        Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"], None)
    }

    /// A server with an append-only file that is written out every second, as most people run it.
    pub fn start_durable_lazily() -> Redis {
        Redis::start_with(&["--appendonly", "yes", "--appendfsync", "everysec"], None)
    }

    /// A server that listens on a free TCP port of loopback besides.
    pub fn start_tcp() -> Redis {
        Redis::start_with(&[], Some(free_port()))
    }

    /// A server with these settings more, as `redis-server` takes them on its command line.
    pub fn start_with(args: &[&str], port: Option<u16>) -> Redis {
        let dir = tempfile::Builder::new().prefix("js-redis-").tempdir().expect("a temporary folder");
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let mut redis = Redis { process: None, args, port, dir };
        redis.resume();
        redis
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// Its address as `jsacc -r` and clients take it.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Its TCP port, when it was started with one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("redis-server runs").pid()
    }

    /// A new connection to it.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        let client = redis::Client::open(self.url()).expect("the socket's address");
        client.get_connection().expect("a connection to the private redis-server")
    }

    /// Kills it with -9: what its append-only file does not hold is lost.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again in the same folder, after `kill`.
    pub fn resume(&mut self) {
        let mut command = Command::new("redis-server");
        command.current_dir(self.dir.path());
        command.args(["--port", &self.port.unwrap_or(0).to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--daemonize", "no", "--unixsocket"]).arg(self.socket());
        command.args(["--unixsocketperm", "700", "--dir"]).arg(self.dir.path());
        command.args(&self.args);
        let mut process = Process::spawn(&mut command, "redis", self.dir.path(), Signal::SIGKILL);
        process.quiet = true;
        let url = self.url();
        wait_for("redis-server answers", LONG, || {
            assert!(process.try_wait().is_none(), "redis-server ended: {}", process.output());
            let client = redis::Client::open(url.as_str()).ok()?;
            // While it reads its append-only file it answers LOADING.
            client.get_connection().ok()?.check_connection().then_some(())
        });
        self.process = Some(process);
    }
}

/// A TCP port of loopback that nobody listens on now, below the range that outgoing connections use.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
