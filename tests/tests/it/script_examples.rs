//! The example scripts that come with the agent.

use crate::scripts::{data, offer, run_with, text};
use jstests::{AccOptions, AgentOptions, Client, LONG, Stage, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join("agent/examples")
}

/// Runs an example, and answers its result.
fn example(client: &mut Client, file: &str, data: Value) -> Value {
    let (_, language) = file.rsplit_once('.').expect("an ending");
    let source = fs::read_to_string(examples().join(file)).expect("the example");
    let name = file.replace('.', "_");
    run_with(client, language, &source, data, json!({"domain": "examples", "name": name}))
}

#[test]
fn example_disk_check() {
    let mut stage = Stage::start();
    let result = example(&mut stage.client, "disk_check.py", json!({"paths": ["/"], "warn": 101, "critical": 101}));
    assert_eq!((&result["state"], &data(&result)[0]["state"]), (&json!("OK"), &json!("ok")), "{result}");
    let result = example(&mut stage.client, "disk_check.py", json!({"paths": ["/"], "critical": 0}));
    assert_eq!((&result["state"], &data(&result)[0]["state"]), (&json!("ERROR"), &json!("critical")), "{result}");
    assert!(text(&result["critical"]).starts_with("/: "), "{result}");
    assert!(example(&mut stage.client, "disk_check.py", json!({"warn": 101, "critical": 101}))["state"] == "OK");
}

#[test]
fn example_service_check() {
    let mut stage = Stage::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let good = json!({"processes": ["redis-server", "jsagent"], "ports": [port]});
    let result = example(&mut stage.client, "service_check.lua", good);
    assert_eq!((&result["state"], data(&result)), (&json!("OK"), json!({"ok": true, "missing": []})), "{result}");
    drop(listener);
    let result = example(&mut stage.client, "service_check.lua", json!({"processes": ["no-such"], "ports": [port]}));
    assert_eq!(data(&result)["missing"], json!(["process no-such", format!("port {port}")]), "{result}");
    assert_eq!((&result["state"], &result["code"]), (&json!("ERROR"), &json!(1)), "{result}");
}

#[test]
fn example_log_watcher() {
    let mut stage = Stage::start();
    let file = stage.agent.scratch().join("app.log");
    fs::write(&file, "an old error\n").expect("write the log");
    let source = fs::read_to_string(examples().join("log_watcher.py")).expect("the example");
    let args = json!({"hash": offer(&mut stage.client, &source), "domain": "examples", "name": "watch", "recurring_period": 1});
    let data_of = json!({"file": file, "pattern": "error|fail"});
    let id = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "execute_js_py", "args": args, "data": data_of}));
    // The first run finds its place at the end.
    let first = stage.client.pop(&id);
    assert_eq!((&first["state"], &first["data"]), (&json!("OK"), &json!("")), "{first}");
    let add = |text: &str| {
        use std::io::Write;
        let mut log = fs::OpenOptions::new().append(true).open(&file).expect("open the log");
        log.write_all(text.as_bytes()).expect("write the log");
    };
    add("all is well\nan error\nhalf an err");
    let second = stage.client.pop(&id);
    assert_eq!(data(&second)["matches"], json!(["an error"]), "{second}");
    add("or\n");
    let third = stage.client.pop(&id);
    assert_eq!(data(&third)["matches"], json!(["half an error"]), "{third}");
    // Rotated: the new file is read from its start.
    fs::rename(&file, file.with_extension("1")).expect("rotate");
    fs::write(&file, "failed anew\n").expect("write the log");
    // A run between the two steps finds no file, and fails; that is a result too.
    let mut matches = Value::Null;
    wait_until("the new file is read", LONG, || {
        let next = stage.client.pop(&id);
        matches = if next["level"] == 20 { data(&next)["matches"].take() } else { Value::Null };
        !matches.is_null()
    });
    assert_eq!(matches, json!(["failed anew"]));
    let kill = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "kill", "data": {"id": id}}));
    stage.client.pop(&kill);
}

#[test]
fn example_cert_expiry() {
    let mut stage = Stage::start_secure();
    let ca = stage.acc.ca().expect("a CA");
    let host = stage.acc.url().replace("https://", "");
    let both = json!({"hosts": [host], "files": [ca], "warn": 0, "critical": 0});
    let result = example(&mut stage.client, "cert_expiry.py", both.clone());
    assert_eq!(result["state"], "OK", "{result}");
    let found = data(&result);
    assert!(found.as_array().is_some_and(|list| list.len() == 2 && list.iter().all(|c| c["state"] == "ok")), "{found}");
    let mut soon = both;
    soon["critical"] = json!(1_000_000);
    let result = example(&mut stage.client, "cert_expiry.py", soon);
    assert_eq!((&result["state"], &data(&result)[0]["state"]), (&json!("ERROR"), &json!("critical")), "{result}");
    assert!(text(&result["critical"]).contains("ends in"), "{result}");
    let result = example(&mut stage.client, "cert_expiry.py", json!({"files": ["/nope.pem"]}));
    assert_eq!((&result["state"], &data(&result)[0]["state"]), (&json!("ERROR"), &json!("unknown")), "{result}");
}

#[test]
fn example_statsd_emitter() {
    let options = AgentOptions::default().config("[stats]\ninterval = 1");
    let mut stage = Stage::start_with(AccOptions::default(), options);
    let result = example(&mut stage.client, "statsd_emitter.lua", json!({"interfaces": ["lo"]}));
    assert_eq!((&result["state"], &result["data"]), (&json!("OK"), &json!("")), "{result}");
    let client = &mut stage.client;
    wait_until("its figures are in Redis", LONG, || {
        let series: Vec<String> = client.redis(&["HKEYS", "jsacc:stats:1:10"]);
        let has = |key: &str| series.iter().any(|name| name == &format!("1.10.examples.statsd_emitter_lua.{key}"));
        has("load.1") && has("memory.total") && has("net.lo.rx")
    });
}
