//! The table of jobs, on real files.

use super::*;

fn accept(id: &str) -> Write {
    accept_at(id, now_ms())
}

fn accept_at(id: &str, now: i64) -> Write {
    Write::Accept { id: id.into(), controller: "main".into(), command: "{}".into(), now }
}

fn finish(id: &str, result: &str) -> Write {
    Write::Finish { id: id.into(), result: Some(result.into()), soon: false }
}

fn open() -> (tempfile::TempDir, Arc<Ledger>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    (dir, ledger)
}

#[test]
fn a_job_from_its_acceptance_to_its_sending() {
    let (dir, ledger) = open();
    ledger.commit(&[accept("a"), accept("b"), Write::Start { id: "a".into(), started: 7 }]).unwrap();
    assert!(ledger.knows("a").unwrap() && !ledger.knows("c").unwrap());
    let live = ledger.live().unwrap();
    assert_eq!((live.len(), live[0].standing, live[0].started), (2, Standing::Started, 7));
    ledger.commit(&[finish("a", "result")]).unwrap();
    assert_eq!(ledger.unsent_bytes(), 6);
    drop(ledger);

    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!((ledger.unsent_bytes(), ledger.damage()), (6, None));
    assert!(ledger.unsent("other", 10, 100).unwrap().is_empty());
    let unsent = ledger.unsent("main", 10, 100).unwrap();
    assert_eq!((unsent.len(), unsent[0].json.as_str()), (1, "result"));
    ledger.mark_sent(0, &[unsent[0].key]).unwrap();
    ledger.mark_sent(0, &[unsent[0].key]).unwrap();
    assert!(ledger.unsent("main", 10, 100).unwrap().is_empty());
    assert_eq!((ledger.unsent_bytes(), ledger.knows("a").unwrap()), (0, true));
    assert_eq!(read_only(dir.path()).unwrap().len(), 1);
}

#[test]
fn what_may_be_late_goes_to_the_disk_with_the_next_or_by_itself() {
    let (_dir, ledger) = open();
    let start = |id: &str| Write::Start { id: id.into(), started: 7 };
    let soon = |id: &str| Write::Finish { id: id.into(), result: Some("result".into()), soon: true };
    ledger.commit(&["a", "b", "c"].map(accept)).unwrap();
    ledger.commit(&["a", "b", "c"].map(start)).unwrap();
    assert!(!ledger.is_behind());
    ledger.commit(&[soon("a")]).unwrap();
    assert!(ledger.is_behind(), "it did not wait");
    assert_eq!(ledger.unsent("main", 10, 1000).unwrap().len(), 1, "and can be sent");
    // One that cannot wait takes all that came before it along, and those that came with it.
    ledger.commit(&[soon("b"), accept("d")]).unwrap();
    assert!(!ledger.is_behind());
    ledger.commit(&[soon("c")]).unwrap();
    // A commit that changes nothing writes nothing, and so takes nothing along.
    ledger.commit(&[start("never accepted")]).unwrap();
    assert!(ledger.is_behind());
    ledger.mark_sent(0, &[1]).unwrap();
    ledger.sync().unwrap();
    assert!(!ledger.is_behind());
    assert_eq!(ledger.unsent("main", 10, 1000).unwrap().len(), 2);
}

#[test]
fn a_place_where_nothing_is_written_ahead_is_refused() {
    let fault = table::open(Path::new(":memory:")).unwrap_err().to_string();
    assert!(fault.contains("put data_dir on a local file system"), "{fault}");
}

#[test]
fn all_or_nothing() {
    let (_dir, ledger) = open();
    ledger.commit(&[accept("a")]).unwrap();
    assert!(ledger.commit(&[accept("b"), accept("a")]).is_err());
    assert!(!ledger.knows("b").unwrap());
}

#[test]
fn results_come_in_bounded_bites() {
    let (_dir, ledger) = open();
    for id in ["a", "b", "c"] {
        ledger.commit(&[accept(id), finish(id, "12345")]).unwrap();
    }
    let count = |rows, bytes| ledger.unsent("main", rows, bytes).unwrap().len();
    assert_eq!((count(2, 100), count(10, 10), count(10, 11), count(10, 1)), (2, 2, 2, 1));
}

#[test]
fn runs_of_a_job_that_goes_on_report_beside_it() {
    let (_dir, ledger) = open();
    let report = |started, result: &str, quiet| Write::Report { id: "a".into(), started, result: result.into(), quiet };
    ledger.commit(&[accept("a"), Write::Start { id: "a".into(), started: 1 }, report(1, "one", false)]).unwrap();
    // Of the quiet ones only the newest waits.
    ledger.commit(&[report(2, "quiet", true)]).unwrap();
    ledger.commit(&[report(3, "quiet again", true)]).unwrap();
    let unsent = ledger.unsent("main", 10, 100).unwrap();
    assert_eq!(unsent.iter().map(|row| row.json.as_str()).collect::<Vec<_>>(), ["one", "quiet again"]);
    assert_eq!(ledger.unsent_bytes(), 14);
    ledger.mark_sent(0, &unsent.iter().map(|row| row.key).collect::<Vec<_>>()).unwrap();
    assert_eq!(ledger.unsent_bytes(), 0);
    let live = ledger.live().unwrap();
    assert_eq!((live.len(), live[0].reported, live[0].standing), (1, true, Standing::Started));
}

#[test]
fn a_startup_job_takes_the_place_of_its_name() {
    let (_dir, ledger) = open();
    ledger.commit(&[accept("a"), Write::Start { id: "a".into(), started: 3 }, finish("a", "kept")]).unwrap();
    let startup = Write::Accept { id: "a".into(), controller: String::new(), command: "{}".into(), now: 9 };
    ledger.commit(std::slice::from_ref(&startup)).unwrap();
    ledger.commit(&[startup]).unwrap();
    let live = ledger.live().unwrap();
    assert_eq!((live.len(), live[0].accepted, live[0].controller.as_str()), (1, 9, ""));
    assert_eq!(ledger.unsent("main", 10, 100).unwrap()[0].json, "kept");
}

#[test]
fn ids_are_forgotten_after_a_week_or_so_many_others() {
    let (_dir, ledger) = open();
    let week_ago = now_ms() - 8 * 86_400_000;
    ledger.commit(&[accept_at("old", week_ago), finish("old", "x"), accept_at("live", week_ago)]).unwrap();
    let unsent = ledger.unsent("main", 1, 100).unwrap();
    // The first mark of a life tidies.
    ledger.mark_sent(0, &[unsent[0].key]).unwrap();
    assert!(!ledger.knows("old").unwrap() && ledger.knows("live").unwrap());

    let many: Vec<Write> = (0..110).map(|n| accept(&format!("j{n}"))).collect();
    ledger.commit(&many).unwrap();
    let ends: Vec<Write> = (0..110).map(|n| Write::Finish { id: format!("j{n}"), result: None, soon: false }).collect();
    ledger.commit(&ends).unwrap();
    retention::tidy(&ledger.lock().db, now_ms(), 100).unwrap();
    assert!(!ledger.knows("j9").unwrap() && ledger.knows("j10").unwrap() && ledger.knows("live").unwrap());
}

#[test]
fn a_job_that_starts_again_with_the_agent_is_not_forgotten() {
    let (dir, ledger) = open();
    let failed = |id: &str| Write::Stand { id: id.into(), standing: Standing::Failed };
    let week_ago = now_ms() - 8 * 86_400_000;
    ledger.commit(&[accept_at("daemon", week_ago), failed("daemon"), accept("b"), finish("b", "x")]).unwrap();
    let unsent = ledger.unsent("main", 1, 100).unwrap();
    ledger.mark_sent(0, &[unsent[0].key]).unwrap();
    drop(ledger);
    let live = Ledger::open(dir.path()).unwrap().live().unwrap();
    assert_eq!(
        live.iter().map(|row| (row.id.as_str(), row.standing)).collect::<Vec<_>>(),
        [("daemon", Standing::Failed)]
    );
}

#[test]
fn a_damaged_file_is_set_aside_and_what_is_readable_carried_over() {
    let (dir, ledger) = open();
    let path = dir.path().join(FILE);
    let many: Vec<Write> = (0..2000).map(|n| accept(&format!("job-{n}"))).collect();
    ledger.commit(&many).unwrap();
    drop(ledger);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    assert!(ledger.damage().unwrap().contains("damaged"), "{:?}", ledger.damage());
    let carried = ledger.live().unwrap().len();
    // Where the page belonged to an index alone, nothing is lost.
    assert!((1000..=2000).contains(&carried), "{carried}");
    drop(ledger);

    std::fs::write(&path, b"this is no database, and was never one").unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    assert!(ledger.damage().is_some() && ledger.live().unwrap().is_empty());
    ledger.commit(&[accept("a")]).unwrap();
}

#[test]
fn results_for_a_controller_that_is_gone_wait_without_counting() {
    let (dir, ledger) = open();
    let of = |id: &str| Write::Accept { id: id.into(), controller: "gone".into(), command: "{}".into(), now: now_ms() };
    ledger.commit(&[of("a"), finish("a", "12345"), of("every minute"), of("b"), accept("c")]).unwrap();
    assert_eq!(ledger.unsent_bytes(), 5);
    drop(ledger);
    // It was taken out of the configuration.
    let ledger = Ledger::open(dir.path()).unwrap();
    ledger.controllers(["main", "other"]).unwrap();
    assert_eq!(ledger.unsent_bytes(), 0);
    let report = |started, result: &str| Write::Report {
        id: "every minute".into(),
        started,
        result: result.into(),
        quiet: false,
    };
    ledger.commit(&[report(1, "one"), report(2, "two"), finish("b", "123"), finish("c", "1234")]).unwrap();
    assert_eq!(ledger.unsent_bytes(), 4, "of those that can go somewhere");
    let waiting = ledger.unsent("gone", 10, 1000).unwrap();
    let waiting: Vec<&str> = waiting.iter().map(|unsent| unsent.json.as_str()).collect();
    assert_eq!(waiting, ["12345", "123", "two"], "of a job that goes on the last one");
    let keys: Vec<i64> = ledger.unsent("main", 10, 1000).unwrap().iter().map(|unsent| unsent.key).collect();
    ledger.mark_sent(0, &keys).unwrap();
    assert_eq!(ledger.unsent_bytes(), 0);
    // It is back.
    ledger.controllers(["main", "gone"]).unwrap();
    assert_eq!(ledger.unsent_bytes(), 5 + 3 + 3);
    let keys: Vec<i64> = ledger.unsent("gone", 10, 1000).unwrap().iter().map(|unsent| unsent.key).collect();
    ledger.mark_sent(0, &keys).unwrap();
    assert_eq!(ledger.unsent_bytes(), 0);
}

/// Damages pages of the file so that any reader notices the damage, whatever is in a cache.
fn damage_file(dir: &Path, ledger: &Ledger) {
    ledger.lock().db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    ledger.rest();
    let path = dir.join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    // The next look at the file reads it again.
    let counter = u32::from_be_bytes(bytes[24..28].try_into().unwrap()) + 1;
    bytes[24..28].copy_from_slice(&counter.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn damage_is_found_and_set_aside_while_it_runs() {
    let (dir, ledger) = open();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let tell = told.clone();
    ledger.on_damage(move |damage| tell.lock().unwrap().push(damage.to_owned()));
    let many: Vec<Write> = (0..500).map(|n| accept(&format!("job-{n}"))).collect();
    ledger.commit(&many).unwrap();
    damage_file(dir.path(), &ledger);
    assert!(ledger.commit(&[accept("b")]).is_err(), "what it stood on may be gone");
    assert_eq!((ledger.generation(), told.lock().unwrap().len()), (1, 1));
    assert!(told.lock().unwrap()[0].contains("damaged"), "{told:?}");
    ledger.commit(&[accept("b"), finish("b", "12")]).unwrap();
    assert_eq!((ledger.unsent_bytes(), ledger.unsent("main", 10, 100).unwrap().len()), (2, 1));
    assert!(std::fs::read_dir(dir.path()).unwrap().flatten().any(|e| e.path().to_string_lossy().contains(".damaged-")));
    drop(ledger);
    assert!(Ledger::open(dir.path()).unwrap().knows("b").unwrap());
}

#[test]
fn file_that_was_emptied_or_removed_while_it_runs_is_told() {
    for removed in [false, true] {
        let (dir, ledger) = open();
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let tell = told.clone();
        ledger.on_damage(move |damage| tell.lock().unwrap().push(damage.to_owned()));
        ledger.commit(&[accept("a"), finish("a", "x")]).unwrap();
        ledger.lock().db = Connection::open_in_memory().unwrap();
        let path = dir.path().join(FILE);
        match removed {
            true => std::fs::remove_file(&path).unwrap(),
            false => std::fs::write(&path, "").unwrap(),
        }
        assert!(!ledger.knows("a").unwrap());
        assert_eq!((ledger.generation(), told.lock().unwrap().len()), (1, 1));
        assert!(told.lock().unwrap()[0].contains("its jobs are forgotten"), "{told:?}");
        ledger.mark_sent(0, &[1]).unwrap();
        ledger.commit(&[accept("b"), finish("b", "y")]).unwrap();
        ledger.mark_sent(0, &[1]).unwrap();
        assert_eq!(ledger.unsent("main", 10, 100).unwrap().len(), 1, "the old key marks nothing");
    }
}

/// Damages the index of the results that wait: all rows can still be read.
fn damage_index(dir: &Path, ledger: &Ledger) {
    let page: i64 = ledger
        .lock()
        .db
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'waiting'", [], |row| row.get(0))
        .unwrap();
    ledger.lock().db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    ledger.rest();
    let path = dir.join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let begin = (page as usize - 1) * 4096;
    bytes[begin..begin + 4096].fill(0xa5);
    let counter = u32::from_be_bytes(bytes[24..28].try_into().unwrap()) + 1;
    bytes[24..28].copy_from_slice(&counter.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn results_keep_their_keys_when_a_damaged_file_is_replaced() {
    let (dir, ledger) = open();
    let report = |started: i64| Write::Report { id: "r".into(), started, result: "x".into(), quiet: false };
    ledger.commit(&[accept("r"), report(1), report(2), report(3)]).unwrap();
    let keys = |ledger: &Ledger| -> Vec<i64> {
        ledger.unsent("main", 100, 1000).unwrap().iter().map(|unsent| unsent.key).collect()
    };
    ledger.mark_sent(0, &keys(&ledger)).unwrap();
    // Some keys are free again, and so is the last one below.
    for id in ["a", "b", "c", "d", "e", "f"] {
        ledger.commit(&[accept(id), finish(id, id)]).unwrap();
    }
    ledger.commit(&[report(4)]).unwrap();
    let all = keys(&ledger);
    ledger.mark_sent(0, &all[6..]).unwrap();
    let under_way = &all[..3];
    damage_index(dir.path(), &ledger);
    // The mark finds the damage itself, and is made again on the new file.
    ledger.mark_sent(0, under_way).unwrap();
    assert_eq!(ledger.generation(), 1);
    let waiting = ledger.unsent("main", 100, 1000).unwrap();
    let texts: Vec<&str> = waiting.iter().map(|unsent| unsent.json.as_str()).collect();
    assert_eq!(texts, ["a", "b", "c", "d", "e", "f"], "none is marked that was not sent");
    assert_eq!(keys(&ledger), all[..6]);
    // Whoever holds keys of the old file changes and reads nothing by them.
    ledger.mark_sent(0, under_way).unwrap();
    assert_eq!((keys(&ledger).len(), ledger.unsent_one(0, all[0]).unwrap()), (6, None));
    assert_eq!(ledger.unsent_one(1, all[0]).unwrap().unwrap().json, "a");
    ledger.mark_sent(1, &all[..6]).unwrap();
    ledger.commit(&[accept("new"), finish("new", "n")]).unwrap();
    assert!(keys(&ledger)[0] > all[6], "no key is given twice");
}

#[test]
fn file_that_only_seemed_damaged_is_kept() {
    let (dir, ledger) = open();
    ledger.commit(&[accept("a"), finish("a", "x")]).unwrap();
    // A connection that has lost its tables.
    ledger.lock().db = Connection::open_in_memory().unwrap();
    assert_eq!(ledger.unsent("main", 10, 100).unwrap().len(), 1);
    ledger.commit(&[accept("b")]).unwrap();
    assert!(ledger.knows("a").unwrap() && ledger.generation() == 0);
    assert!(!std::fs::read_dir(dir.path()).unwrap().flatten().any(|e| e.path().to_string_lossy().contains("damaged")));
}

#[test]
fn file_that_cannot_be_opened_for_now_is_used_once_it_can() {
    let (dir, ledger) = open();
    ledger.commit(&[accept("a"), finish("a", "x")]).unwrap();
    let (path, away) = (dir.path().join(FILE), dir.path().join("away"));
    ledger.lock().db = Connection::open_in_memory().unwrap();
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir(&path).unwrap();
    for _ in 0..3 {
        assert!(ledger.commit(&[accept("b")]).is_err());
    }
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    ledger.commit(&[accept("b")]).unwrap();
    assert!(ledger.knows("a").unwrap() && ledger.generation() == 0);
}

#[test]
fn row_with_bad_bytes_holds_up_no_other() {
    let (dir, ledger) = open();
    ledger.commit(&[accept("a"), accept("b"), accept("c"), finish("a", "1"), finish("b", "2")]).unwrap();
    ledger.lock().db.execute_batch("UPDATE jobs SET result = CAST(x'ff31' AS TEXT) WHERE id = 'a'").unwrap();
    ledger.lock().db.execute_batch("UPDATE jobs SET command = x'ff' WHERE id = 'c'").unwrap();
    let unsent = ledger.unsent("main", 10, 100).unwrap();
    assert_eq!(unsent.iter().map(|row| row.json.as_str()).collect::<Vec<_>>(), ["\u{fffd}1", "2"]);
    drop(ledger);
    assert_eq!(Ledger::open(dir.path()).unwrap().live().unwrap().len(), 1);
}
