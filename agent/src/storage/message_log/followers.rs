//! The wake-up of those who wait for new records.
//!
//! **Owns** who is woken. Without anybody, a transaction costs a look at an empty list.
//! **Does not own** what they read.

use crossbeam_channel::Sender;
use jscommon::lock::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// The wakers to call when records were stored.
#[derive(Debug, Default)]
pub(super) struct Followers {
    /// Counts the transactions with records.
    stored: AtomicU64,
    wakers: Mutex<Vec<Weak<Sender<()>>>>,
}

impl Followers {
    /// Has this one woken for as long as it is there.
    pub(super) fn add(&self, waker: &Arc<Sender<()>>) {
        lock(&self.wakers).push(Arc::downgrade(waker));
    }

    /// Records were stored.
    pub(super) fn wake(&self) {
        self.stored.fetch_add(1, Ordering::Release);
        lock(&self.wakers).retain(|waker| waker.upgrade().map(|waker| waker.try_send(())).is_some());
    }

    /// Returns a number that grows with each transaction.
    pub(super) fn stored(&self) -> u64 {
        self.stored.load(Ordering::Acquire)
    }
}
