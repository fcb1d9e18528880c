//! The message log on real files.

use super::*;
use crate::storage::upload_queue::Kind;
use jscommon::Record;
use rusqlite::Connection;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

struct Bench {
    dir: TempDir,
    config: Config,
    upload_queue: Arc<UploadQueue>,
    handle: Option<Handle>,
}

impl Bench {
    fn start(change: impl FnOnce(&mut Config)) -> Bench {
        let dir = TempDir::new().unwrap();
        let mut config = Config::default();
        config.main.data_dir = dir.path().to_owned();
        (config.main.gid, config.main.nid) = (3, 4);
        config.controllers.insert("main".into(), crate::config::Controller::default());
        change(&mut config);
        let upload_queue = UploadQueue::open(&config).unwrap();
        let handle = Handle::start(&config, Arc::clone(&upload_queue)).unwrap();
        Bench { dir, config, upload_queue, handle: Some(handle) }
    }

    fn restart(&mut self) {
        self.handle = None;
        self.handle = Some(Handle::start(&self.config, Arc::clone(&self.upload_queue)).unwrap());
    }

    fn stop(&mut self) {
        self.handle = None;
    }

    fn remote(&self) -> LogReader {
        self.handle.as_ref().unwrap().remote()
    }

    fn push(&self, source: &Arc<JobLabel>, epoch: i64, messages: &[(u8, &str)]) {
        let mut batch = Batch::new(source, epoch, 0);
        for (level, text) in messages {
            batch.push(*level, text);
        }
        self.handle.as_ref().unwrap().inlet().push(batch);
    }

    fn get(&self, query: &Query) -> Vec<Record> {
        self.remote().get(query).unwrap()
    }

    fn texts(&self, query: &Query) -> Vec<String> {
        self.get(query).into_iter().map(|record| record.data).collect()
    }

    fn logs(&self) -> std::path::PathBuf {
        self.dir.path().join("logs")
    }

    fn current(&self) -> std::path::PathBuf {
        self.logs().join("current.db")
    }

    /// Everything that was forwarded, as JSON records.
    fn forwarded(&self) -> Vec<Record> {
        let mut all = Vec::new();
        self.upload_queue.close_log();
        while let Some(batch) = self.upload_queue.next("main", Kind::Log) {
            let body: serde_json::Value = serde_json::from_slice(&batch.body).unwrap();
            let records: Vec<Record> = serde_json::from_value(body["records"].clone()).unwrap();
            all.extend(records);
            self.upload_queue.taken("main", Kind::Log, batch.number);
        }
        all
    }
}

fn source(jobid: &str, db: &str, ac: &str) -> Arc<JobLabel> {
    Arc::new(JobLabel {
        jobid: jobid.into(),
        domain: "dom".into(),
        name: "nam".into(),
        db: LevelSet::parse(db).unwrap(),
        ac: LevelSet::parse(ac).unwrap(),
        stats_interval: None,
    })
}

fn ids(records: &[Record]) -> Vec<u32> {
    records.iter().map(|record| record.id).collect()
}

fn sql(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

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
fn an_answer_fits_into_a_result_whatever_the_bytes() {
    let bench = Bench::start(|_| ());
    // A NUL is seven bytes once it is JSON within JSON.
    let binary = "\0".repeat(700_000);
    for _ in 0..5 {
        bench.push(&source("a", "*", ""), 1, &[(20, &binary)]);
    }
    let (mut found, mut after) = (0, None);
    loop {
        let records = bench.get(&Query { after, ..Query::default() });
        let Some(last) = records.last() else { break };
        (found, after) = (found + records.len(), Some(last.id));
        let answer = serde_json::to_string(&records).unwrap();
        let travels = serde_json::to_string(&answer).unwrap().len();
        assert!(travels < 12 << 20, "{travels} bytes of {} records", records.len());
    }
    assert_eq!(found, 5);
}

#[test]
fn records_are_stored_filtered_and_found() {
    let bench = Bench::start(|_| ());
    bench.push(&source("a", "1-9", "8"), 100, &[(1, "one"), (10, "no"), (8, "bad")]);
    bench.push(&source("b", "*", "30"), 200, &[(2, "two"), (30, "{}")]);
    let all = bench.get(&Query::default());
    let want = Record {
        id: 1,
        jobid: "a".into(),
        jobdomain: "dom".into(),
        jobname: "nam".into(),
        epoch: 100,
        level: 1,
        data: "one".into(),
        gid: None,
        nid: None,
    };
    assert_eq!(all[0], want);
    assert_eq!(all.iter().map(|r| r.data.as_str()).collect::<Vec<_>>(), ["one", "bad", "two", "{}"]);
    assert!(ids(&all).windows(2).all(|pair| pair[0] < pair[1]));
    let query = Query { jobid: Some("b".into()), ..Query::default() };
    assert_eq!(bench.texts(&query), ["two", "{}"]);
    let query = Query { levels: Some(LevelSet::parse("2,8").unwrap()), ..Query::default() };
    assert_eq!(bench.texts(&query), ["bad", "two"]);
    let query = Query { timefrom: Some(101), timeto: Some(200), limit: Some(1), ..Query::default() };
    assert_eq!(bench.texts(&query), ["two"]);
    let query = Query { after: Some(all[1].id), ..Query::default() };
    assert_eq!(bench.texts(&query), ["two", "{}"]);
    let query = Query { after: Some(all[3].id), ..Query::default() };
    assert_eq!(bench.texts(&query), Vec::<String>::new());
    assert_eq!(bench.get(&Query { limit: Some(0), ..Query::default() }), []);
    let forwarded = bench.forwarded();
    assert_eq!(forwarded.iter().map(|r| r.data.as_str()).collect::<Vec<_>>(), ["bad", "{}"]);
    assert_eq!((forwarded[0].gid, forwarded[0].nid, forwarded[0].id), (Some(3), Some(4), all[1].id));
}

#[test]
fn the_agents_own_records_follow_what_came_before() {
    let bench = Bench::start(|_| ());
    let source = source("a", "1,30", "30");
    bench.push(&source, 1, &[(1, "x")]);
    bench.handle.as_ref().unwrap().inlet().write(&source, 30, "done");
    bench.handle.as_ref().unwrap().inlet().write(&source, 9, "filtered");
    assert_eq!(bench.texts(&Query::default()), ["x", "done"]);
}

#[test]
fn ids_go_on_over_restarts_and_begin_again_after_four_bytes() {
    let mut bench = Bench::start(|_| ());
    let source = source("a", "*", "");
    bench.push(&source, 1, &[(1, "1"), (1, "2")]);
    bench.restart();
    bench.push(&source, 1, &[(1, "3")]);
    assert_eq!(ids(&bench.get(&Query::default())), [1, 2, 3]);
    // Deleted rows do not bring ids back.
    assert_eq!(bench.remote().delete(&Query { after: Some(1), ..Query::default() }).unwrap(), 2);
    bench.restart();
    bench.push(&source, 1, &[(1, "4")]);
    assert_eq!(ids(&bench.get(&Query::default())), [1, 4]);
    bench.stop();
    sql(&bench.current(), "UPDATE messages SET id = 4294967294 WHERE id = 4");
    bench.upload_queue.set_mark(crate::storage::upload_queue::IdCheckpoint { last: 4294967294, next: 4294967295 });
    bench.restart();
    bench.push(&source, 1, &[(1, "5"), (1, "6"), (1, "7")]);
    let all = bench.get(&Query::default());
    assert_eq!(ids(&all), [1, 4294967294, 4294967295, 1, 2]);
    let after = |id| bench.texts(&Query { after: Some(id), ..Query::default() });
    assert_eq!(after(4294967295), ["6", "7"]);
    assert_eq!(after(4294967294), ["5", "6", "7"]);
    assert_eq!(after(1), ["7"]);
    assert_eq!(after(2), Vec::<String>::new());
    bench.restart();
    bench.push(&source, 1, &[(1, "8")]);
    assert_eq!(ids(&bench.get(&Query::default()))[5], 3);
}

fn size(dir: &Path, name: &str) -> u64 {
    ["", "-wal"].iter().map(|end| dir.join(format!("{name}{end}")).metadata().map_or(0, |m| m.len())).sum()
}

fn databases(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".db")).collect();
    names.sort();
    names
}

#[test]
fn databases_rotate_below_their_limit_and_nothing_is_lost() {
    let bench = Bench::start(|config| {
        config.logging.db.max_size_mb = 1;
        config.logging.db.keep = 100;
    });
    let source = source("a", "*", "");
    let mut most = 0;
    let mut count = 0;
    for n in 0..300 {
        let text = format!("{n} {}", "x".repeat(n * 3701 % 30_000));
        bench.push(&source, n as i64, &[(1, &text), (2, "short"), (1, "")]);
        count += 3;
        if n % 10 == 0 {
            bench.get(&Query { limit: Some(1), ..Query::default() });
            for name in databases(&bench.logs()) {
                most = most.max(size(&bench.logs(), &name));
            }
        }
    }
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let some = bench.get(&Query { after, limit: Some(100), ..Query::default() });
        let Some(last) = some.last() else { break };
        after = Some(last.id);
        found.extend(ids(&some));
    }
    assert_eq!(found, (1..=count).collect::<Vec<u32>>());
    assert!(databases(&bench.logs()).len() > 4, "{:?}", databases(&bench.logs()));
    assert!(most <= 1_000_000, "{most}");
}

#[test]
fn only_so_many_databases_are_kept() {
    let mut bench = Bench::start(|config| {
        config.logging.db.max_size_mb = 1;
        config.logging.db.keep = 2;
    });
    let source = source("a", "*", "");
    let text = "y".repeat(20_000);
    for _ in 0..300 {
        bench.push(&source, 1, &[(1, &text)]);
    }
    bench.get(&Query::default());
    assert_eq!(databases(&bench.logs()).len(), 3);
    bench.config.logging.db.keep = 0;
    bench.restart();
    assert_eq!(databases(&bench.logs()), ["current.db"]);
}

#[test]
fn deleting_gives_the_space_back() {
    let bench = Bench::start(|config| {
        config.logging.db.max_size_mb = 1;
        config.logging.db.keep = 100;
    });
    let (a, b) = (source("a", "*", ""), source("b", "*", ""));
    let text = "z".repeat(3000);
    for n in 0..1000 {
        bench.push(if n % 10 == 0 { &b } else { &a }, n, &[(1, &text)]);
    }
    let all = |dir: &Path| databases(dir).iter().map(|name| size(dir, name)).sum::<u64>();
    let job = |id: &str| Query { jobid: Some(id.into()), ..Query::default() };
    assert_eq!(bench.remote().delete(&Query { limit: Some(7), ..job("a") }).unwrap(), 7);
    let before = all(&bench.logs());
    assert_eq!(bench.remote().delete(&job("a")).unwrap(), 893);
    assert!(all(&bench.logs()) < before / 4, "{} of {before}", all(&bench.logs()));
    assert_eq!((bench.get(&job("a")).len(), bench.get(&job("b")).len()), (0, 100));
    assert_eq!(bench.remote().delete(&Query::default()).unwrap(), 100);
    assert_eq!(databases(&bench.logs()), ["current.db"]);
    bench.push(&a, 1, &[(1, "on")]);
    assert_eq!(ids(&bench.get(&Query::default())), [1001]);
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

#[test]
fn everything_handed_over_is_committed_when_the_handle_goes() {
    let mut bench = Bench::start(|_| ());
    let source = source("a", "*", "");
    let inlet = bench.handle.as_ref().unwrap().inlet();
    for n in 0..500 {
        bench.push(&source, n, &[(1, "x"); 100]);
    }
    bench.stop();
    let db = Connection::open(bench.current()).unwrap();
    let count: i64 = db.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 50_000);
    // A reader that outlives the message log does not hang.
    let mut late = Batch::new(&source, 1, 0);
    late.push(1, &"x".repeat(3 << 20));
    inlet.push(late.clone());
    inlet.push(late);
    drop(db);
    std::thread::sleep(Duration::ZERO);
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

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Changes the connection or the tables of the database that is written to.
fn execute(bench: &Bench, sql: &'static str) {
    bench.remote().on_writer(move |store| store.current().0.execute_batch(sql).unwrap()).unwrap();
}

fn by_level(levels: &str) -> Query {
    Query { levels: Some(LevelSet::parse(levels).unwrap()), ..Query::default() }
}

fn events(bench: &Bench) -> Vec<serde_json::Value> {
    std::iter::from_fn(|| {
        let event = bench.upload_queue.next("main", Kind::Event)?;
        bench.upload_queue.taken("main", Kind::Event, event.number);
        serde_json::from_slice(&event.body).ok()
    })
    .collect()
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
fn ids_go_on_after_what_was_forwarded_and_not_stored() {
    let mut bench = Bench::start(|_| ());
    let source = source("a", "*", "");
    bench.push(&source, 1, &[(1, "1"), (1, "2")]);
    bench.stop();
    // The agent died between the two commits.
    bench.upload_queue.set_mark(crate::storage::upload_queue::IdCheckpoint { last: 5, next: 6 });
    bench.restart();
    bench.push(&source, 1, &[(1, "3")]);
    assert_eq!(ids(&bench.get(&Query::default())), [1, 2, 6]);
}

#[test]
fn database_that_another_program_holds_grows_and_is_rotated_later() {
    let bench = Bench::start(|config| config.logging.db.max_size_mb = 1);
    let hold = |held: bool| {
        let set = move |store: &mut Store| {
            let mut layout = store.log_files().write();
            layout.held = held;
            layout.tried
        };
        bench.remote().on_writer(set).unwrap()
    };
    hold(true);
    let source = source("a", "*", "");
    let text = "y".repeat(1000);
    let push = |count: i64| {
        for n in 0..count {
            bench.push(&source, n, &[(1, &text)]);
            if n % 20 == 0 {
                // As many transactions, each of which would try to rotate.
                bench.get(&Query { limit: Some(0), ..Query::default() });
            }
        }
        bench.get(&Query { limit: Some(0), ..Query::default() });
    };
    let count = || -> i64 {
        let db = Connection::open(bench.current()).unwrap();
        db.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap()
    };
    push(6000);
    assert_eq!(count(), 6000);
    // It may use the room of all databases together, and no more.
    push(8000);
    let size = std::fs::metadata(bench.current()).unwrap().len();
    assert!((10_000_000..12_000_000).contains(&size), "{size}");
    assert!(count() < 12_000, "{}", count());
    let tried = hold(false);
    assert!((1..20).contains(&tried), "{tried}");
    until("the rotation", || {
        bench.push(&source, 1, &[(1, "more")]);
        bench.get(&Query { limit: Some(1), ..Query::default() });
        databases(&bench.logs()).len() == 2
    });
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

/// Runs `work` on a thread that sees a file system of its own at `dir`, and so do the threads that it starts.
#[cfg(target_os = "linux")]
fn on_tmpfs(dir: &Path, options: &str, work: impl FnOnce() + Send + 'static) {
    let (dir, options) = (dir.to_owned(), options.to_owned());
    let run = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("mount namespaces need root");
        let mount = |args: &[&str]| {
            let done = std::process::Command::new("mount").args(args).status().expect("mount");
            assert!(done.success(), "mount {args:?}");
        };
        mount(&["--make-rprivate", "/"]);
        mount(&["-t", "tmpfs", "-o", &options, "tmpfs", dir.to_str().unwrap()]);
        work();
    };
    std::thread::spawn(run).join().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn rotation_without_inodes_goes_on_once_there_are_some() {
    let root = TempDir::new().unwrap();
    let dir = root.path().to_owned();
    on_tmpfs(root.path(), "size=64m,nr_inodes=60", move || {
        let bench = Bench::start(|config| {
            config.logging.db.max_size_mb = 1;
            config.logging.db.keep = 100;
            config.main.data_dir = dir.clone();
        });
        let (logs, source) = (dir.join("logs"), source("a", "*", "9"));
        bench.push(&source, 1, &[(9, "first")]);
        bench.get(&Query::default());
        let mut taken = Vec::new();
        while let Ok(file) = tempfile::NamedTempFile::new_in(&dir) {
            taken.push(file);
        }
        // More than fits into one database.
        let text = "z".repeat(10_000);
        for n in 0..150 {
            bench.push(&source, n, &[(1, &text), (9, "alarm")]);
        }
        let mut forwarded = Vec::new();
        until("the alerts at the controller", || {
            forwarded.extend(bench.forwarded());
            forwarded.len() == 151
        });
        let told = events(&bench);
        assert!(told.iter().any(|event| event["name"] == "critical"), "the next database could be made: {told:?}");
        drop(taken);
        until("the alerts on the node", || bench.get(&by_level("9")).len() == 151);
        assert_eq!(ids(&bench.get(&by_level("9"))), ids(&forwarded));
        assert!(databases(&logs).iter().all(|name| !name.starts_with("damaged")), "{:?}", databases(&logs));
        bench.push(&source, 1, &[(1, "after")]);
        until("what comes after", || bench.texts(&by_level("1")).last().is_some_and(|text| text == "after"));
    });
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
