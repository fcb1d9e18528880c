//! Ends what a dead agent left running, on a thread, while the agent already serves.
//!
//! **Owns** the stop signal, the stop timeout and KILL for such processes. The time of the first attempt is
//! kept in a file, so that an agent that is started again and again does not begin the timeout anew.
//!
//! **Does not** decide what becomes of the jobs: the supervisor holds them until it is told.

use super::{GroupMembers, JobTag, Proc, members};
use crate::platform::Signal;
use crate::process_tree;
use jscommon::worker::Worker;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long after KILL a process is given up: only the kernel can hold it so long.
const GIVE_UP: Duration = Duration::from_secs(10);
/// A stop timeout that is longer than this means for ever.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Shortest and longest time between two looks at all processes.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// A run that was under way when the agent died, and how it wants to be ended.
#[derive(Clone)]
pub(crate) struct Leftover {
    pub(crate) mark: JobTag,
    /// The name of its cgroup, should it have had one.
    pub(crate) group: String,
    pub(crate) stop_signal: Signal,
    pub(crate) stop_timeout: Duration,
}

impl Leftover {
    /// Returns the living processes of this run. Daemons of runs that were over are not among them, for
    /// their marks name another run.
    fn processes(&self, all: &[Proc], groups: Option<&GroupMembers>) -> Vec<Proc> {
        let mut found = members::leftovers(all, std::slice::from_ref(&self.mark), process_tree::mark);
        if let Some(groups) = groups {
            members::join(&mut found, all, &groups.members(&self.group));
        }
        found
    }
}

/// Returns those of which anything lives.
pub(crate) fn living(leftovers: Vec<Leftover>, groups: Option<&GroupMembers>) -> Vec<Leftover> {
    if leftovers.is_empty() {
        return leftovers;
    }
    let all = process_tree::processes();
    leftovers.into_iter().filter(|leftover| !leftover.processes(&all, groups).is_empty()).collect()
}

/// Ends these on a thread; `cleared` is told the id of each job of which nothing is left.
pub(crate) fn end(
    leftovers: Vec<Leftover>,
    groups: Option<GroupMembers>,
    data_dir: &Path,
    cleared: impl Fn(&Leftover) + Send + 'static,
) -> io::Result<()> {
    let attempts = Attempts::begin(&data_dir.join("leftovers"), &leftovers, uptime());
    let run = move || {
        let mut open: Vec<Tree> = leftovers.into_iter().map(|leftover| attempts.tree(leftover)).collect();
        let mut pause = PAUSE.0;
        while !open.is_empty() {
            let all = process_tree::processes();
            open.retain_mut(|tree| {
                let over = tree.tend(&all, groups.as_ref());
                if over {
                    cleared(&tree.leftover);
                }
                !over
            });
            if !open.is_empty() {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE.1);
            }
        }
        attempts.end();
    };
    Worker::spawn("leftovers", 128 * 1024, run).map(Worker::detach)
}

/// The processes of one run that are still alive.
struct Tree {
    leftover: Leftover,
    /// When its stop timeout is over.
    kill_at: Instant,
    /// Processes that were signalled: one that was seen once is followed by id and start, for its
    /// environment may be gone by then.
    seen: Vec<Proc>,
}

impl Tree {
    /// Signals what lives; yes when nothing does, or what does is given up.
    fn tend(&mut self, all: &[Proc], groups: Option<&GroupMembers>) -> bool {
        let Leftover { mark, stop_signal, .. } = &self.leftover;
        for process in self.leftover.processes(all, groups) {
            if !self.seen.iter().any(|known| (known.pid, known.started) == (process.pid, process.started)) {
                log::warn!("ending process {} of job {}, left by an agent that died", process.pid, mark.job);
                process_tree::stop_process(&process, *stop_signal);
                self.seen.push(process);
            }
        }
        let lives = |known: &&Proc| {
            let is_it = |now: &Proc| (now.pid, now.started) == (known.pid, known.started) && !now.dead;
            all.iter().any(is_it)
        };
        let living: Vec<&Proc> = self.seen.iter().filter(lives).collect();
        let now = Instant::now();
        if !living.is_empty() && now >= self.kill_at + GIVE_UP {
            log::error!("processes that an agent has left of job {} do not end; going on beside them", mark.job);
            return true;
        }
        if now >= self.kill_at {
            for process in &living {
                process_tree::signal_process(process, Signal::KILL);
            }
        }
        living.is_empty()
    }
}

/// When the first attempt to end a run was made, in seconds since the start of the system.
struct Attempts {
    path: PathBuf,
    firsts: HashMap<String, i64>,
    now: i64,
    began: Instant,
}

impl Attempts {
    /// Reads the times of earlier attempts and writes those of these runs.
    fn begin(path: &Path, leftovers: &[Leftover], now: i64) -> Attempts {
        let earlier = read(&fs::read_to_string(path).unwrap_or_default());
        let first = |name: &String| earlier.get(name).copied().unwrap_or(now).min(now);
        let firsts: HashMap<String, i64> =
            leftovers.iter().map(|leftover| (leftover.group.clone(), first(&leftover.group))).collect();
        let text: String = firsts.iter().map(|(name, first)| format!("{first} {name}\n")).collect();
        if let Err(fault) = fs::write(path, text) {
            log::warn!("the agent's next start will wait for leftovers anew: cannot write {}: {fault}", path.display());
        }
        Attempts { path: path.to_owned(), firsts, now, began: Instant::now() }
    }

    fn tree(&self, leftover: Leftover) -> Tree {
        let first = self.firsts.get(&leftover.group).copied().unwrap_or(self.now);
        let passed = Duration::from_secs(self.now.saturating_sub(first).max(0).unsigned_abs());
        let kill_at = self.began + leftover.stop_timeout.saturating_sub(passed).min(LONGEST);
        Tree { leftover, kill_at, seen: Vec::new() }
    }

    /// Forgets them: nothing is left.
    fn end(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Reads lines of a time and a name.
fn read(text: &str) -> HashMap<String, i64> {
    let line = |line: &str| line.split_once(' ').and_then(|(time, name)| Some((name.to_owned(), time.parse().ok()?)));
    text.lines().filter_map(line).collect()
}

/// Seconds since the start of the system: no clock that somebody sets, and processes do not outlive it.
pub(crate) fn uptime() -> i64 {
    sysinfo::System::uptime().map_or(0, |seconds| i64::try_from(seconds).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leftover(job: &str) -> Leftover {
        Leftover {
            mark: JobTag { home: "/h".into(), job: job.into(), start: 7 },
            group: format!("7-{job}"),
            stop_signal: Signal::TERM,
            stop_timeout: Duration::from_secs(100),
        }
    }

    #[test]
    fn time_of_the_first_attempt_survives_restarts_of_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leftovers");
        let left = |job: &str, now: i64| {
            let attempts = Attempts::begin(&path, &[leftover(job), leftover("other")], now);
            attempts.tree(leftover(job)).kill_at.saturating_duration_since(attempts.began).as_secs()
        };
        assert_eq!(left("a", 1000), 100);
        assert_eq!(left("a", 1030), 70);
        assert_eq!(left("a", 1500), 0);
        // After a start of the system there is no such process, and its times are not of now.
        assert_eq!(left("a", 20), 100);
        assert_eq!(left("b", 1060), 100);
        std::fs::write(&path, "x\n12\n \n1000 7-a").unwrap();
        assert_eq!(left("a", 1099), 1);
        Attempts::begin(&path, &[leftover("a")], 1100).end();
        assert!(!path.exists());
    }
}
