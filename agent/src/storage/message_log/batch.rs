//! Messages on their way to the message log: one text for all of them, and an index. Pure.

use crate::job::JobLabel;
use jscommon::LevelSet;
use std::sync::Arc;

/// The messages of one read: one job, one time.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    source: Arc<JobLabel>,
    epoch: i64,
    text: String,
    index: Vec<Entry>,
    /// The earlier outcome of each message; empty where none was tried yet.
    fates: Vec<Fate>,
    room: usize,
}

/// The outcome so far of a message that could not be handled at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fate {
    /// Its id, which it keeps.
    pub(super) id: u32,
    /// It is in the node's database, or is not to be there.
    pub(super) stored: bool,
    /// It is in the upload queue, or is not to be there.
    pub(super) forwarded: bool,
}

/// A usual line has about so many bytes.
const USUAL_LINE: usize = 80;

#[derive(Clone, Copy, Debug)]
struct Entry {
    level: u8,
    end: u32,
}

impl Batch {
    /// No messages yet, of `source`, that arrived at `epoch` (milliseconds since 1970); `room` is how
    /// many bytes of text are to be expected. Takes memory only with the first message.
    pub(crate) fn new(source: &Arc<JobLabel>, epoch: i64, room: usize) -> Batch {
        Batch { source: Arc::clone(source), epoch, text: String::new(), index: Vec::new(), fates: Vec::new(), room }
    }

    /// Adds a message.
    #[inline]
    pub(crate) fn push(&mut self, level: u8, text: &str) {
        if self.text.capacity() == 0 {
            self.text.reserve(self.room.max(text.len()));
            // As many as lines of usual length make.
            self.index.reserve(self.room / USUAL_LINE + 1);
        }
        self.text.push_str(text);
        // A batch is made of one read and at most one block, far from 4 GiB.
        self.index.push(Entry { level, end: self.text.len() as u32 });
    }

    /// Adds a message of which something was done before; all messages of a batch are such, or none is.
    pub(super) fn push_again(&mut self, level: u8, text: &str, fate: Fate) {
        self.push(level, text);
        self.fates.push(fate);
    }

    /// Returns the earlier outcome of message `n`.
    #[inline]
    pub(super) fn fate(&self, n: usize) -> Option<Fate> {
        self.fates.get(n).copied()
    }

    /// How many of its messages have no id yet.
    pub(super) fn without_id(&self) -> usize {
        self.index.len() - self.fates.len()
    }

    /// The same batch with the messages of these levels alone.
    pub(super) fn only(&self, levels: LevelSet) -> Batch {
        let mut kept = Batch::new(&self.source, self.epoch, 0);
        for n in 0..self.len() {
            let Some((level, text)) = self.message(n).filter(|(level, _)| levels.contains(*level)) else { continue };
            match self.fate(n) {
                Some(fate) => kept.push_again(level, text, fate),
                None => kept.push(level, text),
            }
        }
        kept
    }

    /// Whether there is no message.
    pub(crate) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How many messages there are.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns the job that the messages belong to.
    pub(crate) fn source(&self) -> &Arc<JobLabel> {
        &self.source
    }

    /// When they arrived, in milliseconds since 1970.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The memory that it takes, in bytes.
    pub(crate) fn weight(&self) -> usize {
        self.text.capacity()
            + self.index.capacity() * size_of::<Entry>()
            + self.fates.capacity() * size_of::<Fate>()
            + size_of::<Batch>()
    }

    /// Level and text of message `n`, in the order of their arrival.
    #[inline]
    pub(crate) fn message(&self, n: usize) -> Option<(u8, &str)> {
        let entry = self.index.get(n)?;
        let start = if n == 0 { 0 } else { self.index[n - 1].end };
        Some((entry.level, self.text.get(start as usize..entry.end as usize)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let source = JobLabel {
            jobid: "j".into(),
            domain: String::new(),
            name: String::new(),
            db: LevelSet::ALL,
            ac: LevelSet::NONE,
            stats_interval: None,
        };
        let mut batch = Batch::new(&Arc::new(source), 5, 3);
        assert!(batch.is_empty() && batch.weight() < 100);
        for (level, text) in [(1, "a"), (2, ""), (20, "ü")] {
            batch.push(level, text);
        }
        let found: Vec<_> = (0..batch.len()).filter_map(|n| batch.message(n)).collect();
        assert_eq!(found, [(1, "a"), (2, ""), (20, "ü")]);
        assert_eq!((batch.message(3), batch.epoch()), (None, 5));
    }
}
