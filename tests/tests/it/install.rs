//! `scripts/install-agent`: one line that makes a machine a node, and one that unmakes it.

use jstests::process::{Output, Process};
use jstests::{Acc, AccOptions, Client, LONG, Redis, bin, run_with};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs the script under a shell, below a folder instead of `/`.
#[track_caller]
fn install(prefix: &Path, args: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install-agent");
    let mut command = Command::new("/bin/sh");
    command.arg(script).arg("--prefix").arg(prefix).args(args);
    run_with(&mut command)
}

fn sum(path: &Path) -> String {
    jscommon::token::sha256_hex(&fs::read(path).expect("the program"))
}

#[test]
fn a_machine_becomes_a_node_and_ceases_to_be_one() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let prefix = tempfile::tempdir().expect("a folder");
    let prefix = prefix.path();
    let program = bin("jsagent");
    let from = program.to_str().expect("a path in UTF-8");
    let sum = sum(&program);
    let url = acc.url();
    let args = ["--from", from, "--sha256", &sum, "--controller", &url, "--token", &token, "--gid", "6", "--nid", "7"];
    let output = install(prefix, &[&args[..], &["--role", "web", "--role", "db"][..]].concat());
    assert_eq!(output.code, 0, "{output:?}");

    let config = prefix.join("etc/jsagent/agent.toml");
    let mut command = Command::new(prefix.join("usr/bin/jsagent"));
    command.arg("-c").arg(&config).arg("--data-dir").arg(prefix.join("data"));
    let mut agent = Process::spawn(&mut command, "jsagent", prefix, Signal::SIGTERM);
    let mut client = Client::new(&redis);
    client.wait_seen("6:7");
    let id = client.push(json!({"cmd": "ping", "roles": ["web", "db"]}));
    assert_eq!(client.pop(&id)["state"], "OK");
    assert!(agent.stop(LONG).is_some_and(|status| status.success()));
    let unit = fs::read_to_string(prefix.join("etc/systemd/system/jsagent.service")).expect("the unit");
    assert!(unit.contains("Restart=always") && unit.contains("KillMode=process"), "{unit}");

    // An upgrade keeps what the node is.
    let before = fs::read_to_string(&config).expect("agent.toml");
    let output = install(prefix, &["--from", from]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(fs::read_to_string(&config).expect("agent.toml"), before);

    let output = install(prefix, &["--uninstall"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(!prefix.join("usr/bin/jsagent").exists() && config.exists());
    let output = install(prefix, &["--uninstall", "--purge"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(!config.exists());
}

#[test]
fn what_is_wrong_stops_the_installation_before_it_changes_anything() {
    let prefix = tempfile::tempdir().expect("a folder");
    let prefix = prefix.path();
    let program = bin("jsagent");
    let from = program.to_str().expect("a path in UTF-8");
    let enrol = ["--controller", "https://127.0.0.1:9", "--token", "t", "--gid", "1", "--nid", "1"];
    #[track_caller]
    fn refused(output: Output, code: i32, word: &str) {
        assert_eq!(output.code, code, "{output:?}");
        assert!(output.stderr.contains(word), "{output:?}");
    }
    refused(install(prefix, &[]), 2, "--from");
    refused(install(prefix, &["--surprise"]), 2, "--surprise");
    refused(install(prefix, &["--from", from]), 2, "--controller");
    refused(install(prefix, &["--from"]), 2, "--from");
    refused(install(prefix, &[&["--from", "/no/such/file"][..], &enrol[..]].concat()), 1, "/no/such/file");
    refused(install(prefix, &[&["--from", "http://127.0.0.1:9/jsagent"][..], &enrol[..]].concat()), 1, "--sha256");
    let wrong = "0".repeat(64);
    refused(install(prefix, &[&["--from", from, "--sha256", &wrong][..], &enrol[..]].concat()), 1, "sum");
    refused(install(prefix, &["--from", "/bin/sh", "--gid", "x"]), 2, "--gid");
    assert!(!prefix.join("usr").exists(), "nothing was installed");
}
