//! The cost of keeping every line, from a child's pipe through the parser to SQLite.
//! The bench compares it with a bare loop that writes the same rows, and with loggers that write plain files.
//!
//! Every case gets the same 100-byte lines, the loggers from this program's own pipe. Rows are counted
//! as done when the last one is committed, files when the logger has ended.

use crate::Options;
use crate::measure::{Case, interleaved, ms, quantile};
use crate::table::{Table, number};
use anyhow::{Context, Result, bail, ensure};
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, Redis, fresh_id};
use rusqlite::Connection as Sqlite;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The name under which this program writes lines: `--lines COUNT KIND`.
pub(crate) const LINES: &str = "--lines";

pub(crate) fn run(options: &Options) -> Result<()> {
    let count: u64 = if options.quick { 100_000 } else { 2_000_000 };
    let redis = Redis::start();
    let quiet = || vec!["--log-level".to_owned(), "warn".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet(), ..AccOptions::default() });
    let config = "[logging.db]\nmax_size_mb = 100\nkeep = 10\n";
    let agent = Agent::start(&acc, AgentOptions { args: quiet(), ..AgentOptions::default() }.config(config));
    let client = RefCell::new(Client::new(&redis));
    client.borrow_mut().wait_seen("1:10");
    let dir = tempfile::tempdir()?;

    let through = |kind: &'static str, more: Value| {
        let (client, agent) = (&client, &agent);
        move || through_agent(&mut client.borrow_mut(), agent, count, kind, &more)
    };
    let mut cases = vec![
        Case::new("bare rusqlite loop", || bare(dir.path(), count)),
        Case::new("agent, lines", through("lines", json!({}))),
        Case::new("agent, blocks of level 20", through("blocks", json!({}))),
        Case::new("agent, filtered away", through("lines", json!({"loglevels": "7-9"}))),
        Case::new("only the child, into /dev/null", || child_alone(count)),
    ];
    let mut names = vec![
        "(a) bare rusqlite loop",
        "agent: lines of level 1, until committed",
        "agent: in blocks of level 20, ten lines each",
        "agent: loglevels 7-9, all filtered away",
        "the child alone, into /dev/null",
    ];
    for (program, name) in [("svlogd", "(b) svlogd, plain files"), ("s6-log", "(b) s6-log, plain files")] {
        if has(program) {
            let dir = dir.path().join(program);
            cases.push(Case::new(program, move || plain(program, &dir, count)));
            names.push(name);
        } else {
            println!("{program} is not installed (Debian: runit, s6): left out");
        }
    }
    let medians = interleaved(options.rounds, &mut cases)?;
    drop(cases);
    let peak = status(agent.pid(), "VmHWM")?;

    let bare = medians[0][0];
    let mut table = Table::new(&[&format!("{count} lines of 100 bytes"), "lines/s", "of (a)", "CPU s a million"]);
    for (name, figures) in names.iter().zip(&medians) {
        table.row([(*name).to_owned(), number(figures[0]), number(figures[0] / bare), number(figures[1])]);
    }
    table.print();
    println!("\nthe agent's CPU seconds are its own, without the child's; the loggers' likewise");

    let (small, times) = queries(&mut client.borrow_mut(), &agent, if options.quick { 20 } else { 100 })?;
    println!("\nget_msgs by job through all databases ({small} rotated), from LPUSH to the result:");
    println!("  p50 {} ms, p99 {} ms", number(quantile(&times, 0.5)), number(quantile(&times, 0.99)));
    println!("peak memory of the agent through all of it: {} MiB (aim: below 24)", number(peak as f64 / 1024.0));
    println!("aim: at least 0.8 of (a), and faster than svlogd");
    Ok(())
}

/// Writes `count` lines of 100 bytes with their LF, or as blocks of level 20.
pub(crate) fn write_lines(count: u64, kind: &str) -> Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, std::io::stdout().lock());
    let mut line = [b'0'; 100];
    line[99] = b'\n';
    for n in 0..count {
        if kind == "blocks" && n % 10 == 0 {
            out.write_all(if n == 0 { b"20:::\n" } else { b":::\n20:::\n" })?;
        }
        out.write_all(&line)?;
        count_up(&mut line[..99]);
    }
    if kind == "blocks" {
        out.write_all(b":::\n")?;
    }
    Ok(out.flush()?)
}

/// Adds one to a number in decimal digits; formatting would cost more than what is measured.
fn count_up(digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
}

/// Lines a second, and CPU seconds of the agent for a million of them.
fn through_agent(client: &mut Client, agent: &Agent, count: u64, kind: &str, more: &Value) -> Result<Vec<f64>> {
    let program = std::env::current_exe()?;
    let mut args = json!({"cmd": program, "args": [LINES, count.to_string(), kind], "domain": "bench", "name": kind});
    args.as_object_mut().context("args")?.extend(more.as_object().context("more")?.clone());
    let (began, cpu) = (Instant::now(), cpu(agent.pid())?);
    let result = client.run("execute", args);
    ensure!(result["state"] == "OK", "the job failed: {result}");
    // An answer to a query comes once everything before it is committed.
    client.ask("get_msgs", json!({"limit": 0}));
    let seconds = began.elapsed().as_secs_f64();
    let used = self::cpu(agent.pid())? - cpu;
    Ok(vec![count as f64 / seconds, used * 1e6 / count as f64])
}

/// The same rows, by a loop that does nothing else.
fn bare(dir: &Path, count: u64) -> Result<Vec<f64>> {
    let path = dir.join("bare.db");
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", path.display()));
    }
    let mut db = Sqlite::open(&path)?;
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
         CREATE TABLE messages(id INTEGER, jobid TEXT, jobdomain TEXT, jobname TEXT, epoch INTEGER, level INTEGER,
         data TEXT)",
    )?;
    let id = fresh_id();
    let (began, cpu) = (Instant::now(), cpu(std::process::id())?);
    let mut n = 0u64;
    let mut line = [b'0'; 99];
    while n < count {
        let rows = db.transaction()?;
        {
            let mut insert = rows.prepare_cached("INSERT INTO messages VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
            for _ in 0..1000 {
                let text = std::str::from_utf8(&line)?;
                insert.execute((n as i64, &id, "bench", "lines", 1_766_385_000_123i64, 1, text))?;
                count_up(&mut line);
                n += 1;
            }
        }
        rows.commit()?;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(vec![count as f64 / seconds, (self::cpu(std::process::id())? - cpu) * 1e6 / count as f64])
}

fn child(count: u64) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([LINES, &count.to_string(), "lines"]).stdin(Stdio::null());
    Ok(command)
}

fn child_alone(count: u64) -> Result<Vec<f64>> {
    let began = Instant::now();
    let cpu = children_cpu()?;
    ensure!(child(count)?.stdout(Stdio::null()).status()?.success(), "the child failed");
    Ok(vec![count as f64 / began.elapsed().as_secs_f64(), (children_cpu()? - cpu) * 1e6 / count as f64])
}

/// A logger that writes plain files, fed by the same child.
fn plain(program: &str, dir: &Path, count: u64) -> Result<Vec<f64>> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    // Its CPU seconds are what all children took, without what a child alone takes.
    let alone = child_alone(count)?[1];
    let mut logger = Command::new(program);
    match program {
        "svlogd" => {
            fs::write(dir.join("config"), "s100000000\nn11\n")?;
            logger.args(["-tt"]).arg(dir);
        }
        _ => {
            logger.args(["t", "s100000000", "n11"]).arg(dir);
        }
    }
    let cpu = children_cpu()?;
    let mut logger = logger.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let pipe = logger.stdin.take().context("its stdin")?;
    let began = Instant::now();
    let mut writer = child(count)?.stdout(Stdio::from(pipe)).spawn()?;
    ensure!(writer.wait()?.success(), "the child failed");
    logger.wait()?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(vec![count as f64 / seconds, (children_cpu()? - cpu) * 1e6 / count as f64 - alone])
}

/// How long queries by job take while the databases are full, and how many databases there are.
fn queries(client: &mut Client, agent: &Agent, samples: usize) -> Result<(usize, Vec<f64>)> {
    let id = client.shell("echo one; echo two");
    client.pop(&id);
    let dir = agent.data_dir().join("logs");
    let rotated = fs::read_dir(dir)?.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "db"));
    let rotated = rotated.count().saturating_sub(1);
    let mut times = Vec::new();
    for _ in 0..samples {
        let began = Instant::now();
        let found = client.ask("get_msgs", json!({"jobid": id}));
        times.push(ms(began.elapsed()));
        ensure!(found.as_array().is_some_and(|list| list.len() == 3), "not all was found: {found}");
    }
    Ok((rotated, times))
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// CPU seconds of a process, its ended threads counted in.
pub(crate) fn cpu(pid: u32) -> Result<f64> {
    ticks(&format!("/proc/{pid}/stat"), 11)
}

/// CPU seconds of children that were waited for.
fn children_cpu() -> Result<f64> {
    ticks("/proc/self/stat", 13)
}

fn ticks(path: &str, first: usize) -> Result<f64> {
    let stat = fs::read_to_string(path)?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let Some([user, system]) = fields.get(first..first + 2) else { bail!("{path} is cut short") };
    Ok((user.parse::<f64>()? + system.parse::<f64>()?) / 100.0)
}

/// A size of `/proc/PID/status`, in KiB.
pub(crate) fn status(pid: u32, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    Ok(line.split_whitespace().nth(1).context("a size")?.parse()?)
}
