//! The aarch64 agent under qemu's user mode, against a real controller and a private Redis.
//!
//! `JS_QEMU` names the emulator (`qemu-aarch64-static` of Debian's `qemu-user-static`), which is called
//! directly, and `JS_AARCH64_AGENT` a static `jsagent` for aarch64. The jobs are programs of this machine.

use jstests::process::{Process, processes_of, sweep};
use jstests::{Acc, AccOptions, Client, LONG, Redis, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: see tests/tests/qemu/main.rs")).into()
}

/// The emulator with the agent.
fn command() -> Command {
    let mut command = Command::new(variable("JS_QEMU"));
    command.arg(variable("JS_AARCH64_AGENT"));
    command
}

/// An agent of node 1:10 under the emulator.
struct Node {
    process: Process,
    dir: TempDir,
}

impl Node {
    #[track_caller]
    fn start(acc: &Acc) -> Node {
        let dir = tempfile::Builder::new().prefix("js-qemu-").tempdir().expect("a temporary folder");
        let enrolled = acc.enroll_into(1, 10, &dir.path().join("credentials"));
        let process = launch(dir.path(), &enrolled.dir);
        Node { process, dir }
    }

    /// Ends it with -9 and starts it again.
    #[track_caller]
    fn kill_and_resume(&mut self) {
        self.process.kill();
        self.process = launch(self.dir.path(), &self.dir.path().join("credentials"));
    }
}

#[track_caller]
fn launch(dir: &Path, credentials: &Path) -> Process {
    let mut command = command();
    command.arg("-c").arg(credentials.join("agent.toml")).arg("--data-dir").arg(dir.join("data"));
    Process::spawn(command.args(["--log-level", "info"]), "jsagent", dir, Signal::SIGKILL)
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process.stop(Duration::from_secs(20));
        sweep(&self.dir.path().join("data"));
    }
}

/// Its parts are dropped from the node to Redis.
struct Stage {
    client: Client,
    node: Node,
    _acc: Acc,
    _redis: Redis,
}

impl Stage {
    #[track_caller]
    fn start() -> Stage {
        let redis = Redis::start();
        let acc = Acc::start(&redis, AccOptions::secure());
        let node = Node::start(&acc);
        let mut client = Client::new(&redis);
        client.wait_seen("1:10");
        Stage { client, node, _acc: acc, _redis: redis }
    }

    /// Starts a job of four processes, one of which has left its parent and its session.
    #[track_caller]
    fn tree(&mut self, args: Value) -> String {
        let line = "sleep 600 & setsid sleep 600 & sleep 600";
        let mut all = json!({"cmd": "/bin/sh", "args": ["-c", line]});
        all.as_object_mut().expect("an object").extend(args.as_object().expect("an object").clone());
        let job = self.client.send("execute", all);
        wait_until("the whole tree runs", LONG, || processes_of(&job).len() == 4);
        job
    }
}

#[test]
fn program_tells_its_version() {
    let output = jstests::run_with(command().arg("--version"));
    assert_eq!(output.stdout.trim(), concat!("jsagent ", env!("CARGO_PKG_VERSION")), "{output:?}");
}

#[test]
fn commands_are_answered() {
    let mut stage = Stage::start();
    assert_eq!(stage.client.run("ping", json!({}))["data"], "\"pong\"");
    let result =
        stage.client.run("execute", json!({"cmd": "/bin/sh", "args": ["-c", "echo \"a  b\"; echo c >&2; exit 7"]}));
    assert_eq!((&result["state"], &result["code"]), (&json!("ERROR"), &json!(7)), "{result}");
    assert_eq!(result["streams"], json!(["a  b", "c"]), "{result}");
    let id = stage.client.push(json!({
        "cmd": "execute", "gid": 1, "nid": 10, "args": {"cmd": "/bin/cat"}, "data": "x".repeat(20_000),
    }));
    assert_eq!(stage.client.pop(&id)["streams"][0], "x".repeat(20_000));
    let missing = stage.client.run("execute", json!({"cmd": "/no/such"}));
    assert_eq!(missing["data"], "program not found: /no/such", "{missing}");
    let many: Vec<String> = (0..50).map(|_| stage.client.send("execute", json!({"cmd": "/bin/true"}))).collect();
    for id in many {
        let result = stage.client.pop(&id);
        assert_eq!(result["state"], "OK", "{result}");
    }
    let data = stage.client.ask("get_os_info", json!(""));
    assert_eq!((&data["os"], &data["arch"]), (&json!("linux"), &json!("aarch64")), "{data}");
    for cmd in ["get_cpu_info", "get_mem_info", "get_disk_info", "get_nic_info"] {
        let data = stage.client.ask(cmd, json!(""));
        assert!(data.as_array().is_none_or(|list| !list.is_empty()), "{cmd}: {data}");
    }
}

#[test]
fn tree_ends_with_its_job_and_is_swept_after_a_crash() {
    let mut stage = Stage::start();
    let job = stage.tree(json!({}));
    stage.client.ask("kill", json!({"id": job}));
    assert_eq!(stage.client.pop(&job)["state"], "KILLED");
    wait_until("the tree is gone", LONG, || processes_of(&job).is_empty());

    let job = stage.tree(json!({"max_time": 2}));
    assert_eq!(stage.client.pop(&job)["state"], "TIMEOUT");
    wait_until("the second tree is gone", LONG, || processes_of(&job).is_empty());

    // The next start of a killed agent ends the processes that it left.
    let job = stage.tree(json!({}));
    stage.node.kill_and_resume();
    assert_eq!(stage.client.pop(&job)["state"], "ERROR");
    wait_until("the third tree is gone", LONG, || processes_of(&job).is_empty());
}
