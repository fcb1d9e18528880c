//! The commands: known ids, and effects that are written down.

use jstests::Redis;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a push waits for its answer; it is pushed once more then.
const PATIENCE: Duration = Duration::from_secs(2);

/// A role that some nodes have, and one that none has.
pub(crate) const ROLE: &str = "web";
const NO_ROLE: &str = "nobody";

/// The kind of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Appends its id to the file `effects` of its node.
    Effect,
    /// The same, and may not wait for longer than seconds.
    Expiring,
    /// Is answered by the agent itself.
    Ping,
    /// For a role that no node has.
    Nobody,
    Cancel(String),
    Kill(String),
}

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Kind::Effect => "jobs",
            Kind::Expiring => "jobs that expire",
            Kind::Ping => "pings",
            Kind::Nobody => "for no node",
            Kind::Cancel(_) => "cancels",
            Kind::Kill(_) => "kills of jobs",
        }
    }
}

/// The nodes that are to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Targets {
    /// These of grid 1.
    Nodes(Vec<u32>),
    /// One that Redis has chosen.
    OneOfRole,
    /// The controller answers itself.
    Own,
}

impl Targets {
    /// How many answers there are to be.
    pub(crate) fn count(&self) -> usize {
        match self {
            Targets::Nodes(nodes) => nodes.len(),
            Targets::OneOfRole | Targets::Own => 1,
        }
    }
}

/// A command that Redis has.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) targets: Targets,
}

/// A client that pushes until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Sent>>>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Pushes `rate` commands a second for the nodes 1:1 to 1:`nodes`. Each goes on until Redis has said that it has
    /// it, for an answer may be lost; so some are pushed twice.
    pub(crate) fn start(redis: &Redis, seed: u64, nodes: u32, rate: u32) -> Load {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<Sent>>>::default());
        let client = redis::Client::open(redis.url()).expect("the address of the private redis");
        let (ended, list) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut conn = None;
            for number in 0.. {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let before = list.lock().unwrap_or_else(PoisonError::into_inner).last().cloned();
                let (sent, command) = command(&mut random, seed, number, nodes, before.as_ref());
                let text = command.to_string();
                let copies = if random.u32(..30) == 0 { 2 } else { 1 };
                for _ in 0..copies {
                    while !push(&client, &mut conn, &text) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                list.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
                std::thread::sleep(Duration::from_secs(1) / rate);
            }
        });
        Load { stop, sent, thread }
    }

    /// How many commands Redis has.
    pub(crate) fn count(&self) -> usize {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Ends it; Redis must be there.
    pub(crate) fn stop(self) -> Vec<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client of the load");
        std::mem::take(&mut *self.sent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn push(client: &redis::Client, conn: &mut Option<redis::Connection>, text: &str) -> bool {
    if conn.is_none() {
        let fresh = client.get_connection_with_timeout(PATIENCE).and_then(|fresh| {
            fresh.set_read_timeout(Some(PATIENCE))?;
            Ok(fresh)
        });
        *conn = fresh.ok();
    }
    let Some(open) = conn else { return false };
    let pushed = redis::cmd("LPUSH").arg("cmds_queue").arg(text).query::<i64>(open).is_ok();
    if !pushed {
        *conn = None;
    }
    pushed
}

/// The next command. `before` is the one that was pushed last, which some cancel or kill.
fn command(random: &mut fastrand::Rng, seed: u64, number: usize, nodes: u32, before: Option<&Sent>) -> (Sent, Value) {
    let id = format!("chaos-{seed}-{number}");
    let node = random.u32(1..=nodes);
    let shell = |line: &str| json!({"cmd": "/bin/sh", "args": ["-c", format!("echo \"$AGENT_JOB_ID\" >>\"$AGENT_HOME/effects\"{line}")]});
    let sleep = match random.u32(..10) {
        0 => "; sleep 3",
        1..4 => "; sleep 0.3",
        _ => "",
    };
    let of_before = before.filter(|before| before.kind == Kind::Effect);
    let (kind, targets, command) = match random.u32(..100) {
        0..15 => (Kind::Ping, Targets::Nodes(vec![node]), json!({"gid": 1, "nid": node, "cmd": "ping"})),
        15..20 => (Kind::Nobody, Targets::Own, json!({"roles": [NO_ROLE], "cmd": "ping"})),
        20..28 => {
            let command = json!({"roles": [ROLE], "cmd": "execute", "args": shell(sleep)});
            (Kind::Effect, Targets::OneOfRole, command)
        }
        28..36 => {
            let all: Vec<u32> = (1..=nodes).collect();
            let list: Vec<[u32; 2]> = all.iter().map(|nid| [1, *nid]).collect();
            let command = json!({"nodes": list, "cmd": "execute", "args": shell(sleep)});
            (Kind::Effect, Targets::Nodes(all), command)
        }
        36..44 => {
            let expires = random.u32(1..4);
            let command = json!({"gid": 1, "nid": node, "cmd": "execute", "args": shell(sleep), "expires": expires});
            (Kind::Expiring, Targets::Nodes(vec![node]), command)
        }
        44..50 => {
            let mut args = shell(sleep);
            args["queue"] = "one".into();
            let command = json!({"gid": 1, "nid": node, "cmd": "execute", "args": args});
            (Kind::Effect, Targets::Nodes(vec![node]), command)
        }
        n @ 50..62 if let Some(before) = of_before => {
            let data = json!({"id": before.id});
            match &before.targets {
                Targets::Nodes(nodes) if n < 56 && nodes.len() == 1 => {
                    let command = json!({"gid": 1, "nid": nodes[0], "cmd": "kill", "data": data});
                    (Kind::Kill(before.id.clone()), Targets::Nodes(nodes.clone()), command)
                }
                _ => (
                    Kind::Cancel(before.id.clone()),
                    Targets::Own,
                    json!({"roles": ["*"], "cmd": "cancel", "data": data}),
                ),
            }
        }
        _ => {
            let command = json!({"gid": 1, "nid": node, "cmd": "execute", "args": shell(sleep)});
            (Kind::Effect, Targets::Nodes(vec![node]), command)
        }
    };
    let mut command = command;
    command["id"] = id.clone().into();
    (Sent { id, kind, targets }, command)
}
