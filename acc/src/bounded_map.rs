//! Maps that do not grow without end. Pure.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A map that forgets entries that were not written for long: it has two generations of at most `max` entries, and
/// drops the older one when the younger is full.
#[derive(Debug)]
pub(crate) struct BoundedMap<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    max: usize,
}

impl<K: Eq + Hash, V> BoundedMap<K, V> {
    /// An empty map that keeps at least the last `max` entries, and at most twice as many.
    pub(crate) fn new(max: usize) -> BoundedMap<K, V> {
        BoundedMap { young: HashMap::new(), old: HashMap::new(), max }
    }

    /// Returns the value of `key`.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// Sets the value of `key`.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.max && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Removes `key`.
    pub(crate) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Returns all entries, each once.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(&self.old)
    }
}

/// Lets the same thing pass once in an interval, and at most so many different ones.
#[derive(Debug)]
pub(crate) struct Throttle<K> {
    passed: HashMap<K, Instant>,
    interval: Duration,
    max: usize,
}

impl<K: Eq + Hash> Throttle<K> {
    /// Nothing has passed yet.
    pub(crate) fn new(interval: Duration, max: usize) -> Throttle<K> {
        Throttle { passed: HashMap::new(), interval, max }
    }

    /// Whether `key` may pass at `now`; it has passed then.
    pub(crate) fn admits<Q>(&mut self, key: &Q, now: Instant) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        self.passed.retain(|_, at| now.duration_since(*at) < self.interval);
        let admitted = self.passed.len() < self.max && !self.passed.contains_key(key);
        if admitted {
            self.passed.insert(key.to_owned(), now);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_entries_are_dropped_when_twice_as_many_came_since() {
        let mut map = BoundedMap::new(10);
        (0..10).for_each(|key| map.insert(key, key));
        map.insert(0, 100);
        assert_eq!((map.get(&0), map.iter().count()), (Some(&100), 10));
        (10..20).for_each(|key| map.insert(key, key));
        assert_eq!((map.get(&0), map.get(&19)), (Some(&100), Some(&19)));
        map.insert(0, 200);
        (20..30).for_each(|key| map.insert(key, key));
        assert_eq!((map.get(&1), map.get(&0)), (None, Some(&200)));
        assert!(map.iter().count() <= 20);
        map.remove(&0);
        assert_eq!(map.get(&0), None);
    }

    #[test]
    fn same_key_passes_once_in_an_interval() {
        let (minute, begin) = (Duration::from_secs(60), Instant::now());
        let mut throttle: Throttle<String> = Throttle::new(10 * minute, 3);
        let passed: Vec<u32> = (0..25).filter(|at| throttle.admits("a", begin + *at * minute)).collect();
        assert_eq!(passed, [0, 10, 20]);
        let late = begin + 24 * minute;
        assert!(throttle.admits("b", late) && throttle.admits("c", late));
        assert!(!throttle.admits("d", late), "there are as many as may be");
    }
}
