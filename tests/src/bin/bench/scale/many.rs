//! Six controllers on one Redis, and processes that play nodes to all of them.

use super::progress::Progress;
use super::steps::{cut_wakeups, figure, scripts_run};
use anyhow::{Result, ensure};
use jstests::process::Process;
use jstests::{Acc, AccOptions, Client, FakeNode, Redis, bin, proc};
use nix::sys::signal::Signal;
use serde_json::json;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(super) const CONTROLLERS: usize = 6;
/// Most nodes that one process plays; it may have 20,000 descriptors on small machines.
const NODES_OF_A_SWARM: u32 = 18_000;
/// New nodes that come in a second; two processors do some 900 handshakes of both sides.
const ARRIVALS_A_SECOND: u32 = 800;
/// The longest that any step may take.
const LIMIT: Duration = Duration::from_secs(600);
/// The proxy parks a node's polls by itself for so long, in seconds, and then asks Redis again.
const TRUST: f64 = 900.0;

/// The cost of a step: time, and seconds of CPU of each kind of program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    pub(super) controllers: f64,
    pub(super) redis: f64,
    pub(super) swarm: f64,
}

/// The controllers, their Redis and the nodes.
pub(super) struct Many {
    // Declared in the order of their ends.
    swarms: Vec<Process>,
    controllers: Vec<Acc>,
    monitors: Vec<FakeNode>,
    client: Client,
    redis: Redis,
    dir: TempDir,
    nodes: u32,
    empty: f64,
}

impl Many {
    /// Starts everything but the nodes.
    pub(super) fn start() -> Result<Many> {
        let redis = Redis::start_durable_lazily();
        let args = vec!["--log-level".to_owned(), "warn".to_owned()];
        let mut controllers = vec![Acc::start(&redis, AccOptions { args: args.clone(), ..AccOptions::secure() })];
        let state_dir = Some(controllers[0].state_dir());
        while controllers.len() < CONTROLLERS {
            let options = AccOptions { args: args.clone(), state_dir: state_dir.clone(), ..AccOptions::secure() };
            controllers.push(Acc::start(&redis, options));
        }
        let client = Client::new(&redis);
        let monitors = controllers.iter().map(Acc::anonymous).collect();
        let (swarms, dir) = (Vec::new(), tempfile::tempdir()?);
        let mut many = Many { swarms, controllers, monitors, client, redis, dir, nodes: 0, empty: 0.0 };
        many.empty = many.memory()?;
        Ok(many)
    }

    pub(super) fn nodes(&self) -> u32 {
        self.nodes
    }

    /// The address of its Redis.
    pub(super) fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// The memory of the controllers before the first node came, in bytes.
    pub(super) fn empty(&self) -> f64 {
        self.empty
    }

    /// Starts as many nodes as are missing, and waits until the controllers hold the polls of all.
    pub(super) fn grow(&mut self, nodes: u32, progress: &Progress) -> Result<Cost> {
        let begin = self.now()?;
        while self.nodes < nodes {
            let more = (nodes - self.nodes).min(NODES_OF_A_SWARM);
            let spread = more.div_ceil(ARRIVALS_A_SECOND);
            let mut command = Command::new(bin("swarm"));
            for controller in &self.controllers {
                command.args(["--controller", &format!("127.0.0.1:{}", controller.port())]);
            }
            command.arg("--state-dir").arg(self.controllers[0].state_dir());
            command.args(["--first", &(self.nodes + 1).to_string(), "--nodes", &more.to_string()]);
            command.args(["--many-sources", "yes", "--spread", &spread.to_string()]);
            let name = format!("swarm-{}", self.swarms.len());
            self.swarms.push(Process::spawn(&mut command, &name, self.dir.path(), Signal::SIGKILL));
            self.nodes += more;
            self.parked(progress)?;
        }
        Ok(self.now()?.since(&begin))
    }

    /// One poll of each node, and its share of what comes every quarter of an hour, as `Fleet::idle` counts it.
    pub(super) fn idle(&mut self, time: Duration, progress: &Progress) -> Result<Cost> {
        let begin = self.now()?;
        progress.pass("idle", time);
        let mut cost = self.now()?.since(&begin);

        progress.step("idle: all are asked about again");
        let (scripts, begin) = (scripts_run(&mut self.client), self.now()?);
        ensure!(cut_wakeups(&mut self.client)? == CONTROLLERS, "not every controller waits for wake-ups");
        self.until("all are asked about", |many| Ok(scripts_run(&mut many.client) >= scripts + u64::from(many.nodes)))?;
        self.parked(progress)?;
        let again = self.now()?.since(&begin);
        cost.controllers += again.controllers * cost.seconds / TRUST;
        cost.redis += again.redis * cost.seconds / TRUST;
        Ok(cost)
    }

    /// `ping` to all, until the last result is in Redis; nothing of it is lost there.
    pub(super) fn fanout(&mut self) -> Result<Cost> {
        let begin = self.now()?;
        let id = self.client.push(json!({"roles": ["*"], "fanout": true, "cmd": "ping"}));
        let list = format!("cmds_queue_{id}");
        self.until("all results are in Redis", |many| Ok(many.client.redis::<u32>(&["LLEN", &list]) >= many.nodes))?;
        let cost = self.now()?.since(&begin);
        let results: u32 = self.client.redis(&["LLEN", &list]);
        let fields: u32 = self.client.redis(&["HLEN", &format!("jsacc:job:{id}")]);
        ensure!(results == self.nodes && fields > self.nodes, "{results} results, {fields} fields of {}", self.nodes);
        self.client.redis::<u32>(&["DEL", &list]);
        Ok(cost)
    }

    /// Resident memory of all controllers, in bytes.
    pub(super) fn memory(&self) -> Result<f64> {
        self.controllers.iter().map(|acc| Ok(proc::memory(acc.pid())? as f64)).sum()
    }

    /// Resident memory of Redis, in bytes.
    pub(super) fn redis_memory(&self) -> Result<f64> {
        Ok(proc::memory(self.redis.pid())? as f64)
    }

    /// Descriptors of the controller that has most.
    pub(super) fn most_files(&self) -> Result<f64> {
        let files = self.controllers.iter().map(|acc| proc::files(acc.pid())).collect::<Result<Vec<u64>>>()?;
        Ok(files.into_iter().max().unwrap_or(0) as f64)
    }

    /// Nothing has happened on the way that should not: no answer of another kind, no end of a program.
    pub(super) fn check(&mut self) -> Result<()> {
        for swarm in &mut self.swarms {
            ensure!(swarm.try_wait().is_none(), "a swarm has ended: {}", swarm.output());
            let output = swarm.output();
            let last = output.lines().last().unwrap_or_default();
            ensure!(last.ends_with("others {}"), "answers of other kinds: {last}");
        }
        for acc in &mut self.controllers {
            ensure!(!acc.ended(), "a controller has ended: {}", acc.output());
        }
        Ok(())
    }

    fn parked(&mut self, progress: &Progress) -> Result<()> {
        let mut shown = Instant::now();
        self.until("all are parked", |many| {
            let parked = many.sum("jsacc_polls_parked ")?;
            if shown.elapsed() > Duration::from_secs(10) {
                shown = Instant::now();
                progress.step(&format!("{parked:.0} of {} parked", many.nodes));
            }
            Ok(parked >= f64::from(many.nodes))
        })
    }

    fn sum(&self, name: &str) -> Result<f64> {
        self.monitors.iter().map(|monitor| figure(monitor, name)).sum()
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Many) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !done(self)? {
            let last = |swarm: &Process| swarm.output().lines().last().unwrap_or_default().to_owned();
            ensure!(
                start.elapsed() < LIMIT,
                "{what}: not within {LIMIT:?}; {:#?}",
                self.swarms.iter().map(last).collect::<Vec<String>>()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn now(&self) -> Result<Moment> {
        let cpu = |pids: &mut dyn Iterator<Item = u32>| pids.map(proc::cpu).sum::<Result<f64>>();
        Ok(Moment {
            at: Instant::now(),
            controllers: cpu(&mut self.controllers.iter().map(Acc::pid))?,
            redis: proc::cpu(self.redis.pid())?,
            swarm: cpu(&mut self.swarms.iter().map(Process::pid))?,
        })
    }
}

/// Where a step begins or ends.
struct Moment {
    at: Instant,
    controllers: f64,
    redis: f64,
    swarm: f64,
}

impl Moment {
    fn since(&self, begin: &Moment) -> Cost {
        Cost {
            seconds: (self.at - begin.at).as_secs_f64(),
            controllers: self.controllers - begin.controllers,
            redis: self.redis - begin.redis,
            swarm: self.swarm - begin.swarm,
        }
    }
}
