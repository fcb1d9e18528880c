//! Plays thousands of nodes against a controller, and prints every second what they have seen.
//!
//! `swarm --controller 127.0.0.1:4000 --state-dir DIR --nodes 1000`; `--help` for the rest.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program whose purpose is lines on a terminal.

use anyhow::{Context, Result, bail};
use jstests::swarm::{Swarm, SwarmOptions};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const HELP: &str = "swarm [options]: plays thousands of nodes against a controller
  --controller ADDR   where it listens (127.0.0.1:4000); more than once: tried in turn
  --state-dir DIR     its state directory: TLS and tokens; without it plain HTTP and none
  --nodes N           how many nodes, 1:1 to 1:N (1000)
  --first N           the node id of the first (1)
  --many-sources yes  they come from 200 addresses of loopback, for one has 28,000 ports (no)
  --role NAME         a role of all of them (swarm); more than once
  --wait S            seconds of a poll (30)
  --threads N         threads that play them (1)
  --spread S          they connect within so many seconds (1)
  --chatter S         each sends a record and a series so often (never)
  --restart-every S   all of them stop and come back so often (never)
  --cut-every S       a tenth loses its connection, a tenth leaves it half open, so often (never)
  --seconds S         ends after so long (until it is killed)
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("swarm: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<()> {
    let mut options =
        SwarmOptions { spread: Duration::from_secs(1), ..SwarmOptions::new(([127, 0, 0, 1], 4000).into(), 1000) };
    let (mut controllers, mut roles, mut state_dir) = (Vec::new(), Vec::new(), None);
    let (mut restart_every, mut cut_every, mut seconds) = (None, None, None);
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        if flag == "-h" || flag == "--help" {
            print!("{HELP}");
            return Ok(());
        }
        let value = words.next().with_context(|| format!("{flag} wants a value; see --help"))?;
        match flag.as_str() {
            "--controller" => controllers.push(read(&flag, &value)?),
            "--state-dir" => state_dir = Some(PathBuf::from(value)),
            "--nodes" => options.nodes = read(&flag, &value)?,
            "--first" => options.first = read(&flag, &value)?,
            "--many-sources" => options.many_sources = value == "yes",
            "--role" => roles.push(value),
            "--wait" => options.wait = read(&flag, &value)?,
            "--threads" => options.threads = read(&flag, &value)?,
            "--spread" => options.spread = time(&flag, &value)?,
            "--chatter" => options.chatter = Some(time(&flag, &value)?),
            "--restart-every" => restart_every = Some(time(&flag, &value)?),
            "--cut-every" => cut_every = Some(time(&flag, &value)?),
            "--seconds" => seconds = Some(time(&flag, &value)?),
            _ => bail!("no flag {flag}; see --help"),
        }
    }
    if !controllers.is_empty() {
        options.controllers = controllers;
    }
    if !roles.is_empty() {
        options.roles = roles;
    }
    if let Some(dir) = state_dir {
        options = options.secured_by(&dir)?;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;

    let swarm = Swarm::start(options)?;
    let start = Instant::now();
    let (mut restarted, mut cut) = (start, start);
    while seconds.is_none_or(|limit| start.elapsed() < limit) {
        std::thread::sleep(Duration::from_secs(1));
        if restart_every.is_some_and(|every| restarted.elapsed() >= every) {
            restarted = Instant::now();
            swarm.restart();
        }
        if cut_every.is_some_and(|every| cut.elapsed() >= every) {
            cut = Instant::now();
            swarm.cut(0.1);
            swarm.half_open(0.1);
        }
        let _ = swarm.arrivals.try_iter().count();
        let t = &swarm.tally;
        println!(
            "{:5.0} s: {} connected, {} polling; {} connects, {} cut, {} put off; {} commands ({} repeated), {} results, {} records; others {:?}",
            start.elapsed().as_secs_f64(),
            t.connected.load(Relaxed),
            t.polling.load(Relaxed),
            t.connects.load(Relaxed),
            t.cut.load(Relaxed),
            t.put_off.load(Relaxed),
            t.commands.load(Relaxed),
            t.repeated.load(Relaxed),
            t.results.load(Relaxed),
            t.records.load(Relaxed),
            t.others.lock().unwrap_or_else(|e| e.into_inner()),
        );
    }
    Ok(())
}

fn read<T: FromStr>(flag: &str, text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("{flag} does not take '{text}'"))
}

fn time(flag: &str, text: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(read(flag, text)?)?)
}
