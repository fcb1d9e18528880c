//! The nodes that live and their roles, as last read.
//!
//! Owns: how long that is good enough to choose one of them. Does not own: who fits a command (`targets`), or
//! where it stands (`model::nodes`).

use crate::model::nodes;
use crate::redis::Conn;
use crate::work::targets;
use jscommon::{Command, NodeId};
use redis::RedisResult;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For how long the list of live nodes is good enough to choose one of them at random.
const FRESH: Duration = Duration::from_secs(1);

/// The nodes and their roles, as last read.
#[derive(Default)]
pub(crate) struct NodeDirectory {
    version: Option<u64>,
    roles: HashMap<NodeId, Vec<String>>,
    live: Vec<NodeId>,
    at: Option<Instant>,
}

impl NodeDirectory {
    /// Whether the list is good enough to choose one of many.
    pub(crate) fn is_recent(&self) -> bool {
        self.at.is_some_and(|at| at.elapsed() < FRESH)
    }

    /// Reads the list anew, and the roles when they have changed; `now` is in milliseconds.
    pub(crate) fn read(&mut self, conn: &mut Conn, now: u64) -> RedisResult<()> {
        let version = nodes::roles_version(conn)?;
        if self.version != Some(version) {
            self.roles = nodes::roles(conn)?;
            self.version = Some(version);
        }
        self.live = nodes::live(conn, now.saturating_sub(nodes::LIVE_TIMEOUT_MS))?;
        self.at = Some(Instant::now());
        Ok(())
    }

    /// The nodes that `command` is for.
    pub(crate) fn choose(&self, command: &Command) -> Vec<NodeId> {
        let none: &[String] = &[];
        let live = self.live.iter().map(|node| (*node, self.roles.get(node).map_or(none, Vec::as_slice)));
        targets::choose(command, live, fastrand::f64())
    }
}
