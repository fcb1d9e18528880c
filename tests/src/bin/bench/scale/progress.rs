//! The progress of a long bench, so that nobody takes it for hung.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// How often a long step says that it is still under way, where each word is a line of its own.
const EVERY: Duration = Duration::from_secs(10);

/// One line on a terminal, written over and over; else a line for each step.
pub(super) struct Progress {
    start: Instant,
    terminal: bool,
    what: String,
}

impl Progress {
    /// The clock runs from here.
    pub(super) fn new() -> Progress {
        Progress { start: Instant::now(), terminal: stderr().is_terminal(), what: String::new() }
    }

    /// Sets the name of the measurement that begins now.
    pub(super) fn of(&mut self, what: String) {
        self.what = what;
    }

    /// The next step.
    pub(super) fn step(&self, step: &str) {
        let seconds = self.start.elapsed().as_secs();
        let line = format!("{:2}:{:02}  {}: {step}", seconds / 60, seconds % 60, self.what);
        if self.terminal {
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    /// A step that takes this long whatever happens.
    pub(super) fn pass(&self, step: &str, time: Duration) {
        let start = Instant::now();
        let pause = if self.terminal { Duration::from_secs(1) } else { EVERY };
        while start.elapsed() < time {
            self.step(&format!("{step}, {} of {} s", start.elapsed().as_secs(), time.as_secs()));
            std::thread::sleep(pause.min(time.saturating_sub(start.elapsed())));
        }
    }

    /// Nothing more is under way.
    pub(super) fn done(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
