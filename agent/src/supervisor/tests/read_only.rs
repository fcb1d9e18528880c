//! Commands that only look: nothing of them is stored, unless their results are not taken.

use super::*;
use crossbeam_channel::RecvTimeoutError;

const CLOSED: Result<(), RecvTimeoutError> = Err(RecvTimeoutError::Disconnected);

fn rows(life: &Life) -> i64 {
    let file = life.config.main.data_dir.join(crate::storage::job_store::FILE);
    let db = rusqlite::Connection::open(file).unwrap();
    db.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).unwrap()
}

fn all() -> Vec<Value> {
    let cmds = ["ping", "get_mem_info", "get_process_stats", "get_processes_stats", "get_schedules"];
    cmds.iter().map(|cmd| json!({"id": cmd, "cmd": cmd, "data": {"id": "x"}})).collect()
}

#[test]
fn read_only_commands_are_answered_and_leave_no_row() {
    let node = Node::new();
    let life = node.live();
    let change =
        || std::fs::metadata(node.path("data/state.db-wal")).map(|wal| (wal.len(), wal.modified().unwrap())).ok();
    let before = change();
    // Delivered again they are answered again.
    for round in 0..2 {
        let (stored, taken) = life.submit(json!(all()));
        stored.recv_timeout(LONG).unwrap();
        assert_eq!(taken.try_recv(), Err(crossbeam_channel::TryRecvError::Empty), "{round}");
        for command in all() {
            let id = command["id"].as_str().unwrap();
            assert_eq!(life.result(id).id, id);
            assert!(!life.job_store.knows(id).unwrap());
        }
        assert_eq!(taken.recv_timeout(LONG), CLOSED);
    }
    assert_eq!((rows(&life), life.duplicates()), (0, 0));
    assert_eq!(change(), before, "nothing was written");
}

#[test]
fn batch_with_a_process_is_stored_but_for_what_only_looks() {
    let node = Node::new();
    let life = node.live();
    let execute = json!({"id": "x", "cmd": "execute", "args": {"cmd": "true"}});
    let (stored, taken) = life.submit(json!([{"id": "p", "cmd": "ping"}, execute]));
    stored.recv_timeout(LONG).unwrap();
    assert_eq!((life.result("p").state, life.result("x").state), (State::Ok, State::Ok));
    assert_eq!(taken.recv_timeout(LONG), CLOSED);
    assert_eq!((life.job_store.knows("p").unwrap(), life.job_store.knows("x").unwrap()), (false, true));
}

#[test]
fn result_that_is_not_taken_is_stored() {
    let node = Node::new();
    let life = node.live();
    let (stored, taken) = life.submit(json!([{"id": "p", "cmd": "ping"}, {"id": "m", "cmd": "get_mem_info"}]));
    stored.recv_timeout(LONG).unwrap();
    until("both results", || (life.job_store.unsent("main", 10, usize::MAX).unwrap().len() == 2).then_some(()));
    life.remote().store_read_only("main").recv_timeout(LONG).unwrap();
    assert_eq!(taken.recv_timeout(LONG), CLOSED);
    let notices: Vec<Notice> = life.notices.try_iter().collect();
    assert!(notices.ends_with(&[Notice::Result { controller: "main".into() }]), "{notices:?}");
    drop(life);
    let life = node.live();
    let unsent = life.job_store.unsent("main", 10, usize::MAX).unwrap();
    assert_eq!(unsent.len(), 2);
    assert!(unsent.iter().all(|result| result.key > 0));
    // They are known now, as any other.
    let (stored, _) = life.submit(json!({"id": "m", "cmd": "get_mem_info"}));
    stored.recv_timeout(LONG).unwrap();
    life.remote().store_read_only("main").recv_timeout(LONG).unwrap();
    assert_eq!(life.job_store.unsent("main", 10, usize::MAX).unwrap(), unsent);
}

#[test]
fn commands_that_take_long_are_stored_before_they_are_answered() {
    let node = Node::new();
    let life = node.live();
    // More than can be answered until they are to be stored.
    let ids: Vec<String> = (0..300).map(|n| format!("m{n}")).collect();
    let commands: Vec<Value> = ids.iter().map(|id| json!({"id": id, "cmd": "get_mem_info"})).collect();
    let (stored, taken) = life.submit(json!(commands));
    life.remote().store_read_only("main").recv_timeout(LONG).unwrap();
    stored.recv_timeout(LONG).unwrap();
    // Answered by now or not, they are on the disk.
    assert!(ids.iter().all(|id| life.job_store.knows(id).unwrap()));
    assert_eq!(taken.recv_timeout(LONG), CLOSED);
    for id in &ids {
        assert_eq!(life.result(id).state, State::Ok);
    }
    until("their end", || life.job_store.live().unwrap().is_empty().then_some(()));
}

#[test]
fn same_id_of_another_controller_is_not_stored_as_its_own() {
    let node = Node::new();
    let life = node.live();
    let ping = || vec![Command::from_value(json!({"id": "p", "gid": 1, "nid": 10, "cmd": "ping"})).unwrap()];
    for controller in ["main", "other"] {
        life.remote().submit(controller, ping()).0.recv_timeout(LONG).unwrap();
    }
    for controller in ["main", "other"] {
        life.remote().store_read_only(controller).recv_timeout(LONG).unwrap();
    }
    // The commit goes on.
    life.shell("a", "true", json!({}));
    assert_eq!((life.result("p").state, life.result("a").state), (State::Ok, State::Ok));
    assert!(life.job_store.unsent("other", 10, usize::MAX).unwrap().is_empty());
}

#[test]
fn command_that_a_stop_interrupts_is_not_answered() {
    let node = Node::new();
    let life = node.live();
    let commands: Vec<Value> = (0..300).map(|n| json!({"id": format!("m{n}"), "cmd": "get_mem_info"})).collect();
    let (_, taken) = life.submit(json!(commands));
    let results = life.stop();
    assert!(results.iter().all(|result| result.state == State::Ok), "the next life answers the others");
    drop(taken);
}

#[test]
fn result_that_is_too_large_for_memory_is_stored() {
    let node = Node::new();
    let life = node.live();
    let (open, _taken) = crossbeam_channel::bounded(0);
    life.job_store.memory().expect("big", ["huge"].into_iter(), &open);
    let huge =
        json!({"id": "huge", "gid": 1, "nid": 10, "cmd": "ping", "state": "OK", "data": "x".repeat((4 << 20) - 300)});
    life.job_store.memory().answer("big", "huge", huge.to_string()).unwrap();
    let (stored, taken) = life.submit(json!({"id": "m", "cmd": "get_mem_info"}));
    stored.recv_timeout(LONG).unwrap();
    assert_eq!(taken.recv_timeout(LONG), CLOSED, "it is stored, so it may be acknowledged");
    assert!(life.job_store.knows("m").unwrap());
    assert_eq!(life.result("m").state, State::Ok);
}
