//! The entries of one stream that are deferred because they were refused alone. PURE.
//!
//! One refusal may be of the entry, or of everything that the stream sends. An entry is *proven* when it
//! was refused after another entry of the stream was taken; it is tried again after a minute, then more
//! rarely. One that is not proven is tried again soon, and at once when another entry was taken.

use std::time::{Duration, Instant};

/// Most entries of one stream; more than that hold the stream up.
const MOST: usize = 1000;
/// The first pause of an entry that is not proven, doubled with each refusal.
const SOON: Duration = Duration::from_secs(1);
/// The longest pause of an entry that is not proven.
const SOON_AT_MOST: Duration = Duration::from_secs(30);
/// The first pause of a proven entry, doubled with each refusal.
const RARELY: Duration = Duration::from_secs(60);
/// The longest pause of a proven entry.
const RARELY_AT_MOST: Duration = Duration::from_secs(3600);
/// Most events about entries within [`TELL_WITHIN`].
const MOST_TOLD: u32 = 10;
const TELL_WITHIN: Duration = Duration::from_secs(600);

/// An entry that was refused.
#[derive(Debug)]
pub(super) struct DeferredEntry {
    key: i64,
    first: Instant,
    refusals: u32,
    not_before: Instant,
    /// Others of its stream were taken since it was first refused.
    pub(super) proven: bool,
    /// The operators were told.
    pub(super) told: bool,
}

/// The entries of one stream.
#[derive(Debug, Default)]
pub(super) struct DeferredEntries {
    entries: Vec<DeferredEntry>,
    /// When an entry of the stream was last taken.
    taken: Option<Instant>,
    /// Entries that were refused for the first time since then.
    in_row: u32,
    /// When the events that count for [`MOST_TOLD`] began, and how many there were.
    told: Option<(Instant, u32)>,
}

impl DeferredEntries {
    /// Those that an earlier start of the agent has deferred: all are tried again now.
    pub(super) fn of(keys: Vec<i64>, now: Instant) -> DeferredEntries {
        let entry = |key| DeferredEntry { key, first: now, refusals: 0, not_before: now, proven: false, told: false };
        DeferredEntries { entries: keys.into_iter().map(entry).collect(), ..DeferredEntries::default() }
    }

    /// Returns the keys of all.
    pub(super) fn keys(&self) -> impl Iterator<Item = i64> + '_ {
        self.entries.iter().map(|entry| entry.key)
    }

    /// Whether there is no room for another.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= MOST
    }

    /// Returns one that is due; `surely`: whatever else waits, and not only when nothing does.
    pub(super) fn due(&self, now: Instant, surely: bool) -> Option<i64> {
        let passed =
            |entry: &&DeferredEntry| !surely || entry.proven || self.taken.is_some_and(|taken| taken > entry.first);
        let due = self.entries.iter().filter(|entry| entry.not_before <= now).filter(passed);
        due.min_by_key(|entry| entry.not_before).map(|entry| entry.key)
    }

    /// Returns when the next is due.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.entries.iter().map(|entry| entry.not_before).min().map(|next| next.max(now))
    }

    /// Counts a refusal of this entry; returns it, and how many were first refused since one was taken.
    pub(super) fn refused(&mut self, key: i64, now: Instant) -> (&mut DeferredEntry, u32) {
        let at = self.entries.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
            self.in_row += 1;
            self.entries.push(DeferredEntry {
                key,
                first: now,
                refusals: 0,
                not_before: now,
                proven: false,
                told: false,
            });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[at];
        if !entry.proven && self.taken.is_some_and(|taken| taken > entry.first) {
            (entry.proven, entry.refusals) = (true, 0);
        }
        let (first, most) = if entry.proven { (RARELY, RARELY_AT_MOST) } else { (SOON, SOON_AT_MOST) };
        entry.not_before = now + first.saturating_mul(1 << entry.refusals.min(16)).min(most);
        entry.refusals += 1;
        (entry, self.in_row)
    }

    /// Removes one that is settled.
    pub(super) fn remove(&mut self, key: i64) {
        self.entries.retain(|entry| entry.key != key);
    }

    /// Removes all: their keys mean nothing any more.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// An entry of the stream was taken: those that are not proven are tried at once.
    pub(super) fn others_pass(&mut self, now: Instant) {
        (self.taken, self.in_row) = (Some(now), 0);
        self.entries.iter_mut().filter(|entry| !entry.proven).for_each(|entry| entry.not_before = now);
    }

    /// Entries that were refused for the first time since another was taken.
    pub(super) fn in_row(&self) -> u32 {
        self.in_row
    }

    /// Whether one more event is not too much.
    pub(super) fn may_tell(&mut self, now: Instant) -> bool {
        let (since, count) = self.told.filter(|(since, _)| now < *since + TELL_WITHIN).unwrap_or((now, 0));
        self.told = Some((since, count + 1));
        count < MOST_TOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn entry_refused_after_others_passed_is_tried_rarely() {
        let begin = Instant::now();
        let mut deferred = DeferredEntries::default();
        assert!(!deferred.refused(1, begin).0.proven);
        assert_eq!((deferred.in_row(), deferred.next(begin)), (1, Some(begin + SECOND)));
        assert_eq!((deferred.due(begin, false), deferred.due(begin + SECOND, true)), (None, None));
        assert_eq!(deferred.due(begin + SECOND, false), Some(1));
        deferred.others_pass(begin + SECOND);
        assert_eq!((deferred.due(begin + SECOND, true), deferred.in_row()), (Some(1), 0));
        let mut now = begin + SECOND;
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(deferred.refused(1, now).0.proven);
            deferred.others_pass(now + SECOND);
            assert_eq!(deferred.next(now), Some(now + 60 * minutes * SECOND));
            now += 60 * minutes * SECOND;
            assert_eq!(deferred.due(now, true), Some(1));
        }
        deferred.remove(1);
        assert_eq!(deferred.next(now), None);
    }

    #[test]
    fn entries_refused_in_a_row_are_tried_soon_again() {
        let begin = Instant::now();
        let mut deferred = DeferredEntries::default();
        for key in 1..=5 {
            deferred.refused(key, begin);
        }
        assert_eq!(deferred.in_row(), 5);
        for _ in 0..10 {
            deferred.refused(1, begin);
        }
        assert_eq!(deferred.due(begin + SOON_AT_MOST, false), Some(2), "the one that waits longest");
        assert!(deferred.entries.iter().all(|entry| entry.not_before <= begin + SOON_AT_MOST));
    }

    #[test]
    fn events_are_limited() {
        let begin = Instant::now();
        let mut deferred = DeferredEntries::default();
        assert_eq!((0..100).filter(|_| deferred.may_tell(begin)).count(), MOST_TOLD as usize);
        assert!(deferred.may_tell(begin + TELL_WITHIN));
    }
}
