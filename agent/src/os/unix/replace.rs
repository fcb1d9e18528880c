//! A file that is written whole or not at all, with its mode and owner.

use crate::os::rename;
use nix::unistd::{Gid, Group, Uid, User, fchown};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The mode of a new file for which none is asked.
const NEW: u32 = 0o644;

/// Whose a file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    uid: Uid,
    gid: Gid,
}

impl Owner {
    /// Reads `user` or `user:group`, names or numbers; without a group it is the user's own.
    pub fn find(text: &str) -> Result<Owner, String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let number = user.parse().ok().map(Uid::from_raw);
        let found = match number {
            Some(uid) => User::from_uid(uid),
            None => User::from_name(user),
        };
        let found = found.map_err(|fault| format!("owner: cannot look up '{user}': {fault}"))?;
        let uid = number.or(found.as_ref().map(|user| user.uid));
        let uid = uid.ok_or_else(|| format!("owner: there is no user '{user}' here"))?;
        let gid = match group.map(|group| (group, group.parse().map(Gid::from_raw))) {
            Some((_, Ok(gid))) => gid,
            Some((name, Err(_))) => Group::from_name(name)
                .map_err(|fault| format!("owner: cannot look up '{name}': {fault}"))?
                .map(|group| group.gid)
                .ok_or_else(|| format!("owner: there is no group '{name}' here"))?,
            None => found
                .map(|user| user.gid)
                .ok_or_else(|| format!("owner: user {user} has no entry here: name its group as {user}:group"))?,
        };
        Ok(Owner { uid, gid })
    }
}

/// Makes `path` a file of these bytes, and returns whether it was not so already.
///
/// Where no mode or owner is asked for, those of the file that is there stay; a new one gets 0644 and
/// the agent's own user. Whoever reads it sees the old content or the new, also after power loss.
pub fn replace(path: &Path, bytes: &[u8], mode: Option<u32>, owner: Option<&Owner>) -> io::Result<bool> {
    let before = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file);
    let mode = mode.or(before.as_ref().map(|meta| meta.mode() & 0o7777)).unwrap_or(NEW);
    let owner = owner
        .copied()
        .or(before.as_ref().map(|meta| Owner { uid: Uid::from_raw(meta.uid()), gid: Gid::from_raw(meta.gid()) }));
    if let Some(meta) = &before {
        let same = meta.mode() & 0o7777 == mode
            && owner.is_none_or(|owner| (owner.uid.as_raw(), owner.gid.as_raw()) == (meta.uid(), meta.gid()));
        if same && meta.len() == bytes.len() as u64 && holds(path, bytes)? {
            return Ok(false);
        }
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.{:016x}.part", fastrand::u64(..)));
    let written = write(&part, bytes, mode, owner).and_then(|()| rename(&part, path));
    if written.is_err() {
        // What is half written helps nobody; that it cannot be removed either is no other fault.
        let _ = fs::remove_file(&part);
    }
    written?;
    // The new name is in the folder, which has to survive power loss too.
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    Ok(true)
}

fn write(part: &Path, bytes: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part)?;
    file.write_all(bytes)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    // After the owner, for a change of owner takes the setuid bit away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn holds(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut held = Vec::with_capacity(bytes.len());
    File::open(path)?.take(bytes.len() as u64 + 1).read_to_end(&mut held)?;
    Ok(held == bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_by_name_and_number() {
        assert_eq!(Owner::find("root").unwrap(), Owner { uid: Uid::from_raw(0), gid: Gid::from_raw(0) });
        assert_eq!(Owner::find("0:12").unwrap(), Owner { uid: Uid::from_raw(0), gid: Gid::from_raw(12) });
        for bad in ["no-such-user", "root:no-such-group", "4294900000"] {
            assert!(Owner::find(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(replace(&link, b"new", None, None).unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"kept");
        assert_eq!((fs::read(&link).unwrap(), fs::symlink_metadata(&link).unwrap().is_file()), (b"new".to_vec(), true));
    }
}
