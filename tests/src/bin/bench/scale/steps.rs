//! One fleet at one controller, and each thing that is measured of it.

use super::progress::Progress;
use crate::measure::{ms, quantile};
use anyhow::{Context, Result, ensure};
use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, FakeNode, Redis, fresh_id, proc};
use redis::FromRedisValue;
use serde_json::json;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Seconds of a poll.
const WAIT: u32 = 30;
/// Within this time all nodes connect, at first and after a restart of all.
const SPREAD: Duration = Duration::from_secs(1);
/// The longest that any step may take.
const LIMIT: Duration = Duration::from_secs(120);
/// The proxy parks a node's polls by itself for so long, in seconds, and then asks Redis again.
const TRUST: f64 = 900.0;

/// The cost of a step: time, and seconds of CPU of each program.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    pub(super) jsacc: f64,
    pub(super) redis: f64,
    pub(super) swarm: f64,
    /// Answers with `Retry-After` meanwhile.
    pub(super) put_off: f64,
}

/// Where a step began.
struct Begin {
    at: Instant,
    jsacc: f64,
    redis: f64,
    swarm: f64,
    put_off: u64,
}

/// A swarm, its controller and its Redis.
pub(super) struct Fleet {
    swarm: Swarm,
    pub(super) acc: Acc,
    client: Client,
    monitor: FakeNode,
    redis: Redis,
    nodes: u32,
}

impl Fleet {
    /// Starts all and waits until every node is parked: the fleet, the controller's memory before it came
    /// (bytes), and what its coming took.
    pub(super) fn start(nodes: u32) -> Result<(Fleet, f64, Cost)> {
        let redis = Redis::start_durable_lazily();
        let quiet = vec!["--log-level".to_owned(), "warn".to_owned()];
        let acc = Acc::start(&redis, AccOptions { args: quiet, ..AccOptions::secure() });
        let client = Client::new(&redis);
        let monitor = acc.anonymous();
        let empty = proc::memory(acc.pid())? as f64;
        let controller = ([127, 0, 0, 1], acc.port()).into();
        let options = SwarmOptions { wait: WAIT, spread: SPREAD, ..SwarmOptions::new(controller, nodes) };
        let options = options.secured_by(&acc.state_dir())?;
        let (jsacc, of_redis, own) = (proc::cpu(acc.pid())?, proc::cpu(redis.pid())?, own_cpu()?);
        let begin = Begin { at: Instant::now(), jsacc, redis: of_redis, swarm: own, put_off: 0 };
        let fleet = Fleet { swarm: Swarm::start(options)?, acc, client, monitor, redis, nodes };
        fleet.parked()?;
        let cost = fleet.since(&begin)?;
        Ok((fleet, empty, cost))
    }

    fn begin(&self) -> Result<Begin> {
        Ok(Begin {
            at: Instant::now(),
            jsacc: proc::cpu(self.acc.pid())?,
            redis: proc::cpu(self.redis.pid())?,
            swarm: own_cpu()?,
            put_off: self.swarm.tally.put_off.load(Relaxed),
        })
    }

    fn since(&self, begin: &Begin) -> Result<Cost> {
        Ok(Cost {
            seconds: begin.at.elapsed().as_secs_f64(),
            jsacc: proc::cpu(self.acc.pid())? - begin.jsacc,
            redis: proc::cpu(self.redis.pid())? - begin.redis,
            swarm: own_cpu()? - begin.swarm,
            put_off: (self.swarm.tally.put_off.load(Relaxed) - begin.put_off) as f64,
        })
    }

    /// One poll of each node, and its share of what comes every quarter of an hour: that the proxy does not trust
    /// what it knows any longer and asks Redis for every node again. Waiting for that would take so long; so
    /// it is made to ask, by a cut of the connection over which it receives its wake-ups.
    pub(super) fn idle(&mut self, quick: bool, progress: &Progress) -> Result<Cost> {
        let begin = self.begin()?;
        progress.pass("idle", Duration::from_secs(if quick { 5 } else { u64::from(WAIT) }));
        let mut cost = self.since(&begin)?;

        progress.step("idle: all are asked about again");
        let scripts = self.scripts_run();
        let begin = self.begin()?;
        self.cut_the_wakeups()?;
        self.until("all are asked about", |fleet| {
            Ok(fleet.scripts_run() >= scripts + u64::from(fleet.nodes) && fleet.waiting()? == 0.0)
        })?;
        self.parked()?;
        let again = self.since(&begin)?;
        cost.jsacc += again.jsacc * cost.seconds / TRUST;
        cost.redis += again.redis * cost.seconds / TRUST;
        Ok(cost)
    }

    /// From the LPUSH of a command to its arrival at its node: p50 and p99 in milliseconds.
    pub(super) fn wake(&mut self, samples: usize) -> Result<(f64, f64)> {
        let mut wakes = Vec::new();
        for _ in 0..samples {
            let nid = fastrand::u32(1..=self.nodes);
            let start = Instant::now();
            let id = self.client.push(json!({"gid": 1, "nid": nid, "cmd": "ping"}));
            loop {
                let arrived = self.swarm.arrivals.recv_timeout(LIMIT).context("no command came")?;
                if arrived.id == id {
                    wakes.push(ms(arrived.at.duration_since(start)));
                    break;
                }
            }
            self.client.pop(&id);
        }
        Ok((quantile(&wakes, 0.5), quantile(&wakes, 0.99)))
    }

    /// `ping` to all by their role, until the last result is in Redis.
    pub(super) fn fanout(&mut self) -> Result<Cost> {
        let begin = self.begin()?;
        let id = self.client.push(json!({"roles": ["swarm"], "fanout": true, "cmd": "ping"}));
        let list = format!("cmds_queue_{id}");
        self.until("all results are in Redis", |fleet| {
            let there: u32 = fleet.client.redis(&["LLEN", &list]);
            Ok(there >= fleet.nodes)
        })?;
        self.with_rest(&begin)
    }

    /// The time until now, and what it costs until all polls are parked again: those that acknowledge the commands are
    /// put behind results, and would be counted for what is measured next.
    fn with_rest(&self, begin: &Begin) -> Result<Cost> {
        let seconds = begin.at.elapsed().as_secs_f64();
        self.parked()?;
        Ok(Cost { seconds, ..self.since(begin)? })
    }

    /// `jobs` commands, each for the next node, until the last result was taken.
    pub(super) fn jobs(&mut self, jobs: u32) -> Result<Cost> {
        let before = self.swarm.tally.results.load(Relaxed);
        let mut push = redis::cmd("LPUSH");
        push.arg("cmds_queue");
        for i in 0..jobs {
            push.arg(json!({"id": fresh_id(), "gid": 1, "nid": i % self.nodes + 1, "cmd": "ping"}).to_string());
        }
        let begin = self.begin()?;
        push.exec(&mut self.client.conn)?;
        self.until("all jobs have run", |fleet| {
            Ok(fleet.swarm.tally.results.load(Relaxed) - before >= u64::from(jobs))
        })?;
        self.with_rest(&begin)
    }

    /// All nodes stop at one moment and come back within the spread.
    pub(super) fn restart_nodes(&mut self) -> Result<Cost> {
        let begin = self.begin()?;
        let connects = self.swarm.tally.connects.load(Relaxed);
        self.swarm.restart();
        self.until("all have come back", |fleet| {
            Ok(fleet.swarm.tally.connects.load(Relaxed) >= connects + u64::from(fleet.nodes))
        })?;
        self.parked()?;
        self.since(&begin)
    }

    /// The controller dies by `kill -9` and is started again: what it takes from its start on until all are
    /// parked, when all nodes come within a second of that (`at_once`) or as their own backoff has it.
    pub(super) fn kill_acc(&mut self, at_once: bool) -> Result<Cost> {
        self.acc.kill();
        self.until("all are cut off", |fleet| Ok(fleet.swarm.tally.connected.load(Relaxed) == 0))?;
        let (of_redis, swarm) = (proc::cpu(self.redis.pid())?, own_cpu()?);
        let put_off = self.swarm.tally.put_off.load(Relaxed);
        let at = Instant::now();
        self.acc.resume_unready();
        let port = self.acc.port();
        self.until("jsacc listens", |_| Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()))?;
        if at_once {
            self.swarm.come(SPREAD);
        }
        self.parked()?;
        self.since(&Begin { at, jsacc: 0.0, redis: of_redis, swarm, put_off })
    }

    /// Nothing has happened on the way that should not.
    pub(super) fn check(&self) -> Result<()> {
        let tally = &self.swarm.tally;
        ensure!(tally.others.lock().is_ok_and(|others| others.is_empty()), "answers of other kinds: {tally:?}");
        ensure!(tally.too_early.load(Relaxed) == 0, "nodes came before their time: {tally:?}");
        Ok(())
    }

    /// Waits until the controller holds the polls of all.
    fn parked(&self) -> Result<()> {
        self.swarm.wait_polling(LIMIT)?;
        let start = Instant::now();
        while self.figure("jsacc_polls_parked ")? < f64::from(self.nodes) {
            ensure!(start.elapsed() < LIMIT, "not all are parked: {:?}", self.swarm.tally);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Requests that are with their handlers.
    fn waiting(&self) -> Result<f64> {
        self.figure("jsacc_requests_waiting ")
    }

    fn figure(&self, name: &str) -> Result<f64> {
        figure(&self.monitor, name)
    }

    fn scripts_run(&mut self) -> u64 {
        scripts_run(&mut self.client)
    }

    /// Cuts the connection on which the controller waits for its wake-ups.
    fn cut_the_wakeups(&mut self) -> Result<()> {
        ensure!(cut_wakeups(&mut self.client)? == 1, "one controller waits for wake-ups");
        Ok(())
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Fleet) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !done(self)? {
            ensure!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}; {:?}", self.swarm.tally);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// A metric of a controller; `name` ends with a blank.
pub(super) fn figure(monitor: &FakeNode, name: &str) -> Result<f64> {
    let text = monitor.get("/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no {name}in /metrics"))
}

/// Scripts that Redis has run.
pub(super) fn scripts_run(client: &mut Client) -> u64 {
    let stats: String = client.redis(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap_or("0");
    line.split(',').next().and_then(|calls| calls.parse().ok()).unwrap_or(0)
}

/// Cuts the connections on which controllers wait for wake-ups, and returns their number.
pub(super) fn cut_wakeups(client: &mut Client) -> Result<usize> {
    let answer = redis::cmd("CLIENT").arg("LIST").query::<redis::Value>(&mut client.conn)?;
    let list = String::from_redis_value(answer)?;
    let field = |line: &str, name: &str| {
        line.split(' ').find_map(|field| field.strip_prefix(name).map(str::to_owned)).unwrap_or_default()
    };
    let waiting: Vec<&str> = list.lines().filter(|line| field(line, "cmd=") == "brpop").collect();
    for line in &waiting {
        client.redis::<u32>(&["CLIENT", "KILL", "ID", &field(line, "id=")]);
    }
    Ok(waiting.len())
}

fn own_cpu() -> Result<f64> {
    proc::cpu(std::process::id())
}
