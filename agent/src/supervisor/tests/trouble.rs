//! A job store that takes nothing, or gives back what nobody can read.

use super::*;

#[test]
fn a_full_disk_starts_nothing_until_there_is_room() {
    let node = Node::new();
    let life = node.live();
    // Another writer that keeps the table for itself is as good as a disk that takes nothing.
    let rival = rusqlite::Connection::open(life.config.main.data_dir.join(crate::storage::job_store::FILE)).unwrap();
    life.shell("before", "true", json!({}));
    life.result("before");
    rival.execute_batch("CREATE TRIGGER full BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'full'); END").unwrap();
    let script = format!("echo x >> {}", node.path("out").display());
    let execute = |id: &str| json!({"id": id, "cmd": "execute", "args": {"cmd": "sh", "args": ["-c", script]}});
    let (stored, _) = life.submit(execute("a"));
    assert!(life.event("critical")["message"].as_str().unwrap().contains("takes nothing"));
    // Meanwhile nothing else is accepted either, but what only looks needs no disk.
    assert!(life.submit(execute("b")).0.recv_timeout(LONG).is_err());
    assert!(life.submit(json!([execute("c"), {"id": "d", "cmd": "ping"}])).0.recv_timeout(LONG).is_err());
    assert_eq!(life.ask("e", "ping", json!("")).state, State::Ok);
    assert_eq!(life.ask("f", "get_disk_info", json!("")).state, State::Ok);
    assert_eq!(node.read("out"), "");
    rival.execute_batch("DROP TRIGGER full").unwrap();
    stored.recv_timeout(LONG).unwrap();
    assert_eq!(life.result("a").state, State::Ok);
    assert_eq!(node.read("out"), "x\n");
}

#[test]
fn a_command_that_cannot_be_read_any_more_is_answered() {
    let node = Node::new();
    let data = node.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let job_store = JobStore::open(&data).unwrap();
    let accept =
        |id: &str, command: String| JobUpdate::Accept { id: id.into(), controller: "main".into(), command, now: 1 };
    job_store.commit(&[accept("damaged", "{".into())]).unwrap();
    drop(job_store);
    let life = node.live_with(|config| config.main.max_jobs = 1);
    let result = life.result("damaged");
    assert_eq!((result.state, result.gid, result.nid), (State::Error, 1, 10));
    assert!(result.data.contains("cannot be read"), "{}", result.data);

    // One that waits for its turn is read from the job store when that has come.
    life.shell("first", "while [ ! -e $F ]; do sleep 0.05; done", json!({"env": {"F": node.path("go")}}));
    life.shell("second", "echo 20::1", json!({}));
    let other = rusqlite::Connection::open(data.join(crate::storage::job_store::FILE)).unwrap();
    other.busy_timeout(LONG).unwrap();
    assert_eq!(other.execute("UPDATE jobs SET command = '{' WHERE id = 'second'", []).unwrap(), 1);
    std::fs::write(node.path("go"), "").unwrap();
    assert_eq!(life.result("first").state, State::Ok);
    let result = life.result("second");
    assert_eq!(result.state, State::Error);
    assert!(result.data.contains("cannot be read"), "{}", result.data);
}

#[test]
fn results_of_jobs_outlive_a_job_store_that_is_damaged_while_they_run() {
    let node = Node::new();
    let life = node.live_with(|config| config.main.max_jobs = 1);
    let path = life.config.main.data_dir.join(crate::storage::job_store::FILE);
    life.shell("runs", "while [ ! -e $F ]; do sleep 0.05; done; echo 20::1", json!({"env": {"F": node.path("go")}}));
    life.shell("waits", "echo 20::2", json!({}));
    life.wait_running("runs");
    let before = life.job_store.generation();
    // Nothing of it can be read any more.
    let rival = rusqlite::Connection::open(&path).unwrap();
    rival.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(rival);
    let len = std::fs::metadata(&path).unwrap().len() as usize;
    std::fs::write(&path, "rubbish ".repeat(len / 8)).unwrap();
    life.job_store.rest();
    std::fs::write(node.path("go"), "").unwrap();
    let result = life.result("runs");
    assert_eq!((result.state, result.data.as_str()), (State::Ok, "1"));
    assert!(life.job_store.generation() > before, "the damage was found");
    let result = life.result("waits");
    assert_eq!(result.state, State::Error);
    assert!(result.data.contains("cannot be read"), "{}", result.data);
    life.shell("next", "echo 20::3", json!({}));
    assert_eq!(life.result("next").data, "3");
}
