//! The database that is written to: rows, ids, size, rotation.
//!
//! Used by the message log's thread alone. Every transaction is bounded, so that the database and its WAL
//! together never grow past their limit: before it begins there is room for it in both, or the
//! database is rotated.

mod rotation;

use super::batch::Batch;
use super::log_files::LogFiles;
use super::progress::{PAGE, Progress, ROW, WriteError, first, nth, remaining, size};
use super::rows::{self, Rows};
use crate::storage::sqlite::{self, Format, beside};
use crate::storage::upload_queue::{IdCheckpoint, Kind, Records, UploadQueue};
use anyhow::{Context, Result};
use jscommon::{LevelSet, NodeId};
use rusqlite::{Connection, OpenFlags, ffi};
use serde::Serialize;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A database up to this size is looked through whenever it is opened.
const CHECKED: u64 = 32 << 20;

/// Space can be given back only where a database was made for it.
const FORMAT: Format = Format {
    busy_timeout: Duration::from_secs(5),
    pragmas: "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;
        PRAGMA cache_size=-256; PRAGMA temp_store=MEMORY",
    schema: "CREATE TABLE IF NOT EXISTS messages(id INTEGER, jobid TEXT, jobdomain TEXT, jobname TEXT,
        epoch INTEGER, level INTEGER, data TEXT)",
};

/// The first pause between two tries of a rotation that failed, and the longest.
const ROTATE_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The settings of the writer; they do not change.
pub(super) struct Rules {
    /// Most bytes of a database with its WAL.
    pub(super) limit: u64,
    /// Rotated databases that are kept.
    pub(super) keep: usize,
    /// The node that the records belong to.
    pub(super) node: NodeId,
}

/// The database that is written to.
pub(super) struct Store {
    log_files: Arc<LogFiles>,
    upload_queue: Arc<UploadQueue>,
    rules: Rules,
    db: Connection,
    /// `db` is `current.db`, and not a placeholder for a file that could not be opened.
    is_open: bool,
    /// A rotation that failed is tried again then, after a pause of so long.
    rotate_again: Option<(Instant, Duration)>,
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
    pub(super) fn open(log_files: Arc<LogFiles>, upload_queue: Arc<UploadQueue>, rules: Rules) -> Result<Store> {
        let mut store = Store {
            log_files,
            upload_queue,
            rules,
            db: Connection::open_in_memory()?,
            is_open: false,
            rotate_again: None,
            last: 0,
            next: 1,
            wal_used: 0,
            records: Records::default(),
        };
        let damaged = store.begin(Look::Usual)?;
        store.find_ids(damaged);
        store.keep();
        Ok(store)
    }

    /// Opens or makes `current.db`; says whether a damaged one had to be set aside for it.
    fn begin(&mut self, look: Look) -> Result<bool> {
        let path = self.log_files.current();
        let number = self.log_files.read().current();
        let set_aside = |fault: &anyhow::Error| self.rename_damaged(number, fault);
        match sqlite::open_or_replace(|| Ok(connect(&path, look)?), sqlite::is_damaged, set_aside) {
            Ok((db, aside)) => {
                (self.db, self.is_open, self.wal_used) = (db, true, 0);
                Ok(aside.is_some())
            }
            Err(e) => {
                // Only SQLite's errors can mean a lack of room; a failure to set a damaged one aside does not.
                let e = if e.is::<rusqlite::Error>() && self.has_no_room() { full().into() } else { e };
                Err(e).with_context(|| format!("{} cannot be opened", path.display()))
            }
        }
    }

    /// Opens `current.db` where it is not open; says whether a damaged one had to be set aside for it.
    pub(super) fn ensure_open(&mut self) -> Result<bool> {
        match self.is_open {
            true => Ok(false),
            false => self.begin(Look::Whole),
        }
    }

    /// The files. For tests.
    #[cfg(test)]
    pub(super) fn log_files(&self) -> &LogFiles {
        &self.log_files
    }

    /// Whether there is a database to write to.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Why there is no room for messages.
    pub(super) fn why_full(&self) -> &'static str {
        match self.rotate_again {
            Some(_) => "the database of records is open in another program and cannot be rotated",
            None => "the disk was full",
        }
    }

    /// Whether no file can be made for want of room: SQLite only says that it could not open one.
    fn has_no_room(&self) -> bool {
        let probe = beside(&self.log_files.current(), "-probe");
        let made = std::fs::File::create(&probe);
        let _ = std::fs::remove_file(&probe);
        made.is_err_and(|e| matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }

    /// Where ids go on: after the last row that is stored, or where the upload queue says when it knows of more.
    fn find_ids(&mut self, damaged: bool) {
        let mark = self.upload_queue.mark();
        self.last = self.last_id();
        let stored = nth(self.last, 1);
        self.next = match mark {
            Some(mark) if mark.last == self.last || self.last == 0 => mark.next,
            // The rows that knew better are gone; ids that were never given are better than ids given twice.
            Some(mark) if damaged => mark.next.wrapping_add(1 << 16),
            // Records were forwarded whose rows were not stored when the agent died. Counted around the wrap.
            Some(mark) if (mark.next.wrapping_sub(stored) as i32) > 0 => mark.next,
            _ => stored,
        }
        .max(1);
    }

    /// The id of the newest row of all databases, 0 when there is none.
    fn last_id(&self) -> u32 {
        let layout = self.log_files.read();
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
        self.upload_queue.set_mark(IdCheckpoint { last: self.last, next: self.next });
    }

    /// Stores the messages that `progress` has not reached yet, of those levels that `allowed` has, in
    /// one transaction or more, and moves `progress` on with each of them. Messages to forward go into the upload
    /// queue in the same step, so that neither is done without the other. Without `forward` they are left for
    /// later.
    pub(super) fn write(
        &mut self,
        batches: &[Batch],
        progress: &mut Progress,
        allowed: LevelSet,
        forward: bool,
    ) -> std::result::Result<(), WriteError> {
        progress.first.get_or_insert(self.next);
        self.ensure_open().map_err(WriteError::Store)?;
        if !self.db.is_autocommit() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        while progress.batch < batches.len() {
            let mut budget = self.budget()?;
            let needed = self.transaction().min(remaining(batches, *progress)).max(first(batches, *progress));
            if budget < needed && !self.is_empty()? {
                if self.rotate().map_err(WriteError::Store)? {
                    budget = self.budget()?;
                } else if self.used()? > self.held_limit() {
                    return Err(held().into());
                } else {
                    budget = self.transaction();
                }
            }
            let budget = if progress.one { 1 } else { budget.clamp(1, self.transaction()) };
            let mut reached = *progress;
            let done = self.write_some(batches, &mut reached, allowed, budget, forward);
            if let Err(e) = done {
                self.records.clear();
                progress.forwarded = reached.forwarded;
                if !self.db.is_autocommit() {
                    let _ = self.db.execute_batch("ROLLBACK");
                }
                return Err(e);
            }
            *progress = reached;
            self.log_files.followers.wake();
            self.checkpoint()?;
        }
        self.advance_ids(batches, progress);
        Ok(())
    }

    /// Ids go on after those of all these messages, stored or not.
    pub(super) fn advance_ids(&mut self, batches: &[Batch], progress: &Progress) {
        if progress.first.is_some() {
            self.next = progress.id(batches, batches.len(), 0);
        }
    }

    /// Gives to the upload queue what `progress` has not reached there, while nothing can be stored here.
    pub(super) fn forward(&mut self, batches: &[Batch], progress: &mut Progress, allowed: LevelSet) -> Result<()> {
        progress.first.get_or_insert(self.next);
        if !self.upload_queue.wanted(Kind::Log) {
            return Ok(());
        }
        let (mut b, mut n) = progress.forwarded;
        while b < batches.len() {
            self.records.clear();
            let mut id = progress.id(batches, b, n);
            while let Some(batch) = batches.get(b)
                && self.records.bytes() < self.transaction()
            {
                while let Some((level, text)) = batch.message(n) {
                    let fate = batch.fate(n);
                    let own = fate.map_or(id, |fate| fate.id);
                    if fate.is_none() {
                        id = nth(id, 1);
                    }
                    n += 1;
                    if allowed.contains(level)
                        && batch.source().ac.contains(level)
                        && fate.is_none_or(|fate| !fate.forwarded)
                    {
                        add(&mut self.records, self.rules.node, batch, own, level, text);
                    }
                }
                (b, n) = (b + 1, 0);
            }
            if !self.records.is_empty() {
                self.upload_queue.push_log(&self.records, IdCheckpoint { last: self.last, next: id })?;
            }
            progress.forwarded = (b, n);
        }
        self.records.clear();
        Ok(())
    }

    /// One transaction of at most `budget` bytes, but of one message at least.
    fn write_some(
        &mut self,
        batches: &[Batch],
        progress: &mut Progress,
        allowed: LevelSet,
        budget: usize,
        forward: bool,
    ) -> std::result::Result<(), WriteError> {
        let forward = forward && self.upload_queue.wanted(Kind::Log);
        let mut forwarded = progress.forwarded;
        let mut bytes = 0;
        let mut last = self.last;
        let mut next = progress.id(batches, progress.batch, progress.message);
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
                    let fate = batch.fate(progress.message);
                    progress.message += 1;
                    let id = fate.map_or(next, |fate| fate.id);
                    // One that is left out has its id all the same: another try must not give it away.
                    if fate.is_none() {
                        next = nth(next, 1);
                    }
                    if !allowed.contains(level) {
                        progress.left_out += 1;
                        continue;
                    }
                    if source.db.contains(level) && fate.is_none_or(|fate| !fate.stored) {
                        rows.add(id, level, text)?;
                        last = id;
                    }
                    if forward
                        && at >= forwarded
                        && source.ac.contains(level)
                        && fate.is_none_or(|fate| !fate.forwarded)
                    {
                        forwarded = (at.0, at.1 + 1);
                        add(&mut self.records, self.rules.node, batch, id, level, text);
                    }
                }
                rows.end()?;
                progress.batch += 1;
                progress.message = 0;
            }
        }
        let reached = (progress.batch, progress.message);
        if !self.records.is_empty() {
            // The upload queue comes first: a record that is stored here is never missing there.
            let mark = IdCheckpoint { last, next };
            self.upload_queue.push_log(&self.records, mark).map_err(WriteError::UploadQueue)?;
            self.records.clear();
        }
        if forward {
            progress.forwarded = progress.forwarded.max(reached);
        }
        self.db.prepare_cached("COMMIT")?.execute([])?;
        self.last = last;
        self.wal_used += bytes as u64 + bytes as u64 / 8 + 6 * PAGE;
        Ok(())
    }

    /// Gives back the memory that a burst of records has left behind.
    pub(super) fn rest(&mut self) {
        self.records = Records::default();
        let _ = self.db.execute_batch("PRAGMA shrink_memory");
    }

    /// The database that is written to, and its number.
    pub(super) fn current(&self) -> (&Connection, u64) {
        (&self.db, self.log_files.read().current())
    }

    /// Notes that something else than `write` has filled the WAL by about so many bytes.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.wal_used += bytes;
    }
}

/// Adds a record as it travels.
fn add(records: &mut Records, node: NodeId, batch: &Batch, id: u32, level: u8, text: &str) {
    let source = batch.source();
    let wire = Wire {
        id,
        jobid: &source.jobid,
        jobdomain: &source.domain,
        jobname: &source.name,
        epoch: batch.epoch(),
        level,
        data: text,
        gid: node.gid,
        nid: node.nid,
    };
    records.add(|json| {
        let _ = serde_json::to_writer(json, &wire);
    });
}

/// The error of a database that cannot be rotated, once there is no room for more in it.
fn held() -> rusqlite::Error {
    let why = "current.db cannot be rotated, and there is no room for more in it";
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), Some(why.to_owned()))
}

/// The error of a disk that is full.
fn full() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None)
}

/// How much of a database is looked through for damage when it is opened.
#[derive(Clone, Copy, PartialEq)]
enum Look {
    Nothing,
    /// All of one that was not closed, or is small; a large one that was closed is only found damaged when it
    /// is read, for a start must not wait.
    Usual,
    Whole,
}

/// Opens or makes a database for writing.
fn connect(path: &Path, look: Look) -> rusqlite::Result<Connection> {
    let small = std::fs::metadata(path).map_or(0, |file| file.len()) <= CHECKED;
    let unclean = beside(path, "-wal").exists();
    let db = FORMAT.open(path, look == Look::Whole || look == Look::Usual && (small || unclean))?;
    rows::check(&db)?;
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
