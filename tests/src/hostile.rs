//! A hostile node with good credentials: requests of every kind that it may make, by chance and from a seed.
//!
//! **In scope**: structured random requests on every path of a node, small and as large as a controller takes, and
//! connections that send them one after the other as fast as they are answered.
//! **Out of scope**: clients without credentials (`it/unauthenticated`, the bench `unauthenticated`).

mod connection;

pub use connection::{Connection, Target};

use fastrand::Rng;
use jscommon::NodeId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `POST` or another one.
    pub method: &'static str,
    /// Path and query.
    pub path: String,
    /// The body of a POST.
    pub body: Option<Vec<u8>>,
}

impl Request {
    /// Returns the last part of the path.
    fn kind(&self) -> &str {
        let path = self.path.split('?').next().unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default()
    }
}

/// Makes requests. The same seed makes the same ones, but for the times in them.
#[derive(Clone, Debug)]
pub struct Requests {
    rng: Rng,
    node: NodeId,
    /// Commands that the node was given: with their ids and tickets it makes up results.
    commands: Vec<Value>,
    batch: u64,
    /// The kind of which all are, and take as much memory as any can.
    largest: Option<Largest>,
}

/// A kind of requests that can take much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Largest {
    /// Results.
    Result,
    /// Records.
    Log,
    /// Series.
    Stats,
}

/// Most JSON values of a body that a controller reads, an object counted as eight.
const MAX_VALUES: usize = 250_000;

impl Requests {
    /// Requests of `node`, which was given `commands`.
    pub fn new(seed: u64, node: NodeId, commands: Vec<Value>) -> Requests {
        let batch = crate::now_ms() as u64 * 1000 + seed % 1000;
        Requests { rng: Rng::with_seed(seed), node, commands, batch, largest: None }
    }

    /// Requests of one kind that take as much memory as any can.
    pub fn largest(kind: Largest, seed: u64, node: NodeId, commands: Vec<Value>) -> Requests {
        Requests { largest: Some(kind), ..Requests::new(seed, node, commands) }
    }

    /// The next one.
    pub fn next_request(&mut self) -> Request {
        if let Some(kind) = self.largest {
            return self.large(kind);
        }
        match self.rng.u32(0..20) {
            0..=2 => self.poll(),
            3 | 4 => self.script(),
            5..=8 => {
                let body = self.results();
                self.post("result", body)
            }
            9..=12 => {
                let body = self.records();
                self.post("log", body)
            }
            13..=15 => {
                let body = self.series();
                self.post("stats", body)
            }
            16 | 17 => {
                let body = self.event();
                self.post("event", body)
            }
            18 => {
                let body = json!({"certificate": self.rng.bool(), "junk": self.value(3)});
                self.post("renew", body)
            }
            _ => self.junk(),
        }
    }

    fn large(&mut self, kind: Largest) -> Request {
        let at = self.rng.usize(0..self.commands.len().max(1));
        let command = self.commands.get(at).cloned().unwrap_or(Value::Null);
        let mut result = json!({"id": command["id"], "ticket": command["ticket"], "state": "OK"});
        let (what, body) = match (kind, self.rng.u32(0..3)) {
            (Largest::Result, 0) => {
                result["data"] = "x".repeat(16_000_000).into();
                ("result", json!([result]))
            }
            (Largest::Result, 1) => {
                result["args"] = json!({"a": self.values(MAX_VALUES - 100)});
                ("result", json!([result]))
            }
            // Read, and refused: these are more than a request may have, or no results.
            (Largest::Result, _) => ("result", self.values(MAX_VALUES)),
            (Largest::Stats, _) => {
                let list: Vec<Value> = (0..50_000).map(|n| json!([format!("{n}{}", "x".repeat(140)), n])).collect();
                ("stats", json!({"batch": self.next_batch(), "series": list}))
            }
            (Largest::Log, _) => {
                let records: Vec<Value> =
                    (0..10_000).map(|n| json!({"jobid": n.to_string(), "data": "x".repeat(780)})).collect();
                ("log", json!({"batch": self.next_batch(), "records": records}))
            }
        };
        self.whole(what, &body)
    }

    /// A list that counts as just less than `most` values.
    fn values(&mut self, most: usize) -> Value {
        let (one, weight) = match self.rng.u32(0..3) {
            0 => (json!({"a": 1}), 9),
            1 => (json!([0]), 2),
            _ => (json!("a"), 1),
        };
        vec![one; (most - 2) / weight].into()
    }

    fn post(&mut self, what: &str, body: Value) -> Request {
        let mut request = self.whole(what, &body);
        if let Some(body) = request.body.as_mut()
            && self.rng.u32(0..50) == 0
        {
            // Cut, or with a byte changed.
            let at = self.rng.usize(0..body.len());
            if self.rng.bool() { body.truncate(at) } else { body[at] = self.rng.u8(..) }
        }
        request
    }

    fn whole(&self, what: &str, body: &Value) -> Request {
        let path = format!("/{}/{}/{what}", self.node.gid, self.node.nid);
        Request { method: "POST", path, body: Some(body.to_string().into_bytes()) }
    }

    fn get(&self, what: &str) -> Request {
        Request { method: "GET", path: format!("/{}/{}/{what}", self.node.gid, self.node.nid), body: None }
    }

    fn poll(&mut self) -> Request {
        let mut query = format!("cmd?wait={}", [0, 0, 0, 1, 61][self.rng.usize(0..5)]);
        for _ in 0..self.rng.usize(0..5) {
            query.push_str(&format!("&role=r{}", self.rng.u32(0..1000)));
        }
        if self.rng.bool() {
            query.push_str(&format!("&instance=i{}", self.rng.u32(0..5)));
        }
        if self.rng.bool() {
            query.push_str(&format!("&ack={}", self.rng.u64(0..1 << 54)));
        }
        self.get(&query)
    }

    fn script(&mut self) -> Request {
        let hash: String = (0..64).map(|_| char::from_digit(self.rng.u32(0..16), 16).unwrap_or('0')).collect();
        self.get(&format!("script?hash={hash}"))
    }

    /// How many entries a request has, and how long a text in each is: few and short as a rule, at times very many or
    /// very long, and more than is taken.
    fn size(&mut self, most: usize) -> (usize, usize) {
        match self.rng.u32(0..40) {
            0 => (most + 1, 1),
            1..=6 => (most, self.rng.usize(1..200)),
            7 => (1, 15 << 20),
            8..=10 => (self.rng.usize(1..5), 1 << 20),
            11..=14 => (self.rng.usize(1..100), 10_000),
            _ => (self.rng.usize(0..50), self.rng.usize(0..300)),
        }
    }

    fn text(&mut self, length: usize) -> String {
        match self.rng.u32(0..4) {
            0 => "x".repeat(length),
            1 => "\u{1}".repeat(length / 6),
            2 => "\"\\\u{1b}[2J\n::é😀".repeat(length / 20),
            _ => (0..length.min(1000)).map(|_| self.rng.alphanumeric()).collect(),
        }
    }

    fn results(&mut self) -> Value {
        let (count, length) = self.size(1000);
        if self.rng.u32(0..30) == 0 {
            return self.many();
        }
        let text = self.text(length);
        let same = self.rng.bool().then(|| self.rng.usize(0..self.commands.len().max(1)));
        let states = ["OK", "ERROR", "TIMEOUT", "KILLED", "RUNNING"];
        let mut list = Vec::new();
        for _ in 0..count {
            let i = same.unwrap_or_else(|| self.rng.usize(0..self.commands.len().max(1)));
            let command = self.commands.get(i).cloned().unwrap_or(Value::Null);
            let mut result = json!({
                "id": command["id"], "ticket": command["ticket"], "cmd": command["cmd"], "data": text, "level": 20,
                "gid": self.node.gid, "nid": self.node.nid,
                "state": states[self.rng.usize(0..5)],
                "starttime": self.rng.i64(0..crate::now_ms()),
                "args": {"recurring_period": self.rng.u32(0..100_000_000)},
            });
            match self.rng.u32(0..20) {
                0 => result["id"] = self.rng.u64(..).to_string().into(),
                1 => result["ticket"] = Value::Null,
                2 => result["nid"] = (self.node.nid + 1).into(),
                3 => result["args"] = self.value(3),
                _ => {}
            }
            list.push(result);
        }
        list.into()
    }

    fn records(&mut self) -> Value {
        let (count, length) = self.size(10_000);
        let text = self.text(length);
        let lists = [1, 10, 100_000][self.rng.usize(0..3)];
        let record = |rng: &mut Rng| {
            json!({"id": rng.u32(..), "jobid": "j", "jobdomain": format!("d{}", rng.u32(0..lists)),
                "jobname": format!("n{}", rng.u32(0..lists)), "epoch": 1, "level": rng.u8(0..32), "data": text})
        };
        let mut records: Vec<Value> = (0..count).map(|_| record(&mut self.rng)).collect();
        if self.rng.u32(0..10) == 0 {
            records.push(self.value(3));
        }
        json!({"batch": self.next_batch(), "records": records})
    }

    fn series(&mut self) -> Value {
        let (count, length) = self.size(50_000);
        let (names, value) = (self.text(length.min(600)), self.text(length));
        let prefix = format!("{}.{}.d.n.", self.node.gid, self.node.nid);
        let mut list = Vec::with_capacity(count);
        for n in 0..count {
            let key = match self.rng.u32(0..3) {
                0 => format!("{prefix}k{n}"),
                1 => format!("{prefix}{}", self.rng.u64(..)),
                _ => format!("{}{names}", self.rng.u32(..)),
            };
            let value = if self.rng.u32(0..50) == 0 { json!(value) } else { json!(self.rng.f64()) };
            list.push(json!([key, value]));
        }
        if self.rng.u32(0..10) == 0 {
            list.push(self.value(3));
        }
        let timestamp = if self.rng.bool() { json!(crate::now_ms() / 1000) } else { self.value(1) };
        json!({"batch": self.next_batch(), "timestamp": timestamp, "series": list, "junk": self.value(2)})
    }

    fn event(&mut self) -> Value {
        let names = ["startup", "shutdown", "critical", "facts", "enrolled", "refused", "two_agents", "noise"];
        let length = self.rng.usize(0..80_000);
        let mut data = json!({"text": self.text(length), "instance": format!("i{}", self.rng.u32(0..5)),
            "hostname": self.text(300), "roles": [format!("r{}", self.rng.u32(0..100)), self.text(80)]});
        if self.rng.u32(0..5) == 0 {
            data = self.value(3);
        }
        json!({"name": names[self.rng.usize(0..names.len())], "data": data})
    }

    /// As many values as a body can have.
    fn many(&mut self) -> Value {
        let one = [json!(0), json!({}), json!([]), json!({"a": 1}), json!("")][self.rng.usize(0..5)].clone();
        vec![one; self.rng.usize(1..300_000)].into()
    }

    fn junk(&mut self) -> Request {
        let methods = ["GET", "POST", "HEAD", "DELETE", "PUT"];
        let paths =
            ["/", "/1/1/cmd?wait=0", "/health", "/metrics/nodes", "/enroll", "/9/9/result", "/0/0/log", "/1/2/3"];
        let method = methods[self.rng.usize(0..methods.len())];
        let body = (method == "POST" || method == "PUT").then(|| self.value(4).to_string().into_bytes());
        Request { method, path: paths[self.rng.usize(0..paths.len())].to_owned(), body }
    }

    fn value(&mut self, depth: u32) -> Value {
        match self.rng.u32(0..if depth == 0 { 6 } else { 8 }) {
            0 => Value::Null,
            1 => self.rng.bool().into(),
            2 => self.rng.i64(..).into(),
            3 => json!(self.rng.f64() * 1e300),
            4 | 5 => {
                let length = self.rng.usize(0..100);
                self.text(length).into()
            }
            6 => (0..self.rng.usize(0..4)).map(|_| self.value(depth - 1)).collect(),
            _ => {
                let field = |this: &mut Requests| (this.text(5), this.value(depth - 1));
                Value::Object((0..self.rng.usize(0..4)).map(|_| field(self)).collect())
            }
        }
    }

    fn next_batch(&mut self) -> u64 {
        if self.largest.is_some() {
            // Of several connections the later one, so that hardly a batch is dropped as taken before.
            return crate::now_ms() as u64 * 1000 + self.rng.u64(0..1000);
        }
        // Some come again.
        self.batch += u64::from(self.rng.u32(0..10) > 0) * 1000;
        self.batch
    }
}

/// A node that sends as fast as it is answered, on several connections, until it is ended.
pub struct Hostile {
    end: Arc<AtomicBool>,
    taken: Arc<Mutex<BTreeMap<String, u64>>>,
    threads: Vec<JoinHandle<BTreeMap<u16, u64>>>,
}

impl Hostile {
    /// Starts `connections` threads, each with requests of its own, which `requests` makes of a seed.
    pub fn start(target: &Target, connections: u64, seed: u64, requests: impl Fn(u64) -> Requests) -> Hostile {
        let (end, taken) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<BTreeMap<String, u64>>>::default());
        let begin = |i: u64| {
            let (target, end, taken) = (target.clone(), end.clone(), taken.clone());
            let mut requests = requests(seed.wrapping_add(i));
            thread::spawn(move || {
                let mut answers = BTreeMap::new();
                let mut connection = Connection::new(target);
                while !end.load(Ordering::Relaxed) {
                    let request = requests.next_request();
                    let status = connection.send(&request).unwrap_or(0);
                    *answers.entry(status).or_default() += 1;
                    if status == 200 {
                        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                        *taken.entry(request.kind().to_owned()).or_default() += 1;
                    }
                }
                answers
            })
        };
        let threads = (0..connections).map(begin).collect();
        Hostile { end, taken, threads }
    }

    /// Returns how many requests were answered with 200 so far, by their kind.
    pub fn taken(&self) -> BTreeMap<String, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it; how often each status was answered, 0 for a connection that was cut.
    pub fn end(mut self) -> BTreeMap<u16, u64> {
        self.end.store(true, Ordering::Relaxed);
        let mut answers = BTreeMap::new();
        for thread in self.threads.drain(..) {
            for (status, count) in thread.join().unwrap_or_default() {
                *answers.entry(status).or_default() += count;
            }
        }
        answers
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}
