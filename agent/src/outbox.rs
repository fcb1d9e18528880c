//! The outbox: batches of records, stats and events on disk, until a controller has taken them.
//!
//! **Owns** `outbox.db`, the numbers of batches, and the bounds: 64 MiB of records, an hour of stats,
//! 1000 events. What goes over a bound is dropped, oldest first, and counted; the count goes to the
//! controllers as an event once they are back.
//!
//! **Does not** send: every controller's sender asks for its next batch and says what became of it.
//! The logger and the aggregator fill it. The logger also keeps its [`Mark`] here, so that ids go on
//! after its own database is lost.
//!
//! Invariants: a batch that was handed out once never changes, so a repeated number is the same batch;
//! numbers begin at the clock (ms) at every start, so they count up even when the disk is lost.

use crate::config::Config;
use anyhow::{Context, Result};
use crossbeam_channel::Sender;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(test)]
mod tests;

/// The file below `data_dir`.
pub const FILE: &str = "outbox.db";

/// Most bytes of records, as JSON.
const MAX_LOG_BYTES: u64 = 64 << 20;
/// Most bytes of one batch of records: far below the 16 MiB that a controller takes.
const MAX_BATCH_BYTES: usize = 2 << 20;
/// How long stats are kept, in milliseconds.
const MAX_STATS_AGE: i64 = 3_600_000;
/// Most bytes of stats, as JSON; an hour of 50,000 series.
const MAX_STATS_BYTES: u64 = 128 << 20;
/// Most events of one controller.
const MAX_EVENTS: u32 = 1000;
/// Pages that are given back to the file system at one time.
const RECLAIM_PAGES: u32 = 256;

/// What a batch holds; each kind has its own path at the controller and its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Records, `POST /{gid}/{nid}/log`.
    Log = 0,
    /// Series, `POST /{gid}/{nid}/stats`.
    Stats = 1,
    /// One event, `POST /{gid}/{nid}/event`.
    Event = 2,
}

/// One batch, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its number; it counts up over the node's life.
    pub number: u64,
    /// The whole JSON body of the request.
    pub body: Vec<u8>,
}

/// Records as JSON objects, with a comma between each two.
#[derive(Debug, Default)]
pub struct Records {
    json: Vec<u8>,
    ends: Vec<usize>,
}

impl Records {
    /// Adds one record through `write`, which appends its JSON object.
    pub fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.is_empty() {
            self.json.push(b',');
        }
        write(&mut self.json);
        self.ends.push(self.json.len());
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of JSON.
    pub fn bytes(&self) -> usize {
        self.json.len()
    }

    /// Forgets them, and keeps the memory.
    pub fn clear(&mut self) {
        self.json.clear();
        self.ends.clear();
    }
}

/// Where the ids of records stand: after the record `last`, `next` comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The id of the last record that is stored, 0 when none is.
    pub last: u32,
    /// The id that the next record gets.
    pub next: u32,
}

/// The batches of all controllers.
pub struct Outbox {
    path: PathBuf,
    /// Who gets records, and who gets stats.
    chosen: [Vec<String>; 2],
    /// Everybody; they get events.
    controllers: Vec<String>,
    batch_size: usize,
    flush_interval: Duration,
    inner: Mutex<Inner>,
}

struct Inner {
    db: Connection,
    /// The number that the next batch gets; as SQLite counts, so i64 throughout.
    number: i64,
    /// The batch of records that still grows.
    open: Option<Open>,
    /// Bytes that are stored, of records and of stats.
    bytes: [u64; 2],
    /// The last batch that a controller has taken.
    cursors: HashMap<(String, Kind), i64>,
    /// What was dropped and not yet reported, by kind.
    dropped: [u64; 3],
    wakers: HashMap<String, Sender<()>>,
    complained: Option<Instant>,
}

struct Open {
    number: i64,
    records: usize,
    bytes: usize,
    due: Instant,
}

impl Outbox {
    /// Opens `outbox.db` in the data folder; a damaged one is set aside.
    pub fn open(config: &Config) -> Result<Arc<Outbox>> {
        let path = config.main.data_dir.join(FILE);
        let inner = Inner::open(&path)?;
        Ok(Arc::new(Outbox {
            path,
            chosen: [config.chosen(&config.logging.ac.controllers), config.chosen(&config.stats.controllers)],
            controllers: config.controllers.keys().cloned().collect(),
            batch_size: config.logging.ac.batch_size.max(1),
            flush_interval: config.logging.ac.flush_interval,
            inner: Mutex::new(inner),
        }))
    }

    /// Whether any controller gets batches of this kind.
    pub fn wanted(&self, kind: Kind) -> bool {
        match kind {
            Kind::Event => !self.controllers.is_empty(),
            kind => !self.chosen[kind as usize].is_empty(),
        }
    }

    /// Stores records for the controllers, together with the mark that holds once they are in the
    /// logger's database too. They are sent when their batch is full or its time has come.
    pub fn push_log(&self, records: &Records, mark: Mark) {
        let mut inner = self.lock();
        let mut closed = false;
        let wrote = inner.transaction(|inner| {
            let (mut first, mut start) = (0, 0);
            while first < records.ends.len() {
                let open = inner.open_batch(self.flush_interval);
                let mut last = first;
                while last < records.ends.len()
                    && open.records + (last - first) < self.batch_size
                    && (last == first || open.bytes + records.ends[last] - start <= MAX_BATCH_BYTES)
                {
                    last += 1;
                }
                let (end, count) = (records.ends[last - 1], last - first);
                inner.add_piece(&records.json[start..end], count)?;
                if last < records.ends.len() || inner.is_full(self.batch_size) {
                    inner.open = None;
                    closed = true;
                }
                // The next piece begins behind the comma.
                (first, start) = (last, end + 1);
            }
            inner.put_mark(mark)
        });
        if let Err(e) = wrote {
            inner.lost(Kind::Log, records.len() as u64, &e);
            self.mend(&mut inner, &e);
        }
        inner.trim_log();
        if closed {
            inner.wake(&self.chosen[0]);
        }
    }

    /// When the batch of records that still grows must go.
    pub fn log_due(&self) -> Option<Instant> {
        self.lock().open.as_ref().map(|open| open.due)
    }

    /// Ends the batch of records that still grows.
    pub fn close_log(&self) {
        let mut inner = self.lock();
        if inner.open.take().is_some() {
            inner.wake(&self.chosen[0]);
        }
    }

    /// Stores a batch of series for the controllers; `timestamp` is in seconds since 1970.
    pub fn push_stats(&self, timestamp: i64, series: &[(String, f64)]) {
        if series.is_empty() || !self.wanted(Kind::Stats) {
            return;
        }
        let mut body = format!("\"timestamp\":{timestamp},\"series\":").into_bytes();
        if serde_json::to_writer(&mut body, series).is_err() {
            return;
        }
        let mut inner = self.lock();
        let wrote = inner.transaction(|inner| {
            let number = inner.next_number();
            inner.insert(Kind::Stats, number, "", 1, &body)
        });
        if let Err(e) = wrote {
            inner.lost(Kind::Stats, 1, &e);
            self.mend(&mut inner, &e);
        }
        inner.trim_stats();
        inner.wake(&self.chosen[1]);
    }

    /// Adds an event for one controller, or for all of them.
    pub fn push_event(&self, controller: Option<&str>, name: &str, data: Value) {
        let body = json!({"name": name, "data": data}).to_string();
        let to = match controller {
            Some(one) => vec![one.to_owned()],
            None => self.controllers.clone(),
        };
        let mut inner = self.lock();
        let wrote = inner.transaction(|inner| {
            for controller in &to {
                let number = inner.next_number();
                inner.insert(Kind::Event, number, controller, 1, body.as_bytes())?;
            }
            Ok(())
        });
        if let Err(e) = wrote {
            inner.lost(Kind::Event, to.len() as u64, &e);
            self.mend(&mut inner, &e);
        }
        for controller in &to {
            inner.trim_events(controller);
        }
        inner.wake(&to);
    }

    /// The oldest batch of this kind that the controller has not taken.
    pub fn next(&self, controller: &str, kind: Kind) -> Option<Batch> {
        if kind != Kind::Event && !self.chosen[kind as usize].iter().any(|name| name == controller) {
            return None;
        }
        let mut inner = self.lock();
        match inner.next(controller, kind) {
            Ok(batch) => batch,
            Err(e) => {
                inner.complain(&format!("{e:#}"));
                self.mend(&mut inner, &e);
                None
            }
        }
    }

    /// The controller has taken this batch (200).
    pub fn taken(&self, controller: &str, kind: Kind, number: u64) {
        let mut inner = self.lock();
        let others: Vec<String> = match kind {
            Kind::Event => Vec::new(),
            kind => self.chosen[kind as usize].clone(),
        };
        if let Err(e) = inner.transaction(|inner| inner.taken(controller, kind, number as i64, &others)) {
            inner.complain(&format!("{e:#}"));
            self.mend(&mut inner, &e);
        }
        inner.reclaim();
        let dropped = std::mem::take(&mut inner.dropped);
        drop(inner);
        // Whoever takes again is told what it will never see.
        for (kind, count) in [("log", dropped[0]), ("stats", dropped[1]), ("event", dropped[2])] {
            if count > 0 {
                self.push_event(None, "dropped", json!({"kind": kind, "count": count}));
            }
        }
    }

    /// The controller will never take this batch (400, 403, 413…): it is dropped and counted.
    pub fn refused(&self, controller: &str, kind: Kind, number: u64) {
        log::warn!("the controller {controller} refused batch {number} of {kind:?}; it is dropped");
        // An event about a refused event would be refused in its turn, for ever.
        if kind != Kind::Event {
            self.lock().dropped[kind as usize] += 1;
        }
        self.taken(controller, kind, number);
    }

    /// Has `wake` told (without waiting) whenever there is something new for this controller.
    pub fn waker(&self, controller: &str, wake: Sender<()>) {
        self.lock().wakers.insert(controller.to_owned(), wake);
    }

    /// Gives back the memory that SQLite keeps for the pages of every database of this process.
    ///
    /// The limit is the whole library's, and setting it lower than what is in use frees at once what no
    /// statement holds; after that it is off again, for each connection has its own bound.
    pub fn rest(&self) {
        let inner = self.lock();
        for limit in [1, 0] {
            let _ = inner.db.query_row(&format!("PRAGMA soft_heap_limit={limit}"), [], |_| Ok(()));
        }
    }

    /// Where the ids of records stood when it was last written down.
    pub fn mark(&self) -> Option<Mark> {
        let inner = self.lock();
        let found = inner.db.query_row("SELECT last, next FROM mark", [], |row| Ok((row.get(0)?, row.get(1)?)));
        found.ok().map(|(last, next)| Mark { last, next })
    }

    /// Writes down where the ids of records stand.
    pub fn set_mark(&self, mark: Mark) {
        let mut inner = self.lock();
        if let Err(e) = inner.transaction(|inner| inner.put_mark(mark)) {
            inner.complain(&format!("{e:#}"));
            self.mend(&mut inner, &e);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A damaged file is set aside and a new one begun; other errors pass.
    fn mend(&self, inner: &mut Inner, error: &anyhow::Error) {
        if !is_damage(error) {
            return;
        }
        // The old connection must be closed before its file can be renamed everywhere.
        match Connection::open_in_memory() {
            Ok(empty) => drop(std::mem::replace(&mut inner.db, empty)),
            Err(e) => return log::error!("outbox: {e}"),
        }
        set_aside(&self.path);
        match Inner::open(&self.path) {
            Ok(mut new) => {
                new.number = new.number.max(inner.number);
                new.dropped = inner.dropped;
                std::mem::swap(&mut new.wakers, &mut inner.wakers);
                *inner = new;
            }
            Err(e) => log::error!("outbox: {e:#}"),
        }
    }
}

impl Inner {
    fn open(path: &Path) -> Result<Inner> {
        match Inner::load(path) {
            Err(e) if is_damage(&e) => {
                set_aside(path);
                Inner::load(path)
            }
            other => other,
        }
        .with_context(|| format!("{} cannot be opened", path.display()))
    }

    fn load(path: &Path) -> Result<Inner> {
        let db = Connection::open(path)?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.execute_batch(
            "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;
             PRAGMA cache_size=-256; PRAGMA journal_size_limit=1048576;
             CREATE TABLE IF NOT EXISTS items(seq INTEGER PRIMARY KEY, kind INTEGER, batch INTEGER,
                controller TEXT, count INTEGER, created INTEGER, body BLOB);
             CREATE INDEX IF NOT EXISTS items_batch ON items(kind, controller, batch);
             CREATE TABLE IF NOT EXISTS cursors(controller TEXT, kind INTEGER, batch INTEGER,
                PRIMARY KEY(controller, kind));
             CREATE TABLE IF NOT EXISTS mark(one INTEGER PRIMARY KEY, last INTEGER, next INTEGER);",
        )?;
        let mut cursors = HashMap::new();
        let mut number = now();
        {
            let mut rows = db.prepare("SELECT controller, kind, batch FROM cursors")?;
            for row in rows.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))? {
                let (controller, kind, batch): (String, i64, i64) = row?;
                number = number.max(batch + 1);
                cursors.insert((controller, if kind == 0 { Kind::Log } else { Kind::Stats }), batch);
            }
        }
        let last: Option<i64> = db.query_row("SELECT max(batch) FROM items", [], |row| row.get(0))?;
        let size = |kind: Kind| -> rusqlite::Result<i64> {
            let sql = "SELECT coalesce(sum(length(body)), 0) FROM items WHERE kind = ?1";
            db.query_row(sql, [kind as i64], |row| row.get(0))
        };
        let bytes = [size(Kind::Log)? as u64, size(Kind::Stats)? as u64];
        number = number.max(last.map_or(0, |last| last + 1));
        Ok(Inner { db, number, open: None, bytes, cursors, dropped: [0; 3], wakers: HashMap::new(), complained: None })
    }

    /// Runs `work` in one transaction. When it fails nothing of it is stored, and no batch stays open.
    fn transaction(&mut self, work: impl FnOnce(&mut Inner) -> Result<()>) -> Result<()> {
        let bytes = self.bytes;
        let done = self.db.execute_batch("BEGIN IMMEDIATE").map_err(Into::into).and_then(|()| work(self));
        let done = done.and_then(|()| self.db.execute_batch("COMMIT").map_err(Into::into));
        if done.is_err() {
            if !self.db.is_autocommit() {
                let _ = self.db.execute_batch("ROLLBACK");
            }
            (self.bytes, self.open) = (bytes, None);
        }
        done
    }

    fn next_number(&mut self) -> i64 {
        self.number += 1;
        self.number - 1
    }

    fn open_batch(&mut self, flush_interval: Duration) -> &Open {
        if self.open.is_none() {
            let number = self.next_number();
            self.open = Some(Open { number, records: 0, bytes: 0, due: Instant::now() + flush_interval });
        }
        self.open.as_ref().expect("was made above")
    }

    fn is_full(&self, batch_size: usize) -> bool {
        self.open.as_ref().is_some_and(|open| open.records >= batch_size || open.bytes >= MAX_BATCH_BYTES)
    }

    fn add_piece(&mut self, json: &[u8], count: usize) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.records += count;
        open.bytes += json.len();
        let number = open.number;
        self.insert(Kind::Log, number, "", count, json)
    }

    fn insert(&mut self, kind: Kind, number: i64, controller: &str, count: usize, body: &[u8]) -> Result<()> {
        self.db
            .prepare_cached(
                "INSERT INTO items(kind, batch, controller, count, created, body) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![kind as i64, number, controller, count as i64, now(), body])?;
        if let Some(bytes) = self.bytes.get_mut(kind as usize) {
            *bytes += body.len() as u64;
        }
        Ok(())
    }

    fn put_mark(&mut self, mark: Mark) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO mark(one, last, next) VALUES(1, ?1, ?2)";
        self.db.prepare_cached(sql)?.execute([mark.last, mark.next])?;
        Ok(())
    }

    fn next(&mut self, controller: &str, kind: Kind) -> Result<Option<Batch>> {
        let (owner, cursor) = match kind {
            Kind::Event => (controller, 0),
            kind => ("", self.cursors.get(&(controller.to_owned(), kind)).copied().unwrap_or(0)),
        };
        let sql = "SELECT batch FROM items WHERE kind = ?1 AND controller = ?2 AND batch > ?3 ORDER BY batch LIMIT 1";
        let number: Option<i64> =
            self.db.prepare_cached(sql)?.query_row(params![kind as i64, owner, cursor], |row| row.get(0)).optional()?;
        let Some(number) = number else { return Ok(None) };
        if kind == Kind::Log && self.open.as_ref().is_some_and(|open| open.number == number) {
            return Ok(None);
        }
        let mut body = match kind {
            Kind::Log => format!("{{\"batch\":{number},\"records\":[").into_bytes(),
            Kind::Stats => format!("{{\"batch\":{number},").into_bytes(),
            Kind::Event => Vec::new(),
        };
        let sql = "SELECT body FROM items WHERE kind = ?1 AND controller = ?2 AND batch = ?3 ORDER BY seq";
        let mut pieces = self.db.prepare_cached(sql)?;
        let mut pieces = pieces.query(params![kind as i64, owner, number])?;
        let mut first = true;
        while let Some(piece) = pieces.next()? {
            if !first {
                body.push(b',');
            }
            first = false;
            body.extend_from_slice(piece.get_ref(0)?.as_blob().context("a piece that is no blob")?);
        }
        match kind {
            Kind::Log => body.extend_from_slice(b"]}"),
            Kind::Stats => body.push(b'}'),
            Kind::Event => {}
        }
        Ok(Some(Batch { number: number as u64, body }))
    }

    fn taken(&mut self, controller: &str, kind: Kind, number: i64, others: &[String]) -> Result<()> {
        if kind == Kind::Event {
            let sql = "DELETE FROM items WHERE kind = ?1 AND controller = ?2 AND batch = ?3";
            self.db.prepare_cached(sql)?.execute(params![kind as i64, controller, number])?;
            return Ok(());
        }
        let cursor = self.cursors.entry((controller.to_owned(), kind)).or_insert(0);
        *cursor = number.max(*cursor);
        let sql = "INSERT OR REPLACE INTO cursors(controller, kind, batch) VALUES(?1, ?2, ?3)";
        self.db.prepare_cached(sql)?.execute(params![controller, kind as i64, *cursor])?;
        let cursor = |name: &String| self.cursors.get(&(name.clone(), kind)).copied().unwrap_or(0);
        let all = others.iter().map(cursor).min().unwrap_or(0);
        self.remove(kind, all)?;
        Ok(())
    }

    /// Removes the batches up to `last`; says how many records (or batches) went.
    fn remove(&mut self, kind: Kind, last: i64) -> Result<u64> {
        let sql = "SELECT coalesce(sum(length(body)), 0), coalesce(sum(count), 0) FROM items
                   WHERE kind = ?1 AND controller = '' AND batch <= ?2";
        let (bytes, count): (i64, i64) =
            self.db.prepare_cached(sql)?.query_row(params![kind as i64, last], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let sql = "DELETE FROM items WHERE kind = ?1 AND controller = '' AND batch <= ?2";
        self.db.prepare_cached(sql)?.execute(params![kind as i64, last])?;
        let stored = &mut self.bytes[kind as usize];
        *stored = stored.saturating_sub(bytes as u64);
        Ok(count as u64)
    }

    fn trim_log(&mut self) {
        while self.bytes[Kind::Log as usize] > MAX_LOG_BYTES {
            if !self.drop_oldest(Kind::Log, "batch > 0") {
                return;
            }
        }
    }

    fn trim_stats(&mut self) {
        let old = format!("created < {}", now() - MAX_STATS_AGE);
        while self.drop_oldest(Kind::Stats, &old) {}
        while self.bytes[Kind::Stats as usize] > MAX_STATS_BYTES {
            if !self.drop_oldest(Kind::Stats, "batch > 0") {
                return;
            }
        }
    }

    /// Drops the oldest batch when it is one that `which` says; says whether it did.
    fn drop_oldest(&mut self, kind: Kind, which: &str) -> bool {
        let sql = format!(
            "SELECT batch FROM items WHERE kind = {} AND controller = '' AND {which} ORDER BY batch LIMIT 1",
            kind as i64
        );
        let oldest: Option<i64> = self.db.query_row(&sql, [], |row| row.get(0)).ok();
        let Some(number) = oldest else { return false };
        let mut count = 0;
        let done = self.transaction(|inner| {
            count = inner.remove(kind, number)?;
            Ok(())
        });
        if done.is_ok() {
            self.dropped[kind as usize] += count;
            self.complain(&format!("too much {kind:?} waits for the controllers; the oldest is dropped"));
        }
        done.is_ok()
    }

    fn trim_events(&mut self, controller: &str) {
        let done = self.db.execute(
            "DELETE FROM items WHERE kind = 2 AND controller = ?1 AND batch <= coalesce((SELECT batch FROM items
             WHERE kind = 2 AND controller = ?1 ORDER BY batch DESC LIMIT 1 OFFSET ?2), 0)",
            params![controller, MAX_EVENTS],
        );
        self.dropped[Kind::Event as usize] += done.unwrap_or(0) as u64;
    }

    /// Gives space back to the file system, a little at a time.
    fn reclaim(&mut self) {
        let free: u32 = self.db.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap_or(0);
        if free > RECLAIM_PAGES {
            let _ = self.db.execute_batch(&format!("PRAGMA incremental_vacuum({RECLAIM_PAGES})"));
        }
    }

    fn lost(&mut self, kind: Kind, count: u64, why: &anyhow::Error) {
        self.dropped[kind as usize] += count;
        self.complain(&format!("{count} of {kind:?} for the controllers could not be stored: {why:#}"));
    }

    /// Says what is wrong, but not every millisecond.
    fn complain(&mut self, what: &str) {
        if self.complained.is_none_or(|last| last.elapsed() > Duration::from_secs(10)) {
            self.complained = Some(Instant::now());
            log::error!("outbox: {what}");
        }
    }

    fn wake(&self, controllers: &[String]) {
        for wake in controllers.iter().filter_map(|name| self.wakers.get(name)) {
            let _ = wake.try_send(());
        }
    }
}

/// Whether the file is no database any more.
fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<rusqlite::Error>()).any(|e| match e {
        rusqlite::Error::SqliteFailure(e, _) => {
            matches!(e.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
        }
        rusqlite::Error::SqlInputError { .. } => true,
        _ => false,
    })
}

/// Renames a damaged file, so that somebody may look at it; only the last one is kept.
fn set_aside(path: &Path) {
    let aside = path.with_extension("db.damaged");
    log::error!("{} is damaged; it is set aside as {}, and a new one begins", path.display(), aside.display());
    for ending in ["", "-wal", "-shm"] {
        let with = |base: &Path| PathBuf::from(format!("{}{ending}", base.display()));
        let _ = std::fs::remove_file(with(&aside));
        let _ = std::fs::rename(with(path), with(&aside));
    }
}

/// The time, in milliseconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
