//! Lua scripts as a server knows them, and loading all of them at once.
//!
//! **A script stands before those that must not run without it**, and every connection loads all of them in
//! this order: a server that was made to forget them (SCRIPT FLUSH, a failover) therefore never has
//! the second without the first.

use std::sync::OnceLock;

/// One script.
pub(crate) struct Script {
    source: &'static str,
    hash: OnceLock<String>,
}

impl Script {
    /// A script of this source.
    pub(crate) const fn new(source: &'static str) -> Script {
        Script { source, hash: OnceLock::new() }
    }

    /// The SHA-1 by which a server that has it knows it.
    pub(crate) fn hash(&self) -> &str {
        self.hash.get_or_init(|| redis::Script::new(self.source).get_hash().to_owned())
    }
}

/// The scripts and the keys that this program has in Redis.
pub struct Schema {
    scripts: &'static [&'static Script],
    /// The type that a key must be of, as `TYPE` names it; empty where any will do.
    pub(crate) key_type: fn(&str) -> &'static str,
    loading: OnceLock<Vec<u8>>,
}

impl Schema {
    /// These scripts, in the order in which a server gets them.
    pub(crate) const fn new(scripts: &'static [&'static Script], key_type: fn(&str) -> &'static str) -> Schema {
        Schema { scripts, key_type, loading: OnceLock::new() }
    }

    /// The calls that make a server know all scripts, as they travel, and how many answers they have.
    pub(crate) fn loading(&'static self) -> (&'static [u8], usize) {
        let packed = self.loading.get_or_init(|| {
            let mut out = Vec::new();
            for script in self.scripts {
                let mut cmd = redis::cmd("SCRIPT");
                cmd.arg("LOAD").arg(script.source);
                cmd.write_packed_command(&mut out);
            }
            out
        });
        (packed, self.scripts.len())
    }
}

impl std::fmt::Debug for Schema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schema").field("scripts", &self.scripts.len()).finish_non_exhaustive()
    }
}
