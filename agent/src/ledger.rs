//! What the node must not forget: `state.db`, one table of jobs.
//!
//! A row is a job, and moves accepted → started → done → sent, so that one table is inbox, memory,
//! outbox of results and check for duplicates. A job that goes on after a result (a recurring one)
//! keeps its row, and the result of each of its runs travels in a row of its own beside it.
//!
//! **Owns** the file, its form, its size, and what happens when it is damaged.
//!
//! **Does not** decide anything about a job: that is `process::policy`. The supervisor writes, the
//! senders read results and mark them as sent, `jsagent status` reads.
//!
//! Invariants: a commit that the supervisor waited for survives power loss; a result stays until
//! [`Ledger::mark_sent`]; an id that was accepted is known for a week or the next 100,000.

use anyhow::{Context, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long an id is remembered at most.
const REMEMBER: Duration = Duration::from_secs(7 * 86400);
/// How many ids are remembered at most.
const REMEMBER_IDS: u64 = 100_000;
/// Ids that are accepted between two looks for ids to forget.
const TIDY_EVERY: u64 = 5_000;

/// The file below `data_dir`.
pub const FILE: &str = "state.db";

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// Stored, and not started yet.
    Accepted = 0,
    /// A run is under way.
    Started = 1,
    /// Over; its result waits for the controller.
    Done = 2,
    /// Over, and the controller has the result (or nobody wants it).
    Sent = 3,
    /// A remembered job whose restarts are used up: it starts again with the agent.
    Failed = 4,
    /// A recurring job between two runs.
    Scheduled = 5,
    /// A run under way was killed: nothing follows it.
    Ending = 6,
    /// A run under way is the last.
    Last = 7,
}

impl Standing {
    fn from_number(number: i64) -> Standing {
        match number {
            0 => Standing::Accepted,
            1 => Standing::Started,
            2 => Standing::Done,
            4 => Standing::Failed,
            5 => Standing::Scheduled,
            6 => Standing::Ending,
            7 => Standing::Last,
            _ => Standing::Sent,
        }
    }
}

/// One change of the table. Several go into one commit.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A new job.
    Accept {
        /// The job's id.
        id: String,
        /// The controller that it came from; empty for a startup job.
        controller: String,
        /// The command as JSON.
        command: String,
        /// Now, in milliseconds since 1970.
        now: i64,
    },
    /// A run begins.
    Start {
        /// The job's id.
        id: String,
        /// The start, in milliseconds since 1970.
        started: i64,
    },
    /// The job goes on, and stands otherwise.
    Stand {
        /// The job's id.
        id: String,
        /// Any but `Started`, `Done` and `Sent`.
        standing: Standing,
    },
    /// The result of one run of a job that goes on.
    Report {
        /// The job's id.
        id: String,
        /// When the run began, in milliseconds since 1970.
        started: i64,
        /// The result as JSON.
        result: String,
        /// Only the newest quiet one is kept until it is sent.
        quiet: bool,
    },
    /// The job is over.
    Finish {
        /// The job's id.
        id: String,
        /// Its result as JSON; nothing where nobody is to be told.
        result: Option<String>,
    },
}

impl Write {
    /// The job whose result it brings.
    fn result_of(&self) -> Option<&str> {
        match self {
            Write::Report { id, .. } | Write::Finish { id, result: Some(_) } => Some(id),
            _ => None,
        }
    }
}

/// A job that is not over, as it stands in the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The job's id.
    pub id: String,
    /// The controller that it came from; empty for a startup job.
    pub controller: String,
    /// The command as JSON.
    pub command: String,
    /// Where it stands.
    pub standing: Standing,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted: i64,
    /// When its last run began, in milliseconds since 1970; 0: never.
    pub started: i64,
    /// Whether a result of it was reported.
    pub reported: bool,
}

/// A result on its way to the controller.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsent {
    /// For [`Ledger::mark_sent`].
    pub key: i64,
    /// The result as JSON.
    pub json: String,
}

/// The open table; shared by the supervisor and the senders.
pub struct Ledger {
    table: Mutex<Table>,
    unsent_bytes: AtomicU64,
    /// What was found damaged at the opening: a sentence for the operators.
    damage: Option<String>,
}

struct Table {
    db: Connection,
    accepted_since_tidy: u64,
    /// The controllers that results can go to; nothing is all.
    known: Option<HashSet<String>>,
}

impl Ledger {
    /// Opens `data_dir/state.db`, making it when it is not there.
    ///
    /// A damaged file is set aside as `state.db.damaged-<epoch>`, and what can still be read of it is
    /// carried over; [`Ledger::damage`] then says so.
    pub fn open(data_dir: &Path) -> Result<Arc<Ledger>> {
        let path = data_dir.join(FILE);
        let (db, damage) = match open_table(&path) {
            Ok(db) => (db, None),
            Err(fault) if is_damage(&fault) => {
                let (db, damage) = replace_damaged(&path, &fault)?;
                (db, Some(damage))
            }
            Err(fault) => return Err(fault).with_context(|| format!("cannot open {}", path.display())),
        };
        let unsent: i64 = db
            .query_row("SELECT coalesce(sum(octet_length(result)), 0) FROM jobs WHERE state = 2", [], |row| row.get(0))
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Arc::new(Ledger {
            table: Mutex::new(Table { db, accepted_since_tidy: TIDY_EVERY, known: None }),
            unsent_bytes: AtomicU64::new(unsent.max(0) as u64),
            damage,
        }))
    }

    /// Says which controllers there are. Results for any other wait on the disk for it to come back, do
    /// not count as unsent, and of a job that goes on only the last one is kept.
    pub fn controllers<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let known: HashSet<String> = names.into_iter().map(str::to_owned).collect();
        let mut table = self.lock();
        let mut bytes = 0;
        {
            let mut query = table.db.prepare(
                "SELECT controller, sum(octet_length(result)) FROM jobs WHERE state = 2 GROUP BY controller",
            )?;
            let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            for row in rows {
                let (controller, waiting) = row?;
                match known.contains(&controller) {
                    true => bytes += waiting.max(0) as u64,
                    false => log::warn!(
                        "{waiting} bytes of results wait for the controller \"{controller}\", which is not configured"
                    ),
                }
            }
        }
        self.unsent_bytes.store(bytes, Ordering::Relaxed);
        table.known = Some(known);
        Ok(())
    }

    /// A sentence for the operators when the file was damaged and had to be replaced.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Whether a job of this id was accepted before.
    pub fn knows(&self, id: &str) -> Result<bool> {
        let table = self.lock();
        let mut query = table.db.prepare_cached("SELECT 1 FROM jobs WHERE id = ? AND run = 0")?;
        Ok(query.query_row([id], |_| Ok(())).optional()?.is_some())
    }

    /// The command of a job that is not over, as JSON.
    pub fn command(&self, id: &str) -> Result<Option<String>> {
        let table = self.lock();
        let mut query = table.db.prepare_cached("SELECT command FROM jobs WHERE id = ? AND run = 0")?;
        Ok(query.query_row([id], |row| row.get(0)).optional()?.flatten())
    }

    /// Makes these changes, all or none of them, and returns once they survive power loss.
    pub fn commit(&self, writes: &[Write]) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut table = self.lock();
        let Table { db, known, .. } = &mut *table;
        let mut unsent = 0i64;
        let mut accepted = 0u64;
        let transaction = db.transaction()?;
        for write in writes {
            let (grown, orphaned) = match (write.result_of(), &known) {
                (Some(id), Some(known)) => {
                    let orphaned = is_orphaned(&transaction, id, known)?;
                    (apply(&transaction, write, orphaned)?, orphaned)
                }
                _ => (apply(&transaction, write, false)?, false),
            };
            unsent += if orphaned { 0 } else { grown };
            accepted += u64::from(matches!(write, Write::Accept { .. }));
        }
        transaction.commit()?;
        self.count_unsent(unsent);
        table.accepted_since_tidy += accepted;
        Ok(())
    }

    /// The jobs that are not over, in the order of their acceptance.
    pub fn live(&self) -> Result<Vec<Row>> {
        read_live(&self.lock().db)
    }

    /// The oldest results that wait for this controller: at most `max_rows`, and about `max_bytes`
    /// (one that is longer still comes, alone).
    pub fn unsent(&self, controller: &str, max_rows: usize, max_bytes: usize) -> Result<Vec<Unsent>> {
        let table = self.lock();
        let mut query = table
            .db
            .prepare_cached("SELECT key, result FROM jobs WHERE state = 2 AND controller = ? ORDER BY key LIMIT ?")?;
        let rows = query.query_map(params![controller, max_rows as i64], |row| {
            Ok(Unsent { key: row.get(0)?, json: row.get(1)? })
        })?;
        let mut bytes = 0;
        let mut unsent = Vec::new();
        for row in rows {
            let row = row?;
            bytes += row.json.len();
            if bytes > max_bytes && !unsent.is_empty() {
                break;
            }
            unsent.push(row);
        }
        Ok(unsent)
    }

    /// The controller has these results. A mark that a power cut undoes costs a repetition, which is
    /// harmless, so this does not wait for the disk.
    pub fn mark_sent(&self, keys: &[i64]) -> Result<()> {
        let now = now_ms();
        let mut table = self.lock();
        table.db.execute_batch("PRAGMA synchronous = NORMAL")?;
        let marked = mark(&mut table.db, keys);
        let tidied = if marked.is_ok() && table.accepted_since_tidy >= TIDY_EVERY {
            table.accepted_since_tidy = 0;
            tidy(&table.db, now, REMEMBER_IDS)
        } else {
            Ok(())
        };
        table.db.execute_batch("PRAGMA synchronous = FULL")?;
        self.count_unsent(-marked?);
        tidied
    }

    /// Bytes of the results that wait for all controllers together.
    pub fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes.load(Ordering::Relaxed)
    }

    fn count_unsent(&self, change: i64) {
        // Never below zero: the number is a brake, and must not turn into a huge one by a wrap.
        let _ = self
            .unsent_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| Some(bytes.saturating_add_signed(change)));
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The jobs that are not over, read from a folder whose agent may be running or not.
pub fn read_only(data_dir: &Path) -> Result<Vec<Row>> {
    let path = data_dir.join(FILE);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&path, flags)
        .with_context(|| format!("cannot read {}; has an agent run there, and may you read it?", path.display()))?;
    db.busy_timeout(Duration::from_secs(5))?;
    read_live(&db).with_context(|| format!("cannot read {}", path.display()))
}

fn open_table(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(10))?;
    // A small page cache: the table is read by its indexes, and the agent is to stay small.
    db.execute_batch(
        "PRAGMA cache_size = -256;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA journal_size_limit = 4194304;",
    )?;
    let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(code, Some(verdict)));
    }
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS jobs(
             key INTEGER PRIMARY KEY AUTOINCREMENT,
             id TEXT NOT NULL,
             run INTEGER NOT NULL DEFAULT 0,
             controller TEXT NOT NULL,
             state INTEGER NOT NULL,
             accepted INTEGER NOT NULL,
             started INTEGER NOT NULL DEFAULT 0,
             reported INTEGER NOT NULL DEFAULT 0,
             command TEXT,
             result TEXT,
             UNIQUE(id, run));
         CREATE INDEX IF NOT EXISTS waiting ON jobs(controller, key) WHERE state = 2;
         CREATE INDEX IF NOT EXISTS live ON jobs(key) WHERE state IN (0, 1, 4, 5, 6, 7);",
    )?;
    db.set_prepared_statement_cache_capacity(16);
    Ok(db)
}

/// Whether the job's controller is none of these.
fn is_orphaned(db: &Connection, id: &str, known: &HashSet<String>) -> Result<bool> {
    let mut query = db.prepare_cached("SELECT controller FROM jobs WHERE id = ? AND run = 0")?;
    let controller: Option<String> = query.query_row([id], |row| row.get(0)).optional()?;
    Ok(controller.is_some_and(|controller| !controller.is_empty() && !known.contains(&controller)))
}

/// Makes one change; the answer is by how much the bytes of unsent results grew. `orphaned`: nobody
/// comes for the job's results.
fn apply(db: &Connection, write: &Write, orphaned: bool) -> Result<i64> {
    match write {
        Write::Accept { id, controller, command, now } => {
            // A startup job takes the place of whatever bore its id before; a result that still waits
            // to be sent only moves aside.
            if controller.is_empty() {
                db.prepare_cached(
                    "UPDATE OR REPLACE jobs SET run = max(started, 1) WHERE id = ? AND run = 0 AND state = 2",
                )?
                .execute([id])?;
            }
            let sql = match controller.is_empty() {
                true => "INSERT OR REPLACE INTO jobs(id, controller, state, accepted, command) VALUES(?, ?, 0, ?, ?)",
                false => "INSERT INTO jobs(id, controller, state, accepted, command) VALUES(?, ?, 0, ?, ?)",
            };
            db.prepare_cached(sql)?.execute(params![id, controller, now, command])?;
            Ok(0)
        }
        Write::Start { id, started } => {
            db.prepare_cached("UPDATE jobs SET state = 1, started = ? WHERE id = ? AND run = 0")?
                .execute(params![started, id])?;
            Ok(0)
        }
        Write::Stand { id, standing } => {
            db.prepare_cached("UPDATE jobs SET state = ? WHERE id = ? AND run = 0")?
                .execute(params![*standing as i64, id])?;
            Ok(0)
        }
        Write::Report { id, started, result, quiet } => {
            // Run -1 is the place of the one quiet result that waits.
            let run = if *quiet || orphaned { -1 } else { (*started).max(1) };
            let replaced: i64 = db
                .prepare_cached("SELECT coalesce(sum(octet_length(result)), 0) FROM jobs WHERE id = ? AND run = ?")?
                .query_row(params![id, run], |row| row.get(0))?;
            db.prepare_cached(
                "INSERT OR REPLACE INTO jobs(id, run, controller, state, accepted, result)
                 SELECT id, ?, controller, 2, accepted, ? FROM jobs WHERE id = ? AND run = 0",
            )?
            .execute(params![run, result, id])?;
            db.prepare_cached("UPDATE jobs SET reported = 1 WHERE id = ? AND run = 0")?.execute([id])?;
            Ok(result.len() as i64 - replaced)
        }
        Write::Finish { id, result: Some(result) } => {
            db.prepare_cached("UPDATE jobs SET state = 2, command = NULL, result = ? WHERE id = ? AND run = 0")?
                .execute(params![result, id])?;
            Ok(result.len() as i64)
        }
        Write::Finish { id, result: None } => {
            db.prepare_cached("UPDATE jobs SET state = 3, command = NULL, result = NULL WHERE id = ? AND run = 0")?
                .execute([id])?;
            Ok(0)
        }
    }
}

/// Marks results as sent; the answer is how many bytes of them there were.
fn mark(db: &mut Connection, keys: &[i64]) -> Result<i64> {
    let transaction = db.transaction()?;
    let mut bytes = 0;
    for key in keys {
        let length: Option<i64> = transaction
            .prepare_cached("SELECT octet_length(result) FROM jobs WHERE key = ? AND state = 2")?
            .query_row([key], |row| row.get(0))
            .optional()?;
        bytes += length.unwrap_or(0);
        transaction.prepare_cached("DELETE FROM jobs WHERE key = ? AND run <> 0")?.execute([key])?;
        transaction
            .prepare_cached("UPDATE jobs SET state = 3, result = NULL WHERE key = ? AND state = 2")?
            .execute([key])?;
    }
    transaction.commit()?;
    Ok(bytes)
}

/// Forgets ids that are older than a week or beyond the last `ids`. A job that is not over is kept,
/// however old: one whose restarts are used up starts again with the agent.
fn tidy(db: &Connection, now: i64, ids: u64) -> Result<()> {
    let oldest = now - REMEMBER.as_millis() as i64;
    db.execute("DELETE FROM jobs WHERE state = 3 AND accepted < ?", [oldest])?;
    db.execute(
        "DELETE FROM jobs WHERE state = 3 AND key <=
         (SELECT key FROM jobs WHERE run = 0 ORDER BY key DESC LIMIT 1 OFFSET ?)",
        [ids as i64],
    )?;
    Ok(())
}

fn read_live(db: &Connection) -> Result<Vec<Row>> {
    let mut query = db.prepare(
        "SELECT id, controller, coalesce(command, ''), state, accepted, started, reported
         FROM jobs WHERE state IN (0, 1, 4, 5, 6, 7) ORDER BY key",
    )?;
    let rows = query.query_map([], |row| {
        Ok(Row {
            id: row.get(0)?,
            controller: row.get(1)?,
            command: row.get(2)?,
            standing: Standing::from_number(row.get(3)?),
            accepted: row.get(4)?,
            started: row.get(5)?,
            reported: row.get(6)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn is_damage(fault: &rusqlite::Error) -> bool {
    matches!(fault.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Sets a damaged file aside and carries over what can still be read of it.
fn replace_damaged(path: &Path, fault: &rusqlite::Error) -> Result<(Connection, String)> {
    let aside = free_name(path);
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        if from.exists() {
            std::fs::rename(&from, &to).with_context(|| format!("cannot set {} aside", from.display()))?;
        }
    }
    let db = open_table(path).with_context(|| format!("cannot open {}", path.display()))?;
    let saved = salvage(&aside, &db);
    let damage = format!(
        "{} was damaged ({fault}) and is now {}; {saved} of its jobs could be carried over, any other is forgotten",
        path.display(),
        aside.display()
    );
    Ok((db, damage))
}

/// Copies row by row, and stops at what cannot be read, from both ends of the table.
fn salvage(aside: &Path, db: &Connection) -> u64 {
    const COLUMNS: &str = "id, run, controller, state, accepted, started, reported, command, result";
    let Ok(old) = Connection::open_with_flags(aside, OpenFlags::SQLITE_OPEN_READ_WRITE) else { return 0 };
    let mut saved = 0;
    for order in ["ASC", "DESC"] {
        let Ok(mut query) = old.prepare(&format!("SELECT {COLUMNS} FROM jobs NOT INDEXED ORDER BY key {order}")) else {
            return saved;
        };
        let Ok(mut rows) = query.query([]) else { return saved };
        while let Ok(Some(row)) = rows.next() {
            let values: rusqlite::Result<Vec<rusqlite::types::Value>> = (0..9).map(|i| row.get(i)).collect();
            let Ok(values) = values else { continue };
            let insert = format!("INSERT OR IGNORE INTO jobs({COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)");
            saved += db.execute(&insert, rusqlite::params_from_iter(values)).unwrap_or(0) as u64;
        }
    }
    saved
}

fn free_name(path: &Path) -> PathBuf {
    let seconds = now_ms() / 1000;
    (seconds..).map(|n| with_suffix(path, &format!(".damaged-{n}"))).find(|p| !p.exists()).unwrap_or_default()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

#[cfg(test)]
mod tests;
