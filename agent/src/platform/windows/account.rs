//! Users: on Windows every child runs as the agent.

use std::io;
use std::path::{Path, PathBuf};

/// The user that a child runs as; on Windows this is always the agent's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Identity {
    /// Its name.
    pub(crate) name: String,
    /// Its home folder.
    pub(crate) home: String,
}

impl Identity {
    /// Refuses every user.
    pub(crate) fn find(name: &str) -> Result<Identity, String> {
        Err(format!("user: a process cannot be started as '{name}' on Windows"))
    }

    /// Returns nothing: every process has the agent's user.
    pub(crate) fn barred_by(&self, _path: &Path) -> Option<(PathBuf, &'static str)> {
        None
    }
}

/// No: a child runs as the agent.
pub(crate) fn is_another_user(_name: &str) -> bool {
    false
}

/// Fails: a child runs as the agent.
pub(crate) fn make_user_dir(_base: &Path, _name: &str, _owner: &Identity) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
