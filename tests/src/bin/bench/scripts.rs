//! The cost of starting a script, from LPUSH to the result of an empty one in Lua and Python.
//! The bench compares it with `/bin/true` and the bare interpreters, started by the same agent and by this program.

use crate::Options;
use crate::measure::{Case, interleaved, median, ms};
use crate::table::{Table, number};
use anyhow::{Context, Result};
use jscommon::token::sha256_hex;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, Redis};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The compared cases: the name, and the program that runs it bare.
const BARE: &[(&str, &[&str])] =
    &[("/bin/true", &["/bin/true"]), ("lua5.4", &["lua5.4", "-e", ""]), ("python3", &["python3", "-c", ""])];

/// Runs the bench.
pub(crate) fn run(options: &Options) -> Result<()> {
    let jobs = if options.quick { 5 } else { 100 };
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let _agent = Agent::start(&acc, AgentOptions::default());
    let client = RefCell::new(Client::new(&redis));
    let source = "";
    let hash = sha256_hex(source.as_bytes());
    client.borrow_mut().redis::<()>(&["SET", &format!("jsacc:script:{hash}"), source]);

    // A machine without lua5.4 has nothing to compare with, and the rest is still worth a table.
    let there = |program: &str| Command::new(program).arg("-h").stdin(Stdio::null()).output().is_ok();
    let bare: Vec<_> = BARE.iter().filter(|(_, words)| there(words[0])).collect();
    let mut cases = Vec::new();
    for (name, words) in &bare {
        cases.push(Case::new(&format!("bare {name}"), || sample(jobs, || spawn(words))));
    }
    for (name, words) in &bare {
        let args = json!({"cmd": words[0], "args": words[1..]});
        let client = &client;
        let one = move || job(client, "execute", args.clone());
        cases.push(Case::new(&format!("job {name}"), move || sample(jobs, &one)));
    }
    for cmd in ["execute_js_lua", "execute_js_py"] {
        let args = json!({"hash": hash});
        let client = &client;
        let one = move || job(client, cmd, args.clone());
        cases.push(Case::new(cmd, move || sample(jobs, &one)));
    }
    let names: Vec<String> = bare.iter().map(|(name, _)| (*name).to_owned()).collect();
    let times: Vec<f64> = interleaved(options.rounds, &mut cases)?.into_iter().map(|one| one[0]).collect();

    let at = |name: &str| names.iter().position(|known| known == name);
    let mut table = Table::new(&["what", "bare ms", "as a job ms", "job over bare ms"]);
    for (i, name) in names.iter().enumerate() {
        let (bare, job) = (times[i], times[names.len() + i]);
        table.row([name.clone(), number(bare), number(job), number(job - bare)]);
    }
    let scripts = [("empty Lua script", "lua5.4"), ("empty Python script", "python3")];
    for (i, (name, interpreter)) in scripts.into_iter().enumerate() {
        let job = times[2 * names.len() + i];
        let bare = at(interpreter).map(|at| times[at]);
        let over = bare.map_or(String::new(), |bare| number(job - bare));
        table.row([name.to_owned(), String::new(), number(job), over]);
    }
    table.print();
    println!();
    for (i, (name, interpreter)) in scripts.into_iter().enumerate() {
        let Some(at) = at(interpreter) else { continue };
        let over = times[2 * names.len() + i] - times[names.len() + at];
        println!("{name}: {} ms over {interpreter} as a job of the same agent", number(over));
    }
    println!("\naim: Lua within 1 ms of bare lua5.4, Python within 10 ms of bare python3");
    Ok(())
}

/// The median of `n` repetitions, in milliseconds.
fn sample(n: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        let start = Instant::now();
        work()?;
        times.push(ms(start.elapsed()));
    }
    Ok(vec![median(&times)])
}

fn job(client: &RefCell<Client>, cmd: &str, args: Value) -> Result<()> {
    let mut client = client.borrow_mut();
    let id = client.send(cmd, args);
    let result = client.pop(&id);
    anyhow::ensure!(result["state"] == "OK", "a job failed: {result}");
    Ok(())
}

/// Starts a program as a supervisor has to, with pipes for what it writes, and waits for its end.
fn spawn(words: &[&str]) -> Result<()> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("start {}", words[0]))?.wait()?;
    Ok(())
}
