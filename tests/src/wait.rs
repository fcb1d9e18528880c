//! Waiting on conditions, never on the clock alone.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a test waits for what should come at once: generous, for build machines are busy.
pub const LONG: Duration = Duration::from_secs(30);

/// How long a test watches for what must not come.
pub const SHORT: Duration = Duration::from_millis(700);

/// Waits until `condition` holds; fails the test with `what` after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}

/// Waits until `probe` gives something, and returns it; fails the test with `what` after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain until {what}");
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
