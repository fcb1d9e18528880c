//! What every room of the controller shares.
//!
//! Owns: this controller's name, the clock (which follows Redis' own, so that controllers agree), and
//! the handles of identity, store and metrics. Does not own: any state that another controller would
//! need; all of that is in Redis.

use crate::allowance::Allowances;
use crate::authenticator::Authenticator;
use crate::claims::Claimed;
use crate::config::Config;
use crate::delivered::DeliveredBatches;
use crate::handlers::HeldValues;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::script_cache::ScriptCache;
use crate::store::Pool;
use crate::tickets::Tickets;
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Shared by all threads of one controller.
pub struct Context {
    /// This controller's name in Redis: new with each start.
    pub me: String,
    /// Its settings.
    pub config: Config,
    /// CA and secrets.
    pub identity: Identity,
    /// Who is let in.
    pub authenticator: Arc<Authenticator>,
    /// Redis.
    pub pool: Pool,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The clock.
    pub clock: Clock,
    /// Sources of scripts that nodes asked for lately.
    pub scripts: ScriptCache,
    /// Claims of nodes that this controller has compared with their grants.
    pub claims: Claimed,
    /// What was handed to nodes here.
    pub delivered: DeliveredBatches,
    /// The allowances that nodes have spent.
    pub(crate) allowances: Allowances,
    /// The values of the bodies that are being handled.
    pub(crate) values: HeldValues,
    /// Makes and checks the tickets of jobs.
    pub tickets: Tickets,
    /// The dispatcher has noticed that Redis forgot this controller; the janitor sees to the rest.
    pub forgotten: AtomicBool,
    /// Goes up when Redis may have lost what was written: it is written anew then.
    pub epoch: AtomicU64,
}

/// Milliseconds since 1970, by Redis' clock once that is known.
#[derive(Debug, Default)]
pub struct Clock {
    ahead: AtomicI64,
}

impl Clock {
    /// Now, in milliseconds since 1970.
    pub fn now(&self) -> u64 {
        local_ms().saturating_add_signed(self.ahead.load(Ordering::Relaxed))
    }

    /// Redis says that it is `theirs` (ms) now.
    pub fn set(&self, theirs: u64) {
        self.ahead.store(theirs as i64 - local_ms() as i64, Ordering::Relaxed);
    }
}

/// This machine's clock, in milliseconds since 1970.
pub fn local_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A name for this start of the controller: `host:port:random`.
pub fn name(port: u16) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let host: String = host
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        .take(64)
        .collect();
    format!("{}:{port}:{:08x}", if host.is_empty() { "jsacc" } else { &host }, fastrand::u32(..))
}

/// Tells a thread to end: it has ended when the sender of the channel is gone.
#[derive(Clone)]
pub struct Stop(Receiver<()>);

impl Stop {
    /// Ends when the sender of `channel` is dropped.
    pub fn new(channel: Receiver<()>) -> Stop {
        Stop(channel)
    }

    /// Whether it is time to end.
    pub fn is_set(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits, at most until it is time to end; answers whether it is.
    pub fn wait(&self, time: Duration) -> bool {
        self.0.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }

    /// For a `select!`.
    pub fn channel(&self) -> &Receiver<()> {
        &self.0
    }
}
