//! The logger: every message that is kept, stored, found again and forwarded.

use crate::config::Config;
use crate::outbox::Outbox;
use crate::output::Source;
use anyhow::Result;
use jscommon::{LevelSet, Record};
use std::sync::Arc;

pub mod batch;

/// Which records are meant; a field that is not given matches every record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// The job that wrote them.
    pub jobid: Option<String>,
    /// From this time on, in milliseconds since 1970.
    pub timefrom: Option<i64>,
    /// Up to this time, itself included.
    pub timeto: Option<i64>,
    /// Of these levels.
    pub levels: Option<LevelSet>,
    /// The first so many.
    pub limit: Option<u64>,
    /// What arrived after the record with this id.
    pub after: Option<u32>,
}

/// The running logger; dropping it waits until all is committed.
pub struct Handle {
    inlet: Inlet,
    remote: Remote,
}

impl Handle {
    /// Opens the databases below the data folder and starts the thread.
    pub fn start(_config: &Config, _outbox: Arc<Outbox>) -> Result<Handle> {
        Ok(Handle { inlet: Inlet {}, remote: Remote {} })
    }

    /// Where messages go in.
    pub fn inlet(&self) -> Inlet {
        self.inlet.clone()
    }

    /// Where records are found and deleted.
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }
}

/// Where messages go in.
#[derive(Clone)]
pub struct Inlet {}

impl Inlet {
    /// Hands over the messages of one read; waits while the logger is too far behind.
    pub fn push(&self, _batch: batch::Batch) {}

    /// Hands over one record of the agent's own; never waits.
    pub fn write(&self, _source: &Arc<Source>, _level: u8, _text: &str) {}
}

/// Where records are found and deleted, from any thread that may wait for a disk.
#[derive(Clone)]
pub struct Remote {}

impl Remote {
    /// The first `limit` matches (at most 1000) in the order of their arrival, everything that was
    /// handed over before included. Fewer come when their text grows past some MiB: ask on with `after`.
    pub fn get(&self, _query: &Query) -> Result<Vec<Record>> {
        Ok(Vec::new())
    }

    /// Deletes the matches (all of them without a `limit`), gives their space back and says how many there were.
    pub fn delete(&self, _query: &Query) -> Result<u64> {
        Ok(0)
    }
}
