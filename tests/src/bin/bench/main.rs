//! `scripts/bench NAME`: measures one property of the whole and prints a table.
//!
//! A bench is one file with a `run`; it measures everything that it compares in the same run, round
//! by round, so that a busy machine is busy for all of them, and prints medians and ratios. Nothing
//! here fails because a figure is bad: a bench informs, `scripts/test` judges.
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program whose purpose is a table on a terminal.

mod client;
mod footprint;
mod hostile;
mod measure;
mod messages;
mod peers;
mod roundtrip;
mod scale;
mod scripts;
mod sessions;
mod small_memory;
mod stats;
mod statsd;
mod stream;
mod supervise;
mod table;
mod tickets;
mod unauthenticated;

use std::process::ExitCode;

/// The options of every bench.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How often everything is measured; the table shows medians of these.
    pub(crate) rounds: usize,
    /// Less of everything, to see whether the bench itself works.
    pub(crate) quick: bool,
    /// The remaining arguments of the command line.
    #[allow(dead_code)] // Not every bench has arguments of its own.
    pub(crate) rest: Vec<String>,
}

type Bench = (&'static str, &'static str, fn(&Options) -> anyhow::Result<()>);

/// Every bench: its name, what it measures, and its `run`.
const BENCHES: &[Bench] = &[
    ("client", "the Python client beside plain redis-py, jsctl's start, a large fleet", client::run),
    (
        "roundtrip",
        "the time and the cost of ping and execute, beside the floor; --beside DIR: and beside another build",
        roundtrip::run,
    ),
    ("unauthenticated", "polls beside clients without credentials, and what each of those costs", unauthenticated::run),
    (
        "hostile",
        "a hostile node with good credentials: what grows, and another node's ping; --check fails on memory",
        hostile::run,
    ),
    ("tickets", "making and checking the tickets of jobs", tickets::run),
    ("messages", "lines of a job into SQLite, beside a bare loop and plain-file loggers", messages::run),
    ("stats", "statsd over UDP and in level 10 lines, beside statsd (npm) and collectd; the monitor", stats::run),
    (
        "scale",
        "1,000 to 10,000 nodes over TLS: memory, CPU, wake, fanout, herd; 100000: of six controllers",
        scale::run,
    ),
    ("stream", "live output: the delay of a line, the speed of a large file", stream::run),
    ("supervise", "the agent as a process manager, beside supervisord, runit and monit", supervise::run),
    ("scripts", "empty scripts in Lua and Python, beside their bare interpreters", scripts::run),
    ("footprint", "disk, memory, CPU and bytes of an agent at rest; --check fails above a budget", footprint::run),
    ("small-memory", "an agent and its jobs in a memory cgroup of 8 MiB; a part of footprint --check", |_| {
        small_memory::check()
    }),
];

fn main() -> ExitCode {
    let mut options = Options { rounds: 5, quick: false, rest: Vec::new() };
    let mut name = None;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rounds" => match words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0) {
                Some(rounds) => options.rounds = rounds,
                None => return usage("--rounds wants a number of 1 or more"),
            },
            "--quick" => options.quick = true,
            "-h" | "--help" => return usage(""),
            _ if name.is_none() => name = Some(word),
            _ => options.rest.push(word),
        }
    }
    let Some(name) = name else { return usage("which bench?") };
    if name == roundtrip::PONG {
        let url = options.rest.first().map(String::as_str).unwrap_or_default();
        return roundtrip::pong(url).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let first = || options.rest.first().and_then(|count| count.parse().ok()).unwrap_or(0);
    if name == messages::LINES {
        let kind = options.rest.get(1).map(String::as_str).unwrap_or_default();
        return messages::write_lines(first(), kind).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    if name == stats::METRICS {
        return stats::write_metrics(first()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let Some((_, _, run)) = BENCHES.iter().find(|bench| bench.0 == name) else {
        return usage(&format!("no bench {name}"));
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(fault: &str) -> ExitCode {
    let mut text = String::from("scripts/bench NAME [--rounds 5] [--quick]\n");
    BENCHES.iter().for_each(|(name, about, _)| text.push_str(&format!("  {name:<12} {about}\n")));
    if fault.is_empty() {
        print!("{text}");
        return ExitCode::SUCCESS;
    }
    eprint!("{fault}\n{text}");
    ExitCode::from(2)
}
