//! Ends what a dead agent left running, before anything is started.

use crate::os::{self, Cgroups, Mark, Proc, Signal};
use std::time::{Duration, Instant};

use super::tree;

/// A run that was under way when the agent died, and how it wants to be ended.
pub(super) struct Leftover {
    pub(super) mark: Mark,
    /// The name of its cgroup, should it have had one.
    pub(super) group: String,
    pub(super) stop_signal: Signal,
    pub(super) stop_timeout: Duration,
}

/// Ends their trees: the stop signal, the stop timeout, KILL. Daemons of runs that were over are not
/// among them, for their marks name another run.
pub(super) fn end(leftovers: &[Leftover], cgroups: Option<&Cgroups>) {
    if leftovers.is_empty() {
        return;
    }
    let begin = Instant::now();
    // A tree that is seen once is followed by id and start: its environment may be gone by then.
    let mut seen: Vec<(Proc, usize)> = Vec::new();
    let mut told = 0;
    loop {
        let processes = os::processes();
        for (index, leftover) in leftovers.iter().enumerate() {
            let mut left = tree::leftovers(&processes, std::slice::from_ref(&leftover.mark), os::mark);
            if let Some(cgroups) = cgroups {
                tree::join(&mut left, &processes, &cgroups.members(&leftover.group));
            }
            for process in left {
                if !seen.iter().any(|(known, _)| known.pid == process.pid && known.started == process.started) {
                    seen.push((process, index));
                }
            }
        }
        for (process, index) in &seen[told..] {
            log::warn!(
                "ending process {} of job {}, left by an agent that died",
                process.pid,
                leftovers[*index].mark.job
            );
            os::stop_process(process, leftovers[*index].stop_signal);
        }
        told = seen.len();
        let living = |known: &Proc| {
            processes
                .iter()
                .any(|process| process.pid == known.pid && process.started == known.started && !process.dead)
        };
        let alive: Vec<&(Proc, usize)> = seen.iter().filter(|(process, _)| living(process)).collect();
        if alive.is_empty() {
            return;
        }
        let mut overdue = false;
        for (process, index) in alive {
            if begin.elapsed() >= leftovers[*index].stop_timeout {
                os::signal_process(process, Signal::KILL);
            }
            overdue |= begin.elapsed() >= leftovers[*index].stop_timeout + Duration::from_secs(10);
        }
        if overdue {
            log::error!("some processes that an agent left behind do not end; going on beside them");
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
