//! Figures of a process from `/proc`: memory, CPU, threads, open files, wake-ups.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
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
/// Looks once a second; `each` is called after each look.
pub fn wakeups(pids: &[u32], during: Duration, mut each: impl FnMut() -> Result<()>) -> Result<Vec<u64>> {
    let mut counts = pids.iter().map(|&pid| Switches::start(pid)).collect::<Result<Vec<_>>>()?;
    let end = Instant::now() + during;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        thread::sleep(left.min(Duration::from_secs(1)));
        counts.iter_mut().try_for_each(Switches::look)?;
        each()?;
        if left.is_zero() {
            break;
        }
    }
    Ok(counts.iter().map(Switches::count).collect())
}

/// A count of the voluntary context switches of a process, all its threads counted in.
///
/// A thread that ends is counted until the last look before. A look does not wake the process.
pub struct Switches {
    pid: u32,
    before: HashMap<u64, u64>,
    last: HashMap<u64, u64>,
}

impl Switches {
    /// Begins to count.
    pub fn start(pid: u32) -> Result<Switches> {
        let before = switches(pid)?;
        Ok(Switches { pid, last: before.clone(), before })
    }

    /// Looks.
    pub fn look(&mut self) -> Result<()> {
        self.last.extend(switches(self.pid)?);
        Ok(())
    }

    /// Returns the switches between the start and the last look.
    pub fn count(&self) -> u64 {
        self.last.iter().map(|(task, n)| n - self.before.get(task).copied().unwrap_or(0)).sum()
    }
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

/// A count of the system calls of a process, its threads and the children that it starts.
pub enum SyscallCounter {
    /// `perf stat`, which costs the process little.
    Perf(Child),
    /// Reads and writes alone, from `/proc/PID/io`, where `perf` cannot count.
    ReadsAndWrites(u32, u64),
}

impl SyscallCounter {
    /// Begins to count.
    pub fn start(pid: u32) -> Result<SyscallCounter> {
        if !SyscallCounter::counts_all() {
            return Ok(SyscallCounter::ReadsAndWrites(pid, reads_and_writes(pid)?));
        }
        let mut command = Command::new("perf");
        command.args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &pid.to_string()]);
        let perf = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let counters = || {
            let Ok(files) = fs::read_dir(format!("/proc/{}/fd", perf.id())) else { return 0 };
            let targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
            targets.filter(|target| target.to_string_lossy().contains("perf_event")).count() as u64
        };
        crate::wait_until("perf counts", crate::LONG, || threads(pid).is_ok_and(|threads| counters() >= threads));
        Ok(SyscallCounter::Perf(perf))
    }

    /// Whether all system calls are counted, by `perf`, or reads and writes alone.
    pub fn counts_all() -> bool {
        static PERF: OnceLock<bool> = OnceLock::new();
        *PERF.get_or_init(|| {
            let mut command = Command::new("perf");
            command.args(["stat", "-e", "raw_syscalls:sys_enter", "true"]);
            command.output().is_ok_and(|output| output.status.success())
        })
    }

    /// Ends the count and returns it.
    pub fn end(self) -> Result<u64> {
        let perf = match self {
            SyscallCounter::Perf(perf) => perf,
            SyscallCounter::ReadsAndWrites(pid, before) => return Ok(reads_and_writes(pid)? - before),
        };
        kill(Pid::from_raw(perf.id() as i32), Signal::SIGINT)?;
        let output = perf.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().find(|line| line.contains("raw_syscalls")).context("no count in what perf says")?;
        line.split(',').next().and_then(|count| count.parse().ok()).with_context(|| format!("no number: {line}"))
    }
}

fn reads_and_writes(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).context("the process is gone")?;
    let number = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    number("syscr:").zip(number("syscw:")).map(|(reads, writes)| reads + writes).context("no counts in /proc/PID/io")
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
