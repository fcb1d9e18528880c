//! The table of jobs, on real files.

use super::*;
use crate::job::JobState;

fn accept(id: &str) -> JobUpdate {
    accept_at(id, unix_ms())
}

fn accept_at(id: &str, now: i64) -> JobUpdate {
    JobUpdate::Accept { id: id.into(), controller: "main".into(), command: "{}".into(), now }
}

fn finish(id: &str, result: &str) -> JobUpdate {
    JobUpdate::Finish { id: id.into(), result: Some(result.into()), deferred_sync: false }
}

fn open() -> (tempfile::TempDir, Arc<JobStore>) {
    let dir = tempfile::tempdir().unwrap();
    let job_store = JobStore::open(dir.path()).unwrap();
    (dir, job_store)
}

#[test]
fn a_job_from_its_acceptance_to_its_sending() {
    let (dir, job_store) = open();
    job_store.commit(&[accept("a"), accept("b"), JobUpdate::Start { id: "a".into(), started: 7 }]).unwrap();
    assert!(job_store.knows("a").unwrap() && !job_store.knows("c").unwrap());
    let live = job_store.live().unwrap();
    assert_eq!((live.len(), live[0].state, live[0].started), (2, JobState::Started, 7));
    job_store.commit(&[finish("a", "result")]).unwrap();
    assert_eq!(job_store.unsent_bytes(), 6);
    drop(job_store);

    let job_store = JobStore::open(dir.path()).unwrap();
    assert_eq!((job_store.unsent_bytes(), job_store.damage()), (6, None));
    assert!(job_store.unsent("other", 10, 100).unwrap().is_empty());
    let unsent = job_store.unsent("main", 10, 100).unwrap();
    assert_eq!((unsent.len(), unsent[0].json.as_str()), (1, "result"));
    job_store.mark_sent(0, &[unsent[0].key]).unwrap();
    job_store.mark_sent(0, &[unsent[0].key]).unwrap();
    assert!(job_store.unsent("main", 10, 100).unwrap().is_empty());
    assert_eq!((job_store.unsent_bytes(), job_store.knows("a").unwrap()), (0, true));
    assert_eq!(read_only(dir.path()).unwrap().len(), 1);
}

#[test]
fn deferred_result_is_synced_with_the_next_commit_or_alone() {
    let (_dir, job_store) = open();
    let start = |id: &str| JobUpdate::Start { id: id.into(), started: 7 };
    let soon = |id: &str| JobUpdate::Finish { id: id.into(), result: Some("result".into()), deferred_sync: true };
    job_store.commit(&["a", "b", "c"].map(accept)).unwrap();
    job_store.commit(&["a", "b", "c"].map(start)).unwrap();
    assert!(!job_store.is_behind());
    job_store.commit(&[soon("a")]).unwrap();
    assert!(job_store.is_behind(), "it did not wait");
    assert_eq!(job_store.unsent("main", 10, 1000).unwrap().len(), 1, "and can be sent");
    // One that cannot wait takes all that came before it along, and those that came with it.
    job_store.commit(&[soon("b"), accept("d")]).unwrap();
    assert!(!job_store.is_behind());
    job_store.commit(&[soon("c")]).unwrap();
    // A commit that changes nothing writes nothing, and so takes nothing along.
    job_store.commit(&[start("never accepted")]).unwrap();
    assert!(job_store.is_behind());
    job_store.mark_sent(0, &[1]).unwrap();
    job_store.sync().unwrap();
    assert!(!job_store.is_behind());
    assert_eq!(job_store.unsent("main", 10, 1000).unwrap().len(), 2);
}

#[test]
fn a_place_where_nothing_is_written_ahead_is_refused() {
    let fault = table::open(Path::new(":memory:")).unwrap_err().to_string();
    assert!(fault.contains("put data_dir on a local file system"), "{fault}");
}

#[test]
fn all_or_nothing() {
    let (_dir, job_store) = open();
    job_store.commit(&[accept("a")]).unwrap();
    assert!(job_store.commit(&[accept("b"), accept("a")]).is_err());
    assert!(!job_store.knows("b").unwrap());
}

#[test]
fn results_come_in_bounded_bites() {
    let (_dir, job_store) = open();
    for id in ["a", "b", "c"] {
        job_store.commit(&[accept(id), finish(id, "12345")]).unwrap();
    }
    let count = |rows, bytes| job_store.unsent("main", rows, bytes).unwrap().len();
    assert_eq!((count(2, 100), count(10, 10), count(10, 11), count(10, 1)), (2, 2, 2, 1));
}

#[test]
fn runs_of_a_job_that_goes_on_report_beside_it() {
    let (_dir, job_store) = open();
    let report =
        |started, result: &str, quiet| JobUpdate::Report { id: "a".into(), started, result: result.into(), quiet };
    job_store.commit(&[accept("a"), JobUpdate::Start { id: "a".into(), started: 1 }, report(1, "one", false)]).unwrap();
    // Of the quiet ones only the newest waits.
    job_store.commit(&[report(2, "quiet", true)]).unwrap();
    job_store.commit(&[report(3, "quiet again", true)]).unwrap();
    let unsent = job_store.unsent("main", 10, 100).unwrap();
    assert_eq!(unsent.iter().map(|row| row.json.as_str()).collect::<Vec<_>>(), ["one", "quiet again"]);
    assert_eq!(job_store.unsent_bytes(), 14);
    job_store.mark_sent(0, &unsent.iter().map(|row| row.key).collect::<Vec<_>>()).unwrap();
    assert_eq!(job_store.unsent_bytes(), 0);
    let live = job_store.live().unwrap();
    assert_eq!((live.len(), live[0].reported, live[0].state), (1, true, JobState::Started));
}

#[test]
fn a_startup_job_takes_the_place_of_its_name() {
    let (_dir, job_store) = open();
    job_store.commit(&[accept("a"), JobUpdate::Start { id: "a".into(), started: 3 }, finish("a", "kept")]).unwrap();
    let startup = JobUpdate::Accept { id: "a".into(), controller: String::new(), command: "{}".into(), now: 9 };
    job_store.commit(std::slice::from_ref(&startup)).unwrap();
    job_store.commit(&[startup]).unwrap();
    let live = job_store.live().unwrap();
    assert_eq!((live.len(), live[0].accepted, live[0].controller.as_str()), (1, 9, ""));
    assert_eq!(job_store.unsent("main", 10, 100).unwrap()[0].json, "kept");
}

#[test]
fn ids_are_forgotten_after_a_week_or_so_many_others() {
    let (_dir, job_store) = open();
    let week_ago = unix_ms() - 8 * 86_400_000;
    job_store.commit(&[accept_at("old", week_ago), finish("old", "x"), accept_at("live", week_ago)]).unwrap();
    let unsent = job_store.unsent("main", 1, 100).unwrap();
    // The first mark of a life tidies.
    job_store.mark_sent(0, &[unsent[0].key]).unwrap();
    assert!(!job_store.knows("old").unwrap() && job_store.knows("live").unwrap());

    let many: Vec<JobUpdate> = (0..110).map(|n| accept(&format!("j{n}"))).collect();
    job_store.commit(&many).unwrap();
    let ends: Vec<JobUpdate> =
        (0..110).map(|n| JobUpdate::Finish { id: format!("j{n}"), result: None, deferred_sync: false }).collect();
    job_store.commit(&ends).unwrap();
    retention::tidy(&lock(&job_store.table).db, unix_ms(), 100).unwrap();
    assert!(!job_store.knows("j9").unwrap() && job_store.knows("j10").unwrap() && job_store.knows("live").unwrap());
}

#[test]
fn a_job_that_starts_again_with_the_agent_is_not_forgotten() {
    let (dir, job_store) = open();
    let failed = |id: &str| JobUpdate::SetState { id: id.into(), state: JobState::Failed };
    let week_ago = unix_ms() - 8 * 86_400_000;
    job_store.commit(&[accept_at("daemon", week_ago), failed("daemon"), accept("b"), finish("b", "x")]).unwrap();
    let unsent = job_store.unsent("main", 1, 100).unwrap();
    job_store.mark_sent(0, &[unsent[0].key]).unwrap();
    drop(job_store);
    let live = JobStore::open(dir.path()).unwrap().live().unwrap();
    assert_eq!(live.iter().map(|row| (row.id.as_str(), row.state)).collect::<Vec<_>>(), [("daemon", JobState::Failed)]);
}

#[test]
fn a_damaged_file_is_set_aside_and_what_is_readable_carried_over() {
    let (dir, job_store) = open();
    let path = dir.path().join(FILE);
    let many: Vec<JobUpdate> = (0..2000).map(|n| accept(&format!("job-{n}"))).collect();
    job_store.commit(&many).unwrap();
    drop(job_store);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    let job_store = JobStore::open(dir.path()).unwrap();
    assert!(job_store.damage().unwrap().contains("damaged"), "{:?}", job_store.damage());
    let carried = job_store.live().unwrap().len();
    // Where the page belonged to an index alone, nothing is lost.
    assert!((1000..=2000).contains(&carried), "{carried}");
    drop(job_store);

    std::fs::write(&path, b"this is no database, and was never one").unwrap();
    let job_store = JobStore::open(dir.path()).unwrap();
    assert!(job_store.damage().is_some() && job_store.live().unwrap().is_empty());
    job_store.commit(&[accept("a")]).unwrap();
}

#[test]
fn results_for_a_controller_that_is_gone_wait_without_counting() {
    let (dir, job_store) = open();
    let of =
        |id: &str| JobUpdate::Accept { id: id.into(), controller: "gone".into(), command: "{}".into(), now: unix_ms() };
    job_store.commit(&[of("a"), finish("a", "12345"), of("every minute"), of("b"), accept("c")]).unwrap();
    assert_eq!(job_store.unsent_bytes(), 5);
    drop(job_store);
    // It was taken out of the configuration.
    let job_store = JobStore::open(dir.path()).unwrap();
    job_store.controllers(["main", "other"]).unwrap();
    assert_eq!(job_store.unsent_bytes(), 0);
    let report = |started, result: &str| JobUpdate::Report {
        id: "every minute".into(),
        started,
        result: result.into(),
        quiet: false,
    };
    job_store.commit(&[report(1, "one"), report(2, "two"), finish("b", "123"), finish("c", "1234")]).unwrap();
    assert_eq!(job_store.unsent_bytes(), 4, "of those that can go somewhere");
    let waiting = job_store.unsent("gone", 10, 1000).unwrap();
    let waiting: Vec<&str> = waiting.iter().map(|unsent| unsent.json.as_str()).collect();
    assert_eq!(waiting, ["12345", "123", "two"], "of a job that goes on the last one");
    let keys: Vec<i64> = job_store.unsent("main", 10, 1000).unwrap().iter().map(|unsent| unsent.key).collect();
    job_store.mark_sent(0, &keys).unwrap();
    assert_eq!(job_store.unsent_bytes(), 0);
    // It is back.
    job_store.controllers(["main", "gone"]).unwrap();
    assert_eq!(job_store.unsent_bytes(), 5 + 3 + 3);
    let keys: Vec<i64> = job_store.unsent("gone", 10, 1000).unwrap().iter().map(|unsent| unsent.key).collect();
    job_store.mark_sent(0, &keys).unwrap();
    assert_eq!(job_store.unsent_bytes(), 0);
}

/// Damages pages of the file so that any reader notices the damage, whatever is in a cache.
fn damage_file(dir: &Path, job_store: &JobStore) {
    lock(&job_store.table).db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    job_store.rest();
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
    let (dir, job_store) = open();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let tell = told.clone();
    job_store.on_damage(move |damage| tell.lock().unwrap().push(damage.to_owned()));
    let many: Vec<JobUpdate> = (0..500).map(|n| accept(&format!("job-{n}"))).collect();
    job_store.commit(&many).unwrap();
    damage_file(dir.path(), &job_store);
    assert!(job_store.commit(&[accept("b")]).is_err(), "what it stood on may be gone");
    assert_eq!((job_store.generation(), told.lock().unwrap().len()), (1, 1));
    assert!(told.lock().unwrap()[0].contains("damaged"), "{told:?}");
    job_store.commit(&[accept("b"), finish("b", "12")]).unwrap();
    assert_eq!((job_store.unsent_bytes(), job_store.unsent("main", 10, 100).unwrap().len()), (2, 1));
    assert!(std::fs::read_dir(dir.path()).unwrap().flatten().any(|e| e.path().to_string_lossy().contains(".damaged-")));
    drop(job_store);
    assert!(JobStore::open(dir.path()).unwrap().knows("b").unwrap());
}

#[test]
fn file_that_was_emptied_or_removed_while_it_runs_is_told() {
    for removed in [false, true] {
        let (dir, job_store) = open();
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let tell = told.clone();
        job_store.on_damage(move |damage| tell.lock().unwrap().push(damage.to_owned()));
        job_store.commit(&[accept("a"), finish("a", "x")]).unwrap();
        lock(&job_store.table).db = Connection::open_in_memory().unwrap();
        let path = dir.path().join(FILE);
        match removed {
            true => std::fs::remove_file(&path).unwrap(),
            false => std::fs::write(&path, "").unwrap(),
        }
        assert!(!job_store.knows("a").unwrap());
        assert_eq!((job_store.generation(), told.lock().unwrap().len()), (1, 1));
        assert!(told.lock().unwrap()[0].contains("its jobs are forgotten"), "{told:?}");
        job_store.mark_sent(0, &[1]).unwrap();
        job_store.commit(&[accept("b"), finish("b", "y")]).unwrap();
        job_store.mark_sent(0, &[1]).unwrap();
        assert_eq!(job_store.unsent("main", 10, 100).unwrap().len(), 1, "the old key marks nothing");
    }
}

/// Damages the index of the results that wait: all rows can still be read.
fn damage_index(dir: &Path, job_store: &JobStore) {
    let page: i64 = lock(&job_store.table)
        .db
        .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'waiting'", [], |row| row.get(0))
        .unwrap();
    lock(&job_store.table).db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    job_store.rest();
    let path = dir.join(FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    let size = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    let begin = (page as usize - 1) * size;
    bytes[begin..begin + size].fill(0xa5);
    let counter = u32::from_be_bytes(bytes[24..28].try_into().unwrap()) + 1;
    bytes[24..28].copy_from_slice(&counter.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
}

#[test]
fn key_of_a_replaced_result_is_not_given_again() {
    let (dir, job_store) = open();
    let report = |started: i64| JobUpdate::Report { id: "r".into(), started, result: "x".into(), quiet: true };
    job_store.commit(&[accept("r"), report(1)]).unwrap();
    let under_way = job_store.unsent("main", 10, 100).unwrap();
    job_store.mark_sent(0, &[under_way[0].key]).unwrap();
    job_store.commit(&[report(2)]).unwrap();
    job_store.mark_sent(0, &[under_way[0].key]).unwrap();
    assert_eq!(job_store.unsent("main", 10, 100).unwrap().len(), 1, "the new one was not sent");
    drop(job_store);
    let job_store = JobStore::open(dir.path()).unwrap();
    job_store.commit(&[accept("s"), finish("s", "y")]).unwrap();
    assert_eq!(job_store.unsent("main", 10, 100).unwrap().len(), 2);
}

#[test]
fn file_of_an_older_agent_is_used_on() {
    let dir = tempfile::tempdir().unwrap();
    let old = Connection::open(dir.path().join(FILE)).unwrap();
    old.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE jobs(key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, run INTEGER NOT NULL DEFAULT 0,
             controller TEXT NOT NULL, state INTEGER NOT NULL, accepted INTEGER NOT NULL,
             started INTEGER NOT NULL DEFAULT 0, reported INTEGER NOT NULL DEFAULT 0, command TEXT, result TEXT,
             UNIQUE(id, run));
         CREATE INDEX waiting ON jobs(controller, key) WHERE state = 2;
         CREATE INDEX live ON jobs(key) WHERE state IN (0, 1, 4, 5, 6, 7);
         INSERT INTO jobs(id, controller, state, accepted, command) VALUES('live', 'main', 0, 1, '{}');
         INSERT INTO jobs(id, controller, state, accepted, result) VALUES('done', 'main', 2, 1, 'x');",
    )
    .unwrap();
    drop(old);
    let job_store = JobStore::open(dir.path()).unwrap();
    assert_eq!((job_store.live().unwrap().len(), job_store.unsent("main", 10, 100).unwrap().len()), (1, 1));
    job_store.commit(&[accept("new"), finish("new", "y"), finish("live", "z")]).unwrap();
    assert_eq!(job_store.unsent("main", 10, 100).unwrap().len(), 3);
}

#[test]
fn results_keep_their_keys_when_a_damaged_file_is_replaced() {
    let (dir, job_store) = open();
    let report = |started: i64| JobUpdate::Report { id: "r".into(), started, result: "x".into(), quiet: false };
    job_store.commit(&[accept("r"), report(1), report(2), report(3)]).unwrap();
    let keys = |job_store: &JobStore| -> Vec<i64> {
        job_store.unsent("main", 100, 1000).unwrap().iter().map(|unsent| unsent.key).collect()
    };
    job_store.mark_sent(0, &keys(&job_store)).unwrap();
    // Some keys are free again, and so is the last one below.
    for id in ["a", "b", "c", "d", "e", "f"] {
        job_store.commit(&[accept(id), finish(id, id)]).unwrap();
    }
    job_store.commit(&[report(4)]).unwrap();
    let all = keys(&job_store);
    job_store.mark_sent(0, &all[6..]).unwrap();
    let under_way = &all[..3];
    damage_index(dir.path(), &job_store);
    // The mark finds the damage itself, and is made again on the new file.
    job_store.mark_sent(0, under_way).unwrap();
    assert_eq!(job_store.generation(), 1);
    let waiting = job_store.unsent("main", 100, 1000).unwrap();
    let texts: Vec<&str> = waiting.iter().map(|unsent| unsent.json.as_str()).collect();
    assert_eq!(texts, ["a", "b", "c", "d", "e", "f"], "none is marked that was not sent");
    assert_eq!(keys(&job_store), all[..6]);
    // A holder of keys of the old file changes and reads nothing by them.
    job_store.mark_sent(0, under_way).unwrap();
    assert_eq!((keys(&job_store).len(), job_store.unsent_one(0, all[0]).unwrap()), (6, None));
    assert_eq!(job_store.unsent_one(1, all[0]).unwrap().unwrap().json, "a");
    job_store.mark_sent(1, &all[..6]).unwrap();
    job_store.commit(&[accept("new"), finish("new", "n")]).unwrap();
    assert!(keys(&job_store)[0] > all[6], "no key is given twice");
}

#[test]
fn file_that_only_seemed_damaged_is_kept() {
    let (dir, job_store) = open();
    job_store.commit(&[accept("a"), finish("a", "x")]).unwrap();
    // A connection that has lost its tables.
    lock(&job_store.table).db = Connection::open_in_memory().unwrap();
    assert_eq!(job_store.unsent("main", 10, 100).unwrap().len(), 1);
    job_store.commit(&[accept("b")]).unwrap();
    assert!(job_store.knows("a").unwrap() && job_store.generation() == 0);
    assert!(!std::fs::read_dir(dir.path()).unwrap().flatten().any(|e| e.path().to_string_lossy().contains("damaged")));
}

#[test]
fn file_that_cannot_be_opened_for_now_is_used_once_it_can() {
    let (dir, job_store) = open();
    job_store.commit(&[accept("a"), finish("a", "x")]).unwrap();
    let (path, away) = (dir.path().join(FILE), dir.path().join("away"));
    lock(&job_store.table).db = Connection::open_in_memory().unwrap();
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir(&path).unwrap();
    for _ in 0..3 {
        assert!(job_store.commit(&[accept("b")]).is_err());
    }
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    job_store.commit(&[accept("b")]).unwrap();
    assert!(job_store.knows("a").unwrap() && job_store.generation() == 0);
}

#[test]
fn row_with_bad_bytes_holds_up_no_other() {
    let (dir, job_store) = open();
    job_store.commit(&[accept("a"), accept("b"), accept("c"), finish("a", "1"), finish("b", "2")]).unwrap();
    lock(&job_store.table).db.execute_batch("UPDATE jobs SET result = CAST(x'ff31' AS TEXT) WHERE id = 'a'").unwrap();
    lock(&job_store.table).db.execute_batch("UPDATE jobs SET command = x'ff' WHERE id = 'c'").unwrap();
    let unsent = job_store.unsent("main", 10, 100).unwrap();
    assert_eq!(unsent.iter().map(|row| row.json.as_str()).collect::<Vec<_>>(), ["\u{fffd}1", "2"]);
    drop(job_store);
    assert_eq!(JobStore::open(dir.path()).unwrap().live().unwrap().len(), 1);
}
