//! The threads behind the requests: they take commands, hear wake-ups, and do what is due from time to time.
//!
//! Owns: what happens in Redis without a request of a node. Does not own: waiting polls (`proxy`), the form of what is
//! kept (`model`).

mod cancel;
mod deferred_jobs;
pub mod dispatcher;
mod expiry;
mod grants;
mod handover;
mod heartbeat;
mod history;
mod node_directory;
pub(crate) mod periodic;
mod presence;
mod refusals;
mod reload;
pub(crate) mod shared_changes;
mod targets;
pub(crate) mod wakeups;

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

/// Tells a thread to end: it has ended when the sender of the channel is gone.
#[derive(Clone)]
pub struct Stop(Receiver<()>);

impl Stop {
    /// Ends when the sender of `channel` is dropped.
    pub fn new(channel: Receiver<()>) -> Stop {
        Stop(channel)
    }

    /// Whether it is time to end.
    pub(crate) fn is_set(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits, at most until it is time to end; answers whether it is.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        self.0.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }

    /// For a `select!`.
    pub(crate) fn channel(&self) -> &Receiver<()> {
        &self.0
    }
}
