//! Other installed programs of the kind, measured in the same minute: agents, supervisors, collectors.

use crate::footprint::{Rest, cpu_seconds, rest};
use crate::table::number;
use anyhow::{Context, Result};
use jstests::process::Process;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The columns of a row.
pub(crate) const HEADS: [&str; 12] = [
    "",
    "MB on disk",
    "idle MiB",
    "anon.",
    "threads",
    "50 jobs MiB",
    "anon.",
    "threads",
    "later MiB",
    "anon.",
    "CPU %",
    "KB an hour",
];

/// Programs that run beside ours.
pub(crate) struct Peers {
    peers: Vec<Peer>,
    /// The programs that have no figures, with the reason.
    missing: Vec<Vec<String>>,
    _dir: tempfile::TempDir,
}

struct Peer {
    name: &'static str,
    path: PathBuf,
    process: Process,
    /// Whether it has 50 children to watch.
    busy: bool,
    /// CPU seconds of it all when the minute began.
    before: f64,
}

impl Peers {
    /// Starts what is here, each with the least that it does anything with.
    pub(crate) fn start() -> Result<Peers> {
        let dir = tempfile::tempdir()?;
        let at = dir.path().to_str().context("a path in UTF-8")?.to_owned();
        let file = |name: &str, text: &str| -> Result<String> {
            let path = format!("{at}/{name}");
            fs::write(&path, text)?;
            Ok(path)
        };
        let children: String = (0..50).map(|n| format!("[program:s{n}]\ncommand=/bin/sleep 3600\n")).collect();
        let supervisor = |name: &str, programs: &str| {
            let head = format!("[supervisord]\nnodaemon=true\nlogfile={at}/{name}.log\npidfile={at}/{name}.pid\n");
            file(name, &format!("{head}childlogdir={at}\n{programs}"))
        };
        let (idle, busy) = (supervisor("idle.conf", "")?, supervisor("busy.conf", &children)?);
        let monit = file("monitrc", &format!("set daemon 30\nset idfile {at}/id\nset statefile {at}/state\n"))?;
        Command::new("chmod").args(["600", &monit]).status()?;
        file("minion", &format!("master: 127.0.0.1\nid: bench\nroot_dir: {at}/salt\nmaster_port: 9\n"))?;
        let plugins = ["cpu", "memory", "load", "interface", "df"].map(|name| format!("LoadPlugin {name}\n")).concat();
        let collectd = file("collectd.conf", &format!("BaseDir \"{at}\"\nPIDFile \"{at}/collectd.pid\"\n{plugins}"))?;
        let telegraf = "[[inputs.cpu]]\n[[inputs.mem]]\n[[inputs.disk]]\n[[inputs.net]]\n[[outputs.discard]]\n";
        let telegraf = file("telegraf.conf", telegraf)?;
        let candidates: [(&'static str, bool, Vec<&str>); 7] = [
            ("supervisord", false, vec!["-c", &idle]),
            ("supervisord", true, vec!["-c", &busy]),
            ("monit", false, vec!["-I", "-c", &monit]),
            ("salt-minion", false, vec!["-c", &at]),
            ("telegraf", false, vec!["--config", &telegraf]),
            ("collectd", false, vec!["-f", "-C", &collectd]),
            ("prometheus-node-exporter", false, vec!["--web.listen-address=127.0.0.1:0"]),
        ];
        let reasons = reasons();
        let mut peers = Vec::new();
        let mut missing = Vec::new();
        for (name, busy, args) in candidates {
            let Some(path) = find(name) else {
                if !busy {
                    let reason = reasons.get(name).map_or("not installed here", String::as_str);
                    missing.push(vec![format!("{name}: {reason}")]);
                }
                continue;
            };
            let file = format!("{name}-{busy}");
            let mut process = Process::spawn(Command::new(&path).args(args), &file, dir.path(), Signal::SIGTERM);
            process.quiet = true;
            peers.push(Peer { name, path, process, busy, before: 0.0 });
        }
        // An interpreter takes its time to start.
        std::thread::sleep(Duration::from_secs(10));
        Ok(Peers { peers, missing, _dir: dir })
    }

    /// The minute begins.
    pub(crate) fn begin(&mut self) -> Result<()> {
        for peer in &mut self.peers {
            if peer.process.try_wait().is_none() {
                peer.before = cpu(&family(peer.process.pid()))?;
            }
        }
        Ok(())
    }

    /// The minute of that many seconds is over: ends them all. Their rows under [`HEADS`].
    pub(crate) fn end(self, seconds: u64) -> Result<Vec<Vec<String>>> {
        let mut rows: Vec<Vec<String>> = Vec::new();
        for mut peer in self.peers {
            if peer.process.try_wait().is_some() {
                let output = peer.process.output();
                let last = output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("and says nothing");
                rows.push(vec![format!("{}: does not run here: {}", peer.name, last.trim())]);
                continue;
            }
            let pids = family(peer.process.pid());
            let load = 100.0 * (cpu(&pids)? - peer.before) / seconds as f64;
            let all = pids.iter().try_fold(Rest::default(), |sum, pid| {
                let one = rest(*pid)?;
                anyhow::Ok(Rest {
                    pss: sum.pss + one.pss,
                    anonymous: sum.anonymous + one.anonymous,
                    threads: sum.threads + one.threads,
                })
            })?;
            peer.process.stop(Duration::from_secs(10));
            if peer.busy && rows.last().is_some_and(|row| row[0] == peer.name && row.len() == HEADS.len()) {
                let row = rows.len() - 1;
                rows[row][5..8].clone_from_slice(&all.cells());
                continue;
            }
            let size = fs::metadata(&peer.path)?.len() as f64;
            let mut row = vec![String::new(); HEADS.len()];
            row[0] = peer.name.to_owned();
            // A script's size says nothing: what it needs lies elsewhere.
            if size > 20_000.0 {
                row[1] = number(size / 1e6);
            }
            row[2..5].clone_from_slice(&all.cells());
            row[10] = number(load);
            rows.push(row);
        }
        rows.extend(self.missing);
        Ok(rows)
    }
}

/// A program and those of its children that are the same program, for some are several processes; what it
/// supervises is none of it.
fn family(pid: u32) -> Vec<u32> {
    let program = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let parent = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let mut found = vec![pid];
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // Children have higher numbers than their parents, until the numbers begin anew.
    for child in pids.into_iter().filter(|child| *child > pid) {
        if parent(child).is_some_and(|parent| found.contains(&parent)) && program(child) == program(pid) {
            found.push(child);
        }
    }
    found
}

fn cpu(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}

/// Why `scripts/bench` could not get a program: lines of its name, a tab and the reason.
fn reasons() -> BTreeMap<String, String> {
    let text = std::env::var_os("JS_BENCH_MISSING").and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    lines.map(|(name, reason)| (name.to_owned(), reason.to_owned())).collect()
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).map(|dir| dir.join(program)).find(|file| file.is_file())
}
