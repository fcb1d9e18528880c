//! `scripts/chaos`: kills and cuts everything under a load, and checks that nothing was lost, doubled or left over.
//!
//! A private Redis (append-only file, `appendfsync always`), two controllers, some agents, and between them proxies
//! that cut and stall connections. A seeded schedule of failures (`schedule`), a load with known ids whose effects
//! are written down (`load`), then quiet, and the check of each command (`check`) and of what is left (`world`).
#![allow(clippy::print_stdout, clippy::print_stderr)] // A program whose purpose is lines on a terminal.

mod check;
mod load;
mod schedule;
mod world;

use anyhow::{Context, Result, bail};
use check::{Fault, Seen, Touched};
use jstests::Client;
use load::{Kind, Load, Sent};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};
use world::World;

const HELP: &str = "scripts/chaos [options]: kills and cuts everything under a load; ends with 1 when a command is lost
  --seed N       of the schedule and the load (a random one, which is printed)
  --seconds N    how long things fail (60)
  --agents N     nodes (4)
  --rate N       commands a second (30)
  --keep DIR     where the logs of the programs go when something is wrong
";

/// How long nothing may move before the rest counts as lost: well above the 20 s of a dead controller's list, and
/// above the 90 s for which a hand-over counts as under way.
const PATIENCE: Duration = Duration::from_secs(150);
/// Most faults that are shown.
const SHOWN: usize = 30;

struct Options {
    seed: u64,
    seconds: u64,
    agents: usize,
    rate: u32,
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    match options().and_then(|options| options.map_or(Ok(true), |options| run(&options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Option<Options>> {
    let mut options = Options { seed: fastrand::u64(..1_000_000), seconds: 60, agents: 4, rate: 30, keep: None };
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        if flag == "-h" || flag == "--help" {
            print!("{HELP}");
            return Ok(None);
        }
        let value = words.next().with_context(|| format!("{flag} wants a value; see --help"))?;
        match flag.as_str() {
            "--seed" => options.seed = read(&flag, &value)?,
            "--seconds" => options.seconds = read(&flag, &value)?,
            "--agents" => options.agents = read(&flag, &value)?,
            "--rate" => options.rate = read(&flag, &value)?,
            "--keep" => options.keep = Some(value.into()),
            _ => bail!("no flag {flag}; see --help"),
        }
    }
    if !(1..=50).contains(&options.agents) || !(1..=1000).contains(&options.rate) {
        bail!("--agents is 1 to 50, --rate is 1 to 1000");
    }
    Ok(Some(options))
}

fn read<T: FromStr>(flag: &str, text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("{flag} does not take '{text}'"))
}

/// Returns whether all is well.
fn run(options: &Options) -> Result<bool> {
    println!(
        "seed {}, {} s, {} agents, {} controllers",
        options.seed,
        options.seconds,
        options.agents,
        world::CONTROLLERS
    );
    let mut world = World::start(options.agents);
    let length = Duration::from_secs(options.seconds);
    let schedule = schedule::make(options.seed, length, world::CONTROLLERS, options.agents);
    let load = Load::start(&world.redis, options.seed, options.agents as u32, options.rate);
    let (begin, mut told) = (Instant::now(), Instant::now());
    let mut failures: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong: Vec<(Fault, String)> = Vec::new();
    for entry in schedule {
        loop {
            let left = Duration::from_millis(entry.at).saturating_sub(begin.elapsed());
            wrong.extend(world.ended().into_iter().map(|what| (Fault::Unexplained, what)));
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                let count: usize = failures.values().sum();
                println!("{:4.0} s: {} commands, {count} failures", begin.elapsed().as_secs_f64(), load.count());
            }
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        if !entry.begins {
            world.end(entry.failure);
        } else if world.begin(entry.failure) {
            *failures.entry(entry.failure.name()).or_default() += 1;
        }
    }
    world.calm();
    let sent = load.stop();
    println!("{:4.0} s: quiet; {} commands were pushed", begin.elapsed().as_secs_f64(), sent.len());
    wait_for_answers(&mut world, &sent, begin, &mut wrong);
    let left = wait_for_rest(&world);
    wrong.extend(left.into_iter().map(|what| (Fault::Unexplained, format!("left over: {what}"))));
    let reasons = check_all(&world, &sent, &mut wrong);
    wrong.extend(world.stop_agents().into_iter().map(|what| (Fault::Unexplained, what)));
    report(options, &sent, &failures, &reasons, &wrong, begin.elapsed());
    if let Some(dir) = options.keep.as_deref().filter(|_| !wrong.is_empty()) {
        world.keep_logs(dir).with_context(|| format!("cannot write into {}", dir.display()))?;
        println!("the logs are in {}", dir.display());
    }
    Ok(wrong.is_empty())
}

/// Waits until every command has as many answers as it is to have, or nothing has moved for too long.
fn wait_for_answers(world: &mut World, sent: &[Sent], begin: Instant, wrong: &mut Vec<(Fault, String)>) {
    let mut client = world.client();
    let wanted: usize = sent.iter().map(|sent| sent.targets.count()).sum();
    let (mut before, mut moved, mut told) = (0, Instant::now(), Instant::now());
    loop {
        wrong.extend(world.ended().into_iter().map(|what| (Fault::Unexplained, what)));
        let answered: usize = sent.iter().map(|sent| client.results(&sent.id).min(sent.targets.count())).sum();
        if answered != before {
            (before, moved) = (answered, Instant::now());
        }
        if answered >= wanted || moved.elapsed() > PATIENCE {
            println!("{:4.0} s: {answered} of {wanted} answers", begin.elapsed().as_secs_f64());
            return;
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            println!("{:4.0} s: {answered} of {wanted} answers", begin.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until nothing is left of the commands; what still is after a while.
fn wait_for_rest(world: &World) -> Vec<String> {
    let begin = Instant::now();
    loop {
        let left = world.left_over();
        if left.is_empty() || begin.elapsed() > PATIENCE {
            return left;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Judges every command; the answers by reason.
fn check_all(world: &World, sent: &[Sent], wrong: &mut Vec<(Fault, String)>) -> BTreeMap<&'static str, usize> {
    let mut client: Client = world.client();
    let mut effects = world.effects();
    let mut touched: HashMap<&str, Touched> = HashMap::new();
    for sent in sent {
        match &sent.kind {
            Kind::Cancel(id) => touched.entry(id).or_default().cancelled = true,
            Kind::Kill(id) => touched.entry(id).or_default().killed = true,
            _ => {}
        }
    }
    let mut reasons: BTreeMap<&'static str, usize> = BTreeMap::new();
    for sent in sent {
        let seen = Seen {
            list: client.list(&format!("cmds_queue_{}", sent.id)),
            hash: client.job(&sent.id),
            effects: effects.remove(&sent.id).unwrap_or_default(),
        };
        let touched = touched.get(sent.id.as_str()).copied().unwrap_or_default();
        let judged = check::judge(sent, &seen, touched);
        judged.reasons.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1);
        wrong.extend(judged.faults);
    }
    wrong.extend(effects.keys().map(|id| (Fault::Unexplained, format!("{id} ran, and nobody pushed it"))));
    reasons
}

fn report(
    options: &Options,
    sent: &[Sent],
    failures: &BTreeMap<&str, usize>,
    reasons: &BTreeMap<&str, usize>,
    wrong: &[(Fault, String)],
    took: Duration,
) {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    sent.iter().for_each(|sent| *kinds.entry(sent.kind.name()).or_default() += 1);
    let total = |counts: &BTreeMap<&str, usize>| counts.values().sum::<usize>();
    let count = |fault: Fault| wrong.iter().filter(|(kind, _)| *kind == fault).count();
    let table = |title: &str, counts: &BTreeMap<&str, usize>| {
        println!("{:6} {title}", total(counts));
        counts.iter().for_each(|(name, count)| println!("{count:13} {name}"));
    };
    println!();
    table("commands", &kinds);
    table("failures", failures);
    table("answers", reasons);
    println!("{:6} lost", count(Fault::Lost));
    println!("{:6} doubled", count(Fault::Doubled));
    println!("{:6} unexplained", count(Fault::Unexplained));
    for (fault, what) in wrong.iter().take(SHOWN) {
        println!("{fault:?}: {what}");
    }
    let verdict = if wrong.is_empty() { "all is well" } else { "WRONG" };
    println!(
        "{verdict} after {:.0} s; again with: scripts/chaos --seed {} --seconds {}",
        took.as_secs_f64(),
        options.seed,
        options.seconds
    );
}
