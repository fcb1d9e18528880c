//! Live output where something fails: Redis, the link, the agent, or a reader that does not read.

use jstests::process::processes_of;
use jstests::{
    Acc, AccOptions, Action, Agent, AgentOptions, Client, LONG, Proxy, Redis, SHORT, Stage, TcpProxy, Watch, proc,
    wait_until,
};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

const MB: usize = 1_000_000;
const MIB: usize = 1 << 20;
/// The most that the spool of a job may take.
const SPOOL_BYTES: u64 = 64 << 20;

/// A file of random bytes, and these.
fn random_file(dir: &Path, length: usize) -> (PathBuf, Vec<u8>) {
    let mut bytes = vec![0; length];
    fastrand::fill(&mut bytes);
    let file = dir.join("bytes");
    fs::write(&file, &bytes).expect("the file");
    (file, bytes)
}

/// A line that writes a file, waits for another to be there, and writes it once more; and that other file.
fn twice(file: &Path) -> (String, PathBuf) {
    let go = file.with_extension("go");
    let [file, go_file] = [file, &go].map(|path| path.display().to_string());
    (format!("cat {file}; while ! test -e {go_file}; do sleep 0.02; done; cat {file}"), go)
}

fn size(path: &Path) -> u64 {
    // What is removed meanwhile counts as nothing.
    let Ok(meta) = fs::metadata(path) else { return 0 };
    match meta.is_dir() {
        true => fs::read_dir(path).into_iter().flatten().flatten().map(|entry| size(&entry.path())).sum(),
        false => meta.len(),
    }
}

fn spool(agent: &Agent) -> u64 {
    size(&agent.data_dir().join("spool"))
}

/// A job that writes a file 120 times, and a byte to a counter each time.
struct Counting {
    line: String,
    counter: PathBuf,
    output: Vec<u8>,
}

impl Counting {
    const TIMES: usize = 120;

    fn new(dir: &Path) -> Counting {
        let (file, bytes) = random_file(dir, MIB);
        let counter = dir.join("counter");
        let line = format!(
            "i=0; while test $i -lt {}; do cat {}; i=$((i+1)); printf . >> {}; done",
            Counting::TIMES,
            file.display(),
            counter.display()
        );
        Counting { line, counter, output: bytes.repeat(Counting::TIMES) }
    }

    fn count(&self) -> usize {
        size(&self.counter) as usize
    }

    /// Waits until the spool is full and the job stands, with a reader that reads nothing.
    #[track_caller]
    fn wait_until_it_stands(&self, agent: &Agent, watch: &mut Watch) {
        wait_until("the job waits", 4 * LONG, || {
            watch.renew();
            let before = self.count();
            sleep(SHORT);
            spool(agent) > 50 << 20 && self.count() == before
        });
        assert!((50..Counting::TIMES).contains(&self.count()), "{}", self.count());
    }
}

/// A line that writes a file in 120 pieces, with a pause after each.
fn slowly(file: &Path, length: usize) -> String {
    let piece = length / 120;
    assert_eq!(piece * 120, length);
    let dd = format!("dd bs={piece} count=1 status=none iflag=fullblock <&3");
    format!("exec 3<{}; i=0; while test $i -lt 120; do {dd}; i=$((i+1)); sleep 0.02; done", file.display())
}

#[test]
fn output_survives_the_kill_of_redis_and_comes_once() {
    let mut redis = Redis::start_durable();
    let acc = Acc::start(&redis, AccOptions::default());
    let agent = Agent::start(&acc, AgentOptions::default());
    let (file, bytes) = random_file(agent.scratch(), 30 * MB);
    let mut watch = Watch::open(&redis, &slowly(&file, bytes.len()));
    for megabytes in [0, 8, 16, 24] {
        watch.read_beyond(megabytes * MB);
        redis.kill();
        redis.resume();
        watch.reconnect(redis.connect());
    }
    assert!(watch.finish()[0] == bytes);
    assert_eq!(watch.repeated, 0);
    assert_eq!(Client::new(&redis).pop(&watch.id)["state"], "OK");
}

/// An agent behind a link that can be cut.
fn behind_a_link() -> (Redis, Acc, TcpProxy, Agent) {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let link = TcpProxy::start(acc.port());
    let via = Some(format!("http://127.0.0.1:{}", link.port()));
    let agent = Agent::start(&acc, AgentOptions { via, ..AgentOptions::default() });
    (redis, acc, link, agent)
}

#[test]
fn output_survives_cuts_of_a_second() {
    let (redis, _acc, link, agent) = behind_a_link();
    let (file, bytes) = random_file(agent.scratch(), 20 * MB);
    let mut watch = Watch::open(&redis, &format!("cat {}", file.display()));
    for round in 0..5 {
        // Most requests are of 1 MiB: the cut comes in the middle of one.
        link.stall_after(3 * MB + round * 123_456);
        watch.read_until("the link is cut", |_| link.is_stalled());
        sleep(Duration::from_secs(1));
        link.cut();
        link.stall(false);
    }
    assert!(watch.finish()[0] == bytes);
    assert_eq!(watch.repeated, 0);
    assert_eq!(Client::new(&redis).pop(&watch.id)["state"], "OK");
}

#[test]
fn requests_and_answers_that_are_lost_are_made_good() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let proxy = Proxy::start(acc.port());
    let agent = Agent::start(&acc, AgentOptions { via: Some(proxy.url()), ..AgentOptions::default() });
    proxy.rule(|request| match request.nth % 6 {
        2 if request.path == "stream" => Action::Swallow,
        4 if request.path == "stream" => Action::Cut,
        _ => Action::Forward,
    });
    let (file, bytes) = random_file(agent.scratch(), 20 * MB);
    let mut watch = Watch::open(&redis, &format!("cat {}", file.display()));
    assert!(watch.finish()[0] == bytes);
    assert_eq!(watch.repeated, 0);
}

#[test]
fn output_survives_a_minute_without_a_link() {
    let (redis, _acc, link, agent) = behind_a_link();
    let (file, bytes) = random_file(agent.scratch(), 10 * MB);
    let (line, go) = twice(&file);
    let done = agent.scratch().join("done");
    let mut watch = Watch::open(&redis, &format!("{line}; touch {}", done.display()));
    link.stall_after(5 * MB);
    watch.read_until("the link is cut", |_| link.is_stalled());
    let cut = Instant::now();
    fs::write(&go, "").expect("the file");
    watch.read_until("the job has ended, for it waits for no link", |_| done.exists());
    watch.read_until("the minute is over", |_| cut.elapsed() >= Duration::from_secs(60));
    assert_eq!(watch.end, None);
    link.cut();
    link.stall(false);
    assert!(watch.finish()[0] == bytes.repeat(2));
    assert_eq!(watch.repeated, 0);
    assert_eq!(Client::new(&redis).pop(&watch.id)["state"], "OK");
}

#[test]
fn job_waits_for_a_reader_that_stops_and_nothing_else_does() {
    let mut stage = Stage::start();
    let other = Agent::start(&stage.acc, AgentOptions::nid(11));
    let job = Counting::new(stage.agent.scratch());
    let mut watch = Watch::open(&stage.redis, &job.line);
    watch.read_beyond(0);
    job.wait_until_it_stands(&stage.agent, &mut watch);
    let stood_at = job.count();
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
    let unwatched = stage.client.shell("echo unwatched");
    assert_eq!(stage.client.pop(&unwatched)["streams"][0], "unwatched");
    let (file, bytes) = random_file(other.scratch(), 5 * MB);
    for nid in [10, 11] {
        let mut beside = Watch::open_on(&stage.redis, nid, &format!("cat {}", file.display()));
        assert!(beside.finish()[0] == bytes, "1:{nid}");
        watch.renew();
    }
    assert_eq!(job.count(), stood_at, "it waits still");
    assert!(spool(&stage.agent) <= SPOOL_BYTES + (10 << 20), "{}", spool(&stage.agent));
    assert!(watch.finish()[0] == job.output);
    assert_eq!(stage.client.pop(&watch.id)["state"], "OK");
}

#[test]
fn node_that_is_read_is_not_delayed_by_one_that_is_not() {
    let stage = Stage::start();
    let other = Agent::start(&stage.acc, AgentOptions::nid(11));
    let job = Counting::new(stage.agent.scratch());
    let (file, bytes) = random_file(other.scratch(), 40 * MB);
    let mut unread = Watch::open(&stage.redis, &job.line);
    let mut read = Watch::open_on(&stage.redis, 11, &format!("cat {}", file.display()));
    assert!(read.finish()[0] == bytes);
    unread.renew();
    assert!(job.count() < Counting::TIMES);
    job.wait_until_it_stands(&stage.agent, &mut unread);
    assert!(unread.finish()[0] == job.output);
}

#[test]
fn ten_readers_of_a_job_get_the_same() {
    let stage = Stage::start();
    let (file, bytes) = random_file(stage.agent.scratch(), 5 * MB);
    let (line, go) = twice(&file);
    let mut watch = Watch::open(&stage.redis, &format!("{line}; echo end >&2"));
    watch.read_beyond(MB);
    let id = watch.id.clone();
    let mut watches: Vec<Watch> = (0..9).map(|_| Watch::attach(&stage.redis, &id)).collect();
    watches.push(watch);
    fs::write(&go, "").expect("the file");
    let output = bytes.repeat(2);
    std::thread::scope(|scope| {
        for watch in &mut watches {
            scope.spawn(|| {
                let [stdout, stderr] = watch.finish();
                assert!(stdout == output && stderr == b"end\n", "{}", watch.id);
            });
        }
    });
    let ends: Vec<&Option<Value>> = watches.iter().map(|watch| &watch.end).collect();
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
}

#[test]
fn job_of_a_reader_that_left_ends_within_bounds() {
    const BYTES: u64 = 2_000_000_000;
    let mut stage = Stage::start();
    let mut watch = Watch::open(&stage.redis, &format!("head -c {BYTES} /dev/zero"));
    watch.read_beyond(0);
    watch.expire();
    let (start, mut most) = (Instant::now(), 0);
    let result = loop {
        most = most.max(spool(&stage.agent));
        if let Some(result) = stage.client.pop_within(&watch.id, Duration::from_millis(100)) {
            break result;
        }
        assert!(start.elapsed() < 10 * LONG, "it waits for nobody");
    };
    assert_eq!((&result["state"], &result["bytes"]), (&json!("OK"), &json!([BYTES, 0])), "{result}");
    assert!(most <= SPOOL_BYTES, "{most}");
    let memory = proc::peak_memory(stage.agent.pid()).expect("its memory");
    assert!(memory < 64 << 20, "{memory}");
    assert!(stage.agent.output().contains("has lapsed"));
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
}

#[test]
fn death_of_the_agent_ends_the_stream_with_an_error() {
    let mut stage = Stage::start();
    let (file, bytes) = random_file(stage.agent.scratch(), 20 * MB);
    let mut watch = Watch::open(&stage.redis, &format!("cat {0}; sleep 1000", file.display()));
    watch.read_beyond(2 * MB);
    stage.agent.kill();
    stage.agent.resume();
    let end = watch.read_to_end();
    let stdout = &watch.outputs[0];
    assert!(bytes.starts_with(stdout), "what came is not what was written");
    assert!(end["error"].as_str().is_some_and(|error| error.contains("agent")), "{end}");
    assert_eq!(end["stdout"], json!({"bytes": stdout.len()}));
    assert_eq!(stage.client.pop(&watch.id)["state"], "ERROR");
    wait_until("the job is gone", LONG, || processes_of(&watch.id).is_empty());
}
