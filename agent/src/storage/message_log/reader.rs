//! Finding and deleting records, through all databases, on connections of its own.
//!
//! Reads are short: a few milliseconds with a database open, then everything is let go, so that
//! neither the WAL nor a rotation waits for a long query. A [`Cursor`] says where to go on. Rows of a
//! rotated database are deleted from here; those of the current one by the message log's thread, which
//! alone writes to it.

use super::channel::{Message, MessageSender};
use super::log_files::LogFiles;
use super::query::Query;
use super::scan::{AFTER, COLUMNS, IdLookup, ScanPage, guess, id_row, look, record, travels};
use super::store::{Store, open};
use crate::storage::sqlite::{Fault, fault};
use anyhow::{Context, Result, anyhow};
use jscommon::Record;
use jscommon::lock::lock;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::{Arc, Mutex};

/// Most records of one answer.
pub(super) const MAX_RECORDS: u64 = 1000;
/// Most bytes of one answer, escapes counted in, for it travels in a result, and a controller takes
/// 16 MiB; at least one record is always given.
const MAX_BYTES: usize = 4 << 20;
/// Rows that are deleted in one transaction.
const DELETE: usize = 500;
/// Pages that are given back in one transaction.
const RECLAIM: u32 = 8;

const STOPPED: &str = "the message log has stopped";

/// A place in the order of all records: what has been looked at already.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cursor {
    /// The database.
    pub(super) number: u64,
    /// Its last row that was looked at.
    pub(super) rowid: i64,
}

/// Where records are found and deleted, from any thread that may wait for a disk.
#[derive(Clone)]
pub(crate) struct LogReader {
    sender: MessageSender,
    log_files: Arc<LogFiles>,
}

impl LogReader {
    pub(super) fn new(sender: MessageSender, log_files: Arc<LogFiles>) -> LogReader {
        LogReader { sender, log_files }
    }

    pub(super) fn log_files(&self) -> &LogFiles {
        &self.log_files
    }

    /// The first `limit` matches (at most 1000) in the order of their arrival, everything that was
    /// handed over before included. Fewer come when their text grows past 4 MiB: ask on with `after`.
    pub(crate) fn get(&self, query: &Query) -> Result<Vec<Record>> {
        self.on_writer(|_| ())?;
        let limit = query.limit.unwrap_or(MAX_RECORDS).min(MAX_RECORDS) as usize;
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut place = Some(self.start(query)?);
        while let Some(at) = place
            && records.len() < limit
            && bytes < MAX_BYTES
        {
            let before = (records.len(), bytes);
            let look = self.open(at.number, |db| {
                // A damaged one may be looked at twice.
                records.truncate(before.0);
                bytes = before.1;
                look(db, COLUMNS, query, at.rowid, &mut |row| {
                    let record = record(row)?;
                    bytes += travels(&record.data) + 200;
                    records.push(record);
                    Ok(bytes < MAX_BYTES && records.len() < limit)
                })
            })?;
            place = self.after(at, look);
        }
        Ok(records)
    }

    /// Deletes the matches (all of them without a `limit`), gives their space back and says how many there were.
    pub(crate) fn delete(&self, query: &Query) -> Result<u64> {
        self.on_writer(|_| ())?;
        let limit = query.limit.unwrap_or(u64::MAX);
        let mut deleted = 0;
        // Only what is there now: a job that goes on writing must not keep this going.
        let end = self.log_files.read().current();
        let mut place = Some(self.start(query)?);
        let mut touched = false;
        while let Some(at) = place.filter(|at| at.number <= end)
            && deleted < limit
        {
            let room = usize::try_from(limit - deleted).unwrap_or(usize::MAX).min(DELETE);
            let whole = query.is_everything() && at.rowid == i64::MIN;
            if whole && let Some(count) = self.delete_whole(at.number)? {
                deleted += count;
                place = Some(Cursor { number: at.number + 1, rowid: i64::MIN });
                continue;
            }
            let mut rows = Vec::new();
            let look = self.open(at.number, |db| {
                rows.clear();
                look(db, "rowid", query, at.rowid, &mut |row| {
                    rows.push(row.get::<_, i64>(0)?);
                    Ok(rows.len() < room)
                })
            })?;
            if look.is_some() && !rows.is_empty() {
                deleted += self.change(at.number, move |db, _| delete(db, &rows))?.unwrap_or(0);
                touched = true;
            }
            place = self.after(at, look);
            if touched && place.is_none_or(|next| next.number != at.number) {
                self.reclaim(at.number)?;
                touched = false;
            }
        }
        if let Some(at) = place.filter(|_| touched) {
            self.reclaim(at.number)?;
        }
        self.on_writer(|store| store.write_mark())?;
        Ok(deleted)
    }

    /// Runs `work` on the message log's thread, after everything that was handed over before is stored.
    pub(super) fn on_writer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T> {
        let answer = Arc::new(Mutex::new(None));
        let slot = answer.clone();
        self.run_on_writer(Box::new(move |store| *lock(&slot) = Some(work(store))))?;
        let answer = lock(&answer).take();
        answer.context(STOPPED)
    }

    /// Waits until `work` is done, or the thread has ended.
    fn run_on_writer(&self, work: Box<dyn FnOnce(&mut Store) + Send>) -> Result<()> {
        let (done, is_done) = crossbeam_channel::bounded(1);
        self.sender.send(Message::Then(Box::new(move |store| {
            work(store);
            let _ = done.send(());
        })));
        is_done.recv().context(STOPPED)
    }

    /// Where a query begins.
    pub(super) fn start(&self, query: &Query) -> Result<Cursor> {
        match query.after {
            Some(id) => self.find(id),
            None => Ok(Cursor { number: self.log_files.read().oldest(), rowid: i64::MIN }),
        }
    }

    /// Where to go on after a look; nothing is the end of all. A database that is gone by now is passed over.
    fn after(&self, at: Cursor, look: Option<ScanPage>) -> Option<Cursor> {
        match look {
            Some(look) if !look.ended => Some(Cursor { rowid: look.rowid, ..at }),
            _ if at.number < self.log_files.read().current() => Some(Cursor { number: at.number + 1, rowid: i64::MIN }),
            _ => None,
        }
    }

    /// Runs `work` with a database open; nothing when it is gone. A damaged one is set aside, and is gone then.
    pub(super) fn open<T>(
        &self,
        number: u64,
        mut work: impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let mut found = None;
        self.open_with(number, &mut |db| {
            found = Some(work(db)?);
            Ok(())
        })?;
        Ok(found)
    }

    fn open_with(&self, number: u64, work: &mut dyn FnMut(&Connection) -> rusqlite::Result<()>) -> Result<()> {
        let mut examined = false;
        loop {
            let done = {
                let layout = self.log_files.read();
                let Some(path) = layout.path(number) else { return Ok(()) };
                // The next one could not be made yet.
                if number == layout.current() && !path.exists() {
                    return Ok(());
                }
                open(&path).and_then(|db| work(&db))
            };
            match done {
                Ok(()) => return Ok(()),
                Err(e) if fault(&e) == Fault::Damaged && !std::mem::replace(&mut examined, true) => {
                    let (done, examined) = crossbeam_channel::bounded(1);
                    self.sender.send(Message::Examine { number, error: anyhow!(e), done });
                    examined.recv().context(STOPPED)??;
                }
                Err(e) => return Err(anyhow!(e).context("a database of records cannot be read")),
            }
        }
    }

    /// The place of the record with this id, the newest such; of one that is gone, where it would be.
    fn find(&self, id: u32) -> Result<Cursor> {
        let (oldest, current) = {
            let layout = self.log_files.read();
            (layout.oldest(), layout.current())
        };
        let mut disordered = false;
        for number in (oldest..=current).rev() {
            match self.open(number, |db| guess(db, id))? {
                Some(IdLookup::At(rowid)) => return Ok(Cursor { number, rowid }),
                Some(IdLookup::Disordered) => disordered = true,
                Some(IdLookup::Elsewhere) | None => {}
            }
        }
        if disordered {
            for number in (oldest..=current).rev() {
                if let Some(Some((rowid, _))) =
                    self.open(number, |db| id_row(db, "id = ?1 ORDER BY rowid DESC", id.into()))?
                {
                    return Ok(Cursor { number, rowid });
                }
            }
        }
        // Not there any more: everything that came after it, counted around the wrap.
        for number in oldest..=current {
            let first = self.open(number, |db| id_row(db, AFTER, i64::MIN))?.flatten();
            if first.is_some_and(|(_, first)| (first.wrapping_sub(id) as i32) > 0) {
                return Ok(Cursor { number, rowid: i64::MIN });
            }
        }
        Ok(Cursor { number: current, rowid: i64::MAX })
    }

    /// Runs `work` with a database open, on the message log's thread where that one writes to it, which `work` is told.
    /// It returns how many bytes of the WAL it has filled as well.
    fn change<T: Send + 'static>(
        &self,
        number: u64,
        work: impl Fn(&Connection, bool) -> rusqlite::Result<(T, u64)> + Clone + Send + 'static,
    ) -> Result<Option<T>> {
        let on_current = work.clone();
        let done = self.on_writer(move |store| {
            let (db, writes_to) = store.current();
            if writes_to != number {
                return Ok(None);
            }
            let (done, bytes) = on_current(db, true)?;
            store.wrote(bytes);
            store.checkpoint()?;
            Ok::<_, rusqlite::Error>(Some(done))
        })??;
        match done {
            None => Ok(self.open(number, |db| work(db, false))?.map(|(done, _)| done)),
            done => Ok(done),
        }
    }

    /// Removes a rotated database whole and says how many records it had; nothing when it is the current one.
    fn delete_whole(&self, number: u64) -> Result<Option<u64>> {
        if number == self.log_files.read().current() {
            return Ok(None);
        }
        let count = self.open(number, |db| db.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)))?;
        self.log_files.write().remove(number);
        Ok(Some(count.map_or(0, |count: i64| count as u64)))
    }

    /// Gives the space of deleted rows back, in short steps.
    fn reclaim(&self, number: u64) -> Result<()> {
        let step = |db: &Connection, is_current: bool| {
            let more = give_back(db)?;
            let empty = db.query_row("SELECT 1 FROM messages LIMIT 1", [], |_| Ok(())).optional()?.is_none();
            Ok(((more, empty && !is_current), u64::from(RECLAIM) * 3 * 4120))
        };
        while let Some((more, removable)) = self.change(number, step)? {
            if removable {
                self.log_files.write().remove(number);
            }
            if !more || removable {
                break;
            }
        }
        // The file shrinks with the checkpoint.
        self.on_writer(move |store| {
            if store.current().1 == number {
                store.wrote(u64::MAX / 2);
                return store.checkpoint();
            }
            Ok(())
        })??;
        Ok(())
    }
}

/// Deletes rows in one transaction; says how many, and about how many bytes of WAL that took.
fn delete(db: &Connection, rows: &[i64]) -> rusqlite::Result<(u64, u64)> {
    let before: i64 = db.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    let transaction = db.unchecked_transaction()?;
    let mut count = 0;
    {
        let mut delete = transaction.prepare_cached("DELETE FROM messages WHERE rowid = ?1")?;
        for rowid in rows {
            count += delete.execute(params![rowid])? as u64;
        }
    }
    transaction.commit()?;
    let after: i64 = db.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    // At worst every row stood on a page of its own.
    Ok((count, (count + (after - before).unsigned_abs()) * 4120))
}

/// Gives some free pages back; says whether there are more.
fn give_back(db: &Connection) -> rusqlite::Result<bool> {
    let mut step = db.prepare(&format!("PRAGMA incremental_vacuum({RECLAIM})"))?;
    let mut rows = step.query([])?;
    // Each row that is asked for gives one page back.
    while rows.next()?.is_some() {}
    let free: i64 = db.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    Ok(free > 0)
}
