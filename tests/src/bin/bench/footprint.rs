//! The cost of the agent for a node: disk, memory, threads, CPU, bytes on the wire.
//!
//! Measures the programs of `JS_BIN_DIR` (`scripts/bench` points it at the static release build where
//! that can be made), and what else of the kind this machine has. With `--check` it ends with an error
//! when a budget is passed; `scripts/test budgets` calls it so.

use crate::Options;
use crate::peers::{self, Peers};
use crate::small_memory;
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jstests::proc::{self, Written};
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, Redis, bin};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

const MIB: f64 = 1024.0 * 1024.0;
/// Memory that 10,000 jobs may leave behind, MiB.
const MAX_GROWTH_MIB: f64 = 2.0;
/// Budgets of an idle minute or hour, set after a measurement: 771 and 678 calls, 1,236 to 1,483 KB (static build),
/// which is five or six pages of a write-ahead log a minute; a seventh passes it.
const CALLS_OF_AGENT: f64 = 1000.0;
const CALLS_OF_ACC: f64 = 1800.0;
const WRITTEN_BY_AGENT: f64 = 1500.0;

/// One program at rest.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rest {
    /// Proportional set size, bytes: what it has in memory, its share of what others have too.
    pub(crate) pss: f64,
    /// Memory that no file backs, bytes: the part that the system cannot drop and read again.
    pub(crate) anonymous: f64,
    pub(crate) threads: usize,
}

impl Rest {
    /// The cells of a table.
    pub(crate) fn cells(self) -> [String; 3] {
        [number(self.pss / MIB), number(self.anonymous / MIB), self.threads.to_string()]
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let check = options.rest.iter().any(|word| word == "--check");
    let (minute, jobs) = if options.quick { (10, 1_000) } else { (60, 10_000) };
    // Budgets are the agent's own; to look at others would only take time.
    let mut peers = if check { None } else { Some(Peers::start()?) };
    let quiet = || vec!["--log-level".to_owned(), "warn".to_owned()];
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions { args: quiet(), ..AccOptions::secure() });
    let meter = Meter::start(acc.port())?;
    let options = AgentOptions { args: quiet(), max_jobs: Some(100), via: Some(meter.url()), ..Default::default() };
    let agent = Agent::start(&acc, options);
    let mut client = Client::new(&redis);
    ensure!(client.run("ping", json!({}))["state"] == "OK", "the agent does not answer");

    eprintln!("an idle minute");
    std::thread::sleep(Duration::from_secs(3)); // The cost of the start itself is not included.
    sleep_to_half_minute();
    let (cpu, bytes) = (cpu_seconds(agent.pid())?, meter.bytes());
    let (acc_cpu, written) = (cpu_seconds(acc.pid())?, Written::of(agent.pid())?);
    let began = Instant::now();
    peers.iter_mut().try_for_each(Peers::begin)?;
    let pids = [agent.pid(), acc.pid()];
    let mut looks = Vec::new();
    let wakeups = proc::wakeups(&pids, Duration::from_secs(minute), || {
        looks.push(rest(agent.pid())?);
        Ok(())
    })?;
    let load = 100.0 * (cpu_seconds(agent.pid())? - cpu) / minute as f64;
    let acc_load = 100.0 * (cpu_seconds(acc.pid())? - acc_cpu) / minute as f64;
    let hour = (meter.bytes() - bytes) as f64 * 3600.0 / minute as f64;
    // The agent is at rest for most of a minute, and works for a second of it.
    looks.sort_by(|a, b| a.pss.total_cmp(&b.pss));
    let (idle, highest) = (looks[looks.len() / 2], looks[looks.len() - 1]);
    let acc_idle = rest(acc.pid())?;
    let others = peers.map(|peers| peers.end(minute)).transpose()?.unwrap_or_default();

    // A tracer wakes what it traces, so it has a minute of its own.
    eprintln!("an idle minute, traced");
    let calls = pids.map(proc::Tracer::start).into_iter().collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(minute));
    let calls = calls.into_iter().map(proc::Tracer::end).collect::<Result<Vec<_>>>()?;
    // The first look fell half way between two flushes, so this is their number.
    let flushes = (began.elapsed().as_secs_f64() / 60.0).round();
    let now = Written::of(agent.pid())?;
    let [written, dirtied] =
        [now.bytes - written.bytes, now.dirtied - written.dirtied].map(|bytes| bytes as f64 * 60.0 / flushes / 1e3);
    let a_minute = |count: u64| count as f64 * 60.0 / minute as f64;

    eprintln!("50 jobs");
    let ids: Vec<String> = (0..50).map(|_| client.send("execute", json!({"cmd": "/bin/sleep 3600"}))).collect();
    ids.iter().for_each(|id| client.wait_running(id));
    std::thread::sleep(Duration::from_secs(3));
    let busy = rest(agent.pid())?;
    client.run("killall", json!({}));
    ids.iter().for_each(|id| drop(client.pop(id)));

    eprintln!("{jobs} jobs");
    for _ in 0..jobs / 1_000 {
        let ids: Vec<String> = (0..1_000).map(|_| client.send("execute", json!({"cmd": "/bin/true"}))).collect();
        for id in ids {
            ensure!(client.pop(&id)["state"] == "OK", "a job failed");
        }
    }
    // A busy machine takes longer until the agent is at rest and has given memory back.
    let rested = Instant::now() + Duration::from_secs(30);
    let after = loop {
        std::thread::sleep(Duration::from_secs(3));
        let after = rest(agent.pid())?;
        if after.pss - idle.pss <= MAX_GROWTH_MIB * MIB || Instant::now() > rested {
            break after;
        }
    };

    let size = |name: &str| fs::metadata(bin(name)).map(|m| m.len() as f64).context("the program's file");
    let (agent_size, acc_size) = (size("jsagent")?, size("jsacc")?);
    let built = if is_static(&bin("jsagent"))? { "static" } else { "not static" };
    let mut table = Table::new(&peers::HEADS);
    let first = vec![format!("jsagent ({built})"), number(agent_size / 1e6)];
    let last = vec![number(after.pss / MIB), number(after.anonymous / MIB), number(load), number(hour / 1e3)];
    table.row([first, idle.cells().into(), busy.cells().into(), last].concat());
    let acc_after = rest(acc.pid())?;
    let first = vec!["jsacc".to_owned(), number(acc_size / 1e6)];
    let last = vec![number(acc_after.pss / MIB), number(acc_after.anonymous / MIB), number(acc_load)];
    table.row([first, acc_idle.cells().into(), vec![String::new(); 3], last].concat());
    drop(agent);
    others.into_iter().for_each(|row| table.row(row));
    table.print();
    println!(
        "MiB are proportional set sizes, anon. the part of it that no file stands behind; a quiet agent drops the pages of \
         its own code,\nwhich the system reads again from the file. later: after {jobs} jobs; idle, CPU and bytes (of the \
         TLS connection): {minute} s\n"
    );

    // A debug build's size says nothing.
    let acc_size = if is_static(&bin("jsacc"))? { acc_size } else { 0.0 };
    let budgets = [
        ("jsagent on disk, MB", agent_size / 1e6, 5.0),
        ("jsacc on disk, MB", acc_size / 1e6, 5.0),
        ("jsagent idle, MiB", idle.pss / MIB, 5.0),
        ("jsagent in an idle minute, highest, MiB", highest.pss / MIB, 6.5),
        ("jsagent with 50 jobs, MiB", busy.pss / MIB, 5.7),
        ("jsagent after the jobs, MiB more", (after.pss - idle.pss) / MIB, MAX_GROWTH_MIB),
        ("jsagent idle, wake-ups a minute", a_minute(wakeups[0]), 40.0),
        ("jsagent idle, system calls a minute", a_minute(calls[0]), CALLS_OF_AGENT),
        ("jsagent idle, KB an hour to the controller", hour / 1e3, 300.0),
        ("jsagent idle, KB an hour written to files", written, WRITTEN_BY_AGENT),
        ("jsacc idle, wake-ups a minute", a_minute(wakeups[1]), 240.0),
        ("jsacc idle, system calls a minute", a_minute(calls[1]), CALLS_OF_ACC),
    ];
    let mut table = Table::new(&["budget", "is", "may be", ""]);
    for (name, value, limit) in budgets {
        table.row([
            name.to_owned(),
            number(value),
            number(limit),
            if value <= limit { "ok" } else { "OVER" }.to_owned(),
        ]);
    }
    table.print();
    // A wake-up costs ten times as much on one machine as on another, so CPU is no budget.
    println!("idle CPU, % of a core (depends on the machine): jsagent {}, jsacc {}", number(load), number(acc_load));
    println!("pages that an idle jsagent dirties (depends on the file system): {} KB an hour\n", number(dirtied));
    let over = budgets.iter().filter(|(_, value, limit)| value > limit).count();
    ensure!(!check || over == 0, "{over} budgets are passed");
    if check { small_memory::check() } else { Ok(()) }
}

/// Sleeps until half past a minute of the clock. An agent flushes stats at full minutes.
fn sleep_to_half_minute() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    std::thread::sleep(Duration::from_millis((90_000 - now % 60_000) % 60_000));
}

/// Memory and threads of a process now.
pub(crate) fn rest(pid: u32) -> Result<Rest> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("smaps_rollup")?;
    let bytes = |name: &str| -> Result<f64> {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).context("a line of smaps_rollup")?;
        Ok(line.split_whitespace().next().context("a number")?.parse::<f64>()? * 1024.0)
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
    Ok(Rest { pss: bytes("Pss:")?, anonymous: bytes("Pss_Anon:")?, threads })
}

/// CPU time that a process has used, in seconds, to the nanosecond.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanos = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text.split_whitespace().next().context("a number in schedstat")?.parse::<f64>()?;
    }
    Ok(nanos / 1e9)
}

/// Whether a program needs no loader.
fn is_static(path: &Path) -> Result<bool> {
    let bytes = fs::read(path)?;
    let loader = b"/lib64/ld-linux";
    Ok(!bytes.windows(loader.len()).any(|window| window == loader))
}

/// Stands between agent and controller and counts what passes, both ways.
struct Meter {
    port: u16,
    bytes: Arc<AtomicU64>,
}

impl Meter {
    fn start(to: u16) -> Result<Meter> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let meter = Meter { port: listener.local_addr()?.port(), bytes: Arc::default() };
        let bytes = meter.bytes.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                for (from, to) in [(near.try_clone(), far.try_clone()), (far.try_clone(), near.try_clone())] {
                    let (Ok(from), Ok(to), bytes) = (from, to, bytes.clone()) else { continue };
                    std::thread::spawn(move || pass(from, to, &bytes));
                }
            }
        });
        Ok(meter)
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64) {
    let _ = to.set_nodelay(true);
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        bytes.fetch_add(n as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
