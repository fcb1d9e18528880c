//! Files and folders that belong to one owner.

use crate::platform::Identity;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{Uid, fchown};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a file that only its owner can read, and returns once it survives power loss. One of that name goes, and
/// a link of that name is not followed.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(fault) if fault.kind() != io::ErrorKind::NotFound => return Err(fault),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens a file to be read and written, and makes it where it is not there: then only its owner can read it. A link is
/// not followed.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

/// Makes a folder, and those above it, that only its owner can enter; one that is there stays as it is.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the folder `base`, which others can only pass through, and in it one that belongs to a user
/// alone. Follows no link on the way, and takes nothing that belongs to somebody else.
pub(crate) fn make_user_dir(base: &Path, name: &str, owner: &Identity) -> io::Result<()> {
    let (Some(above), Some(base)) = (base.parent(), base.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let (base, whose) = make_dir(&File::open(above)?, base)?;
    if whose != Uid::effective() {
        return Err(io::Error::other(format!("it belongs to the user {whose} and not to the agent's")));
    }
    base.set_permissions(fs::Permissions::from_mode(0o711))?;
    let (folder, whose) = make_dir(&base, OsStr::new(name))?;
    if whose == Uid::effective() {
        // New, or left so by an agent that died meanwhile.
        folder.set_permissions(fs::Permissions::from_mode(0o700))?;
        fchown(&folder, Some(owner.uid), Some(owner.gid))?;
    } else if whose != owner.uid {
        return Err(io::Error::other(format!("its folder {name} belongs to the user {whose}")));
    }
    Ok(())
}

/// Opens a folder, which is made where it is not there, and says whose it is.
fn make_dir(above: &File, name: &OsStr) -> io::Result<(File, Uid)> {
    match mkdirat(above, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(fault) => return Err(fault.into()),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = File::from(openat(above, name, flags, Mode::empty())?);
    let owner = Uid::from_raw(folder.metadata()?.uid());
    Ok((folder, owner))
}

/// Brings the names in a folder to the disk.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}
