//! One hostile node with good credentials, on four connections and every path at once, as fast as it is answered: how
//! much Redis and the controller grow, and what it does to another node's `ping`.
//!
//! The floor is a ping-pong through Redis between two processes, measured beside the same node: what it takes of the
//! processors is in both.

use crate::Options;
use crate::measure::{median, ms, quantile};
use crate::roundtrip::{Pong, bounce};
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jscommon::NodeId;
use jstests::hostile::{Hostile, Largest, Requests, Target};
use jstests::swarm::trusting;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, proc, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const MIB: f64 = 1024.0 * 1024.0;
/// Connections of the hostile node.
const CONNECTIONS: u64 = 4;
/// Most MiB by which Redis, and the controller, may grow.
const MAX_GROWTH: f64 = 64.0;
/// How often requests must have been taken, for the check to say anything.
const MIN_TAKEN: [(&str, u64); 4] = [("result", 5), ("log", 5), ("stats", 5), ("event", 5)];
/// Longest time in which that many are to be taken.
const MAX_TIME: Duration = Duration::from_secs(300);
/// Jobs that the hostile node was given, whose results it makes up.
const JOBS: u32 = 40;

/// The figures of one round.
struct Round {
    redis: f64,
    controller: f64,
    /// p99 in ms alone and beside the node, of the floor and of a ping.
    floor: [f64; 2],
    ping: [f64; 2],
    answers: BTreeMap<u16, u64>,
    /// Requests that were answered with 200, by their kind.
    taken: BTreeMap<String, u64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.rest.iter().any(|word| word == "--check") {
        return check();
    }
    let (seconds, rounds) = if options.quick { (3.0, 1) } else { (30.0, options.rounds.min(3)) };
    let mut all = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        all.push(attack(seconds, &[], fastrand::u64(..), &Requests::new)?);
    }
    let of = |figure: &dyn Fn(&Round) -> f64| median(&all.iter().map(figure).collect::<Vec<f64>>());
    let mut table = Table::new(&["one hostile node, four connections", "alone", "beside it", "ratio"]);
    for (name, figures) in [
        ("p99 of a ping-pong through Redis (the floor), ms", [of(&|r| r.floor[0]), of(&|r| r.floor[1])]),
        ("p99 of another node's ping, ms", [of(&|r| r.ping[0]), of(&|r| r.ping[1])]),
    ] {
        table.row([name.to_owned(), number(figures[0]), number(figures[1]), number(figures[1] / figures[0])]);
    }
    table.print();
    println!();
    let mut table = Table::new(&[&format!("grown in {seconds} s"), "MiB"]);
    table.row(["Redis (used_memory)".to_owned(), number(of(&|r| r.redis))]);
    table.row(["controller (resident memory, at its most)".to_owned(), number(of(&|r| r.controller))]);
    table.print();
    println!("\nanswers to the hostile node in the last round, by status (0: cut):");
    for (status, count) in all.last().map(|round| &round.answers).into_iter().flatten() {
        println!("  {status:>3}  {count}");
    }
    println!("\naim: Redis and the controller grow by at most 64 MiB each, p99 of a ping at most 4 times");
    Ok(())
}

/// Fails where Redis or the controller grow by more than they may. It looks at no time: where the machine is slow, the
/// node goes on until enough of what it sent was taken.
fn check() -> Result<()> {
    let seed = fastrand::u64(..);
    bounded("every kind", attack(20.0, &MIN_TAKEN, seed, &Requests::new)?, &MIN_TAKEN, seed)?;
    for (name, kind) in [("result", Largest::Result), ("log", Largest::Log), ("stats", Largest::Stats)] {
        // A few are affordable at the beginning.
        let requests = |seed, node, commands| Requests::largest(kind, seed, node, commands);
        let least = [(name, 1)];
        bounded(&format!("the largest for {name}"), attack(5.0, &least, seed, &requests)?, &least, seed)?;
    }
    Ok(())
}

/// Fails where something grew by more than it may, or less was taken than makes sense.
fn bounded(kind: &str, round: Round, least: &[(&str, u64)], seed: u64) -> Result<()> {
    let (redis, controller) = (round.redis, round.controller);
    println!("{kind}: Redis grew by {redis:.1} MiB and the controller by {controller:.1} MiB (seed {seed})");
    println!("answers: {:?}", round.answers);
    ensure!(redis <= MAX_GROWTH, "Redis grew by more than {MAX_GROWTH} MiB");
    ensure!(controller <= MAX_GROWTH, "the controller grew by more than {MAX_GROWTH} MiB");
    ensure!(is_enough(&round.taken, least), "too little was taken: {:?} and not {least:?}", round.taken);
    Ok(())
}

/// Makes requests of a seed, as a node that was given these commands.
type MakeRequests<'a> = &'a dyn Fn(u64, NodeId, Vec<Value>) -> Requests;

/// Whether of each kind so many requests were taken.
fn is_enough(taken: &BTreeMap<String, u64>, least: &[(&str, u64)]) -> bool {
    least.iter().all(|(kind, least)| taken.get(*kind).is_some_and(|count| count >= least))
}

/// One round of `seconds`, or longer, until enough requests were taken.
fn attack(seconds: f64, least: &[(&str, u64)], seed: u64, requests: MakeRequests<'_>) -> Result<Round> {
    let redis = Redis::start();
    let quiet = || vec!["--log-level".to_owned(), "error".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet(), ..AccOptions::secure() });
    let agent = Agent::start(&acc, AgentOptions { args: quiet(), ..AgentOptions::default() });
    let mut client = Client::new(&redis);
    client.wait_seen("1:10");
    let pong = Pong::start(&redis)?;
    let node = NodeId { gid: 1, nid: 66 };
    let commands = given(&acc, &mut client, node)?;
    let target = Target {
        addr: ([127, 0, 0, 1], acc.port()).into(),
        tls: Some(trusting(&acc.ca().context("the controller's CA")?)?),
        token: Some(acc.enroll(node.gid, node.nid).token),
    };

    sample(&mut client, 0.5)?;
    let alone = sample(&mut client, seconds / 3.0)?;
    let (before_redis, before_acc) = (used_memory(&mut client)?, proc::memory(acc.pid())?);
    proc::reset_peak_memory(acc.pid())?;
    let hostile = Hostile::start(&target, CONNECTIONS, seed, |seed| requests(seed, node, commands.clone()));
    let mut beside = [Vec::new(), Vec::new()];
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let last = end + MAX_TIME;
    while Instant::now() < end || (!is_enough(&hostile.taken(), least) && Instant::now() < last) {
        let some = sample(&mut client, 0.2)?;
        beside.iter_mut().zip(some).for_each(|(all, some)| all.extend(some));
    }
    let taken = hostile.taken();
    let answers = hostile.end();
    let most = proc::peak_memory(acc.pid())?;
    let grown = used_memory(&mut client)?.saturating_sub(before_redis);
    drop((pong, agent));
    let p99 = |i: usize| [quantile(&alone[i], 0.99), quantile(&beside[i], 0.99)];
    Ok(Round {
        redis: grown as f64 / MIB,
        controller: most.saturating_sub(before_acc) as f64 / MIB,
        floor: p99(0),
        ping: p99(1),
        answers,
        taken,
    })
}

/// Gives the node jobs, some of which recur, as its commands.
fn given(acc: &Acc, client: &mut Client, node: NodeId) -> Result<Vec<Value>> {
    let fake = acc.node(node.gid, node.nid);
    for n in 0..JOBS {
        let period = [0, 1, 86_400, 300 * 86_400][n as usize % 4];
        let args = json!({"cmd": "/bin/true", "recurring_period": period});
        client.push(json!({"gid": node.gid, "nid": node.nid, "cmd": "execute", "args": args}));
    }
    let (mut commands, mut ack) = (Vec::new(), None);
    wait_for("the hostile node has its jobs", LONG, || {
        let batch = fake.poll(1, ack.as_deref())?;
        commands.extend(batch.cmds);
        ack = Some(batch.batch);
        (commands.len() >= JOBS as usize).then_some(())
    });
    fake.poll(0, ack.as_deref());
    Ok(commands)
}

/// The times of the floor and of pings, in ms, one after the other for some seconds.
fn sample(client: &mut Client, seconds: f64) -> Result<[Vec<f64>; 2]> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let (mut floor, mut pings) = (Vec::new(), Vec::new());
    while Instant::now() < end {
        let start = Instant::now();
        bounce(&mut client.conn, "echo")?;
        floor.push(ms(start.elapsed()));
        let start = Instant::now();
        let result = client.run("ping", json!({}));
        pings.push(ms(start.elapsed()));
        ensure!(result["state"] == "OK", "a ping failed: {result}");
    }
    Ok([floor, pings])
}

fn used_memory(client: &mut Client) -> Result<u64> {
    let info: String = redis::cmd("INFO").arg("memory").query(&mut client.conn)?;
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).context("used_memory of INFO")?;
    line.trim().parse().context("a number of bytes")
}
