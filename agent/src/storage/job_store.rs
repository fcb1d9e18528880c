//! The durable memory of jobs: `state.db`, with one table of jobs.
//!
//! A row is a job, and moves accepted → started → done → sent, so that one table is inbox, memory,
//! upload queue of results and check for duplicates. A job that goes on after a result (a recurring one)
//! keeps its row, and the result of each of its runs travels in a row of its own beside it.
//!
//! **Owns** the file, its form, its size, and what happens when it is damaged. Results of read-only commands travel
//! beside it (`memory_results`).
//!
//! **Does not** decide anything about a job: that is `supervisor::scheduler`. The supervisor writes, the
//! senders read results and mark them as sent, `jsagent status` reads.
//!
//! Invariants: a commit that the supervisor waited for survives power loss (but for a result that
//! [`JobUpdate::Finish`] calls `deferred_sync`, which does once [`JobStore::sync`] has returned); a result stays until
//! [`JobStore::mark_sent`]; an id that was accepted is known for a week or the next 100,000.

mod damage;
mod memory_results;
mod retention;
mod rows;
mod table;
#[cfg(test)]
mod tests;

use memory_results::MemoryResults;
pub(crate) use rows::{JobUpdate, Row, Unsent};

use super::sqlite;
use crate::platform::unix_ms;
use anyhow::{Context, Result, bail};
use jscommon::lock::lock;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// The file below `data_dir`.
pub(crate) const FILE: &str = "state.db";

/// The open table; shared by the supervisor and the uploaders.
pub(crate) struct JobStore {
    path: PathBuf,
    table: Mutex<Table>,
    memory: MemoryResults,
    /// How often a damaged file was replaced while the agent ran.
    generation: AtomicU64,
    /// Told of that.
    on_damage: OnceLock<TellDamage>,
    unsent_bytes: AtomicU64,
    /// The file that commits go to first.
    wal: PathBuf,
    /// Something that is to be on the disk soon may not be there yet.
    behind: AtomicBool,
    /// The damage that was found when the file was opened: a sentence for the operators.
    damage: Option<String>,
}

type TellDamage = Box<dyn Fn(&str) + Send + Sync>;

struct Table {
    db: Connection,
    /// Nothing is open when the file could not be opened again.
    is_open: bool,
    /// A damaged file that a new one is still to take over from.
    aside: Option<damage::Aside>,
    /// Whether a commit waits for the disk (`synchronous`).
    waits: bool,
    accepted_since_tidy: u64,
    /// The key of the next row: counted here, so that none is given twice.
    next_key: i64,
    /// The controllers that results can go to; nothing is all.
    known: Option<HashSet<String>>,
}

impl JobStore {
    /// Opens `data_dir/state.db`, making it when it is not there.
    ///
    /// A damaged file is set aside as `state.db.damaged-<epoch>`, and what can still be read of it is
    /// carried over; [`JobStore::damage`] then says so.
    pub(crate) fn open(data_dir: &Path) -> Result<Arc<JobStore>> {
        let path = data_dir.join(FILE);
        let opened =
            sqlite::open_or_replace(|| table::open(&path), sqlite::is_corrupt, |fault| damage::set_aside(&path, fault));
        let (db, aside) = opened.with_context(|| format!("cannot open {}", path.display()))?;
        let damage = aside.map(|aside| aside.carry_over(&path, &db));
        let unsent: i64 = db
            .query_row("SELECT coalesce(sum(octet_length(result)), 0) FROM jobs WHERE state = 2", [], |row| row.get(0))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let next_key = table::next_key(&db).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Arc::new(JobStore {
            path,
            table: Mutex::new(Table {
                db,
                next_key,
                is_open: true,
                aside: None,
                waits: true,
                accepted_since_tidy: retention::TIDY_EVERY,
                known: None,
            }),
            memory: MemoryResults::default(),
            generation: AtomicU64::new(0),
            on_damage: OnceLock::new(),
            unsent_bytes: AtomicU64::new(unsent.max(0) as u64),
            wal: data_dir.join(format!("{FILE}-wal")),
            behind: AtomicBool::new(false),
            damage,
        }))
    }

    /// Says which controllers there are. Results for any other wait on the disk for it to come back, do
    /// not count as unsent, and of a job that goes on only the last one is kept.
    pub(crate) fn controllers<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let known: HashSet<String> = names.into_iter().map(str::to_owned).collect();
        self.with(|table| {
            table.known = Some(known.clone());
            self.recount(table)
        })
    }

    /// Counts the bytes of the results that wait for a known controller.
    fn recount(&self, table: &Table) -> Result<()> {
        let mut bytes = 0;
        let mut query = table.db.prepare(
            "SELECT controller, coalesce(sum(octet_length(result)), 0) FROM jobs WHERE state = 2 GROUP BY controller",
        )?;
        let rows = query.query_map([], |row| Ok((table::text(row, 0)?, row.get::<_, i64>(1)?)))?;
        for row in rows {
            let (controller, waiting) = row?;
            match table.known.as_ref().is_none_or(|known| known.contains(&controller)) {
                true => bytes += waiting.max(0) as u64,
                false => log::warn!(
                    "{waiting} bytes of results wait for the controller \"{controller}\", which is not configured"
                ),
            }
        }
        self.unsent_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Has `tell` told, with a sentence for the operators, when a file is found damaged from now on. It is
    /// called on the thread that found it, and must not wait or use the job store.
    pub(crate) fn on_damage(&self, tell: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.on_damage.set(Box::new(tell));
    }

    /// Counts up whenever a damaged file was replaced: rows may be gone then.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// A sentence for the operators when the file was damaged and had to be replaced.
    pub(crate) fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Results that are not stored.
    pub(crate) fn memory(&self) -> &MemoryResults {
        &self.memory
    }

    /// Whether a job of this id was accepted before.
    pub(crate) fn knows(&self, id: &str) -> Result<bool> {
        self.with(|table| {
            let mut query = table.db.prepare_cached("SELECT 1 FROM jobs WHERE id = ? AND run = 0")?;
            Ok(query.query_row([id], |_| Ok(())).optional()?.is_some())
        })
    }

    /// The command of a job that is not over, as JSON.
    pub(crate) fn command(&self, id: &str) -> Result<Option<String>> {
        self.with(|table| {
            let mut query = table.db.prepare_cached("SELECT command FROM jobs WHERE id = ? AND run = 0")?;
            Ok(query.query_row([id], |row| row.get(0)).optional()?.flatten())
        })
    }

    /// Makes changes as [`JobStore::commit_to`] does, to the present file.
    #[cfg(test)]
    pub(crate) fn commit(&self, writes: &[JobUpdate]) -> Result<()> {
        self.commit_to(self.generation(), writes)
    }

    /// Makes these changes, all or none of them, and returns once they survive power loss; the agent's
    /// death alone where all of them are `deferred_sync`. Refuses where the file is no longer that of this
    /// generation: the rows that the changes are about may be gone.
    pub(crate) fn commit_to(&self, generation: u64, writes: &[JobUpdate]) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        self.with(|table| {
            if self.generation() != generation {
                bail!("{} was damaged and has been replaced", self.path.display());
            }
            self.apply(table, writes)
        })
    }

    fn apply(&self, table: &mut Table, writes: &[JobUpdate]) -> Result<()> {
        let soon = writes.iter().all(JobUpdate::is_deferred);
        table.wait_for_disk(!soon)?;
        let Table { db, known, next_key, .. } = table;
        let before = db.total_changes();
        let unsent = sqlite::transaction(db, || {
            let mut unsent = 0i64;
            for write in writes {
                let orphaned = match (write.result_of(), &known) {
                    (Some(id), Some(known)) => table::is_orphaned(db, id, known)?,
                    _ => false,
                };
                let grown = table::apply(db, write, orphaned, next_key)?;
                unsent += if orphaned { 0 } else { grown };
            }
            // Said before it is true: who reads it then syncs once too often and never too seldom.
            if soon {
                self.behind.store(true, Ordering::SeqCst);
            }
            Ok(unsent)
        })?;
        let accepted = writes.iter().filter(|write| matches!(write, JobUpdate::Accept { .. })).count() as u64;
        if !soon && db.total_changes() != before {
            // Everything that was committed before it went to the disk with it.
            self.behind.store(false, Ordering::SeqCst);
        }
        self.count_unsent(unsent);
        table.accepted_since_tidy += accepted;
        Ok(())
    }

    /// Whether something waits for [`JobStore::sync`].
    pub(crate) fn is_behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }

    /// Returns once everything that was committed survives power loss. Holds up nobody who reads or
    /// commits meanwhile.
    pub(crate) fn sync(&self) -> Result<()> {
        self.behind.store(false, Ordering::SeqCst);
        // A handle of its own: closing one on the database itself would drop SQLite's locks on it, and
        // those of this file lie elsewhere.
        let synced = OpenOptions::new().write(true).open(&self.wal).and_then(|wal| wal.sync_data());
        synced.with_context(|| format!("cannot write {} to the disk", self.wal.display())).inspect_err(|_| {
            self.behind.store(true, Ordering::SeqCst);
        })
    }

    /// The jobs that are not over, in the order of their acceptance.
    pub(crate) fn live(&self) -> Result<Vec<Row>> {
        self.with(|table| table::read_live(&table.db))
    }

    /// Returns the oldest results, as [`JobStore::unsent_without`] does.
    #[cfg(test)]
    pub(crate) fn unsent(&self, controller: &str, max_rows: usize, max_bytes: usize) -> Result<Vec<Unsent>> {
        self.unsent_without(controller, &[], max_rows, max_bytes)
    }

    /// Returns the oldest results that wait for this controller but those of these keys: at most `max_rows`, and
    /// about `max_bytes` (one that is longer still comes, alone). Those in memory go first, and alone.
    pub(crate) fn unsent_without(
        &self,
        controller: &str,
        without: &[i64],
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<Vec<Unsent>> {
        let in_memory = self.memory.unsent(controller, without, max_rows, max_bytes);
        if !in_memory.is_empty() {
            return Ok(in_memory);
        }
        self.with(|table| {
            let mut query = table.db.prepare_cached(
                "SELECT key, result FROM jobs WHERE state = 2 AND controller = ? ORDER BY key LIMIT ?",
            )?;
            let mut rows = query.query(params![controller, (max_rows + without.len()) as i64])?;
            let mut bytes = 0;
            let mut unsent: Vec<Unsent> = Vec::new();
            while let Some(row) = rows.next()? {
                let key = row.get(0)?;
                if without.contains(&key) {
                    continue;
                }
                let json = table::text(row, 1)?;
                bytes += json.len();
                if unsent.len() == max_rows || (bytes > max_bytes && !unsent.is_empty()) {
                    break;
                }
                unsent.push(Unsent { key, json });
            }
            Ok(unsent)
        })
    }

    /// Returns the result of this key, `None` when it does not wait to be sent, or when the file is no longer
    /// that of this generation: the key may be another row's.
    pub(crate) fn unsent_one(&self, generation: u64, key: i64) -> Result<Option<Unsent>> {
        if key < 0 {
            return Ok(self.memory.unsent_one(key));
        }
        self.with(|table| {
            if self.generation() != generation {
                return Ok(None);
            }
            let mut query = table.db.prepare_cached("SELECT result FROM jobs WHERE state = 2 AND key = ?")?;
            Ok(query.query_row([key], |row| Ok(Unsent { key, json: table::text(row, 0)? })).optional()?)
        })
    }

    /// The controller has these results. A mark that a power cut undoes costs a repetition, which is
    /// harmless, so this does not wait for the disk. Where the file is no longer that of this generation,
    /// which is to be read before the keys, nothing is marked, and the results are sent again.
    pub(crate) fn mark_sent(&self, generation: u64, keys: &[i64]) -> Result<()> {
        let (in_memory, stored): (Vec<i64>, Vec<i64>) = keys.iter().partition(|key| **key < 0);
        self.memory.remove(&in_memory);
        if stored.is_empty() {
            return Ok(());
        }
        self.with(|table| match self.generation() == generation {
            true => self.mark_sent_in(table, &stored),
            false => Ok(()),
        })
    }

    fn mark_sent_in(&self, table: &mut Table, keys: &[i64]) -> Result<()> {
        let now = unix_ms();
        table.wait_for_disk(false)?;
        let marked = table::mark(&table.db, keys);
        let tidied = if marked.is_ok() && table.accepted_since_tidy >= retention::TIDY_EVERY {
            table.accepted_since_tidy = 0;
            retention::tidy(&table.db, now, retention::REMEMBER_IDS)
        } else {
            Ok(())
        };
        self.count_unsent(-marked?);
        tidied
    }

    /// Gives back the memory that SQLite keeps for the table's pages.
    pub(crate) fn rest(&self) {
        let _ = lock(&self.table).db.execute_batch("PRAGMA shrink_memory");
    }

    /// Bytes of the results that wait for all controllers together.
    pub(crate) fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes.load(Ordering::Relaxed)
    }

    fn count_unsent(&self, change: i64) {
        // Never below zero: the number is a brake, and must not turn into a huge one by a wrap.
        let _ = self
            .unsent_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| Some(bytes.saturating_add_signed(change)));
    }

    /// Does `work` on the open table. Where the file seems damaged, a fresh look at it decides: a good one is
    /// opened anew, a damaged one is replaced, and `work` is done again.
    fn with<T>(&self, work: impl FnMut(&mut Table) -> Result<T>) -> Result<T> {
        let mut table = lock(&self.table);
        let is_open = table.is_open;
        sqlite::with_reopened(&mut *table, is_open, |table| self.reopen(table), work)
    }

    /// Opens the file anew; one that is damaged is replaced.
    fn reopen(&self, table: &mut Table) -> Result<()> {
        // Every connection must be closed before a file can be renamed everywhere.
        table.db = Connection::open_in_memory()?;
        (table.is_open, table.waits) = (false, true);
        let is_lost = !fs::metadata(&self.path).is_ok_and(|file| file.len() > 0);
        let opened = sqlite::open_or_replace(
            || table::open(&self.path),
            sqlite::is_corrupt,
            |fault| {
                table.aside = Some(damage::set_aside(&self.path, fault)?);
                Ok(())
            },
        );
        table.db = opened.with_context(|| format!("cannot open {}", self.path.display()))?.0;
        table.is_open = true;
        let damage = match table.aside.take() {
            Some(aside) => Some(aside.carry_over(&self.path, &table.db)),
            // Rows that keys are remembered of are gone.
            None => is_lost.then(|| {
                format!("{} was emptied or removed, and is made anew: its jobs are forgotten", self.path.display())
            }),
        };
        if let Some(damage) = damage {
            log::error!("{damage}");
            self.generation.fetch_add(1, Ordering::SeqCst);
            if let Some(tell) = self.on_damage.get() {
                tell(&damage);
            }
        }
        table.next_key = table.next_key.max(table::next_key(&table.db)?);
        self.recount(table)
    }
}

impl Table {
    /// From now on commits wait for the disk, or leave it to a later one.
    fn wait_for_disk(&mut self, wait: bool) -> Result<()> {
        if self.waits != wait {
            self.db.execute_batch(if wait { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" })?;
            self.waits = wait;
        }
        Ok(())
    }
}

/// The jobs that are not over, read from a folder whose agent may be running or not.
pub(crate) fn read_only(data_dir: &Path) -> Result<Vec<Row>> {
    let path = data_dir.join(FILE);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&path, flags)
        .with_context(|| format!("cannot read {}: start its agent first, or run this as its user", path.display()))?;
    db.busy_timeout(Duration::from_secs(5))?;
    table::read_live(&db).with_context(|| format!("cannot read {}", path.display()))
}
