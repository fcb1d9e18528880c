//! The cost of making a job's ticket and of checking a result's ticket, on one thread.

use crate::Options;
use crate::measure::{Case, interleaved};
use crate::table::{Table, number};
use anyhow::{Result, ensure};
use jsacc::auth::tickets::{Flags, TicketKey, TicketKeys, Tickets};
use jscommon::NodeId;
use std::hint::black_box;
use std::time::Instant;

pub(crate) fn run(options: &Options) -> Result<()> {
    let count = if options.quick { 10_000 } else { 500_000_u32 };
    let node = NodeId { gid: 1, nid: 10 };
    let ids: Vec<String> = (0..1000).map(|n| format!("7c0e5e1f-94b1-4d7c-8b52-000000{n:06}")).collect();
    let (old, new) = (TicketKey::new(&[1; 32]), TicketKey::new(&[2; 32]));
    let before = Tickets::new(TicketKeys { current: old.clone(), previous: None });
    let after = Tickets::new(TicketKeys { current: new, previous: Some(old) });
    let flags = Flags { recurring: Some(3600) };
    let made = |tickets: &Tickets| ids.iter().map(|id| tickets.issue(node, id, flags)).collect::<Vec<String>>();
    let (current, previous) = (made(&after), made(&before));
    let wrong: Vec<String> = current.iter().map(|ticket| ticket.replace("r3600", "r60")).collect();

    let each = |work: &dyn Fn(usize) -> bool| {
        let start = Instant::now();
        let good = (0..count as usize).filter(|n| work(n % 1000)).count();
        (good, start.elapsed().as_secs_f64() * 1e6 / f64::from(count))
    };
    let check = |tickets: &[String], want: bool| -> Result<Vec<f64>> {
        let (good, micros) = each(&|n| after.check(node, black_box(&ids[n]), black_box(&tickets[n])).is_ok());
        ensure!(good == if want { count as usize } else { 0 }, "{good} of {count} are good");
        Ok(vec![micros])
    };
    let mut cases = [
        Case::new("make", || Ok(vec![each(&|n| !after.issue(node, black_box(&ids[n]), flags).is_empty()).1])),
        Case::new("check", || check(&current, true)),
        Case::new("check, previous key", || check(&previous, true)),
        Case::new("check, wrong", || check(&wrong, false)),
    ];
    let medians = interleaved(options.rounds, &mut cases)?;
    let mut table = Table::new(&["tickets", "us each"]);
    let names = ["make one", "check one", "check one of the key before", "check a wrong one, with both keys"];
    for (name, figures) in names.iter().zip(&medians) {
        table.row([(*name).to_owned(), number(figures[0])]);
    }
    table.print();
    println!("\naim: below 5 us a check");
    Ok(())
}
