//! The time: this machine's, and Redis' own, so that controllers agree.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, by Redis' clock once that is known.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    ahead: AtomicI64,
}

impl Clock {
    /// Now, in milliseconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        local_ms().saturating_add_signed(self.ahead.load(Ordering::Relaxed))
    }

    /// Redis says that it is `theirs` (ms) now.
    pub(crate) fn set(&self, theirs: u64) {
        self.ahead.store(theirs as i64 - local_ms() as i64, Ordering::Relaxed);
    }
}

/// This machine's clock, in milliseconds since 1970.
pub(crate) fn local_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
