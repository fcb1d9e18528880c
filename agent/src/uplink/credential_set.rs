//! Files that are replaced as one set, old or new: one rename decides.
//!
//! A journal beside one of them, the first, holds the new text of all of them. Once it has its name the set is the
//! new one. Each reader of the files reads the journal before them. A new text that is not in place yet is put
//! there, at once or by a later start. A journal is void when one of its files is neither as it was nor as
//! it is to be, for then somebody has written it since.

use crate::platform;
use anyhow::{Context, Result};
use jscommon::token::sha256_hex;
use jscommon::{failpoint, file};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The file extension of a journal.
const ENDING: &str = "renewal";

#[derive(Deserialize, Serialize)]
struct Entry {
    path: String,
    /// The SHA-256 of the file before; empty: there was none.
    before: String,
    text: String,
}

/// New texts of files, which are decided and not all in place yet.
#[derive(Default)]
pub(super) struct Decided(Vec<Entry>);

/// Returns where the journal of a set lies whose first file is `first`.
fn journal(first: &Path) -> PathBuf {
    first.with_added_extension(ENDING)
}

/// Returns the digest of a file, empty when there is none.
fn digest(path: &Path) -> io::Result<String> {
    match file::read(path) {
        Ok(bytes) => Ok(sha256_hex(&bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Replaces files that only their owner can read, all or none; the journal lies beside `first`. `false`: the
/// new set holds, but not every file could be put in place; [`finish`] tries that again.
pub(crate) fn replace(first: &Path, files: &[(&Path, String)]) -> Result<bool> {
    let journal = journal(first);
    let cannot = || format!("cannot write {}", journal.display());
    let mut entries = Vec::with_capacity(files.len());
    for (path, text) in files {
        let before = digest(path).with_context(|| format!("cannot read {}", path.display()))?;
        let path = std::path::absolute(path).with_context(cannot)?;
        let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned();
        entries.push(Entry { path, before, text: text.clone() });
    }
    let decided = Decided(entries);
    let new = journal.with_added_extension("new");
    let written = serde_json::to_vec(&decided.0).with_context(cannot)?;
    platform::write_private(&new, &written).with_context(cannot)?;
    failpoint::hit("agent.credentials.written");
    platform::rename(&new, &journal).with_context(cannot)?;
    sync_folders([journal.as_path()]);
    failpoint::hit("agent.credentials.decided");
    Ok(decided.put(&journal))
}

/// Puts the files of a decided set in place where that was interrupted; `false` when one still cannot be.
pub(crate) fn finish(first: &Path) -> bool {
    let journal = journal(first);
    match Decided::read(&journal) {
        Ok(decided) => {
            log::info!("finishing the interrupted renewal of {}", journal.display());
            decided.put(&journal)
        }
        Err(error) => match error.downcast_ref().map(io::Error::kind) {
            Some(ErrorKind::NotFound) => true,
            // It may be the only place of a new key, and is read later.
            Some(_) => {
                log::warn!(
                    "cannot read {} to finish a renewal: {error:#}; may this account read it?",
                    journal.display()
                );
                false
            }
            None => {
                log::warn!("{} is dropped: {error:#}", journal.display());
                let _ = fs::remove_file(&journal);
                true
            }
        },
    }
}

impl Decided {
    /// Reads what is decided of the set whose first file is `first`; nothing of a void journal. One that
    /// cannot be read is an error, for the files are not a set without it.
    pub(super) fn of(first: &Path) -> Result<Decided> {
        let journal = journal(first);
        match Decided::read(&journal) {
            Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() != ErrorKind::NotFound) => {
                Err(error).with_context(|| format!("cannot read {}", journal.display()))
            }
            decided => Ok(decided.unwrap_or_default()),
        }
    }

    fn read(journal: &Path) -> Result<Decided> {
        if let Some(fault) = platform::entry_fault(journal) {
            anyhow::bail!(fault);
        }
        let entries: Vec<Entry> = serde_json::from_slice(&file::read(journal)?).context("it is damaged")?;
        for entry in &entries {
            // One that cannot be read now is open in another program, and not written.
            let now = digest(Path::new(&entry.path)).unwrap_or_else(|_| entry.before.clone());
            let known = now == entry.before || now == sha256_hex(entry.text.as_bytes());
            anyhow::ensure!(known, "{} was written by somebody else since", entry.path);
        }
        Ok(Decided(entries))
    }

    /// Returns the new text of a file, `None` when there is none.
    fn text(&self, path: &Path) -> Option<&str> {
        let path = std::path::absolute(path).ok()?;
        self.0.iter().find(|entry| Path::new(&entry.path) == path).map(|entry| entry.text.as_str())
    }

    /// Reads a file as it is decided, or as it is.
    pub(super) fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.text(path).map_or_else(|| file::read(path), |text| Ok(text.as_bytes().to_vec()))
    }

    /// Puts the files in place and removes the journal; `false` when one could not be.
    fn put(&self, journal: &Path) -> bool {
        self.put_by(journal, platform::rename)
    }

    fn put_by(&self, journal: &Path, rename: impl Fn(&Path, &Path) -> io::Result<()>) -> bool {
        let mut done = true;
        for entry in &self.0 {
            let path = Path::new(&entry.path);
            if digest(path).is_ok_and(|now| now == sha256_hex(entry.text.as_bytes())) {
                continue;
            }
            let new = path.with_added_extension("new");
            if let Err(error) = platform::write_private(&new, entry.text.as_bytes()).and_then(|()| rename(&new, path)) {
                log::warn!("cannot write {} yet, its new text is in {}: {error}", path.display(), journal.display());
                let _ = fs::remove_file(&new);
                done = false;
            }
            failpoint::hit("agent.credentials.replaced");
        }
        if done {
            sync_folders(self.0.iter().map(|entry| Path::new(&entry.path)));
            let _ = fs::remove_file(journal);
            sync_folders([journal]);
        }
        done
    }
}

/// Brings the names of these files to the disk, as far as the system can.
fn sync_folders<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    let mut folders: Vec<&Path> = paths.into_iter().filter_map(Path::parent).collect();
    folders.dedup();
    for folder in folders {
        if let Err(error) = platform::sync_dir(folder) {
            log::warn!("cannot bring {} to the disk: {error}", folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three files of a set, old, and their new texts.
    fn old(dir: &Path) -> Vec<(PathBuf, String)> {
        let files = ["token", "key", "cert"].map(|name| (dir.join(name), format!("new {name}")));
        files.iter().for_each(|(path, _)| fs::write(path, "old").unwrap());
        files.into()
    }

    fn by_ref(files: &[(PathBuf, String)]) -> Vec<(&Path, String)> {
        files.iter().map(|(path, text)| (path.as_path(), text.clone())).collect()
    }

    /// Decides a set, and puts none of its files in place.
    fn decide(files: &[(PathBuf, String)]) -> PathBuf {
        let entry = |(path, text): &(PathBuf, String)| Entry {
            path: path.to_str().unwrap().to_owned(),
            before: digest(path).unwrap(),
            text: text.clone(),
        };
        let entries: Vec<Entry> = files.iter().map(entry).collect();
        let journal = journal(&files[0].0);
        fs::write(&journal, serde_json::to_vec(&entries).unwrap()).unwrap();
        journal
    }

    fn texts(files: &[(PathBuf, String)]) -> Vec<String> {
        files.iter().map(|(path, _)| fs::read_to_string(path).unwrap()).collect()
    }

    #[test]
    fn set_is_in_place_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let files = old(dir.path());
        fs::remove_file(&files[2].0).unwrap();
        assert!(replace(&files[0].0, &by_ref(&files)).unwrap());
        assert_eq!(texts(&files), ["new token", "new key", "new cert"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn interrupted_set_is_read_whole_and_finished() {
        // So many files were in place when it was interrupted.
        for placed in 0..=3 {
            let dir = tempfile::tempdir().unwrap();
            let files = old(dir.path());
            let journal = decide(&files);
            files.iter().take(placed).for_each(|(path, text)| fs::write(path, text).unwrap());
            let decided = Decided::of(&files[0].0).unwrap();
            for (path, text) in &files {
                assert_eq!(decided.text(path), Some(text.as_str()), "{placed}");
            }
            assert!(finish(&files[0].0));
            assert_eq!(texts(&files), ["new token", "new key", "new cert"]);
            assert!(!journal.exists() && Decided::of(&files[0].0).unwrap().text(&files[0].0).is_none());
        }
    }

    #[test]
    fn set_that_is_not_decided_is_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = old(dir.path());
        fs::write(journal(&files[0].0).with_added_extension("new"), "[{\"pa").unwrap();
        assert!(finish(&files[0].0) && Decided::of(&files[0].0).unwrap().text(&files[0].0).is_none());
        assert_eq!(texts(&files), ["old"; 3]);
        fs::write(journal(&files[0].0), "[{\"pa").unwrap();
        assert!(Decided::of(&files[0].0).unwrap().text(&files[0].0).is_none());
        assert!(finish(&files[0].0) && !journal(&files[0].0).exists());
        assert_eq!(texts(&files), ["old"; 3]);
    }

    #[test]
    fn file_that_cannot_be_replaced_keeps_the_set_decided() {
        let dir = tempfile::tempdir().unwrap();
        let files = old(dir.path());
        let journal = decide(&files);
        let decided = Decided::read(&journal).unwrap();
        let busy = |from: &Path, to: &Path| match to == files[1].0 {
            true => Err(io::Error::from(ErrorKind::PermissionDenied)),
            false => fs::rename(from, to),
        };
        assert!(!decided.put_by(&journal, busy));
        assert_eq!(texts(&files), ["new token", "old", "new cert"]);
        assert_eq!(Decided::of(&files[0].0).unwrap().text(&files[1].0), Some("new key"));
        assert!(finish(&files[0].0));
        assert_eq!(texts(&files), ["new token", "new key", "new cert"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn journal_is_void_once_a_file_was_written_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let files = old(dir.path());
        let journal = decide(&files);
        files.iter().for_each(|(path, _)| fs::write(path, "enrolled anew").unwrap());
        assert!(Decided::of(&files[0].0).unwrap().text(&files[0].0).is_none());
        assert!(finish(&files[0].0) && !journal.exists());
        assert_eq!(texts(&files), ["enrolled anew"; 3]);
    }

    #[cfg(unix)]
    #[test]
    fn journal_that_cannot_be_read_for_now_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let files = old(dir.path());
        let (journal, kept) = (decide(&files), dir.path().join("kept"));
        // Reading a folder fails for every account.
        fs::rename(&journal, &kept).unwrap();
        std::os::unix::fs::symlink(dir.path(), &journal).unwrap();
        assert!(!finish(&files[0].0) && journal.is_symlink());
        assert!(Decided::of(&files[0].0).is_err(), "the old files are no set");
        fs::rename(&kept, &journal).unwrap();
        assert!(finish(&files[0].0));
        assert_eq!(texts(&files), ["new token", "new key", "new cert"]);
    }
}
