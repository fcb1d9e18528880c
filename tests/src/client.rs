//! A client of a few lines: pushes commands into Redis and takes results out of it.

use crate::fresh_id;
use crate::redis_server::Redis;
use crate::wait::{LONG, wait_for};
use redis::{Connection, RedisResult};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// A connection that speaks the contract's Redis keys.
pub struct Client {
    /// The connection itself, for what has no method here.
    pub conn: Connection,
}

impl Client {
    /// A client of this Redis.
    #[track_caller]
    pub fn new(redis: &Redis) -> Client {
        Client { conn: redis.connect() }
    }

    /// Runs any Redis command.
    #[track_caller]
    pub fn redis<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(&words[1..]);
        cmd.query(&mut self.conn).unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Pushes a command; one without an id gets a fresh one. Returns the id.
    #[track_caller]
    pub fn push(&mut self, mut command: Value) -> String {
        if command.get("id").is_none() {
            command["id"] = fresh_id().into();
        }
        self.push_raw(&command.to_string());
        command["id"].as_str().unwrap_or_default().to_owned()
    }

    /// Pushes any text where commands are expected.
    #[track_caller]
    pub fn push_raw(&mut self, text: &str) {
        let _: i64 = self.redis(&["LPUSH", "cmds_queue", text]);
    }

    /// Pushes `cmd` for node 1:10.
    #[track_caller]
    pub fn send(&mut self, cmd: &str, args: Value) -> String {
        self.push(json!({"gid": 1, "nid": 10, "cmd": cmd, "args": args}))
    }

    /// Pushes an `execute` of a shell line for node 1:10.
    #[track_caller]
    pub fn shell(&mut self, line: &str) -> String {
        self.send("execute", json!({"cmd": "/bin/sh", "args": ["-c", line]}))
    }

    /// Waits for the next result of a job; fails the test after 30 s.
    #[track_caller]
    pub fn pop(&mut self, id: &str) -> Value {
        self.pop_within(id, LONG).unwrap_or_else(|| panic!("no result of {id} after {LONG:?}"))
    }

    /// Waits for the next result of a job at most `limit`.
    #[track_caller]
    pub fn pop_within(&mut self, id: &str, limit: Duration) -> Option<Value> {
        let mut cmd = redis::cmd("BRPOP");
        cmd.arg(format!("cmds_queue_{id}")).arg(limit.as_secs_f64());
        let popped: RedisResult<Option<(String, String)>> = cmd.query(&mut self.conn);
        let text = popped.expect("BRPOP").map(|(_, text)| text)?;
        Some(serde_json::from_str(&text).expect("a result is JSON"))
    }

    /// `send`, then `pop`.
    #[track_caller]
    pub fn run(&mut self, cmd: &str, args: Value) -> Value {
        let id = self.send(cmd, args);
        self.pop(&id)
    }

    /// Sends a built-in command with `data`, and returns its answer read as JSON.
    #[track_caller]
    pub fn ask(&mut self, cmd: &str, data: Value) -> Value {
        let id = self.push(json!({"gid": 1, "nid": 10, "cmd": cmd, "data": data}));
        let result = self.pop(&id);
        assert_eq!((&result["state"], &result["level"]), (&json!("OK"), &json!(20)), "{result}");
        serde_json::from_str(result["data"].as_str().expect("data is text")).expect("the answer is JSON")
    }

    /// All records that match, page by page.
    #[track_caller]
    pub fn records(&mut self, mut query: Value) -> Vec<Value> {
        let mut found: Vec<Value> = Vec::new();
        loop {
            let page = self.ask("get_msgs", query.clone());
            let page = page.as_array().expect("a list of records");
            let Some(last) = page.last() else { return found };
            query["after"] = last["id"].clone();
            found.extend(page.iter().cloned());
        }
    }

    /// How many results of a job lie there.
    #[track_caller]
    pub fn results(&mut self, id: &str) -> usize {
        self.redis(&["LLEN", &format!("cmds_queue_{id}")])
    }

    /// The job's hash.
    #[track_caller]
    pub fn job(&mut self, id: &str) -> BTreeMap<String, String> {
        self.redis(&["HGETALL", &format!("jsacc:job:{id}")])
    }

    /// A job's state on a node: `QUEUED`, `RUNNING`, a final one, or nothing.
    #[track_caller]
    pub fn state(&mut self, id: &str, node: &str) -> Option<String> {
        let text = self.job(id).remove(node)?;
        let value: Value = serde_json::from_str(&text).expect("a node's field is JSON");
        Some(value["state"].as_str().expect("a state").to_owned())
    }

    /// Waits until a job is `RUNNING` on node 1:10.
    #[track_caller]
    pub fn wait_running(&mut self, id: &str) {
        wait_for(&format!("{id} runs"), LONG, || (self.state(id, "1:10")? == "RUNNING").then_some(()));
    }

    /// A list of JSON texts, newest first.
    #[track_caller]
    pub fn list(&mut self, key: &str) -> Vec<Value> {
        let texts: Vec<String> = self.redis(&["LRANGE", key, "0", "-1"]);
        texts.iter().map(|text| serde_json::from_str(text).expect("an entry is JSON")).collect()
    }

    /// The entries of `jsacc:events`, newest first.
    #[track_caller]
    pub fn events(&mut self) -> Vec<Value> {
        self.list("jsacc:events")
    }

    /// The entries of `jsacc:rejected`, newest first.
    #[track_caller]
    pub fn rejected(&mut self) -> Vec<Value> {
        self.list("jsacc:rejected")
    }

    /// Waits until a node was seen by a controller.
    #[track_caller]
    pub fn wait_seen(&mut self, node: &str) {
        wait_for(&format!("{node} is seen"), LONG, || self.redis::<Option<f64>>(&["ZSCORE", "jsacc:agents", node]));
    }
}
