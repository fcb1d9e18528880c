//! When an interval ends: aligned to the clock, whatever the clock does meanwhile. Pure.

use std::time::Duration;

/// The interval that runs. Times are in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    interval: u64,
    /// The moment that it ends at.
    end: u64,
}

impl Pace {
    /// Intervals of so many seconds, the first one from `now` on.
    pub(super) fn new(seconds: u64, now: u64) -> Pace {
        let interval = seconds.max(1) * 1000;
        Pace { interval, end: now - now % interval + interval }
    }

    /// How long to sleep; never longer than an interval.
    pub(super) fn wait(&self, now: u64) -> Duration {
        Duration::from_millis(self.end.saturating_sub(now).min(self.interval))
    }

    /// After that sleep: the moment that the interval ended at, in seconds, and the next one begins; or
    /// nothing, when the sleep was a little too short or the clock was set back a little.
    pub(super) fn woke(&mut self, now: u64) -> Option<u64> {
        let early = now < self.end && self.end - now <= self.interval;
        if early {
            return None;
        }
        Some(self.close(now))
    }

    /// Ends the interval now: the newest moment that one can have ended at, in seconds.
    pub(super) fn close(&mut self, now: u64) -> u64 {
        let last = now - now % self.interval;
        self.end = last + self.interval;
        last / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins at `from`, wakes at `at`: what ends then, and when the next interval ends.
    #[track_caller]
    fn check(from: u64, at: u64, ended: Option<u64>, next: u64) {
        let mut pace = Pace::new(10, from);
        assert_eq!((pace.woke(at), pace.end), (ended, next), "from {from}, woken at {at}");
    }

    #[test]
    fn intervals_end_where_the_clock_says_so() {
        check(12_000, 20_000, Some(20), 30_000);
        check(10_000, 20_000, Some(20), 30_000);
        check(12_000, 20_900, Some(20), 30_000);
    }

    #[test]
    fn a_sleep_that_was_too_short_goes_on() {
        check(12_000, 19_998, None, 20_000);
        let pace = Pace::new(10, 12_000);
        assert_eq!((pace.wait(12_000), pace.wait(19_998)), (Duration::from_secs(8), Duration::from_millis(2)));
    }

    #[test]
    fn a_clock_that_is_set_ends_an_interval_and_holds_up_none() {
        // An hour back: nothing waits an hour for its flush.
        check(4_000_000, 402_000, Some(400), 410_000);
        assert_eq!(Pace::new(10, 4_000_000).wait(402_000), Duration::from_secs(10));
        // A little back: the same interval again.
        check(12_000, 15_000, None, 20_000);
        // An hour ahead.
        check(12_000, 3_612_000, Some(3610), 3_620_000);
    }
}
