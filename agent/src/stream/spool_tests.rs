use super::*;
use crossbeam_channel::bounded;
use jscommon::frame;

fn spool(dir: &Path) -> Spool {
    Spool::new(&Arc::new(Shared::new(dir.join("spool"))), "job", [0, 0])
}

fn open(spool: &Spool, id: &str, place: u64) {
    spool.open(&id.into(), place, bounded(1).0, Some(&json!({"watch": id, "base": place}))).unwrap();
}

fn bytes(spool: &Spool, from: u64) -> Vec<u8> {
    let mut out = Vec::new();
    segments::read(&spool.locate(from, usize::MAX).parts, &mut out).unwrap();
    let payloads = frame::frames(&out).map(|frame| frame.unwrap().payload);
    payloads.collect::<Vec<_>>().concat()
}

#[test]
fn write_to_a_full_spool_waits_until_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path());
    open(&spool, "w", 0);
    let block = vec![7; 1 << 20];
    let written = (0..).take_while(|_| spool.write(0, &block) == Ok(())).count() as u64;
    assert!(written << 20 <= MAX_UNTAKEN_BYTES && (written + 1) << 20 > MAX_UNTAKEN_BYTES - (1 << 20));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| spool.write_waiting(0, &block, || false));
        assert!(!waiting.is_finished());
        spool.taken("w", 20 << 20);
    });
    assert_eq!(spool.write(0, &block), Ok(()));
    assert_eq!(spool.locate(0, 0).position[0], (written + 2) << 20);
    // Some of the bytes that were taken are kept.
    let start = spool.locate(0, 0).start;
    assert!(start > 10 << 20 && start <= (20 << 20) - KEPT_BYTES, "{start}");
}

#[test]
fn write_goes_on_when_told_or_when_nobody_watches_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let spool = spool(dir.path());
    open(&spool, "w", 0);
    let block = vec![7; 1 << 20];
    while spool.write(0, &block).is_ok() {}
    spool.write_waiting(0, b"last output of a process that has ended", || true);
    std::thread::scope(|scope| {
        scope.spawn(|| spool.write_waiting(0, &block, || false));
        spool.leave("w");
    });
    for _ in 0..100 {
        assert_eq!(spool.write(1, &block), Ok(()), "nobody watches");
    }
    let found = spool.locate(0, 0);
    assert!(found.end - found.start < KEPT_BYTES + (4 << 20));
    assert_eq!((found.position[1], found.gap), (100 << 20, [0, 0]));
}

#[cfg(unix)]
#[test]
fn disk_that_takes_nothing_makes_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    // A file is where the folder is to be.
    fs::write(dir.path().join("spool"), "").unwrap();
    let spool = spool(dir.path());
    spool.write(0, b"lost").unwrap();
    spool.write(1, b"too").unwrap();
    assert_eq!(spool.locate(0, 0).gap, [4, 3]);
    fs::remove_file(dir.path().join("spool")).unwrap();
    spool.write(0, b"kept").unwrap();
    let found = spool.locate(0, usize::MAX);
    assert_eq!((found.gap, found.position), ([0, 0], [8, 3]));
    let mut out = Vec::new();
    segments::read(&found.parts, &mut out).unwrap();
    let frames: Vec<_> = frame::frames(&out).map(|frame| frame.unwrap()).map(|f| (f.kind, f.payload)).collect();
    assert_eq!(frames[0].0, frame::Kind::Gap);
    assert_eq!(serde_json::from_slice::<Value>(frames[0].1).unwrap(), json!({"stdout": 4, "stderr": 3, "records": 0}));
    assert_eq!(frames[1], (frame::Kind::Stdout, &b"kept"[..]));
}

#[test]
fn recovered_spool_has_what_was_written_and_the_open_watches() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::new(dir.path().join("spool")));
    let spool = Spool::new(&shared, "job", [3, 4]);
    open(&spool, "a", 0);
    spool.write(0, b"one").unwrap();
    open(&spool, "b", 11);
    spool.write(1, b"two").unwrap();
    spool.leave("a");
    drop(spool);
    let folder = fs::read_dir(dir.path().join("spool")).unwrap().next().unwrap().unwrap().path();
    let (again, open) = Spool::recover(&shared, &folder, "died").unwrap();
    assert_eq!(open, [json!({"watch": "b", "base": 11})]);
    let found = again.locate(0, 0);
    assert_eq!((found.position, found.closed), ([6, 7], Some(Some("died".into()))));
    assert_eq!((bytes(&again, 0), bytes(&again, 11)), (b"onetwo".to_vec(), b"two".to_vec()));
    again.write(0, b"never").unwrap();
    assert_eq!(again.locate(0, 0).position, [6, 7]);
    // One whose job had ended has no error.
    let ended = Spool::new(&shared, "ended", [0, 0]);
    ended.write(0, b"x").unwrap();
    ended.close();
    let (again, _) = Spool::recover(&shared, &ended.dir, "died").unwrap();
    assert_eq!(again.locate(0, 0).closed, Some(None));
}

#[test]
fn spools_of_ended_jobs_go_when_room_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::new(dir.path().join("spool")));
    let old = Arc::new(Spool::new(&shared, "old", [0, 0]));
    old.write(0, b"x").unwrap();
    old.close();
    shared.keep(old.clone());
    assert!(shared.ended("old").is_some() && old.dir.exists());
    shared.total.store(MAX_TOTAL_BYTES, Ordering::Relaxed);
    assert!(!shared.has_room(100), "the others hold it all");
    assert!(shared.ended("old").is_none() && !old.dir.exists());
    shared.total.store(MAX_TOTAL_BYTES, Ordering::Relaxed);
    let new = Spool::new(&shared, "new", [0, 0]);
    new.write(0, b"abc").unwrap();
    assert_eq!(new.locate(0, 0).gap, [3, 0], "nobody watches: it does not wait");
    open(&new, "w", 0);
    assert_eq!(new.write(0, b"abc"), Err(Full));
}

#[test]
fn bytes_that_were_taken_from_many_jobs_keep_no_other_job_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::new(dir.path().join("spool")));
    let block = vec![7; 1 << 20];
    let spools: Vec<Spool> = (0..40).map(|n| Spool::new(&shared, &format!("job {n}"), [0, 0])).collect();
    for spool in &spools {
        open(spool, "w", 0);
        for n in 0..10 {
            assert_eq!(spool.write(0, &block), Ok(()), "{spool:?} at block {n}");
            spool.taken("w", u64::MAX);
        }
    }
    let held = |spool: &Spool| {
        let found = spool.locate(0, 0);
        found.end - found.start
    };
    assert!(held(&spools[0]) >= KEPT_BYTES && held(&spools[39]) < KEPT_BYTES);
}
