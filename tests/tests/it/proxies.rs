//! Tests of proxies between a node and its controller: a proxy answers by itself, filters, or has limits.

use jstests::{Acc, AccOptions, Action, Agent, AgentOptions, Client, LONG, Nginx, Proxy, Redis, wait_for, wait_until};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

/// Redis, a controller, and a client; the node comes by another address.
fn parts() -> (Redis, Acc, Client) {
    jstests::site(AccOptions::default())
}

#[track_caller]
fn agent_via(acc: &Acc, url: String, config: &str) -> Agent {
    Agent::start(acc, AgentOptions { via: Some(url), ..AgentOptions::default() }.config(config))
}

/// The records in the list of jobs without domain and name.
fn records(client: &mut Client, what: &str) -> usize {
    let list: Vec<Value> = client.list("log.unknown.unknown");
    list.iter().filter(|record| record["data"].as_str().is_some_and(|data| data.starts_with(what))).count()
}

#[track_caller]
fn event(client: &mut Client, name: &str) -> Value {
    wait_for(&format!("the event {name}"), LONG * 2, || {
        client.events().into_iter().find(|event| event["name"] == name).map(|event| event["data"].clone())
    })
}

const FORWARD_STDOUT: &str = "[logging.ac]\nlevels = \"1-9\"\nflush_interval = 1";

#[test]
fn pages_of_a_proxy_lose_nothing_that_was_posted() {
    let (_redis, acc, mut client) = parts();
    let proxy = Proxy::start(acc.port());
    // Whatever is posted is first answered by somebody else, with the status of a success.
    proxy.rule(|request| match request.method.as_str() {
        "POST" if request.nth < 2 => Action::page(200),
        _ => Action::Forward,
    });
    let agent = agent_via(&acc, proxy.url(), FORWARD_STDOUT);
    let ids: Vec<String> = (0..3).map(|n| client.shell(&format!("echo line {n}; echo 20::{n}"))).collect();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(client.pop_within(id, LONG * 2).expect("its result")["data"], json!(n.to_string()));
    }
    wait_until("the records are there", LONG * 2, || records(&mut client, "line") == 3);
    event(&mut client, "startup");
    for what in ["result", "event", "log"] {
        // It counts a request once the answer is out.
        wait_until(&format!("{what} was answered by the proxy"), LONG, || proxy.count(what) > 2);
        // Told once, however often it was tried.
        let told = format!("{what} waits: an answer that is not the controller's");
        assert!(agent.output().matches(&told).count() <= 1, "{what}: {}", agent.output());
    }
}

#[test]
fn captive_portal_is_no_controller_and_the_next_address_is_tried() {
    let (_redis, acc, mut client) = parts();
    let portal = Proxy::start(acc.port());
    let polled = AtomicBool::new(false);
    portal.rule(move |request| match request.path.as_str() {
        // As "generate_204" does.
        "cmd" => {
            polled.store(true, Ordering::SeqCst);
            Action::Answer(204, String::new(), String::new())
        }
        // The first request to be refused is the poll: an event before it would make the agent leave this address.
        _ if !polled.load(Ordering::SeqCst) => Action::Forward,
        _ => Action::Answer(302, "Location: http://127.0.0.1:9/login\r\n".into(), String::new()),
    });
    let second = Proxy::start(acc.port());
    let dir = tempfile::tempdir().expect("a folder");
    let config = format!(
        "[main]\ngid = 1\nnid = 10\ndata_dir = {:?}\n[controllers.main]\nurl = [{:?}, {:?}]\n",
        dir.path().join("data"),
        portal.url(),
        second.url()
    );
    std::fs::write(dir.path().join("agent.toml"), config).expect("write");
    let mut command = std::process::Command::new(jstests::bin("jsagent"));
    command.arg("-c").arg(dir.path().join("agent.toml"));
    let signal = nix::sys::signal::Signal::SIGTERM;
    let agent = jstests::process::Process::spawn(&mut command, "agent", dir.path(), signal);
    let id = client.send("ping", json!({}));
    assert_eq!(client.pop_within(&id, LONG * 2).expect("its result")["state"], "OK");
    assert!(agent.output().contains("status 204, without the wait that was asked for"), "{}", agent.output());
    assert!(portal.count("cmd") < 10, "it is not asked again and again: {}", portal.count("cmd"));
}

#[test]
fn result_that_nginx_forbids_holds_up_no_other() {
    let (_redis, acc, mut client) = parts();
    // A filter sees the body only where a module looks at it; this one goes by the size of what it does not like.
    let nginx = Nginx::start(acc.port(), "if ($content_length ~ \"^7[0-9][0-9][0-9]$\") { return 403; }");
    let agent = agent_via(&acc, nginx.url(), "");
    let first = client.shell("echo 20::first");
    assert_eq!(client.pop(&first)["state"], "OK");
    let filler = "x".repeat(7000);
    let bad = client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "/bin/true", "tag": filler}}));
    wait_until("it has ended", LONG, || agent.output().contains("set aside: the result of"));
    for n in 0..5 {
        let id = client.shell(&format!("echo 20::{n}"));
        assert_eq!(client.pop(&id)["data"], json!(n.to_string()));
    }
    let said = event(&mut client, "delivery_refused");
    assert!(said["item"].as_str().is_some_and(|item| item.contains(&bad)), "{said}");
    assert_eq!((&said["kind"], &said["by"], &said["status"]), (&json!("result"), &json!("proxy"), &json!(403)));
    assert!(said["reason"].as_str().is_some_and(|reason| reason.contains("nginx")), "{said}");
    assert_eq!(client.results(&bad), 0);
}

#[test]
fn records_beyond_the_default_limit_of_nginx_lose_only_the_culprit() {
    let (_redis, acc, mut client) = parts();
    let nginx = Nginx::start(acc.port(), "");
    // By default all batches pass; this job's one record does not, and neither does a batch with it.
    let config = format!("{FORWARD_STDOUT}\nbatch_size = 5000");
    let _agent = agent_via(&acc, nginx.url(), &config);
    let script = "for i in $(seq 1250); do echo line $i; done; echo 5:::; head -c 1300000 /dev/zero | tr '\\0' x | fold -w 60000; \
                  echo; echo :::; for i in $(seq 1250); do echo line $i; done";
    let id = client.shell(script);
    assert_eq!(client.pop_within(&id, LONG * 2).expect("its result")["state"], "OK");
    wait_until("all small records are there", LONG * 3, || records(&mut client, "line") == 2500);
}

#[test]
fn record_batches_above_a_limit_of_nginx_lose_only_the_culprit() {
    let (_redis, acc, mut client) = parts();
    let nginx = Nginx::start(acc.port(), "client_max_body_size 20k;");
    let config = format!("{FORWARD_STDOUT}\nbatch_size = 5000");
    let _agent = agent_via(&acc, nginx.url(), &config);
    let id = client.shell(
        "for i in $(seq 1000); do echo line $i; done; head -c 40000 /dev/zero | tr '\\0' x; echo; for i in $(seq 1000); do echo line $i; done",
    );
    assert_eq!(client.pop_within(&id, LONG * 2).expect("an end that is told")["id"], json!(id));
    let said = event(&mut client, "dropped");
    assert_eq!(said, json!({"kind": "log", "count": 1}));
    wait_until("all small records are there", LONG * 3, || records(&mut client, "line") == 2000);
    let refused: Vec<Value> = client.events().into_iter().filter(|event| event["name"] == "delivery_refused").collect();
    let of = |kind: &str| refused.iter().map(|event| &event["data"]).find(|data| data["kind"] == kind);
    let log = of("log").expect("an event about the record");
    assert!(log["item"].as_str().is_some_and(|item| item.contains(&format!("a record of job {id}"))), "{log}");
    assert_eq!((&log["by"], &log["dropped"]), (&json!("proxy"), &json!(true)));
}
