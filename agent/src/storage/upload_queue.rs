//! The upload queue: batches of records, stats and events on disk, until a controller has taken them.
//!
//! **Owns** `outbox.db`, the numbers of batches, and the bounds: 64 MiB of records, an hour of stats,
//! 1000 events. Items over a bound are dropped, oldest first, and counted. The count goes to the controllers as an
//! event once they are back.
//!
//! **Does not** send: every controller's sender asks for its next batch and says what became of it.
//! The message log and the aggregator fill it. The message log also keeps its [`IdCheckpoint`] here, so that ids go on
//! after its own database is lost.
//!
//! Invariants: a batch that was handed out once never changes, so a repeated number is the same batch;
//! numbers begin at the clock (ms) at every start, so they count up even when the disk is lost. Where
//! the clock went back as well, the first answer of a controller says so, and the numbers jump ahead
//! of what it has ([`UploadQueue::jump`]).
//!
//! `storage` has the file and what stands in it, `numbers` the numbers of batches, `retention` what goes when
//! there is too much, `refusal` what becomes of a batch that a controller, or a proxy before it, does not take.

use super::sqlite;
use crate::config::Config;
use crate::platform::{self, unix_ms};
use anyhow::{Result, bail};
use crossbeam_channel::Sender;
use rusqlite::Connection;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

mod numbers;
mod refusal;
mod retention;
mod storage;
#[cfg(test)]
mod tests;

use jscommon::lock::lock;
pub(crate) use retention::Dropped;
use storage::Inner;

/// The file below `data_dir`.
pub(crate) const FILE: &str = "outbox.db";

/// Most bytes of one batch of records: far below the 16 MiB that a controller takes, and below the 1 MiB
/// that nginx takes by default.
const MAX_BATCH_BYTES: usize = 960 << 10;

/// The pause between two tries to open the file again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

/// The content of a batch; each kind has its own path at the controller and its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Records, `POST /{gid}/{nid}/log`.
    Log = 0,
    /// Series, `POST /{gid}/{nid}/stats`.
    Stats = 1,
    /// One event, `POST /{gid}/{nid}/event`.
    Event = 2,
}

/// One batch, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Batch {
    /// Its number; it counts up over the node's life.
    pub(crate) number: u64,
    /// The whole JSON body of the request.
    pub(crate) body: Vec<u8>,
}

/// Records as JSON objects, with a comma between each two.
#[derive(Debug, Default)]
pub(crate) struct Records {
    json: Vec<u8>,
    ends: Vec<usize>,
}

impl Records {
    /// Adds one record through `write`, which appends its JSON object.
    pub(crate) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.is_empty() {
            self.json.push(b',');
        }
        write(&mut self.json);
        self.ends.push(self.json.len());
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of JSON.
    pub(crate) fn bytes(&self) -> usize {
        self.json.len()
    }

    /// Forgets them, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.json.clear();
        self.ends.clear();
    }
}

/// Where the ids of records stand: after the record `last`, `next` comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdCheckpoint {
    /// The id of the last record that is stored, 0 when none is.
    pub(crate) last: u32,
    /// The id that the next record gets.
    pub(crate) next: u32,
}

/// The batches of all controllers.
pub(crate) struct UploadQueue {
    path: PathBuf,
    /// The controllers that get records, and those that get stats.
    chosen: [Vec<String>; 2],
    /// Everybody; they get events.
    controllers: Vec<String>,
    batch_size: usize,
    flush_interval: Duration,
    inner: Mutex<Inner>,
}

impl UploadQueue {
    /// Opens `outbox.db` in the data folder; a damaged one is set aside.
    pub(crate) fn open(config: &Config) -> Result<Arc<UploadQueue>> {
        let path = config.main.data_dir.join(FILE);
        let (inner, _) = Inner::open(&path, false)?;
        Ok(Arc::new(UploadQueue {
            path,
            chosen: [config.chosen(&config.logging.ac.controllers), config.chosen(&config.stats.controllers)],
            controllers: config.controllers.keys().cloned().collect(),
            batch_size: config.logging.ac.batch_size.max(1),
            flush_interval: config.logging.ac.flush_interval,
            inner: Mutex::new(inner),
        }))
    }

    /// Whether any controller gets batches of this kind.
    pub(crate) fn wanted(&self, kind: Kind) -> bool {
        match kind {
            Kind::Event => !self.controllers.is_empty(),
            kind => !self.chosen[kind as usize].is_empty(),
        }
    }

    /// Stores records for the controllers, together with the mark that holds once they are in the
    /// logger's database too, all of them or none. They are sent when their batch is full or its time has
    /// come.
    pub(crate) fn push_log(&self, records: &Records, mark: IdCheckpoint) -> Result<()> {
        let mut inner = lock(&self.inner);
        let closed = self.with(&mut inner, |inner| {
            let mut closed = false;
            inner.transaction(|inner| {
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
            })?;
            Ok(closed)
        })?;
        inner.trim_log();
        if closed {
            inner.wake(&self.chosen[0]);
        }
        Ok(())
    }

    /// When the batch of records that still grows must go.
    pub(crate) fn log_due(&self) -> Option<Instant> {
        lock(&self.inner).open.as_ref().map(|open| open.due)
    }

    /// Ends the batch of records that still grows.
    pub(crate) fn close_log(&self) {
        let mut inner = lock(&self.inner);
        if inner.open.take().is_some() {
            inner.wake(&self.chosen[0]);
        }
    }

    /// Stores a batch of series for the controllers; `timestamp` is in seconds since 1970.
    pub(crate) fn push_stats(&self, timestamp: i64, series: &[(String, f64)]) {
        if series.is_empty() || !self.wanted(Kind::Stats) {
            return;
        }
        let mut body = format!("\"timestamp\":{timestamp},\"series\":").into_bytes();
        if serde_json::to_writer(&mut body, series).is_err() {
            return;
        }
        let mut inner = lock(&self.inner);
        inner.follow_clock(Instant::now(), unix_ms());
        let wrote = self.with(&mut inner, |inner| {
            inner.transaction(|inner| {
                let number = inner.next_number();
                inner.insert(Kind::Stats, number, "", 1, &body)
            })
        });
        if let Err(e) = wrote {
            inner.lost(Kind::Stats, 1, &e);
        }
        inner.trim_stats();
        inner.wake(&self.chosen[1]);
    }

    /// Adds an event for one controller, or for all of them.
    pub(crate) fn push_event(&self, controller: Option<&str>, name: &str, data: Value) {
        let body = json!({"name": name, "data": data}).to_string();
        let to = match controller {
            Some(one) => vec![one.to_owned()],
            None => self.controllers.clone(),
        };
        let mut inner = lock(&self.inner);
        let wrote = self.with(&mut inner, |inner| inner.transaction(|inner| inner.insert_event(&to, &body)));
        if let Err(e) = wrote {
            inner.wait_with_event(to.clone(), body, &e);
        }
        for controller in &to {
            inner.trim_events(controller);
        }
        inner.wake(&to);
    }

    /// The oldest batch of this kind that the controller has not taken; none where the upload queue cannot be read.
    #[cfg(test)]
    pub(crate) fn next(&self, controller: &str, kind: Kind) -> Option<Batch> {
        self.read(controller, kind, &[]).ok().flatten()
    }

    /// Reads the oldest batch of this kind that the controller has not taken, without the events of these
    /// numbers and the deferred batches.
    pub(crate) fn read(&self, controller: &str, kind: Kind, without: &[i64]) -> Result<Option<Batch>> {
        if kind != Kind::Event && !self.is_chosen(controller, kind) {
            return Ok(None);
        }
        self.locked(|inner| inner.next(controller, kind, without))
    }

    /// Reads the event of this number that waits for the controller.
    pub(crate) fn event(&self, controller: &str, number: i64) -> Result<Option<Batch>> {
        let batch = self.locked(|inner| inner.whole(controller, Kind::Event, number))?;
        Ok(Some(batch).filter(|batch| !batch.body.is_empty()))
    }

    fn is_chosen(&self, controller: &str, kind: Kind) -> bool {
        self.chosen[kind as usize].iter().any(|name| name == controller)
    }

    /// Does what [`UploadQueue::with`] does, and logs an error.
    fn locked<T>(&self, work: impl FnMut(&mut Inner) -> Result<T>) -> Result<T> {
        let mut inner = lock(&self.inner);
        let done = self.with(&mut inner, work);
        if let Err(e) = &done {
            inner.log_throttled(&format!("{e:#}"));
        }
        done
    }

    /// The controller has taken this batch (200), now or before.
    pub(crate) fn taken(&self, controller: &str, kind: Kind, number: u64) {
        let others: Vec<String> = match kind {
            Kind::Event => Vec::new(),
            kind => self.chosen[kind as usize].clone(),
        };
        let _ = self.locked(|inner| {
            match kind {
                Kind::Event => inner.remove_event(controller, number as i64)?,
                _ => inner.transaction(|inner| inner.taken(controller, kind, number as i64, &others))?,
            }
            inner.reclaim();
            // A second take is told what it will never see.
            inner.tell_dropped(&self.controllers)
        });
    }

    /// The controller says that it has batches up to `last`, and dropped `number` as one of them, so
    /// the numbers here are too low: the file was lost, and the clock is behind. Then all batches get
    /// numbers beyond `last`, nothing is lost, and the answer is `true`.
    ///
    /// Once a controller has taken or refused anything of this file, an old number is an old batch, unless
    /// `last` is a number that was never given here.
    pub(crate) fn jump(&self, controller: &str, kind: Kind, number: u64, last: u64) -> bool {
        let jumped = self.locked(|inner| inner.jump(controller, kind, number as i64, last as i64)).unwrap_or(false);
        if jumped {
            log::warn!(
                "the controller {controller} has {kind:?} up to batch {last}, and this one was {number}: the upload queue was \
                 lost and the clock is behind; the numbers go on after that"
            );
        }
        jumped
    }

    /// Returns what was dropped since the last call, for a record on the node itself.
    pub(crate) fn take_unreported(&self) -> Dropped {
        std::mem::take(&mut lock(&self.inner).unreported)
    }

    /// The controller will never take this batch, not even a part of it: it is dropped and counted.
    pub(crate) fn refused(&self, controller: &str, kind: Kind, number: u64) {
        // An event about a refused event would be refused in its turn, for ever.
        if kind != Kind::Event {
            let mut inner = lock(&self.inner);
            let count = inner.count(controller, kind, number as i64);
            inner.dropped(kind, count);
        }
        self.taken(controller, kind, number);
    }

    /// Has `wake` told (without waiting) whenever there is something new for this controller.
    pub(crate) fn waker(&self, controller: &str, wake: Sender<()>) {
        lock(&self.inner).wakers.insert(controller.to_owned(), wake);
    }

    /// Gives back the memory that SQLite keeps for the pages of this database, and that of code which
    /// is not in use: for when a burst of work is over.
    pub(crate) fn rest(&self) {
        let _ = lock(&self.inner).db.execute_batch("PRAGMA shrink_memory");
        platform::evict_text_pages();
    }

    /// Where the ids of records stood when it was last written down.
    pub(crate) fn mark(&self) -> Option<IdCheckpoint> {
        let inner = lock(&self.inner);
        let found = inner.db.query_row("SELECT last, next FROM mark", [], |row| Ok((row.get(0)?, row.get(1)?)));
        found.ok().map(|(last, next)| IdCheckpoint { last, next })
    }

    /// Changes the file or its connection. For tests.
    #[cfg(test)]
    pub(crate) fn execute(&self, sql: &str) {
        lock(&self.inner).db.execute_batch(sql).expect("the statement");
    }

    /// Writes down where the ids of records stand.
    pub(crate) fn set_mark(&self, mark: IdCheckpoint) {
        let _ = self.locked(|inner| inner.transaction(|inner| inner.put_mark(mark)));
    }

    /// Does `work` on the open file. Where the file seems damaged, a fresh look at it decides: a good one is
    /// opened anew, a damaged one is set aside for a new one, and `work` is done again.
    fn with<T>(&self, inner: &mut Inner, work: impl FnMut(&mut Inner) -> Result<T>) -> Result<T> {
        let is_open = inner.is_open;
        let done = sqlite::with_reopened(inner, is_open, |inner| self.reopen(inner), work);
        if done.is_ok() {
            inner.store_waiting();
        }
        done
    }

    /// Opens the file anew, which is tried no more than every [`REOPEN_PAUSE`].
    fn reopen(&self, inner: &mut Inner) -> Result<()> {
        if inner.open_at.is_some_and(|at| at > Instant::now()) {
            bail!("{} cannot be opened for now", self.path.display());
        }
        // The old connection must be closed before its file can be renamed everywhere.
        inner.db = Connection::open_in_memory()?;
        (inner.is_open, inner.open) = (false, None);
        inner.open_at = Some(Instant::now() + REOPEN_PAUSE);
        let (new, damaged) = Inner::open(&self.path, true)?;
        inner.continue_with(new, damaged);
        if damaged {
            let data = json!({"what": FILE}).to_string();
            inner.waiting.push_back((self.controllers.clone(), format!("{{\"name\":\"damaged\",\"data\":{data}}}")));
        }
        // Entries that waited meanwhile can go.
        inner.wake(&self.controllers);
        Ok(())
    }
}
