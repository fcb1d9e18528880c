//! The tables of the round trip, and the aims.

use super::cost::FIGURES;
use crate::table::{Table, number};
use jstests::proc::SyscallCounter;

/// The medians of one build.
pub(super) struct Of {
    pub(super) ping: Vec<f64>,
    pub(super) execute: Vec<f64>,
    pub(super) at_once: Vec<f64>,
    /// Of a ping and of an execute: `FIGURES` for each program, reads of Redis, calls of each program.
    pub(super) costs: [Vec<f64>; 2],
    pub(super) redis: Vec<f64>,
}

/// Prints everything; `floors` are ping-pong, spawn, both, commit and the spawn loop.
pub(super) fn print(floors: &[Vec<f64>], jobs: usize, ours: &Of, other: Option<&Of>) {
    let floor = floors[2][0];
    let mut table = Table::new(&["the least that is possible, one after the other", "p50 ms", "p99 ms"]);
    let names = [
        "Redis ping-pong, two processes",
        "fork, exec, wait of /bin/true, two pipes",
        "the floor: both in one",
        "one durable commit (SQLite, WAL, FULL)",
    ];
    for (name, figures) in names.iter().zip(floors) {
        table.row([(*name).to_owned(), number(figures[0]), number(figures[1])]);
    }
    table.print();

    let mut rows = Rows::new("one after the other, over HTTPS", other.is_some());
    rows.row("ping, p50 ms", ours.ping[0], other.map(|other| other.ping[0]), "0.63 of the build of 451649f");
    rows.row("  p99 ms", ours.ping[1], other.map(|other| other.ping[1]), "");
    rows.row("execute /bin/true, p50 ms", ours.execute[0], other.map(|other| other.execute[0]), "");
    rows.row("  p99 ms", ours.execute[1], other.map(|other| other.execute[1]), "");
    let above = |of: &Of| of.execute[0] - floor;
    rows.row("  p50 above the floor, ms", above(ours), other.map(above), "1.2");
    rows.print();

    let mut rows = Rows::new(&format!("{jobs} executes at once"), other.is_some());
    rows.row("jobs a second", ours.at_once[0], other.map(|other| other.at_once[0]), "");
    let share = |of: &Of| of.at_once[0] / floors[4][0];
    let loop_name = format!("  of the plain spawn loop ({} a second)", number(floors[4][0]));
    rows.row(&loop_name, share(ours), other.map(share), "0.95");
    rows.row("CPU of a job: jsacc, ms", ours.at_once[1], other.map(|other| other.at_once[1]), "");
    rows.row("  jsagent, its children aside, ms", ours.at_once[2], other.map(|other| other.at_once[2]), "");
    rows.print();

    let aims = [("a ping", ["12", "4", "0"]), ("an execute", ["", "", "24,000"])];
    for (at, (name, [acc, agent, disk])) in aims.into_iter().enumerate() {
        let other = other.map(|other| &other.costs[at]);
        let mut rows = Rows::new(&format!("the cost of {name}"), other.is_some());
        for (i, program) in ["jsacc", "jsagent"].into_iter().enumerate() {
            for (j, figure) in FIGURES.iter().enumerate() {
                let aim = match (i, j) {
                    (0, 0) => acc,
                    (1, 0) => agent,
                    (1, 3) => disk,
                    _ => "",
                };
                let row = 4 * i + j;
                rows.row(&format!("{program}: {figure}"), ours.costs[at][row], other.map(|other| other[row]), aim);
            }
            let row = 9 + i;
            let calls =
                if SyscallCounter::counts_all() { "system calls" } else { "reads and writes (perf cannot count)" };
            rows.row(&format!("{program}: {calls}"), ours.costs[at][row], other.map(|other| other[row]), "");
        }
        rows.row("reads of sockets by Redis, the client's 2 too", ours.costs[at][8], other.map(|other| other[8]), "");
        rows.print();
    }

    let mut rows = Rows::new("Redis, bytes of a finished execute of /bin/true", other.is_some());
    for (row, name) in ["the job's hash", "its unread result", "its guard", "all three"].into_iter().enumerate() {
        let aim = if row == 3 { "900" } else { "" };
        rows.row(name, ours.redis[row], other.map(|other| other.redis[row]), aim);
    }
    rows.print();
    println!(
        "\nAn aim is the most, or of the spawn loop the least. Children of the agent are in its calls and bytes, not in its CPU."
    );
    println!("Bytes given to write are those of files and pipes; sockets are written by other calls.");
}

/// A table of figures of this build, of another one where there is one, and their ratio.
struct Rows {
    table: Table,
    compares: bool,
}

impl Rows {
    fn new(title: &str, compares: bool) -> Rows {
        println!();
        let heads = if compares { vec![title, "now", "beside", "ratio", "aim"] } else { vec![title, "now", "aim"] };
        Rows { table: Table::new(&heads), compares }
    }

    fn row(&mut self, name: &str, ours: f64, other: Option<f64>, aim: &str) {
        let mut cells = vec![name.to_owned(), number(ours)];
        if self.compares {
            cells.push(other.map(number).unwrap_or_default());
            let ratio = other.filter(|other| *other > 0.0).map(|other| number(ours / other));
            cells.push(ratio.unwrap_or_default());
        }
        cells.push(aim.to_owned());
        self.table.row(cells);
    }

    fn print(self) {
        self.table.print();
    }
}
