//! The frames of a watch on records: each record as it is stored, without an end of its own.
//!
//! **Owns** which record stands at which offset, for as many requests as a controller may go back.
//! **Does not own** the records: a page is read anew from the message log, and none is kept in memory.

use super::suffix::{Suffix, push_end};
use crate::storage::message_log::{Follower, Next, Place};
use jscommon::frame::{self, Kind, MAX_PAYLOAD_BYTES};
use serde_json::json;
use std::io;

/// Requests that a controller may go back: it has lost them with the last second of its Redis.
const MAX_MARKS: usize = 128;

/// The records that a query finds.
pub(super) struct RecordSource {
    follower: Follower,
    /// The offsets at which pages began or will begin, oldest first. There is always one.
    marks: Vec<(u64, Place)>,
    is_stopping: bool,
    pub(super) suffix: Option<Suffix>,
}

impl RecordSource {
    pub(super) fn new(follower: Follower) -> RecordSource {
        let marks = vec![(0, follower.start())];
        RecordSource { follower, marks, is_stopping: false, suffix: None }
    }

    /// Where the last page that was read ends.
    fn reached(&self) -> u64 {
        self.marks.last().map_or(0, |(at, _)| *at)
    }

    pub(super) fn is_pending(&self, offset: u64) -> bool {
        match &self.suffix {
            Some(suffix) => offset < suffix.end(),
            None => offset < self.reached() || !self.is_at_end(),
        }
    }

    /// Whether all that is stored was read: then the next records come in a while.
    pub(super) fn is_at_end(&self) -> bool {
        !self.is_stopping && !self.follower.is_pending()
    }

    /// The agent stops: what is sent next is the end.
    pub(super) fn stop(&mut self) {
        self.is_stopping = true;
    }

    pub(super) fn read(&mut self, offset: u64, most: usize, out: &mut Vec<u8>) -> io::Result<()> {
        if self.is_stopping {
            return Err(io::Error::other("the agent stops; follow the records after the last one that came"));
        }
        let elsewhere = || io::Error::other("the controller has another part of it than this node");
        let found = self.marks.iter().rposition(|(at, _)| *at <= offset).ok_or_else(elsewhere)?;
        self.marks.truncate(found + 1);
        let (mut at, mut place) = self.marks[found];
        loop {
            // Up to the offset, a page is read again for its lengths alone.
            let mut take = |next| {
                let head = out.len();
                push(out, next);
                if at < offset {
                    at += out.len() as u64;
                    out.clear();
                } else if head > 0 && out.len() > most {
                    out.truncate(head);
                    return false;
                }
                true
            };
            place = self.follower.read(place, &mut take).map_err(io::Error::other)?;
            if at >= offset || self.is_at_end() {
                break;
            }
        }
        if at != offset {
            return Err(elsewhere());
        }
        match (out.len(), self.marks.last_mut()) {
            (0, Some(mark)) if mark.0 == offset => mark.1 = place,
            (length, _) => self.marks.push((offset + length as u64, place)),
        }
        if self.marks.len() > MAX_MARKS {
            self.marks.remove(0);
        }
        Ok(())
    }

    pub(super) fn end(&mut self, at: u64, error: &str) {
        let mut frames = Vec::new();
        push_end(&mut frames, json!({}), Some(error));
        self.suffix = Some(Suffix { at, frames });
    }
}

/// Adds a frame; a record that is too long for one is missing.
fn push(out: &mut Vec<u8>, next: Next) {
    let missing = match next {
        Next::Record(record) => {
            let text = json!(record).to_string();
            if text.len() <= MAX_PAYLOAD_BYTES {
                return frame::push(out, Kind::Record, text.as_bytes());
            }
            1
        }
        Next::Missing(count) => count,
    };
    frame::push(out, Kind::Gap, json!({"records": missing}).to_string().as_bytes());
}

#[cfg(test)]
#[path = "record_source_tests.rs"]
mod tests;
