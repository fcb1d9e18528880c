//! `scripts/install-agent`: one line that makes a machine a node, and one that unmakes it.

use jstests::process::{Output, Process};
use jstests::{Acc, AccOptions, Client, LONG, Redis, bin, run_with};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
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

/// As above under BusyBox, with nothing but its applets to be found.
#[track_caller]
fn install_with_busybox(prefix: &Path, args: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install-agent");
    let applets = prefix.with_extension("applets");
    if !applets.exists() {
        fs::create_dir(&applets).expect("a folder");
        let mut command = Command::new("busybox");
        assert_eq!(run_with(command.args(["--install", "-s"]).arg(&applets)).code, 0, "busybox installs its applets");
    }
    let mut command = Command::new(applets.join("sh"));
    command.arg(script).arg("--prefix").arg(prefix).args(args).env("PATH", &applets);
    run_with(&mut command)
}

/// Serves a file to whoever asks, as a web server of a few lines.
fn serve(file: &Path) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let body = fs::read(file).expect("the file");
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = socket.read(&mut request);
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(&body));
        }
    });
    format!("http://127.0.0.1:{port}/jsagent.tar.gz")
}

#[test]
fn busybox_and_an_address_are_enough() {
    let busybox = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join("busybox").is_file());
    assert!(busybox, "busybox is not installed; apt-get install busybox");
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let dir = tempfile::tempdir().expect("a folder");
    // As it is released: an archive with a folder.
    let folder = dir.path().join("jsagent-0");
    fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::symlink(bin("jsagent"), folder.join("jsagent")).expect("a link");
    let archive = dir.path().join("jsagent.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir.path()).args(["-chzf"]).arg(&archive).arg("jsagent-0");
    assert_eq!(run_with(&mut tar).code, 0);
    let (url, sum) = (serve(&archive), sum(&archive));
    let prefix = dir.path().join("root");
    let token = dir.path().join("token");
    fs::write(&token, acc.command(&["token"]).stdout).expect("the token");
    let (token, controller) = (token.display().to_string(), acc.url());
    let enrol = ["--controller", &controller, "--token", &token, "--gid", "6", "--nid", "8", "--role", "small"];

    let wrong = install_with_busybox(&prefix, &[&["--from", &url, "--sha256", &"0".repeat(64)][..], &enrol].concat());
    assert!(wrong.code == 1 && wrong.stderr.contains("nothing was changed"), "{wrong:?}");
    assert!(!prefix.join("usr").exists());
    let good = install_with_busybox(&prefix, &[&["--from", &url, "--sha256", &sum][..], &enrol].concat());
    assert_eq!(good.code, 0, "{good:?}");
    let mut command = Command::new(prefix.join("usr/bin/jsagent"));
    command.arg("--check-config").arg("-c").arg(prefix.join("etc/jsagent/agent.toml"));
    assert_eq!(run_with(&mut command).code, 0);
    let gone = install_with_busybox(&prefix, &["--uninstall", "--purge"]);
    assert_eq!(gone.code, 0, "{gone:?}");
    assert!(!prefix.join("usr/bin/jsagent").exists() && !prefix.join("etc/jsagent").exists());
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
    let ca = acc.state_dir().join("ca.pem").display().to_string();
    let output = install(prefix, &[&args[..], &["--ca", &ca, "--role", "web", "--role", "db"][..]].concat());
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
fn the_token_is_in_nobodys_arguments() {
    let dir = tempfile::tempdir().expect("a folder");
    // It notes what it was given, and is refused like an agent that no controller wants.
    let (program, seen) = (dir.path().join("jsagent"), dir.path().join("seen"));
    let note =
        format!("printf '%s|' \"$@\" >>'{0}'; [ \"$1\" = --version ] || {{ cat >>'{0}'; exit 1; }}", seen.display());
    fs::write(&program, format!("#!/bin/sh\n{note}\n")).expect("a program");
    let (file, prefix) = (dir.path().join("token"), dir.path().join("root"));
    fs::write(&file, "s3cret-token\n").expect("the token");
    for token in ["s3cret-token", file.to_str().expect("a path in UTF-8")] {
        let _ = fs::remove_file(&seen);
        let enrol = ["--controller", "https://127.0.0.1:9", "--token", token, "--gid", "6", "--nid", "9"];
        let from = ["--from", program.to_str().expect("a path in UTF-8")];
        let output = install(&prefix, &[&from[..], &enrol[..]].concat());
        assert!(output.code == 1 && output.stderr.contains("refused"), "{output:?}");
        let seen = fs::read_to_string(&seen).expect("what it was given");
        let (arguments, input) = seen.rsplit_once('|').expect("arguments");
        assert!(arguments.contains("|--token|-|") && !arguments.contains("s3cret"), "{seen}");
        assert_eq!(input, "s3cret-token");
    }
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
