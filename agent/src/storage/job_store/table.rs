//! The table itself: its form, and each change as SQL.

use super::{JobUpdate, Row};
use crate::job::JobState;
use crate::storage::sqlite::{self, Format};
use anyhow::Result;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

/// The file waits for the disk with each commit, and is written ahead: what [`super::JobStore::sync`] brings to the
/// disk is that file. A small page cache: the table is read by its indexes, and the agent is to stay small. Small pages,
/// few indexes and keys that are counted in memory: a job writes whole pages three times (37 KB with pages of 4096 bytes,
/// an index of what lives and `AUTOINCREMENT`, 6.5 KB now), and what lives is looked for at the start alone.
const FORMAT: Format = Format {
    busy_timeout: Duration::from_secs(10),
    pragmas: "PRAGMA page_size = 1024; PRAGMA cache_size = -256; PRAGMA synchronous = FULL;
        PRAGMA journal_size_limit = 4194304",
    schema: "CREATE TABLE IF NOT EXISTS jobs(
             key INTEGER PRIMARY KEY,
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
         CREATE INDEX IF NOT EXISTS waiting ON jobs(controller, key) WHERE state = 2;",
};

/// Opens the file, or makes it.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let db = FORMAT.open(path, true)?;
    db.set_prepared_statement_cache_capacity(24);
    // Agents of 0.1.0 have made it. On a full disk it stays until there is room.
    let _ = db.execute_batch("DROP INDEX IF EXISTS live");
    Ok(db)
}

/// The key of the next row, as far as the table tells; keys of rows that are gone may be lower.
pub(super) fn next_key(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT coalesce(max(key), 0) + 1 FROM jobs", [], |row| row.get(0))
}

/// Whether the job's controller is none of these.
pub(super) fn is_orphaned(db: &Connection, id: &str, known: &HashSet<String>) -> Result<bool> {
    let mut query = db.prepare_cached("SELECT controller FROM jobs WHERE id = ? AND run = 0")?;
    let controller: Option<String> = query.query_row([id], |row| row.get(0)).optional()?;
    Ok(controller.is_some_and(|controller| !controller.is_empty() && !known.contains(&controller)))
}

/// Makes one change; the answer is by how much the bytes of unsent results grew. `orphaned`: nobody
/// comes for the job's results. A new row takes `next_key`, which no row had before in this life of the agent: a sender
/// may still have the key of one that is gone.
pub(super) fn apply(db: &Connection, write: &JobUpdate, orphaned: bool, next_key: &mut i64) -> Result<i64> {
    match write {
        JobUpdate::Accept { id, controller, command, now } => {
            // A startup job takes the place of whatever bore its id before; a result that still waits
            // to be sent only moves aside.
            if controller.is_empty() {
                db.prepare_cached(
                    "UPDATE OR REPLACE jobs SET run = max(started, 1) WHERE id = ? AND run = 0 AND state = 2",
                )?
                .execute([id])?;
            }
            let sql = match controller.is_empty() {
                true => {
                    "INSERT OR REPLACE INTO jobs(key, id, controller, state, accepted, command) VALUES(?, ?, ?, 0, ?, ?)"
                }
                false => "INSERT INTO jobs(key, id, controller, state, accepted, command) VALUES(?, ?, ?, 0, ?, ?)",
            };
            db.prepare_cached(sql)?.execute(params![*next_key, id, controller, now, command])?;
            *next_key += 1;
            Ok(0)
        }
        JobUpdate::Start { id, started } => {
            db.prepare_cached("UPDATE jobs SET state = 1, started = ? WHERE id = ? AND run = 0")?
                .execute(params![started, id])?;
            Ok(0)
        }
        JobUpdate::SetState { id, state } => {
            db.prepare_cached("UPDATE jobs SET state = ? WHERE id = ? AND run = 0")?
                .execute(params![*state as i64, id])?;
            Ok(0)
        }
        JobUpdate::Report { id, started, result, quiet } => {
            // Run -1 is the place of the one quiet result that waits.
            let run = if *quiet || orphaned { -1 } else { (*started).max(1) };
            let replaced: i64 = db
                .prepare_cached("SELECT coalesce(sum(octet_length(result)), 0) FROM jobs WHERE id = ? AND run = ?")?
                .query_row(params![id, run], |row| row.get(0))?;
            db.prepare_cached(
                "INSERT OR REPLACE INTO jobs(key, id, run, controller, state, accepted, result)
                 SELECT ?, id, ?, controller, 2, accepted, ? FROM jobs WHERE id = ? AND run = 0",
            )?
            .execute(params![*next_key, run, result, id])?;
            *next_key += 1;
            db.prepare_cached("UPDATE jobs SET reported = 1 WHERE id = ? AND run = 0")?.execute([id])?;
            Ok(result.len() as i64 - replaced)
        }
        JobUpdate::Finish { id, result: Some(result), .. } => {
            db.prepare_cached("UPDATE jobs SET state = 2, command = NULL, result = ? WHERE id = ? AND run = 0")?
                .execute(params![result, id])?;
            Ok(result.len() as i64)
        }
        JobUpdate::Finish { id, result: None, .. } => {
            db.prepare_cached("UPDATE jobs SET state = 3, command = NULL, result = NULL WHERE id = ? AND run = 0")?
                .execute([id])?;
            Ok(0)
        }
    }
}

/// Marks results as sent; the answer is how many bytes of them there were.
pub(super) fn mark(db: &Connection, keys: &[i64]) -> Result<i64> {
    sqlite::transaction(db, || {
        let mut bytes = 0;
        for key in keys {
            let length: Option<i64> = db
                .prepare_cached("SELECT octet_length(result) FROM jobs WHERE key = ? AND state = 2")?
                .query_row([key], |row| row.get(0))
                .optional()?;
            bytes += length.unwrap_or(0);
            db.prepare_cached("DELETE FROM jobs WHERE key = ? AND run <> 0")?.execute([key])?;
            db.prepare_cached("UPDATE jobs SET state = 3, result = NULL WHERE key = ? AND state = 2")?
                .execute([key])?;
        }
        Ok(bytes)
    })
}

/// The jobs that are not over, in the order of their acceptance.
pub(super) fn read_live(db: &Connection) -> Result<Vec<Row>> {
    let mut query = db.prepare(
        "SELECT id, controller, coalesce(command, ''), state, accepted, started, reported
         FROM jobs WHERE state IN (0, 1, 4, 5, 6, 7) ORDER BY key",
    )?;
    let rows = query.query_map([], |row| {
        Ok(Row {
            id: text(row, 0)?,
            controller: text(row, 1)?,
            command: text(row, 2)?,
            state: JobState::from_number(row.get(3)?),
            accepted: row.get(4)?,
            started: row.get(5)?,
            reported: row.get(6)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A text, whatever bytes it has: one that is no UTF-8 must not hold up the rows beside it.
pub(super) fn text(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
    })
}
