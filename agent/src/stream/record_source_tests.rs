use crate::config::Config;
use crate::job::JobLabel;
use crate::storage::message_log::batch::Batch;
use crate::storage::message_log::{Handle, Query};
use crate::storage::upload_queue::UploadQueue;
use crate::stream::sender::tests::{Fake, command, is_idle, start, wait_until};
use crate::stream::{Posted, Reply, Streams};
use jscommon::frame::{self, Kind};
use jscommon::{LevelSet, NodeId, Record};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tempfile::TempDir;

const NODE: NodeId = NodeId { gid: 1, nid: 1 };

struct Bench {
    log: Handle,
    label: Arc<JobLabel>,
    dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        (config.main.gid, config.main.nid) = (1, 1);
        config.main.data_dir = dir.path().join("data");
        std::fs::create_dir(&config.main.data_dir).unwrap();
        let log = Handle::start(&config, UploadQueue::open(&config).unwrap()).unwrap();
        let label = Arc::new(JobLabel {
            jobid: "job".into(),
            domain: String::new(),
            name: String::new(),
            db: LevelSet::ALL,
            ac: LevelSet::NONE,
            stats_interval: None,
        });
        Bench { log, label, dir }
    }

    fn write(&self, text: &str) {
        let mut batch = Batch::new(&self.label, 5, text.len());
        batch.push(1, text);
        self.log.inlet().push(batch);
    }

    fn follow(&self, streams: &Streams, id: &str, query: Query) -> u32 {
        streams.follow("main", &command(id), &self.log.remote(), query, NODE).unwrap()
    }
}

/// The texts of the records that came; of a gap its JSON.
fn texts(fake: &Fake, id: &str) -> Vec<String> {
    let text = |(kind, payload): (Kind, Vec<u8>)| match kind {
        Kind::Record => serde_json::from_slice::<Record>(&payload).unwrap().data,
        _ => String::from_utf8(payload).unwrap(),
    };
    fake.frames(id).into_iter().map(text).collect()
}

fn numbered(n: usize) -> String {
    format!("{n} {}", "x".repeat(n * 7919 % 5000))
}

#[test]
fn records_arrive_once_and_in_order_over_failures() {
    let bench = Bench::new();
    // A request that failed may have been stored, or a part of it; what was stored may be lost.
    let fake = Fake::new(|n, stored, frames| match n % 7 {
        1 => Some(Posted::Failed("away".into(), None)),
        2 => {
            let part = frame::whole_within(frames, frames.len() / 2);
            stored.extend_from_slice(&frames[..part]);
            Some(Posted::Failed("cut".into(), None))
        }
        3 => {
            let length = frame::whole_within(stored, stored.len() - stored.len() / 8);
            stored.truncate(length);
            Some(Posted::Answered(Reply { have: length as u64, watch: 30, room: 60_000 }))
        }
        _ => None,
    });
    let streams = start(bench.dir.path(), &fake);
    (0..300).for_each(|n| bench.write(&numbered(n)));
    assert_eq!(bench.follow(&streams, "all", Query::default()), 0);
    assert_eq!(bench.follow(&streams, "late", Query { after: Some(200), ..Query::default() }), 200);
    (300..600).for_each(|n| bench.write(&numbered(n)));
    let all: Vec<String> = (0..600).map(numbered).collect();
    wait_until(|| texts(&fake, "all").len() >= 600 && texts(&fake, "late").len() >= 400);
    assert!(texts(&fake, "all") == all && texts(&fake, "late") == all[200..]);
    streams.stop();
    for id in ["all", "late"] {
        let error = fake.wait_for_end(id).1["error"].to_string();
        assert!(error.contains("the agent stops"), "{error}");
    }
    wait_until(|| is_idle(&streams));
}

#[test]
fn record_without_room_in_a_frame_is_a_gap() {
    let (bench, fake) = (Bench::new(), Fake::new(|_, _, _| None));
    let streams = start(bench.dir.path(), &fake);
    bench.follow(&streams, "f", Query::default());
    for text in ["before".to_owned(), "x".repeat(frame::MAX_PAYLOAD_BYTES), "after".to_owned()] {
        bench.write(&text);
    }
    wait_until(|| texts(&fake, "f").len() == 3);
    assert_eq!(texts(&fake, "f"), ["before", r#"{"records":1}"#, "after"]);
}

#[test]
fn controller_that_has_something_else_is_told_the_end() {
    let bench = Bench::new();
    let is_lost = Arc::new(AtomicBool::new(false));
    let lost = is_lost.clone();
    let fake = Fake::new(move |_, stored, _| {
        if lost.swap(false, Ordering::Relaxed) {
            stored.truncate(3);
        }
        None
    });
    let streams = start(bench.dir.path(), &fake);
    bench.follow(&streams, "f", Query::default());
    bench.write("first");
    wait_until(|| texts(&fake, "f") == ["first"]);
    is_lost.store(true, Ordering::Relaxed);
    bench.write("second");
    let end = || {
        let stored = fake.stored.lock().unwrap().get("f").cloned().unwrap_or_default();
        let (_, payload) = stored[3..].split_at_checked(frame::HEADER_BYTES)?;
        serde_json::from_slice::<Value>(payload).ok()
    };
    wait_until(|| end().is_some());
    assert!(end().unwrap()["error"].as_str().unwrap().contains("another part"), "{:?}", end());
}

#[test]
fn follower_of_a_quiet_job_costs_no_requests() {
    let (bench, fake) = (Bench::new(), Fake::new(|_, _, _| None));
    let streams = start(bench.dir.path(), &fake);
    bench.follow(&streams, "quiet", Query { jobid: Some("other".into()), ..Query::default() });
    bench.follow(&streams, "all", Query::default());
    (0..200).for_each(|n| bench.write(&numbered(n)));
    wait_until(|| texts(&fake, "all").len() == 200);
    assert_eq!(texts(&fake, "quiet"), Vec::<String>::new());
    let begin = Instant::now();
    streams.stop();
    assert!(begin.elapsed().as_secs() < 3 && is_idle(&streams), "an idle watch keeps no stop waiting");
}
