//! The private folder of a controller's socket, and the removal of those that killed controllers left behind.
//!
//! Owns: the folder's name, and the lock that says that its controller lives. Does not own: the socket in it.
//!
//! The lock is a file lock: it holds for processes of other containers too, which may share the folder for
//! temporary files and number their processes anew.

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How such a folder's name begins.
const PREFIX: &str = "jsacc-";
/// The locked file in it.
const LOCK: &str = "lock";
/// A folder without a lock is being made, or is an old one once it has this age.
const MIN_STALE_AGE: Duration = Duration::from_secs(60);

/// A new folder below `parent` that nobody else may look into, and its lock; folders that killed controllers
/// left behind go.
pub(super) fn private(parent: &Path) -> anyhow::Result<(PathBuf, Flock<File>)> {
    sweep(parent);
    let folder = parent.join(format!("{PREFIX}{}-{:08x}", std::process::id(), fastrand::u32(..)));
    let failed = || format!("cannot make {}, where the socket of the web server goes", folder.display());
    DirBuilder::new().mode(0o700).create(&folder).with_context(failed)?;
    // Under its name it appears locked.
    let fresh = folder.join("lock.new");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).with_context(failed)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).with_context(failed)?;
    fs::rename(&fresh, folder.join(LOCK)).with_context(failed)?;
    Ok((folder, lock))
}

/// Removes the folders of controllers that are no more; another user's stay, for they cannot be removed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split_once('-'));
        let is_ours = pid.is_some_and(|(pid, _)| pid.parse::<u32>().is_ok());
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_dead(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether the controller of `folder` has ended.
fn is_dead(folder: &Path) -> bool {
    match OpenOptions::new().write(true).open(folder.join(LOCK)) {
        Ok(file) => Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let changed = fs::metadata(folder).and_then(|meta| meta.modified());
            let is_old = changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= MIN_STALE_AGE));
            is_old && UnixStream::connect(folder.join("http")).is_err()
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn age(folder: &Path) {
        let long_ago = std::time::SystemTime::now() - 2 * MIN_STALE_AGE;
        File::open(folder).unwrap().set_modified(long_ago).unwrap();
    }

    #[test]
    fn a_folder_goes_when_its_lock_is_free_whatever_its_process_id() {
        let parent = tempfile::tempdir().unwrap();
        let (live, held) = private(parent.path()).unwrap();
        // As another container has it: its process id means nothing here.
        let foreign = parent.path().join("jsacc-4194305-0000002a");
        fs::rename(&live, &foreign).unwrap();
        let (other, _other_held) = private(parent.path()).unwrap();
        assert!(foreign.exists(), "its controller lives");
        drop(held);
        sweep(parent.path());
        assert!(!foreign.exists() && other.exists());
    }

    #[test]
    fn a_folder_without_a_lock_goes_when_it_is_old_and_nobody_listens() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = parent.path().join(name);
            fs::create_dir(&folder).unwrap();
            folder
        };
        let (fresh, old, listening) = (make("jsacc-1-a"), make("jsacc-4194305-b"), make("jsacc-4194305-c"));
        let (others, listener) = (make("jsacc-x-d"), UnixListener::bind(listening.join("http")).unwrap());
        [&old, &listening, &others].into_iter().for_each(|folder| age(folder));
        sweep(parent.path());
        assert!(fresh.exists() && listening.exists() && others.exists() && !old.exists());
        drop(listener);
        age(&listening);
        sweep(parent.path());
        assert!(!listening.exists());
    }
}
