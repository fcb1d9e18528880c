//! Linux: the processes of this machine, as `/proc` tells of them.

use crate::os::{Mark, Proc};
use std::io::Read;

/// Every process of this machine, in one pass.
pub fn processes() -> Vec<Proc> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut buffer = Vec::with_capacity(512);
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| process(pid, &mut buffer))
        .collect()
}

/// One process, as `/proc` has it now; `buffer` is room to read into.
pub(super) fn process(pid: u32, buffer: &mut Vec<u8>) -> Option<Proc> {
    buffer.clear();
    std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.read_to_end(buffer).ok()?;
    // The name stands in parentheses and may hold anything, parentheses too.
    let end = buffer.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&buffer[end + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    // Field 3 of proc(5), the state, is the first one here.
    Some(Proc {
        pid,
        parent: number(1)? as u32,
        group: number(2)? as u32,
        cpu: (number(11)? + number(12)?) * 1000 / ticks(),
        started: number(19)?,
        vms: number(20)?,
        rss: number(21)? * page(),
        dead: matches!(*fields.first()?, "Z" | "X" | "x"),
    })
}

/// Bytes that a process has read from and written to storage; zero where it may not be known.
pub fn storage(pid: u32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
    };
    (value("read_bytes:"), value("write_bytes:"))
}

/// The job that the environment of a process names.
pub fn mark(pid: u32) -> Option<Mark> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        environment
            .split(|b| *b == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    Some(Mark {
        job: value("AGENT_JOB_ID")?,
        home: value("AGENT_HOME")?,
        start: value("AGENT_JOB_START").and_then(|text| text.parse().ok()).unwrap_or(0),
    })
}

fn ticks() -> u64 {
    static TICKS: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *TICKS.get_or_init(|| sysconf(nix::unistd::SysconfVar::CLK_TCK, 100))
}

fn page() -> u64 {
    static PAGE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *PAGE.get_or_init(|| sysconf(nix::unistd::SysconfVar::PAGE_SIZE, 4096))
}

fn sysconf(name: nix::unistd::SysconfVar, otherwise: u64) -> u64 {
    match nix::unistd::sysconf(name) {
        Ok(Some(value)) if value > 0 => value as u64,
        _ => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::super::process::signal_process;
    use super::*;
    use crate::os::Signal;

    #[test]
    fn the_own_process_is_listed() {
        let own = std::process::id();
        let found = processes().into_iter().find(|process| process.pid == own).unwrap();
        assert!(found.rss > 0 && found.vms > found.rss && !found.dead && found.started > 0);
        assert_eq!(process(own, &mut Vec::new()).unwrap().started, found.started);
        assert!(!signal_process(&Proc { started: found.started + 1, ..found }, Signal::TERM));
    }
}
