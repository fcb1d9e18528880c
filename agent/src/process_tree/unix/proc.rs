//! Linux: the processes of this machine, as `/proc` tells of them.

use crate::process_tree::{JobTag, Proc};
use std::io::Read;

/// Every process of this machine, in one pass.
pub(crate) fn processes() -> Vec<Proc> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut buffer = Vec::with_capacity(512);
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| process(pid, &mut buffer))
        .collect()
}

/// Returns one process as `/proc` has it now; `buffer` is room to read into.
pub(super) fn process(pid: u32, buffer: &mut Vec<u8>) -> Option<Proc> {
    let stat = Stat::read(format!("/proc/{pid}/stat"), buffer)?;
    // A process whose first thread has ended is listed as a zombie without memory, while its others run.
    let other = (stat.ended && stat.threads > 1).then(|| living_thread(pid, buffer)).flatten();
    let memory = other.as_ref().map_or(&stat, |(_, thread)| thread);
    Some(Proc {
        pid,
        parent: stat.parent,
        group: stat.group,
        cpu: stat.cpu,
        started: stat.started,
        vms: memory.vms,
        rss: memory.rss,
        dead: stat.ended && other.is_none(),
    })
}

/// The fields of a `stat` file of proc(5), of a process or of a thread.
struct Stat {
    ended: bool,
    parent: u32,
    group: u32,
    cpu: u64,
    threads: u64,
    started: u64,
    vms: u64,
    rss: u64,
}

impl Stat {
    fn read(path: String, buffer: &mut Vec<u8>) -> Option<Stat> {
        buffer.clear();
        std::fs::File::open(path).ok()?.read_to_end(buffer).ok()?;
        // The name stands in parentheses and may hold anything, parentheses too.
        let end = buffer.iter().rposition(|b| *b == b')')?;
        let rest = std::str::from_utf8(&buffer[end + 1..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        // Field 3 of proc(5), the state, is the first one here.
        Some(Stat {
            ended: matches!(*fields.first()?, "Z" | "X" | "x"),
            parent: number(1)? as u32,
            group: number(2)? as u32,
            cpu: (number(11)? + number(12)?) * 1000 / ticks(),
            threads: number(17)?,
            started: number(19)?,
            vms: number(20)?,
            rss: number(21)? * page(),
        })
    }
}

/// Returns a thread of this process that has not ended, other than its first one.
fn living_thread(pid: u32, buffer: &mut Vec<u8>) -> Option<(u32, Stat)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    threads
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|thread| *thread != pid)
        .filter_map(|thread| Some((thread, Stat::read(format!("/proc/{pid}/task/{thread}/stat"), buffer)?)))
        .find(|(_, stat)| !stat.ended)
}

/// Bytes that a process has read from and written to storage; zero where it may not be known.
pub(crate) fn storage(pid: u32) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
    };
    (value("read_bytes:"), value("write_bytes:"))
}

/// The job that the environment of a process names.
pub(crate) fn mark(pid: u32) -> Option<JobTag> {
    let mut environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    if environment.is_empty() {
        // The file of a process is that of its first thread, which may have ended before the others.
        let (thread, _) = living_thread(pid, &mut Vec::new())?;
        environment = std::fs::read(format!("/proc/{pid}/task/{thread}/environ")).ok()?;
    }
    let value = |name: &str| {
        environment
            .split(|b| *b == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(|value| String::from_utf8_lossy(value).into_owned())
    };
    Some(JobTag {
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
    use super::*;
    use crate::platform::Signal;
    use crate::process_tree::unix::process::signal_process;

    #[test]
    fn first_thread_ended_process_is_alive_with_memory_and_mark() {
        // The script ends its first thread alone, with the system call exit.
        let script = "import ctypes, platform, threading, time\n\
            threading.Thread(target=time.sleep, args=(1000,)).start()\n\
            ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)";
        let mut command = std::process::Command::new("python3");
        command.args(["-c", script]).env("AGENT_HOME", "/h").env("AGENT_JOB_ID", "j").env("AGENT_JOB_START", "7");
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        let begin = std::time::Instant::now();
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ");
        while !state() && begin.elapsed().as_secs() < 30 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let zombie = state();
        let listed = process(pid, &mut Vec::new()).unwrap();
        let marked = mark(pid);
        let signalled = signal_process(&listed, Signal::KILL);
        // Another test's waiter may reap it.
        let _ = (child.kill(), child.wait());
        assert!(zombie, "the first thread was to end");
        assert!(!listed.dead && listed.rss > 0 && listed.vms > listed.rss, "{listed:?}");
        assert_eq!(marked, Some(JobTag { home: "/h".into(), job: "j".into(), start: 7 }));
        assert!(signalled);
    }

    #[test]
    fn the_own_process_is_listed() {
        let own = std::process::id();
        let found = processes().into_iter().find(|process| process.pid == own).unwrap();
        assert!(found.rss > 0 && found.vms > found.rss && !found.dead && found.started > 0);
        assert_eq!(process(own, &mut Vec::new()).unwrap().started, found.started);
        assert!(!signal_process(&Proc { started: found.started + 1, ..found }, Signal::TERM));
    }
}
