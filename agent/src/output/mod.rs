//! The output of processes: from the bytes of two pipes to messages, and what a result keeps of them.
//!
//! Owns the marker parser ([`marker`]), the reader threads and what is captured for the result.
//! Stores nothing itself: messages go to the message log, statsd lines to the aggregator. The supervisor
//! attaches it to every child and writes the agent's own records through it.

use crate::job::JobLabel;
use crate::stats;
use crate::storage::message_log;
use crate::storage::message_log::batch::Batch;
use crate::stream::{Position, Spool};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

mod capture;
mod codepage;
mod encoding;
pub mod marker;
mod reader;

use capture::CaptureBuffer;
pub(crate) use capture::Captured;
use jscommon::lock::lock;
pub(crate) use reader::Readers;

/// Where messages go.
#[derive(Clone)]
pub(crate) struct Outlets {
    /// Records.
    pub(crate) message_log: message_log::Inlet,
    /// statsd lines, and the life of jobs that gauges follow.
    pub(crate) stats: stats::Inlet,
}

impl Outlets {
    /// Writes a record of the agent's own about `source`: a job's end (level 30), an alert (level 9).
    /// Never waits.
    pub(crate) fn write(&self, source: &Arc<JobLabel>, level: u8, text: &str) {
        self.message_log.write(source, level, text);
    }
}

/// The output that is captured while a job's pipes are read.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    buffer: Mutex<CaptureBuffer>,
    stall: Mutex<Stall>,
    /// Bytes that may still be handed over without a wait, since the process has ended.
    last: AtomicUsize,
    /// The spool that gets the bytes as they are, where the job is watched or was.
    spool: OnceLock<Arc<Spool>>,
}

/// How many these are: what both pipes hold, and what was read of them before.
const LAST_OUTPUT: usize = 256 << 10;

/// How long readers waited for the message log, or for room in a spool.
#[derive(Debug, Default)]
struct Stall {
    /// Readers that wait now: both of a child at most.
    waiting: u32,
    since: Option<Instant>,
    /// Of all waits that are over.
    total: Duration,
}

impl Capture {
    /// Returns what has been captured by now. It may be called before the pipes end, for a grandchild can hold them
    /// for ever.
    pub(crate) fn snapshot(&self) -> Captured {
        lock(&self.buffer).snapshot()
    }

    /// The process has ended: what it wrote last is read at once, however far the message log is behind, for the
    /// result waits for that. Says whether a reader waits now, and is to be told by [`message_log::Inlet::nudge`].
    pub(crate) fn process_ended(&self) -> bool {
        self.last.store(LAST_OUTPUT, Ordering::SeqCst);
        if let Some(spool) = self.spool.get() {
            spool.nudge();
        }
        lock(&self.stall).waiting > 0
    }

    /// Returns how many bytes were read of stdout and of stderr.
    pub(crate) fn bytes(&self) -> Position {
        lock(&self.buffer).bytes()
    }

    /// Has the bytes go to a spool from here on: `make` is given how many were read before.
    pub(crate) fn attach_spool(&self, make: impl FnOnce(Position) -> Arc<Spool>) -> Arc<Spool> {
        let buffer = lock(&self.buffer);
        self.spool.get_or_init(|| make(buffer.bytes())).clone()
    }

    /// Hands bytes to the spool, which waits while the spool is full and a watch lives.
    fn keep(&self, spool: &Spool, stream: usize, bytes: &[u8]) {
        if spool.write(stream, bytes).is_ok() {
            return;
        }
        self.while_stalled(|| spool.write_waiting(stream, bytes, || self.last.load(Ordering::SeqCst) > 0));
        self.use_last(bytes.len());
    }

    /// Hands over the messages of so many bytes, which waits while the message log is behind.
    fn push(&self, message_log: &message_log::Inlet, batch: Batch, bytes: usize) {
        let Err(batch) = message_log.try_push(batch) else { return };
        self.while_stalled(|| message_log.push_last(batch, || self.last.load(Ordering::SeqCst) > 0));
        self.use_last(bytes);
    }

    fn use_last(&self, bytes: usize) {
        let less = |left: usize| Some(left.saturating_sub(bytes));
        let _ = self.last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
    }

    /// How long its readers have waited for the message log by now. They read nothing meanwhile, so that what
    /// the process wrote may still be in its pipes.
    pub(crate) fn stalled(&self) -> Duration {
        let stall = lock(&self.stall);
        stall.total + stall.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Does `wait`, which waits for the message log.
    fn while_stalled(&self, wait: impl FnOnce()) {
        {
            let mut stall = lock(&self.stall);
            stall.waiting += 1;
            stall.since.get_or_insert_with(Instant::now);
        }
        wait();
        let mut stall = lock(&self.stall);
        stall.waiting -= 1;
        if stall.waiting == 0
            && let Some(since) = stall.since.take()
        {
            stall.total += since.elapsed();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use jscommon::LevelSet;

    /// A job whose every level is stored and none forwarded.
    pub(crate) fn source() -> Arc<JobLabel> {
        Arc::new(JobLabel {
            jobid: "job".into(),
            domain: "dom".into(),
            name: "nam".into(),
            db: LevelSet::ALL,
            ac: LevelSet::NONE,
            stats_interval: None,
        })
    }

    /// Outlets that lead nowhere.
    pub(crate) fn outlets() -> Outlets {
        Outlets { message_log: message_log::Inlet::closed(), stats: stats::Inlet::default() }
    }
}
