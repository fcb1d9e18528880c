//! Whether other accounts can change, or read, what a program trusts: who owns a path and each folder above it,
//! and who may write there. As sshd's `StrictModes` and sudo do, for the same reason.
//!
//! The rule, for each step from `/` to the path, links included:
//!
//! - its owner is root or an account that the caller trusts;
//! - nobody else may write to it. A group counts as nobody else when all accounts in it are trusted ones, for many
//!   systems give each user a group and a umask of 002. A sticky folder that everybody may write to (`/tmp`) is
//!   accepted on the way, for there nobody can exchange what belongs to another; it is not the path itself;
//! - a secret can be read by its owner and its group alone, or lies behind a folder that others cannot pass.
//!
//! `/` itself is not judged with a path: its owner can exchange every program and library anyway, see
//! [`Trust::root_fault`]. Access control lists are not read; the group's bits bound what they can give.

use crate::text::posix_word;
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

/// Most links on the way to a path, as for the kernel.
const MAX_LINKS: usize = 40;
/// Most bytes that are read of a list of accounts.
const MAX_LIST_BYTES: u64 = 4 << 20;

/// The access that other accounts must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Change it: a program, a configuration, a database.
    Change,
    /// Change or read it: a key, a token.
    Read,
}

/// The accounts that may own and change what a program trusts.
#[derive(Clone, Debug)]
pub struct Trust {
    own: u32,
    uids: Vec<u32>,
}

/// The kind of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Folder,
    Link,
    File,
}

/// One file, folder or link on the way to a path, or the path itself.
#[derive(Clone, Copy, Debug)]
struct Step {
    kind: Kind,
    uid: u32,
    gid: u32,
    mode: u32,
    /// It is the path itself.
    is_last: bool,
    /// It is a secret, and others can pass all folders on the way to it.
    is_exposed: bool,
}

/// The fault of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Owner,
    Writable,
    Readable,
}

/// The owner that the kernel shows of files whose owner has no number in this user namespace; `None` where each has
/// one. Nobody inside the namespace is that owner.
static UNMAPPED: LazyLock<Option<u32>> = LazyLock::new(|| {
    let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok()?.trim().parse().ok()?;
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    (!is_mapped(&map, overflow)).then_some(overflow)
});

impl Trust {
    /// Trusts root and `own`, the account that the program runs as.
    pub fn new(own: u32) -> Trust {
        Trust { own, uids: [0, own].into_iter().chain(*UNMAPPED).collect() }
    }

    /// Trusts one account more.
    pub fn and(mut self, uid: u32) -> Trust {
        self.uids.push(uid);
        self
    }

    /// Returns what is wrong with the way to `path`, in a sentence that ends with the command that mends it. A path
    /// that is not there, or cannot be looked at, has no fault: its use has.
    pub fn fault(&self, path: &Path, guard: Guard) -> Option<String> {
        let mut left = parts(&std::path::absolute(path).ok()?);
        let (mut at, mut links, mut is_exposed) = (PathBuf::from("/"), 0, guard == Guard::Read);
        while let Some(name) = left.pop() {
            if name == ".." {
                // Never behind a link, for each was replaced by what it leads to.
                at.pop();
                continue;
            }
            at.push(name);
            let (kind, meta) = look(&at)?;
            let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
            let step = Step { kind, uid, gid, mode, is_last: left.is_empty(), is_exposed };
            if let Some(fault) = judge(step, &self.uids, &|gid| self.is_trusted_group(gid)) {
                return Some(self.sentence(&at, step, fault));
            }
            if kind == Kind::Link {
                links += 1;
                let target = fs::read_link(&at).ok().filter(|_| links <= MAX_LINKS)?;
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                left.extend(parts(&target));
            } else {
                is_exposed &= mode & 0o001 != 0;
            }
        }
        None
    }

    /// Returns what is wrong with an entry of a folder whose own way is judged already. In a folder that nobody else
    /// can pass the entry's mode gives nobody anything, so only its owner counts there; where it is a link, what it
    /// leads to is judged whole.
    pub fn entry_fault(&self, path: &Path, guard: Guard) -> Option<String> {
        let (kind, meta) = look(path)?;
        let folder = path.parent().and_then(|folder| fs::metadata(folder).ok());
        let is_open = folder.is_some_and(|folder| folder.mode() & 0o077 != 0);
        let mode = if is_open && kind != Kind::Link { meta.mode() & 0o7777 } else { 0 };
        let is_exposed = is_open && guard == Guard::Read;
        let step = Step { kind, uid: meta.uid(), gid: meta.gid(), mode, is_last: true, is_exposed };
        match judge(step, &self.uids, &|gid| self.is_trusted_group(gid)) {
            Some(fault) => Some(self.sentence(path, step, fault)),
            None if kind == Kind::Link => self.fault(path, guard),
            None => None,
        }
    }

    /// Returns what is wrong with `/`, which concerns everything on the machine and no path more than another.
    pub fn root_fault(&self) -> Option<String> {
        let meta = fs::metadata("/").ok()?;
        let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
        let step = Step { kind: Kind::Folder, uid, gid, mode, is_last: false, is_exposed: false };
        let fault = judge(step, &self.uids, &|gid| self.is_trusted_group(gid))?;
        Some(self.sentence(Path::new("/"), step, fault))
    }

    fn is_trusted_group(&self, gid: u32) -> bool {
        has_only(&list("/etc/group"), &list("/etc/passwd"), gid, &self.uids)
    }

    fn sentence(&self, path: &Path, step: Step, fault: Fault) -> String {
        let (shown, word) = (path.display(), path.to_string_lossy());
        let (word, mode) = (posix_word(&word), step.mode);
        match fault {
            Fault::Owner => {
                let accounts = list("/etc/passwd");
                let (theirs, own) = (account(&accounts, step.uid), account(&accounts, self.own));
                let flag = if step.kind == Kind::Link { "-h " } else { "" };
                format!(
                    "{shown} belongs to {theirs} (uid {}), who can change what lies there: remove it, or, if all is as \
                     it should be, run: chown {flag}{own} {word}",
                    step.uid
                )
            }
            Fault::Writable => {
                format!("{shown} has mode {mode:04o}, so others can change what lies there: run: chmod go-w {word}")
            }
            Fault::Readable => {
                format!("{shown} has mode {mode:04o}, so every account can read that secret: run: chmod o-rwx {word}")
            }
        }
    }
}

/// Judges one step. Pure; `is_trusted_group` says whether all accounts of a group are trusted ones.
fn judge(step: Step, trusted: &[u32], is_trusted_group: &dyn Fn(u32) -> bool) -> Option<Fault> {
    if !trusted.contains(&step.uid) {
        return Some(Fault::Owner);
    }
    if step.kind == Kind::Link {
        return None;
    }
    let keeps_owners = step.kind == Kind::Folder && step.mode & 0o1000 != 0 && !step.is_last;
    let by_group = step.mode & 0o020 != 0 && !is_trusted_group(step.gid);
    if (step.mode & 0o002 != 0 || by_group) && !keeps_owners {
        return Some(Fault::Writable);
    }
    (step.kind == Kind::File && step.is_exposed && step.mode & 0o004 != 0).then_some(Fault::Readable)
}

/// Whether every account of this group is a trusted one. Pure; a group that is not in the list may have any.
fn has_only(groups: &str, accounts: &str, gid: u32, trusted: &[u32]) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    let mut found = false;
    for line in groups.lines() {
        let mut fields = line.split(':').skip(2);
        if fields.next().and_then(number) != Some(gid) {
            continue;
        }
        found = true;
        for member in fields.next().unwrap_or_default().split(',').filter(|name| !name.is_empty()) {
            let known = accounts.lines().find(|line| line.split(':').next() == Some(member));
            let uid = known.and_then(|line| line.split(':').nth(2)).and_then(number);
            if !uid.is_some_and(|uid| trusted.contains(&uid)) {
                return false;
            }
        }
    }
    found
        && accounts.lines().all(|line| {
            let mut ids = line.split(':').skip(2).map(number);
            let (uid, primary) = (ids.next().flatten(), ids.next().flatten());
            primary != Some(gid) || uid.is_some_and(|uid| trusted.contains(&uid))
        })
}

/// Returns the name of an account, or its number.
fn account(accounts: &str, uid: u32) -> String {
    let number = uid.to_string();
    let line = accounts.lines().find(|line| line.split(':').nth(2) == Some(&number));
    line.and_then(|line| line.split(':').next()).map(str::to_owned).unwrap_or(number)
}

/// Whether a user namespace with this `uid_map` has a number for an account.
fn is_mapped(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (numbers.next().unwrap_or(0), numbers.next(), numbers.next().unwrap_or(0));
        (first..first.saturating_add(count)).contains(&u64::from(uid))
    })
}

/// Returns the names on the way to a path, the first one last.
pub fn parts(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(_) | Component::ParentDir => Some(part.as_os_str().to_owned()),
        _ => None,
    };
    path.components().rev().filter_map(name).collect()
}

/// The kind of a path. `None` for devices and pipes, which hold nothing.
fn look(path: &Path) -> Option<(Kind, fs::Metadata)> {
    let meta = fs::symlink_metadata(path).ok()?;
    let kind = match meta.file_type() {
        kind if kind.is_symlink() => Kind::Link,
        kind if kind.is_dir() => Kind::Folder,
        kind if kind.is_file() => Kind::File,
        _ => return None,
    };
    Some((kind, meta))
}

/// A list of accounts or groups; empty when it cannot be read.
fn list(path: &str) -> String {
    let mut bytes = Vec::new();
    let _ = fs::File::open(path).and_then(|file| file.take(MAX_LIST_BYTES).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    const NOBODY: u32 = 65534;

    #[test]
    fn each_step_is_judged_by_owner_and_mode() {
        use Kind::{File, Folder, Link};
        let (owner, writable, readable) = (Some(Fault::Owner), Some(Fault::Writable), Some(Fault::Readable));
        // Groups 0 and 1000 have trusted accounts alone.
        for (kind, uid, gid, mode, is_last, is_exposed, want) in [
            (Folder, 0, 0, 0o755, false, false, None),
            (Folder, 1000, 1000, 0o700, true, false, None),
            (Folder, 1001, 0, 0o700, true, false, owner),
            (Folder, 1001, 0, 0o755, false, false, owner),
            (Folder, 0, 0, 0o777, false, false, writable),
            (Folder, 0, 0, 0o1777, false, false, None),
            (Folder, 0, 0, 0o1777, true, false, writable),
            (Folder, 1001, 0, 0o1777, false, false, owner),
            (Folder, 0, 50, 0o775, false, false, writable),
            (Folder, 0, 50, 0o1775, false, false, None),
            (Folder, 1000, 1000, 0o775, false, false, None),
            (Folder, 0, 0, 0o2775, true, false, None),
            (Folder, 0, 0, 0o755, true, true, None),
            (File, 0, 0, 0o644, true, false, None),
            (File, 0, 0, 0o644, true, true, readable),
            (File, 0, 50, 0o640, true, true, None),
            (File, 0, 0, 0o600, true, true, None),
            (File, 1000, 50, 0o660, true, true, writable),
            (File, 1000, 1000, 0o664, true, false, None),
            (File, 0, 0, 0o666, true, false, writable),
            (File, 0, 0, 0o1666, true, false, writable),
            (File, 1001, 0, 0o600, true, true, owner),
            (Link, 0, 0, 0o777, false, true, None),
            (Link, 1001, 0, 0o777, false, false, owner),
        ] {
            let step = Step { kind, uid, gid, mode, is_last, is_exposed };
            let found = judge(step, &[0, 1000], &|gid| matches!(gid, 0 | 1000));
            assert_eq!(found, want, "{step:?}");
        }
    }

    #[test]
    fn group_is_harmless_when_all_its_accounts_are_trusted() {
        let accounts =
            "root:x:0:0::/root:/bin/sh\na:x:1000:1000::/:/bin/sh\nb:x:1001:1001::/:/bin/sh\nc:x:7:50::/:/x\n";
        let groups =
            "root:x:0:\na:x:1000:\nb:x:1001:a\nstaff:x:50:\nempty:x:60:\nboth:x:61:a,root\nlost:x:62:a,z\nodd\n";
        for (gid, want) in
            [(0, true), (1000, true), (1001, false), (50, false), (60, true), (61, true), (62, false), (99, false)]
        {
            assert_eq!(has_only(groups, accounts, gid, &[0, 1000]), want, "{gid}");
        }
        assert!(!has_only("", "", 0, &[0]) && !has_only(groups, accounts, 61, &[0]));
        assert_eq!((account(accounts, 1001).as_str(), account(accounts, 5).as_str()), ("b", "5"));
    }

    #[test]
    fn only_an_account_without_a_number_is_outside_of_a_user_namespace() {
        let whole = "         0          0 4294967295\n";
        for (map, want) in [(whole, true), ("0 1000 1\n", false), ("0 100000 65536\n", true), ("", false), ("x", false)]
        {
            assert_eq!(is_mapped(map, NOBODY), want, "{map}");
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn way_to_a_path_is_judged_whole() {
        let me = fs::metadata("/proc/self").unwrap().uid();
        let (dir, trust) = (tempfile::tempdir().unwrap(), Trust::new(me));
        let of = |name: &str| dir.path().join(name);
        let fault = |name: &str, guard| trust.fault(&of(name), guard).unwrap_or_default();
        fs::create_dir_all(of("a/b")).unwrap();
        fs::write(of("a/b/key"), "").unwrap();
        set_mode(&of("a/b/key"), 0o644);
        assert_eq!(fault("a/b/key", Guard::Change), "");
        // Behind a private folder its own mode opens it to nobody.
        set_mode(dir.path(), 0o700);
        assert_eq!(fault("a/b/key", Guard::Read), "");
        set_mode(dir.path(), 0o711);
        let found = fault("a/b/key", Guard::Read);
        assert!(
            found.contains("0644") && found.contains(&format!("chmod o-rwx {}", of("a/b/key").display())),
            "{found}"
        );
        set_mode(&of("a"), 0o777);
        let found = fault("a/b/key", Guard::Change);
        let want =
            format!("{0} has mode 0777, so others can change what lies there: run: chmod go-w {0}", of("a").display());
        assert_eq!(found, want);
        assert_eq!(fault("a/not/there", Guard::Change), want, "what is yet to be made is judged by the folders above");
        // In a sticky folder nobody can exchange what belongs to another.
        set_mode(&of("a"), 0o1777);
        assert_eq!(fault("a/b/key", Guard::Change), "");
        assert!(fault("a", Guard::Change).contains("mode 1777"));
        set_mode(&of("a"), 0o755);
        // A link is followed, by what it leads to and where it lies.
        symlink("../elsewhere/../a/b", of("a/link")).unwrap();
        fs::create_dir(of("elsewhere")).unwrap();
        assert_eq!(fault("a/link/key", Guard::Change), "");
        set_mode(&of("elsewhere"), 0o757);
        assert!(fault("a/link/key", Guard::Change).starts_with(&of("elsewhere").display().to_string()));
        symlink("loop", of("a/loop")).unwrap();
        assert_eq!(fault("a/loop/key", Guard::Change), "");
    }

    #[test]
    fn foreign_owner_is_named_with_the_command_that_mends_it() {
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return; // Only root can make files of another account.
        }
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| dir.path().join(name);
        fs::create_dir(of("it's")).unwrap();
        fs::write(of("it's/x"), "").unwrap();
        symlink("it's/x", of("link")).unwrap();
        let trust = Trust::new(0);
        assert_eq!(trust.fault(&of("link"), Guard::Change), None);
        chown(of("it's"), Some(NOBODY), None).unwrap();
        let found = trust.fault(&of("it's/x"), Guard::Change).unwrap();
        assert!(found.contains("belongs to nobody (uid 65534)") && found.ends_with("it'\\''s'"), "{found}");
        assert!(found.contains("run: chown root '"), "{found}");
        assert!(trust.fault(&of("link"), Guard::Change).is_some());
        assert_eq!(trust.clone().and(NOBODY).fault(&of("link"), Guard::Change), None);
        let entry_fault = |name: &str, guard| trust.entry_fault(&of(name), guard);
        set_mode(&of("it's/x"), 0o646);
        for (folder, guard, wrong) in [
            (0o755, Guard::Change, true),
            (0o755, Guard::Read, true),
            (0o700, Guard::Change, false),
            (0o700, Guard::Read, false),
        ] {
            set_mode(&of("it's"), folder);
            assert_eq!(entry_fault("it's/x", guard).is_some(), wrong, "{folder:o} {guard:?}");
        }
        set_mode(&of("it's"), 0o755);
        set_mode(&of("it's/x"), 0o644);
        assert!(entry_fault("it's/x", Guard::Read).is_some());
        assert_eq!(entry_fault("it's/x", Guard::Change), None);
        chown(of("it's/x"), Some(NOBODY), None).unwrap();
        assert!(entry_fault("it's/x", Guard::Change).is_some() && entry_fault("link", Guard::Change).is_some());
        std::os::unix::fs::lchown(of("link"), Some(NOBODY), None).unwrap();
        let found = entry_fault("link", Guard::Change).unwrap();
        assert!(found.contains("chown -h root "), "{found}");
    }
}
