//! The cost of nodes for a controller: 1,000, 5,000 and 10,000 of them over TLS, simulated.
//!
//! The swarm runs in this process, on the same machine, so it takes its share of the cores; what is
//! measured of the controller is its own memory, threads, descriptors and CPU. `bench scale 10000` measures
//! that many alone, and more nodes than one process may have files, 100,000 for one, are played to six
//! controllers by several processes.

mod jsctl;
mod large;
mod many;
mod progress;
mod steps;

use crate::Options;
use crate::table::{Table, number};
use anyhow::{Context, Result};
use jstests::proc;
use nix::sys::resource::{Resource, getrlimit};
use progress::Progress;
use std::time::Instant;
use steps::Fleet;

/// Descriptors of this process and of the controller that are no node's.
const OTHERS: u64 = 300;

pub(crate) fn run(options: &Options) -> Result<()> {
    let asked: Vec<u32> = options.rest.iter().filter_map(|word| word.parse().ok()).filter(|n| *n > 0).collect();
    let wanted: &[u32] = match () {
        () if !asked.is_empty() => &asked,
        () if options.quick => &[100, 300],
        () => &[1_000, 5_000, 10_000],
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if let [nodes] = asked[..]
        && nodes > large::LEAST
    {
        return large::run(nodes, options.quick, hard);
    }
    let sizes = within(wanted, hard);
    if sizes != wanted {
        println!("the limit of {hard} open files stops the run at {} nodes", sizes.last().unwrap_or(&0));
    }
    let mut progress = Progress::new();
    let mut columns = Vec::new();
    for (i, &nodes) in sizes.iter().enumerate() {
        progress.of(format!("{nodes} nodes ({} of {})", i + 1, sizes.len()));
        columns.push((nodes, measure(nodes, options.quick, &progress).with_context(|| format!("{nodes} nodes"))?));
    }
    progress.done();
    print(&columns);
    Ok(())
}

/// As many nodes as the limit of open files lets there be.
fn within(wanted: &[u32], hard: u64) -> Vec<u32> {
    let most = u32::try_from(hard.saturating_sub(OTHERS)).unwrap_or(u32::MAX);
    let mut sizes: Vec<u32> = wanted.iter().map(|nodes| (*nodes).min(most)).collect();
    sizes.dedup();
    sizes
}

/// The figures of one size, in their order; a name that begins with spaces belongs to the one above.
type Figures = Vec<(&'static str, f64)>;

fn print(columns: &[(u32, Figures)]) {
    let mut heads = vec!["over TLS, one controller".to_owned()];
    heads.extend(columns.iter().map(|(nodes, _)| format!("{nodes} nodes")));
    let (first, last) = match columns {
        [first, .., last] => (first, last),
        _ => return print_one(columns),
    };
    heads.push(format!("{}:{}", last.0, first.0));
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let mut table = Table::new(&heads);
    for (row, (name, _)) in first.1.iter().enumerate() {
        let cells = columns.iter().map(|(_, figures)| number(figures[row].1));
        let (small, large) = (first.1[row].1, last.1[row].1);
        let growth = if small > 0.0 { format!("x {}", number(large / small)) } else { String::new() };
        table.row(std::iter::once((*name).to_owned()).chain(cells).chain([growth]));
    }
    table.print();
    aims();
}

fn print_one(columns: &[(u32, Figures)]) {
    for (nodes, figures) in columns {
        let mut table = Table::new(&["over TLS, one controller", &format!("{nodes} nodes")]);
        figures.iter().for_each(|(name, figure)| table.row([(*name).to_owned(), number(*figure)]));
        table.print();
    }
    aims();
}

fn aims() {
    println!("\naim at 10,000: under 150 MB, under 64 threads, under 3 % of a core idle, wake p99 under 5 ms,");
    println!("fanout complete in 5 s, all parked again within 30 s; growth linear: figures for one node or one job");
    println!("stay as they are. Simulated nodes, jsacc and Redis share this machine's cores.");
}

fn measure(nodes: u32, quick: bool, progress: &Progress) -> Result<Figures> {
    let mut figures = Figures::new();
    let count = f64::from(nodes);
    progress.step("connect");
    let (mut fleet, empty, park) = Fleet::start(nodes)?;
    figures.push(("all connect and are parked, s", park.seconds));
    figures.push(("  CPU of jsacc, ms a node", 1e3 * park.jsacc / count));
    let full = proc::memory(fleet.acc.pid())? as f64;
    figures.push(("memory with all parked, MB", full / 1e6));
    figures.push(("  a node, KB", (full - empty) / 1e3 / count));
    figures.push(("threads", proc::threads(fleet.acc.pid())? as f64));
    figures.push(("descriptors", proc::files(fleet.acc.pid())? as f64));

    let idle = fleet.idle(quick, progress)?;
    figures.push(("CPU idle: jsacc, % of a core", 100.0 * idle.jsacc / idle.seconds));
    figures.push(("  for 1,000 nodes", 1e5 * idle.jsacc / idle.seconds / count));
    figures.push(("CPU idle: Redis, % of a core", 100.0 * idle.redis / idle.seconds));

    progress.step("wake one");
    let (p50, p99) = fleet.wake(if quick { 50 } else { 500 })?;
    figures.push(("wake of one, p50 ms", p50));
    figures.push(("wake of one, p99 ms", p99));

    progress.step("fanout");
    let fanout = fleet.fanout()?;
    figures.push(("fanout of ping until the last result, s", fanout.seconds));
    figures.push(("  CPU of jsacc, us a node", 1e6 * fanout.jsacc / count));
    figures.push(("  CPU of Redis, us a node", 1e6 * fanout.redis / count));
    figures.push(("  CPU of the simulated nodes, us a node", 1e6 * fanout.swarm / count));

    progress.step("jobs");
    let jobs = if quick { 500 } else { 10_000 };
    let spread = fleet.jobs(jobs)?;
    let count_jobs = f64::from(jobs);
    figures.push(("jobs spread over all, a second", count_jobs / spread.seconds));
    figures.push(("  CPU of jsacc, us a job", 1e6 * spread.jsacc / count_jobs));
    figures.push(("  CPU of Redis, us a job", 1e6 * spread.redis / count_jobs));
    figures.push(("  CPU of the simulated nodes, us a job", 1e6 * spread.swarm / count_jobs));

    progress.step("all nodes stop and come back within a second");
    let again = fleet.restart_nodes()?;
    figures.push(("all nodes restart: parked again, s", again.seconds));
    figures.push(("  CPU of jsacc, ms a node", 1e3 * again.jsacc / count));

    progress.step("jsacc is killed, and all come within a second of its start");
    let start = Instant::now();
    let herd = fleet.kill_acc(true)?;
    figures.push(("jsacc killed, all come within 1 s: parked, s", herd.seconds));
    figures.push(("  CPU of jsacc, ms a node", 1e3 * herd.jsacc / count));
    progress.step(&format!("jsacc is killed once more ({:.0} s for the last)", start.elapsed().as_secs_f64()));
    let jitter = fleet.kill_acc(false)?;
    figures.push(("  with the agent's own backoff: parked, s", jitter.seconds));
    figures.push(("  put off with Retry-After, of all nodes", jitter.put_off));

    fleet.check()?;
    figures.push(("memory after all that, MB", proc::memory(fleet.acc.pid())? as f64 / 1e6));
    figures.push(("threads after all that", proc::threads(fleet.acc.pid())? as f64));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_stops_the_run_where_it_is() {
        let sizes = [1_000, 5_000, 10_000];
        assert_eq!(within(&sizes, 20_000), sizes);
        assert_eq!(within(&sizes, 4_096), [1_000, 3_796]);
        assert_eq!(within(&sizes, 1_024), [724]);
    }
}
