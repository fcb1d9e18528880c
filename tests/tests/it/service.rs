//! What a service manager hears, and what it needs: readiness, life, an end with the right status.

use jstests::process::Process;
use jstests::{Acc, AccOptions, Agent, AgentOptions, LONG, Redis, bin, wait_for};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

/// The socket of a service manager of a few lines.
struct Ear {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Ear {
    fn open() -> Ear {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        Ear { socket, dir }
    }

    fn env(&self) -> Vec<(String, String)> {
        let path = self.dir.path().join("notify").display().to_string();
        vec![("NOTIFY_SOCKET".to_owned(), path), ("WATCHDOG_USEC".to_owned(), "300000".to_owned())]
    }

    #[track_caller]
    fn hears(&self, word: &str) {
        wait_for(&format!("{word} is told"), LONG, || {
            let mut buffer = [0; 256];
            let n = self.socket.recv(&mut buffer).ok()?;
            (&buffer[..n] == word.as_bytes()).then_some(())
        });
    }
}

#[test]
fn the_agent_tells_that_it_is_ready_alive_and_stopping() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let ear = Ear::open();
    let mut agent = Agent::start(&acc, AgentOptions { env: ear.env(), ..AgentOptions::default() });
    ear.hears("READY=1");
    ear.hears("WATCHDOG=1");
    ear.hears("WATCHDOG=1");
    // A child of the agent must not speak in its name.
    let mut client = jstests::Client::new(&redis);
    let result = client.run("execute", serde_json::json!({"cmd": "/usr/bin/env"}));
    let env = result["streams"][0].as_str().expect("stdout");
    assert!(!env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG"), "{env}");
    agent.signal(Signal::SIGTERM);
    ear.hears("STOPPING=1");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn the_controller_tells_that_it_is_ready_alive_and_stopping() {
    let redis = Redis::start();
    let ear = Ear::open();
    let mut acc = Acc::start(&redis, AccOptions { env: ear.env(), ..AccOptions::default() });
    ear.hears("READY=1");
    ear.hears("WATCHDOG=1");
    assert_eq!(acc.stop(), Some(0));
    ear.hears("STOPPING=1");
}

#[test]
fn an_agent_without_a_controller_starts_and_stops_well() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(bin("jsagent"));
    command.args(["--gid", "1", "--nid", "1", "--controller", "http://127.0.0.1:9", "--data-dir"]).arg(dir.path());
    let ear = Ear::open();
    command.envs(ear.env());
    let mut agent = Process::spawn(&mut command, "jsagent", dir.path(), Signal::SIGKILL);
    ear.hears("READY=1");
    assert!(agent.stop(LONG).is_some_and(|status| status.success()), "{}", agent.output());
}
