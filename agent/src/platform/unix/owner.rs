//! Owners of files by name or number.

use nix::unistd::{Gid, Group, Uid, User};

/// The user and group that a file is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

impl Owner {
    /// Reads `user` or `user:group`, names or numbers; without a group it is the user's own.
    pub(crate) fn find(text: &str) -> Result<Owner, String> {
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
