//! Counts of the work that two programs do: they depend less on the machine than times do.

use anyhow::Result;
use jstests::proc::{self, Switches, SyscallCounter, Written};

/// The names of the figures of `Meter::end`, for each program in turn.
pub(super) const FIGURES: [&str; 4] = ["voluntary switches", "CPU, ms", "bytes given to write", "bytes to disk"];

/// Begins of the counts of both programs.
pub(super) struct Meter {
    pids: [u32; 2],
    cpu: [f64; 2],
    written: [Written; 2],
    switches: [Switches; 2],
}

impl Meter {
    pub(super) fn start([acc, agent]: [u32; 2]) -> Result<Meter> {
        Ok(Meter {
            pids: [acc, agent],
            cpu: [proc::cpu(acc)?, proc::cpu(agent)?],
            written: [Written::of(acc)?, Written::of(agent)?],
            switches: [Switches::start(acc)?, Switches::start(agent)?],
        })
    }

    /// Counts the switches of threads that may end soon.
    pub(super) fn look(&mut self) -> Result<()> {
        self.switches.iter_mut().try_for_each(Switches::look)
    }

    /// The counts since the start, `FIGURES` of the controller and then of the agent.
    pub(super) fn end(&mut self) -> Result<Vec<f64>> {
        self.look()?;
        let mut figures = Vec::new();
        for at in 0..2 {
            let (pid, written) = (self.pids[at], Written::of(self.pids[at])?);
            figures.push(self.switches[at].count() as f64);
            figures.push((proc::cpu(pid)? - self.cpu[at]) * 1e3);
            figures.push((written.bytes - self.written[at].bytes) as f64);
            figures.push((written.dirtied - self.written[at].dirtied) as f64);
        }
        Ok(figures)
    }

    /// System calls of both programs while `work` runs, apart from `end`, since counting takes time itself.
    pub(super) fn calls(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<f64>> {
        let counters = self.pids.map(SyscallCounter::start);
        work()?;
        counters.into_iter().map(|counter| Ok(counter?.end()? as f64)).collect()
    }
}
