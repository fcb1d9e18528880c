//! How long to wait before the next try: exponential, with full jitter.
//!
//! Full jitter (a uniform draw from nothing to the current ceiling) spreads a fleet that lost its
//! controller at one moment over the whole interval, so that it does not come back as one wave.

use std::time::Duration;

/// The ceiling of the next wait: doubles with each failure, up to a cap.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of at most `base` after the first failure, doubling up to `cap`.
    pub fn new(base: Duration, cap: Duration) -> Backoff {
        Backoff { base, cap, failures: 0 }
    }

    /// The wait after one more failure; `random` is a uniform draw from 0 to 1.
    pub fn fail(&mut self, random: f64) -> Duration {
        let ceiling = self.base.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }

    /// Forgets the failures, after a success.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_to_its_cap_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<u128> = (0..6).map(|_| backoff.fail(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.fail(0.0), Duration::ZERO);
        for _ in 0..100 {
            backoff.fail(1.0);
        }
        assert_eq!(backoff.fail(0.5).as_millis(), 500);
        backoff.succeed();
        assert_eq!(backoff.fail(1.0).as_millis(), 100);
    }
}
