use crate::stream::{From, Post, Posted, Reply, Spool, Streams};
use jscommon::Command;
use jscommon::frame::{self, Kind};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Before = dyn Fn(usize, &mut Vec<u8>, &[u8]) -> Option<Posted> + Send + Sync;

/// A controller that keeps what comes; `before` may answer in its place, and sees how many requests came before.
pub(in crate::stream) struct Fake {
    pub(in crate::stream) stored: Mutex<HashMap<String, Vec<u8>>>,
    posts: Mutex<usize>,
    before: Box<Before>,
}

impl Fake {
    pub(in crate::stream) fn new(
        before: impl Fn(usize, &mut Vec<u8>, &[u8]) -> Option<Posted> + Send + Sync + 'static,
    ) -> Arc<Fake> {
        Arc::new(Fake { stored: Mutex::default(), posts: Mutex::default(), before: Box::new(before) })
    }

    fn posts(&self) -> usize {
        *self.posts.lock().unwrap()
    }

    pub(in crate::stream) fn frames(&self, id: &str) -> Vec<(Kind, Vec<u8>)> {
        let stored = self.stored.lock().unwrap().get(id).cloned().unwrap_or_default();
        frame::frames(&stored).map(|frame| frame.unwrap()).map(|f| (f.kind, f.payload.to_vec())).collect()
    }

    /// The bytes of both streams and the end frame.
    fn output(&self, id: &str) -> ([Vec<u8>; 2], Option<Value>) {
        let (mut streams, mut end) = ([Vec::new(), Vec::new()], None);
        for (kind, payload) in self.frames(id) {
            assert!(end.is_none(), "nothing follows the end");
            match kind {
                Kind::Stdout => streams[0].extend(payload),
                Kind::Stderr => streams[1].extend(payload),
                Kind::End => end = Some(serde_json::from_slice(&payload).unwrap()),
                _ => {}
            }
        }
        (streams, end)
    }

    pub(in crate::stream) fn wait_for_end(&self, id: &str) -> ([Vec<u8>; 2], Value) {
        wait_until(|| self.output(id).1.is_some());
        let (streams, end) = self.output(id);
        (streams, end.unwrap())
    }
}

impl Post for Fake {
    fn post(&self, id: &str, offset: u64, ticket: &str, frames: &[u8]) -> Posted {
        assert!(ticket == "r.x" && frames.len() <= frame::MAX_REQUEST_BYTES && frame::check(frames).is_ok());
        let n = self.posts();
        *self.posts.lock().unwrap() = n + 1;
        let mut stored = self.stored.lock().unwrap();
        let stored = stored.entry(id.to_owned()).or_default();
        if let Some(posted) = (self.before)(n, stored, frames) {
            return posted;
        }
        if offset == stored.len() as u64 {
            stored.extend_from_slice(frames);
        }
        answered(stored, 30, 4 << 20)
    }
}

fn answered(stored: &[u8], watch: u64, room: u64) -> Posted {
    Posted::Answered(Reply { have: stored.len() as u64, watch, room })
}

#[track_caller]
pub(in crate::stream) fn wait_until(mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
        assert!(begin.elapsed() < Duration::from_secs(60), "it takes too long");
    }
}

pub(in crate::stream) fn start(dir: &Path, fake: &Arc<Fake>) -> Arc<Streams> {
    Streams::start(dir, [("main".to_owned(), fake.clone() as Arc<dyn Post>)])
}

pub(in crate::stream) fn command(id: &str) -> Command {
    Command::from_value(json!({"id": id, "gid": 1, "nid": 1, "cmd": "attach", "ticket": "r.x"})).unwrap()
}

fn watched(streams: &Streams, id: &str) -> Arc<Spool> {
    let spool = streams.spool(id, [0, 0], None);
    assert_eq!(streams.watch(&spool, "main", &command(id), From::Position([0, 0])), Ok([0, 0]));
    spool
}

pub(in crate::stream) fn is_idle(streams: &Streams) -> bool {
    streams.lanes.values().all(|lane| !lane.is_running())
}

/// Writes more than fits into a request, in pieces of uneven lengths; returns both streams.
fn write(spool: &Spool) -> [Vec<u8>; 2] {
    let mut streams = [Vec::new(), Vec::new()];
    for n in 0..400_usize {
        let bytes = vec![n as u8; 1 + n * 7919 % 20_000];
        spool.write_waiting(n % 3 / 2, &bytes, || false);
        streams[n % 3 / 2].extend(bytes);
    }
    streams
}

fn sha256(bytes: &[u8]) -> String {
    jscommon::token::sha256_hex(bytes)
}

#[track_caller]
fn arrives_whole(before: impl Fn(usize, &mut Vec<u8>, &[u8]) -> Option<Posted> + Send + Sync + 'static) {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new(before));
    let streams = start(dir.path(), &fake);
    let spool = watched(&streams, "job");
    let written = write(&spool);
    streams.end(spool);
    let (got, end) = fake.wait_for_end("job");
    assert!(got == written, "other bytes than were written");
    let stream = |n: usize| json!({"bytes": written[n].len(), "sha256": sha256(&written[n])});
    assert_eq!(end, json!({"stdout": stream(0), "stderr": stream(1)}));
    wait_until(|| is_idle(&streams));
}

#[test]
fn output_arrives_byte_for_byte_with_its_hashes() {
    arrives_whole(|_, _, _| None);
}

#[test]
fn output_arrives_whole_over_failures() {
    // A request that failed may have been stored, or a part of it up to a frame's end.
    arrives_whole(|n, stored, frames| match n % 5 {
        1 => Some(Posted::Failed("away".into(), None)),
        2 => {
            let part = frame::whole_within(frames, frames.len() / 2);
            stored.extend_from_slice(&frames[..part]);
            Some(Posted::Failed("cut".into(), None))
        }
        _ => None,
    });
}

#[test]
fn output_arrives_whole_where_there_is_little_room() {
    arrives_whole(|n, stored, frames| {
        let room = [0, 100, 30_000, 0, 70_000][n % 5];
        match n % 2 {
            0 => {
                stored.extend_from_slice(frames);
                Some(answered(stored, 30, room))
            }
            _ => Some(answered(stored, 30, room)),
        }
    });
}

#[test]
fn quiet_job_is_not_asked_for() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new(|_, _, _| None));
    let streams = start(dir.path(), &fake);
    let spool = watched(&streams, "job");
    spool.write(0, b"prompt> ").unwrap();
    wait_until(|| fake.output("job").0[0] == b"prompt> ");
    let posts = fake.posts();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(fake.posts(), posts);
    spool.write(1, b"later").unwrap();
    wait_until(|| fake.output("job").0[1] == b"later");
    streams.end(spool);
    fake.wait_for_end("job");
}

#[test]
fn watch_that_is_refused_ends_and_the_job_goes_on() {
    for posted in [Posted::Refused("never was a watch".into()), Posted::Unknown] {
        let (dir, given) = (tempfile::tempdir().unwrap(), posted.clone());
        let fake = Fake::new(move |_, _, _| Some(given.clone()));
        let streams = start(dir.path(), &fake);
        let spool = watched(&streams, "job");
        let written = write(&spool);
        wait_until(|| is_idle(&streams));
        assert_eq!(fake.posts(), 1);
        // The job's output is kept, and another watch finds it.
        streams.end(spool);
        let spool = streams.ended("job").unwrap();
        assert_eq!(spool.locate(0, 0).position, [0, 1].map(|n| written[n].len() as u64));
    }
}

#[test]
fn other_watches_are_sent_while_one_waits_for_room() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new(|_, _, _| None));
    let slow = Fake::new(|_, stored, _| Some(answered(stored, 30, 0)));
    struct Both(Arc<Fake>, Arc<Fake>);
    impl Post for Both {
        fn post(&self, id: &str, offset: u64, ticket: &str, frames: &[u8]) -> Posted {
            let fake = if id == "slow" { &self.1 } else { &self.0 };
            fake.post(id, offset, ticket, frames)
        }
    }
    let both: Arc<dyn Post> = Arc::new(Both(fake.clone(), slow.clone()));
    let streams = Streams::start(dir.path(), [("main".to_owned(), both)]);
    let stuck = watched(&streams, "slow");
    stuck.write(0, b"x").unwrap();
    wait_until(|| slow.posts() > 1);
    let quick = watched(&streams, "quick");
    quick.write(0, b"y").unwrap();
    wait_until(|| fake.output("quick").0[0] == b"y");
    assert!(streams.watch(&quick, "other", &command("w"), From::Tail(0)).unwrap_err().contains("controller"));
}

#[test]
fn attached_watch_begins_where_it_was_asked_to() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new(|_, _, _| None));
    let streams = start(dir.path(), &fake);
    let spool = streams.spool("job", [10, 20], None);
    spool.write(0, b"one").unwrap();
    spool.write(1, b"two").unwrap();
    spool.write(0, b"three").unwrap();
    for (id, from, begins) in [
        ("tail0", From::Tail(0), [18, 23]),
        ("tail5", From::Tail(5), [13, 23]),
        ("tail6", From::Tail(6), [13, 20]),
        ("tail", From::Tail(1000), [10, 20]),
        ("from", From::Position([13, 23]), [13, 23]),
        ("lost", From::Position([4, 20]), [4, 20]),
        ("within", From::Position([15, 23]), [13, 23]),
    ] {
        assert_eq!(streams.watch(&spool, "main", &command(id), from), Ok(begins), "{id}");
    }
    let beyond = streams.watch(&spool, "main", &command("beyond"), From::Position([19, 23]));
    assert!(beyond.unwrap_err().contains("beyond"));
    streams.end(spool);
    for (id, want) in [
        ("tail0", [&b""[..], b""]),
        ("tail5", [b"three", b""]),
        ("tail6", [b"three", b"two"]),
        ("tail", [b"onethree", b"two"]),
        ("from", [b"three", b""]),
        ("lost", [b"onethree", b"two"]),
    ] {
        let (got, end) = fake.wait_for_end(id);
        assert_eq!([got[0].as_slice(), got[1].as_slice()], want, "{id}");
        assert_eq!(end["stdout"], json!({"bytes": 18, "sha256": sha256(want[0])}), "{id}");
    }
    let gap = &fake.frames("lost")[0];
    assert_eq!(
        (gap.0, serde_json::from_slice(&gap.1).ok()),
        (Kind::Gap, Some(json!({"stdout": 6, "stderr": 0, "records": 0})))
    );
}

#[test]
fn watches_of_an_agent_that_died_are_sent_from_what_the_controller_has() {
    let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new(|_, _, _| None));
    let away = Fake::new(|_, _, _| Some(Posted::Failed("away".into(), None)));
    let streams = start(dir.path(), &away);
    let spool = watched(&streams, "job");
    let written = write(&spool);
    streams.stop();
    drop((spool, streams));
    // The controller had a part of it.
    let mut part = Vec::new();
    frame::push(&mut part, Kind::Stdout, &written[0][..1]);
    fake.stored.lock().unwrap().insert("job".into(), part);
    let streams = start(dir.path(), &fake);
    assert!(streams.is_resumed("job") && !streams.is_resumed("other"));
    let (got, end) = fake.wait_for_end("job");
    assert!(got == written);
    assert!(end["error"].as_str().unwrap().contains("the agent ended"), "{end}");
    assert_eq!(end["stdout"], json!({"bytes": written[0].len()}));
    wait_until(|| is_idle(&streams));
    drop(streams);
    let streams = start(dir.path(), &away);
    assert!(!streams.is_resumed("job") && away.posts() < 1000 && is_idle(&streams), "it has ended");
}

#[test]
fn part_of_a_file_is_sent_with_its_facts() {
    let (dir, fake) =
        (tempfile::tempdir().unwrap(), Fake::new(|n, _, _| (n % 3 == 1).then(|| Posted::Failed("away".into(), None))));
    let streams = start(dir.path(), &fake);
    let path = dir.path().join("file");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    for (id, offset, length, part) in [
        ("all", 0, None, &bytes[..]),
        ("rest", 2_999_990, Some(50), &bytes[2_999_990..]),
        ("part", 5, Some(100_000), &bytes[5..100_005]),
        ("none", 3_000_000, None, &[]),
    ] {
        let facts = streams.send_file("main", &command(id), &path, offset, length).unwrap();
        let ([got, _], end) = fake.wait_for_end(id);
        assert!(got == part, "{id}");
        assert_eq!((&end["size"], &end["sha256"]), (&json!(3_000_000), &json!(sha256(part))), "{id}");
        assert_eq!((&end["mode"], &end["mtime"]), (&facts["mode"], &facts["mtime"]));
    }
    for (path, offset, why) in
        [(dir.path(), 0, "no regular file"), (&dir.path().join("none"), 0, "none: "), (&path, 3_000_001, "beyond that")]
    {
        let fault = streams.send_file("main", &command("x"), path, offset, None).unwrap_err();
        assert!(fault.contains(why), "{fault}");
    }
}

#[test]
fn file_that_changes_ends_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![1; 200_000]).unwrap();
    let changed = path.clone();
    let fake = Fake::new(move |n, _, _| {
        if n == 0 {
            std::fs::write(&changed, "short").unwrap();
        }
        None
    });
    let streams = start(dir.path(), &fake);
    streams.send_file("main", &command("get"), &path, 0, None).unwrap();
    let (_, end) = fake.wait_for_end("get");
    assert!(end["error"].as_str().unwrap().contains("shorter"), "{end}");
}
