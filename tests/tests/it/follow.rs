//! Records as they are stored, from end to end: a real agent, real controllers, and a reader of the stream.

use jscommon::frame::{self, Kind};
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, Stage, fresh_id, wait_until};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A client that follows the records of the node 1:10.
struct Follower {
    id: String,
    read: String,
    renewed: Instant,
    next_offset: usize,
    records: Vec<Value>,
    end: Option<Value>,
}

type Read = Option<Vec<(String, Vec<(String, HashMap<String, Vec<u8>>)>)>>;

impl Follower {
    /// Opens a watch on the records that match.
    #[track_caller]
    fn open(client: &mut Client, filter: Value) -> Follower {
        let id = fresh_id();
        let read = "0-0".to_owned();
        let mut follower =
            Follower { id, read, renewed: Instant::now(), next_offset: 0, records: Vec::new(), end: None };
        follower.renew(client);
        let command = json!({"id": follower.id, "gid": 1, "nid": 10, "cmd": "follow", "data": filter, "quiet": true});
        client.push(command);
        let result = client.pop(&follower.id);
        assert_eq!((&result["state"], &result["level"]), (&json!("OK"), &json!(20)), "{result}");
        let answer: Value = serde_json::from_str(result["data"].as_str().expect("data")).expect("JSON");
        assert!(answer["from"].is_u64(), "{answer}");
        follower
    }

    fn renew(&mut self, client: &mut Client) {
        let key = format!("jsacc:watch:{}", self.id);
        let _: String = client.redis(&["SET", &key, &self.read, "EX", "30"]);
        self.renewed = Instant::now();
    }

    /// Reads what has come.
    fn step(&mut self, client: &mut Client) {
        let key = format!("jsacc:stream:{}", self.id);
        let words = ["XREAD", "COUNT", "16", "BLOCK", "100", "STREAMS", &key, &self.read];
        let read: Read = client.redis(&words);
        for (at, fields) in read.into_iter().flatten().flat_map(|(_, entries)| entries) {
            assert_eq!(fields["o"], self.next_offset.to_string().into_bytes(), "no request is missing or twice there");
            self.next_offset += fields["d"].len();
            for frame in frame::frames(&fields["d"]) {
                assert_eq!(self.end, None, "nothing follows the end");
                let frame = frame.expect("whole frames");
                let said = serde_json::from_slice(frame.payload).expect("JSON");
                match frame.kind {
                    Kind::Record => self.records.push(said),
                    Kind::End => self.end = Some(said),
                    kind => panic!("a frame of kind {kind:?}: {said}"),
                }
            }
            self.read = at;
        }
        if self.renewed.elapsed().as_millis() > 300 {
            self.renew(client);
        }
    }

    /// Reads until there are so many records.
    #[track_caller]
    fn wait_for(&mut self, client: &mut Client, count: usize) {
        let start = Instant::now();
        while self.records.len() < count && self.end.is_none() {
            assert!(start.elapsed() < 2 * LONG, "{} of {count} records came", self.records.len());
            self.step(client);
        }
    }
}

const LINES: &str = "i=0; while test $i -lt 3000; do i=$((i+1)); echo line $i; echo 7::warn $i; done";

#[test]
fn records_come_as_they_are_stored_and_are_those_that_get_msgs_finds() {
    let mut stage = Stage::start();
    let client = &mut stage.client;
    let before = client.send("execute", json!({"cmd": "/bin/sh", "args": ["-c", "echo 7::before; echo plain"]}));
    client.pop(&before);
    let mut everything = Follower::open(client, json!({}));
    let mut warnings = Follower::open(client, json!({"levels": "7"}));
    everything.wait_for(client, 3);
    warnings.wait_for(client, 1);
    assert_eq!(json!(everything.records), json!(client.records(json!({}))), "what was stored before");
    assert_eq!(warnings.records[0]["data"], "before");
    let id = fresh_id();
    let mut job = Follower::open(client, json!({"jobid": id, "levels": "1,30"}));
    client.push(
        json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "/bin/sh", "args": ["-c", LINES]}}),
    );
    assert_eq!(client.pop(&id)["state"], "OK");
    for (follower, filter) in [
        (&mut everything, json!({})),
        (&mut warnings, json!({"levels": "7"})),
        (&mut job, json!({"jobid": id, "levels": "1,30"})),
    ] {
        let want = client.records(filter.clone());
        assert!(want.len() > 3000);
        follower.wait_for(client, want.len());
        assert!(follower.records == want, "{filter}: {} and not {}", follower.records.len(), want.len());
    }
    let mut late = Follower::open(client, json!({"after": everything.records[5000]["id"], "levels": "1"}));
    late.wait_for(client, 400);
    let want = client.records(json!({"after": everything.records[5000]["id"], "levels": "1"}));
    late.wait_for(client, want.len());
    assert!(late.records == want);
    let history: Vec<String> = client.redis(&["LRANGE", "jsacc:jobs", "0", "-1"]);
    for follower in [&everything, &warnings, &job, &late] {
        assert_eq!(follower.end, None, "it has no end of its own");
        assert!(!history.contains(&follower.id), "it is quiet");
    }
}

#[test]
fn records_survive_the_kill_of_controllers() {
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let _agent = Agent::start(&acc, AgentOptions::default());
    let line = "i=0; while test $i -lt 200; do i=$((i+1)); echo 7::round $i; seq 50; sleep 0.01; done";
    let filter = json!({"levels": "1,7"});
    let mut follower = Follower::open(&mut client, filter.clone());
    let id = client.shell(line);
    for count in [1, 3000] {
        follower.wait_for(&mut client, count);
        acc.kill();
        acc.resume();
    }
    assert_eq!(client.pop(&id)["state"], "OK");
    let want = client.records(filter);
    assert_eq!(want.len(), 200 * 51);
    follower.wait_for(&mut client, want.len());
    assert!(follower.records == want, "{} records, and {} are stored", follower.records.len(), want.len());
}

#[test]
fn follow_is_refused_with_the_reason_and_ends_with_the_agent() {
    let mut stage = Stage::start();
    let client = &mut stage.client;
    for (data, reason) in [(json!({"joib": "a"}), "no 'joib'"), (json!({"levels": "x"}), "levels: ")] {
        let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "follow", "data": data}));
        let result = client.pop(&id);
        assert_eq!(result["state"], "ERROR");
        assert!(result["data"].as_str().expect("a sentence").contains(reason), "{result}");
    }
    let mut follower = Follower::open(client, json!({"limit": 0}));
    stage.agent.stop();
    let start = Instant::now();
    while follower.end.is_none() {
        assert!(start.elapsed() < LONG, "no end");
        follower.step(client);
    }
    let error = follower.end.expect("an end")["error"].to_string();
    assert!(error.contains("the agent stops"), "{error}");
}

#[test]
fn watch_that_nobody_keeps_ends_by_itself() {
    let mut stage = Stage::start();
    let client = &mut stage.client;
    let follower = Follower::open(client, json!({"jobid": "none"}));
    let has_thread = |stage: &Stage| jstests::proc::threads(stage.agent.pid()).expect("threads");
    let with = has_thread(&stage);
    let _: usize = stage.client.redis(&["DEL", &format!("jsacc:watch:{}", follower.id)]);
    wait_until("the thread ends", Duration::from_secs(60), || has_thread(&stage) < with);
}
