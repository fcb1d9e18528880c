//! How far messages have been stored and forwarded, and why they were not. Pure.

use crate::storage::message_log::batch::{Batch, Fate};
use crate::storage::sqlite::{Fault, fault_of};
use jscommon::LevelSet;
use std::fmt;

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// Why messages were not stored.
#[derive(Debug)]
pub(super) enum WriteError {
    /// The node's own database did not take them.
    Store(anyhow::Error),
    /// The upload queue did not take what is to be forwarded.
    UploadQueue(anyhow::Error),
}

impl WriteError {
    /// Returns the meaning of this error for a writer.
    pub(super) fn fault(&self) -> Fault {
        match self {
            WriteError::Store(e) => fault_of(e),
            // The upload queue has looked at its file already.
            WriteError::UploadQueue(e) => {
                Some(fault_of(e)).filter(|f| *f != Fault::Damaged).unwrap_or(Fault::Unavailable)
            }
        }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::Store(e) => write!(f, "{e:#}"),
            WriteError::UploadQueue(e) => write!(f, "outbox.db: {e:#}"),
        }
    }
}

impl From<rusqlite::Error> for WriteError {
    fn from(e: rusqlite::Error) -> WriteError {
        WriteError::Store(e.into())
    }
}

/// How far a list of batches has been stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Progress {
    /// The first batch that is not stored whole.
    pub(super) batch: usize,
    /// Its first message that is not stored.
    pub(super) message: usize,
    /// The first message that has not been given to the upload queue.
    pub(super) forwarded: (usize, usize),
    /// The id of the first message that has none yet: the others follow in their order, however often and
    /// in whatever pieces they are tried.
    pub(super) first: Option<u32>,
    /// One message in a transaction, so that one that is refused is found.
    pub(super) one: bool,
    /// Messages that were left out for their level, or because they were refused.
    pub(super) left_out: u64,
}

impl Progress {
    /// The id of a message that has none yet.
    pub(super) fn id(&self, batches: &[Batch], batch: usize, message: usize) -> u32 {
        let before: usize = batches[..batch.min(batches.len())].iter().map(Batch::without_id).sum();
        // All messages of a batch have an id from before, or none has.
        let own = batches.get(batch).filter(|batch| batch.without_id() > 0).map_or(0, |_| message);
        nth(self.first.unwrap_or(1), (before + own) as u64)
    }

    /// Goes on with one message at a time, or (where that is so already) without the message that was
    /// refused: the first that is not stored, or not forwarded.
    pub(super) fn narrow(&mut self, batches: &[Batch], trouble: &WriteError) {
        if !std::mem::replace(&mut self.one, true) {
            return;
        }
        let Some(batch) = batches.get(self.batch) else { return };
        let level = batch.message(self.message).map_or(0, |(level, _)| level);
        log::error!("a message of level {level} of job {} is dropped: {trouble}", batch.source().jobid);
        self.left_out += 1;
        self.message += 1;
        self.forwarded = self.forwarded.max((self.batch, self.message));
        if self.message >= batch.len() {
            (self.batch, self.message) = (self.batch + 1, 0);
        }
    }

    /// Takes out what is not dealt with, of these levels, for another try; says how many messages of other
    /// levels there were. Call it once [`super::store::Store::advance_ids`] has given all of them their ids.
    pub(super) fn rest(&self, batches: &[Batch], levels: LevelSet, forward: bool) -> (Vec<Batch>, u64) {
        let (mut rest, mut lost) = (Vec::new(), 0);
        let mut id = self.first.unwrap_or(1);
        for (b, batch) in batches.iter().enumerate() {
            let source = batch.source();
            let mut left = Batch::new(source, batch.epoch(), 0);
            for n in 0..batch.len() {
                let Some((level, text)) = batch.message(n) else { continue };
                let mut fate = batch.fate(n).unwrap_or_else(|| {
                    let fate = Fate { id, stored: false, forwarded: false };
                    id = nth(id, 1);
                    fate
                });
                fate.stored |= (b, n) < (self.batch, self.message) || !source.db.contains(level);
                fate.forwarded |= (b, n) < self.forwarded || !forward || !source.ac.contains(level);
                match fate {
                    Fate { stored: true, forwarded: true, .. } => {}
                    _ if !levels.contains(level) => lost += 1,
                    fate => left.push_again(level, text, fate),
                }
            }
            if !left.is_empty() {
                rest.push(left);
            }
        }
        (rest, lost)
    }
}

/// The id that is so many after this one; ids are 1 to 4294967295 and begin again. None at all is 0.
pub(super) fn nth(id: u32, count: u64) -> u32 {
    match u64::from(id) + count {
        0 => 0,
        id => ((id - 1) % u64::from(u32::MAX) + 1) as u32,
    }
}

/// Bytes of text and rows that are still to be stored.
pub(super) fn remaining(batches: &[Batch], progress: Progress) -> usize {
    batches[progress.batch..].iter().map(|batch| batch.weight() + batch.len() * ROW).sum()
}

/// Bytes of the next message.
pub(super) fn first(batches: &[Batch], progress: Progress) -> usize {
    batches[progress.batch].message(progress.message).map_or(0, |(_, text)| size(text) + ROW)
}

/// Returns the bytes that a text takes; a long text has pages of its own.
pub(super) fn size(text: &str) -> usize {
    text.len() + if text.len() > OVERFLOW { PAGE as usize } else { 0 }
}

/// Most bytes that a row takes beside its texts.
pub(super) const ROW: usize = 40;

/// A text that is longer than this can leave a page half empty.
pub(super) const OVERFLOW: usize = 900;
