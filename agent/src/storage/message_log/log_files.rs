//! The databases of one node as files: which there are, in which order, and who may touch them.
//!
//! Owns the names in `data_dir/logs`: `current.db`, `<seconds>.db` for each rotated one,
//! `damaged-<seconds>.db` for what was set aside. A database is known by a number that it keeps when
//! it is rotated, so that a reader finds its place again.
//!
//! Readers hold the log files for reading while they have a database open, and only for a short time.
//! The message log holds it for writing when it renames or removes a file, or empties the WAL: then no
//! reader of this process is in the way.

use super::followers::Followers;
use crate::storage::sqlite::{self, ENDINGS, beside};
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Databases that were set aside and are kept for somebody to look at.
const KEEP_DAMAGED: usize = 2;

/// All databases.
#[derive(Debug)]
pub(super) struct LogFiles {
    dir: PathBuf,
    layout: RwLock<FileSet>,
    pub(super) followers: Followers,
}

/// Which databases there are.
#[derive(Debug)]
pub(super) struct FileSet {
    dir: PathBuf,
    /// Oldest first.
    rotated: VecDeque<Rotated>,
    /// The number of `current.db`.
    current: u64,
    /// Another program keeps `current.db` from being renamed. For tests.
    #[cfg(test)]
    pub(super) held: bool,
    /// How often that was tried meanwhile.
    #[cfg(test)]
    pub(super) tried: u32,
}

#[derive(Clone, Copy, Debug)]
struct Rotated {
    number: u64,
    /// Its name, in seconds since 1970.
    stamp: u64,
}

impl LogFiles {
    /// Looks at what is in `dir`, which is made when it is missing.
    pub(super) fn open(dir: &Path) -> Result<LogFiles> {
        fs::create_dir_all(dir).with_context(|| format!("the folder {} cannot be made", dir.display()))?;
        let entries = fs::read_dir(dir).with_context(|| format!("the folder {} cannot be read", dir.display()))?;
        let mut stamps: Vec<u64> =
            entries.flatten().filter_map(|entry| stamp(entry.file_name().to_str()?, "")).collect();
        stamps.sort_unstable();
        let rotated: VecDeque<Rotated> =
            stamps.iter().enumerate().map(|(n, stamp)| Rotated { number: n as u64, stamp: *stamp }).collect();
        let current = rotated.len() as u64;
        let dir = dir.to_owned();
        Ok(LogFiles {
            layout: RwLock::new(FileSet {
                dir: dir.clone(),
                rotated,
                current,
                #[cfg(test)]
                held: false,
                #[cfg(test)]
                tried: 0,
            }),
            followers: Followers::default(),
            dir,
        })
    }

    /// The database that is written to.
    pub(super) fn current(&self) -> PathBuf {
        self.dir.join("current.db")
    }

    /// No file changes its name or goes away while this is held; hold it for a short time.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, FileSet> {
        self.layout.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// No reader of this process has a database open while this is held.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, FileSet> {
        self.layout.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileSet {
    /// The number of the oldest database.
    pub(super) fn oldest(&self) -> u64 {
        self.rotated.front().map_or(self.current, |rotated| rotated.number)
    }

    /// The number of the database that is written to, which is the newest.
    pub(super) fn current(&self) -> u64 {
        self.current
    }

    /// How many rotated databases there are.
    pub(super) fn rotated(&self) -> usize {
        self.rotated.len()
    }

    /// Where the database of this number is, when it still is.
    pub(super) fn path(&self, number: u64) -> Option<PathBuf> {
        if number == self.current {
            return Some(self.dir.join("current.db"));
        }
        let rotated = self.rotated.iter().find(|rotated| rotated.number == number)?;
        Some(self.dir.join(format!("{}.db", rotated.stamp)))
    }

    /// Renames `current.db`, which nobody may have open, to its place among the rotated ones; `now` is
    /// in seconds since 1970. Names only grow, whatever the clock does.
    pub(super) fn rotate(&mut self, now: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.held {
            self.tried += 1;
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let stamp = self.rotated.back().map_or(now, |last| now.max(last.stamp + 1));
        rename(&self.dir.join("current.db"), &self.dir.join(format!("{stamp}.db")))?;
        self.rotated.push_back(Rotated { number: self.current, stamp });
        self.current += 1;
        Ok(())
    }

    /// Removes the oldest rotated database, or what was set aside; says whether there was one.
    pub(super) fn drop_oldest(&mut self) -> bool {
        if let Some(oldest) = self.rotated.pop_front() {
            remove(&self.dir.join(format!("{}.db", oldest.stamp)));
            return true;
        }
        match damaged(&self.dir).first() {
            Some((_, oldest)) => remove(oldest),
            None => return false,
        }
        true
    }

    /// Removes the rotated database of this number.
    pub(super) fn remove(&mut self, number: u64) {
        if let Some(path) = self.path(number).filter(|_| number != self.current) {
            remove(&path);
            self.rotated.retain(|rotated| rotated.number != number);
        }
    }

    /// Renames a damaged database, which nobody may have open, so that somebody may look at it, and
    /// says what it is called now. `now` is in seconds since 1970.
    pub(super) fn set_aside(&mut self, number: u64, now: u64) -> io::Result<Option<PathBuf>> {
        let Some(path) = self.path(number) else { return Ok(None) };
        let last = damaged(&self.dir).last().map_or(0, |(stamp, _)| stamp + 1);
        let aside = self.dir.join(format!("damaged-{}.db", now.max(last)));
        rename(&path, &aside)?;
        self.rotated.retain(|rotated| rotated.number != number);
        if number == self.current {
            self.current += 1;
        }
        let all = damaged(&self.dir);
        all.iter().take(all.len().saturating_sub(KEEP_DAMAGED)).for_each(|(_, path)| remove(path));
        Ok(Some(aside))
    }
}

/// The number in a name like `<prefix><number>.db`.
fn stamp(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(".db")?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// Returns the databases that were set aside, oldest first.
fn damaged(dir: &Path) -> Vec<(u64, PathBuf)> {
    let mut found: Vec<(u64, PathBuf)> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((stamp(entry.file_name().to_str()?, "damaged-")?, entry.path())))
        .collect();
    found.sort();
    found
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    sqlite::rename(from, to, |from, to| fs::rename(from, to))
}

fn remove(path: &Path) {
    for ending in ENDINGS {
        if let Err(e) = fs::remove_file(beside(path, ending))
            && e.kind() != io::ErrorKind::NotFound
        {
            log::error!("{}{ending} cannot be removed: {e}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn names_only_grow_and_places_stay() {
        let dir = TempDir::new().unwrap();
        for name in ["9.db", "100.db", "x.db", "current.db", "damaged-5.db", "7.db-wal", ".db"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let log_files = LogFiles::open(dir.path()).unwrap();
        let mut layout = log_files.write();
        assert_eq!((layout.oldest(), layout.current(), layout.rotated()), (0, 2, 2));
        assert_eq!(layout.path(0), Some(dir.path().join("9.db")));
        layout.rotate(50).unwrap();
        assert_eq!(layout.path(2), Some(dir.path().join("101.db")));
        assert_eq!(layout.path(3), Some(log_files.current()));
        fs::write(log_files.current(), "again").unwrap();
        layout.rotate(1000).unwrap();
        assert_eq!(layout.path(3), Some(dir.path().join("1000.db")));
        assert!(layout.drop_oldest());
        assert_eq!((layout.path(0), layout.oldest()), (None, 1));
        layout.remove(2);
        assert!(!dir.path().join("101.db").exists());
        while layout.drop_oldest() {}
        assert_eq!(layout.rotated(), 0);
        assert!(!dir.path().join("damaged-5.db").exists() && dir.path().join("x.db").exists());
    }

    #[test]
    fn damaged_database_is_set_aside_with_its_wal() {
        let dir = TempDir::new().unwrap();
        let log_files = LogFiles::open(dir.path()).unwrap();
        let mut layout = log_files.write();
        for n in 0..4 {
            fs::write(log_files.current(), "x").unwrap();
            fs::write(beside(&log_files.current(), "-wal"), "x").unwrap();
            let aside = layout.set_aside(n, 5).unwrap().unwrap();
            assert!(aside.exists() && beside(&aside, "-wal").exists());
            assert_eq!(layout.current(), n + 1);
        }
        assert_eq!(damaged(dir.path()).len(), KEEP_DAMAGED);
        assert!(!log_files.current().exists());
    }
}
