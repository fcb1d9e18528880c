//! The aggregator with its upload queue, and over UDP.

use super::*;
use jscommon::LevelSet;
use serde_json::Value;
use std::net::UdpSocket;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn source(domain: &str, name: &str) -> Arc<JobLabel> {
    Arc::new(JobLabel {
        jobid: "j".into(),
        domain: domain.into(),
        name: name.into(),
        db: LevelSet::NONE,
        ac: LevelSet::NONE,
        stats_interval: None,
    })
}

struct Bench {
    _dir: TempDir,
    upload_queue: Arc<UploadQueue>,
    config: Config,
}

fn bench() -> Bench {
    let dir = TempDir::new().unwrap();
    let mut config = Config::default();
    config.main.data_dir = dir.path().to_owned();
    (config.main.gid, config.main.nid) = (3, 4);
    config.controllers.insert("main".into(), crate::config::Controller::default());
    // Far longer than a test: only the last flush counts.
    config.stats.interval = Duration::from_secs(86_400);
    let upload_queue = UploadQueue::open(&config).unwrap();
    Bench { _dir: dir, upload_queue, config }
}

impl Bench {
    fn sent(&self) -> HashMap<String, f64> {
        let mut all = HashMap::new();
        while let Some(batch) = self.upload_queue.next("main", Kind::Stats) {
            let body: Value = serde_json::from_slice(&batch.body).unwrap();
            assert_eq!(body["timestamp"].as_u64().unwrap() % 86_400, 0);
            for pair in body["series"].as_array().unwrap() {
                all.insert(pair[0].as_str().unwrap().to_owned(), pair[1].as_f64().unwrap());
            }
            self.upload_queue.taken("main", Kind::Stats, batch.number);
        }
        all
    }
}

#[test]
fn lines_and_figures_arrive_under_their_names() {
    let bench = bench();
    let handle = Handle::start(&bench.config, Arc::clone(&bench.upload_queue)).unwrap();
    let inlet = handle.inlet();
    let (web, other) = (source("my web", "front.end"), source("", ""));
    inlet.job_started(&web);
    inlet.lines(&web, "hits:3|c\nrubbish\n");
    inlet.lines(&other, "g:5|g");
    let figures = Figures { cpu: 1.5, rss: 4096, ..Figures::default() };
    inlet.figures(HashMap::from([(("my web".into(), "front.end".into()), figures)]));
    inlet.node(vec![("load.1".into(), 0.5)]);
    inlet.job_ended(&web);
    drop(handle);
    let sent = bench.sent();
    for (key, value) in [
        ("3.4.my_web.front_end.hits", 3.0),
        ("3.4.my_web.front_end.process.cpu", 1.5),
        ("3.4.my_web.front_end.process.rss", 4096.0),
        ("3.4.unknown.unknown.g", 5.0),
        ("3.4.node.load.1", 0.5),
        ("3.4.node.stats.bad_lines", 1.0),
    ] {
        assert_eq!(sent.get(key), Some(&value), "{key} in {sent:?}");
    }
}

#[test]
fn samples_of_a_monitor_that_hangs_are_not_sent() {
    let bench = bench();
    for (max_age, sent) in [(Duration::MAX, 1), (Duration::ZERO, 0)] {
        let inlet = Inlet::default();
        inlet.node(vec![("load.1".into(), 0.5)]);
        inlet.figures(HashMap::from([(("d".into(), "n".into()), Figures::default())]));
        // A sample has no age before the clock has moved on.
        let taken = Instant::now();
        while taken.elapsed().is_zero() {}
        let (_stop, stopped) = bounded(0);
        let (shared, upload_queue) = (Arc::clone(&inlet.shared), Arc::clone(&bench.upload_queue));
        Flusher { node: bench.config.main.node(), seconds: 60, max_age, shared, upload_queue, stopped }.flush(86_400);
        let all = bench.sent();
        let count = |part: &str| all.keys().filter(|key| key.contains(part)).count();
        assert_eq!((count("node.load.1"), count("d.n.process.rss")), (sent, sent), "{all:?}");
    }
}

#[test]
fn gauge_of_a_datagram_outlives_jobs_without_a_name() {
    let inlet = Inlet::default();
    let nameless = source("", "");
    let flusher = |upload_queue| Flusher {
        node: NodeId { gid: 3, nid: 4 },
        seconds: 10,
        max_age: Duration::MAX,
        shared: Arc::clone(&inlet.shared),
        upload_queue,
        stopped: bounded(0).1,
    };
    let bench = bench();
    let flusher = flusher(Arc::clone(&bench.upload_queue));
    inlet.datagrams([&b"udp:1|g"[..]].into_iter());
    inlet.job_started(&nameless);
    inlet.lines(&nameless, "job:2|g");
    let (udp, job) = ("3.4.unknown.unknown.udp".to_owned(), "3.4.unknown.unknown.job".to_owned());
    let flush = || {
        flusher.flush(0);
        let mut sent: Vec<String> = bench.sent().into_keys().collect();
        sent.sort();
        sent
    };
    assert_eq!(flush(), [job.clone(), udp.clone()]);
    inlet.job_ended(&nameless);
    assert_eq!(flush(), [job, udp.clone()], "the last one after its end still has it");
    for _ in 0..3 {
        assert_eq!(flush(), std::slice::from_ref(&udp));
    }
}

#[test]
fn udp_is_taken_and_stops_at_once() {
    let bench = bench();
    let inlet = Inlet::default();
    let udp = udp::Handle::start("127.0.0.1:0".parse().unwrap(), inlet.clone()).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..100 {
        client.send_to(b"hits:1|c\nload:2|g", udp.address()).unwrap();
    }
    let began = Instant::now();
    let mut total = 0.0;
    while total < 100.0 && began.elapsed() < Duration::from_secs(20) {
        let interval = lock(&inlet.shared.aggregate).flush(1, |_| false);
        interval.series(1, &mut |group, key, end, value| {
            if (group, key, end) == (NOBODY, "hits", "") {
                total += value;
            }
        });
        std::thread::yield_now();
    }
    assert_eq!(total, 100.0);
    drop(udp);
    drop(bench);
}

#[test]
fn many_series_go_in_several_batches() {
    let bench = bench();
    let handle = Handle::start(&bench.config, Arc::clone(&bench.upload_queue)).unwrap();
    let lines: String = (0..BATCH).map(|n| format!("k{n}:1|c\n")).collect();
    handle.inlet().lines(&source("d", "n"), &lines);
    drop(handle);
    assert_eq!(bench.sent().len(), 2 * BATCH);
}
