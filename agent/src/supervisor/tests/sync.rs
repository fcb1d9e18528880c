//! Which results are sent before they are on the disk, and that they come there.

use super::*;

/// A life whose syncs fail: the file that they write to the disk is no longer found, which the table,
/// having it open, does not mind. So what did not wait for the disk stays behind.
fn live_without_sync(node: &Node) -> (Life, PathBuf) {
    let life = node.live();
    let wal = life.config.main.data_dir.join(format!("{}-wal", crate::storage::job_store::FILE));
    std::fs::remove_file(&wal).unwrap();
    (life, wal)
}

#[test]
fn a_result_comes_to_the_disk_with_nothing_after_it() {
    let node = Node::new();
    let life = node.live();
    life.shell("a", "true", json!({}));
    life.result("a");
    until("it to be on the disk", || (!life.job_store.is_behind()).then_some(()));
}

#[test]
fn only_what_ended_by_itself_and_for_good_is_sent_before_it_is_on_the_disk() {
    let node = Node::new();
    let (life, _) = live_without_sync(&node);
    for (id, script, more, soon) in [
        ("ends", "exit 3", json!({}), true),
        ("remembered", "true", json!({"max_time": -1}), false),
        ("late", "sleep 1000", json!({"max_time": 0.1}), true),
        ("alert", "exit 7", json!({"max_restart": 1}), false),
        ("recurs", "true", json!({"recurring_period": 1000}), false),
    ] {
        life.shell(id, script, more);
        life.result(id);
        match soon {
            true => until(&format!("{id} to be sent early"), || life.job_store.is_behind().then_some(())),
            // Its start took along what was behind, and so says nothing of those before it.
            false => assert!(!life.job_store.is_behind(), "{id}"),
        }
    }
    life.shell("again", "true", json!({}));
    life.result("again");
    until("it to be sent early", || life.job_store.is_behind().then_some(()));
    assert!(life.ask("u", "unschedule", json!({"id": "x"})).data.contains("no job 'x'"));
    assert!(!life.job_store.is_behind(), "unschedule");
    life.shell("killed", "sleep 1000", json!({}));
    life.wait_running("killed");
    life.remote().sender.send(Message::Stop).unwrap();
    assert_eq!(life.result("killed").state, State::Killed);
    assert!(!life.job_store.is_behind(), "killed");
}

#[test]
fn a_sync_that_failed_is_tried_again_by_itself() {
    let node = Node::new();
    let (life, wal) = live_without_sync(&node);
    life.shell("a", "true", json!({}));
    life.result("a");
    until("it to be behind", || life.job_store.is_behind().then_some(()));
    until("nothing to happen", || matches!(life.notices.recv_timeout(LONG), Ok(Notice::Idle)).then_some(()));
    std::fs::write(&wal, "").unwrap();
    until("it to be on the disk", || (!life.job_store.is_behind()).then_some(()));
}

#[test]
fn next_command_takes_the_result_before_it_to_the_disk() {
    let node = Node::new();
    let (life, _) = live_without_sync(&node);
    life.shell("a", "true", json!({}));
    life.result("a");
    until("it to be behind", || life.job_store.is_behind().then_some(()));
    // No sync of its own can succeed here.
    life.push(json!({"id": "u", "cmd": "unschedule", "data": {"id": "x"}}));
    assert!(!life.job_store.is_behind());
}
