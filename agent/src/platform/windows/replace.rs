//! A file that is written whole or not at all.

use crate::platform::{Content, rename};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The owner that a file is to have; on Windows that follows from its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner;

impl Owner {
    /// Refused: rights follow from the folder on Windows.
    pub(crate) fn find(_: &str) -> Result<Owner, String> {
        Err("owner: not on Windows, where a file's rights follow from its folder".into())
    }
}

/// Returns why no file can be written at `path`, as far as that is known before its bytes are there.
pub(crate) fn check_place(path: &Path, _owner: Option<&Owner>, mkdir: bool) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path);
    if !folder.is_dir() && !mkdir {
        return Err(format!("there is no folder {}: make it, or ask for mkdir", folder.display()));
    }
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            let kind = if found.is_dir() { "a folder" } else { "no regular file but a device, a pipe or a socket" };
            Err(format!("{} is {kind}: name a file, or a path that is free", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes `path` a file of this content, and returns whether it was not so already. A mode has no
/// meaning here and is passed over.
pub(crate) fn replace(
    path: &Path,
    content: Content,
    _mode: Option<u32>,
    _owner: Option<&Owner>,
    mkdir: bool,
) -> io::Result<bool> {
    if let Some(folder) = path.parent().filter(|_| mkdir) {
        fs::create_dir_all(folder)?;
    }
    // A file that cannot be read (another program may have it for itself) is replaced as any other.
    let length = content.len()?;
    if fs::metadata(path).is_ok_and(|meta| meta.len() == length)
        && File::open(path).is_ok_and(|held| content.is_in(&held).unwrap_or(false))
    {
        return Ok(false);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.{:016x}.part", fastrand::u64(..)));
    let written = File::create_new(&part)
        .and_then(|file| content.write_to(&file).and_then(|()| file.sync_all()))
        .and_then(|()| rename(&part, path));
    if written.is_err() {
        // A partly written file is removed. A failure to remove it is not reported as well.
        let _ = fs::remove_file(&part);
    }
    written.map(|()| true)
}

/// Whether another program may be what keeps `to` from being replaced. Of a folder or a read-only file
/// the system says the same, and waiting does not help.
pub(crate) fn is_busy(fault: &io::Error, to: &Path) -> bool {
    const ACCESS_DENIED: i32 = 5;
    const SHARING_VIOLATION: i32 = 32;
    match fault.raw_os_error() {
        Some(SHARING_VIOLATION) => true,
        Some(ACCESS_DENIED) => !fs::metadata(to).is_ok_and(|meta| meta.is_dir() || meta.permissions().readonly()),
        _ => false,
    }
}
