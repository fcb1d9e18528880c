//! The cost of a command from the client's LPUSH to the result, beside the least possible cost.
//!
//! The floor is a ping-pong through Redis between two processes, the second of which starts
//! `/bin/true` with two pipes and waits for it before it answers: no node, no network, no disk.

use crate::Options;
use crate::measure::{Case, interleaved, ms, quantile};
use crate::table::{Table, number};
use anyhow::{Context, Result};
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, Redis, fresh_id, proc};
use redis::Connection;
use rusqlite::Connection as Sqlite;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const IN: &str = "floor.in";
const OUT: &str = "floor.out";

pub(crate) fn run(options: &Options) -> Result<()> {
    let (samples, jobs) = if options.quick { (20, 200) } else { (200, 2000) };
    let redis = Redis::start_durable_lazily();
    let quiet = || vec!["--log-level".to_owned(), "warn".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet(), ..AccOptions::secure() });
    let agent = Agent::start(&acc, AgentOptions { args: quiet(), ..AgentOptions::default() });
    let client = RefCell::new(Client::new(&redis));
    client.borrow_mut().wait_seen("1:10");
    let pong = Pong::start(&redis)?;
    let disk = commit_table(agent.scratch())?;

    let percentiles = |samples: Vec<f64>| Ok(vec![quantile(&samples, 0.5), quantile(&samples, 0.99)]);
    let execute = json!({"cmd": "/bin/true", "args": []});
    let mut cases = [
        Case::new("Redis ping-pong", || {
            let mut client = client.borrow_mut();
            percentiles(sample(samples, || bounce(&mut client.conn, "echo"))?)
        }),
        Case::new("fork, exec, wait", || percentiles(sample(samples, spawn_true)?)),
        Case::new("the floor: both", || {
            let mut client = client.borrow_mut();
            percentiles(sample(samples, || bounce(&mut client.conn, "spawn"))?)
        }),
        Case::new("durable commit", || percentiles(sample(samples, || commit(&disk))?)),
        Case::new("ping", || {
            let mut client = client.borrow_mut();
            percentiles(sample(samples, || expect_ok(client.run("ping", json!({}))))?)
        }),
        Case::new("execute /bin/true", || {
            let mut client = client.borrow_mut();
            percentiles(sample(samples, || expect_ok(client.run("execute", execute.clone())))?)
        }),
        Case::new("plain spawn loop", || {
            let start = Instant::now();
            (0..jobs).try_for_each(|_| spawn_true())?;
            Ok(vec![jobs as f64 / start.elapsed().as_secs_f64()])
        }),
        Case::new("jobs pushed at once", || {
            let mut client = client.borrow_mut();
            let before = cpu(&acc, &agent)?;
            let start = Instant::now();
            all_at_once(&mut client.conn, jobs, &execute)?;
            let rate = jobs as f64 / start.elapsed().as_secs_f64();
            let used = cpu(&acc, &agent)?;
            let each = |i: usize| (used[i] - before[i]) * 1000.0 / jobs as f64;
            Ok(vec![rate, each(0), each(1)])
        }),
    ];
    let medians = interleaved(options.rounds, &mut cases)?;
    drop(cases);
    drop(pong);

    let floor = medians[2][0];
    let names = [
        "Redis ping-pong, two processes",
        "fork, exec, wait of /bin/true, two pipes",
        "(a) the floor: both in one",
        "one durable commit (SQLite, WAL, FULL)",
        "(b) ping over HTTPS",
        "(b) execute /bin/true over HTTPS",
    ];
    let mut table = Table::new(&["one after the other", "p50 ms", "p99 ms", "p50 above floor, ms"]);
    for (name, figures) in names.iter().zip(&medians) {
        let above = if name.starts_with("(b)") { number(figures[0] - floor) } else { String::new() };
        table.row([(*name).to_owned(), number(figures[0]), number(figures[1]), above]);
    }
    table.print();
    println!();
    let (spawns, rate) = (medians[6][0], medians[7][0]);
    let mut table = Table::new(&[&format!("(c) {jobs} at once"), "a second", "ratio"]);
    table.row(["plain spawn loop, processes".to_owned(), number(spawns), number(1.0)]);
    table.row(["execute /bin/true over HTTPS, jobs".to_owned(), number(rate), number(rate / spawns)]);
    table.print();
    println!();
    let mut table = Table::new(&["CPU of a job of those", "ms"]);
    table.row(["jsacc".to_owned(), number(medians[7][1])]);
    table.row(["jsagent, its children aside".to_owned(), number(medians[7][2])]);
    table.print();
    println!("\naim: execute within 1.5 ms of the floor, throughput above 0.8 of the spawn loop");
    Ok(())
}

/// The times of `n` repetitions, in milliseconds.
fn sample(n: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let one = |_| {
        let start = Instant::now();
        work()?;
        Ok(ms(start.elapsed()))
    };
    (0..n).map(one).collect()
}

/// Seconds of CPU so far of both programs.
fn cpu(acc: &Acc, agent: &Agent) -> Result<[f64; 2]> {
    Ok([proc::cpu(acc.pid())?, proc::cpu(agent.pid())?])
}

fn expect_ok(result: Value) -> Result<()> {
    anyhow::ensure!(result["state"] == "OK", "a job failed: {result}");
    Ok(())
}

/// Starts `/bin/true` as a supervisor has to: stdin closed, stdout and stderr through pipes.
fn spawn_true() -> Result<()> {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("start /bin/true")?.wait().context("wait for /bin/true")?;
    Ok(())
}

/// One ping-pong through Redis.
pub(crate) fn bounce(conn: &mut Connection, what: &str) -> Result<()> {
    redis::cmd("LPUSH").arg(IN).arg(what).exec(conn)?;
    redis::cmd("BRPOP").arg(OUT).arg(10).query::<(String, String)>(conn).context("the other process answers")?;
    Ok(())
}

fn all_at_once(conn: &mut Connection, jobs: usize, args: &Value) -> Result<()> {
    let ids: Vec<String> = (0..jobs).map(|_| fresh_id()).collect();
    let mut push = redis::cmd("LPUSH");
    push.arg("cmds_queue");
    for id in &ids {
        push.arg(json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": args}).to_string());
    }
    push.exec(conn)?;
    let mut pops = redis::pipe();
    ids.iter().for_each(|id| {
        pops.cmd("BRPOP").arg(format!("cmds_queue_{id}")).arg(120);
    });
    let results: Vec<Option<(String, String)>> = pops.query(conn)?;
    for result in results {
        let (_, text) = result.context("a result within two minutes")?;
        expect_ok(serde_json::from_str(&text)?)?;
    }
    Ok(())
}

fn commit_table(dir: &std::path::Path) -> Result<Sqlite> {
    let disk = Sqlite::open(dir.join("commit.db"))?;
    disk.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
         CREATE TABLE jobs(id TEXT PRIMARY KEY, command TEXT)",
    )?;
    Ok(disk)
}

fn commit(disk: &Sqlite) -> Result<()> {
    disk.execute("INSERT INTO jobs VALUES(?1, ?2)", (fresh_id(), "x".repeat(200)))?;
    Ok(())
}

/// The second process of the ping-pong: this program again.
pub(crate) struct Pong(Child);

impl Pong {
    pub(crate) fn start(redis: &Redis) -> Result<Pong> {
        let program = std::env::current_exe()?;
        Ok(Pong(Command::new(program).args([PONG, &redis.url()]).stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Pong {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The name under which this program is the second process.
pub(crate) const PONG: &str = "--pong";

/// Answers until Redis goes away, or it is killed.
pub(crate) fn pong(url: &str) -> Result<()> {
    let mut conn = redis::Client::open(url)?.get_connection()?;
    loop {
        let asked: Option<(String, String)> = redis::cmd("BRPOP").arg(IN).arg(2).query(&mut conn)?;
        match asked.as_ref().map(|(_, what)| what.as_str()) {
            Some("spawn") => spawn_true()?,
            Some(_) => {}
            None => continue,
        }
        redis::cmd("LPUSH").arg(OUT).arg("done").exec(&mut conn)?;
    }
}
