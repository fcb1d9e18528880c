//! Whether other accounts can change, or read, what the agent trusts.

use crate::platform::Identity;
use jscommon::ownership::{Guard, Trust};
use nix::unistd::Uid;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

fn trust() -> Trust {
    Trust::new(Uid::effective().as_raw())
}

/// Returns what is wrong with the owners and modes on the way to a path, and what mends it.
pub(crate) fn path_fault(path: &Path) -> Option<String> {
    trust().fault(path, Guard::Change)
}

/// As [`path_fault`], of a file that others must not read.
pub(crate) fn secret_fault(path: &Path) -> Option<String> {
    trust().fault(path, Guard::Read)
}

/// As [`path_fault`], of a program that runs as `user` (or as the agent), and may be that account's own. A name that
/// is looked for in `PATH` has no fault.
pub(crate) fn program_fault(program: &str, folder: Option<&Path>, user: Option<&Identity>) -> Option<String> {
    let trust = user.map_or_else(trust, |user| trust().and(user.uid.as_raw()));
    let path = folder.unwrap_or(Path::new(super::ROOT)).join(program);
    program.contains('/').then(|| trust.fault(&path, Guard::Change)).flatten()
}

/// Returns what is wrong with an entry of a folder of the agent's.
pub(crate) fn entry_fault(path: &Path) -> Option<String> {
    trust().entry_fault(path, Guard::Change)
}

/// Returns what is wrong with the owner and mode of `/`.
pub(crate) fn root_fault() -> Option<String> {
    trust().root_fault()
}

/// Takes the rights to a file or folder of the agent's own from all others, of a file the group's not. Returns
/// whether somebody had any.
pub(crate) fn make_private(path: &Path) -> io::Result<bool> {
    let meta = fs::metadata(path)?;
    let others = if meta.is_dir() { 0o077 } else { 0o007 };
    let is_open = meta.mode() & others != 0 && meta.uid() == Uid::effective().as_raw();
    if is_open {
        fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777 & !others))?;
    }
    Ok(is_open)
}
