//! The life of a database file: opened, checked, set aside and made anew when it is damaged, opened again.
//!
//! The job store, the upload queue and the message log each say by a [`Format`] how their file is opened, and
//! what a damaged one is called once it is set aside.

use crate::platform;
use anyhow::{Context, Result};
use rusqlite::{Connection, ErrorCode, ffi};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The suffixes of the files of a database: the file itself, and those beside it.
pub(crate) const ENDINGS: [&str; 3] = ["", "-wal", "-shm"];

/// About so large a write-ahead log grows, whatever the size of a page is: 1000 pages of 4096 bytes, as by default.
const WAL_BYTES: i64 = 4_096_000;

/// The meaning of an SQLite error for a user of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The disk is full.
    Full,
    /// The file may be no good database; only a fresh look at it can confirm that.
    Damaged,
    /// Another program holds a lock.
    Busy,
    /// The statement or its values are refused; others may pass.
    Content,
    /// The file cannot be used for now: too many open files, missing rights, an error of the disk.
    Unavailable,
}

/// Returns the meaning of this error.
pub(crate) fn fault(error: &rusqlite::Error) -> Fault {
    let rusqlite::Error::SqliteFailure(e, _) = error else {
        // Statements of the agent that do not fit mean that the tables are not its own.
        return if matches!(error, rusqlite::Error::SqlInputError { .. }) { Fault::Damaged } else { Fault::Content };
    };
    match (e.code, e.extended_code) {
        (ErrorCode::DiskFull, _) | (_, ffi::SQLITE_IOERR_SHMSIZE) => Fault::Full,
        (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown, _) => Fault::Damaged,
        (_, ffi::SQLITE_IOERR_SHORT_READ) => Fault::Damaged,
        (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => Fault::Busy,
        (
            ErrorCode::ConstraintViolation
            | ErrorCode::TooBig
            | ErrorCode::TypeMismatch
            | ErrorCode::ParameterOutOfRange,
            _,
        ) => Fault::Content,
        _ => Fault::Unavailable,
    }
}

/// Returns the meaning of this error where SQLite is one of its causes; other errors are the file system's.
pub(crate) fn fault_of(error: &anyhow::Error) -> Fault {
    error.chain().find_map(|cause| cause.downcast_ref::<rusqlite::Error>()).map_or(Fault::Unavailable, fault)
}

/// How a database is opened.
pub(crate) struct Format {
    /// How long a lock of another program is waited for.
    pub(crate) busy_timeout: Duration,
    /// The settings of a connection.
    pub(crate) pragmas: &'static str,
    /// The tables, which are made where they are missing.
    pub(crate) schema: &'static str,
}

impl Format {
    /// Opens the file, or makes it; a `thorough` look reads all of it. A damaged file is an error, and so is a
    /// place where SQLite cannot write ahead.
    pub(crate) fn open(&self, path: &Path, thorough: bool) -> rusqlite::Result<Connection> {
        let db = Connection::open(path)?;
        db.busy_timeout(self.busy_timeout)?;
        db.execute_batch(self.pragmas)?;
        let journal: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if journal != "wal" {
            let why = format!(
                "SQLite cannot write ahead there (its journal mode stays \"{journal}\"); put data_dir on a local file system"
            );
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CANTOPEN), Some(why)));
        }
        let page: i64 = db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        db.execute_batch(&format!("PRAGMA wal_autocheckpoint = {}", WAL_BYTES / page.max(512)))?;
        if thorough {
            check(&db)?;
        }
        db.execute_batch(self.schema)?;
        Ok(db)
    }
}

/// Does `work` in one transaction; where it fails nothing of it is stored. Its statements are prepared once: to parse them
/// for each transaction costs as much as to write a row.
pub(crate) fn transaction<T>(db: &Connection, work: impl FnOnce() -> Result<T>) -> Result<T> {
    begin(db)?;
    end(db, work())
}

/// Begins a transaction.
pub(crate) fn begin(db: &Connection) -> Result<()> {
    db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

/// Commits what was `done` in the transaction, or takes it back.
pub(crate) fn end<T>(db: &Connection, done: Result<T>) -> Result<T> {
    let done = done.and_then(|done| {
        db.prepare_cached("COMMIT")?.execute([])?;
        Ok(done)
    });
    if done.is_err() && !db.is_autocommit() {
        let _ = db.execute_batch("ROLLBACK");
    }
    done
}

/// Opens a database; one that `is_damaged` finds damaged is set aside, and a new one made. Returns what
/// `set_aside` returned as well.
pub(crate) fn open_or_replace<T, A>(
    open: impl Fn() -> Result<T>,
    is_damaged: impl FnOnce(&anyhow::Error) -> bool,
    set_aside: impl FnOnce(&anyhow::Error) -> Result<A>,
) -> Result<(T, Option<A>)> {
    match open() {
        Err(fault) if is_damaged(&fault) => {
            let aside = set_aside(&fault)?;
            Ok((open()?, Some(aside)))
        }
        opened => Ok((opened?, None)),
    }
}

/// Does `work` with an open database. Where its file seems damaged, `reopen` takes a fresh look at it, and `work`
/// is done again.
pub(crate) fn with_reopened<S, T>(
    state: &mut S,
    is_open: bool,
    reopen: impl Fn(&mut S) -> Result<()>,
    mut work: impl FnMut(&mut S) -> Result<T>,
) -> Result<T> {
    if !is_open {
        reopen(state)?;
    }
    match work(state) {
        Err(fault) if is_damaged(&fault) => {
            reopen(state)?;
            work(state)
        }
        done => done,
    }
}

/// Sets a damaged database aside, which nobody may have open.
pub(crate) fn set_aside(path: &Path, aside: &Path, fault: &anyhow::Error) -> Result<()> {
    rename(path, aside, platform::rename).with_context(|| {
        format!("{} is damaged ({fault:#}) and cannot be set aside as {}", path.display(), aside.display())
    })
}

/// Whether the file may be no good database.
pub(crate) fn is_damaged(error: &anyhow::Error) -> bool {
    fault_of(error) == Fault::Damaged
}

/// Whether SQLite itself says that the file is no good database; foreign tables are none of that.
pub(crate) fn is_corrupt(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref().and_then(rusqlite::Error::sqlite_error_code);
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Reads through a whole database; one that is damaged is an error.
pub(crate) fn check(db: &Connection) -> rusqlite::Result<()> {
    let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match verdict.as_str() {
        "ok" => Ok(()),
        _ => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(verdict))),
    }
}

/// The file of a database, or of what belongs to it.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Renames a database, which nobody may have open, with what belongs to it: all of it or nothing.
pub(crate) fn rename(from: &Path, to: &Path, rename: impl Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    // The WAL goes first: a database without its WAL is an older one, a WAL without its database is nothing.
    let mut done: Vec<&str> = Vec::new();
    for ending in ENDINGS.into_iter().rev() {
        match rename(&beside(from, ending), &beside(to, ending)) {
            Ok(()) => done.push(ending),
            Err(e) if !ending.is_empty() && e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                for ending in done {
                    let _ = rename(&beside(to, ending), &beside(from, ending));
                }
                return Err(e);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bad_file_is_damage() {
        let of = |code| fault(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for (code, want) in [
            (ffi::SQLITE_FULL, Fault::Full),
            (ffi::SQLITE_CORRUPT, Fault::Damaged),
            (ffi::SQLITE_NOTADB, Fault::Damaged),
            (ffi::SQLITE_IOERR_SHORT_READ, Fault::Damaged),
            (ffi::SQLITE_BUSY, Fault::Busy),
            (ffi::SQLITE_CONSTRAINT, Fault::Content),
            (ffi::SQLITE_CANTOPEN, Fault::Unavailable),
            (ffi::SQLITE_IOERR, Fault::Unavailable),
            (ffi::SQLITE_IOERR_WRITE, Fault::Unavailable),
            (ffi::SQLITE_IOERR_FSYNC, Fault::Unavailable),
            (ffi::SQLITE_READONLY, Fault::Unavailable),
            (ffi::SQLITE_READONLY_DIRECTORY, Fault::Unavailable),
            (ffi::SQLITE_PERM, Fault::Unavailable),
            (ffi::SQLITE_NOMEM, Fault::Unavailable),
        ] {
            assert_eq!(of(code), want, "{code}");
        }
    }

    #[test]
    fn failed_rename_leaves_everything_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a.db"), dir.path().join("b.db"));
        for ending in ENDINGS {
            std::fs::write(beside(&from, ending), ending).unwrap();
        }
        let held = |a: &Path, b: &Path| match a == from {
            true => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            false => std::fs::rename(a, b),
        };
        assert!(rename(&from, &to, held).is_err());
        let there = |path: &Path| ENDINGS.map(|ending| beside(path, ending).exists());
        assert_eq!((there(&from), there(&to)), ([true; 3], [false; 3]));
        rename(&from, &to, |a, b| std::fs::rename(a, b)).unwrap();
        assert_eq!((there(&from), there(&to)), ([false; 3], [true; 3]));
    }
}
