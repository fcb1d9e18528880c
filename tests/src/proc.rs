//! Figures of a process from `/proc`: memory, CPU, threads, open files, wake-ups.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of resident memory.
pub fn memory(pid: u32) -> Result<u64> {
    Ok(status(pid, "VmRSS:")? * 1024)
}

/// Begins anew to watch what `peak_memory` returns.
pub fn reset_peak_memory(pid: u32) -> Result<()> {
    // proc(5): 5 resets the peak of the resident set.
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the peak of a process cannot be reset")
}

/// The most bytes of resident memory since `reset_peak_memory`, or since the start.
pub fn peak_memory(pid: u32) -> Result<u64> {
    Ok(status(pid, "VmHWM:")? * 1024)
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

/// Counts the voluntary context switches of processes during a time, all their threads counted in.
///
/// Looks once a second, so that a thread that ends meanwhile is counted until its last second.
/// A look does not wake the process. `each` is called after each look.
pub fn wakeups(pids: &[u32], during: Duration, mut each: impl FnMut() -> Result<()>) -> Result<Vec<u64>> {
    let before = pids.iter().map(|&pid| switches(pid)).collect::<Result<Vec<_>>>()?;
    let mut last = before.clone();
    let end = Instant::now() + during;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        thread::sleep(left.min(Duration::from_secs(1)));
        for (&pid, last) in pids.iter().zip(&mut last) {
            last.extend(switches(pid)?);
        }
        each()?;
        if left.is_zero() {
            break;
        }
    }
    let count = |before: &HashMap<u64, u64>, last: &HashMap<u64, u64>| {
        last.iter().map(|(task, n)| n - before.get(task).copied().unwrap_or(0)).sum()
    };
    Ok(before.iter().zip(&last).map(|(before, last)| count(before, last)).collect())
}

/// Voluntary context switches of each thread so far, by thread id.
fn switches(pid: u32) -> Result<HashMap<u64, u64>> {
    let mut counts = HashMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let task = task?;
        // A thread may end during the look.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let count = count.and_then(|count| count.trim().parse().ok()).context("no voluntary_ctxt_switches")?;
        counts.insert(task.file_name().to_string_lossy().parse().context("a thread id")?, count);
    }
    Ok(counts)
}

/// Counts the bytes that a process has written to files so far: those of its calls, and the pages that they dirtied.
#[derive(Clone, Copy)]
pub struct Written {
    /// Bytes of its `write` calls, to files, pipes and event descriptors; not to sockets, which `send` writes.
    pub bytes: u64,
    /// Bytes of the pages that it dirtied. Depends on the file system and on when that writes pages out.
    pub dirtied: u64,
}

impl Written {
    /// Reads both from `/proc/PID/io`.
    pub fn of(pid: u32) -> Result<Written> {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).context("the process is gone")?;
        let number = |name: &str| -> Result<u64> {
            let bytes = io.lines().find_map(|line| line.strip_prefix(name)).context("a line of /proc/PID/io")?;
            bytes.trim().parse().context("no number")
        };
        Ok(Written { bytes: number("wchar:")?, dirtied: number("write_bytes:")? })
    }
}

/// `strace` that counts the system calls of a process and all its threads.
pub struct Tracer(Child);

impl Tracer {
    /// Attaches it.
    pub fn start(pid: u32) -> Result<Tracer> {
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-U", "calls,name", "-p", &pid.to_string()]).stderr(Stdio::piped());
        let tracer = Tracer(command.spawn().context("strace cannot be run; apt-get install strace")?);
        let traced =
            || fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| !text.contains("TracerPid:\t0\n"));
        crate::wait_until("strace attaches", crate::LONG, traced);
        Ok(tracer)
    }

    /// Ends it, and returns the number of calls.
    pub fn end(self) -> Result<u64> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT)?;
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let total = text.lines().rev().find(|line| line.ends_with("total")).context("no total in what strace says")?;
        total.split_whitespace().next().and_then(|number| number.parse().ok()).context("no number of calls")
    }
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
