//! Messages: what a job writes is kept, found again, forwarded and deleted.

use jstests::{AccOptions, AgentOptions, LONG, Stage, wait_for, wait_until};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn stage(config: &str) -> Stage {
    Stage::start_with(AccOptions::default(), AgentOptions::default().config(config))
}

fn texts(records: &[Value]) -> Vec<(u64, &str)> {
    records.iter().map(|r| (r["level"].as_u64().expect("level"), r["data"].as_str().expect("data"))).collect()
}

fn logs(stage: &Stage) -> PathBuf {
    stage.agent.data_dir().join("logs")
}

fn databases(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).expect("the folder logs").flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".db"));
    names.sort();
    names
}

#[test]
fn every_line_is_kept_in_its_order_and_found_by_its_job() {
    let mut stage = stage("");
    let line = r#"printf 'plain\n\n7::warn\r\n20:::\n{"a":\n 1}\n:::\n12::text\n11::debug\nno end'; echo oops >&2"#;
    let args = json!({"cmd": "/bin/sh", "args": ["-c", line], "domain": "dom", "name": "nam"});
    let id = stage.client.send("execute", args);
    let result = stage.client.pop(&id);
    assert_eq!(
        (&result["state"], &result["data"], &result["level"]),
        (&json!("OK"), &json!("{\"a\":\n 1}"), &json!(20))
    );
    let records = stage.client.records(json!({"jobid": id}));
    let stdout: Vec<(u64, &str)> =
        texts(&records).into_iter().filter(|(level, _)| *level != 2 && *level != 30).collect();
    let want = [(1, "plain"), (1, ""), (7, "warn"), (20, "{\"a\":\n 1}"), (1, "12::text"), (1, "no end")];
    assert_eq!(stdout, want, "level 11 is not kept unless it is asked for");
    let last = records.last().expect("a last record");
    let job: Value = serde_json::from_str(last["data"].as_str().expect("data")).expect("a result as JSON");
    assert_eq!((&last["level"], &job["id"], &job["state"]), (&json!(30), &json!(id), &json!("OK")));
    assert_eq!(job.get("ticket"), None, "clients read records, and get no ticket");
    for record in &records {
        assert_eq!(
            (&record["jobid"], &record["jobdomain"], &record["jobname"]),
            (&json!(id), &json!("dom"), &json!("nam"))
        );
        assert_eq!((&record["gid"], &record["nid"]), (&json!(1), &json!(10)));
    }
    let ids: Vec<u64> = records.iter().filter_map(|record| record["id"].as_u64()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
    let errors = stage.client.records(json!({"jobid": id, "levels": "2,7", "timefrom": job["starttime"]}));
    let mut errors = texts(&errors);
    errors.sort_unstable();
    assert_eq!(errors, [(2, "oops"), (7, "warn")]);
    assert_eq!(stage.client.records(json!({"jobid": id, "timeto": 5})), Vec::<Value>::new());
    let first = stage.client.ask("get_msgs", json!({"jobid": id, "limit": 2}));
    assert_eq!(first.as_array().map(Vec::len), Some(2));
}

#[test]
fn a_job_says_which_levels_are_kept_and_forwarded() {
    let mut stage = stage("[logging.ac]\nflush_interval = 1\n");
    let line = "for n in 1 5 7 8 11; do echo $n::l$n; done";
    let run = |stage: &mut Stage, name: &str, more: Value| {
        let mut args = json!({"cmd": "/bin/sh", "args": ["-c", line], "domain": "lv", "name": name});
        args.as_object_mut().expect("args").extend(more.as_object().expect("more").clone());
        let id = stage.client.send("execute", args);
        stage.client.pop(&id);
        let records = stage.client.records(json!({"jobid": id, "levels": "1-11"}));
        texts(&records).iter().map(|(level, _)| *level).collect::<Vec<u64>>()
    };
    assert_eq!(run(&mut stage, "plain", json!({})), [1, 5, 7, 8]);
    assert_eq!(run(&mut stage, "few", json!({"loglevels": "7-9"})), [7, 8]);
    assert_eq!(run(&mut stage, "list", json!({"loglevels": [5, 7], "loglevels_db": "7"})), [7]);
    assert_eq!(run(&mut stage, "more", json!({"loglevels_db": "*", "loglevels_ac": "11"})), [1, 5, 7, 8, 11]);
    assert_eq!(run(&mut stage, "none", json!({"loglevels": ""})), Vec::<u64>::new());
    let forwarded = |stage: &mut Stage, name: &str, count: usize| {
        let key = format!("log.lv.{name}");
        wait_until("the records arrive", LONG, || stage.client.redis::<usize>(&["LLEN", &key]) == count);
        stage.client.list(&key).iter().rev().map(|r| r["level"].as_u64().expect("level")).collect::<Vec<u64>>()
    };
    assert_eq!(forwarded(&mut stage, "plain", 3), [7, 8, 30]);
    assert_eq!(forwarded(&mut stage, "list", 1), [7]);
    assert_eq!(forwarded(&mut stage, "more", 1), [11]);
    assert_eq!(stage.client.redis::<usize>(&["EXISTS", "log.lv.none"]), 0);
}

#[test]
fn stored_messages_survive_a_kill_and_forwarded_ones_arrive_once() {
    let mut stage = stage("[logging.ac]\nflush_interval = 1\nbatch_size = 50\nlevels = \"3,30\"\n");
    let line = "i=0; while [ $i -lt 3000 ]; do echo 3::$i; i=$((i+1)); done; sleep 60";
    let args = json!({"cmd": "/bin/sh", "args": ["-c", line], "domain": "kill", "name": "it"});
    let id = stage.client.send("execute", args);
    let stored = |stage: &Stage| -> BTreeSet<u32> {
        let Ok(db) = Connection::open(logs(stage).join("current.db")) else { return BTreeSet::new() };
        let Ok(mut rows) = db.prepare("SELECT id FROM messages WHERE level = 3") else { return BTreeSet::new() };
        rows.query_map([], |row| row.get(0)).expect("rows").flatten().collect()
    };
    wait_until("some is stored", LONG, || stored(&stage).len() > 500);
    stage.agent.kill();
    let before = stored(&stage);
    stage.acc.kill();
    stage.agent.resume();
    assert!(before.is_subset(&stored(&stage)));
    stage.acc.resume();
    assert_eq!(stage.client.pop(&id)["state"], "ERROR");
    let again = stage.client.shell("echo 3::again");
    stage.client.pop(&again);
    let arrived = wait_for("all of it arrives", LONG, || {
        let list = stage.client.list("log.kill.it");
        let ids: BTreeSet<u32> =
            list.iter().filter(|r| r["level"] == 3).map(|r| r["id"].as_u64().expect("id") as u32).collect();
        before.is_subset(&ids).then_some(list)
    });
    let ids: Vec<u64> = arrived.iter().rev().filter_map(|r| r["id"].as_u64()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "in order, and each once");
    let last = before.last().copied().unwrap_or_default();
    let records = stage.client.records(json!({"jobid": again}));
    assert!(records[0]["id"].as_u64().expect("id") > u64::from(last), "ids go on after a kill");
}

#[test]
fn databases_rotate_and_messages_are_deleted_through_all_of_them() {
    let mut stage = stage("[logging.db]\nmax_size_mb = 1\nkeep = 50\n");
    let line = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); printf '%s %010000d\\n' $i 0; done";
    let id = stage.client.shell(line);
    assert_eq!(stage.client.pop(&id)["state"], "OK");
    let other = stage.client.shell("echo other");
    stage.client.pop(&other);
    let dir = logs(&stage);
    // A result does not wait for its records; a query does.
    stage.client.ask("get_msgs", json!({"limit": 1}));
    assert!(databases(&dir).len() >= 4, "{:?}", databases(&dir));
    let size = |name: &str| -> u64 {
        ["", "-wal"].iter().map(|end| dir.join(format!("{name}{end}")).metadata().map_or(0, |file| file.len())).sum()
    };
    let sizes: Vec<u64> = databases(&dir).iter().map(|name| size(name)).collect();
    assert!(sizes.iter().all(|size| *size <= 1 << 20), "{sizes:?}");
    let records = stage.client.records(json!({"jobid": id, "levels": "1"}));
    let numbers: Vec<&str> = records.iter().filter_map(|r| r["data"].as_str()?.split(' ').next()).collect();
    assert_eq!(numbers, (1..=400).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(stage.client.ask("del_msgs", json!({"jobid": id, "limit": 3})), json!({"deleted": 3}));
    assert_eq!(stage.client.ask("del_msgs", json!({"jobid": id, "levels": "1"})), json!({"deleted": 397}));
    assert!(sizes.iter().sum::<u64>() > 4 * databases(&dir).iter().map(|name| size(name)).sum::<u64>());
    assert_eq!(texts(&stage.client.records(json!({"jobid": other, "levels": "1"}))), [(1, "other")]);
}

#[test]
fn a_damaged_database_is_set_aside_and_the_node_goes_on() {
    let mut stage = stage("");
    let id = stage.client.shell("echo before");
    stage.client.pop(&id);
    stage.agent.stop();
    std::fs::write(logs(&stage).join("current.db"), "rubbish ".repeat(1000)).expect("write");
    stage.agent.resume();
    let id = stage.client.shell("echo after");
    assert_eq!(stage.client.pop(&id)["state"], "OK");
    assert_eq!(texts(&stage.client.records(json!({"levels": "1"}))), [(1, "after")]);
    assert!(databases(&logs(&stage)).iter().any(|name| name.starts_with("damaged-")));
    assert!(stage.agent.output().contains("damaged"), "{}", stage.agent.output());
}

#[test]
fn while_nothing_can_be_stored_the_writer_waits_and_memory_does_not_grow() {
    let mut stage = stage("");
    let id = stage.client.shell("echo first");
    stage.client.pop(&id);
    // Another program holds the lock, as a slow disk would.
    let lock = Connection::open(logs(&stage).join("current.db")).expect("the database");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let done = stage.agent.scratch().join("done");
    let line = format!("yes 0123456789012345678901234567890123456789 | head -n 400000; echo x > {}", done.display());
    let id = stage.client.shell(&line);
    stage.client.wait_running(&id);
    let rss = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", stage.agent.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
    };
    let mut most = 0;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        most = most.max(rss());
    }
    assert!(!done.exists(), "the writer has to wait");
    assert!(most < 40_000, "{most} KiB");
    lock.execute_batch("ROLLBACK").expect("the end of the lock");
    assert_eq!(stage.client.pop(&id)["state"], "OK");
    let db = Connection::open(logs(&stage).join("current.db")).expect("the database");
    wait_until("all lines are stored", LONG, || {
        let count =
            db.query_row("SELECT count(*) FROM messages WHERE jobid = ?1 AND level = 1", [&id], |row| row.get(0));
        count == Ok(400_000)
    });
}

#[test]
fn a_bad_query_says_what_is_wrong_and_deletes_nothing() {
    let mut stage = stage("");
    let id = stage.client.shell("echo kept");
    stage.client.pop(&id);
    for (data, reason) in [("{", "not JSON"), (r#"{"joib": "x"}"#, "joib"), (r#"{"levels": "x"}"#, "levels")] {
        let id = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": "del_msgs", "data": data}));
        let result = stage.client.pop(&id);
        assert_eq!(result["state"], "ERROR");
        assert!(result["data"].as_str().is_some_and(|text| text.contains(reason)), "{result}");
    }
    assert_eq!(stage.client.records(json!({"jobid": id, "levels": "1"})).len(), 1);
}

#[test]
fn a_node_that_lost_its_upload_queue_and_its_clock_loses_no_record() {
    let mut stage = stage("[logging.ac]\nflush_interval = 1\n[stats]\ninterval = 1\n");
    stage.client.wait_seen("1:10");
    stage.agent.stop();
    // As if the clock had been ahead by years when the last batches went.
    let ahead = (4_000_000_000_000u64).to_string();
    stage.client.redis::<()>(&["SET", "jsacc:{1:10}:log", &ahead]);
    for list in ["log.lost.it", "log.unknown.unknown", "jsacc:stats_queue"] {
        stage.client.redis::<()>(&["HSET", &format!("jsacc:seen:{{{list}}}"), "1:10", &ahead]);
    }
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(stage.agent.data_dir().join(format!("outbox.db{end}")));
    }
    let batches = stage.client.redis::<usize>(&["LLEN", "jsacc:stats_queue"]);
    stage.agent.resume();
    let line = "for n in 1 2 3; do echo 3::l$n; echo 10::hits:1\\|c; done";
    let args = json!({"cmd": "/bin/sh", "args": ["-c", line], "domain": "lost", "name": "it"});
    assert_eq!(stage.client.run("execute", args)["state"], "OK");
    wait_until("the records arrive", LONG, || stage.client.redis::<usize>(&["LLEN", "log.lost.it"]) >= 4);
    wait_until("stats arrive", LONG, || stage.client.redis::<usize>(&["LLEN", "jsacc:stats_queue"]) > batches + 1);
    let args = json!({"cmd": "/bin/sh", "args": ["-c", "echo 3::more"], "domain": "lost", "name": "it"});
    stage.client.run("execute", args);
    wait_until("they go on", LONG, || stage.client.redis::<usize>(&["LLEN", "log.lost.it"]) >= 6);
    let list = stage.client.list("log.lost.it");
    let found: Vec<&str> = list.iter().rev().filter(|r| r["level"] == 3).filter_map(|r| r["data"].as_str()).collect();
    assert_eq!(found, ["l1", "l2", "l3", "more"], "each once, in order");
}

#[test]
fn actions_on_a_node_are_records_and_queries_are_not() {
    let mut stage = stage("");
    let id = stage.client.shell("sleep 600");
    wait_until("it runs", LONG, || {
        stage.client.ask("get_processes_stats", json!({})).as_array().is_some_and(|list| list.len() == 1)
    });
    stage.client.ask("ping", json!({}));
    stage.client.ask("signal", json!({"id": id, "signal": "CONT"}));
    stage.client.ask("kill", json!({"id": id}));
    stage.client.pop(&id);
    let ends: Vec<String> = stage
        .client
        .records(json!({"levels": "30"}))
        .iter()
        .map(|record| {
            let result: Value = serde_json::from_str(record["data"].as_str().expect("data")).expect("a result");
            assert_eq!(result["id"], record["jobid"]);
            format!("{} {}", result["cmd"].as_str().unwrap_or_default(), result["state"].as_str().unwrap_or_default())
        })
        .collect();
    let mut sorted = ends.clone();
    sorted.sort();
    assert_eq!(sorted, ["execute KILLED", "kill OK", "signal OK"], "{ends:?}");
}
