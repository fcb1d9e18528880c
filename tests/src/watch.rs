//! A client that watches one job of one node: it keeps the watch, reads the stream, and compares it with its end.

use crate::client::Client;
use crate::fresh_id;
use crate::redis_server::Redis;
use crate::wait::LONG;
use jscommon::frame::{self, Kind};
use jscommon::token::sha256_hex;
use redis::Connection;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often the watch is renewed; at its end at once.
const RENEW: Duration = Duration::from_millis(300);

type Read = Option<Vec<(String, Vec<(String, HashMap<String, Vec<u8>>)>)>>;

/// A watch of one job, with a connection of its own.
pub struct Watch {
    client: Client,
    /// The id of the watch: the job's, or that of the command that opened it.
    pub id: String,
    node: String,
    read: String,
    renewed: Instant,
    /// The bytes of stdout and of stderr so far.
    pub outputs: [Vec<u8>; 2],
    /// The frame bytes so far.
    pub next_offset: usize,
    /// Frame bytes that came once more, and were skipped.
    pub repeated: usize,
    /// The end frame.
    pub end: Option<Value>,
}

impl Watch {
    /// Opens a watch and sends a shell line that streams to node 1:`nid`.
    #[track_caller]
    pub fn open_on(redis: &Redis, nid: u32, line: &str) -> Watch {
        let mut watch = Watch::new(redis, nid);
        let args = json!({"cmd": "/bin/sh", "args": ["-c", line], "stream": true});
        watch.client.push(json!({"id": watch.id, "gid": 1, "nid": nid, "cmd": "execute", "args": args}));
        watch
    }

    /// As [`Watch::open_on`], on node 1:10.
    #[track_caller]
    pub fn open(redis: &Redis, line: &str) -> Watch {
        Watch::open_on(redis, 10, line)
    }

    /// Opens another watch on a job of node 1:10, from the begin of its output.
    #[track_caller]
    pub fn attach(redis: &Redis, job: &str) -> Watch {
        let mut watch = Watch::new(redis, 10);
        let data = json!({"id": job, "from": [0, 0]});
        watch.client.push(json!({"id": watch.id, "gid": 1, "nid": 10, "cmd": "attach", "data": data}));
        let result = watch.client.pop(&watch.id);
        assert_eq!((&result["state"], &result["data"]), (&json!("OK"), &json!(r#"{"from":[0,0]}"#)), "{result}");
        watch
    }

    #[track_caller]
    fn new(redis: &Redis, nid: u32) -> Watch {
        let mut watch = Watch {
            client: Client::new(redis),
            id: fresh_id(),
            node: format!("1:{nid}"),
            read: "0-0".into(),
            renewed: Instant::now(),
            outputs: Default::default(),
            next_offset: 0,
            repeated: 0,
            end: None,
        };
        watch.renew();
        watch
    }

    /// Says how far the stream was read, and keeps the watch.
    #[track_caller]
    pub fn renew(&mut self) {
        self.set(30);
    }

    #[track_caller]
    fn set(&mut self, seconds: u32) {
        let key = format!("jsacc:watch:{}", self.id);
        let _: String = self.client.redis(&["SET", &key, &self.read, "EX", &seconds.to_string()]);
        self.renewed = Instant::now();
    }

    /// Renews the watch for one last second.
    #[track_caller]
    pub fn expire(&mut self) {
        self.set(1);
    }

    /// Goes on with another connection, after the end of the server.
    #[track_caller]
    pub fn reconnect(&mut self, conn: Connection) {
        self.client.conn = conn;
        self.renew();
    }

    /// Reads what has come, in pieces as they are in the stream.
    #[track_caller]
    pub fn step(&mut self) {
        let key = format!("jsacc:stream:{}", self.id);
        let words = ["XREAD", "COUNT", "16", "BLOCK", "200", "STREAMS", &key, &self.read];
        let read: Read = self.client.redis(&words);
        for (at, fields) in read.into_iter().flatten().flat_map(|(_, entries)| entries) {
            assert_eq!(fields["n"], self.node.as_bytes());
            let offset: usize = std::str::from_utf8(&fields["o"]).expect("digits").parse().expect("a number");
            assert!(offset <= self.next_offset, "from {} to {offset} is missing", self.next_offset);
            let known = (self.next_offset - offset).min(fields["d"].len());
            self.repeated += known;
            self.next_offset += fields["d"].len() - known;
            for frame in frame::frames(&fields["d"][known..]) {
                assert_eq!(self.end, None, "nothing follows the end");
                let frame = frame.expect("whole frames");
                match frame.kind {
                    Kind::Stdout => self.outputs[0].extend_from_slice(frame.payload),
                    Kind::Stderr => self.outputs[1].extend_from_slice(frame.payload),
                    Kind::End => self.end = Some(serde_json::from_slice(frame.payload).expect("JSON")),
                    kind => panic!("a frame of kind {kind:?} in {}", self.id),
                }
            }
            self.read = at;
        }
        if self.renewed.elapsed() > RENEW || self.end.is_some() {
            self.renew();
        }
    }

    /// Reads until `condition` holds; fails the test where nothing new comes for long.
    #[track_caller]
    pub fn read_until(&mut self, what: &str, condition: impl Fn(&Watch) -> bool) {
        let (mut moved, mut before) = (Instant::now(), self.next_offset);
        while !condition(self) {
            if self.next_offset != before {
                (moved, before) = (Instant::now(), self.next_offset);
            }
            assert!(moved.elapsed() < 4 * LONG, "{}: nothing after {before} bytes, until {what}", self.id);
            self.step();
        }
    }

    /// Reads until there are more bytes of stdout than these.
    #[track_caller]
    pub fn read_beyond(&mut self, bytes: usize) {
        self.read_until(&format!("more than {bytes} bytes came"), |watch| watch.outputs[0].len() > bytes);
    }

    /// Reads up to the end frame and returns it.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Value {
        self.read_until("the end came", |watch| watch.end.is_some());
        self.end.clone().expect("the end")
    }

    /// Reads up to the end, compares it with what came, and returns that.
    #[track_caller]
    pub fn finish(&mut self) -> [Vec<u8>; 2] {
        let end = self.read_to_end();
        for (name, bytes) in ["stdout", "stderr"].into_iter().zip(&self.outputs) {
            assert_eq!(end[name], json!({"bytes": bytes.len(), "sha256": sha256_hex(bytes)}), "{name}: {end}");
        }
        assert!(end.get("error").is_none(), "{end}");
        std::mem::take(&mut self.outputs)
    }
}
