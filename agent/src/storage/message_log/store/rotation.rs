//! Room in the database: its bound, its WAL, rotation, and damaged files.

use super::{Look, ROTATE_PAUSE, Store, open};
use crate::platform::unix_ms;
use crate::storage::message_log::progress::PAGE;
use crate::storage::message_log::rows;
use crate::storage::sqlite::{self, Fault, beside, fault};
use anyhow::{Context, Result, anyhow};
use rusqlite::{Connection, OptionalExtension};
use std::sync::Arc;
use std::time::Instant;

impl Store {
    /// Most bytes of one transaction.
    pub(super) fn transaction(&self) -> usize {
        (self.wal_limit() / 4).min(512 << 10) as usize
    }

    /// The size that the WAL may reach before it is written into the database.
    fn wal_limit(&self) -> u64 {
        (self.rules.limit / 24).clamp(64 << 10, 4 << 20)
    }

    /// Bytes of rows that still fit below the limit: each takes its place in the WAL and in the database.
    pub(super) fn budget(&self) -> rusqlite::Result<usize> {
        let used = self.used()? + 16 * PAGE;
        Ok((self.rules.limit.saturating_sub(used) * 10 / 23) as usize)
    }

    /// Bytes of the database and its WAL.
    pub(super) fn used(&self) -> rusqlite::Result<u64> {
        let pages: i64 = self.db.prepare_cached("PRAGMA page_count")?.query_row([], |row| row.get(0))?;
        let wal = std::fs::metadata(beside(&self.log_files.current(), "-wal")).map_or(0, |file| file.len());
        Ok(pages as u64 * PAGE + wal.max(self.wal_used))
    }

    /// Most bytes of a database that cannot be rotated: what it and the rotated ones may have together, less
    /// what those have.
    pub(super) fn held_limit(&self) -> u64 {
        let free = self.rules.keep.saturating_sub(self.log_files.read().rotated());
        self.rules.limit.saturating_mul(free as u64 + 1)
    }

    pub(super) fn is_empty(&self) -> rusqlite::Result<bool> {
        let mut any = self.db.prepare_cached("SELECT 1 FROM messages LIMIT 1")?;
        Ok(any.query_row([], |_| Ok(())).optional()?.is_none())
    }

    /// Writes the WAL into the database once it is long enough; then it begins again from its start.
    pub(crate) fn checkpoint(&mut self) -> rusqlite::Result<()> {
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
    pub(super) fn rotate(&mut self) -> Result<bool> {
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
        let renamed = layout.rotate(unix_ms() as u64 / 1000);
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
    pub(super) fn keep(&self) {
        let mut layout = self.log_files.write();
        while layout.rotated() > self.rules.keep {
            layout.drop_oldest();
        }
    }

    /// Removes the oldest rotated database; says whether there was one.
    pub(crate) fn drop_oldest(&self) -> bool {
        self.log_files.write().drop_oldest()
    }

    /// Looks at a database that seems damaged, and sets it aside where it is; a new one begins when it is the
    /// current one. Says whether it was damaged.
    pub(crate) fn examine(&mut self, number: u64, error: &anyhow::Error) -> Result<bool> {
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

    pub(super) fn rename_damaged(&self, number: u64, error: &anyhow::Error) -> Result<()> {
        let mut layout = self.log_files.write();
        let path = layout.path(number).unwrap_or_default();
        let aside = layout
            .set_aside(number, unix_ms() as u64 / 1000)
            .with_context(|| format!("{} is damaged and cannot be set aside", path.display()))?;
        if let Some(aside) = aside {
            log::error!("{} is damaged ({error:#}); it is set aside as {}", path.display(), aside.display());
        }
        Ok(())
    }
}
