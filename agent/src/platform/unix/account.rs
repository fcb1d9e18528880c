//! Users that a child can become.

use nix::unistd::{Gid, Uid, User, getgrouplist};
use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The user that a child runs as.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
    /// Its name, for `USER` and `LOGNAME`.
    pub(crate) name: String,
    /// Its home folder, for `HOME`.
    pub(crate) home: String,
}

impl Identity {
    /// Looks a user up by name or number.
    pub(crate) fn find(name: &str) -> Result<Identity, String> {
        let found = match name.parse::<u32>() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(name),
        };
        let user = found
            .map_err(|fault| format!("user: cannot look up '{name}': {fault}"))?
            .ok_or_else(|| format!("user: there is no user '{name}' here"))?;
        if !Uid::effective().is_root() && user.uid != Uid::effective() {
            return Err(format!("user: the agent does not run as root and cannot start a process as '{name}'"));
        }
        let known = CString::new(user.name.clone()).map_err(|_| format!("user: there is no user '{name}' here"))?;
        let groups = getgrouplist(&known, user.gid).unwrap_or_else(|_| vec![user.gid]);
        let home = user.dir.to_string_lossy().into_owned();
        Ok(Identity { uid: user.uid, gid: user.gid, groups, name: user.name, home })
    }

    /// Returns the first folder on the way to `path`, itself included, that its mode keeps this user from passing,
    /// and the change of mode (`g+x`) that would let them.
    pub(crate) fn barred_by(&self, path: &Path) -> Option<(PathBuf, &'static str)> {
        let barred = |step: &Path| {
            let meta = step.metadata().ok().filter(|meta| meta.is_dir())?;
            let group = Gid::from_raw(meta.gid());
            let (bit, change) = match () {
                () if meta.uid() == self.uid.as_raw() => (0o100, "u+x"),
                () if group == self.gid || self.groups.contains(&group) => (0o010, "g+x"),
                () => (0o001, "o+x"),
            };
            (meta.mode() & bit == 0).then(|| (step.to_owned(), change))
        };
        let steps: Vec<&Path> = path.ancestors().collect();
        steps.into_iter().rev().find_map(barred).filter(|_| !self.uid.is_root())
    }
}

/// Whether this name, or number, is that of another user whom a child can become.
pub(crate) fn is_another_user(name: &str) -> bool {
    !matches!(name, "" | "0" | "root") && Uid::effective().is_root()
}
