//! The cost of a command from the client's LPUSH to the result, beside the least possible cost.
//!
//! The floor is a ping-pong through Redis between two processes, the second of which starts
//! `/bin/true` with two pipes and waits for it before it answers: no node, no network, no disk.
//! `--beside DIR` measures the programs of another build in turn with these, and prints ratios.

mod build;
mod cost;
mod floor;
mod hops;
mod report;

use crate::Options;
use crate::measure::{Case, interleaved};
use anyhow::{Context, Result, ensure};
use build::{Build, Kind, sample};
pub(crate) use floor::{PONG, Pong, bounce, pong};
use floor::{commit, commit_table, spawn_true};
use report::{Of, print};
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Instant;

pub(crate) fn run(options: &Options) -> Result<()> {
    let (samples, jobs) = if options.quick { (20, 200) } else { (200, 2000) };
    let ours = RefCell::new(Build::start(None));
    let other = beside(&options.rest)?.map(|dir| RefCell::new(Build::start(Some(dir))));
    let pong = Pong::start(&ours.borrow().redis)?;
    let disk = commit_table(ours.borrow().agent.scratch())?;

    let bounces = |what: &'static str| {
        let ours = &ours;
        move || sample(samples, || bounce(&mut ours.borrow_mut().client.conn, what))
    };
    let mut cases = vec![
        Case::new("Redis ping-pong", bounces("echo")),
        Case::new("fork, exec, wait", || sample(samples, spawn_true)),
        Case::new("the floor: both", bounces("spawn")),
        Case::new("durable commit", || sample(samples, || commit(&disk))),
        Case::new("plain spawn loop", || {
            let start = Instant::now();
            (0..jobs).try_for_each(|_| spawn_true())?;
            Ok(vec![jobs as f64 / start.elapsed().as_secs_f64()])
        }),
    ];
    let floors = cases.len();
    let builds: Vec<&RefCell<Build>> = std::iter::once(&ours).chain(&other).collect();
    cases.extend(of_each(&builds, "ping", |build, n| build.times(Kind::Ping, n), samples));
    cases.extend(of_each(&builds, "execute /bin/true", |build, n| build.times(Kind::Execute, n), samples));
    cases.extend(of_each(&builds, "jobs pushed at once", Build::at_once, jobs));
    cases.extend(of_each(&builds, "cost of a ping", |build, n| build.cost(Kind::Ping, n), samples));
    cases.extend(of_each(&builds, "cost of an execute", |build, n| build.cost(Kind::Execute, n), samples));
    cases.extend(of_each(&builds, "bytes in Redis", |build, _| build.redis_bytes(), 0));
    let medians = interleaved(options.rounds, &mut cases)?;
    drop(cases);
    drop(pong);

    let (floors, measured) = medians.split_at(floors);
    let columns = builds.len();
    let of = |build: usize| {
        let mut figures = measured.iter().skip(build).step_by(columns).cloned();
        let mut next = || figures.next().unwrap_or_default();
        Of { ping: next(), execute: next(), at_once: next(), costs: [next(), next()], redis: next() }
    };
    print(floors, jobs, &of(0), (columns > 1).then(|| of(1)).as_ref());
    hops::print(samples)
}

/// A case for each build, one right after the other: a machine that is busy is busy for both.
fn of_each<'a>(
    builds: &[&'a RefCell<Build>],
    name: &str,
    round: fn(&mut Build, usize) -> Result<Vec<f64>>,
    count: usize,
) -> Vec<Case<'a>> {
    let case = |build: &&'a RefCell<Build>| {
        let build = *build;
        Case::new(name, move || round(&mut build.borrow_mut(), count))
    };
    builds.iter().map(case).collect()
}

/// The folder after `--beside`.
fn beside(rest: &[String]) -> Result<Option<PathBuf>> {
    let Some(at) = rest.iter().position(|word| word == "--beside") else { return Ok(None) };
    let dir = PathBuf::from(rest.get(at + 1).context("--beside wants a folder with jsacc and jsagent")?);
    for name in ["jsacc", "jsagent"] {
        ensure!(dir.join(name).is_file(), "no {name} in {}: --beside wants a folder with both programs", dir.display());
    }
    Ok(Some(dir))
}
