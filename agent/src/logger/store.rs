//! The database that is written to: rows, ids, size, rotation.
//!
//! Used by the logger's thread alone. Every transaction is bounded, so that the database and its WAL
//! together never grow past their limit: before it begins there is room for it in both, or the
//! database is rotated.

use super::batch::Batch;
use super::rows::{self, Rows};
use super::shelf::{Shelf, beside};
use crate::outbox::{Kind, Mark, Outbox, Records};
use anyhow::{Context, Result};
use jscommon::{LevelSet, NodeId};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// What a row takes beside its texts, at most.
const ROW: usize = 40;
/// A text that is longer than this can leave a page half empty.
const OVERFLOW: usize = 900;

/// A database up to this size is looked through whenever it is opened.
const CHECKED: u64 = 32 << 20;

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS messages(id INTEGER, jobid TEXT, jobdomain TEXT, jobname TEXT,
    epoch INTEGER, level INTEGER, data TEXT)";

/// What an error of SQLite means for a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The disk is full.
    Full,
    /// The file is no good database.
    Damaged,
    /// Another program holds a lock.
    Busy,
    /// Anything else.
    Other,
}

/// What this error means.
pub(super) fn fault(error: &rusqlite::Error) -> Fault {
    let rusqlite::Error::SqliteFailure(e, _) = error else {
        // Our own statements do not fit: the file is some other database.
        return if matches!(error, rusqlite::Error::SqlInputError { .. }) { Fault::Damaged } else { Fault::Other };
    };
    match (e.code, e.extended_code) {
        (ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => Fault::Full,
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown, _) => Fault::Damaged,
        (_, ffi::SQLITE_IOERR_SHORT_READ) => Fault::Damaged,
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => Fault::Busy,
        _ => Fault::Other,
    }
}

/// How far a list of batches has been stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Progress {
    /// The first batch that is not stored whole.
    batch: usize,
    /// Its first message that is not stored.
    message: usize,
    /// The first message that has not been given to the outbox.
    forwarded: (usize, usize),
    /// Messages that were left out for their level.
    pub(super) left_out: u64,
}

impl Progress {
    /// Messages that are not stored, those that were left out among them.
    pub(super) fn lost(&self, batches: &[Batch]) -> u64 {
        let ahead: usize = batches[self.batch.min(batches.len())..].iter().map(Batch::len).sum();
        self.left_out + (ahead - self.message.min(ahead)) as u64
    }
}

/// What the writer is told once.
pub(super) struct Rules {
    /// Most bytes of a database with its WAL.
    pub(super) limit: u64,
    /// Rotated databases that are kept.
    pub(super) keep: usize,
    /// Whose records they are.
    pub(super) node: NodeId,
}

/// The database that is written to.
pub(super) struct Store {
    shelf: Arc<Shelf>,
    outbox: Arc<Outbox>,
    rules: Rules,
    db: Connection,
    /// The id of the last stored row, 0 when there is none at all.
    last: u32,
    /// The id that the next row gets.
    next: u32,
    /// Bytes of the WAL that are in use, as far as can be told without asking.
    wal_used: u64,
    records: Records,
}

/// A record as it travels.
#[derive(Serialize)]
struct Wire<'a> {
    id: u32,
    jobid: &'a str,
    jobdomain: &'a str,
    jobname: &'a str,
    epoch: i64,
    level: u8,
    data: &'a str,
    gid: u32,
    nid: u32,
}

impl Store {
    /// Opens `current.db`; a damaged one is set aside.
    pub(super) fn open(shelf: Arc<Shelf>, outbox: Arc<Outbox>, rules: Rules) -> Result<Store> {
        let mut store = Store {
            shelf,
            outbox,
            rules,
            db: Connection::open_in_memory()?,
            last: 0,
            next: 1,
            wal_used: 0,
            records: Records::default(),
        };
        let damaged = store.begin()?;
        store.find_ids(damaged);
        store.keep();
        Ok(store)
    }

    /// Opens or makes `current.db`; says whether a damaged one had to be set aside for it.
    fn begin(&mut self) -> Result<bool> {
        let path = self.shelf.current();
        let mut damaged = false;
        loop {
            match connect(&path) {
                Ok(db) => {
                    self.db = db;
                    self.wal_used = 0;
                    return Ok(damaged);
                }
                Err(e) if !damaged && fault(&e) == Fault::Damaged => {
                    damaged = true;
                    let number = self.shelf.read().current();
                    self.rename_damaged(number, &e)?;
                }
                Err(e) => return Err(e).with_context(|| format!("{} cannot be opened", path.display())),
            }
        }
    }

    /// Where ids go on: after the last row that is stored, or where the outbox says when it knows of more.
    fn find_ids(&mut self, damaged: bool) {
        let mark = self.outbox.mark();
        self.last = self.last_id();
        self.next = match mark {
            Some(mark) if mark.last == self.last || self.last == 0 => mark.next,
            // The rows that knew better are gone; ids that were never given are better than ids given twice.
            Some(mark) if damaged => mark.next.wrapping_add(1 << 16),
            _ => after(self.last),
        }
        .max(1);
    }

    /// The id of the newest row of all databases, 0 when there is none.
    fn last_id(&self) -> u32 {
        let layout = self.shelf.read();
        let sql = "SELECT id FROM messages ORDER BY rowid DESC LIMIT 1";
        let id = |db: &Connection| db.query_row(sql, [], |row| row.get::<_, i64>(0)).ok();
        if let Some(id) = id(&self.db) {
            return id as u32;
        }
        let rotated = (layout.oldest()..layout.current()).rev().filter_map(|number| layout.path(number));
        rotated.filter_map(|path| id(&open(&path).ok()?)).next().unwrap_or(0) as u32
    }

    /// Writes down where the ids stand, for the next start.
    pub(super) fn write_mark(&mut self) {
        self.last = self.last_id();
        self.outbox.set_mark(Mark { last: self.last, next: self.next });
    }

    /// Stores the messages that `progress` has not reached yet, of those levels that `allowed` has, in
    /// one transaction or more, and moves `progress` on with each of them.
    pub(super) fn write(
        &mut self,
        batches: &[Batch],
        progress: &mut Progress,
        allowed: LevelSet,
    ) -> rusqlite::Result<()> {
        if !self.db.is_autocommit() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        while progress.batch < batches.len() {
            let mut budget = self.budget()?;
            let needed = self.transaction().min(remaining(batches, *progress)).max(first(batches, *progress));
            if budget < needed && !self.is_empty()? {
                self.rotate();
                budget = self.budget()?;
            }
            let mut reached = *progress;
            let next = self.next;
            let done = self.write_some(batches, &mut reached, allowed, budget.clamp(1, self.transaction()));
            if let Err(e) = done {
                self.next = next;
                self.records.clear();
                progress.forwarded = reached.forwarded;
                if !self.db.is_autocommit() {
                    let _ = self.db.execute_batch("ROLLBACK");
                }
                return Err(e);
            }
            *progress = reached;
            self.checkpoint()?;
        }
        Ok(())
    }

    /// One transaction of at most `budget` bytes, but of one message at least.
    fn write_some(
        &mut self,
        batches: &[Batch],
        progress: &mut Progress,
        allowed: LevelSet,
        budget: usize,
    ) -> rusqlite::Result<()> {
        let forward = self.outbox.wanted(Kind::Log);
        let mut forwarded = progress.forwarded;
        let mut bytes = 0;
        let mut last = self.last;
        {
            self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            let mut rows = Rows::new(&self.db)?;
            'all: while let Some(batch) = batches.get(progress.batch) {
                let source = batch.source();
                let fixed = source.jobid.len() + source.domain.len() + source.name.len() + ROW;
                rows.begin(batch);
                while let Some((level, text)) = batch.message(progress.message) {
                    let size = fixed + size(text);
                    if bytes > 0 && bytes + size > budget {
                        rows.end()?;
                        break 'all;
                    }
                    bytes += size;
                    let at = (progress.batch, progress.message);
                    progress.message += 1;
                    if !allowed.contains(level) {
                        progress.left_out += 1;
                        continue;
                    }
                    let id = self.next;
                    self.next = after(id);
                    if source.db.contains(level) {
                        rows.add(id, level, text)?;
                        last = id;
                    }
                    if forward && at >= forwarded && source.ac.contains(level) {
                        forwarded = (at.0, at.1 + 1);
                        let NodeId { gid, nid } = self.rules.node;
                        let wire = Wire {
                            id,
                            jobid: &source.jobid,
                            jobdomain: &source.domain,
                            jobname: &source.name,
                            epoch: batch.epoch(),
                            level,
                            data: text,
                            gid,
                            nid,
                        };
                        self.records.add(|json| {
                            let _ = serde_json::to_writer(json, &wire);
                        });
                    }
                }
                rows.end()?;
                progress.batch += 1;
                progress.message = 0;
            }
        }
        if !self.records.is_empty() {
            // The outbox comes first: a record that is stored here is never missing there.
            self.outbox.push_log(&self.records, Mark { last, next: self.next });
            self.records.clear();
            progress.forwarded = forwarded;
        }
        self.db.prepare_cached("COMMIT")?.execute([])?;
        self.last = last;
        self.wal_used += bytes as u64 + bytes as u64 / 8 + 6 * PAGE;
        Ok(())
    }

    /// Most bytes of one transaction.
    fn transaction(&self) -> usize {
        (self.wal_limit() / 4).min(512 << 10) as usize
    }

    /// The size that the WAL may reach before it is written into the database.
    fn wal_limit(&self) -> u64 {
        (self.rules.limit / 24).clamp(64 << 10, 4 << 20)
    }

    /// Bytes of rows that still fit below the limit: each takes its place in the WAL and in the database.
    fn budget(&self) -> rusqlite::Result<usize> {
        let pages: i64 = self.db.prepare_cached("PRAGMA page_count")?.query_row([], |row| row.get(0))?;
        let wal = std::fs::metadata(beside(&self.shelf.current(), "-wal")).map_or(0, |file| file.len());
        let used = pages as u64 * PAGE + wal.max(self.wal_used) + 16 * PAGE;
        Ok((self.rules.limit.saturating_sub(used) * 10 / 23) as usize)
    }

    fn is_empty(&self) -> rusqlite::Result<bool> {
        let mut any = self.db.prepare_cached("SELECT 1 FROM messages LIMIT 1")?;
        Ok(any.query_row([], |_| Ok(())).optional()?.is_none())
    }

    /// Writes the WAL into the database once it is long enough; then it begins again from its start.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        if self.wal_used < self.wal_limit() {
            return Ok(());
        }
        let _alone = self.shelf.write();
        let sql = "PRAGMA wal_checkpoint(PASSIVE)";
        let (log, done): (i64, i64) = self.db.query_row(sql, [], |row| Ok((row.get(1)?, row.get(2)?)))?;
        // Another program that reads can hold a part of it back.
        self.wal_used = if log == done { 0 } else { log as u64 * (PAGE + 24) };
        Ok(())
    }

    /// Makes `current.db` a rotated database and begins a new one.
    fn rotate(&mut self) {
        let path = self.shelf.current();
        let shelf = Arc::clone(&self.shelf);
        let mut layout = shelf.write();
        let truncated = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(e) = truncated {
            log::debug!("{}: {e}", path.display());
        }
        self.close();
        if let Err(e) = layout.rotate(now()) {
            log::error!("{} cannot be renamed, and grows past its limit: {e}", path.display());
        }
        drop(layout);
        self.keep();
        if let Err(e) = self.begin() {
            // The next write fails, and says so.
            log::error!("{e:#}");
        }
        self.write_mark();
    }

    /// Closes the database, so that its file can be renamed on every system.
    fn close(&mut self) {
        if let Ok(empty) = Connection::open_in_memory() {
            self.db = empty;
        }
    }

    /// Removes what is more than may be kept.
    fn keep(&self) {
        let mut layout = self.shelf.write();
        while layout.rotated() > self.rules.keep {
            layout.drop_oldest();
        }
    }

    /// Removes the oldest rotated database; says whether there was one.
    pub(super) fn drop_oldest(&self) -> bool {
        self.shelf.write().drop_oldest()
    }

    /// Sets a damaged database aside; a new one begins when it is the current one. Says whether it was there.
    pub(super) fn set_aside(&mut self, number: u64, error: &rusqlite::Error) -> Result<bool> {
        let current = self.shelf.read().current();
        if number > current || self.shelf.read().path(number).is_none() {
            return Ok(false);
        }
        if number == current {
            self.close();
            self.rename_damaged(number, error)?;
            self.begin()?;
        } else {
            self.rename_damaged(number, error)?;
        }
        Ok(true)
    }

    fn rename_damaged(&self, number: u64, error: &rusqlite::Error) -> Result<()> {
        let mut layout = self.shelf.write();
        let path = layout.path(number).unwrap_or_default();
        let aside = layout
            .set_aside(number, now())
            .with_context(|| format!("{} is damaged and cannot be set aside", path.display()))?;
        if let Some(aside) = aside {
            log::error!("{} is damaged ({error}); it is set aside as {}", path.display(), aside.display());
        }
        Ok(())
    }

    /// Gives back the memory that a burst of records has left behind.
    pub(super) fn rest(&mut self) {
        self.records = Records::default();
        let _ = self.db.execute_batch("PRAGMA shrink_memory");
    }

    /// The database that is written to, and its number.
    pub(super) fn current(&self) -> (&Connection, u64) {
        (&self.db, self.shelf.read().current())
    }

    /// Notes that something else than `write` has filled the WAL by about so many bytes.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.wal_used += bytes;
    }
}

/// The id after this one; ids are 1 to 4294967295 and begin again.
fn after(id: u32) -> u32 {
    id.checked_add(1).unwrap_or(1)
}

/// Bytes of text and rows that are still to be stored.
fn remaining(batches: &[Batch], progress: Progress) -> usize {
    batches[progress.batch..].iter().map(|batch| batch.weight() + batch.len() * ROW).sum()
}

/// Bytes of the next message.
fn first(batches: &[Batch], progress: Progress) -> usize {
    batches[progress.batch].message(progress.message).map_or(0, |(_, text)| size(text) + ROW)
}

/// What a text takes: a long one has pages of its own.
fn size(text: &str) -> usize {
    text.len() + if text.len() > OVERFLOW { PAGE as usize } else { 0 }
}

/// Opens or makes a database for writing. One that was not closed, or is small, is looked through for
/// damage; a large one that was closed is only found damaged when it is read, for a start must not wait.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let small = std::fs::metadata(path).map_or(0, |file| file.len()) <= CHECKED;
    let unclean = beside(path, "-wal").exists();
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(5))?;
    // Space can be given back only where a database was made for it.
    db.execute_batch(
        "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
         PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-256; PRAGMA temp_store=MEMORY;",
    )?;
    db.execute_batch(SCHEMA)?;
    rows::check(&db)?;
    if !small && !unclean {
        return Ok(db);
    }
    let check: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(check)));
    }
    Ok(db)
}

/// Opens a database that is there, for a look or a deletion.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.execute_batch("PRAGMA synchronous=NORMAL; PRAGMA cache_size=-512;")?;
    Ok(db)
}

/// The time, in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
