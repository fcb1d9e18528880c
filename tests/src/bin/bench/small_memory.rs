//! The agent in a memory cgroup of 8 MiB, as on a very small node.
//!
//! The agent and its jobs are in the group, with no swap. Needs root and the memory controller of
//! cgroup v2 or v1.

use anyhow::{Context, Result, bail, ensure};
use jstests::process::{Process, bin, sweep};
use jstests::{Acc, AccOptions, Client, Redis};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT_BYTES: u64 = 8 << 20;
const JOBS: usize = 1_000;
/// Jobs that run at one time: each takes memory of the group too.
const JOBS_AT_ONCE: usize = 4;
const LINES: usize = 2_000_000;
/// The longest wait for one result, generous for slow machines.
const RESULT_LIMIT: Duration = Duration::from_secs(300);

/// Fails when the agent does not answer everything, or the kernel had to kill in its group.
pub(crate) fn check() -> Result<()> {
    let group = Group::make()?;
    let redis = Redis::start();
    let acc =
        Acc::start(&redis, AccOptions { args: vec!["--log-level".into(), "warn".into()], ..AccOptions::secure() });
    // Beside the bench and not in /tmp, where files may be memory of the group.
    let beside = std::env::current_exe()?.parent().context("a folder of the bench")?.to_owned();
    let dir = tempfile::Builder::new().prefix("js-small-").tempdir_in(beside)?;
    let enrolled = acc.enroll_into(1, 10, &dir.path().join("credentials"));
    let config = enrolled.dir.join("agent.toml");
    let text = enrolled.config.replacen("[main]\n", &format!("[main]\nmax_jobs = {JOBS_AT_ONCE}\n"), 1);
    ensure!(text != enrolled.config, "agent.toml has no [main]");
    fs::write(&config, text)?;
    let home = dir.path().join("data");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.path.join("cgroup.procs")).arg(bin("jsagent"));
    command.arg("-c").arg(&config).arg("--data-dir").arg(&home).args(["--log-level", "warn"]);
    let mut agent = Process::spawn(&mut command, "jsagent", dir.path(), Signal::SIGTERM);
    let done = load(&redis, &group, &mut agent).with_context(|| format!("the agent wrote: {}", agent.output()));
    let said = agent.stop(Duration::from_secs(30));
    sweep(&home);
    done?;
    ensure!(said.is_some_and(|status| status.success()), "the agent ended with {said:?}: {}", agent.output());
    Ok(())
}

fn load(redis: &Redis, group: &Group, agent: &mut Process) -> Result<()> {
    let agent_pid = agent.pid();
    let mut client = Client::new(redis);
    let mut result = |client: &mut Client, id: &str, what: &str| -> Result<serde_json::Value> {
        let end = Instant::now() + RESULT_LIMIT;
        let result = loop {
            let popped = client.pop_within(id, Duration::from_secs(1));
            ensure!(agent.try_wait().is_none(), "the agent ended under {what}; {}", group.state());
            match popped {
                Some(result) => break result,
                None => ensure!(Instant::now() < end, "no result of {what}; {}", group.state()),
            }
        };
        ensure!(result["state"] == "OK", "{what}: {result}; {}", group.state());
        Ok(result)
    };
    let id = client.send("ping", json!({}));
    result(&mut client, &id, "ping")?;
    let members = fs::read_to_string(group.path.join("cgroup.procs"))?;
    let pid = agent_pid.to_string();
    ensure!(members.lines().any(|line| line == pid), "the agent is not in its group: {members}");

    eprintln!("{JOBS} jobs in {} MiB", LIMIT_BYTES >> 20);
    let ids: Vec<String> = (0..JOBS).map(|_| client.send("execute", json!({"cmd": "/bin/true"}))).collect();
    for id in ids {
        result(&mut client, &id, "a short job")?;
    }
    eprintln!("{LINES} lines in {} MiB", LIMIT_BYTES >> 20);
    let id = client.send("execute", json!({"cmd": "/usr/bin/seq", "args": [LINES.to_string()]}));
    let answer = result(&mut client, &id, "a job of many lines")?;
    let last = answer["streams"][0].as_str().and_then(|lines| lines.lines().last());
    ensure!(last == Some(LINES.to_string().as_str()), "the last line is {last:?}");
    let id = client.send("ping", json!({}));
    result(&mut client, &id, "the last ping")?;
    ensure!(group.kills()? == 0, "the kernel killed in the group: {}", group.state());
    ensure!(group.swapped()? == 0, "the group was swapped: {}", group.state());
    println!("in a memory cgroup of {} MiB: {}\n", LIMIT_BYTES >> 20, group.state());
    Ok(())
}

/// A memory cgroup that is removed with this value.
struct Group {
    path: PathBuf,
    is_v2: bool,
}

impl Group {
    fn make() -> Result<Group> {
        let advice = "the check of a small node needs root and the memory controller of cgroup v2 or v1";
        let (parent, is_v2) = parent().context(advice)?;
        let path = parent.join(format!("js-small-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("{advice}; cannot make {}", path.display()))?;
        let group = Group { path, is_v2 };
        let limit = LIMIT_BYTES.to_string();
        match is_v2 {
            true => {
                group.write("memory.max", &limit)?;
                // Absent where the kernel has no swap.
                if group.path.join("memory.swap.max").exists() {
                    group.write("memory.swap.max", "0")?;
                }
            }
            false => {
                group.write("memory.limit_in_bytes", &limit)?;
                if group.path.join("memory.memsw.limit_in_bytes").exists() {
                    group.write("memory.memsw.limit_in_bytes", &limit)?;
                }
            }
        }
        Ok(group)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.path.join(file), text).with_context(|| format!("cannot set {file} to {text}"))
    }

    /// A number of one of the group's files that have `key number` lines; 0 where there is no such key.
    fn number(&self, file: &str, key: &str) -> Result<u64> {
        let text = fs::read_to_string(self.path.join(file)).with_context(|| format!("cannot read {file}"))?;
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        Ok(found.map_or(Ok(0), |number| number.trim().parse())?)
    }

    /// Processes that the kernel killed because the group was full.
    fn kills(&self) -> Result<u64> {
        self.number(if self.is_v2 { "memory.events" } else { "memory.oom_control" }, "oom_kill")
    }

    /// Bytes of the group in swap.
    fn swapped(&self) -> Result<u64> {
        match self.is_v2 {
            // Absent where the kernel has no swap.
            true if !self.path.join("memory.swap.current").exists() => Ok(0),
            true => Ok(fs::read_to_string(self.path.join("memory.swap.current"))?.trim().parse()?),
            false => self.number("memory.stat", "swap"),
        }
    }

    /// The highest use and the number of kills, for people.
    fn state(&self) -> String {
        let peak = if self.is_v2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        let peak = fs::read_to_string(self.path.join(peak)).unwrap_or_default();
        format!("at most {} bytes used, {} processes killed", peak.trim(), self.kills().unwrap_or_default())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Processes of it may still be ending.
        for _ in 0..500 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} cannot be removed", self.path.display());
    }
}

/// The group below which one with a limit can be made, and whether it is of cgroup v2.
fn parent() -> Result<(PathBuf, bool)> {
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new) {
        let handed_down = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
        if handed_down.split_whitespace().any(|name| name == "memory") {
            return Ok((root.to_owned(), true));
        }
        let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if there.split_whitespace().any(|name| name == "memory")
            && fs::write(root.join("cgroup.subtree_control"), "+memory").is_ok()
        {
            return Ok((root.to_owned(), true));
        }
    }
    let v1 = Path::new("/sys/fs/cgroup/memory");
    match v1.join("memory.limit_in_bytes").exists() {
        true => Ok((v1.to_owned(), false)),
        false => bail!("there is no memory controller below /sys/fs/cgroup"),
    }
}
