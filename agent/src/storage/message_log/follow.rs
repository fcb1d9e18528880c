//! Records in the order of their arrival, page by page, as they are stored.
//!
//! **Owns** the place of somebody who follows the records, and what is missing where databases went before they were
//! read. **Does not own** where the records go.
//!
//! A [`Place`] is a value, so that a page can be read again: it has the same records as before, and perhaps more.

use super::log_files::LogFiles;
use super::query::Query;
use super::reader::LogReader;
use super::scan::{AFTER, COLUMNS, IdLookup, UP_TO, guess, id_row, look, record};
use anyhow::Result;
use crossbeam_channel::Sender;
use jscommon::{NodeId, Record};
use rusqlite::Connection;
use std::sync::Arc;

/// A place in the order of all records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    /// The database.
    number: u64,
    /// Its last row that was looked at.
    rowid: i64,
    /// The id of the last record that was looked at.
    id: u32,
    /// A database went before all of it was read.
    has_gap: bool,
    /// How many of the records that were there at first are still to be given.
    left: u64,
}

impl Place {
    /// The id of the last record before this place.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }
}

/// The next of what is followed.
pub(crate) enum Next {
    Record(Record),
    /// So many records at most are missing here: ids that were given and are gone.
    Missing(u32),
}

/// The matches of a query, those that are still to come as well.
pub(crate) struct Follower {
    reader: LogReader,
    query: Query,
    node: NodeId,
    start: Place,
    /// Where the records that were there at first end.
    end: Place,
    /// The state of the log when its end was reached the last time.
    seen: Option<u64>,
    _waker: Arc<Sender<()>>,
}

impl LogReader {
    /// Follows the matches of a query, with the first `limit` of those that are there now, and all that come later.
    /// `waker` hears of new records.
    pub(crate) fn follow(&self, query: Query, node: NodeId, waker: Sender<()>) -> Result<Follower> {
        let waker = Arc::new(waker);
        self.log_files().followers.add(&waker);
        self.on_writer(|_| ())?;
        let number = self.log_files().read().current();
        let last = self.open(number, |db| id_row(db, UP_TO, i64::MAX))?;
        let left = query.limit.unwrap_or(u64::MAX);
        let (rowid, id) = last.flatten().unwrap_or((i64::MIN, query.after.unwrap_or(0)));
        let end = Place { number, rowid, id, has_gap: false, left };
        let at = self.start(&query)?;
        let mut start = end;
        if left > 0 && (at.number, at.rowid) < (end.number, end.rowid) {
            let around = |db: &Connection| Ok((id_row(db, UP_TO, at.rowid)?, id_row(db, AFTER, at.rowid)?));
            let id = match self.open(at.number, around)? {
                Some((Some((_, id)), _)) => query.after.unwrap_or(id),
                Some((None, Some((_, first)))) => first.wrapping_sub(1),
                _ => query.after.unwrap_or(0),
            };
            start = Place { number: at.number, rowid: at.rowid, id, ..end };
        }
        Ok(Follower { reader: self.clone(), query, node, start, end, seen: None, _waker: waker })
    }
}

impl Follower {
    /// Where it begins.
    pub(crate) fn start(&self) -> Place {
        self.start
    }

    /// Whether there may be records that were not read yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.seen != Some(self.files().followers.stored())
    }

    /// Hands what follows a place to `take`, until that one has no room for it, or for a short time; returns the place
    /// behind what was taken.
    pub(crate) fn read(&mut self, from: Place, take: &mut dyn FnMut(Next) -> bool) -> Result<Place> {
        let stored = self.files().followers.stored();
        self.seen = None;
        let mut place = from;
        if place.left == 0 && (place.number, place.rowid) < (self.end.number, self.end.rowid) {
            place = Place { left: 0, ..self.end };
        }
        let (is_there, current) = {
            let layout = self.files().read();
            (layout.path(place.number).is_some(), layout.current())
        };
        if !is_there {
            let number = (place.number + 1).max(self.files().read().oldest());
            return Ok(Place { number, rowid: i64::MIN, has_gap: true, ..place });
        }
        let (query, node, end) = (&self.query, self.node, self.end);
        // A damaged database may be looked at again, from where the first look ended.
        let is_end = self.reader.open(place.number, |db| {
            resume(db, &mut place)?;
            if place.has_gap {
                let Some((_, first)) = id_row(db, AFTER, place.rowid)? else { return Ok(true) };
                let missing = first.wrapping_sub(place.id).wrapping_sub(1);
                if (1..u32::MAX / 2).contains(&missing) && !take(Next::Missing(missing)) {
                    return Ok(false);
                }
                (place.id, place.has_gap) = (first.wrapping_sub(1), false);
            }
            let mut refused = None;
            let page = look(db, COLUMNS, query, place.rowid, &mut |row| {
                let rowid: i64 = row.get(0)?;
                let is_old = (place.number, rowid) <= (end.number, end.rowid);
                let mut record = record(row)?;
                (record.gid, record.nid) = (Some(node.gid), Some(node.nid));
                let id = record.id;
                if is_old && place.left == 0 || !take(Next::Record(record)) {
                    refused = Some(rowid - 1);
                    return Ok(false);
                }
                (place.rowid, place.id) = (rowid, id);
                place.left -= u64::from(is_old);
                Ok(true)
            })?;
            place.rowid = refused.unwrap_or(page.rowid);
            place.id = id_row(db, UP_TO, place.rowid)?.map_or(place.id, |(_, id)| id);
            Ok(page.ended)
        })?;
        let is_there = is_end.is_some() || self.files().read().path(place.number).is_some();
        match is_end {
            Some(false) => {}
            _ if !is_there => {}
            _ if place.number < current => (place.number, place.rowid) = (place.number + 1, i64::MIN),
            _ => self.seen = Some(stored),
        }
        Ok(place)
    }

    fn files(&self) -> &LogFiles {
        self.reader.log_files()
    }
}

/// Finds the place again where rows before it were deleted: a number of a row may have been given anew.
fn resume(db: &Connection, place: &mut Place) -> rusqlite::Result<()> {
    place.rowid = match id_row(db, UP_TO, place.rowid)? {
        Some((_, id)) if (id.wrapping_sub(place.id) as i32) > 0 => match guess(db, place.id)? {
            IdLookup::At(rowid) => rowid,
            _ => i64::MIN,
        },
        Some((rowid, _)) => rowid,
        None => i64::MIN,
    };
    Ok(())
}
