//! Tests faults of the files that the uploader reads.

use super::*;

#[test]
fn job_store_that_cannot_be_read_is_told_and_holds_up_no_other_lane() {
    let stage = Stage::new(|_| ok());
    stage.results(&ids(&["a"]));
    let other = rusqlite::Connection::open(stage._dir.path().join(crate::storage::job_store::FILE)).unwrap();
    other.execute_batch("ALTER TABLE jobs RENAME COLUMN result TO away").unwrap();
    stage.upload_queue.push_stats(5, &[("k".into(), 1.5)]);
    let sender = stage.start();
    let event = stage.until_event("local_fault");
    assert_eq!(event["what"], "ledger");
    assert!(event["error"].as_str().unwrap().starts_with("the job store cannot be read: "), "{event}");
    stage.until_sent(Kind::Stats);
    other.execute_batch("ALTER TABLE jobs RENAME COLUMN away TO result").unwrap();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.events("local_fault").len(), 1);
}

#[test]
fn upload_queue_that_cannot_be_read_is_told_and_holds_up_no_results() {
    let stage = Stage::new(|_| ok());
    stage.upload_queue.push_event(None, "startup", json!({}));
    let other = rusqlite::Connection::open(stage._dir.path().join(crate::storage::upload_queue::FILE)).unwrap();
    other.execute_batch("UPDATE items SET batch = 'x'").unwrap();
    stage.results(&ids(&["a"]));
    let sender = stage.start();
    stage.until_nothing_waits();
    assert_eq!(stage.until_event("local_fault")["what"], "outbox");
    stage.results(&ids(&["b"]));
    sender.waker().try_send(()).unwrap();
    stage.until_nothing_waits();
    drop(sender);
}

#[test]
fn result_that_was_sent_and_cannot_be_marked_is_not_sent_again() {
    let stage = Stage::new(|_| ok());
    stage.results(&ids(&["a"]));
    let other = rusqlite::Connection::open(stage._dir.path().join(crate::storage::job_store::FILE)).unwrap();
    let trigger = "CREATE TRIGGER full BEFORE UPDATE ON jobs WHEN old.state = 2 BEGIN SELECT raise(ABORT, 'full'); END";
    other.execute_batch(trigger).unwrap();
    let sender = stage.start();
    assert_eq!(stage.until_event("local_fault")["what"], "sent results");
    other.execute_batch("DROP TRIGGER full").unwrap();
    // It is marked without another wake-up.
    stage.until_nothing_waits();
    stage.results(&ids(&["b"]));
    let _ = sender.waker().try_send(());
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.posted(), [vec!["a"], vec!["b"]]);
}

#[test]
fn keys_of_a_file_that_was_replaced_hold_up_no_result_of_the_new_one() {
    let stage = Stage::new(|asked| match asked.body.contains("\"bad\"") && asked.line.ends_with("/result") {
        true => page(403),
        false => ok(),
    });
    let path = stage._dir.path().join(crate::storage::job_store::FILE);
    stage.results(&ids(&["a", "bad"]));
    stage.controller.post("event", b"{}").unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    let full = "CREATE TRIGGER full BEFORE UPDATE ON jobs WHEN old.state = 2 BEGIN SELECT raise(ABORT, 'full'); END";
    other.execute_batch(full).unwrap();
    let sender = stage.start();
    // The one was sent and cannot be marked, the other is deferred.
    assert_eq!(stage.until_event("local_fault")["what"], "sent results");
    while !stage.posted().iter().any(|ids| *ids == ["bad"]) {
        thread_yield();
    }
    other.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    stage.job_store.rest();
    let mut bytes = std::fs::read(&path).unwrap();
    let first_page = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    bytes[first_page..].fill(0xa5);
    let counter = u32::from_be_bytes(bytes[24..28].try_into().unwrap()) + 1;
    bytes[24..28].copy_from_slice(&counter.to_be_bytes());
    // In place: a file that is cut off for a moment is another fault.
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    drop(other);
    while stage.job_store.generation() == 0 {
        stage.job_store.rest();
        let _ = stage.job_store.knows("a");
        thread_yield();
    }
    stage.results(&ids(&["c", "d"]));
    // A waker that is full has woken it already.
    let _ = sender.waker().try_send(());
    stage.until_nothing_waits();
    drop(sender);
    let posted = stage.posted();
    for id in ["c", "d"] {
        assert_eq!(posted.iter().flatten().filter(|sent| *sent == id).count(), 1, "{posted:?}");
    }
}
