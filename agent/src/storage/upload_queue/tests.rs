//! The upload queue on a real file.

use super::retention::MAX_LOG_BYTES;
use super::storage::MAX_WAITING;
use super::*;
use crate::config::Controller;
use std::path::Path;
use tempfile::TempDir;

fn config(dir: &Path, controllers: &[&str]) -> Config {
    let mut config = Config::default();
    config.main.data_dir = dir.to_owned();
    for name in controllers {
        config.controllers.insert((*name).to_owned(), Controller::default());
    }
    config.logging.ac.batch_size = 3;
    config
}

fn records(texts: &[&str]) -> Records {
    let mut records = Records::default();
    for text in texts {
        records.add(|json| json.extend_from_slice(text.as_bytes()));
    }
    records
}

fn body(batch: &Batch) -> Value {
    serde_json::from_slice(&batch.body).unwrap()
}

const MARK: IdCheckpoint = IdCheckpoint { last: 7, next: 8 };

#[test]
fn records_go_in_batches_by_size_and_time() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    let (wake, woken) = crossbeam_channel::bounded(1);
    upload_queue.waker("a", wake);
    upload_queue.push_log(&records(&["1", "2"]), MARK).unwrap();
    assert_eq!(upload_queue.next("a", Kind::Log), None);
    assert!(upload_queue.log_due().is_some() && woken.try_recv().is_err());
    upload_queue.push_log(&records(&["3", "4", "5", "6", "7"]), MARK).unwrap();
    assert!(woken.try_recv().is_ok());
    let first = upload_queue.next("a", Kind::Log).unwrap();
    assert_eq!(body(&first)["records"], json!([1, 2, 3]));
    assert_eq!(body(&first)["batch"], json!(first.number));
    assert_eq!(upload_queue.next("a", Kind::Log), Some(first.clone()));
    upload_queue.taken("a", Kind::Log, first.number);
    let second = upload_queue.next("a", Kind::Log).unwrap();
    assert!(second.number > first.number);
    assert_eq!(body(&second)["records"], json!([4, 5, 6]));
    upload_queue.taken("a", Kind::Log, second.number);
    assert_eq!(upload_queue.next("a", Kind::Log), None);
    upload_queue.close_log();
    assert_eq!(body(&upload_queue.next("a", Kind::Log).unwrap())["records"], json!([7]));
    assert_eq!(upload_queue.mark(), Some(MARK));
}

#[test]
fn a_batch_stays_the_same_over_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a"]);
    let upload_queue = UploadQueue::open(&config).unwrap();
    upload_queue.push_log(&records(&["1"]), MARK).unwrap();
    upload_queue.push_stats(5, &[("k".into(), 1.5)]);
    drop(upload_queue);
    let upload_queue = UploadQueue::open(&config).unwrap();
    upload_queue.push_log(&records(&["2"]), MARK).unwrap();
    upload_queue.close_log();
    let batch = upload_queue.next("a", Kind::Log).unwrap();
    assert_eq!(body(&batch)["records"], json!([1]));
    upload_queue.taken("a", Kind::Log, batch.number);
    let stats = upload_queue.next("a", Kind::Stats).unwrap();
    assert_eq!(body(&stats), json!({"batch": stats.number, "timestamp": 5, "series": [["k", 1.5]]}));
    drop(upload_queue);
    let upload_queue = UploadQueue::open(&config).unwrap();
    let next = upload_queue.next("a", Kind::Log).unwrap();
    assert!(next.number > batch.number && body(&next)["records"] == json!([2]));
}

#[test]
fn every_controller_gets_everything_once() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a", "b"])).unwrap();
    upload_queue.push_log(&records(&["1", "2", "3"]), MARK).unwrap();
    upload_queue.push_event(None, "startup", json!({}));
    upload_queue.push_event(Some("b"), "duplicate", json!({"id": "x"}));
    let batch = upload_queue.next("a", Kind::Log).unwrap();
    upload_queue.taken("a", Kind::Log, batch.number);
    assert_eq!(upload_queue.next("a", Kind::Log), None);
    assert_eq!(upload_queue.next("b", Kind::Log), Some(batch.clone()));
    upload_queue.refused("b", Kind::Log, batch.number);
    assert_eq!(upload_queue.next("b", Kind::Log), None);
    assert_eq!(upload_queue.next("nobody", Kind::Log), None);
    let mut names = Vec::new();
    for controller in ["a", "b"] {
        while let Some(event) = upload_queue.next(controller, Kind::Event) {
            names.push(format!("{controller} {}", body(&event)["name"].as_str().unwrap()));
            upload_queue.taken(controller, Kind::Event, event.number);
        }
    }
    assert_eq!(names, ["a startup", "a dropped", "b startup", "b duplicate", "b dropped"]);
    assert_eq!(lock(&upload_queue.inner).bytes, [0, 0]);
}

#[test]
fn items_over_a_bound_are_dropped_oldest_first_and_counted() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    for _ in 0..25 {
        upload_queue.push_log(&records(&[&large, &large, &large]), MARK).unwrap();
    }
    assert!(lock(&upload_queue.inner).bytes[0] <= MAX_LOG_BYTES);
    for n in 0..1200 {
        upload_queue.push_event(Some("a"), "critical", json!(n));
    }
    let event = upload_queue.next("a", Kind::Event).unwrap();
    assert_eq!(body(&event)["data"], json!(200));
    let batch = upload_queue.next("a", Kind::Log).unwrap();
    upload_queue.taken("a", Kind::Log, batch.number);
    let mut last = None;
    while let Some(event) = upload_queue.next("a", Kind::Event) {
        upload_queue.taken("a", Kind::Event, event.number);
        if body(&event)["name"] == "dropped" && body(&event)["data"]["kind"] == "log" {
            last = body(&event)["data"]["count"].as_u64();
        }
    }
    assert!(last.is_some_and(|count| count >= 11), "{last:?}");
}

#[test]
fn of_stats_the_newest_hour_is_kept_and_the_rest_is_counted() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    let push = |timestamp| upload_queue.push_stats(timestamp, &[("1.10.d.n.k".into(), 1.0)]);
    push(1);
    push(2);
    lock(&upload_queue.inner).db.execute("UPDATE items SET created = created - 3600001", []).unwrap();
    push(3);
    push(4);
    let mut kept = Vec::new();
    while let Some(batch) = upload_queue.next("a", Kind::Stats) {
        kept.push(body(&batch)["timestamp"].as_i64().unwrap());
        upload_queue.taken("a", Kind::Stats, batch.number);
    }
    assert_eq!(kept, [3, 4]);
    let said = body(&upload_queue.next("a", Kind::Event).unwrap());
    assert_eq!((&said["name"], &said["data"]), (&json!("dropped"), &json!({"kind": "stats", "count": 2})));
}

#[test]
fn a_damaged_file_is_set_aside() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a"]);
    std::fs::write(dir.path().join(FILE), "no database at all, but long enough to be looked at as one").unwrap();
    let upload_queue = UploadQueue::open(&config).unwrap();
    upload_queue.push_event(None, "startup", json!({}));
    assert!(upload_queue.next("a", Kind::Event).is_some());
    assert!(dir.path().join("outbox.db.damaged").exists());
}

#[test]
fn nobody_to_send_to_stores_nothing() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &[])).unwrap();
    assert!(!upload_queue.wanted(Kind::Log) && !upload_queue.wanted(Kind::Stats) && !upload_queue.wanted(Kind::Event));
    upload_queue.push_stats(1, &[("k".into(), 1.0)]);
    upload_queue.push_event(None, "startup", json!({}));
    assert_eq!(lock(&upload_queue.inner).bytes, [0, 0]);
}

/// The numbers and contents of all batches of records that wait for `controller`, which takes them.
fn drain(upload_queue: &UploadQueue, controller: &str) -> Vec<(u64, Value)> {
    std::iter::from_fn(|| {
        let batch = upload_queue.next(controller, Kind::Log)?;
        upload_queue.taken(controller, Kind::Log, batch.number);
        Some((batch.number, body(&batch)["records"].clone()))
    })
    .collect()
}

#[test]
fn numbers_jump_beyond_what_a_controller_has() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a", "b"]);
    let upload_queue = UploadQueue::open(&config).unwrap();
    upload_queue.push_log(&records(&["1", "2", "3", "4", "5", "6", "7"]), MARK).unwrap();
    // The other one has taken one, and has the next under way.
    let to_b = upload_queue.next("b", Kind::Log).unwrap();
    upload_queue.taken("b", Kind::Log, to_b.number);
    let under_way = upload_queue.next("b", Kind::Log).unwrap();
    let first = upload_queue.next("a", Kind::Log).unwrap();
    let last = first.number + 1_000_000;
    assert!(upload_queue.jump("a", Kind::Log, first.number, last));
    upload_queue.taken("b", Kind::Log, under_way.number);
    let again = upload_queue.next("a", Kind::Log).unwrap();
    assert!(again.number > last);
    assert_eq!(body(&again)["records"], json!([1, 2, 3]));
    // Once is enough, whatever it says.
    assert!(!upload_queue.jump("a", Kind::Log, again.number, again.number + 1_000_000));
    upload_queue.push_log(&records(&["8"]), MARK).unwrap();
    upload_queue.close_log();
    let taken = drain(&upload_queue, "a");
    let lists: Vec<&Value> = taken.iter().map(|(_, list)| list).collect();
    assert_eq!(lists, [&json!([1, 2, 3]), &json!([4, 5, 6]), &json!([7, 8])]);
    assert!(taken.windows(2).all(|pair| pair[0].0 < pair[1].0), "{taken:?}");
    assert_eq!(drain(&upload_queue, "b").iter().map(|(_, list)| list.clone()).collect::<Vec<_>>(), [json!([7, 8])]);
    // Numbers go on from there after a restart, and an old one is an old batch now.
    drop(upload_queue);
    let upload_queue = UploadQueue::open(&config).unwrap();
    for text in ["9", "10"] {
        upload_queue.push_log(&records(&[text]), MARK).unwrap();
        upload_queue.close_log();
    }
    let next = upload_queue.next("a", Kind::Log).unwrap();
    assert!(next.number > last && !upload_queue.jump("a", Kind::Log, next.number, next.number + 1));
}

#[test]
fn numbers_jump_also_where_the_first_batch_was_refused() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    for text in ["1", "2", "3"] {
        upload_queue.push_log(&records(&[text]), MARK).unwrap();
        upload_queue.close_log();
    }
    let first = upload_queue.next("a", Kind::Log).unwrap();
    let key = upload_queue.defer("a", Kind::Log, first.number).unwrap();
    let second = upload_queue.next("a", Kind::Log).unwrap();
    // A number that was given here means an old batch; one that never was, that the file was lost.
    assert!(!upload_queue.jump("a", Kind::Log, second.number, second.number + 1));
    let last = second.number + 1_000_000;
    assert!(upload_queue.jump("a", Kind::Log, second.number, last));
    let taken = drain(&upload_queue, "a");
    assert_eq!(taken.iter().map(|(_, list)| list.clone()).collect::<Vec<_>>(), [json!([2]), json!([3])]);
    let deferred = upload_queue.read_deferred("a", Kind::Log, key).unwrap().unwrap();
    assert!(taken.iter().all(|(number, _)| (last + 1..deferred.number).contains(number)), "{taken:?}");
}

#[test]
fn dropped_items_are_counted_over_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a"]);
    let upload_queue = UploadQueue::open(&config).unwrap();
    upload_queue.push_log(&records(&["1", "2"]), MARK).unwrap();
    upload_queue.close_log();
    let batch = upload_queue.next("a", Kind::Log).unwrap();
    lock(&upload_queue.inner).dropped(Kind::Log, 5);
    assert_eq!(upload_queue.take_unreported(), Dropped { records: 5, flushes: 0 });
    assert_eq!(upload_queue.take_unreported(), Dropped::default());
    drop(upload_queue);
    let upload_queue = UploadQueue::open(&config).unwrap();
    // A refused batch counts by its records.
    upload_queue.refused("a", Kind::Log, batch.number);
    let said = body(&upload_queue.next("a", Kind::Event).unwrap());
    assert_eq!(said["data"], json!({"kind": "log", "count": 7}));
    drop(upload_queue);
    assert_eq!(lock(&UploadQueue::open(&config).unwrap().inner).dropped, [0; 3]);
}

#[test]
fn a_clock_that_is_set_makes_no_stats_old() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a"]);
    let push =
        |upload_queue: &UploadQueue, timestamp| upload_queue.push_stats(timestamp, &[("1.10.d.n.k".into(), 1.0)]);
    let upload_queue = UploadQueue::open(&config).unwrap();
    push(&upload_queue, 1);
    drop(upload_queue);
    let upload_queue = UploadQueue::open(&config).unwrap();
    push(&upload_queue, 2);
    // All of it was stored, and the clock read, before the clock was set two hours ahead.
    {
        let mut inner = lock(&upload_queue.inner);
        inner.clock.1 -= 7_200_000;
        inner.db.execute("UPDATE items SET created = created - 7200000", []).unwrap();
    }
    push(&upload_queue, 3);
    let kept: Vec<i64> = std::iter::from_fn(|| {
        let batch = upload_queue.next("a", Kind::Stats)?;
        upload_queue.taken("a", Kind::Stats, batch.number);
        body(&batch)["timestamp"].as_i64()
    })
    .collect();
    // The first is of an earlier start, which may be any time ago.
    assert_eq!(kept, [2, 3]);
}

/// Writes over all pages but the first, and has the next look at the file read it again.
fn damage_file(path: &Path, upload_queue: &UploadQueue) {
    upload_queue.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    upload_queue.rest();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[4096..].fill(0xa5);
    let counter = u32::from_be_bytes(bytes[24..28].try_into().unwrap()) + 1;
    bytes[24..28].copy_from_slice(&counter.to_be_bytes());
    std::fs::write(path, &bytes).unwrap();
}

fn event_names(upload_queue: &UploadQueue, controller: &str) -> Vec<String> {
    std::iter::from_fn(|| {
        let event = upload_queue.next(controller, Kind::Event)?;
        upload_queue.taken(controller, Kind::Event, event.number);
        Some(body(&event)["name"].as_str().unwrap().to_owned())
    })
    .collect()
}

#[test]
fn damage_is_found_and_set_aside_while_it_runs() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    let large = format!("\"{}\"", "x".repeat(100_000));
    upload_queue.push_log(&records(&[&large, &large, &large]), MARK).unwrap();
    let before = upload_queue.next("a", Kind::Log).unwrap().number;
    damage_file(&dir.path().join(FILE), &upload_queue);
    upload_queue.push_log(&records(&["1", "2", "3"]), MARK).unwrap();
    let after = upload_queue.next("a", Kind::Log).unwrap();
    assert!(after.number > before && body(&after)["records"] == json!([1, 2, 3]));
    assert_eq!(event_names(&upload_queue, "a"), ["damaged"]);
    assert!(dir.path().join("outbox.db.damaged").exists());
}

#[test]
fn file_that_only_seemed_damaged_is_kept() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    upload_queue.push_log(&records(&["1", "2", "3"]), MARK).unwrap();
    // A connection that has lost its tables.
    lock(&upload_queue.inner).db = Connection::open_in_memory().unwrap();
    let batch = upload_queue.next("a", Kind::Log).unwrap();
    assert_eq!(body(&batch)["records"], json!([1, 2, 3]));
    assert!(!dir.path().join("outbox.db.damaged").exists());
}

#[test]
fn events_wait_until_the_file_can_be_used_again() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    upload_queue.execute("PRAGMA query_only = ON");
    for n in 0..MAX_WAITING + 5 {
        upload_queue.push_event(None, &format!("e{n}"), json!({}));
    }
    assert!(upload_queue.push_log(&records(&["1"]), MARK).is_err(), "the caller gets the error");
    assert_eq!(upload_queue.next("a", Kind::Event), None);
    upload_queue.execute("PRAGMA query_only = OFF");
    upload_queue.push_event(None, "last", json!({}));
    let names = event_names(&upload_queue, "a");
    assert!(names.iter().any(|name| *name == "e5") && !names.iter().any(|name| *name == "e4"), "{names:?}");
    assert!(names.iter().any(|name| name == "last") && names.iter().any(|name| name == "dropped"), "{names:?}");
}

#[test]
fn file_that_cannot_be_opened_for_now_is_used_once_it_can() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    let (path, away) = (dir.path().join(FILE), dir.path().join("away"));
    upload_queue.push_log(&records(&["1", "2", "3"]), MARK).unwrap();
    lock(&upload_queue.inner).db = Connection::open_in_memory().unwrap();
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(upload_queue.next("a", Kind::Log), None);
    upload_queue.push_event(None, "kept", json!({}));
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    let (wake, woken) = crossbeam_channel::bounded(1);
    upload_queue.waker("a", wake);
    let begin = Instant::now();
    let batch = loop {
        if let Some(batch) = upload_queue.next("a", Kind::Log) {
            break batch;
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(body(&batch)["records"], json!([1, 2, 3]));
    assert!(woken.try_recv().is_ok(), "whatever waited can go");
    assert_eq!(event_names(&upload_queue, "a"), ["kept"]);
    assert!(!dir.path().join("outbox.db.damaged").exists());
}

#[test]
fn bad_piece_holds_up_no_other() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    for text in ["1", "2", "3", "4"] {
        upload_queue.push_log(&records(&[text]), MARK).unwrap();
    }
    upload_queue.close_log();
    upload_queue.execute("UPDATE items SET body = 5 WHERE seq = 2");
    let lists: Vec<Value> = drain(&upload_queue, "a").into_iter().map(|(_, list)| list).collect();
    assert_eq!(lists, [json!([1, 3]), json!([4])]);
}

#[test]
fn batch_that_cannot_be_deferred_is_kept() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a"])).unwrap();
    for text in ["1", "2", "3"] {
        upload_queue.push_log(&records(&[text]), MARK).unwrap();
        upload_queue.close_log();
    }
    // As on a full disk.
    upload_queue.execute("CREATE TRIGGER full BEFORE INSERT ON cursors BEGIN SELECT raise(ABORT, 'full'); END");
    for kept in [0, 1] {
        let batch = upload_queue.next("a", Kind::Log).unwrap();
        assert!(upload_queue.defer("a", Kind::Log, batch.number).is_err());
        assert_eq!(upload_queue.next("a", Kind::Log), Some(batch.clone()), "after {kept} others");
        upload_queue.execute("DROP TRIGGER full");
        upload_queue.taken("a", Kind::Log, batch.number);
        upload_queue.execute("CREATE TRIGGER full BEFORE INSERT ON cursors BEGIN SELECT raise(ABORT, 'full'); END");
    }
    upload_queue.execute("DROP TRIGGER full");
    let batch = upload_queue.next("a", Kind::Log).unwrap();
    let key = upload_queue.defer("a", Kind::Log, batch.number).unwrap();
    assert_eq!(body(&upload_queue.read_deferred("a", Kind::Log, key).unwrap().unwrap())["records"], json!([3]));
    assert_eq!(upload_queue.take_unreported(), Dropped::default());
}

#[test]
fn taken_batch_that_cannot_be_removed_is_not_sent_again() {
    let dir = TempDir::new().unwrap();
    let upload_queue = UploadQueue::open(&config(dir.path(), &["a", "b"])).unwrap();
    upload_queue.push_event(None, "one", json!({}));
    upload_queue.push_event(None, "two", json!({}));
    upload_queue.push_log(&records(&["1"]), MARK).unwrap();
    upload_queue.close_log();
    upload_queue.execute("CREATE TRIGGER full BEFORE DELETE ON items BEGIN SELECT raise(ABORT, 'full'); END");
    upload_queue.execute("CREATE TRIGGER full_too BEFORE INSERT ON cursors BEGIN SELECT raise(ABORT, 'full'); END");
    let batch = upload_queue.next("a", Kind::Log).unwrap();
    upload_queue.taken("a", Kind::Log, batch.number);
    assert_eq!(upload_queue.next("a", Kind::Log), None);
    let event = upload_queue.next("a", Kind::Event).unwrap();
    upload_queue.taken("a", Kind::Event, event.number);
    let event = upload_queue.next("a", Kind::Event).unwrap();
    assert_eq!(body(&event)["name"], "two");
    upload_queue.execute("DROP TRIGGER full");
    upload_queue.taken("a", Kind::Event, event.number);
    let left: i64 = lock(&upload_queue.inner)
        .db
        .query_row("SELECT count(*) FROM items WHERE controller = 'a'", [], |row| row.get(0))
        .unwrap();
    assert_eq!((left, event_names(&upload_queue, "b")), (0, vec!["one".to_owned(), "two".to_owned()]));
}
