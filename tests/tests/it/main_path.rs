//! A client's command runs on a node over HTTPS, and its result comes back: the whole way, for real.

use jstests::process::processes_of;
use jstests::{AccOptions, AgentOptions, Client, LONG, Stage, now_ms, wait_until};
use serde_json::{Value, json};

#[test]
fn a_command_runs_and_its_result_comes_back() {
    let mut stage = Stage::start_secure();
    let before = now_ms();
    let args = json!({"cmd": "/bin/echo", "args": ["hello", "world"], "max_time": 10});
    let id = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": args, "tags": "mine"}));
    let result = stage.client.pop(&id);
    for (field, want) in [
        ("id", json!(id)),
        ("gid", json!(1)),
        ("nid", json!(10)),
        ("cmd", json!("execute")),
        ("args", args),
        ("data", json!("")),
        ("level", json!(0)),
        ("state", json!("OK")),
        ("code", json!(0)),
        ("critical", json!("")),
        ("tags", json!("mine")),
    ] {
        assert_eq!(result[field], want, "{field} of {result}");
    }
    assert_eq!(result["streams"][0].as_str().map(str::trim_end), Some("hello world"), "{result}");
    assert_eq!(result["streams"][1], "", "{result}");
    let started = result["starttime"].as_i64().expect("starttime");
    assert!((before - 1000..=now_ms() + 1000).contains(&started), "{result}");
    assert!(result["time"].as_u64().is_some_and(|ms| ms < 10_000), "{result}");
    assert_eq!(stage.client.results(&id), 0, "one result, and no second");
}

#[test]
fn the_job_leaves_its_hash_and_its_id() {
    let mut stage = Stage::start();
    let id = stage.client.send("ping", json!({}));
    let result = stage.client.pop(&id);
    assert_eq!((&result["data"], &result["level"], &result["state"]), (&json!("\"pong\""), &json!(20), &json!("OK")));
    let client = &mut stage.client;
    wait_until("the hash has the result", LONG, || client.state(&id, "1:10").as_deref() == Some("OK"));
    let job = client.job(&id);
    let stored: Value = serde_json::from_str(&job["1:10"]).expect("the result as JSON");
    assert_eq!(stored, result);
    assert_eq!(serde_json::from_str::<Value>(&job["targets"]).expect("targets"), json!(["1:10"]));
    assert!(job["cmd"].contains("ping") && !job["created"].is_empty(), "{job:?}");
    let jobs: Vec<String> = client.redis(&["LRANGE", "jsacc:jobs", "0", "-1"]);
    assert_eq!(jobs.join(" "), id);
    for key in [format!("jsacc:job:{id}"), "jsacc:agent:1:10".to_owned()] {
        let ttl: i64 = client.redis(&["TTL", &key]);
        assert!((1..=7 * 86_400).contains(&ttl) || key.starts_with("jsacc:agent"), "{key} lives {ttl} s");
    }
}

#[test]
fn a_job_is_running_from_the_moment_its_node_has_it() {
    let mut stage = Stage::start();
    let id = stage.client.shell("sleep 30");
    stage.client.wait_running(&id);
    let kill = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "kill", "data": {"id": id}}));
    assert_eq!(stage.client.pop(&kill)["state"], "OK");
    let result = stage.client.pop(&id);
    assert_eq!((&result["state"], &result["code"]), (&json!("KILLED"), &json!(143)), "{result}");
}

#[test]
fn every_run_argument_of_the_first_day() {
    let mut stage = Stage::start();
    let folder = stage.agent.scratch().join("work here");
    std::fs::create_dir(&folder).expect("a working folder");
    let line = "pwd; echo $COLOUR; cat; echo err >&2; exit 3";
    let id = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "data": "from stdin\n", "args":
        {"cmd": "/bin/sh", "args": ["-c", line], "workingdir": folder, "env": {"COLOUR": "red"}}}));
    let result = stage.client.pop(&id);
    let lines: Vec<&str> = result["streams"][0].as_str().expect("stdout").lines().collect();
    let real = folder.canonicalize().expect("the folder");
    assert_eq!(lines, [real.to_str().expect("a path in UTF-8"), "red", "from stdin"], "{result}");
    assert_eq!(result["streams"][1].as_str().map(str::trim_end), Some("err"));
    assert_eq!((&result["state"], &result["code"]), (&json!("ERROR"), &json!(3)), "{result}");
}

#[test]
fn without_args_a_command_line_is_split_and_no_shell_runs_it() {
    let mut stage = Stage::start();
    let result = stage.client.run("execute", json!({"cmd": "/bin/echo 'a  b' \"c d\" $HOME;x"}));
    assert_eq!(result["streams"][0].as_str().map(str::trim_end), Some("a  b c d $HOME;x"), "{result}");
}

#[test]
fn an_object_as_data_is_its_json_text() {
    let mut stage = Stage::start();
    let id = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "data": {"k": [1, "two"]},
        "args": {"cmd": "/bin/cat"}}));
    let result = stage.client.pop(&id);
    let echoed: Value = serde_json::from_str(result["streams"][0].as_str().expect("stdout")).expect("JSON");
    assert_eq!(echoed, json!({"k": [1, "two"]}));
}

#[test]
fn time_up_ends_the_whole_group() {
    let mut stage = Stage::start();
    let args = json!({"cmd": "/bin/sh", "args": ["-c", "sleep 600 & sleep 600"], "max_time": 1});
    let id = stage.client.send("execute", args);
    let result = stage.client.pop(&id);
    assert_eq!((&result["state"], &result["code"]), (&json!("TIMEOUT"), &json!(143)), "{result}");
    assert!(result["time"].as_u64().is_some_and(|ms| ms >= 1000), "{result}");
    wait_until("nothing of the job is left", LONG, || processes_of(&id).is_empty());
}

#[test]
fn a_job_that_ignores_the_polite_signal_is_killed() {
    let mut stage = Stage::start();
    let line = "trap '' TERM; while :; do sleep 1; done";
    let args = json!({"cmd": "/bin/sh", "args": ["-c", line], "max_time": 1, "stop_timeout": 1});
    let id = stage.client.send("execute", args);
    let result = stage.client.pop(&id);
    assert_eq!((&result["state"], &result["code"]), (&json!("TIMEOUT"), &json!(137)), "{result}");
    wait_until("nothing of the job is left", LONG, || processes_of(&id).is_empty());
}

#[test]
fn messages_of_a_job_become_its_result() {
    let mut stage = Stage::start();
    let line = r#"echo plain; echo '20::{"first": 1}'; echo '9::disk is dying' >&2
        echo '21:::'; echo 'a: 1'; echo 'b: 2'; echo ':::'; echo '12::1'; echo '8::not text' "#;
    let id = stage.client.shell(line);
    let result = stage.client.pop(&id);
    assert_eq!((&result["data"], &result["level"]), (&json!("a: 1\nb: 2"), &json!(21)), "{result}");
    assert_eq!(result["critical"], "disk is dying", "{result}");
    assert_eq!(result["streams"][0].as_str().map(str::trim_end), Some("plain\n12::1"), "{result}");
    assert_eq!(result["streams"][1], "", "{result}");
}

#[test]
fn the_streams_are_the_last_thousand_lines() {
    let mut stage = Stage::start();
    let id = stage.client.shell("seq 1 5000");
    let result = stage.client.pop(&id);
    let text = result["streams"][0].as_str().expect("stdout");
    assert_eq!((text.lines().count(), text.lines().next(), text.lines().last()), (1000, Some("4001"), Some("5000")));
    let id = stage.client.shell("yes 0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789 | head -n 2000");
    let result = stage.client.pop(&id);
    let length = result["streams"][0].as_str().expect("stdout").len();
    assert!((60_000..=65_536).contains(&length), "{length} bytes");
}

#[test]
fn a_child_knows_its_node_and_no_secret() {
    let mut stage = Stage::start_secure();
    let id = stage.client.send("execute", json!({"cmd": "/usr/bin/env"}));
    let result = stage.client.pop(&id);
    let env = result["streams"][0].as_str().expect("stdout");
    let home = stage.agent.data_dir();
    for line in [
        "AGENT_GID=1".to_owned(),
        "AGENT_NID=10".to_owned(),
        format!("AGENT_HOME={}", home.display()),
        format!("AGENT_JOB_ID={id}"),
        format!("AGENT_CONTROLLER_URL={}", stage.acc.url()),
        "AGENT_CONTROLLER_NAME=main".to_owned(),
    ] {
        assert!(env.lines().any(|have| have == line), "{line} is not in\n{env}");
    }
    assert!(env.contains("AGENT_CONTROLLER_CA="), "{env}");
    let token = std::fs::read_to_string(stage.agent.scratch().join("main.token")).expect("the token");
    assert!(!env.contains(token.trim()), "the node's token is in a child's environment");
}

#[test]
fn the_five_infos_have_their_keys() {
    let mut stage = Stage::start();
    #[track_caller]
    fn keys(value: &Value, want: &[&str]) {
        let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
        let mut have: Vec<&str> = object.keys().map(String::as_str).collect();
        let mut want = want.to_vec();
        have.sort_unstable();
        want.sort_unstable();
        assert_eq!(have, want);
    }
    let ask = |stage: &mut Stage, what: &str| stage.client.ask(what, json!(""));
    let cpu = ask(&mut stage, "get_cpu_info");
    keys(&cpu, &["arch", "brand", "physical", "logical", "mhz", "usage", "load"]);
    assert_eq!(cpu["usage"].as_array().map(Vec::len), cpu["logical"].as_u64().map(|n| n as usize), "{cpu}");
    let mem = ask(&mut stage, "get_mem_info");
    keys(&mem, &["total", "available", "used", "free", "swap_total", "swap_used"]);
    assert!(mem["total"].as_u64() > Some(1 << 20), "{mem}");
    let disks = ask(&mut stage, "get_disk_info");
    let disk_keys = ["device", "mount", "fstype", "total", "used", "free", "readonly", "removable"];
    disks.as_array().expect("a list").iter().for_each(|disk| keys(disk, &disk_keys));
    let nics = ask(&mut stage, "get_nic_info");
    let nic_keys = ["name", "mac", "mtu", "addrs", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors"];
    nics.as_array().expect("a list").iter().for_each(|nic| keys(nic, &nic_keys));
    let lo = nics.as_array().expect("a list").iter().find(|nic| nic["name"] == "lo");
    if let Some(lo) = lo {
        assert!(lo["addrs"].as_array().is_some_and(|a| a.contains(&json!("127.0.0.1/8"))), "{lo}");
    }
    let os = ask(&mut stage, "get_os_info");
    keys(&os, &["hostname", "os", "name", "version", "kernel", "arch", "uptime", "boottime", "agent"]);
    assert_eq!(os["os"], "linux", "{os}");
}

#[test]
fn restart_answers_and_then_the_agent_ends_well() {
    let mut stage = Stage::start();
    let result = stage.client.run("restart", json!({}));
    assert_eq!(result["state"], "OK", "{result}");
    assert_eq!(stage.agent.wait(), 0);
    stage.agent.resume();
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
}

#[test]
fn a_stopped_agent_ends_its_jobs_and_says_so() {
    let mut stage = Stage::start();
    let id = stage.client.shell("sleep 600");
    stage.client.wait_running(&id);
    assert_eq!(stage.agent.stop(), Some(0));
    wait_until("nothing of the job is left", LONG, || processes_of(&id).is_empty());
    // The agent may have ended before its result was taken; then it sends it after the next start.
    stage.agent.resume();
    let result = stage.client.pop(&id);
    assert_eq!(result["state"], "KILLED", "{result}");
    assert!(!result["data"].as_str().unwrap_or_default().is_empty(), "no word why: {result}");
}

#[test]
fn a_controller_that_stops_leaves_at_once_and_well() {
    let mut stage = Stage::start_secure();
    stage.client.wait_seen("1:10");
    assert_eq!(stage.acc.stop(), Some(0));
    // A command that is pushed meanwhile waits in Redis, and the node comes back by itself.
    let id = stage.client.send("ping", json!({}));
    stage.acc.resume();
    assert_eq!(stage.client.pop(&id)["state"], "OK");
}

#[test]
fn max_jobs_lets_the_others_wait_and_built_in_commands_pass() {
    let options = AgentOptions { max_jobs: Some(1), ..AgentOptions::default() };
    let mut stage = Stage::start_with(AccOptions::default(), options);
    let first = stage.client.shell("sleep 600");
    stage.client.wait_running(&first);
    let second = stage.client.shell("echo second");
    stage.client.wait_running(&second);
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
    assert_eq!(stage.client.results(&second), 0, "the second job waits");
    let kill = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "kill", "data": {"id": first}}));
    stage.client.pop(&kill);
    assert_eq!(stage.client.pop(&first)["state"], "KILLED");
    assert_eq!(stage.client.pop(&second)["state"], "OK");
}

#[test]
fn a_node_that_stops_says_so_and_one_that_is_lost_does_not() {
    let mut stage = Stage::start_with(AccOptions::default(), AgentOptions::default());
    let mut client = Client::new(&stage.redis);
    let mut field = |name: &str| {
        let value: Option<u64> = client.redis(&["HGET", "jsacc:agent:1:10", name]);
        value.unwrap_or(0)
    };
    let mut is_stopped = || field("stopped") > 0 && field("stopped") >= field("last_seen");
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
    stage.agent.kill();
    assert!(!is_stopped(), "it was lost");
    stage.agent.resume();
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
    assert_eq!(stage.agent.stop(), Some(0));
    wait_until("it is known to have stopped", LONG, &mut is_stopped);
    stage.agent.resume();
    wait_until("and to be back", LONG, || !is_stopped());
    assert!(stage.client.events().iter().any(|event| event["name"] == "shutdown"));
}

#[test]
fn an_event_tells_of_the_nodes_start() {
    let mut stage = Stage::start_with(AccOptions::default(), AgentOptions::default().roles(&["web", "db"]));
    let client = &mut stage.client;
    wait_until("the startup event is there", LONG, || client.events().iter().any(|e| e["name"] == "startup"));
    // The event and the poll write their fields each; both come within moments.
    for field in ["roles", "hostname", "os", "version", "addr", "instance", "last_seen", "ac"] {
        wait_until(&format!("the node's hash has its {field}"), LONG, || {
            client.redis::<Option<String>>(&["HGET", "jsacc:agent:1:10", field]).is_some_and(|value| !value.is_empty())
        });
    }
    let agent: std::collections::BTreeMap<String, String> = client.redis(&["HGETALL", "jsacc:agent:1:10"]);
    assert!(agent["roles"].contains("web") && agent["roles"].contains("db"), "{agent:?}");
}
