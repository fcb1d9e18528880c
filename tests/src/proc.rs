//! What `/proc` tells of a process: memory, CPU, threads, open files.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;

/// Bytes of resident memory.
pub fn memory(pid: u32) -> Result<u64> {
    Ok(status(pid, "VmRSS:")? * 1024)
}

/// Threads.
pub fn threads(pid: u32) -> Result<u64> {
    status(pid, "Threads:")
}

/// Seconds of CPU so far, of all its threads; the kernel counts hundredths.
pub fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    // The name, in brackets, may hold spaces and brackets itself.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).context("no CPU time in stat");
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// Open files and sockets.
pub fn files(pid: u32) -> Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd")).context("the process is gone")?.count() as u64)
}

/// Sees to it that this process, and what it starts, may open `count` files; fails where it may not.
#[track_caller]
pub fn open_files(count: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    assert!(hard >= count, "this test needs {count} open files, and the limit here is {hard}");
    if soft < count {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit may be raised");
    }
}

fn status(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    line.split_whitespace().next().and_then(|number| number.parse().ok()).context("no number")
}
