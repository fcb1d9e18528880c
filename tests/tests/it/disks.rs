//! File systems with silent servers and strange names, as `get_disk_info` and the node's figures show them.

use jstests::{AccOptions, AgentOptions, LONG, Mounts, Stage, wait_until};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Makes a folder to mount something on.
fn folder(dir: &Path, name: &[u8]) -> PathBuf {
    let path = dir.join(OsStr::from_bytes(name));
    std::fs::create_dir(&path).expect("a folder");
    path
}

#[track_caller]
fn find<'a>(disks: &'a Value, dir: &Path, name: &str) -> &'a Value {
    let mount = dir.join(name);
    let found =
        disks.as_array().expect("a list").iter().find(|disk| Path::new(disk["mount"].as_str().unwrap()) == mount);
    found.unwrap_or_else(|| panic!("no {name} in {disks}"))
}

#[test]
fn silent_file_system_is_shown_without_figures_and_holds_up_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut mounts = Mounts::default();
    for number in 0..10 {
        mounts = mounts.silent(&folder(dir.path(), format!("silent{number}").as_bytes()));
    }
    let mounts = mounts.memory(&folder(dir.path(), b"memory"));
    let config = "[monitor]\ninterval = 1\n[stats]\ninterval = 1";
    let options = AgentOptions { mounts, ..AgentOptions::default() }.config(config);
    let mut stage = Stage::start_with(AccOptions::default(), options);

    let ids: Vec<String> = (0..9).map(|_| stage.client.send("get_disk_info", json!({}))).collect();
    for id in ids {
        let result = stage.client.pop(&id);
        assert_eq!(result["state"], "OK", "{result}");
        let disks: Value = serde_json::from_str(result["data"].as_str().unwrap()).expect("the answer is JSON");
        for number in 0..10 {
            let silent = find(&disks, dir.path(), &format!("silent{number}"));
            assert_eq!(
                (&silent["total"], &silent["used"], &silent["free"]),
                (&Value::Null, &Value::Null, &Value::Null)
            );
            assert_eq!((&silent["fstype"], &silent["readonly"]), (&json!("fuse"), &json!(false)));
        }
        assert!(disks.as_array().unwrap().iter().any(|disk| disk["total"].as_u64() > Some(0)), "{disks}");
    }
    assert_eq!(stage.client.run("get_os_info", json!({}))["state"], "OK");
    // Once it is known who is silent, the others are told as before.
    let disks = stage.client.ask("get_disk_info", json!(""));
    assert_eq!(find(&disks, dir.path(), "silent3")["total"], Value::Null);

    // The figures of the node go on without those of the silent ones.
    let series = |stage: &mut Stage| -> Vec<(String, i64)> {
        let all: std::collections::BTreeMap<String, String> = stage.client.redis(&["HGETALL", "jsacc:stats:1:10"]);
        let time = |text: &str| serde_json::from_str::<Value>(text).expect("a pair")[1].as_i64().expect("a time");
        all.into_iter().map(|(key, value)| (key, time(&value))).collect()
    };
    let uptime = |stage: &mut Stage| {
        series(stage).into_iter().find(|(key, _)| key.ends_with("node.load.1")).map(|(_, time)| time)
    };
    wait_until("figures of the node", LONG, || uptime(&mut stage).is_some());
    let first = uptime(&mut stage);
    wait_until("newer figures of the node", LONG, || uptime(&mut stage) > first);
    // Those of other disks may be a sample later on a busy machine.
    let has_disks = |stage: &mut Stage| series(stage).iter().any(|(key, _)| key.contains("node.disk."));
    wait_until("figures of other disks", LONG, || has_disks(&mut stage));
    let told = series(&mut stage);
    assert!(told.iter().all(|(key, _)| !key.contains("silent")), "{told:?}");

    assert_eq!(stage.agent.stop(), Some(0));
}

#[test]
fn mount_with_a_name_that_is_not_utf_8_is_listed_beside_the_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let mounts =
        Mounts::default().memory(&folder(dir.path(), b"caf\xe9 au lait")).memory(&folder(dir.path(), b"plain"));
    let options = AgentOptions { mounts, ..AgentOptions::default() };
    let mut stage = Stage::start_with(AccOptions::default(), options);
    let disks = stage.client.ask("get_disk_info", json!(""));
    assert_eq!(find(&disks, dir.path(), "caf\u{fffd} au lait")["fstype"], "ramfs");
    assert_eq!(find(&disks, dir.path(), "plain")["fstype"], "ramfs");
    assert!(disks.as_array().unwrap().len() > 2, "{disks}");
}

#[test]
fn job_whose_start_hangs_on_a_file_system_holds_up_no_other_and_can_be_ended() {
    let dir = tempfile::tempdir().expect("a folder");
    let silent = folder(dir.path(), b"silent");
    let mounts = Mounts::default().silent(&silent);
    let options = AgentOptions { mounts, ..AgentOptions::default() };
    let mut stage = Stage::start_with(AccOptions::default(), options);
    let hang = |stage: &mut Stage, args: Value| {
        let id = stage.client.send("execute", args);
        stage.client.wait_running(&id);
        id
    };
    let by_folder = hang(&mut stage, json!({"cmd": "/bin/true", "workingdir": silent}));
    let by_program = hang(&mut stage, json!({"cmd": silent.join("program"), "args": []}));
    let by_time = hang(&mut stage, json!({"cmd": "/bin/true", "workingdir": silent, "max_time": 1}));
    for _ in 0..3 {
        assert_eq!(stage.client.run("execute", json!({"cmd": "/bin/true"}))["state"], "OK");
    }
    let result = stage.client.pop(&by_time);
    assert_eq!((&result["state"], &result["code"]), (&json!("TIMEOUT"), &json!(137)), "{result}");
    for id in [by_folder, by_program] {
        let entry = stage.client.ask("get_process_stats", json!({"id": id}));
        assert_eq!((&entry["state"], &entry["pid"]), (&json!("RUNNING"), &json!(0)), "{entry}");
        stage.client.ask("kill", json!({"id": id}));
        assert_eq!(stage.client.pop(&id)["state"], "KILLED");
    }
    // The job that has hung is gone by now, and leaves nothing to wait for.
    let left = hang(&mut stage, json!({"cmd": "/bin/true", "workingdir": silent}));
    assert_eq!(stage.agent.stop(), Some(0));
    assert_eq!(stage.client.pop(&left)["state"], "KILLED");
}

#[test]
fn job_whose_start_cannot_even_be_killed_hangs_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let stuck = folder(dir.path(), b"stuck");
    let mounts = Mounts::default().stuck(&stuck);
    let options = AgentOptions { mounts: mounts.clone(), ..AgentOptions::default() };
    let mut stage = Stage::start_with(AccOptions::default(), options);
    let args = json!({"cmd": "/bin/true", "workingdir": stuck, "max_time": 1, "recurring_period": 1});
    let id = stage.client.send("execute", args);
    let first = stage.client.pop(&id);
    assert_eq!((&first["state"], &first["code"]), (&json!("TIMEOUT"), &json!(137)), "{first}");
    for _ in 0..2 {
        let later = stage.client.pop(&id);
        assert_eq!((&later["state"], &later["code"]), (&json!("ERROR"), &json!(126)), "{later}");
        assert!(later["data"].as_str().is_some_and(|data| data.contains("earlier start of it still waits")), "{later}");
    }
    assert_eq!(stage.client.run("execute", json!({"cmd": "/bin/true"}))["state"], "OK");
    stage.client.ask("kill", json!({"id": id}));
    // No process ends, not even by KILL, while one of its threads waits there.
    mounts.end_stuck();
    assert_eq!(stage.agent.stop(), Some(0));
}
