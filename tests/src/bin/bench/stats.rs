//! statsd over UDP and in level 10 lines: metrics a second, the share of them that was taken, CPU
//! seconds a million, and the memory of many keys.
//!
//! The sender goes as fast as it can, on the same machine; the rate is that of what was taken.

use crate::Options;
use crate::measure::{Case, interleaved};
use crate::messages::{cpu, status};
use crate::table::{Table, number};
use anyhow::{Context, Result};
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, wait_for};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// The name under which this program writes level 10 lines: `--metrics COUNT`.
pub(crate) const METRICS: &str = "--metrics";

pub(crate) fn run(options: &Options) -> Result<()> {
    let count: u64 = if options.quick { 100_000 } else { 2_000_000 };
    let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let redis = Redis::start();
    let quiet = || vec!["--log-level".to_owned(), "warn".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet(), ..AccOptions::default() });
    let config = format!("[stats]\ninterval = 1\nlisten = \"127.0.0.1:{port}\"\n");
    let agent = Agent::start(&acc, AgentOptions { args: quiet(), ..AgentOptions::default() }.config(&config));
    let client = RefCell::new(Client::new(&redis));
    client.borrow_mut().wait_seen("1:10");
    let idle = status(agent.pid(), "VmRSS")?;

    let sizes = [1usize, 10, 50];
    let mut cases: Vec<Case<'_>> = Vec::new();
    for size in sizes {
        let (client, agent) = (&client, &agent);
        cases.push(Case::new(&format!("datagrams of {size}"), move || {
            datagrams(&mut client.borrow_mut(), agent, port, count.min(count * size as u64 / 10), size)
        }));
    }
    cases.push(Case::new("level 10 lines", || lines(&mut client.borrow_mut(), &agent, count)));
    let medians = interleaved(options.rounds, &mut cases)?;
    drop(cases);

    let mut table = Table::new(&["agent", "metrics/s", "taken of sent", "CPU s a million"]);
    let names = ["UDP, datagrams of 1", "UDP, datagrams of 10", "UDP, datagrams of 50", "level 10 lines of a job"];
    for (name, figures) in names.iter().zip(&medians) {
        table.row([(*name).to_owned(), number(figures[0]), number(figures[1]), number(figures[2])]);
    }
    table.print();
    let mut table = Table::new(&["keys", "memory, MiB", "above idle"]);
    for keys in [1_000u64, 100_000] {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let peak = fill(&socket, port, &agent, keys)?;
        table.row([keys.to_string(), number(peak as f64 / 1024.0), number(peak.saturating_sub(idle) as f64 / 1024.0)]);
    }
    table.print();
    println!("statsd (npm) and collectd are not run by this bench yet");
    println!(
        "aim: more than 2 million a second in datagrams of 50, below 0.8 CPU seconds a million in datagrams of 10"
    );
    Ok(())
}

/// The sum of a counter's values so far.
fn sum(client: &mut Client, series: &str) -> f64 {
    let value = |batch: &Value| batch["series"].as_array()?.iter().find(|pair| pair[0] == series)?[1].as_f64();
    client.list("jsacc:stats_queue").iter().filter_map(value).sum()
}

/// Sends `count` metrics as fast as it goes; metrics a second, the share that was taken, CPU seconds a million.
fn datagrams(client: &mut Client, agent: &Agent, port: u16, count: u64, size: usize) -> Result<Vec<f64>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    let key = format!("b{:08x}", fastrand::u32(..));
    let line = format!("{key}:1|c\n");
    let datagram = line.repeat(size);
    let (began, before) = (Instant::now(), cpu(agent.pid())?);
    let mut sent = 0;
    while sent < count {
        if socket.send(datagram.as_bytes()).is_ok() {
            sent += size as u64;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let series = format!("1.10.unknown.unknown.{key}");
    let mut taken = 0.0;
    let mut steady = 0;
    // Two flushes that add nothing are the end.
    wait_for("the last flush", LONG, || {
        let now = sum(client, &series);
        steady = if now == taken && now > 0.0 { steady + 1 } else { 0 };
        taken = now;
        std::thread::sleep(Duration::from_millis(300));
        (steady > 8 || taken >= sent as f64).then_some(())
    });
    let used = cpu(agent.pid())? - before;
    Ok(vec![taken / seconds, taken / sent as f64, used * 1e6 / taken])
}

/// Writes level 10 lines.
pub(crate) fn write_metrics(count: u64) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::BufWriter::with_capacity(64 << 10, std::io::stdout().lock());
    for _ in 0..count {
        out.write_all(b"10::hits:1|c\n")?;
    }
    Ok(out.flush()?)
}

fn lines(client: &mut Client, agent: &Agent, count: u64) -> Result<Vec<f64>> {
    let program = std::env::current_exe()?;
    let args = json!({"cmd": program, "args": [METRICS, count.to_string()], "loglevels": "9"});
    let (began, before) = (Instant::now(), cpu(agent.pid())?);
    let result = client.run("execute", args);
    anyhow::ensure!(result["state"] == "OK", "the job failed: {result}");
    let seconds = began.elapsed().as_secs_f64();
    Ok(vec![count as f64 / seconds, 1.0, (cpu(agent.pid())? - before) * 1e6 / count as f64])
}

/// Sends every key once a flush for three seconds; the most memory that the agent took meanwhile, in KiB.
fn fill(socket: &UdpSocket, port: u16, agent: &Agent, keys: u64) -> Result<u64> {
    let mut most = 0;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for first in (0..keys).step_by(20) {
            let text: String = (first..first + 20).map(|n| format!("some.longer.key.{n:06}:1|c\n")).collect();
            socket.send_to(text.as_bytes(), ("127.0.0.1", port)).context("send")?;
        }
        most = most.max(status(agent.pid(), "VmRSS")?);
    }
    Ok(most)
}
