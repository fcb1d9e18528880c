//! The hops of one command after the other, from the trace that both programs write when they are asked to.

use super::build::{Build, Kind};
use crate::measure::median;
use crate::table::{Table, number};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// The points that are shown, and their meaning; those that a command does not pass are left out.
const POINTS: &[(&str, &str)] = &[
    ("acc.taken", "taken by the dispatcher"),
    ("acc.hashed", "job written down"),
    ("acc.enqueued", "in its node's queue"),
    ("acc.dispatching", "about to be dispatched"),
    ("acc.dispatched", "written down and in its node's queue"),
    ("acc.handed", "handed to the proxy"),
    ("acc.response", "written to the node's connection"),
    ("agent.received", "received by the agent"),
    ("agent.stored", "stored by the agent"),
    ("agent.spawned", "process started"),
    ("agent.exited", "process ended"),
    ("agent.done", "result stored by the agent"),
    ("agent.posting", "result about to be posted"),
    ("acc.request", "result received by the controller"),
    ("acc.http", "its handler begins"),
    ("acc.result.guarded", "decided"),
    ("acc.result.delivering", "about to be delivered"),
    ("acc.result.pushed", "in Redis"),
    (POPPED, "popped by the client"),
];

/// The moment at which the client has the result.
const POPPED: &str = "client.popped";

/// Microseconds after the push, by point.
type Passed = HashMap<String, f64>;

/// Prints the medians of the hops of as many commands of each kind.
pub(super) fn print(commands: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("hops");
    let mut build = Build::start_with(None, &[("JS_TRACE_HOPS".to_owned(), file.display().to_string())]);
    for (kind, name) in [(Kind::Ping, "a ping"), (Kind::Execute, "an execute of /bin/true")] {
        let mut windows = Vec::new();
        for _ in 0..commands {
            let begin = micros();
            build.run(kind)?;
            windows.push((begin, micros()));
        }
        let text = std::fs::read_to_string(&file).context("no trace was written")?;
        print_one(name, &windows.iter().map(|window| passed(&text, *window)).collect::<Vec<Passed>>());
    }
    Ok(())
}

fn print_one(name: &str, commands: &[Passed]) {
    let mut hops: Vec<(f64, &str)> = Vec::new();
    for (point, meaning) in POINTS {
        let times: Vec<f64> = commands.iter().filter_map(|passed| passed.get(*point).copied()).collect();
        if times.len() * 2 > commands.len() {
            hops.push((median(&times), meaning));
        }
    }
    hops.sort_by(|a, b| a.0.total_cmp(&b.0));
    println!();
    let mut table = Table::new(&[&format!("the hops of {name}"), "ms since the push", "step"]);
    let mut before = 0.0;
    for (at, meaning) in hops {
        table.row([meaning.to_owned(), number(at / 1e3), number((at - before) / 1e3)]);
        before = at;
    }
    table.print();
}

/// The times of the points that one command passes, in their order: the command before may still pass some.
fn passed(trace: &str, (begin, end): (u64, u64)) -> Passed {
    let mut times: HashMap<&str, Vec<u64>> = HashMap::new();
    for line in trace.lines() {
        let Some((time, point)) = line.split_once(' ') else { continue };
        let Some(time) = time.parse::<u64>().ok().filter(|time| (begin..=end).contains(time)) else { continue };
        times.entry(point).or_default().push(time);
    }
    let mut passed = Passed::from([(POPPED.to_owned(), (end - begin) as f64)]);
    let deciding = ["acc.result.guarded", "acc.result.delivering"].iter().filter_map(|point| times.get(point));
    let decided = deciding.flatten().max().copied().unwrap_or(end);
    let mut last = begin;
    for (point, _) in POINTS {
        let Some(times) = times.get(point) else { continue };
        let time = match *point {
            // Polls are requests too; that of the result is the last before it is decided.
            "acc.request" | "acc.http" => times.iter().filter(|time| (last..=decided).contains(time)).max(),
            _ => times.iter().filter(|time| **time >= last).min(),
        };
        let Some(&time) = time else { continue };
        passed.insert((*point).to_owned(), (time - begin) as f64);
        // Another thread may go on before these are passed.
        if !matches!(*point, "acc.handed" | "agent.stored" | "agent.done") {
            last = time;
        }
    }
    passed
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_other_commands_are_left_out() {
        let trace = "9 acc.taken\n11 acc.result.pushed\n11 acc.response\n12 acc.taken\n13 acc.response\n14 acc.taken\n\
                     15 acc.request\n17 acc.request\n18 acc.result.guarded\n19 acc.request\n21 acc.result.pushed\n";
        let found = passed(trace, (10, 20));
        let times = ["acc.taken", "acc.response", "acc.request", POPPED].map(|point| found[point]);
        assert_eq!(times, [2.0, 3.0, 7.0, 10.0]);
        assert!(!found.contains_key("acc.result.pushed"));
    }
}
