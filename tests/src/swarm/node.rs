//! One node: what it asks next, and what it makes of each answer. Pure but for the ids it draws.

use super::http::{Answer, request};
use super::live::Live;
use super::{Arrived, SwarmOptions, Tally};
use jscommon::NodeId;
use jscommon::backoff::Backoff;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The request that a node waits for an answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Startup,
    Poll,
    Results,
    Log,
    Stats,
    Live,
}

/// A node between its connections.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    token: Option<String>,
    asked: Option<Asked>,
    ack: Option<String>,
    seen: HashSet<String>,
    results: Vec<Value>,
    live: Option<Live>,
    /// Which start of the agent this is.
    instance: String,
    started: bool,
    log_batch: u64,
    chat_at: Option<Instant>,
    log_due: bool,
    stats_due: bool,
    backoff: Backoff,
    /// Times that it has connected; the controllers are tried in turn.
    pub(crate) turns: usize,
}

/// The step that follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next request may go out on this connection.
    Ask,
    /// Come back on a new connection after this time.
    Back(Duration),
}

impl Node {
    pub(crate) fn new(id: NodeId, options: &SwarmOptions, now: Instant, clock_ms: u64) -> Node {
        Node {
            id,
            token: options.secret.as_ref().map(|secret| secret.issue(id, clock_ms)),
            asked: None,
            ack: None,
            seen: HashSet::new(),
            results: Vec::new(),
            live: None,
            instance: instance(),
            started: !options.startup,
            log_batch: clock_ms,
            chat_at: options.chatter.map(|every| now + every.mul_f64(fastrand::f64())),
            log_due: false,
            stats_due: false,
            // As the agent's poller has them.
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(30)),
            turns: fastrand::usize(0..1000),
        }
    }

    /// The connection is gone: how long to wait before the next one.
    pub(crate) fn lost(&mut self) -> Duration {
        self.asked = None;
        self.backoff.fail(fastrand::f64())
    }

    /// Forgets what an agent forgets that is stopped: what was asked, and which batch it had stored. Ids and
    /// results are on its disk.
    pub(crate) fn stopped(&mut self, options: &SwarmOptions) {
        (self.asked, self.ack) = (None, None);
        self.instance = instance();
        self.started = !options.startup;
        self.backoff.succeed();
    }

    /// Whether its poll is out.
    pub(crate) fn polls(&self) -> bool {
        self.asked == Some(Asked::Poll)
    }

    /// Returns how long to wait before the next request.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        self.live.as_ref().filter(|_| self.results.is_empty()).and_then(|live| live.pause(now))
    }

    /// The next request.
    pub(crate) fn ask(&mut self, options: &SwarmOptions, now: Instant, clock_ms: u64) -> Vec<u8> {
        if let (Some(at), Some(every)) = (self.chat_at, options.chatter)
            && at <= now
        {
            (self.log_due, self.stats_due) = (true, true);
            self.chat_at = Some(now + every);
        }
        let asked = if !self.started {
            Asked::Startup
        } else if !self.results.is_empty() {
            Asked::Results
        } else if self.live.is_some() {
            Asked::Live
        } else if self.log_due {
            Asked::Log
        } else if self.stats_due {
            Asked::Stats
        } else {
            Asked::Poll
        };
        self.asked = Some(asked);
        let NodeId { gid, nid } = self.id;
        let token = self.token.as_deref();
        let post = |what: &str, body: Value| {
            request("POST", &format!("/{gid}/{nid}/{what}"), token, Some(body.to_string().as_bytes()))
        };
        match asked {
            Asked::Startup => {
                let data = json!({"hostname": format!("swarm-{nid}"), "os": "linux", "version": "0",
                    "instance": self.instance, "roles": options.roles});
                post("event", json!({"name": "startup", "data": data}))
            }
            Asked::Live => {
                let Some(live) = &mut self.live else { return Vec::new() };
                let (id, ticket, offset) = (&live.id, &live.ticket, live.offset);
                let path = format!("/{gid}/{nid}/stream?id={id}&offset={offset}&ticket={ticket}");
                let body = live.body(now);
                request("POST", &path, token, Some(&body))
            }
            Asked::Results => post("result", Value::Array(self.results.clone())),
            Asked::Log => {
                let record = json!({"id": self.log_batch % 4_000_000_000, "jobid": "swarm", "jobdomain": "swarm",
                    "jobname": "chatter", "epoch": clock_ms, "level": 4, "data": "all is well", "gid": gid, "nid": nid});
                post("log", json!({"batch": self.log_batch, "records": [record]}))
            }
            Asked::Stats => {
                let series = json!([[format!("{gid}.{nid}.node.load"), fastrand::f64()]]);
                post("stats", json!({"batch": self.log_batch, "timestamp": clock_ms / 1000, "series": series}))
            }
            Asked::Poll => {
                let mut path = format!("/{gid}/{nid}/cmd?wait={}&instance={}", options.wait, self.instance);
                options.roles.iter().for_each(|role| path.push_str(&format!("&role={role}")));
                self.ack.iter().for_each(|ack| path.push_str(&format!("&ack={ack}")));
                request("GET", &path, token, None)
            }
        }
    }

    /// An answer has come; commands in it go to `arrived`.
    pub(crate) fn answered(
        &mut self,
        answer: &Answer,
        tally: &Tally,
        clock_ms: u64,
        mut arrived: impl FnMut(Arrived),
    ) -> Next {
        let asked = self.asked.take();
        match (asked, answer.status) {
            (_, 429 | 503) => {
                tally.put_off.fetch_add(1, Relaxed);
                tally.put_off_without_time.fetch_add(u64::from(answer.retry_after.is_none()), Relaxed);
                let least = Duration::from_secs(answer.retry_after.unwrap_or(1));
                return Next::Back(least + self.backoff.fail(fastrand::f64()));
            }
            (Some(Asked::Poll), 204) => {
                tally.idle_polls.fetch_add(1, Relaxed);
            }
            (Some(Asked::Poll), 200) => {
                let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
                self.ack = body["batch"].as_str().map(str::to_owned);
                for command in body["cmds"].as_array().into_iter().flatten() {
                    let id = command["id"].as_str().unwrap_or_default().to_owned();
                    tally.commands.fetch_add(1, Relaxed);
                    if self.seen.insert(id.clone()) {
                        arrived(Arrived { id, node: self.id, at: Instant::now() });
                        let result = result(self.id, command, clock_ms);
                        match Live::of(self.id.nid, command, result.clone(), Instant::now()) {
                            Some(live) => self.live = Some(live),
                            None => self.results.push(result),
                        }
                    } else {
                        tally.repeated.fetch_add(1, Relaxed);
                    }
                }
            }
            (Some(Asked::Live), status) if self.live.is_some() => {
                tally.live.fetch_add(1, Relaxed);
                if let Some(live) = &mut self.live {
                    live.answered(status, &answer.body, Instant::now());
                }
                if let Some(live) = self.live.take_if(|live| live.is_over()) {
                    self.results.push(live.result);
                }
            }
            (Some(Asked::Results), 200) => {
                tally.results.fetch_add(self.results.len() as u64, Relaxed);
                self.results.clear();
            }
            (Some(Asked::Log), 200) => {
                tally.records.fetch_add(1, Relaxed);
                self.log_batch += 1;
                self.log_due = false;
            }
            (Some(Asked::Stats), 200) => {
                tally.stats.fetch_add(1, Relaxed);
                self.stats_due = false;
            }
            (Some(Asked::Startup), 200 | 204) => {
                tally.startups.fetch_add(1, Relaxed);
                self.started = true;
            }
            (_, status) => {
                *tally.others.lock().unwrap_or_else(|e| e.into_inner()).entry(status).or_default() += 1;
                return Next::Back(self.backoff.fail(fastrand::f64()));
            }
        }
        self.backoff.succeed();
        if answer.closes { Next::Back(self.backoff.fail(fastrand::f64())) } else { Next::Ask }
    }
}

/// A name for one start of an agent.
fn instance() -> String {
    format!("{:016x}", fastrand::u64(..))
}

fn result(node: NodeId, command: &Value, clock_ms: u64) -> Value {
    json!({"id": command["id"], "gid": node.gid, "nid": node.nid, "cmd": command["cmd"], "args": command["args"],
        "data": "\"pong\"", "level": 20, "state": "OK", "code": 0, "time": 0, "starttime": clock_ms,
        "streams": ["", ""], "critical": "", "tags": command["tags"], "ticket": command["ticket"]})
}
