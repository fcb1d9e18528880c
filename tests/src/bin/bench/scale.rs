//! What a controller pays for its nodes: 1,000, 5,000 and 10,000 of them over TLS, simulated.
//!
//! The swarm runs in this process, on the same machine, so it takes its share of the cores; what is
//! measured of the controller is its own memory, threads, descriptors and CPU. `bench scale 10000` measures
//! that many alone.

use crate::Options;
use crate::measure::{ms, quantile};
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, Redis, fresh_id, proc};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::json;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Seconds of a poll.
const WAIT: u32 = 30;
/// Within this time all nodes connect, at first and after a restart of all.
const SPREAD: Duration = Duration::from_secs(1);
/// The longest that any step may take.
const LIMIT: Duration = Duration::from_secs(180);

pub(crate) fn run(options: &Options) -> Result<()> {
    let asked: Vec<u32> = options.rest.iter().filter_map(|word| word.parse().ok()).filter(|n| *n > 0).collect();
    let sizes: &[u32] = match () {
        () if !asked.is_empty() => &asked,
        () if options.quick => &[100, 300],
        () => &[1_000, 5_000, 10_000],
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let mut columns = Vec::new();
    for &nodes in sizes {
        let most = hard.saturating_sub(300);
        if u64::from(nodes) > most {
            println!("the limit of {hard} open files stops the run at {most} nodes: {nodes} are left out");
            continue;
        }
        columns.push((nodes, measure(nodes, options.quick).with_context(|| format!("{nodes} nodes"))?));
    }
    let heads: Vec<String> = columns.iter().map(|(nodes, _)| format!("{nodes} nodes")).collect();
    let mut all = vec!["over TLS, one controller"];
    all.extend(heads.iter().map(String::as_str));
    let mut table = Table::new(&all);
    for (row, name) in ROWS.iter().enumerate() {
        let cells = columns.iter().map(|(_, figures)| number(figures[row]));
        table.row(std::iter::once((*name).to_owned()).chain(cells));
    }
    eprint!("\r\x1b[K");
    table.print();
    println!("\naim at 10,000: under 150 MB, under 64 threads, under 3 % of a core idle, wake p99 under 5 ms,");
    println!("fanout complete in 5 s, all parked again within 30 s");
    Ok(())
}

const ROWS: [&str; 18] = [
    "all park, s",
    "memory with all parked, MB",
    "memory a node, KB",
    "threads",
    "descriptors",
    "CPU idle: jsacc, % of a core",
    "CPU idle: Redis, % of a core",
    "wake of one, p50 ms",
    "wake of one, p99 ms",
    "fanout of ping until the last result, s",
    "  CPU of jsacc meanwhile, s",
    "  CPU of Redis meanwhile, s",
    "jobs spread over all, a second",
    "  CPU of jsacc and Redis, ms a job",
    "all stop and park again, s",
    "  CPU of jsacc meanwhile, s",
    "memory after all that, MB",
    "threads after all that",
];

fn measure(nodes: u32, quick: bool) -> Result<Vec<f64>> {
    let say = |what: &str| eprint!("\r\x1b[K{nodes} nodes: {what}");
    let redis = Redis::start_durable_lazily();
    let quiet = vec!["--log-level".to_owned(), "warn".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet, ..AccOptions::secure() });
    let mut client = Client::new(&redis);
    let empty = proc::memory(acc.pid())? as f64;

    say("connect");
    let controller = ([127, 0, 0, 1], acc.port()).into();
    let options = SwarmOptions { wait: WAIT, spread: SPREAD, ..SwarmOptions::new(controller, nodes) };
    let start = Instant::now();
    let swarm = Swarm::start(options.secured_by(&acc.state_dir())?)?;
    parked(&acc, &swarm, nodes)?;
    let park = start.elapsed().as_secs_f64();
    let full = proc::memory(acc.pid())? as f64;
    let threads = proc::threads(acc.pid())? as f64;
    let files = proc::files(acc.pid())? as f64;

    say("idle");
    // One poll of each, so that the gate knows them all.
    let cycle = Duration::from_secs(if quick { 5 } else { u64::from(WAIT) + 2 });
    std::thread::sleep(cycle);
    let (used, redis_used, start) = (proc::cpu(acc.pid())?, proc::cpu(redis.pid())?, Instant::now());
    std::thread::sleep(cycle);
    let idle = 100.0 * (proc::cpu(acc.pid())? - used) / start.elapsed().as_secs_f64();
    let redis_idle = 100.0 * (proc::cpu(redis.pid())? - redis_used) / start.elapsed().as_secs_f64();

    say("wake one");
    let samples = if quick { 50 } else { 500 };
    let mut wakes = Vec::new();
    for _ in 0..samples {
        let nid = fastrand::u32(1..=nodes);
        let start = Instant::now();
        let id = client.push(json!({"gid": 1, "nid": nid, "cmd": "ping"}));
        loop {
            let arrived = swarm.arrivals.recv_timeout(LIMIT).context("no command came")?;
            if arrived.id == id {
                wakes.push(ms(arrived.at.duration_since(start)));
                break;
            }
        }
        client.pop(&id);
    }

    say("fanout");
    let cpu = || anyhow::Ok((proc::cpu(acc.pid())?, proc::cpu(redis.pid())?));
    let (start, used) = (Instant::now(), cpu()?);
    let id = client.push(json!({"roles": ["swarm"], "fanout": true, "cmd": "ping"}));
    results(&mut client, &format!("cmds_queue_{id}"), nodes)?;
    let (fanout, now) = (start.elapsed().as_secs_f64(), cpu()?);
    let fanout_cpu = (now.0 - used.0, now.1 - used.1);

    say("jobs");
    let jobs = if quick { 500 } else { 10_000_u32 };
    let before = swarm.tally.results.load(Relaxed);
    let (start, used) = (Instant::now(), cpu()?);
    let mut push = redis::cmd("LPUSH");
    push.arg("cmds_queue");
    for i in 0..jobs {
        push.arg(json!({"id": fresh_id(), "gid": 1, "nid": i % nodes + 1, "cmd": "ping"}).to_string());
    }
    push.exec(&mut client.conn)?;
    while swarm.tally.results.load(Relaxed) - before < u64::from(jobs) {
        ensure!(start.elapsed() < LIMIT, "jobs take too long: {:?}", swarm.tally);
        std::thread::sleep(Duration::from_millis(2));
    }
    let (rate, now) = (f64::from(jobs) / start.elapsed().as_secs_f64(), cpu()?);
    let job_cpu = 1e3 * (now.0 - used.0 + now.1 - used.1) / f64::from(jobs);

    say("all stop and come back");
    let (start, used) = (Instant::now(), cpu()?);
    swarm.restart();
    while swarm.tally.connected.load(Relaxed) > i64::from(nodes) / 2 && start.elapsed() < Duration::from_secs(1) {
        std::thread::yield_now();
    }
    parked(&acc, &swarm, nodes)?;
    let (again, again_cpu) = (start.elapsed().as_secs_f64(), cpu()?.0 - used.0);
    let tally = &swarm.tally;
    ensure!(tally.others.lock().is_ok_and(|others| others.is_empty()), "answers of other kinds: {tally:?}");

    let (after, threads_after) = (proc::memory(acc.pid())? as f64, proc::threads(acc.pid())? as f64);
    let mb = |bytes: f64| bytes / 1e6;
    Ok(vec![
        park,
        mb(full),
        (full - empty) / 1e3 / f64::from(nodes),
        threads,
        files,
        idle,
        redis_idle,
        quantile(&wakes, 0.5),
        quantile(&wakes, 0.99),
        fanout,
        fanout_cpu.0,
        fanout_cpu.1,
        rate,
        job_cpu,
        again,
        again_cpu,
        mb(after),
        threads_after,
    ])
}

/// Waits until the controller holds the polls of all.
fn parked(acc: &Acc, swarm: &Swarm, nodes: u32) -> Result<()> {
    swarm.wait_polling(LIMIT)?;
    let monitor = acc.anonymous();
    let start = Instant::now();
    loop {
        let text = monitor.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix("jsacc_polls_parked "));
        if line.and_then(|value| value.parse::<f64>().ok()).is_some_and(|parked| parked >= f64::from(nodes)) {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "not all are parked: {line:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn results(client: &mut Client, list: &str, count: u32) -> Result<()> {
    let start = Instant::now();
    loop {
        let there: u32 = client.redis(&["LLEN", list]);
        if there >= count {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "only {there} of {count} results");
        std::thread::sleep(Duration::from_millis(2));
    }
}
