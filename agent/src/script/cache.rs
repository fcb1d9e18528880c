//! The sources that came from a controller, kept on disk by their hash.
//!
//! Bounded: when a new one is kept, those go that were not used for the longest time. A file whose
//! content is not what its name says is none: it is fetched again.

use crate::platform;
use jscommon::token::sha256_hex;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A folder of sources.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    max_files: usize,
    max_bytes: u64,
}

impl Cache {
    /// The sources in `dir`: at most so many files, and so many bytes in all of them.
    pub(super) fn new(dir: PathBuf, max_files: usize, max_bytes: u64) -> Cache {
        Cache { dir, max_files, max_bytes }
    }

    /// Where the source of this hash lies, or would.
    pub(super) fn path(&self, hash: &str, ending: &str) -> PathBuf {
        self.dir.join(format!("{hash}.{ending}"))
    }

    /// The source of this hash, when it is here; from now on it is the one that was used last.
    pub(super) fn get(&self, hash: &str, ending: &str) -> Option<Vec<u8>> {
        let path = self.path(hash, ending);
        let source = jscommon::file::read(&path).ok()?;
        if sha256_hex(&source) != hash {
            log::warn!("{} is not what it was when it was stored, and is fetched again", path.display());
            let _ = fs::remove_file(&path);
            return None;
        }
        let touched = File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            log::debug!("{}: {error}", path.display());
        }
        Some(source)
    }

    /// Keeps a source, and lets the oldest go when there are too many.
    pub(super) fn put(&self, hash: &str, ending: &str, source: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let path = self.path(hash, ending);
        let new = self.dir.join(format!("{hash}.new"));
        fs::write(&new, source)?;
        platform::rename(&new, &path)?;
        self.shrink(&path)
    }

    fn shrink(&self, newest: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            if let Ok(meta) = entry.metadata()
                && meta.is_file()
            {
                // A file without a time is as good as oldest.
                files.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), entry.path(), meta.len()));
            }
        }
        files.sort();
        let mut bytes: u64 = files.iter().map(|(_, _, len)| len).sum();
        let mut count = files.len();
        for (_, path, len) in files {
            if count <= self.max_files && bytes <= self.max_bytes {
                break;
            }
            if path != newest && fs::remove_file(&path).is_ok() {
                count -= 1;
                bytes -= len;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Makes the file seem last used so long ago.
    fn age(cache: &Cache, hash: &str, seconds: u64) {
        let file = File::options().append(true).open(cache.path(hash, "py")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    fn fill(cache: &Cache, sources: &[&str]) -> Vec<String> {
        let keep = |source: &&str| {
            let hash = sha256_hex(source.as_bytes());
            cache.put(&hash, "py", source.as_bytes()).unwrap();
            hash
        };
        sources.iter().map(keep).collect()
    }

    #[test]
    fn the_oldest_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("scripts"), 3, 1000);
        let hashes = fill(&cache, &["a", "b", "c"]);
        for (hash, seconds) in hashes.iter().zip([300, 200, 100]) {
            age(&cache, hash, seconds);
        }
        // Being used makes it the newest.
        assert_eq!(cache.get(&hashes[0], "py").unwrap(), b"a");
        fill(&cache, &["d"]);
        assert_eq!(cache.get(&hashes[1], "py"), None);
        assert!(cache.get(&hashes[0], "py").is_some() && cache.get(&hashes[2], "py").is_some());
        assert_eq!(fs::read_dir(dir.path().join("scripts")).unwrap().count(), 3);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned(), 100, 25);
        let hashes = fill(&cache, &["0123456789", "123456789a"]);
        age(&cache, &hashes[0], 10);
        let last = fill(&cache, &["23456789ab"]).remove(0);
        assert_eq!(cache.get(&hashes[0], "py"), None);
        assert!(cache.get(&hashes[1], "py").is_some() && cache.get(&last, "py").is_some());
    }

    #[test]
    fn a_changed_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned(), 100, 1000);
        let hash = fill(&cache, &["good"]).remove(0);
        fs::write(cache.path(&hash, "py"), "evil").unwrap();
        assert_eq!(cache.get(&hash, "py"), None);
        assert!(!cache.path(&hash, "py").exists());
    }
}
