//! One build of the two programs, with a Redis of its own.

use super::cost::Meter;
use crate::measure::{ms, quantile};
use anyhow::{Context, Result, ensure};
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, Redis, fresh_id, proc};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long is waited after the last command for the work that no client waits for.
const AFTERWARDS: Duration = Duration::from_millis(100);

/// A command that the bench sends, with its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Ping,
    Execute,
}

impl Kind {
    fn command(self) -> (&'static str, Value) {
        match self {
            Kind::Ping => ("ping", json!({})),
            Kind::Execute => ("execute", json!({"cmd": "/bin/true", "args": []})),
        }
    }
}

/// A running controller with one agent.
pub(super) struct Build {
    // Declared in the order of their ends.
    pub(super) agent: Agent,
    pub(super) acc: Acc,
    pub(super) client: Client,
    pub(super) redis: Redis,
}

impl Build {
    /// Starts the programs of a folder, or those that belong to this bench.
    pub(super) fn start(programs: Option<PathBuf>) -> Build {
        Build::start_with(programs, &[])
    }

    /// As `start`, with more in the environment of both programs.
    pub(super) fn start_with(programs: Option<PathBuf>, env: &[(String, String)]) -> Build {
        let redis = Redis::start_durable_lazily();
        let args = vec!["--log-level".to_owned(), "warn".to_owned()];
        let env = env.to_vec();
        let (acc_args, acc_programs) = (args.clone(), programs.clone());
        let options = AccOptions { args: acc_args, programs: acc_programs, env: env.clone(), ..AccOptions::secure() };
        let acc = Acc::start(&redis, options);
        let agent = Agent::start(&acc, AgentOptions { args, programs, env, ..AgentOptions::default() });
        let mut client = Client::new(&redis);
        client.wait_seen("1:10");
        Build { agent, acc, client, redis }
    }

    /// The process ids of controller and agent.
    pub(super) fn pids(&self) -> [u32; 2] {
        [self.acc.pid(), self.agent.pid()]
    }

    /// Runs one command until the client has its result.
    pub(super) fn run(&mut self, kind: Kind) -> Result<()> {
        let (cmd, args) = kind.command();
        expect_ok(&self.client.run(cmd, args))
    }

    /// The median and the 99th percentile of commands one after the other, in milliseconds.
    pub(super) fn times(&mut self, kind: Kind, samples: usize) -> Result<Vec<f64>> {
        sample(samples, || self.run(kind))
    }

    /// The cost of a command in each program, and the requests that Redis has read for it.
    pub(super) fn cost(&mut self, kind: Kind, commands: usize) -> Result<Vec<f64>> {
        let reads = self.reads()?;
        let mut meter = Meter::start(self.pids())?;
        for _ in 0..commands {
            self.run(kind)?;
            meter.look()?;
        }
        std::thread::sleep(AFTERWARDS);
        let mut figures = meter.end()?;
        figures.push(self.reads()? - reads);
        let calls = meter.calls(|| (0..commands).try_for_each(|_| self.run(kind)))?;
        figures.extend(calls);
        Ok(figures.iter().map(|figure| figure / commands as f64).collect())
    }

    /// Reads of its sockets that Redis has done: a client that sends one request and waits causes one.
    fn reads(&mut self) -> Result<f64> {
        let stats: String = self.client.redis(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        line.and_then(|count| count.trim().parse().ok()).context("no total_reads_processed in INFO")
    }

    /// Jobs a second of as many as are pushed at once, and milliseconds of CPU of a job in each program.
    pub(super) fn at_once(&mut self, jobs: usize) -> Result<Vec<f64>> {
        let before = self.pids().map(proc::cpu);
        let start = Instant::now();
        self.all_at_once(jobs)?;
        let mut figures = vec![jobs as f64 / start.elapsed().as_secs_f64()];
        for (pid, before) in self.pids().into_iter().zip(before) {
            figures.push((proc::cpu(pid)? - before?) * 1000.0 / jobs as f64);
        }
        Ok(figures)
    }

    fn all_at_once(&mut self, jobs: usize) -> Result<()> {
        let ids: Vec<String> = (0..jobs).map(|_| fresh_id()).collect();
        let (cmd, args) = Kind::Execute.command();
        let mut push = redis::cmd("LPUSH");
        push.arg("cmds_queue");
        for id in &ids {
            push.arg(json!({"id": id, "gid": 1, "nid": 10, "cmd": cmd, "args": args}).to_string());
        }
        push.exec(&mut self.client.conn)?;
        let mut pops = redis::pipe();
        ids.iter().for_each(|id| {
            pops.cmd("BRPOP").arg(format!("cmds_queue_{id}")).arg(120);
        });
        let results: Vec<Option<(String, String)>> = pops.query(&mut self.client.conn)?;
        for result in results {
            let (_, text) = result.context("a result within two minutes")?;
            expect_ok(&serde_json::from_str(&text)?)?;
        }
        Ok(())
    }

    /// The bytes in Redis of a finished job that nobody has taken the result of: hash, results, guard.
    pub(super) fn redis_bytes(&mut self) -> Result<Vec<f64>> {
        let (cmd, args) = Kind::Execute.command();
        let id = self.client.send(cmd, args);
        jstests::wait_until("the result is in Redis", jstests::SHORT, || self.client.results(&id) == 1);
        std::thread::sleep(AFTERWARDS);
        let list = format!("cmds_queue_{id}");
        let keys = [format!("jsacc:job:{id}"), list.clone(), format!("jsacc:done:{{{list}}}")];
        let bytes = keys.map(|key| {
            let bytes: Option<u64> = self.client.redis(&["MEMORY", "USAGE", &key, "SAMPLES", "0"]);
            bytes.unwrap_or(0) as f64
        });
        self.client.pop(&id);
        Ok([&bytes[..], &[bytes.iter().sum()]].concat())
    }
}

/// The median and the 99th percentile of the times of `n` repetitions, in milliseconds.
pub(super) fn sample(n: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let one = |_| {
        let start = Instant::now();
        work()?;
        Ok(ms(start.elapsed()))
    };
    let times = (0..n).map(one).collect::<Result<Vec<f64>>>()?;
    Ok(vec![quantile(&times, 0.5), quantile(&times, 0.99)])
}

fn expect_ok(result: &Value) -> Result<()> {
    ensure!(result["state"] == "OK", "a job failed: {result}");
    Ok(())
}
