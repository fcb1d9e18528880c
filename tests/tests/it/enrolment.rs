//! How a node gets its credentials, and how it loses them.

use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, Enrolled, FakeNode, LONG, Redis, run, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn secure() -> (Redis, Acc, Client) {
    jstests::site(AccOptions::secure())
}

/// Starts an agent from an enrolled folder as it is, from another working folder.
#[track_caller]
fn start_from(dir: &Path, home: &Path) -> jstests::process::Process {
    let mut command = std::process::Command::new(jstests::bin("jsagent"));
    command.current_dir("/").arg("-c").arg(dir.join("agent.toml"));
    command.arg("--data-dir").arg(home.join("data"));
    jstests::process::Process::spawn(&mut command, "enrolled", home, Signal::SIGTERM)
}

#[test]
fn files_that_enroll_writes_start_an_agent_from_any_folder() {
    let (_redis, acc, mut client) = secure();
    let home = tempfile::tempdir().expect("a folder");
    let enrolled = acc.enroll_into(4, 5, &home.path().join("node"));
    for line in enrolled.config.lines().filter(|line| line.contains('/') && !line.contains("://")) {
        let value = line.split('"').nth(1).unwrap_or("/");
        assert!(value.is_empty() || value.starts_with('/'), "a relative path: {line}");
    }
    for entry in fs::read_dir(&enrolled.dir).expect("the folder") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        if text.contains("PRIVATE KEY") || text.trim() == enrolled.token {
            let mode = fs::metadata(&path).expect("metadata").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
    let mut agent = start_from(&enrolled.dir, home.path());
    let id = client.push(json!({"gid": 4, "nid": 5, "cmd": "execute", "args": {"cmd": "/bin/echo hello"}}));
    assert_eq!(client.pop(&id)["state"], "OK");
    assert!(agent.stop(LONG).is_some_and(|status| status.success()));
}

#[test]
fn a_second_enrolment_writes_all_anew() {
    let (_redis, acc, _client) = secure();
    let first = acc.enroll(1, 10);
    let second = acc.enroll_into(1, 10, &first.dir);
    assert_ne!(first.token, second.token);
    for token in [&first.token, &second.token] {
        let node = FakeNode::new(&acc.url(), Some(&second.ca), 1, 10, Some(token.clone()));
        assert_eq!(node.get("/1/10/cmd?wait=0").status, 204, "both hold");
    }
}

#[test]
fn a_client_certificate_is_as_good_as_a_token_and_as_bound() {
    let (_redis, acc, _client) = secure();
    let enrolled = acc.enroll(1, 10);
    let (cert, key) = enrolled.client.expect("a client certificate");
    let node = FakeNode::with_cert(&acc.url(), Some(&enrolled.ca), 1, 10, None, Some((&cert, &key)));
    assert_eq!(node.get("/1/10/cmd?wait=0").status, 204);
    assert_eq!(node.get("/1/11/cmd?wait=0").status, 403);
    let anonymous = FakeNode::new(&acc.url(), Some(&enrolled.ca), 1, 10, None);
    assert_eq!(anonymous.get("/1/10/cmd?wait=0").status, 401);
}

#[test]
fn client_unknown_to_the_ca_gets_no_connection() {
    let (_redis, acc, _client) = secure();
    let (_other_redis, other, _) = secure();
    let node = FakeNode::new(&acc.url(), other.ca().as_deref(), 1, 10, None);
    let reply = node.get("/health");
    assert_eq!(reply.status, 0, "{reply:?}");
}

#[test]
fn a_revoked_node_is_refused_until_it_is_enrolled_again() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let state_dir = Some(acc.state_dir());
    let second = Acc::start(&redis, AccOptions { state_dir, ..AccOptions::secure() });
    let enrolled = acc.enroll(1, 10);
    let other = acc.node(1, 11);
    let node = |acc: &Acc, token: &str| FakeNode::new(&acc.url(), Some(&enrolled.ca), 1, 10, Some(token.to_owned()));
    for acc in [&acc, &second] {
        assert_eq!(node(acc, &enrolled.token).get("/1/10/cmd?wait=0").status, 204);
    }
    let output = acc.command(&["revoke", "1", "10"]);
    assert_eq!(output.code, 0, "{output:?}");
    for acc in [&acc, &second] {
        wait_until("the token is refused", LONG, || node(acc, &enrolled.token).get("/1/10/cmd?wait=0").status == 401);
        if let Some((cert, key)) = &enrolled.client {
            let by_cert = FakeNode::with_cert(&acc.url(), Some(&enrolled.ca), 1, 10, None, Some((cert, key)));
            assert_eq!(by_cert.get("/1/10/cmd?wait=0").status, 401, "its certificate too");
        }
    }
    assert_eq!(other.get("/1/11/cmd?wait=0").status, 204, "nobody else is touched");
    let again = acc.enroll(1, 10);
    for acc in [&acc, &second] {
        assert_eq!(node(acc, &again.token).get("/1/10/cmd?wait=0").status, 204);
    }
    let output = acc.command(&["revoke", "1"]);
    assert_eq!(output.code, 2, "{output:?}");
}

#[test]
fn rotation_keeps_the_old_secret_for_a_day() {
    let (_redis, mut acc, _client) = secure();
    let old = acc.enroll(1, 10);
    let output = acc.command(&["rotate"]);
    assert_eq!(output.code, 0, "{output:?}");
    let new = acc.enroll(1, 11);
    let ask = |acc: &Acc, enrolled: &Enrolled, nid: u32| {
        let node = FakeNode::new(&acc.url(), Some(&enrolled.ca), 1, nid, Some(enrolled.token.clone()));
        node.get(&format!("/1/{nid}/cmd?wait=0")).status
    };
    wait_until("the running controller knows the new secret", LONG, || ask(&acc, &new, 11) == 204);
    assert_eq!(ask(&acc, &old, 10), 204, "the old one holds for a day");
    acc.stop();
    acc.resume();
    assert_eq!((ask(&acc, &new, 11), ask(&acc, &old, 10)), (204, 204), "after a restart too");
}

#[test]
fn an_enrolment_token_is_for_one_node_and_once() {
    let (_redis, acc, mut client) = secure();
    let token = acc.command(&["token"]);
    assert_eq!(token.code, 0, "{token:?}");
    let token = token.stdout.trim().to_owned();
    assert!(!token.is_empty() && token.lines().count() == 1, "{token}");
    let home = tempfile::tempdir().expect("a folder");
    let out = home.path().join("node");
    let enroll = |token: &str, nid: &str, out: &Path| {
        let out = out.to_str().expect("a path in UTF-8");
        run(
            "jsagent",
            &["enroll", "--controller", &acc.url(), "--token", token, "--gid", "1", "--nid", nid, "--out", out],
        )
    };
    let output = enroll(&token, "20", &out);
    assert_eq!(output.code, 0, "{output:?}");
    let enrolled = Enrolled::read(&out);
    assert!(enrolled.token.starts_with("1.20."), "{}", enrolled.token);
    let mut agent = start_from(&out, home.path());
    let id = client.push(json!({"gid": 1, "nid": 20, "cmd": "ping"}));
    assert_eq!(client.pop(&id)["state"], "OK");
    assert!(agent.stop(LONG).is_some_and(|status| status.success()));
    let spent = enroll(&token, "21", &home.path().join("second"));
    assert_ne!(spent.code, 0);
    assert!(spent.stderr.contains("used") || spent.stderr.contains("spent"), "{spent:?}");
    let forged = enroll("nonsense", "22", &home.path().join("third"));
    assert_ne!(forged.code, 0);
    assert!(!forged.stderr.is_empty() && !forged.stderr.contains("panicked"), "{forged:?}");
}

#[test]
fn a_folder_that_cannot_be_written_costs_no_token() {
    let (_redis, acc, _client) = secure();
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let home = tempfile::tempdir().expect("a folder");
    let enroll = |token: &str, out: &Path| {
        let out = out.to_str().expect("a path in UTF-8");
        run(
            "jsagent",
            &["enroll", "--controller", &acc.url(), "--token", token, "--gid", "1", "--nid", "40", "--out", out],
        )
    };
    // A file in the way stops root too; so does /proc, where a folder is that nobody can fill.
    let file = home.path().join("file");
    fs::write(&file, "").expect("a file");
    for out in [file.join("node"), "/proc/self".into()] {
        let output = enroll(&token, &out);
        assert!(output.code == 1 && output.stderr.contains("the token was not used"), "{output:?}");
    }
    let out = home.path().join("node");
    assert_eq!(enroll(&token, &out).code, 0);
    // A refusal leaves no empty folder behind.
    let refused = home.path().join("refused");
    assert_eq!(enroll(&token, &refused).code, 1);
    assert!(!refused.exists());
}

#[test]
fn a_node_trusts_the_ca_that_its_enrolment_named() {
    let (_redis, acc, mut client) = secure();
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let home = tempfile::tempdir().expect("a folder");
    let (ca, out) = (home.path().join("ca"), home.path().join("node"));
    // As the certificate of a proxy's CA would be, told from the controller's own by a line.
    let named = format!("named\n{}", fs::read_to_string(acc.state_dir().join("ca.pem")).expect("the CA"));
    fs::write(&ca, &named).expect("a file");
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (url, ca, to) = (acc.url(), path(&ca), path(&out));
    let args =
        ["enroll", "--controller", &url, "--token", &token, "--gid", "1", "--nid", "41", "--out", &to, "--ca", &ca];
    let output = run("jsagent", &args);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(fs::read_to_string(out.join("ca.pem")).expect("the CA"), named);
    let mut agent = start_from(&out, home.path());
    let mut answers = || {
        let id = client.push(json!({"gid": 1, "nid": 41, "cmd": "ping"}));
        assert_eq!(client.pop(&id)["state"], "OK");
    };
    answers();
    // A renewal brings a new token, and the controller's own CA beside that one at most.
    let token = || fs::read_to_string(out.join("token")).expect("the token");
    let before = token();
    assert_eq!(acc.command(&["rotate"]).code, 0);
    wait_until("the node has renewed", LONG, || token() != before);
    answers();
    let ca = fs::read_to_string(out.join("ca.pem")).expect("the CA");
    assert!(ca.starts_with(&named), "{ca}");
    assert!(agent.stop(LONG).is_some_and(|status| status.success()));
    let mut agent = start_from(&out, home.path());
    answers();
    assert!(agent.stop(LONG).is_some_and(|status| status.success()));

    // A file that is no text costs nothing either.
    fs::write(home.path().join("ca"), b"\xff").expect("a file");
    let to = path(&home.path().join("other"));
    let (at, named) = (&args[..12], &args[13..]);
    let output = run("jsagent", &[at, &[to.as_str()][..], named].concat());
    assert!(output.code == 1 && !Path::new(&to).exists(), "{output:?}");
}

#[test]
fn command_line_that_enrolment_prints_can_be_copied() {
    let (_redis, acc, _client) = secure();
    let dir = tempfile::tempdir().expect("a folder");
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let (by_agent, by_controller) = (dir.path().join("the node's"), dir.path().join("a b"));
    let path = |folder: &Path| folder.to_str().expect("a path in UTF-8").to_owned();
    let (url, out) = (acc.url(), path(&by_agent));
    let enroll = ["enroll", "--controller", &url, "--token", &token, "--gid", "1", "--nid", "10", "--out", &out];
    for output in [
        jstests::run("jsagent", &enroll),
        acc.command(&["enroll", "1", "11", "--url", &url, "--out", &path(&by_controller)]),
    ] {
        assert_eq!(output.code, 0, "{output:?}");
        let line = output.stdout.lines().next().and_then(|line| line.split_once("jsagent -c ")).expect("a line").1;
        let mut shell = std::process::Command::new("/bin/sh");
        let output = jstests::run_with(shell.args(["-c", &format!("test -f {line}")]));
        assert_eq!(output.code, 0, "{line}: {output:?}");
    }
}

#[test]
fn an_enrolment_token_for_two_uses_serves_two() {
    let (_redis, acc, _client) = secure();
    let token = acc.command(&["token", "--uses", "2", "--ttl", "1h"]).stdout.trim().to_owned();
    let home = tempfile::tempdir().expect("a folder");
    for (nid, works) in [("30", true), ("31", true), ("32", false)] {
        let out = home.path().join(nid);
        let out = out.to_str().expect("a path in UTF-8");
        let args = ["enroll", "--controller", &acc.url(), "--token", &token, "--gid", "1", "--nid", nid, "--out", out];
        let output = run("jsagent", &args);
        assert_eq!(output.code == 0, works, "{nid}: {output:?}");
    }
}

#[test]
fn an_agent_with_a_wrong_token_says_so_and_goes_on_trying() {
    let (_redis, acc, mut client) = secure();
    let mut agent = Agent::start(&acc, AgentOptions::default());
    client.wait_seen("1:10");
    assert_eq!(agent.stop(), Some(0));
    let token_file = agent.scratch().join("main.token");
    let good = fs::read(&token_file).expect("the token");
    fs::write(&token_file, "1.10.5.AAAA").expect("write");
    agent.resume();
    wait_until("the agent says that it is refused", LONG, || agent.output().contains("refused (401)"));
    assert!(!agent.ended(), "it goes on trying: the token may come back");
    assert_eq!(agent.stop(), Some(0));
    fs::write(&token_file, good).expect("write");
    agent.resume();
    let id = client.send("ping", json!({}));
    assert_eq!(client.pop(&id)["state"], "OK");
}

#[test]
fn enrolment_whose_event_cannot_be_written_is_answered() {
    let (_redis, acc, mut client) = secure();
    client.redis::<()>(&["SET", "jsacc:events", "spoilt"]);
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let home = tempfile::tempdir().expect("a folder");
    let out = home.path().join("node");
    let out = out.to_str().expect("a path in UTF-8");
    let args = ["enroll", "--controller", &acc.url(), "--token", &token, "--gid", "1", "--nid", "60", "--out", out];
    let output = run("jsagent", &args);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(acc.output().contains("that node 1:60 was enrolled with the token"), "{}", acc.output());
}

#[test]
fn a_use_of_a_token_that_is_counted_again_after_a_cut_connection_counts_once() {
    let redis = Redis::start();
    let target =
        jsacc::config::redis_address::Target::parse(&redis.url()).expect("the address of the private redis-server");
    let mut conn = jsacc::redis::Conn::connect(&jsacc::redis::Address::new(target, None, &jsacc::model::SCHEMA), LONG)
        .expect("a connection to it");
    let mut count =
        |request, now| jsacc::model::nodes::use_enrolment(&mut conn, "token", request, 1, 60, now).expect("counted");
    assert_eq!(count("first", 5), Some(5));
    assert_eq!(count("first", 6), Some(5), "the answer to the first call was lost");
    assert_eq!(count("second", 7), None, "it was for one use");
}

#[test]
fn enrolment_interrupted_after_its_token_was_spent_is_finished() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let mut client = Client::new(&redis);
    let home = tempfile::tempdir().expect("a folder");
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let out = home.path().join("node");
    let (url, to) = (acc.url(), out.to_str().expect("a path in UTF-8").to_owned());
    let enroll = |die_at: Option<&str>| {
        let mut command = std::process::Command::new(jstests::bin("jsagent"));
        command.args(["enroll", "--controller", &url, "--token", &token, "--gid", "1", "--nid", "50", "--out", &to]);
        command.envs(die_at.map(|point| ("JS_DIE_AT", point)));
        jstests::run_with(&mut command)
    };
    assert_ne!(enroll(Some("agent.credentials.replaced")).code, 0);
    assert!(!out.join("agent.toml").exists());
    // The token is spent, and this use of it is repeated.
    let again = enroll(None);
    assert_eq!(again.code, 0, "{again:?}");
    let other = enroll(None);
    assert!(other.code != 0 && other.stderr.contains("spent"), "{other:?}");
    let mut agent = start_from(&out, home.path());
    let id = client.push(json!({"gid": 1, "nid": 50, "cmd": "ping"}));
    assert_eq!(client.pop(&id)["state"], "OK");
    assert!(agent.stop(LONG).is_some_and(|status| status.success()));
}
