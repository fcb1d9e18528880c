//! The job that messages belong to, and which of them go where.

use jscommon::LevelSet;
use std::time::Duration;

/// The job that messages belong to, and which of them go where.
#[derive(Clone, Debug, PartialEq)]
pub struct JobLabel {
    /// The job's id.
    pub jobid: String,
    /// Its `domain` argument.
    pub domain: String,
    /// Its `name` argument.
    pub name: String,
    /// The levels that are stored.
    pub db: LevelSet,
    /// The levels that are forwarded to the controllers.
    pub ac: LevelSet,
    /// Time between two samples of its process tree, where it is not the configuration's.
    pub stats_interval: Option<Duration>,
}

impl JobLabel {
    /// Returns the label of the agent's own records about its job store, with the levels of the configuration.
    pub(crate) fn of_job_store(db: LevelSet, ac: LevelSet) -> JobLabel {
        JobLabel { jobid: String::new(), domain: "agent".into(), name: "ledger".into(), db, ac, stats_interval: None }
    }

    /// Whether messages of this level are kept or forwarded at all.
    pub(crate) fn wants(&self, level: u8) -> bool {
        self.db.contains(level) || self.ac.contains(level)
    }
}
