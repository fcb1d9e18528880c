//! statsd over UDP and in level 10 lines, beside statsd (npm) and collectd: metrics a second without
//! loss, CPU seconds a million, the memory of many keys; and what the monitor costs.
//!
//! The sender looks at the receiver's socket and never lets it overflow, so the rate is what the
//! receiver can take; that nothing was lost is checked by its own count.

use crate::Options;
use crate::measure::{Case, interleaved};
use crate::messages::{cpu, status};
use crate::statsd::{Other, Pump, free_port, others};
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, wait_for};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The name under which this program writes level 10 lines: `--metrics COUNT`.
pub(crate) const METRICS: &str = "--metrics";

/// Metrics of one datagram.
const SIZES: [usize; 3] = [1, 10, 50];
/// Bytes that may wait for the agent, which asks for a large receive buffer.
const AGENT_ROOM: u64 = 8 << 20;
/// Bytes that may wait for the others, which take what the system gives.
const OTHER_ROOM: u64 = 160 << 10;

pub(crate) fn run(options: &Options) -> Result<()> {
    let count: u64 = if options.quick { 100_000 } else { 2_000_000 };
    let port = free_port()?;
    let redis = Redis::start();
    let quiet = || vec!["--log-level".to_owned(), "warn".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet(), ..AccOptions::default() });
    let config = format!("[stats]\ninterval = 1\nlisten = \"127.0.0.1:{port}\"\n");
    let agent = Agent::start(&acc, AgentOptions { args: quiet(), ..AgentOptions::default() }.config(&config));
    let client = RefCell::new(Client::new(&redis));
    client.borrow_mut().wait_seen("1:10");
    let others = others()?;
    let idle = status(agent.pid(), "VmRSS")?;
    let idle_others: Vec<u64> = others.iter().map(|other| status(other.pid(), "VmRSS")).collect::<Result<_>>()?;

    let mut names = Vec::new();
    let mut cases: Vec<Case<'_>> = Vec::new();
    let (to, asker) = (&agent, &client);
    for size in SIZES {
        let sent = count.min(count * size as u64 / 10);
        names.push(format!("agent, datagrams of {size}"));
        cases.push(Case::new(&format!("agent, {size}"), move || {
            datagrams(to.pid(), Pump::new(port, AGENT_ROOM)?, sent, size, |key, sent| {
                counted(&mut asker.borrow_mut(), key, sent)
            })
        }));
        for other in &others {
            names.push(format!("{}, datagrams of {size}", other.name));
            cases.push(Case::new(&format!("{}, {size}", other.name), move || {
                datagrams(other.pid(), Pump::new(other.port, OTHER_ROOM)?, sent / 4, size, |key, sent| {
                    settled(other, key, sent)
                })
            }));
        }
    }
    names.push("agent, level 10 lines of a job".to_owned());
    cases.push(Case::new("level 10 lines", || lines(&mut client.borrow_mut(), &agent, count)));
    let medians = interleaved(options.rounds, &mut cases)?;
    drop(cases);

    let mut table = Table::new(&["", "metrics/s", "taken of sent", "CPU s a million"]);
    for (name, figures) in names.iter().zip(&medians) {
        table.row([name.clone(), number(figures[0]), number(figures[1]), number(figures[2])]);
    }
    table.print();
    let mut table = Table::new(&["keys", "", "memory, MiB", "above idle"]);
    for keys in [1_000u64, 100_000] {
        let mut row = |name: &str, peak: u64, idle: u64| {
            let above = peak.saturating_sub(idle);
            table.row([keys.to_string(), name.to_owned(), number(peak as f64 / 1024.0), number(above as f64 / 1024.0)]);
        };
        row("agent", fill(Pump::new(port, AGENT_ROOM)?, agent.pid(), keys)?, idle);
        for (other, idle) in others.iter().zip(&idle_others) {
            row(other.name, fill(Pump::new(other.port, OTHER_ROOM)?, other.pid(), keys)?, *idle);
        }
    }
    table.print();
    println!("collectd runs with its csv plugin, whose memory is counted in");
    drop(agent);
    let (processes, each) = monitor(&acc, &client, if options.quick { 5 } else { 20 })?;
    println!(
        "\nthe monitor with 50 jobs on a machine with {processes} processes: {} ms a look, every 30 s that is {} % of \
         a core (aim: below 0.1)",
        number(each * 1e3),
        number(each / 30.0 * 100.0)
    );
    println!(
        "aim: more than 2 million a second in datagrams of 50, below 0.8 CPU seconds a million in datagrams of 10"
    );
    Ok(())
}

/// Sends `count` metrics; metrics a second, the share that was taken, CPU seconds a million. `taken`
/// says how many of a key arrived, once no more come.
fn datagrams(
    pid: u32,
    mut pump: Pump,
    count: u64,
    size: usize,
    taken: impl FnOnce(&str, f64) -> Result<f64>,
) -> Result<Vec<f64>> {
    let key = format!("b{:08x}", fastrand::u32(..));
    let datagram = format!("{key}:1|c\n").repeat(size);
    let datagram = datagram.trim_end().as_bytes();
    let (began, before) = (Instant::now(), cpu(pid)?);
    let mut sent = 0;
    while sent < count {
        pump.send(datagram)?;
        sent += size as u64;
    }
    pump.drain()?;
    let seconds = began.elapsed().as_secs_f64();
    let used = cpu(pid)? - before;
    let taken = taken(&key, sent as f64)?;
    Ok(vec![taken / seconds, taken / sent as f64, used * 1e6 / taken])
}

/// How many of a counter the agent has sent to its controller, once it is all or no more come.
fn counted(client: &mut Client, key: &str, sent: f64) -> Result<f64> {
    let series = format!("1.10.unknown.unknown.{key}");
    let value = |batch: &Value| batch["series"].as_array()?.iter().find(|pair| pair[0] == series)?[1].as_f64();
    let sum = |client: &mut Client| client.list("jsacc:stats_queue").iter().filter_map(value).sum::<f64>();
    until_steady(sent, || Ok(sum(client)))
}

/// The same of another server.
fn settled(other: &Other, key: &str, sent: f64) -> Result<f64> {
    until_steady(sent, || other.count(key))
}

fn until_steady(sent: f64, mut count: impl FnMut() -> Result<f64>) -> Result<f64> {
    let (mut taken, mut steady) = (0.0, 0);
    wait_for("the last flush", LONG, || {
        let now = count().unwrap_or(0.0);
        steady = if now == taken && now > 0.0 { steady + 1 } else { 0 };
        taken = now;
        std::thread::sleep(Duration::from_millis(300));
        (steady > 8 || taken >= sent).then_some(())
    });
    Ok(taken)
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
    ensure!(result["state"] == "OK", "the job failed: {result}");
    let seconds = began.elapsed().as_secs_f64();
    Ok(vec![count as f64 / seconds, 1.0, (cpu(agent.pid())? - before) * 1e6 / count as f64])
}

/// Sends every key again and again for three seconds; the most memory that the server took, in KiB.
fn fill(mut pump: Pump, pid: u32, keys: u64) -> Result<u64> {
    let mut most = 0;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for first in (0..keys).step_by(20) {
            let text: String = (first..first + 20).map(|n| format!("some.longer.key.{n:06}:1|c\n")).collect();
            pump.send(text.trim_end().as_bytes())?;
        }
        most = most.max(status(pid, "VmRSS")?);
    }
    pump.drain()?;
    Ok(most.max(status(pid, "VmRSS")?))
}

/// Processes that only sleep, and end with this.
struct Sleepers(Vec<Child>);

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How many processes there were, and CPU seconds of one look at them all with 50 jobs: those of an
/// agent that looks every second, all that it does meanwhile counted in.
fn monitor(acc: &Acc, client: &RefCell<Client>, looks: u64) -> Result<(usize, f64)> {
    let config = "[monitor]\ninterval = 1\n";
    let options = AgentOptions { nid: 11, args: vec!["--log-level".into(), "warn".into()], ..AgentOptions::default() };
    let agent = Agent::start(acc, options.config(config));
    let mut client = client.borrow_mut();
    client.wait_seen("1:11");
    let job =
        json!({"gid": 1, "nid": 11, "cmd": "execute", "args": {"cmd": "/bin/sleep 600", "domain": "d", "name": "n"}});
    (0..50).for_each(|_| drop(client.push(job.clone())));
    let pids = || -> Result<usize> {
        Ok(std::fs::read_dir("/proc")?
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok())
            .count())
    };
    let running = wait_for("50 jobs", LONG, || {
        let answer = client.push(json!({"gid": 1, "nid": 11, "cmd": "get_processes_stats"}));
        let list = client.pop(&answer)["data"].as_str().map(serde_json::from_str::<Vec<Value>>)?.ok()?;
        (list.len() == 50).then_some(list.len())
    });
    ensure!(running == 50, "{running} jobs");
    let mut sleepers = Sleepers(Vec::new());
    for _ in pids()?..500 {
        sleepers.0.push(Command::new("/bin/sleep").arg("600").spawn().context("sleep")?);
    }
    let processes = pids()?;
    let before = cpu(agent.pid())?;
    std::thread::sleep(Duration::from_secs(looks));
    Ok((processes, (cpu(agent.pid())? - before) / looks as f64))
}
