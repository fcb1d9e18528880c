//! The resources that this process uses, under the names of Prometheus' own clients.
//!
//! Owns: the reading of `/proc/self` at the moment of a scrape. Does not own: the controller's own
//! counters (`metrics`). A system without `/proc` has none of these lines.

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use std::fmt::Write;
use std::fs;

/// The lines of `/metrics` about this process.
pub(crate) fn text() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    // The folder that is being read is open itself.
    let files = fs::read_dir("/proc/self/fd").map(|entries| entries.count().saturating_sub(1)).ok();
    let most = getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft as f64).ok();
    let memory = |name| kilobytes(&status, name).map(|kb| kb * 1024.0);
    let mut text = String::new();
    let mut add = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    };
    add("process_resident_memory_bytes", "gauge", "resident memory in bytes", memory("VmRSS"));
    add("process_resident_memory_max_bytes", "gauge", "most resident memory so far in bytes", memory("VmHWM"));
    add("process_virtual_memory_bytes", "gauge", "virtual memory in bytes", memory("VmSize"));
    add("process_threads", "gauge", "threads", field(&status, "Threads").and_then(|text| text.parse().ok()));
    add("process_open_fds", "gauge", "open file descriptors", files.map(|files| files as f64));
    add("process_max_fds", "gauge", "most file descriptors that may be open", most);
    add("process_cpu_seconds_total", "counter", "CPU time in seconds, user's and system's", cpu(&stat, ticks));
    add("process_start_time_seconds", "gauge", "start in seconds since 1970", start(&stat, &boot, ticks));
    text
}

/// The value of a line `name: value` of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn kilobytes(status: &str, name: &str) -> Option<f64> {
    field(status, name)?.strip_suffix("kB")?.trim().parse().ok()
}

/// The field of that number (as proc(5) counts) of `/proc/self/stat`; the name in the second may hold
/// blanks and parentheses.
fn number(stat: &str, at: usize) -> Option<f64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(at.checked_sub(3)?)?.trim().parse().ok()
}

/// Seconds of CPU: fields 14 and 15, in ticks.
fn cpu(stat: &str, ticks: f64) -> Option<f64> {
    Some((number(stat, 14)? + number(stat, 15)?) / ticks)
}

/// Seconds since 1970 at the start: field 22 counts ticks since the machine's own.
fn start(stat: &str, boot: &str, ticks: f64) -> Option<f64> {
    let booted: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(booted + number(stat, 22)? / ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 18 0 1200 9 9\n";

    #[test]
    fn fields_of_proc_files_are_read() {
        let status = "Name:\tjsacc\nVmHWM:\t    9 kB\nVmRSS:\t   12 kB\nThreads:\t18\n";
        assert_eq!((kilobytes(status, "VmRSS"), field(status, "Threads")), (Some(12.0), Some("18")));
        assert_eq!((kilobytes(status, "VmSize"), kilobytes(status, "Threads")), (None, None));
        assert_eq!(cpu(STAT, 100.0), Some(3.0));
        assert_eq!(start(STAT, "cpu 1 2\nbtime 1000\n", 100.0), Some(1012.0));
        assert_eq!((cpu("", 100.0), start(STAT, "", 100.0)), (None, None));
    }

    #[test]
    fn own_process_has_all_figures() {
        let text = text();
        for name in ["process_resident_memory_bytes", "process_threads", "process_open_fds", "process_max_fds"] {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            assert!(line.is_some_and(|value| value.parse::<f64>().is_ok_and(|value| value >= 1.0)), "{name} in {text}");
        }
    }
}
