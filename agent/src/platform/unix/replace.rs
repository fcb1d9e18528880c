//! A file that is written whole or not at all, with its mode and owner.

use super::owner::Owner;
use super::walk::in_folder;
use crate::platform::Content;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// The mode of a new file for which none is asked.
const NEW: u32 = 0o644;

/// Returns why no file can be written at `path`, as far as that is known before its bytes are there.
pub(crate) fn check_place(path: &Path, owner: Option<&Owner>, mkdir: bool) -> Result<(), String> {
    let kind = |folder: &File, name: &OsStr| {
        let found = fstatat(folder, name, AtFlags::empty());
        Ok(found.ok().map(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT))
    };
    let shown = path.display();
    match in_folder(path, owner, false, kind) {
        Ok(None | Some(SFlag::S_IFREG)) => Ok(()),
        Ok(Some(SFlag::S_IFDIR)) => Err(format!("{shown} is a folder: name a file, or a path that is free")),
        Ok(Some(_)) => Err(format!(
            "{shown} is no regular file but a device, a pipe or a socket: name a file, or a path that is free"
        )),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound && mkdir => Ok(()),
        Err(fault) if matches!(fault.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            let folder = path.parent().unwrap_or(path).display();
            Err(format!("there is no folder {folder}: make it, or ask for mkdir"))
        }
        Err(fault) => Err(format!("cannot write {shown}: {fault}")),
    }
}

/// Makes `path` a file of this content, and returns whether it was not so already.
///
/// Where no mode or owner is asked for, those of the file that is there stay; a new one gets 0644 and
/// the agent's own user. A reader sees the old content or the new, also after power loss.
pub(crate) fn replace(
    path: &Path,
    content: Content,
    mode: Option<u32>,
    owner: Option<&Owner>,
    mkdir: bool,
) -> io::Result<bool> {
    in_folder(path, owner, mkdir, |folder, name| replace_in(folder, name, content, mode, owner))
}

fn replace_in(
    folder: &File,
    name: &OsStr,
    content: Content,
    mode: Option<u32>,
    owner: Option<&Owner>,
) -> io::Result<bool> {
    let open = |name: &OsStr, flags: OFlag| {
        openat(folder, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::S_IRUSR | Mode::S_IWUSR)
            .map(File::from)
    };
    let before = open(name, OFlag::O_PATH).ok().and_then(|file| file.metadata().ok()).filter(Metadata::is_file);
    let mode = mode.or(before.as_ref().map(|meta| meta.mode() & 0o7777)).unwrap_or(NEW);
    let owner = owner
        .copied()
        .or(before.as_ref().map(|meta| Owner { uid: Uid::from_raw(meta.uid()), gid: Gid::from_raw(meta.gid()) }));
    if let Some(meta) = &before {
        let same = meta.mode() & 0o7777 == mode
            && owner.is_none_or(|owner| (owner.uid.as_raw(), owner.gid.as_raw()) == (meta.uid(), meta.gid()));
        // A pipe that has taken its place is not waited for.
        if same && meta.len() == content.len()? && holds(open(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK), content) {
            return Ok(false);
        }
    }
    let part = OsString::from(format!(".{}.{:016x}.part", name.to_string_lossy(), fastrand::u64(..)));
    let made = open(&part, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL)?;
    let written = write(made, content, mode, owner).and_then(|()| Ok(renameat(folder, &*part, folder, name)?));
    if written.is_err() {
        // A partly written file is removed. A failure to remove it is not reported as well.
        let _ = unlinkat(folder, &*part, UnlinkatFlags::NoRemoveDir);
    }
    written?;
    // The new name is in the folder, which has to survive power loss too. An account may lack the right to read it.
    if let Ok(folder) = open(OsStr::new("."), OFlag::O_RDONLY) {
        folder.sync_all()?;
    }
    Ok(true)
}

fn write(file: File, content: Content, mode: u32, owner: Option<Owner>) -> io::Result<()> {
    content.write_to(&file)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    // After the owner, for a change of owner takes the setuid bit away.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn holds(file: Result<File, Errno>, content: Content) -> bool {
    file.is_ok_and(|file| content.is_in(&file).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{chown, symlink};

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
        symlink(&target, &link).unwrap();
        assert!(replace(&link, Content::Bytes(b"new"), None, None, false).unwrap());
        assert_eq!(fs::read(&target).unwrap(), b"kept");
        assert_eq!((fs::read(&link).unwrap(), fs::symlink_metadata(&link).unwrap().is_file()), (b"new".to_vec(), true));
    }

    /// A home of the account `nobody`, a folder of root's beside it, and links of `nobody`'s between them.
    fn home() -> (tempfile::TempDir, Owner) {
        let dir = tempfile::tempdir().unwrap();
        let nobody = Owner { uid: Uid::from_raw(65534), gid: Gid::from_raw(65534) };
        let of = |name: &str| dir.path().join(name);
        for (name, mode, whose) in
            [("", 0o755, 0), ("root", 0o755, 0), ("home", 0o755, 65534), ("home/sub", 0o700, 65534)]
        {
            let _ = fs::create_dir(of(name));
            fs::set_permissions(of(name), Permissions::from_mode(mode)).unwrap();
            chown(of(name), Some(whose), Some(whose)).unwrap();
        }
        for (link, target) in [("home/.ssh", of("root")), ("home/own", of("home/sub")), ("home/up", "../root".into())] {
            symlink(target, of(link)).unwrap();
            std::os::unix::fs::lchown(of(link), Some(65534), Some(65534)).unwrap();
        }
        symlink("home", of("by-root")).unwrap();
        (dir, nobody)
    }

    #[test]
    fn link_of_another_account_leads_nowhere() {
        if !Uid::effective().is_root() {
            return; // Only root writes for other accounts.
        }
        let (dir, nobody) = home();
        let of = |name: &str| dir.path().join(name);
        for (path, owner) in [
            ("home/.ssh/authorized_keys", Some(&nobody)),
            ("home/.ssh/deep/er/x", Some(&nobody)),
            ("by-root/up/x", Some(&nobody)),
            ("home/.ssh/authorized_keys", None),
            ("home/own/x", None),
            ("by-root/sub/../up/x", None),
        ] {
            let fault = replace(&of(path), Content::Bytes(b"evil"), None, owner, true).unwrap_err().to_string();
            let want = if owner.is_some() { "ermission denied" } else { "is a link that another account" };
            assert!(fault.contains(want), "{path}: {fault}");
            let told = check_place(&of(path), owner, false).err();
            assert!(owner.is_some() || told.is_some_and(|told| told.contains("is a link")), "{path}");
        }
        assert_eq!(fs::read_dir(of("root")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(of("home")).unwrap().count(), 4);
    }

    #[test]
    fn file_for_an_account_is_written_as_that_account_from_its_first_folder_on() {
        if !Uid::effective().is_root() {
            return; // Only root writes for other accounts.
        }
        let (dir, nobody) = home();
        let of = |name: &str| dir.path().join(name);
        let whose = |name: &str| {
            let meta = fs::metadata(of(name)).unwrap();
            (meta.uid(), meta.gid(), meta.mode() & 0o7777)
        };
        // Its own link is followed, and a link of root's on the way.
        assert!(replace(&of("by-root/own/a/b/x"), Content::Bytes(b"1"), Some(0o4750), Some(&nobody), true).unwrap());
        assert_eq!(whose("home/sub/a/b/x"), (65534, 65534, 0o4750));
        assert_eq!((whose("home/sub/a"), whose("home/sub/a/b")), ((65534, 65534, 0o755), (65534, 65534, 0o755)));
        assert!(!replace(&of("home/sub/a/b/x"), Content::Bytes(b"1"), None, Some(&nobody), false).unwrap());
        // A file of root's can be replaced there, for the folder is the account's.
        fs::write(of("home/sub/root's"), "old").unwrap();
        assert!(replace(&of("home/sub/root's"), Content::Bytes(b"new"), None, Some(&nobody), false).unwrap());
        assert_eq!((whose("home/sub/root's").0, fs::read(of("home/sub/root's")).unwrap()), (65534, b"new".to_vec()));
        // In a folder of root's the agent writes it, and gives it away.
        assert!(replace(&of("root/c/conf"), Content::Bytes(b"1"), None, Some(&nobody), true).unwrap());
        assert_eq!((whose("root/c"), whose("root/c/conf")), ((0, 0, 0o755), (65534, 65534, 0o644)));
        // Without an owner a folder of another account is entered, by no link.
        assert!(replace(&of("home/sub/plain"), Content::Bytes(b"1"), None, None, false).unwrap());
        assert_eq!(whose("home/sub/plain"), (0, 0, 0o644));
        assert!(!of("home/none").exists() && check_place(&of("home/none/x"), Some(&nobody), true).is_ok());
        // This thread has kept its rights.
        assert!(replace(&of("root/x"), Content::Bytes(b"1"), None, None, false).unwrap());
    }
}
