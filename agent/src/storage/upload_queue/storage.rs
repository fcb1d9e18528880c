//! The content of `outbox.db`: batches, who has taken what, where the ids of records stand.
//!
//! Owns the file; the numbers of batches are raised in `numbers`. `retention` decides what is dropped when there is too much.
//! [`super::UploadQueue`] decides who calls, and when a controller is woken.

use super::{Batch, Dropped, IdCheckpoint, Kind, MAX_BATCH_BYTES};
use crate::platform::unix_ms;
use crate::storage::sqlite::{self, Format};
use anyhow::{Context, Result};
use crossbeam_channel::Sender;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

/// Events that are kept in memory while the file cannot be used.
pub(super) const MAX_WAITING: usize = 100;

/// Pages that are given back to the file system at one time.
const RECLAIM_PAGES: u32 = 1024;

/// Small pages: a batch with one record writes seven of them (14 KB with pages of 4096 bytes, 4 KB now).
const FORMAT: Format = Format {
    busy_timeout: Duration::from_secs(5),
    pragmas: "PRAGMA page_size=1024; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-256;
        PRAGMA journal_size_limit=1048576",
    schema: "CREATE TABLE IF NOT EXISTS items(seq INTEGER PRIMARY KEY, kind INTEGER, batch INTEGER,
            controller TEXT, count INTEGER, created INTEGER, body BLOB);
        CREATE INDEX IF NOT EXISTS items_batch ON items(kind, controller, batch);
        CREATE TABLE IF NOT EXISTS cursors(controller TEXT, kind INTEGER, batch INTEGER,
            PRIMARY KEY(controller, kind));
        CREATE TABLE IF NOT EXISTS mark(one INTEGER PRIMARY KEY, last INTEGER, next INTEGER);
        CREATE TABLE IF NOT EXISTS dropped(kind INTEGER PRIMARY KEY, count INTEGER);",
};

/// The open file, and what is known of it without a look.
pub(super) struct Inner {
    pub(super) db: Connection,
    /// Nothing is open when the file could not be opened again.
    pub(super) is_open: bool,
    /// When that is tried again.
    pub(super) open_at: Option<Instant>,
    /// Events that could not be stored, and who is to get them.
    pub(super) waiting: VecDeque<(Vec<String>, String)>,
    /// The number that the next batch gets; as SQLite counts, so i64 throughout.
    pub(super) number: i64,
    /// The first number of this start.
    pub(super) first: i64,
    /// The batch of records that still grows.
    pub(super) open: Option<Open>,
    /// Bytes that are stored, of records and of stats.
    pub(super) bytes: [u64; 2],
    /// The last batch that a controller has taken.
    pub(super) cursors: HashMap<(String, Kind), i64>,
    /// The batch that each controller's sender has, by the number it was given and the number it has now.
    pub(super) handed: HashMap<(String, Kind), (i64, i64)>,
    /// The events that were taken and could not be removed; their numbers are unique.
    unremoved: Vec<(String, i64)>,
    /// The controllers and kinds whose numbers jumped since the start.
    pub(super) jumped: HashSet<(String, Kind)>,
    /// Items that were dropped and not yet reported to the controllers, by kind.
    pub(super) dropped: [u64; 3],
    /// Items that were dropped and not yet reported on the node.
    pub(super) unreported: Dropped,
    /// Both clocks at the last flush of stats; the second in milliseconds since 1970.
    pub(super) clock: (Instant, i64),
    pub(super) wakers: HashMap<String, Sender<()>>,
    last_logged: Option<Instant>,
}

/// A batch of records that still grows.
pub(super) struct Open {
    pub(super) number: i64,
    pub(super) records: usize,
    pub(super) bytes: usize,
    pub(super) due: Instant,
}

impl Inner {
    /// Opens the file, or makes a new one where it is damaged, and says whether it was. A `thorough` look
    /// reads all of it.
    pub(super) fn open(path: &Path, thorough: bool) -> Result<(Inner, bool)> {
        let opened =
            sqlite::open_or_replace(|| Inner::load(path, thorough), sqlite::is_damaged, |fault| set_aside(path, fault));
        let (inner, aside) = opened.with_context(|| format!("{} cannot be opened", path.display()))?;
        Ok((inner, aside.is_some()))
    }

    fn load(path: &Path, thorough: bool) -> Result<Inner> {
        let db = FORMAT.open(path, thorough)?;
        let mut cursors = HashMap::new();
        let mut number = unix_ms();
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
        let first = number;
        let mut inner = Inner {
            db,
            is_open: true,
            open_at: None,
            waiting: VecDeque::new(),
            number,
            first,
            open: None,
            bytes,
            cursors,
            handed: HashMap::new(),
            unremoved: Vec::new(),
            jumped: HashSet::new(),
            dropped: [0; 3],
            unreported: Dropped::default(),
            clock: (Instant::now(), unix_ms()),
            wakers: HashMap::new(),
            last_logged: None,
        };
        inner.load_dropped()?;
        Ok(inner)
    }

    /// Runs `work` in one transaction. When it fails nothing of it is stored, and no batch stays open.
    pub(super) fn transaction(&mut self, work: impl FnOnce(&mut Inner) -> Result<()>) -> Result<()> {
        let bytes = self.bytes;
        let done = sqlite::begin(&self.db).and_then(|()| work(self));
        let done = sqlite::end(&self.db, done);
        if done.is_err() {
            (self.bytes, self.open) = (bytes, None);
        }
        done
    }

    pub(super) fn open_batch(&mut self, flush_interval: Duration) -> &Open {
        if self.open.is_none() {
            let number = self.next_number();
            self.open = Some(Open { number, records: 0, bytes: 0, due: Instant::now() + flush_interval });
        }
        self.open.as_ref().expect("was made above")
    }

    pub(super) fn is_full(&self, batch_size: usize) -> bool {
        self.open.as_ref().is_some_and(|open| open.records >= batch_size || open.bytes >= MAX_BATCH_BYTES)
    }

    pub(super) fn add_piece(&mut self, json: &[u8], count: usize) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.records += count;
        open.bytes += json.len();
        let number = open.number;
        self.insert(Kind::Log, number, "", count, json)
    }

    pub(super) fn insert(
        &mut self,
        kind: Kind,
        number: i64,
        controller: &str,
        count: usize,
        body: &[u8],
    ) -> Result<()> {
        self.db
            .prepare_cached(
                "INSERT INTO items(kind, batch, controller, count, created, body) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![kind as i64, number, controller, count as i64, unix_ms(), body])?;
        if let Some(bytes) = self.bytes.get_mut(kind as usize) {
            *bytes += body.len() as u64;
        }
        Ok(())
    }

    pub(super) fn put_mark(&mut self, mark: IdCheckpoint) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO mark(one, last, next) VALUES(1, ?1, ?2)";
        self.db.prepare_cached(sql)?.execute([mark.last, mark.next])?;
        Ok(())
    }

    /// Returns the oldest batch that waits for the controller, without the events of these numbers.
    pub(super) fn next(&mut self, controller: &str, kind: Kind, without: &[i64]) -> Result<Option<Batch>> {
        let (owner, cursor) = match kind {
            Kind::Event => (controller, 0),
            kind => ("", self.cursors.get(&(controller.to_owned(), kind)).copied().unwrap_or(0)),
        };
        let sql = "SELECT batch FROM items WHERE kind = ?1 AND controller = ?2 AND batch > ?3 ORDER BY batch";
        let number: Option<i64> = {
            let mut query = self.db.prepare_cached(sql)?;
            let mut rows = query.query(params![kind as i64, owner, cursor])?;
            loop {
                let Some(row) = rows.next()? else { break None };
                let number = row.get(0)?;
                let unremoved = || self.unremoved.iter().any(|(_, unremoved)| *unremoved == number);
                if kind != Kind::Event || !(without.contains(&number) || unremoved()) {
                    break Some(number);
                }
            }
        };
        let Some(number) = number else { return Ok(None) };
        if kind == Kind::Log && self.open.as_ref().is_some_and(|open| open.number == number) {
            return Ok(None);
        }
        self.handed.insert((controller.to_owned(), kind), (number, number));
        self.whole(owner, kind, number).map(Some)
    }

    /// Reads the pieces of a batch and makes the body of its request.
    pub(super) fn whole(&self, owner: &str, kind: Kind, number: i64) -> Result<Batch> {
        let mut body = match kind {
            Kind::Log => format!("{{\"batch\":{number},\"records\":[").into_bytes(),
            Kind::Stats => format!("{{\"batch\":{number},").into_bytes(),
            Kind::Event => Vec::new(),
        };
        self.append_pieces(owner, kind, number, &mut body)?;
        match kind {
            Kind::Log => body.extend_from_slice(b"]}"),
            Kind::Stats => body.push(b'}'),
            Kind::Event => {}
        }
        Ok(Batch { number: number as u64, body })
    }

    /// Appends what is stored of a batch, with a comma between each two pieces.
    pub(super) fn append_pieces(&self, owner: &str, kind: Kind, number: i64, body: &mut Vec<u8>) -> Result<()> {
        let sql = "SELECT body FROM items WHERE kind = ?1 AND controller = ?2 AND batch = ?3 ORDER BY seq";
        let mut pieces = self.db.prepare_cached(sql)?;
        let mut pieces = pieces.query(params![kind as i64, owner, number])?;
        let mut first = true;
        while let Some(piece) = pieces.next()? {
            // A piece that is none must not hold up the others.
            let (ValueRef::Blob(bytes) | ValueRef::Text(bytes)) = piece.get_ref(0)? else { continue };
            if !first {
                body.push(b',');
            }
            first = false;
            body.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Passes over a batch of records or series. Where this cannot be stored it holds for this start of the
    /// agent all the same, so that what was taken is not sent again and again.
    pub(super) fn taken(&mut self, controller: &str, kind: Kind, number: i64, others: &[String]) -> Result<()> {
        let number = self.current(controller, kind, number);
        let cursor = self.cursors.entry((controller.to_owned(), kind)).or_insert(0);
        *cursor = number.max(*cursor);
        let cursor = *cursor;
        self.store_cursor(controller, kind, cursor)?;
        let cursor = |name: &String| self.cursors.get(&(name.clone(), kind)).copied().unwrap_or(0);
        let all = others.iter().map(cursor).min().unwrap_or(0);
        self.remove(kind, all)?;
        Ok(())
    }

    /// Stores the number up to which the controller has taken batches of this kind. An update, for a row that is
    /// replaced gets another rowid, which writes a page of the key's index as well.
    pub(super) fn store_cursor(&self, controller: &str, kind: Kind, number: i64) -> Result<()> {
        let sql = "INSERT INTO cursors(controller, kind, batch) VALUES(?1, ?2, ?3)
                   ON CONFLICT(controller, kind) DO UPDATE SET batch = excluded.batch";
        self.db.prepare_cached(sql)?.execute(params![controller, kind as i64, number])?;
        Ok(())
    }

    /// Removes an event, and those that could not be removed before.
    pub(super) fn remove_event(&mut self, controller: &str, number: i64) -> Result<()> {
        if !self.unremoved.iter().any(|(_, unremoved)| *unremoved == number) {
            self.unremoved.push((controller.to_owned(), number));
        }
        let sql = "DELETE FROM items WHERE kind = 2 AND controller = ?1 AND batch = ?2";
        let unremoved = std::mem::take(&mut self.unremoved);
        let removed = self.transaction(|inner| {
            let mut delete = inner.db.prepare_cached(sql)?;
            unremoved.iter().try_for_each(|(of, number)| delete.execute(params![of, number]).map(drop))?;
            Ok(())
        });
        if removed.is_err() {
            self.unremoved = unremoved;
        }
        removed
    }

    /// How many records (or flushes) the batch `number` holds.
    pub(super) fn count(&self, controller: &str, kind: Kind, number: i64) -> u64 {
        let sql = "SELECT coalesce(sum(count), 0) FROM items WHERE kind = ?1 AND controller = '' AND batch = ?2";
        let number = self.current(controller, kind, number);
        let count = self.db.query_row(sql, [kind as i64, number], |row| row.get::<_, i64>(0));
        count.map_or(1, |count| count as u64)
    }

    /// Removes the batches up to `last`; says how many records (or batches) went.
    pub(super) fn remove(&mut self, kind: Kind, last: i64) -> Result<u64> {
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

    /// Gives space back to the file system, a little at a time.
    pub(super) fn reclaim(&mut self) {
        let free: u32 = self.db.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap_or(0);
        if free > RECLAIM_PAGES {
            let _ = self.db.execute_batch(&format!("PRAGMA incremental_vacuum({RECLAIM_PAGES})"));
        }
    }

    /// Goes on with the file of `new` where this connection, whose file may be `lost`, had come to.
    pub(super) fn continue_with(&mut self, new: Inner, lost: bool) {
        self.number = self.number.max(new.number);
        if lost {
            self.first = self.number;
        }
        (self.db, self.is_open, self.open_at, self.open) = (new.db, true, None, None);
        (self.bytes, self.cursors) = (new.bytes, new.cursors);
    }

    /// Inserts an event for each of these controllers.
    pub(super) fn insert_event(&mut self, to: &[String], body: &str) -> Result<()> {
        for controller in to {
            let number = self.next_number();
            self.insert(Kind::Event, number, controller, 1, body.as_bytes())?;
        }
        Ok(())
    }

    /// Keeps an event until it can be stored; the oldest goes where there are too many.
    pub(super) fn wait_with_event(&mut self, to: Vec<String>, body: String, why: &anyhow::Error) {
        self.log_throttled(&format!("an event waits in memory: {why:#}"));
        self.waiting.push_back((to, body));
        if self.waiting.len() > MAX_WAITING
            && let Some((to, _)) = self.waiting.pop_front()
        {
            self.dropped(Kind::Event, to.len() as u64);
        }
    }

    /// Stores the events that wait in memory.
    pub(super) fn store_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting);
        let stored = self.transaction(|inner| waiting.iter().try_for_each(|(to, body)| inner.insert_event(to, body)));
        if stored.is_err() {
            self.waiting = waiting;
            return;
        }
        for (to, _) in &waiting {
            self.wake(to);
        }
    }

    /// Says what is wrong, but not every millisecond.
    pub(super) fn log_throttled(&mut self, what: &str) {
        if self.last_logged.is_none_or(|last| last.elapsed() > Duration::from_secs(10)) {
            self.last_logged = Some(Instant::now());
            log::error!("upload queue: {what}");
        }
    }

    pub(super) fn wake(&self, controllers: &[String]) {
        for wake in controllers.iter().filter_map(|name| self.wakers.get(name)) {
            let _ = wake.try_send(());
        }
    }
}

/// Renames a damaged file, which nobody may have open, so that somebody may look at it; only the last one is
/// kept.
fn set_aside(path: &Path, why: &anyhow::Error) -> Result<()> {
    let aside = path.with_extension("db.damaged");
    sqlite::ENDINGS.iter().for_each(|ending| drop(std::fs::remove_file(sqlite::beside(&aside, ending))));
    sqlite::set_aside(path, &aside, why)?;
    log::error!(
        "{} is damaged ({why:#}); it is set aside as {}, and a new one begins",
        path.display(),
        aside.display()
    );
    Ok(())
}
