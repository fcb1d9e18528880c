//! What a node pays for having the agent: disk, memory, threads, CPU, bytes on the wire.
//!
//! Measures the programs of `JS_BIN_DIR` (`scripts/bench` points it at the static release build where
//! that can be made), and what else of the kind this machine has. With `--check` it ends with an error
//! when a budget is passed; `scripts/test budgets` calls it so.

use crate::Options;
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jstests::process::Process;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, Redis, bin};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MIB: f64 = 1024.0 * 1024.0;

/// One program at rest.
struct Rest {
    /// Proportional set size, bytes.
    pss: f64,
    threads: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let check = options.rest.iter().any(|word| word == "--check");
    let (minute, jobs) = if options.quick { (10, 1_000) } else { (60, 10_000) };
    let quiet = || vec!["--log-level".to_owned(), "warn".to_owned()];
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions { args: quiet(), ..AccOptions::secure() });
    let meter = Meter::start(acc.port())?;
    let options = AgentOptions { args: quiet(), max_jobs: Some(100), via: Some(meter.url()), ..Default::default() };
    let agent = Agent::start(&acc, options);
    let mut client = Client::new(&redis);
    ensure!(client.run("ping", json!({}))["state"] == "OK", "the agent does not answer");

    eprintln!("an idle minute");
    std::thread::sleep(Duration::from_secs(3)); // What the start itself costs is no part of it.
    let (cpu, bytes) = (cpu_seconds(agent.pid())?, meter.bytes());
    let acc_cpu = cpu_seconds(acc.pid())?;
    std::thread::sleep(Duration::from_secs(minute));
    let load = 100.0 * (cpu_seconds(agent.pid())? - cpu) / minute as f64;
    let acc_load = 100.0 * (cpu_seconds(acc.pid())? - acc_cpu) / minute as f64;
    let hour = (meter.bytes() - bytes) as f64 * 3600.0 / minute as f64;
    let idle = rest(agent.pid())?;
    let acc_idle = rest(acc.pid())?;

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
    std::thread::sleep(Duration::from_secs(3));
    let after = rest(agent.pid())?;

    let size = |name: &str| fs::metadata(bin(name)).map(|m| m.len() as f64).context("the program's file");
    let (agent_size, acc_size) = (size("jsagent")?, size("jsacc")?);
    let built = if is_static(&bin("jsagent"))? { "static" } else { "not static" };
    let heads = ["", "MB on disk", "idle MiB", "threads", "50 jobs MiB", "threads", "later MiB", "CPU %", "KB an hour"];
    let mut table = Table::new(&heads);
    table.row([
        format!("jsagent ({built})"),
        number(agent_size / 1e6),
        number(idle.pss / MIB),
        idle.threads.to_string(),
        number(busy.pss / MIB),
        busy.threads.to_string(),
        number(after.pss / MIB),
        number(load),
        number(hour / 1e3),
    ]);
    table.row([
        "jsacc".to_owned(),
        number(acc_size / 1e6),
        number(acc_idle.pss / MIB),
        acc_idle.threads.to_string(),
        String::new(),
        String::new(),
        number(rest(acc.pid())?.pss / MIB),
        number(acc_load),
    ]);
    drop(agent);
    // Budgets are the agent's own; to look at others would only take time.
    for other in if check { Vec::new() } else { others()? } {
        table.row(other);
    }
    table.print();
    println!("later: after {jobs} jobs; idle is after {minute} s; bytes are those of the TLS connection\n");

    // A debug build's size says nothing.
    let acc_size = if is_static(&bin("jsacc"))? { acc_size } else { 0.0 };
    let budgets = [
        ("jsagent on disk, MB", agent_size / 1e6, 5.0),
        ("jsacc on disk, MB", acc_size / 1e6, 5.0),
        ("jsagent idle, MiB", idle.pss / MIB, 5.0),
        ("jsagent with 50 jobs, MiB", busy.pss / MIB, 5.7),
        ("jsagent after the jobs, MiB more", (after.pss - idle.pss) / MIB, 2.0),
        ("jsagent idle, % of a core", load, 0.05),
        ("jsagent idle, KB an hour", hour / 1e3, 300.0),
    ];
    let mut table = Table::new(&["budget", "is", "may be", ""]);
    for (name, value, limit) in budgets {
        table.row([
            name.to_owned(),
            number(value),
            number(limit),
            if value < limit { "ok" } else { "OVER" }.to_owned(),
        ]);
    }
    table.print();
    let over = budgets.iter().filter(|(_, value, limit)| value >= limit).count();
    ensure!(!check || over == 0, "{over} budgets are passed");
    Ok(())
}

/// Memory and threads of a process now.
fn rest(pid: u32) -> Result<Rest> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss in smaps_rollup")?;
    let kib: f64 = line.split_whitespace().next().context("a number")?.parse()?;
    Ok(Rest { pss: kib * 1024.0, threads: fs::read_dir(format!("/proc/{pid}/task"))?.count() })
}

/// As `rest`, of a program and those of its children that are the same program, for some are several
/// processes; what it supervises is none of it.
fn whole(pid: u32) -> Result<Rest> {
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let mut all = rest(pid)?;
    let mut found = vec![pid];
    let pids: Vec<u32> =
        fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // Children have higher numbers than their parents, until the numbers begin anew.
    for child in pids.into_iter().filter(|child| *child > pid) {
        if parent(child).is_some_and(|parent| found.contains(&parent)) && program(child) == program(pid) {
            found.push(child);
            let more = rest(child)?;
            all = Rest { pss: all.pss + more.pss, threads: all.threads + more.threads };
        }
    }
    Ok(all)
}

/// CPU time that a process has used, in seconds, to the nanosecond.
fn cpu_seconds(pid: u32) -> Result<f64> {
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

/// What else of the kind is installed here, at rest and with 50 children where it starts any.
fn others() -> Result<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    let dir = tempfile::tempdir()?;
    let programs: String = (0..50).map(|n| format!("[program:s{n}]\ncommand=/bin/sleep 3600\n")).collect();
    let at = dir.path().display();
    let supervisor =
        format!("[supervisord]\nnodaemon=true\nlogfile={at}/s.log\npidfile={at}/s.pid\nchildlogdir={at}\n{programs}");
    fs::write(dir.path().join("supervisord.conf"), supervisor)?;
    let folder = dir.path().to_str().context("a path in UTF-8")?.to_owned();
    let conf = format!("{folder}/supervisord.conf");
    let monit = format!("{folder}/monitrc");
    fs::write(&monit, format!("set daemon 30\nset idfile {folder}/id\nset statefile {folder}/state\n"))?;
    Command::new("chmod").args(["600", &monit]).status()?;
    fs::write(dir.path().join("minion"), format!("master: 127.0.0.1\nid: bench\nroot_dir: {folder}/salt\n"))?;
    let collectd = format!("{folder}/collectd.conf");
    let plugins = ["cpu", "memory", "load", "interface", "df"].map(|name| format!("LoadPlugin {name}\n")).concat();
    fs::write(&collectd, format!("BaseDir \"{folder}\"\nPIDFile \"{folder}/collectd.pid\"\n{plugins}"))?;
    let candidates: [(&str, Vec<&str>); 6] = [
        ("supervisord", vec!["-c", &conf]),
        ("monit", vec!["-I", "-c", &monit]),
        ("salt-minion", vec!["-c", &folder]),
        ("telegraf", vec!["--test-wait", "60"]),
        ("collectd", vec!["-f", "-C", &collectd]),
        ("prometheus-node-exporter", vec!["--web.listen-address=127.0.0.1:0"]),
    ];
    for (name, args) in candidates {
        let Some(path) = find(name) else {
            rows.push(vec![name.to_owned(), "not installed here".to_owned()]);
            continue;
        };
        let mut process = Process::spawn(Command::new(&path).args(args), name, dir.path(), Signal::SIGTERM);
        std::thread::sleep(Duration::from_secs(10));
        if process.try_wait().is_some() {
            rows.push(vec![name.to_owned(), "does not start here".to_owned()]);
            continue;
        }
        let all = whole(process.pid())?;
        let with = if name == "supervisord" { " (50 jobs)" } else { "" };
        let size = fs::metadata(&path)?.len() as f64;
        // A script's size says nothing: what it needs lies elsewhere.
        let disk = if size > 20_000.0 { number(size / 1e6) } else { String::new() };
        rows.push(vec![format!("{name}{with}"), disk, number(all.pss / MIB), all.threads.to_string()]);
        process.stop(Duration::from_secs(10));
    }
    Ok(rows)
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|dir| dir.join(program)).find(|file| file.is_file())
}
