//! The agent as a process manager beside supervisord, runit and monit.
//!
//! Every one of them keeps the same children alive: a shell that writes down its process id and becomes
//! `sleep`. Measured are the memory of the manager itself (PSS of all its processes, the children not
//! counted) with none and with 50 of them, the time from a child's death by KILL to the next one's first
//! line, and the CPU time of a minute in which nothing happens.

use crate::Options;
use crate::measure::{median, ms};
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jstests::process::Process;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Redis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const CHILDREN: usize = 50;

pub(crate) fn run(options: &Options) -> Result<()> {
    let still = Duration::from_secs(if options.quick { 5 } else { 60 });
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions { args: vec!["--log-level=warn".into()], ..AccOptions::default() });
    let managers: [(&str, Start); 4] =
        [("jsagent", start_agent), ("supervisord", start_supervisord), ("runit", start_runit), ("monit", start_monit)];

    let mut rows: Vec<(String, Option<Figures>)> = Vec::new();
    for (name, start) in managers {
        eprintln!("{name}");
        let idle = measure(start, &acc, 0, 0, Duration::ZERO)?;
        let figures = match idle {
            Some(idle) => measure(start, &acc, CHILDREN, options.rounds, still)?
                .map(|full| Figures { idle_kib: idle.full_kib, ..full }),
            None => None,
        };
        rows.push((name.to_owned(), figures));
    }

    let mut table = Table::new(&[
        "",
        "idle PSS MiB",
        "50 children PSS MiB",
        "threads",
        "processes",
        "restart ms",
        "CPU ms a minute",
    ]);
    for (name, figures) in &rows {
        match figures {
            Some(f) => table.row([
                if name == "jsagent" { format!("jsagent ({})", libc_of_agent()) } else { name.clone() },
                number(f.idle_kib / 1024.0),
                number(f.full_kib / 1024.0),
                f.threads.to_string(),
                f.processes.to_string(),
                number(f.restart_ms),
                number(f.cpu_ms * 60.0 / still.as_secs_f64()),
            ]),
            None => table.row([name.clone(), "not installed here".to_owned()]),
        }
    }
    table.print();
    Ok(())
}

/// The cost of one manager.
#[derive(Clone, Copy, Default)]
struct Figures {
    idle_kib: f64,
    full_kib: f64,
    threads: usize,
    processes: usize,
    restart_ms: f64,
    cpu_ms: f64,
}

/// A manager that runs: what must be kept alive for it, and its first process.
struct Running {
    pid: u32,
    /// With the signal that ends it and its children.
    process: Option<(Process, Signal)>,
    _agent: Option<Agent>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((process, signal)) = &mut self.process {
            process.signal(*signal);
            process.wait(Duration::from_secs(15));
        }
    }
}

/// Starts a manager in a folder with a number of children; nothing when it is not installed.
type Start = fn(&Path, usize, &Acc) -> Result<Option<Running>>;

fn measure(start: Start, acc: &Acc, children: usize, rounds: usize, still: Duration) -> Result<Option<Figures>> {
    let dir = tempfile::tempdir()?;
    let Some(running) = start(dir.path(), children, acc)? else { return Ok(None) };
    for child in 0..children {
        wait_for_line(&pid_file(dir.path(), child), 0)?;
    }
    std::thread::sleep(Duration::from_secs(5)); // Whatever its start made it do is done by then.
    let mut figures = Figures::default();
    let own = family(running.pid)?;
    figures.processes = own.len();
    figures.threads = own.iter().map(|pid| count(&format!("/proc/{pid}/task"))).sum();
    figures.full_kib = own.iter().map(|pid| pss_kib(*pid)).sum();
    let cpu = own.iter().map(|pid| cpu_ms(*pid)).sum::<f64>();
    std::thread::sleep(still);
    figures.cpu_ms = own.iter().map(|pid| cpu_ms(*pid)).sum::<f64>() - cpu;
    let mut restarts = Vec::new();
    for child in 0..rounds.min(children) {
        let file = pid_file(dir.path(), child);
        let pid: i32 = wait_for_line(&file, 0)?.parse()?;
        let begin = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        wait_for_line(&file, 1)?;
        restarts.push(ms(begin.elapsed()));
    }
    figures.restart_ms = median(&restarts);
    drop(running);
    // Children that a manager leaves behind at its end are no business of the next one.
    for child in 0..children {
        for line in fs::read_to_string(pid_file(dir.path(), child)).unwrap_or_default().lines() {
            if let Ok(pid) = line.parse() {
                let is_child = fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with("sleep"));
                if is_child {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }
    Ok(Some(figures))
}

fn pid_file(dir: &Path, child: usize) -> PathBuf {
    dir.join(format!("pid-{child}"))
}

/// The script of one child, the same for every manager.
fn script(dir: &Path, child: usize) -> String {
    format!("echo $$ >> {}; exec sleep 86400", pid_file(dir, child).display())
}

fn wait_for_line(file: &Path, index: usize) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        // The last line counts once its end is there.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        if let Some(line) = whole.lines().nth(index) {
            return Ok(line.to_owned());
        }
        ensure!(Instant::now() < end, "{} has no line {index}", file.display());
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn start_agent(dir: &Path, children: usize, acc: &Acc) -> Result<Option<Running>> {
    let mut config = String::new();
    for child in 0..children {
        let script = serde_json::to_string(&script(dir, child))?;
        config.push_str(&format!(
            "[startup.child-{child}]\ncmd = \"execute\"\n\
             args = {{ cmd = \"/bin/sh\", args = [\"-c\", {script}], max_time = -1, max_restart = 100 }}\n"
        ));
    }
    let options =
        AgentOptions { args: vec!["--log-level=warn".into()], max_jobs: Some(1000), ..AgentOptions::default() };
    let agent = Agent::start(acc, options.config(&config));
    Ok(Some(Running { pid: agent.pid(), process: None, _agent: Some(agent) }))
}

fn start_supervisord(dir: &Path, children: usize, _: &Acc) -> Result<Option<Running>> {
    let Some(program) = find("supervisord") else { return Ok(None) };
    let at = dir.display();
    let mut text = format!("[supervisord]\nnodaemon=true\nlogfile={at}/log\npidfile={at}/pid\nchildlogdir={at}\n");
    for child in 0..children {
        let script = script(dir, child);
        text.push_str(&format!("[program:child-{child}]\ncommand=/bin/sh -c '{script}'\nautorestart=true\n"));
    }
    let conf = dir.join("supervisord.conf");
    fs::write(&conf, text)?;
    spawn(Command::new(program).arg("-c").arg(&conf), "supervisord", dir)
}

fn start_runit(dir: &Path, children: usize, _: &Acc) -> Result<Option<Running>> {
    let Some(program) = find("runsvdir") else { return Ok(None) };
    let services = dir.join("services");
    fs::create_dir(&services)?;
    for child in 0..children {
        let service = services.join(format!("child-{child}"));
        fs::create_dir(&service)?;
        write_script(&service.join("run"), &format!("#!/bin/sh\n{}\n", script(dir, child)))?;
    }
    // runsvdir leaves its services running on TERM and ends them on HUP.
    let mut command = Command::new(program);
    command.arg(&services);
    let process = Process::spawn(&mut command, "runsvdir", dir, Signal::SIGHUP);
    Ok(Some(Running { pid: process.pid(), process: Some((process, Signal::SIGHUP)), _agent: None }))
}

fn start_monit(dir: &Path, children: usize, _: &Acc) -> Result<Option<Running>> {
    let Some(program) = find("monit") else { return Ok(None) };
    let at = dir.display();
    let mut text = format!("set daemon 1\nset idfile {at}/id\nset statefile {at}/state\nset pidfile {at}/pid\n");
    for child in 0..children {
        // monit starts what detaches and watches its pid file, which holds one line only.
        let start = dir.join(format!("start-{child}"));
        let script =
            format!("#!/bin/sh\nsetsid sh -c 'echo $$ > {at}/now-{child}; {}' >/dev/null 2>&1 &\n", script(dir, child));
        write_script(&start, &script)?;
        text.push_str(&format!(
            "check process child-{child} with pidfile {at}/now-{child}\n  start program = \"{}\"\n",
            start.display()
        ));
    }
    let conf = dir.join("monitrc");
    fs::write(&conf, text)?;
    Command::new("chmod").arg("600").arg(&conf).status()?;
    spawn(Command::new(program).arg("-I").arg("-c").arg(&conf), "monit", dir)
}

fn spawn(command: &mut Command, name: &str, dir: &Path) -> Result<Option<Running>> {
    let process = Process::spawn(command, name, dir, Signal::SIGTERM);
    Ok(Some(Running { pid: process.pid(), process: Some((process, Signal::SIGTERM)), _agent: None }))
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("make a script executable")
}

/// The manager's own processes: its first one, and below it whatever is of the same program family.
fn family(pid: u32) -> Result<Vec<u32>> {
    let mut found = vec![pid];
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(other) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{other}/stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let parent = rest.split_whitespace().nth(1).and_then(|field| field.parse::<u32>().ok());
        if parent == Some(pid) && name.ends_with("(runsv") {
            found.push(other);
        }
    }
    Ok(found)
}

fn pss_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0)
}

fn cpu_ms(pid: u32) -> f64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let nanos = |path: PathBuf| fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok();
    tasks.flatten().filter_map(|task| nanos(task.path())).sum::<f64>() / 1e6
}

fn count(dir: &str) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Which libc the agent that is measured was built with: its figures depend on it.
fn libc_of_agent() -> &'static str {
    let bytes = fs::read(jstests::bin("jsagent")).unwrap_or_default();
    let dynamic = bytes.windows(12).any(|window| window == b"ld-linux-x86" || window == b"ld-linux-aar");
    if dynamic { "glibc" } else { "static musl" }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|dir| dir.join(program)).find(|file| file.is_file())
}
