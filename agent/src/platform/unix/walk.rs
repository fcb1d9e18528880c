//! Finds the folder of a file step by step, so that no other account leads the agent to a file of root's by a link.
//!
//! A link is followed only where nobody but root and the agent's own account can have made it. From the first folder
//! that belongs to the account for which a file is written, the rest is done as that account: what its links lead to is
//! bound by its own rights.

use super::owner::Owner;
use jscommon::ownership::parts;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use std::ffi::OsStr;
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Most links on the way, as for the kernel.
const MAX_LINKS: usize = 40;
/// The mode of a folder that is made.
const NEW_FOLDER: u32 = 0o755;
const STACK_BYTES: usize = 256 * 1024;
/// A folder that is passed and not read.
const PASS: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Does `work` in the folder of `path`, with the name of the file there; makes the folders that are missing where `make`
/// says so.
pub(super) fn in_folder<T: Send>(
    path: &Path,
    owner: Option<&Owner>,
    make: bool,
    work: impl FnOnce(&File, &OsStr) -> io::Result<T> + Send,
) -> io::Result<T> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let own = Uid::effective();
    let is_own = |uid: u32| uid == 0 || uid == own.as_raw();
    let other = owner.filter(|owner| own.is_root() && !owner.uid.is_root());
    let root = || openat(nix::fcntl::AT_FDCWD, "/", PASS, Mode::empty()).map(File::from);
    let (mut folder, mut at, mut left, mut links) = (root()?, PathBuf::from("/"), parts(above), 0);
    loop {
        let meta = folder.metadata()?;
        if let Some(owner) = other.filter(|owner| owner.uid.as_raw() == meta.uid()) {
            let rest = || -> io::Result<T> {
                let mut folder = folder;
                while let Some(next) = left.pop() {
                    folder = step(&folder, &next, OFlag::empty(), make)?;
                }
                work(&folder, name)
            };
            return as_account(owner, rest);
        }
        let Some(next) = left.pop() else { return work(&folder, name) };
        match step(&folder, &next, OFlag::O_NOFOLLOW, make) {
            Ok(inner) => {
                folder = inner;
                at.push(next);
            }
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                let link = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let link = File::from(openat(&folder, &*next, link, Mode::empty())?);
                let found = link.metadata()?;
                if !found.is_symlink() {
                    return Err(Errno::ENOTDIR.into());
                }
                if !(is_own(found.uid()) && is_own(meta.uid()) && keeps_names(&meta)) {
                    return Err(io::Error::other(format!(
                        "{} is a link that another account can have made, which is not followed: name the folder that \
                         it leads to",
                        at.join(next).display()
                    )));
                }
                links += 1;
                let target = PathBuf::from(readlinkat(&link, "")?);
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                if target.is_absolute() {
                    (folder, at) = (root()?, PathBuf::from("/"));
                }
                left.extend(parts(&target));
            }
            Err(fault) => return Err(fault.into()),
        }
    }
}

/// Whether nobody but its owner can exchange what another account has put into a folder.
fn keeps_names(folder: &Metadata) -> bool {
    folder.mode() & 0o022 == 0 || folder.mode() & 0o1000 != 0
}

/// Opens a folder in another one.
fn step(folder: &File, name: &OsStr, flags: OFlag, make: bool) -> Result<File, Errno> {
    match openat(folder, name, PASS | flags, Mode::empty()) {
        Err(Errno::ENOENT) if make => {}
        opened => return opened.map(File::from),
    }
    match mkdirat(folder, name, Mode::from_bits_truncate(NEW_FOLDER)) {
        Ok(()) => {
            // The agent's umask has made it private.
            let new = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let new = File::from(openat(folder, name, new, Mode::empty())?);
            let _ = new.set_permissions(Permissions::from_mode(NEW_FOLDER));
        }
        Err(Errno::EEXIST) => {}
        Err(fault) => return Err(fault),
    }
    openat(folder, name, PASS | flags, Mode::empty()).map(File::from)
}

/// Does `work` on a thread that has the rights of an account, and of no group but the one that the file is to have.
#[allow(unsafe_code)] // libc's `setgroups` concerns all threads, the system call this one alone
fn as_account<T: Send>(owner: &Owner, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let run = || {
        let groups = [owner.gid.as_raw()];
        // SAFETY: the list lives until the call returns.
        Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
        setfsgid(owner.gid);
        setfsuid(owner.uid);
        // They fail in silence, and answer with what was set before.
        let is_set = setfsgid(Gid::from_raw(u32::MAX)) == owner.gid && setfsuid(Uid::from_raw(u32::MAX)) == owner.uid;
        if is_set { work() } else { Err(Errno::EPERM.into()) }
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread failed")))
    })
}
