//! Tests damaged, full and read-only databases.

use super::*;

#[test]
fn drop_of_the_upload_queue_is_recorded_on_the_node() {
    let bench = Bench::start(|_| ());
    bench.push(&source("a", "*", "*"), 1, &[(3, "one"), (3, "two")]);
    bench.texts(&Query::default());
    bench.upload_queue.close_log();
    let batch = bench.upload_queue.next("main", Kind::Log).unwrap();
    bench.upload_queue.refused("main", Kind::Log, batch.number);
    let query = Query { levels: Some(LevelSet::parse("8").unwrap()), ..Query::default() };
    // It is said with the next messages, and not with each of them.
    bench.push(&source("a", "*", ""), 1, &[(3, "three")]);
    let began = std::time::Instant::now();
    let said = loop {
        let said = bench.get(&query);
        if !said.is_empty() || began.elapsed() > Duration::from_secs(20) {
            break said;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(said.len(), 1);
    assert!(said[0].data.starts_with("2 records for the controllers were dropped"), "{}", said[0].data);
    assert_eq!((said[0].jobid.as_str(), said[0].jobname.as_str()), ("jsagent", "logger"));
}

#[test]
fn a_damaged_database_is_set_aside_and_said() {
    let mut bench = Bench::start(|_| ());
    let source = source("a", "*", "");
    for n in 0..200 {
        bench.push(&source, n, &[(1, &"q".repeat(1000))]);
    }
    bench.get(&Query::default());
    bench.stop();
    let mut bytes = std::fs::read(bench.current()).unwrap();
    let (at, end) = (5 * 4096, bytes.len() - 4096);
    bytes[at..end].fill(0xa5);
    std::fs::write(bench.current(), bytes).unwrap();
    bench.restart();
    bench.push(&source, 1, &[(1, "on")]);
    assert_eq!(bench.texts(&Query::default()).last().unwrap(), "on");
    assert!(databases(&bench.logs()).iter().any(|name| name.starts_with("damaged-")));
}

#[test]
fn a_rotated_database_that_is_damaged_is_passed_over() {
    let bench = Bench::start(|config| config.logging.db.max_size_mb = 1);
    let source = source("a", "*", "");
    for _ in 0..100 {
        bench.push(&source, 1, &[(1, &"q".repeat(20_000))]);
    }
    bench.get(&Query { limit: Some(1), ..Query::default() });
    let first = databases(&bench.logs())[0].clone();
    std::fs::write(bench.logs().join(&first), "rubbish".repeat(10_000)).unwrap();
    let records = bench.get(&Query { levels: Some(LevelSet::parse("1").unwrap()), ..Query::default() });
    assert!(!records.is_empty() && records.len() < 100);
    assert!(!bench.logs().join(&first).exists());
    let said = Query { levels: Some(LevelSet::parse("8").unwrap()), ..Query::default() };
    assert!(bench.texts(&said)[0].contains("damaged"));
}

/// Lets the database grow by at most so many pages more, as a disk of that size would.
fn shrink_disk(bench: &Bench, pages: i64) {
    let remote = bench.remote();
    remote
        .on_writer(move |store| {
            let (db, _) = store.current();
            let now: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
            let most: i64 =
                db.query_row(&format!("PRAGMA max_page_count={}", now + pages), [], |row| row.get(0)).unwrap();
            assert!(most <= now + pages);
        })
        .unwrap();
}

#[test]
fn on_a_full_disk_plain_output_goes_first_and_is_counted() {
    let bench = Bench::start(|_| ());
    let source = source("a", "*", "");
    shrink_disk(&bench, 3);
    let text = "p".repeat(3000);
    for n in 0..20 {
        bench.push(&source, n, &[(1, &text), (2, &text), (9, "alarm"), (20, "result")]);
    }
    let important = Query { levels: Some(LevelSet::parse("9,20").unwrap()), ..Query::default() };
    assert_eq!(bench.get(&important).len(), 40);
    let plain = Query { levels: Some(LevelSet::parse("1,2").unwrap()), ..Query::default() };
    let kept = bench.get(&plain).len();
    assert!(kept < 40, "{kept}");
    shrink_disk(&bench, 100_000);
    let said = Query { levels: Some(LevelSet::parse("8").unwrap()), ..Query::default() };
    let began = std::time::Instant::now();
    while bench.texts(&said).is_empty() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let lost: usize = bench.texts(&said).iter().map(|t| t.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(lost, 40 - kept);
    bench.push(&source, 1, &[(1, "again")]);
    assert_eq!(bench.texts(&plain).last().map(String::as_str), Some("again"));
}

#[test]
fn on_a_full_disk_the_oldest_database_goes_before_anything_else() {
    let bench = Bench::start(|config| config.logging.db.max_size_mb = 1);
    let source = source("a", "*", "");
    let text = "p".repeat(20_000);
    for n in 0..100 {
        bench.push(&source, n, &[(1, &text)]);
    }
    bench.get(&Query { limit: Some(1), ..Query::default() });
    let before = databases(&bench.logs());
    assert!(before.len() > 2);
    shrink_disk(&bench, 0);
    bench.push(&source, 1, &[(1, &text)]);
    bench.get(&Query { limit: Some(1), ..Query::default() });
    assert!(!databases(&bench.logs()).contains(&before[0]));
}

#[test]
fn important_records_wait_for_a_read_only_store_and_are_forwarded_meanwhile() {
    let bench = Bench::start(|_| ());
    let source = source("a", "*", "9,20");
    bench.push(&source, 1, &[(1, "before")]);
    // As on a file system that was mounted anew as read-only.
    execute(&bench, "PRAGMA query_only = ON");
    let text = "p".repeat(50_000);
    for n in 0..100 {
        bench.push(&source, n, &[(1, &text), (9, "alarm"), (2, &text), (20, "result")]);
    }
    // It is not waited for: more than may be on its way was taken.
    let mut forwarded = Vec::new();
    until("what is to be forwarded", || {
        forwarded.extend(bench.forwarded());
        forwarded.len() >= 200
    });
    assert!(events(&bench).iter().any(|event| event["name"] == "critical"), "the controllers are told at once");
    execute(&bench, "PRAGMA query_only = OFF");
    until("what waited", || bench.get(&by_level("9,20")).len() == 200);
    assert_eq!(ids(&bench.get(&by_level("9,20"))), ids(&forwarded), "each has one id, and in its order");
    let plain = bench.get(&by_level("1,2")).len();
    assert!(plain < 150, "{plain}");
    let said = || bench.texts(&by_level("8"));
    until("a word of what went", || !said().is_empty());
    let lost: usize = said().iter().filter_map(|text| text.split(' ').next()?.parse::<usize>().ok()).sum();
    assert_eq!(plain + lost, 201, "{:?}", said());
    assert_eq!(databases(&bench.logs()), ["current.db"]);
    bench.push(&source, 1, &[(1, "after")]);
    assert_eq!(bench.texts(&by_level("1")).last().map(String::as_str), Some("after"));
}

#[test]
fn records_that_the_upload_queue_cannot_take_are_forwarded_once_it_can() {
    for fault in ["PRAGMA query_only = ON", "PRAGMA max_page_count = 1"] {
        let bench = Bench::start(|config| config.logging.db.max_size_mb = 1);
        for n in 0..100 {
            bench.push(&source("old", "*", ""), n, &[(1, &"p".repeat(20_000))]);
        }
        bench.get(&Query { limit: Some(1), ..Query::default() });
        bench.upload_queue.execute(fault);
        let source = source("a", "*", "9");
        let text = "x".repeat(2000);
        for n in 0..50 {
            bench.push(&source, n, &[(9, &text), (1, "plain")]);
        }
        // Records that cannot be forwarded are stored all the same.
        until("the records on the node", || bench.get(&by_level("9")).len() == 50);
        bench.upload_queue.execute("PRAGMA query_only = OFF; PRAGMA max_page_count = 1000000");
        let mut forwarded = Vec::new();
        until("the records at the controller", || {
            forwarded.extend(bench.forwarded());
            forwarded.len() >= 50
        });
        assert_eq!(ids(&forwarded), ids(&bench.get(&by_level("9"))), "{fault}");
    }
}

#[test]
fn record_that_is_refused_holds_up_no_other_and_no_id_is_given_twice() {
    let bench = Bench::start(|_| ());
    // The commit fails, after the upload queue has taken the records.
    execute(
        &bench,
        "PRAGMA foreign_keys = ON; CREATE TABLE p(x INTEGER PRIMARY KEY);
         CREATE TABLE c(x REFERENCES p DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER bad AFTER INSERT ON messages WHEN new.data = 'bad' BEGIN INSERT INTO c VALUES(1); END",
    );
    let source = source("a", "*", "9");
    bench.push(&source, 1, &[(1, "bad"), (9, "one"), (1, "bad"), (9, "two"), (1, "good")]);
    let stored = bench.get(&by_level("1,9"));
    assert_eq!(stored.iter().map(|record| record.data.as_str()).collect::<Vec<_>>(), ["one", "two", "good"]);
    bench.push(&source, 1, &[(9, "three")]);
    let stored = bench.get(&by_level("9"));
    let forwarded = bench.forwarded();
    assert_eq!(ids(&forwarded), ids(&stored));
    assert_eq!(forwarded.iter().map(|record| record.data.as_str()).collect::<Vec<_>>(), ["one", "two", "three"]);
}

#[test]
fn row_with_values_of_other_types_is_read_with_the_rest() {
    let bench = Bench::start(|_| ());
    bench.push(&source("a", "*", ""), 1, &[(1, "one"), (1, "two"), (1, "three")]);
    bench.get(&Query::default());
    execute(
        &bench,
        "UPDATE messages SET data = CAST(x'ff32' AS TEXT), epoch = 'x', jobname = NULL, jobdomain = 7 WHERE id = 2",
    );
    assert_eq!(bench.texts(&Query::default()), ["one", "\u{fffd}2", "three"]);
}

#[cfg(target_os = "linux")]
#[test]
fn damaged_database_that_cannot_be_set_aside_is_told_without_inodes_too() {
    let root = TempDir::new().unwrap();
    let dir = root.path().to_owned();
    on_tmpfs(root.path(), "size=64m,nr_inodes=60", move || {
        let mut bench = Bench::start(|config| config.main.data_dir = dir.clone());
        bench.stop();
        let (current, damaged) = (dir.join("logs/current.db"), dir.join("damaged"));
        std::fs::write(&damaged, "no database".repeat(100)).unwrap();
        // A file that is a mount point can be opened and not renamed.
        let mounted = std::process::Command::new("mount").arg("--bind").args([&damaged, &current]).status().unwrap();
        assert!(mounted.success());
        let mut taken = Vec::new();
        while let Ok(file) = tempfile::NamedTempFile::new_in(&dir) {
            taken.push(file);
        }
        let error = Handle::start(&bench.config, Arc::clone(&bench.upload_queue)).err().unwrap();
        let told = format!("{error:#}");
        assert!(told.contains("cannot be set aside") && !told.contains("full"), "{told}");
    });
}
