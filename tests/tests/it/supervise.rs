//! The supervisor through the real parts: what outlives the agent, what ends with a job, and what does
//! not. The rules themselves are tested where they live, in the agent's `process` room.

use jstests::{Stage, now_ms, wait_for, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A shell job of node 1:10 with more arguments.
fn shell(stage: &mut Stage, script: &str, more: Value) -> String {
    let mut args = json!({"cmd": "/bin/sh", "args": ["-c", script]});
    args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    stage.client.send("execute", args)
}

fn scratch(stage: &Stage, name: &str) -> PathBuf {
    stage.agent.scratch().join(name)
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits until a file has so many lines, and returns the last of these as a number.
#[track_caller]
fn pid_line(path: &Path, count: usize) -> u32 {
    wait_for(&format!("{count} lines in {}", path.display()), jstests::LONG, || {
        let text = fs::read_to_string(path).ok()?;
        let whole = &text[..text.rfind('\n')?];
        whole.lines().nth(count - 1)?.parse().ok()
    })
}

fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn kill_group(pid: u32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
}

#[test]
fn a_killed_agents_jobs_are_ended_answered_and_remembered() {
    let mut stage = Stage::start();
    let [plain, long, often, daemon] = ["plain", "long", "often", "daemon"].map(|name| scratch(&stage, name));
    let write_pid = |path: &Path| format!("echo $$ >> {}; exec sleep 1000", path.display());
    let plain_id = shell(&mut stage, &write_pid(&plain), json!({}));
    let long_id = shell(&mut stage, &write_pid(&long), json!({"max_time": -1}));
    let often_id = shell(&mut stage, &format!("echo $$ >> {}", often.display()), json!({"recurring_period": 1}));
    // A daemon of a job that is over lives on, over the agent's death too.
    let script = format!("setsid sh -c 'echo $$ >> {}; exec sleep 1000' >/dev/null 2>&1 &", daemon.display());
    let daemon_id = shell(&mut stage, &script, json!({}));
    assert_eq!(stage.client.pop(&daemon_id)["state"], "OK");
    let (first_plain, first_long, daemon) = (pid_line(&plain, 1), pid_line(&long, 1), pid_line(&daemon, 1));
    assert_eq!(stage.client.pop(&often_id)["state"], "OK");

    stage.agent.kill();
    assert!(lives(first_plain) && lives(first_long));
    stage.agent.resume();
    let result = stage.client.pop(&plain_id);
    assert_eq!((&result["state"], &result["level"]), (&json!("ERROR"), &json!(0)));
    assert!(result["data"].as_str().unwrap().contains("agent died"), "{result}");
    assert!(!lives(first_plain) && !lives(first_long));
    let second_long = pid_line(&long, 2);
    assert!(lives(second_long) && lives(daemon));
    let runs = lines(&often).len();
    wait_until("the recurring job to go on", jstests::LONG, || lines(&often).len() > runs);

    // A polite stop and a start: the same, and nothing is told of it.
    assert_eq!(stage.agent.stop(), Some(0));
    assert!(!lives(second_long) && lives(daemon));
    stage.agent.resume();
    let third_long = pid_line(&long, 3);
    assert_eq!((stage.client.results(&long_id), lines(&plain).len()), (0, 1));

    // Killed, both are forgotten.
    assert_eq!(stage.client.ask("kill", json!({"id": long_id})), json!({"killed": [long_id]}));
    assert_eq!(stage.client.pop(&long_id)["state"], "KILLED");
    assert!(!lives(third_long));
    stage.client.ask("kill", json!({"id": often_id}));
    wait_until("the recurring job's end", jstests::LONG, || stage.client.pop(&often_id)["state"] == "KILLED");
    assert_eq!(stage.agent.stop(), Some(0));
    stage.agent.resume();
    assert_eq!(stage.client.ask("ping", json!("")), json!("pong"));
    assert_eq!((lines(&long).len(), lines(&plain).len()), (3, 1));
    assert!(lives(daemon));
    kill_group(daemon);
}

#[test]
fn restart_answers_ends_with_zero_and_starts_what_is_remembered_again() {
    let mut stage = Stage::start();
    let long = scratch(&stage, "long");
    let script = format!("echo $$ >> {}; exec sleep 1000", long.display());
    let long_id = shell(&mut stage, &script, json!({"max_time": -1}));
    let plain_id = shell(&mut stage, "sleep 1000", json!({}));
    stage.client.wait_running(&plain_id);
    let first = pid_line(&long, 1);
    let answer = stage.client.run("restart", json!({}));
    assert_eq!((&answer["state"], &answer["level"]), (&json!("OK"), &json!(20)));
    assert_eq!(stage.agent.wait(), 0);
    assert!(!lives(first));
    stage.agent.resume();
    let result = stage.client.pop(&plain_id);
    assert_eq!(result["state"], "KILLED");
    assert!(result["data"].as_str().unwrap().contains("told to stop"), "{result}");
    assert!(lives(pid_line(&long, 2)));
    assert_eq!(stage.client.results(&long_id), 0);
}

#[test]
fn killall_ends_every_process_and_what_is_remembered_comes_again() {
    let mut stage = Stage::start();
    let [plain, long, often] = ["plain", "long", "often"].map(|name| scratch(&stage, name));
    let script = |path: &Path| format!("echo $$ >> {}; exec sleep 1000", path.display());
    let plain_id = shell(&mut stage, &script(&plain), json!({}));
    let long_id = shell(&mut stage, &script(&long), json!({"max_time": -1}));
    let often_id = shell(&mut stage, &script(&often), json!({"recurring_period": 2}));
    let pids = [pid_line(&plain, 1), pid_line(&long, 1), pid_line(&often, 1)];
    stage.client.ask("killall", json!(""));
    assert!(!pids.iter().any(|pid| lives(*pid)), "{pids:?}");
    assert_eq!(stage.client.pop(&plain_id)["state"], "KILLED");
    assert!(lives(pid_line(&long, 2)));
    assert!(lives(pid_line(&often, 2)));
    assert_eq!((stage.client.results(&long_id), stage.client.results(&often_id)), (0, 0));
}

#[test]
fn used_up_restarts_raise_an_alert() {
    let mut stage = Stage::start();
    let runs = scratch(&stage, "runs");
    let script = format!("echo x >> {}; exit 3", runs.display());
    let id = shell(&mut stage, &script, json!({"max_restart": 2, "domain": "d", "name": "n"}));
    let result = stage.client.pop(&id);
    assert_eq!((&result["state"], &result["code"]), (&json!("ERROR"), &json!(3)));
    let critical = result["critical"].as_str().unwrap().to_owned();
    assert!(critical.contains(&id), "{critical}");
    assert_eq!(lines(&runs).len(), 3);
    let told = wait_for("the event", jstests::LONG, || {
        stage.client.events().into_iter().find(|event| event.to_string().contains(&id) && event["name"] == "critical")
    });
    assert!(told.to_string().contains("failed 3 times"), "{told}");
    let records = stage.client.ask("get_msgs", json!({"jobid": id, "levels": "9,30"}));
    let levels: Vec<u64> = records.as_array().unwrap().iter().map(|r| r["level"].as_u64().unwrap()).collect();
    assert_eq!(levels, [9, 30]);
}

#[test]
fn a_recurring_job_reports_its_first_its_loud_and_its_failed_runs() {
    let mut stage = Stage::start();
    let runs = scratch(&stage, "runs");
    let file = runs.display();
    let script = format!(
        "echo x >> {file}; n=$(wc -l < {file}); [ $n = 3 ] && echo '20::\"three\"'; [ $n = 5 ] && exit 9; exit 0"
    );
    let id = shell(&mut stage, &script, json!({"recurring_period": 1}));
    let first = stage.client.pop(&id);
    let third = stage.client.pop(&id);
    let fifth = stage.client.pop(&id);
    assert_eq!((&first["state"], &first["level"]), (&json!("OK"), &json!(0)));
    assert_eq!(third["data"], "\"three\"");
    assert_eq!((&fifth["state"], &fifth["code"]), (&json!("ERROR"), &json!(9)));
    wait_until("three more runs", jstests::LONG, || lines(&runs).len() >= 8);
    assert_eq!(stage.client.results(&id), 0);
    // Its hash tells of the quiet ones too.
    let started = |stage: &mut Stage| {
        let field = stage.client.job(&id).remove("1:10").unwrap_or_default();
        serde_json::from_str::<Value>(&field).unwrap()["starttime"].as_i64().unwrap_or(0)
    };
    wait_until("the hash", jstests::LONG, || started(&mut stage) > fifth["starttime"].as_i64().unwrap());
    stage.client.ask("unschedule", json!({"id": id}));
    let seen = lines(&runs).len();
    std::thread::sleep(Duration::from_millis(2500)); // that nothing comes can only be waited for
    assert!(lines(&runs).len() <= seen + 1);
}

#[test]
fn a_daemon_that_holds_the_pipe_holds_no_result_and_is_still_heard() {
    let mut stage = Stage::start();
    let daemon = scratch(&stage, "daemon");
    let go_on = scratch(&stage, "go-on");
    let script = format!(
        "(until [ -e {} ]; do sleep 0.05; done; echo 4::later; exec sleep 1000) & echo $! >> {}; echo now",
        go_on.display(),
        daemon.display()
    );
    let id = shell(&mut stage, &script, json!({}));
    let result = stage.client.pop(&id);
    std::fs::write(&go_on, "").unwrap();
    assert_eq!((&result["state"], &result["streams"][0]), (&json!("OK"), &json!("now")));
    wait_until("its later output", jstests::LONG, || {
        stage.client.ask("get_msgs", json!({"jobid": id, "levels": "4"})).to_string().contains("later")
    });
    kill_group(pid_line(&daemon, 1));
}

#[test]
fn figures_and_a_look_from_the_node_itself() {
    let mut stage = Stage::start();
    let id = shell(&mut stage, "sleep 1000 & exec sleep 1000", json!({"domain": "d", "name": "n", "max_time": -1}));
    stage.client.wait_running(&id);
    let entry = wait_for("the tree", jstests::LONG, || {
        let entries = stage.client.ask("get_processes_stats", json!({"domain": "d", "name": "n"}));
        entries.as_array()?.first().filter(|entry| entry["processes"] == 2).cloned()
    });
    for key in ["cpu", "rss", "vms", "read", "written", "starttime", "restarts", "pid"] {
        assert!(entry[key].is_number(), "{key} in {entry}");
    }
    assert_eq!((&entry["id"], &entry["cmd"], &entry["state"]), (&json!(id), &json!("execute"), &json!("RUNNING")));
    assert_eq!(stage.client.ask("get_process_stats", json!({"id": id}))["pid"], entry["pid"]);
    let config = stage.agent.config_file();
    let status = jstests::run("jsagent", &["status", "-c", config.to_str().unwrap()]);
    assert!(status.code == 0 && status.stdout.contains(&id) && status.stdout.contains("running"), "{status:?}");
}

#[test]
fn a_second_command_with_a_known_id_goes_nowhere() {
    let mut stage = Stage::start();
    let runs = scratch(&stage, "runs");
    let id = shell(&mut stage, &format!("echo x >> {}", runs.display()), json!({}));
    stage.client.pop(&id);
    let again = json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "true"}});
    stage.client.push(again);
    wait_until("the event", jstests::LONG, || {
        stage.client.events().iter().any(|event| event["name"] == "duplicate" && event.to_string().contains(&id))
    });
    assert_eq!(lines(&runs).len(), 1);
}

/// Runs three jobs and kills three others.
fn jobs_and_kills(stage: &mut Stage) {
    for _ in 0..3 {
        let short = shell(stage, "true", json!({}));
        assert_eq!(stage.client.pop(&short)["state"], "OK");
        let long = shell(stage, "exec sleep 1000", json!({}));
        stage.client.wait_running(&long);
        stage.client.ask("kill", json!({"id": long}));
        assert_eq!(stage.client.pop(&long)["state"], "KILLED");
    }
}

#[test]
fn a_flood_of_output_delays_no_other_job() {
    let mut stage = Stage::start();
    let flood = shell(&mut stage, "exec yes 0123456789", json!({}));
    let look = json!({"jobid": flood, "limit": 1, "after": 100_000});
    wait_until("a hundred thousand records of the flood", jstests::LONG, || {
        stage.client.ask("get_msgs", look.clone()) != json!([])
    });
    // The flood has no end: an agent that comes to other jobs only when there is nothing more to read never
    // comes to them.
    jobs_and_kills(&mut stage);
    assert!(stage.client.pop_within(&flood, Duration::from_millis(1)).is_none());
    stage.client.ask("kill", json!({"id": flood}));
    assert_eq!(stage.client.pop(&flood)["state"], "KILLED");
}

#[test]
fn times_are_those_of_the_run() {
    let mut stage = Stage::start();
    let before = now_ms();
    let id = shell(&mut stage, "sleep 0.3", json!({"max_time": 20}));
    let result = stage.client.pop(&id);
    let (start, time) = (result["starttime"].as_i64().unwrap(), result["time"].as_i64().unwrap());
    assert!(time >= 300 && start >= before && start + time <= now_ms(), "{result}");
    let id = shell(&mut stage, "sleep 1000", json!({"max_time": 0.5}));
    let result = stage.client.pop(&id);
    assert_eq!((&result["state"], &result["code"]), (&json!("TIMEOUT"), &json!(143)));
}
