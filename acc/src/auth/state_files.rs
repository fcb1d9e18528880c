//! How files of the state directory come to be: whole or not at all, and belonging to the account of the service.

use anyhow::Context;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The certificate of the built-in CA.
pub(crate) const CA_CERTIFICATE: &str = "ca.pem";
/// Its key.
pub(crate) const CA_KEY: &str = "ca.key";
/// The node secrets.
pub(crate) const NODE_SECRET: &str = "node.secret";
/// The ticket key. It is written once Redis has the same one.
pub(crate) const TICKET_KEY: &str = "ticket.key";

/// Writes a file whole: under another name, to the disk, then in place.
pub(crate) fn write(file: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    write_with(file, bytes, mode, |_| Ok(()))
}

/// As [`write()`], of the state directory: what root writes there (`jsacc rotate`, say) belongs to the account that the
/// service runs as.
pub(crate) fn write_state(file: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    write_with(file, bytes, mode, |made| match file.parent() {
        Some(dir) => give_to_service(dir, made),
        None => Ok(()),
    })
}

fn write_with(file: &Path, bytes: &[u8], mode: u32, own: impl Fn(&File) -> io::Result<()>) -> anyhow::Result<()> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let fresh = file.with_file_name(format!(".{name}.{}", std::process::id()));
    let put = || -> io::Result<()> {
        let _ = fs::remove_file(&fresh);
        let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        own(&out)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&fresh, file)
    };
    put().with_context(|| format!("{} cannot be written", file.display()))
}

/// Returns the account whose state directory this is: it owns the directory and the secrets in it, which a controller of
/// that account has made. An account that only owns the directory is given nothing.
pub(crate) fn service_account(dir: &Path) -> Option<u32> {
    let uid = fs::metadata(dir).ok()?.uid();
    let is_theirs = |name| fs::symlink_metadata(dir.join(name)).is_ok_and(|meta| meta.uid() == uid && meta.is_file());
    [CA_KEY, NODE_SECRET].into_iter().all(is_theirs).then_some(uid)
}

/// `made` is a file that this process has made: one that was there may be another user's trap for root.
fn give_to_service(dir: &Path, made: &File) -> io::Result<()> {
    let owner = fs::metadata(dir)?;
    if nix::unistd::geteuid().is_root() && service_account(dir) == Some(owner.uid()) && owner.uid() != 0 {
        std::os::unix::fs::fchown(made, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Held while files of the directory are made.
pub(crate) fn lock(dir: &Path) -> anyhow::Result<nix::fcntl::Flock<File>> {
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600).custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
    let open = || match options.clone().create_new(true).open(&path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => options.open(&path),
        made => made.and_then(|file| give_to_service(dir, &file).map(|()| file)),
    };
    let file = open().with_context(|| format!("{} cannot be opened", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, e)| anyhow::anyhow!("{} cannot be locked: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::state_dir::StateDir;
    use std::os::unix::fs::{chown, symlink};

    const NOBODY: u32 = 65534;

    #[test]
    #[allow(clippy::print_stdout)] // where it cannot run, the log says so
    fn files_that_root_writes_belong_to_the_service_and_no_secret_to_the_owner_of_a_folder() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: only root can write for another user");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        // A folder that somebody has made does not make its CA theirs.
        let state_dir = StateDir::open(dir.path(), 1_700_000_000_000).unwrap();
        state_dir.rotate(1_700_000_000_000, |_| Ok(())).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().uid(), 0, "{entry:?}");
            chown(entry.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        // The service's own, as its account has made it.
        fs::remove_file(dir.path().join("lock")).unwrap();
        state_dir.rotate(1_700_000_000_000, |_| Ok(())).unwrap();
        let mut names = Vec::new();
        for entry in fs::read_dir(dir.path()).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().uid(), NOBODY, "{entry:?}");
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        assert_eq!(names, ["ca.key", "ca.pem", "lock", "node.secret"]);

        // That user may have put a link there: what it leads to stays as it is.
        let other = tempfile::NamedTempFile::new().unwrap();
        fs::remove_file(dir.path().join("lock")).unwrap();
        symlink(other.path(), dir.path().join("lock")).unwrap();
        assert!(StateDir::open(dir.path(), 1_700_000_000_000).is_err());
        assert_eq!(other.as_file().metadata().unwrap().uid(), 0);
    }
}
