//! Figures: what jobs and the node report, gathered for an interval and sent in one batch.

use crate::config::Config;
use crate::outbox::Outbox;
use crate::output::Source;
use anyhow::Result;
use std::sync::Arc;

pub mod monitor;

/// The running aggregator; dropping it flushes a last time.
pub struct Handle {
    inlet: Inlet,
}

impl Handle {
    /// Starts the aggregator, and the UDP listener where one is configured.
    pub fn start(_config: &Config, _outbox: Arc<Outbox>) -> Result<Handle> {
        Ok(Handle { inlet: Inlet {} })
    }

    /// Where figures go in.
    pub fn inlet(&self) -> Inlet {
        self.inlet.clone()
    }
}

/// Where figures go in.
#[derive(Clone)]
pub struct Inlet {}

impl Inlet {
    /// Takes the statsd lines of a job.
    pub fn lines(&self, _source: &Arc<Source>, _lines: &str) {}

    /// A job began: its gauges live until it has ended. A job that starts again counts again.
    pub fn job_started(&self, _source: &Arc<Source>) {}

    /// A job ended, once for each time that it began.
    pub fn job_ended(&self, _source: &Arc<Source>) {}
}
