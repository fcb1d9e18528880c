//! The database that is written to: rows, ids, size, rotation.
//!
//! Used by the message log's thread alone. Every transaction is bounded, so that the database and its WAL
//! together never grow past their limit: before it begins there is room for it in both, or the
//! database is rotated.

use super::batch::{Batch, Fate};
use super::log_files::LogFiles;
use super::rows::{self, Rows};
use crate::storage::sqlite::{self, Fault, Format, beside, fault, fault_of};
use crate::storage::upload_queue::{IdCheckpoint, Kind, Records, UploadQueue};
use anyhow::{Context, Result, anyhow};
use jscommon::{LevelSet, NodeId};
use rusqlite::{Connection, OpenFlags, OptionalExtension, ffi};
use serde::Serialize;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// What a row takes beside its texts, at most.
const ROW: usize = 40;
/// A text that is longer than this can leave a page half empty.
const OVERFLOW: usize = 900;

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
    batch: usize,
    /// Its first message that is not stored.
    message: usize,
    /// The first message that has not been given to the upload queue.
    forwarded: (usize, usize),
    /// The id of the first message that has none yet: the others follow in their order, however often and
    /// in whatever pieces they are tried.
    first: Option<u32>,
    /// One message in a transaction, so that one that is refused is found.
    one: bool,
    /// Messages that were left out for their level, or because they were refused.
    pub(super) left_out: u64,
}

impl Progress {
    /// The id of a message that has none yet.
    fn id(&self, batches: &[Batch], batch: usize, message: usize) -> u32 {
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
    /// levels there were. Call it once [`Store::advance_ids`] has given all of them their ids.
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
                let e = if self.has_no_room() { full().into() } else { e };
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
    /// one transaction or more, and moves `progress` on with each of them. What is to be forwarded goes into
    /// the upload queue in the same step, so that neither is done without the other; without `forward` that is
    /// left for later.
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
        let used = self.used()? + 16 * PAGE;
        Ok((self.rules.limit.saturating_sub(used) * 10 / 23) as usize)
    }

    /// Bytes of the database and its WAL.
    fn used(&self) -> rusqlite::Result<u64> {
        let pages: i64 = self.db.prepare_cached("PRAGMA page_count")?.query_row([], |row| row.get(0))?;
        let wal = std::fs::metadata(beside(&self.log_files.current(), "-wal")).map_or(0, |file| file.len());
        Ok(pages as u64 * PAGE + wal.max(self.wal_used))
    }

    /// Most bytes of a database that cannot be rotated: what it and the rotated ones may have together, less
    /// what those have.
    fn held_limit(&self) -> u64 {
        let free = self.rules.keep.saturating_sub(self.log_files.read().rotated());
        self.rules.limit.saturating_mul(free as u64 + 1)
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
        let _alone = self.log_files.write();
        let sql = "PRAGMA wal_checkpoint(PASSIVE)";
        let (log, done): (i64, i64) = self.db.query_row(sql, [], |row| Ok((row.get(1)?, row.get(2)?)))?;
        // Another program that reads can hold a part of it back.
        self.wal_used = if log == done { 0 } else { log as u64 * (PAGE + 24) };
        Ok(())
    }

    /// Makes `current.db` a rotated database and begins a new one; says whether it did. Where the file
    /// cannot be renamed (another program has it open, say), it grows into the room of the rotated ones, and the
    /// rotation is tried again with growing pauses.
    fn rotate(&mut self) -> Result<bool> {
        if self.rotate_again.is_some_and(|(at, _)| at > Instant::now()) {
            return Ok(false);
        }
        let path = self.log_files.current();
        let log_files = Arc::clone(&self.log_files);
        let mut layout = log_files.write();
        let truncated = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(e) = truncated {
            log::debug!("{}: {e}", path.display());
        }
        self.close();
        let renamed = layout.rotate(now());
        drop(layout);
        match &renamed {
            Ok(()) => {
                if self.rotate_again.take().is_some() {
                    log::info!("{} was rotated", path.display());
                }
                self.keep();
            }
            Err(e) => {
                let pause = self.rotate_again.map_or(ROTATE_PAUSE.0, |(_, pause)| (pause * 2).min(ROTATE_PAUSE.1));
                if self.rotate_again.is_none() {
                    log::error!(
                        "{} cannot be renamed, and grows until it can or all databases have the size that they may have: {e}; is it open in another program?",
                        path.display()
                    );
                }
                self.rotate_again = Some((Instant::now() + pause, pause));
            }
        }
        // One that is held was looked through before, and would be read whole at each try.
        self.begin(if renamed.is_ok() { Look::Usual } else { Look::Nothing })?;
        self.write_mark();
        Ok(renamed.is_ok())
    }

    /// Closes the database, so that its file can be renamed on every system.
    fn close(&mut self) {
        if let Ok(empty) = Connection::open_in_memory() {
            self.db = empty;
            self.is_open = false;
        }
    }

    /// Removes what is more than may be kept.
    fn keep(&self) {
        let mut layout = self.log_files.write();
        while layout.rotated() > self.rules.keep {
            layout.drop_oldest();
        }
    }

    /// Removes the oldest rotated database; says whether there was one.
    pub(super) fn drop_oldest(&self) -> bool {
        self.log_files.write().drop_oldest()
    }

    /// Looks at a database that seems damaged, and sets it aside where it is; a new one begins when it is the
    /// current one. Says whether it was damaged.
    pub(super) fn examine(&mut self, number: u64, error: &anyhow::Error) -> Result<bool> {
        let current = self.log_files.read().current();
        let Some(path) = self.log_files.read().path(number).filter(|_| number <= current) else { return Ok(false) };
        log::debug!("{} seems damaged: {error:#}", path.display());
        if number == current {
            self.close();
            return self.begin(Look::Whole);
        }
        let looked = open(&path).and_then(|db| {
            rows::check(&db)?;
            sqlite::check(&db)
        });
        match looked {
            Ok(()) => Ok(false),
            Err(e) if fault(&e) == Fault::Damaged => self.rename_damaged(number, &e.into()).map(|()| true),
            Err(e) => Err(anyhow!(e).context(format!("{} cannot be read", path.display()))),
        }
    }

    fn rename_damaged(&self, number: u64, error: &anyhow::Error) -> Result<()> {
        let mut layout = self.log_files.write();
        let path = layout.path(number).unwrap_or_default();
        let aside = layout
            .set_aside(number, now())
            .with_context(|| format!("{} is damaged and cannot be set aside", path.display()))?;
        if let Some(aside) = aside {
            log::error!("{} is damaged ({error:#}); it is set aside as {}", path.display(), aside.display());
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
        (&self.db, self.log_files.read().current())
    }

    /// Notes that something else than `write` has filled the WAL by about so many bytes.
    pub(super) fn wrote(&mut self, bytes: u64) {
        self.wal_used += bytes;
    }
}

/// The id that is so many after this one; ids are 1 to 4294967295 and begin again. None at all is 0.
fn nth(id: u32, count: u64) -> u32 {
    match u64::from(id) + count {
        0 => 0,
        id => ((id - 1) % u64::from(u32::MAX) + 1) as u32,
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

/// The time, in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
