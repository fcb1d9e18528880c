//! One deadline for each connection. Pure.
//!
//! Owns: which connection's deadline is the next. Does not own: the clock, or what a deadline means.

use std::collections::BTreeSet;
use std::time::Instant;

/// The deadlines of connections, each named by its slot.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Instant, usize)>,
}

impl Timers {
    /// Puts the deadline of `slot` from `before` to `after`; the caller remembers the one that holds.
    pub(crate) fn change(&mut self, slot: usize, before: Option<Instant>, after: Option<Instant>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, slot));
        }
        if let Some(after) = after {
            self.order.insert((after, slot));
        }
    }

    /// The next deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// A slot whose deadline has passed by `now`; it has none any more.
    pub(crate) fn due(&mut self, now: Instant) -> Option<usize> {
        let (at, slot) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.order.pop_first();
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timers_fire_in_their_order() {
        let now = Instant::now();
        let at = |seconds| Some(now + Duration::from_secs(seconds));
        let mut timers = Timers::default();
        timers.change(1, None, at(5));
        timers.change(2, None, at(3));
        timers.change(3, None, at(4));
        timers.change(2, at(3), at(6));
        timers.change(3, at(4), None);
        assert_eq!(timers.next(), at(5));
        assert_eq!(timers.due(now), None);
        let late = now + Duration::from_secs(10);
        assert_eq!((timers.due(late), timers.due(late), timers.due(late)), (Some(1), Some(2), None));
    }
}
