//! Live output from end to end: a real agent, real controllers, and a reader of the stream.

use jscommon::frame::{self, Kind};
use jscommon::token::sha256_hex;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, Stage, fresh_id};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Instant;

/// A client that watches one job.
struct Watch<'a> {
    client: &'a mut Client,
    id: String,
    read: String,
    renewed: Instant,
    outputs: [Vec<u8>; 2],
    next_offset: usize,
    end: Option<Value>,
}

type Read = Option<Vec<(String, Vec<(String, HashMap<String, Vec<u8>>)>)>>;

impl Watch<'_> {
    /// Opens a watch and sends a command that streams.
    fn open<'a>(client: &'a mut Client, line: &str) -> Watch<'a> {
        let id = fresh_id();
        let mut watch = Watch {
            client,
            id: id.clone(),
            read: "0-0".into(),
            renewed: Instant::now(),
            outputs: Default::default(),
            next_offset: 0,
            end: None,
        };
        watch.renew();
        let args = json!({"cmd": "/bin/sh", "args": ["-c", line], "stream": true});
        watch.client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": args}));
        watch
    }

    fn renew(&mut self) {
        let key = format!("jsacc:watch:{}", self.id);
        let _: String = self.client.redis(&["SET", &key, &self.read, "EX", "30"]);
        self.renewed = Instant::now();
    }

    /// Reads what has come, in pieces as they are in the stream.
    fn step(&mut self) {
        let key = format!("jsacc:stream:{}", self.id);
        let words = ["XREAD", "COUNT", "16", "BLOCK", "200", "STREAMS", &key, &self.read];
        let read: Read = self.client.redis(&words);
        for (at, fields) in read.into_iter().flatten().flat_map(|(_, entries)| entries) {
            assert_eq!(fields["n"], b"1:10");
            assert_eq!(fields["o"], self.next_offset.to_string().into_bytes(), "no request is missing or twice there");
            self.next_offset += fields["d"].len();
            for frame in frame::frames(&fields["d"]) {
                assert_eq!(self.end, None, "nothing follows the end");
                let frame = frame.expect("whole frames");
                match frame.kind {
                    Kind::Stdout => self.outputs[0].extend_from_slice(frame.payload),
                    Kind::Stderr => self.outputs[1].extend_from_slice(frame.payload),
                    Kind::End => self.end = Some(serde_json::from_slice(frame.payload).expect("JSON")),
                    kind => panic!("a frame of kind {kind:?}"),
                }
            }
            self.read = at;
        }
        if self.renewed.elapsed().as_millis() > 300 || self.end.is_some() {
            self.renew();
        }
    }

    /// Reads up to the end, and compares it with what came.
    #[track_caller]
    fn finish(&mut self) -> [Vec<u8>; 2] {
        let start = Instant::now();
        while self.end.is_none() {
            assert!(start.elapsed() < 4 * LONG, "no end after {} bytes", self.next_offset);
            self.step();
        }
        let end = self.end.clone().expect("the end");
        for (name, bytes) in ["stdout", "stderr"].into_iter().zip(&self.outputs) {
            assert_eq!(end[name], json!({"bytes": bytes.len(), "sha256": sha256_hex(bytes)}), "{name}: {end}");
        }
        std::mem::take(&mut self.outputs)
    }
}

#[test]
fn output_of_a_job_comes_byte_for_byte() {
    let mut stage = Stage::start();
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("bytes");
    let line = format!("head -c 50000000 /dev/urandom > {0}; cat {0}; printf 'to \\377 stderr' >&2", file.display());
    let mut watch = Watch::open(&mut stage.client, &line);
    let [stdout, stderr] = watch.finish();
    assert!(stdout == std::fs::read(&file).expect("the file"), "{} bytes differ", stdout.len());
    assert_eq!(stderr, b"to \xff stderr");
    let id = watch.id.clone();
    assert_eq!(stage.client.pop(&id)["state"], "OK");
}

#[test]
fn output_comes_while_the_job_runs() {
    let mut stage = Stage::start();
    let dir = tempfile::tempdir().expect("a folder");
    let go = dir.path().join("go");
    let line = format!("echo first; while ! test -e {}; do sleep 0.02; done; echo second", go.display());
    let mut watch = Watch::open(&mut stage.client, &line);
    let start = Instant::now();
    while watch.outputs[0].is_empty() {
        assert!(start.elapsed() < LONG, "nothing comes");
        watch.step();
    }
    assert_eq!(watch.outputs[0], b"first\n");
    std::fs::write(&go, "").expect("the file");
    assert_eq!(watch.finish()[0], b"first\nsecond\n");
}

#[test]
fn output_survives_the_kill_of_controllers() {
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let _agent = Agent::start(&acc, AgentOptions::default());
    let line = "i=0; while test $i -lt 300; do i=$((i+1)); echo line $i; seq 2000; sleep 0.01; done";
    let mut watch = Watch::open(&mut client, line);
    for megabytes in 0..2 {
        let start = Instant::now();
        while watch.outputs[0].len() <= megabytes * 1_000_000 {
            assert!(start.elapsed() < LONG, "nothing comes");
            watch.step();
        }
        acc.kill();
        acc.resume();
    }
    let [stdout, _] = watch.finish();
    let mut want = Vec::new();
    for i in 1..=300 {
        want.extend(format!("line {i}\n").into_bytes());
        (1..=2000).for_each(|n| want.extend(format!("{n}\n").into_bytes()));
    }
    assert!(stdout == want, "{} bytes, and {} were written", stdout.len(), want.len());
}
