//! As many nodes as six controllers hold, played by several processes: memory, idle CPU, fanout, and the client.

use super::jsctl;
use super::many::{CONTROLLERS, Many};
use super::progress::Progress;
use super::{Figures, OTHERS};
use crate::table::{Table, number};
use anyhow::{Result, ensure};
use std::time::Duration;

/// More nodes than this are not for one controller and this process.
pub(super) const LEAST: u32 = 30_000;

/// Measures a tenth of the nodes and then all of them, so that the growth is seen.
pub(super) fn run(nodes: u32, quick: bool, hard: u64) -> Result<()> {
    let of_each = u64::from(nodes) / CONTROLLERS as u64;
    // They choose their controller by chance.
    ensure!(
        of_each + of_each / 50 + OTHERS <= hard,
        "{nodes} nodes are {of_each} for each of {CONTROLLERS} controllers, and a process may open {hard} files"
    );
    let sizes = if quick { [nodes / 100, nodes / 10] } else { [nodes / 10, nodes] };
    let mut progress = Progress::new();
    progress.of(format!("{} nodes", sizes[0]));
    progress.step("start");
    let mut many = Many::start()?;
    let mut columns = Vec::new();
    for size in sizes {
        progress.of(format!("{size} nodes"));
        columns.push((size, measure(&mut many, size, quick, &progress)?));
    }
    progress.done();
    print(&columns);
    Ok(())
}

fn measure(many: &mut Many, nodes: u32, quick: bool, progress: &Progress) -> Result<Figures> {
    let mut figures = Shown(Figures::new());
    let count = f64::from(nodes);
    progress.step("connect");
    let before = f64::from(many.nodes());
    let connect = many.grow(nodes, progress)?;
    figures.push("new nodes connect and are parked, s", connect.seconds);
    figures.push("  CPU of the controllers, ms a new node", 1e3 * connect.controllers / (count - before));
    let memory = many.memory()?;
    figures.push("memory of all controllers, MB", memory / 1e6);
    figures.push("  more than without nodes, KB a node", (memory - many.empty()) / 1e3 / count);
    figures.push("most descriptors of a controller", many.most_files()?);

    let idle = many.idle(Duration::from_secs(if quick { 5 } else { 30 }), progress)?;
    figures.push("CPU idle: all controllers, % of a core", 100.0 * idle.controllers / idle.seconds);
    figures.push("CPU idle: Redis, % of a core", 100.0 * idle.redis / idle.seconds);

    progress.step("fanout");
    let fanout = many.fanout()?;
    figures.push("fanout of ping until the last result, s", fanout.seconds);
    figures.push("  CPU of the controllers, us a node", 1e6 * fanout.controllers / count);
    figures.push("  CPU of Redis, us a node", 1e6 * fanout.redis / count);
    figures.push("  CPU of the simulated nodes, us a node", 1e6 * fanout.swarm / count);
    figures.push("memory of Redis, MB", many.redis_memory()? / 1e6);

    let commands: [(&[&str], [&'static str; 3]); 2] = [
        (&["ping", "all"], ["jsctl ping all, s", "  memory of jsctl, MB", "  steps of its progress bar"]),
        (&["exec", "all", "--", "true"], ["jsctl exec all, s", "  its memory, MB", "  its steps"]),
    ];
    for (words, names) in commands {
        progress.step(names[0]);
        if let Some(run) = jsctl::run(many.redis_url(), words, nodes)? {
            let values = [run.seconds, run.megabytes, run.steps];
            names.into_iter().zip(values).for_each(|(name, value)| figures.push(name, value));
        }
    }
    many.check()?;
    Ok(figures.0)
}

/// Figures that are told as they come: a run takes ten minutes, and may end early.
struct Shown(Figures);

impl Shown {
    fn push(&mut self, name: &'static str, value: f64) {
        eprintln!("        {name}: {}", number(value));
        self.0.push((name, value));
    }
}

fn print(columns: &[(u32, Figures)]) {
    let [(small, first), (large, last)] = columns else { return };
    let title = format!("over TLS, {CONTROLLERS} controllers");
    let names = [format!("{small} nodes"), format!("{large} nodes"), format!("{large}:{small}")];
    let mut table = Table::new(&[&title, &names[0], &names[1], &names[2]]);
    for ((name, small), (_, large)) in first.iter().zip(last) {
        let growth = if *small > 0.0 { format!("x {}", number(large / small)) } else { String::new() };
        table.row([(*name).to_owned(), number(*small), number(*large), growth]);
    }
    table.print();
    println!(
        "\naim at 100,000: at most 10 KB a node in the controllers, 20 % of a core idle, fanout complete in 20 s, jsctl in 400 MB;"
    );
    println!(
        "growth linear: figures for one node stay as they are. Nodes, controllers and Redis share this machine's cores."
    );
}
