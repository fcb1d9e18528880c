//! The outbox: batches of records, stats and events on disk, until a controller has taken them.

use crate::config::Config;
use anyhow::Result;
use crossbeam_channel::Sender;
use serde_json::Value;
use std::sync::Arc;

/// What a batch holds; each kind has its own path at the controller and its own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Records, `POST /{gid}/{nid}/log`.
    Log,
    /// Series, `POST /{gid}/{nid}/stats`.
    Stats,
    /// One event, `POST /{gid}/{nid}/event`.
    Event,
}

/// One batch, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Its number; it counts up over the node's life.
    pub number: u64,
    /// The whole JSON body of the request.
    pub body: Vec<u8>,
}

/// The batches of all controllers.
pub struct Outbox {}

impl Outbox {
    /// Opens `outbox.db` in the data folder; a damaged one is set aside.
    pub fn open(_config: &Config) -> Result<Arc<Outbox>> {
        Ok(Arc::new(Outbox {}))
    }

    /// Adds an event for one controller, or for all of them.
    pub fn push_event(&self, _controller: Option<&str>, _name: &str, _data: Value) {}

    /// The oldest batch of this kind that the controller has not taken.
    pub fn next(&self, _controller: &str, _kind: Kind) -> Option<Batch> {
        None
    }

    /// The controller has taken this batch (200).
    pub fn taken(&self, _controller: &str, _kind: Kind, _number: u64) {}

    /// The controller will never take this batch (400, 403, 413…): it is dropped and counted.
    pub fn refused(&self, _controller: &str, _kind: Kind, _number: u64) {}

    /// Has `wake` told (without waiting) whenever there is something new for this controller.
    pub fn waker(&self, _controller: &str, _wake: Sender<()>) {}
}
