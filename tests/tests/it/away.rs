//! The controller away, in every manner, and the agent stopped: what it keeps and how it comes back.

use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, Stage, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::process::Command;

#[test]
fn an_agent_starts_without_its_controller() {
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, AccOptions::default());
    acc.stop();
    let agent = Agent::start(&acc, AgentOptions::default());
    wait_until("the agent says so", LONG, || agent.output().contains("Connection refused"));
    acc.resume();
    let mut client = Client::new(&redis);
    assert_eq!(client.run("ping", json!({}))["data"], "\"pong\"");
}

#[test]
fn connection_that_fails_says_what_to_check() {
    let (redis, other) = (Redis::start_tcp(), Redis::start());
    let (plain, tls) = (Acc::start(&redis, AccOptions::default()), Acc::start(&other, AccOptions::secure()));
    let at = |scheme: &str, port: u16| format!("{scheme}://localhost:{port}");
    let redis_port = redis.port().expect("a port");
    for (controller, url, said) in [
        (&plain, at("http", jstests::redis_server::free_port()), "nothing listens there; check host and port"),
        (&plain, at("http", tls.port()), "this port speaks HTTPS: write https:// in the address"),
        (&tls, at("https", plain.port()), "does not speak TLS; check host and port of the url, or write http://"),
        (&plain, at("http", redis_port), "another service may listen there: check host and port"),
    ] {
        let agent = Agent::start(controller, AgentOptions { via: Some(url.clone()), ..AgentOptions::default() });
        wait_until(&format!("the agent of {url} says what to do"), LONG, || agent.output().contains(said));
    }
    let nobody = "sed -i '/^token_file/d; /^client_/d' \"$1/agent.toml\"".to_owned();
    let agent = Agent::start(&tls, AgentOptions { prelude: Some(nobody), ..AgentOptions::default() });
    wait_until("the agent says what it lacks", LONG, || {
        agent.output().contains("enrol this node, with jsagent enroll")
    });
}

/// A job that has run, and whose controller died meanwhile.
fn ended_without_its_controller() -> (Stage, String) {
    let mut stage = Stage::start();
    let marker = stage.agent.scratch().join("done");
    let id = stage.client.shell(&format!("sleep 1; touch {}; echo 20::7", marker.display()));
    stage.client.wait_running(&id);
    stage.acc.kill();
    wait_until("the job has run", LONG, || marker.exists());
    (stage, id)
}

#[test]
fn results_wait_for_their_controller() {
    let (mut stage, id) = ended_without_its_controller();
    assert_eq!(stage.client.results(&id), 0);
    stage.acc.resume();
    assert_eq!(stage.client.pop(&id)["data"], "7");
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
    assert_eq!(stage.client.results(&id), 0, "it came once");
}

#[test]
fn results_survive_an_agent_that_dies_while_its_controller_is_away() {
    let (mut stage, id) = ended_without_its_controller();
    // The result is stored a moment after the process has ended.
    let status =
        |stage: &Stage| jstests::run("jsagent", &["status", "--data-dir", stage.agent.data_dir().to_str().unwrap()]);
    wait_until("its result is stored", LONG, || !status(&stage).stdout.contains(&id));
    stage.agent.kill();
    stage.agent.resume();
    stage.acc.resume();
    assert_eq!(stage.client.pop(&id)["data"], "7");
}

/// Another controller of the same Redis, which shares the state directory.
fn beside(redis: &Redis, first: &Acc) -> Acc {
    Acc::start(redis, AccOptions { state_dir: Some(first.state_dir()), ..AccOptions::default() })
}

#[test]
fn the_next_address_is_tried_in_turn() {
    let redis = Redis::start();
    let mut first = Acc::start(&redis, AccOptions::default());
    let second = beside(&redis, &first);
    let _agent = Agent::start_of(&[("main", &[&first, &second])], AgentOptions::default());
    let mut client = Client::new(&redis);
    assert_eq!(client.run("ping", json!({}))["state"], "OK");
    first.kill();
    assert_eq!(client.run("ping", json!({}))["state"], "OK");
}

#[test]
fn a_path_that_swallows_everything_is_left() {
    let redis = Redis::start();
    let first = Acc::start(&redis, AccOptions::default());
    let second = beside(&redis, &first);
    let agent = Agent::start_of(&[("main", &[&first, &second])], AgentOptions::default());
    let mut client = Client::new(&redis);
    client.wait_seen("1:10");
    // A stopped process takes connections into its backlog, and never answers.
    kill(Pid::from_raw(first.pid() as i32), Signal::SIGSTOP).unwrap();
    // 40 s until the poll is given up; what else waits for that address is called back then.
    let id = client.send("ping", json!({}));
    let result = client.pop_within(&id, LONG * 3);
    kill(Pid::from_raw(first.pid() as i32), Signal::SIGCONT).unwrap();
    assert_eq!(result.expect("a result")["state"], "OK");
    assert!(agent.output().contains("no answer in time"), "{}", agent.output());
}

#[test]
fn a_polite_stop_ends_jobs_and_sends_what_became_of_them() {
    let mut stage = Stage::start();
    let id = stage.client.shell("trap 'echo 20::bye; exit 3' TERM; while :; do sleep 0.1; done");
    stage.client.wait_running(&id);
    assert_eq!(stage.agent.stop(), Some(0));
    let result = stage.client.pop(&id);
    assert_eq!(result["state"], "KILLED", "{result}");
}

#[test]
fn a_polite_stop_without_a_controller_keeps_the_results() {
    let mut stage = Stage::start();
    let id = stage.client.shell("while :; do sleep 0.1; done");
    stage.client.wait_running(&id);
    stage.acc.kill();
    assert_eq!(stage.agent.stop(), Some(0));
    stage.agent.resume();
    stage.acc.resume();
    assert_eq!(stage.client.pop(&id)["state"], "KILLED");
}

#[test]
fn restart_answers_and_ends_with_status_0() {
    let mut stage = Stage::start();
    assert_eq!(stage.client.run("restart", json!({}))["state"], "OK");
    assert_eq!(stage.agent.wait(), 0);
    stage.agent.resume();
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
}

#[test]
fn two_agents_do_not_share_a_data_folder() {
    let mut stage = Stage::start();
    stage.client.wait_seen("1:10");
    let mut second = Command::new(jstests::bin("jsagent"));
    second.arg("-c").arg(stage.agent.config_file());
    let output = jstests::run_with(&mut second);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains(&format!("process {}", stage.agent.pid())), "{}", output.stderr);
}

#[test]
fn a_node_that_is_enrolled_again_goes_on_without_a_restart() {
    let mut stage = Stage::start_secure();
    stage.client.wait_seen("1:10");
    stage.acc.command(&["revoke", "1", "10"]);
    wait_until("the agent is refused", LONG, || stage.agent.output().contains("refused (401)"));
    let fresh = stage.acc.enroll(1, 10);
    let config = fs::read_to_string(stage.agent.config_file()).unwrap();
    let token =
        config.lines().find_map(|line| line.strip_prefix("token_file = ")).unwrap().trim_matches('"').to_owned();
    fs::write(token, fresh.token).unwrap();
    let id = stage.client.send("ping", json!({}));
    assert_eq!(stage.client.pop(&id)["state"], "OK");
}

#[test]
fn an_enrolment_token_makes_a_node() {
    let stage = Stage::start_secure();
    let token = stage.acc.command(&["token"]).stdout.trim().to_owned();
    let out = stage.agent.scratch().join("eleven");
    let out = out.to_str().unwrap();
    let url = stage.acc.url();
    let enroll = |token: &str| {
        jstests::run(
            "jsagent",
            &["enroll", "--controller", &url, "--token", token, "--gid", "1", "--nid", "11", "--out", out],
        )
    };
    let pinned_otherwise = format!("{}.{}", token.rsplit_once('.').unwrap().0, "0".repeat(64));
    let wrong = enroll(&pinned_otherwise);
    assert!(wrong.code == 1 && wrong.stderr.contains("does not present the CA"), "{}", wrong.stderr);
    let done = enroll(&token);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let spent = enroll(&token);
    assert!(spent.code == 1 && spent.stderr.contains("spent"), "{}", spent.stderr);
    let config = format!("{out}/agent.toml");
    assert_eq!(jstests::run("jsagent", &["--check-config", "-c", &config]).code, 0);
    let mut agent = Command::new(jstests::bin("jsagent"));
    agent.args(["-c", &config]);
    let dir = stage.agent.scratch();
    let _agent = jstests::process::Process::spawn(&mut agent, "jsagent-11", dir, Signal::SIGTERM);
    let mut client = Client::new(&stage.redis);
    let id = client.push(json!({"gid": 1, "nid": 11, "cmd": "ping"}));
    assert_eq!(wait_for("a result", LONG, || client.pop_within(&id, LONG))["state"], "OK");
}

#[test]
fn controllers_do_not_wait_for_each_other() {
    let (one, two) = (Redis::start(), Redis::start());
    let (mut first, second) = (Acc::start(&one, AccOptions::default()), Acc::start(&two, AccOptions::default()));
    let _agent = Agent::start_of(&[("first", &[&first]), ("second", &[&second])], AgentOptions::default());
    let (mut ours, mut theirs) = (Client::new(&one), Client::new(&two));
    assert_eq!(ours.run("ping", json!({}))["state"], "OK");
    let id = theirs.shell("echo $AGENT_CONTROLLER_NAME");
    assert_eq!(theirs.pop(&id)["streams"][0], "second");
    assert_eq!(ours.results(&id), 0, "a result goes where its command came from");
    first.kill();
    assert_eq!(theirs.run("ping", json!({}))["state"], "OK");
    assert!(theirs.events().iter().any(|event| event["name"] == "startup"), "each has its own startup event");
}
