//! The state that all threads of a controller share.
//!
//! Owns: this controller's name, the clock (which follows Redis' own, so that controllers agree), and
//! the handles of state directory, Redis and metrics. Does not own: any state that another controller would
//! need; all of that is in Redis.

use crate::api::body::HeldValues;
use crate::api::delivered_batches::DeliveredBatches;
use crate::api::rate_limiter::RateLimiter;
use crate::api::script_cache::ScriptCache;
use crate::auth::authenticator::Authenticator;
use crate::auth::state_dir::StateDir;
use crate::auth::tickets::Tickets;
use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::claims::Claimed;
use crate::model::own_results::Deliverer;
use crate::redis::Pool;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Shared by all threads of one controller.
pub struct Context {
    /// This controller's name in Redis: new with each start.
    pub(crate) me: String,
    /// Its settings.
    pub(crate) config: Config,
    /// CA and secrets.
    pub(crate) state_dir: StateDir,
    /// Authenticates requests.
    pub authenticator: Arc<Authenticator>,
    /// Redis.
    pub pool: Pool,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The clock.
    pub(crate) clock: Clock,
    /// Sources of scripts that nodes asked for lately.
    pub(crate) scripts: ScriptCache,
    /// Claims of nodes that this controller has compared with their grants.
    pub(crate) claims: Claimed,
    /// Batches that were handed to nodes here.
    pub(crate) delivered: DeliveredBatches,
    /// The allowances that nodes have spent.
    pub(crate) rate_limiter: RateLimiter,
    /// The values of the bodies that are being handled.
    pub(crate) values: HeldValues,
    /// Makes and checks the tickets of jobs.
    pub tickets: Tickets,
    /// The dispatcher has noticed that Redis forgot this controller; the next heartbeat does the rest.
    pub(crate) forgotten: AtomicBool,
    /// Goes up when Redis may have lost what was written: it is written anew then.
    pub(crate) epoch: AtomicU64,
}

impl Context {
    /// Delivers results of this controller.
    pub(crate) fn deliverer(&self) -> Deliverer<'_> {
        Deliverer { metrics: &self.metrics, keep: self.config.keep }
    }
}
