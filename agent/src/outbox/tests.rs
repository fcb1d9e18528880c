//! The outbox on a real file.

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

const MARK: Mark = Mark { last: 7, next: 8 };

#[test]
fn records_go_in_batches_by_size_and_time() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    let (wake, woken) = crossbeam_channel::bounded(1);
    outbox.waker("a", wake);
    outbox.push_log(&records(&["1", "2"]), MARK).unwrap();
    assert_eq!(outbox.next("a", Kind::Log), None);
    assert!(outbox.log_due().is_some() && woken.try_recv().is_err());
    outbox.push_log(&records(&["3", "4", "5", "6", "7"]), MARK).unwrap();
    assert!(woken.try_recv().is_ok());
    let first = outbox.next("a", Kind::Log).unwrap();
    assert_eq!(body(&first)["records"], json!([1, 2, 3]));
    assert_eq!(body(&first)["batch"], json!(first.number));
    assert_eq!(outbox.next("a", Kind::Log), Some(first.clone()));
    outbox.taken("a", Kind::Log, first.number);
    let second = outbox.next("a", Kind::Log).unwrap();
    assert!(second.number > first.number);
    assert_eq!(body(&second)["records"], json!([4, 5, 6]));
    outbox.taken("a", Kind::Log, second.number);
    assert_eq!(outbox.next("a", Kind::Log), None);
    outbox.close_log();
    assert_eq!(body(&outbox.next("a", Kind::Log).unwrap())["records"], json!([7]));
    assert_eq!(outbox.mark(), Some(MARK));
}

#[test]
fn a_batch_stays_the_same_over_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a"]);
    let outbox = Outbox::open(&config).unwrap();
    outbox.push_log(&records(&["1"]), MARK).unwrap();
    outbox.push_stats(5, &[("k".into(), 1.5)]);
    drop(outbox);
    let outbox = Outbox::open(&config).unwrap();
    outbox.push_log(&records(&["2"]), MARK).unwrap();
    outbox.close_log();
    let batch = outbox.next("a", Kind::Log).unwrap();
    assert_eq!(body(&batch)["records"], json!([1]));
    outbox.taken("a", Kind::Log, batch.number);
    let stats = outbox.next("a", Kind::Stats).unwrap();
    assert_eq!(body(&stats), json!({"batch": stats.number, "timestamp": 5, "series": [["k", 1.5]]}));
    drop(outbox);
    let outbox = Outbox::open(&config).unwrap();
    let next = outbox.next("a", Kind::Log).unwrap();
    assert!(next.number > batch.number && body(&next)["records"] == json!([2]));
}

#[test]
fn every_controller_gets_everything_once() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a", "b"])).unwrap();
    outbox.push_log(&records(&["1", "2", "3"]), MARK).unwrap();
    outbox.push_event(None, "startup", json!({}));
    outbox.push_event(Some("b"), "duplicate", json!({"id": "x"}));
    let batch = outbox.next("a", Kind::Log).unwrap();
    outbox.taken("a", Kind::Log, batch.number);
    assert_eq!(outbox.next("a", Kind::Log), None);
    assert_eq!(outbox.next("b", Kind::Log), Some(batch.clone()));
    outbox.refused("b", Kind::Log, batch.number);
    assert_eq!(outbox.next("b", Kind::Log), None);
    assert_eq!(outbox.next("nobody", Kind::Log), None);
    let mut names = Vec::new();
    for controller in ["a", "b"] {
        while let Some(event) = outbox.next(controller, Kind::Event) {
            names.push(format!("{controller} {}", body(&event)["name"].as_str().unwrap()));
            outbox.taken(controller, Kind::Event, event.number);
        }
    }
    assert_eq!(names, ["a startup", "a dropped", "b startup", "b duplicate", "b dropped"]);
    assert_eq!(outbox.lock().bytes, [0, 0]);
}

#[test]
fn what_is_too_much_goes_oldest_first_and_is_counted() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    for _ in 0..25 {
        outbox.push_log(&records(&[&large, &large, &large]), MARK).unwrap();
    }
    assert!(outbox.lock().bytes[0] <= MAX_LOG_BYTES);
    for n in 0..1200 {
        outbox.push_event(Some("a"), "critical", json!(n));
    }
    let event = outbox.next("a", Kind::Event).unwrap();
    assert_eq!(body(&event)["data"], json!(200));
    let batch = outbox.next("a", Kind::Log).unwrap();
    outbox.taken("a", Kind::Log, batch.number);
    let mut last = None;
    while let Some(event) = outbox.next("a", Kind::Event) {
        outbox.taken("a", Kind::Event, event.number);
        if body(&event)["name"] == "dropped" && body(&event)["data"]["kind"] == "log" {
            last = body(&event)["data"]["count"].as_u64();
        }
    }
    assert!(last.is_some_and(|count| count >= 11), "{last:?}");
}

#[test]
fn of_stats_the_newest_hour_is_kept_and_the_rest_is_counted() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    let push = |timestamp| outbox.push_stats(timestamp, &[("1.10.d.n.k".into(), 1.0)]);
    push(1);
    push(2);
    outbox.lock().db.execute("UPDATE items SET created = created - 3600001", []).unwrap();
    push(3);
    push(4);
    let mut kept = Vec::new();
    while let Some(batch) = outbox.next("a", Kind::Stats) {
        kept.push(body(&batch)["timestamp"].as_i64().unwrap());
        outbox.taken("a", Kind::Stats, batch.number);
    }
    assert_eq!(kept, [3, 4]);
    let said = body(&outbox.next("a", Kind::Event).unwrap());
    assert_eq!((&said["name"], &said["data"]), (&json!("dropped"), &json!({"kind": "stats", "count": 2})));
}

#[test]
fn a_damaged_file_is_set_aside() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a"]);
    std::fs::write(dir.path().join(FILE), "no database at all, but long enough to be looked at as one").unwrap();
    let outbox = Outbox::open(&config).unwrap();
    outbox.push_event(None, "startup", json!({}));
    assert!(outbox.next("a", Kind::Event).is_some());
    assert!(dir.path().join("outbox.db.damaged").exists());
}

#[test]
fn nobody_to_send_to_stores_nothing() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &[])).unwrap();
    assert!(!outbox.wanted(Kind::Log) && !outbox.wanted(Kind::Stats) && !outbox.wanted(Kind::Event));
    outbox.push_stats(1, &[("k".into(), 1.0)]);
    outbox.push_event(None, "startup", json!({}));
    assert_eq!(outbox.lock().bytes, [0, 0]);
}

/// The numbers and contents of all batches of records that wait for `controller`, which takes them.
fn drain(outbox: &Outbox, controller: &str) -> Vec<(u64, Value)> {
    std::iter::from_fn(|| {
        let batch = outbox.next(controller, Kind::Log)?;
        outbox.taken(controller, Kind::Log, batch.number);
        Some((batch.number, body(&batch)["records"].clone()))
    })
    .collect()
}

#[test]
fn numbers_jump_beyond_what_a_controller_has() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a", "b"]);
    let outbox = Outbox::open(&config).unwrap();
    outbox.push_log(&records(&["1", "2", "3", "4", "5", "6", "7"]), MARK).unwrap();
    // The other one has taken one, and has the next under way.
    let to_b = outbox.next("b", Kind::Log).unwrap();
    outbox.taken("b", Kind::Log, to_b.number);
    let under_way = outbox.next("b", Kind::Log).unwrap();
    let first = outbox.next("a", Kind::Log).unwrap();
    let last = first.number + 1_000_000;
    assert!(outbox.jump("a", Kind::Log, first.number, last));
    outbox.taken("b", Kind::Log, under_way.number);
    let again = outbox.next("a", Kind::Log).unwrap();
    assert!(again.number > last);
    assert_eq!(body(&again)["records"], json!([1, 2, 3]));
    // Once is enough, whatever it says.
    assert!(!outbox.jump("a", Kind::Log, again.number, again.number + 1_000_000));
    outbox.push_log(&records(&["8"]), MARK).unwrap();
    outbox.close_log();
    let taken = drain(&outbox, "a");
    let lists: Vec<&Value> = taken.iter().map(|(_, list)| list).collect();
    assert_eq!(lists, [&json!([1, 2, 3]), &json!([4, 5, 6]), &json!([7, 8])]);
    assert!(taken.windows(2).all(|pair| pair[0].0 < pair[1].0), "{taken:?}");
    assert_eq!(drain(&outbox, "b").iter().map(|(_, list)| list.clone()).collect::<Vec<_>>(), [json!([7, 8])]);
    // Numbers go on from there after a restart, and an old one is an old batch now.
    drop(outbox);
    let outbox = Outbox::open(&config).unwrap();
    for text in ["9", "10"] {
        outbox.push_log(&records(&[text]), MARK).unwrap();
        outbox.close_log();
    }
    let next = outbox.next("a", Kind::Log).unwrap();
    assert!(next.number > last && !outbox.jump("a", Kind::Log, next.number, next.number + 1));
}

#[test]
fn numbers_jump_also_where_the_first_batch_was_refused() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    for text in ["1", "2", "3"] {
        outbox.push_log(&records(&[text]), MARK).unwrap();
        outbox.close_log();
    }
    let first = outbox.next("a", Kind::Log).unwrap();
    let key = outbox.set_aside("a", Kind::Log, first.number).unwrap();
    let second = outbox.next("a", Kind::Log).unwrap();
    // A number that was given here means an old batch; one that never was, that the file was lost.
    assert!(!outbox.jump("a", Kind::Log, second.number, second.number + 1));
    let last = second.number + 1_000_000;
    assert!(outbox.jump("a", Kind::Log, second.number, last));
    let taken = drain(&outbox, "a");
    assert_eq!(taken.iter().map(|(_, list)| list.clone()).collect::<Vec<_>>(), [json!([2]), json!([3])]);
    let aside = outbox.aside("a", Kind::Log, key).unwrap().unwrap();
    assert!(taken.iter().all(|(number, _)| (last + 1..aside.number).contains(number)), "{taken:?}");
}

#[test]
fn what_was_dropped_is_counted_over_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a"]);
    let outbox = Outbox::open(&config).unwrap();
    outbox.push_log(&records(&["1", "2"]), MARK).unwrap();
    outbox.close_log();
    let batch = outbox.next("a", Kind::Log).unwrap();
    outbox.lock().dropped(Kind::Log, 5);
    assert_eq!(outbox.take_unsaid(), Dropped { records: 5, flushes: 0 });
    assert_eq!(outbox.take_unsaid(), Dropped::default());
    drop(outbox);
    let outbox = Outbox::open(&config).unwrap();
    // A refused batch counts by its records.
    outbox.refused("a", Kind::Log, batch.number);
    let said = body(&outbox.next("a", Kind::Event).unwrap());
    assert_eq!(said["data"], json!({"kind": "log", "count": 7}));
    drop(outbox);
    assert_eq!(Outbox::open(&config).unwrap().lock().dropped, [0; 3]);
}

#[test]
fn a_clock_that_is_set_makes_no_stats_old() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), &["a"]);
    let push = |outbox: &Outbox, timestamp| outbox.push_stats(timestamp, &[("1.10.d.n.k".into(), 1.0)]);
    let outbox = Outbox::open(&config).unwrap();
    push(&outbox, 1);
    drop(outbox);
    let outbox = Outbox::open(&config).unwrap();
    push(&outbox, 2);
    // All of it was stored, and the clock read, before the clock was set two hours ahead.
    {
        let mut inner = outbox.lock();
        inner.clock.1 -= 7_200_000;
        inner.db.execute("UPDATE items SET created = created - 7200000", []).unwrap();
    }
    push(&outbox, 3);
    let kept: Vec<i64> = std::iter::from_fn(|| {
        let batch = outbox.next("a", Kind::Stats)?;
        outbox.taken("a", Kind::Stats, batch.number);
        body(&batch)["timestamp"].as_i64()
    })
    .collect();
    // The first is of an earlier start, which may be any time ago.
    assert_eq!(kept, [2, 3]);
}

/// Writes over all pages but the first, and has the next look at the file read it again.
fn damage_file(path: &Path, outbox: &Outbox) {
    outbox.execute("PRAGMA wal_checkpoint(TRUNCATE)");
    outbox.rest();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[4096..].fill(0xa5);
    let counter = u32::from_be_bytes(bytes[24..28].try_into().unwrap()) + 1;
    bytes[24..28].copy_from_slice(&counter.to_be_bytes());
    std::fs::write(path, &bytes).unwrap();
}

fn event_names(outbox: &Outbox, controller: &str) -> Vec<String> {
    std::iter::from_fn(|| {
        let event = outbox.next(controller, Kind::Event)?;
        outbox.taken(controller, Kind::Event, event.number);
        Some(body(&event)["name"].as_str().unwrap().to_owned())
    })
    .collect()
}

#[test]
fn damage_is_found_and_set_aside_while_it_runs() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    let large = format!("\"{}\"", "x".repeat(100_000));
    outbox.push_log(&records(&[&large, &large, &large]), MARK).unwrap();
    let before = outbox.next("a", Kind::Log).unwrap().number;
    damage_file(&dir.path().join(FILE), &outbox);
    outbox.push_log(&records(&["1", "2", "3"]), MARK).unwrap();
    let after = outbox.next("a", Kind::Log).unwrap();
    assert!(after.number > before && body(&after)["records"] == json!([1, 2, 3]));
    assert_eq!(event_names(&outbox, "a"), ["damaged"]);
    assert!(dir.path().join("outbox.db.damaged").exists());
}

#[test]
fn file_that_only_seemed_damaged_is_kept() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    outbox.push_log(&records(&["1", "2", "3"]), MARK).unwrap();
    // A connection that has lost its tables.
    outbox.lock().db = Connection::open_in_memory().unwrap();
    let batch = outbox.next("a", Kind::Log).unwrap();
    assert_eq!(body(&batch)["records"], json!([1, 2, 3]));
    assert!(!dir.path().join("outbox.db.damaged").exists());
}

#[test]
fn events_wait_until_the_file_can_be_used_again() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    outbox.execute("PRAGMA query_only = ON");
    for n in 0..MAX_WAITING + 5 {
        outbox.push_event(None, &format!("e{n}"), json!({}));
    }
    assert!(outbox.push_log(&records(&["1"]), MARK).is_err(), "whoever has records is told");
    assert_eq!(outbox.next("a", Kind::Event), None);
    outbox.execute("PRAGMA query_only = OFF");
    outbox.push_event(None, "last", json!({}));
    let names = event_names(&outbox, "a");
    assert!(names.iter().any(|name| *name == "e5") && !names.iter().any(|name| *name == "e4"), "{names:?}");
    assert!(names.iter().any(|name| name == "last") && names.iter().any(|name| name == "dropped"), "{names:?}");
}

#[test]
fn file_that_cannot_be_opened_for_now_is_used_once_it_can() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    let (path, away) = (dir.path().join(FILE), dir.path().join("away"));
    outbox.push_log(&records(&["1", "2", "3"]), MARK).unwrap();
    outbox.lock().db = Connection::open_in_memory().unwrap();
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(outbox.next("a", Kind::Log), None);
    outbox.push_event(None, "kept", json!({}));
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    let (wake, woken) = crossbeam_channel::bounded(1);
    outbox.waker("a", wake);
    let begin = Instant::now();
    let batch = loop {
        if let Some(batch) = outbox.next("a", Kind::Log) {
            break batch;
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(body(&batch)["records"], json!([1, 2, 3]));
    assert!(woken.try_recv().is_ok(), "whatever waited can go");
    assert_eq!(event_names(&outbox, "a"), ["kept"]);
    assert!(!dir.path().join("outbox.db.damaged").exists());
}

#[test]
fn bad_piece_holds_up_no_other() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    for text in ["1", "2", "3", "4"] {
        outbox.push_log(&records(&[text]), MARK).unwrap();
    }
    outbox.close_log();
    outbox.execute("UPDATE items SET body = 5 WHERE seq = 2");
    let lists: Vec<Value> = drain(&outbox, "a").into_iter().map(|(_, list)| list).collect();
    assert_eq!(lists, [json!([1, 3]), json!([4])]);
}

#[test]
fn batch_that_cannot_be_set_aside_is_kept() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a"])).unwrap();
    for text in ["1", "2", "3"] {
        outbox.push_log(&records(&[text]), MARK).unwrap();
        outbox.close_log();
    }
    // As on a full disk.
    outbox.execute("CREATE TRIGGER full BEFORE INSERT ON cursors BEGIN SELECT raise(ABORT, 'full'); END");
    for kept in [0, 1] {
        let batch = outbox.next("a", Kind::Log).unwrap();
        assert!(outbox.set_aside("a", Kind::Log, batch.number).is_err());
        assert_eq!(outbox.next("a", Kind::Log), Some(batch.clone()), "after {kept} others");
        outbox.execute("DROP TRIGGER full");
        outbox.taken("a", Kind::Log, batch.number);
        outbox.execute("CREATE TRIGGER full BEFORE INSERT ON cursors BEGIN SELECT raise(ABORT, 'full'); END");
    }
    outbox.execute("DROP TRIGGER full");
    let batch = outbox.next("a", Kind::Log).unwrap();
    let key = outbox.set_aside("a", Kind::Log, batch.number).unwrap();
    assert_eq!(body(&outbox.aside("a", Kind::Log, key).unwrap().unwrap())["records"], json!([3]));
    assert_eq!(outbox.take_unsaid(), Dropped::default());
}

#[test]
fn what_was_taken_and_cannot_be_removed_is_not_sent_again() {
    let dir = TempDir::new().unwrap();
    let outbox = Outbox::open(&config(dir.path(), &["a", "b"])).unwrap();
    outbox.push_event(None, "one", json!({}));
    outbox.push_event(None, "two", json!({}));
    outbox.push_log(&records(&["1"]), MARK).unwrap();
    outbox.close_log();
    outbox.execute("CREATE TRIGGER full BEFORE DELETE ON items BEGIN SELECT raise(ABORT, 'full'); END");
    outbox.execute("CREATE TRIGGER full_too BEFORE INSERT ON cursors BEGIN SELECT raise(ABORT, 'full'); END");
    let batch = outbox.next("a", Kind::Log).unwrap();
    outbox.taken("a", Kind::Log, batch.number);
    assert_eq!(outbox.next("a", Kind::Log), None);
    let event = outbox.next("a", Kind::Event).unwrap();
    outbox.taken("a", Kind::Event, event.number);
    let event = outbox.next("a", Kind::Event).unwrap();
    assert_eq!(body(&event)["name"], "two");
    outbox.execute("DROP TRIGGER full");
    outbox.taken("a", Kind::Event, event.number);
    let left: i64 =
        outbox.lock().db.query_row("SELECT count(*) FROM items WHERE controller = 'a'", [], |row| row.get(0)).unwrap();
    assert_eq!((left, event_names(&outbox, "b")), (0, vec!["one".to_owned(), "two".to_owned()]));
}
