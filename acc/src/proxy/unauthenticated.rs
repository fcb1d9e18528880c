//! Unauthenticated connections: by address and by age, and which of them makes room. Pure.
//!
//! Owns: the count of each address, and the choice of the one that is closed for a new one.
//! Does not own: the connections; the event loop closes what is chosen.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a connection is safe from making room for one of an address that has no fewer.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// When a connection was accepted, and its slot.
type Entry = (Instant, usize);

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Unauthenticated {
    by_site: HashMap<IpAddr, BTreeSet<Entry>>,
    /// The same sites by their number of connections.
    by_count: BTreeSet<(usize, IpAddr)>,
    by_age: BTreeSet<Entry>,
}

impl Unauthenticated {
    /// Connections from the site of `addr`.
    pub(super) fn count(&self, addr: IpAddr) -> usize {
        self.by_site.get(&site(addr)).map_or(0, BTreeSet::len)
    }

    /// Adds a connection from `addr`.
    pub(super) fn add(&mut self, addr: IpAddr, entry: Entry) {
        self.change(addr, |entries| entries.insert(entry));
        self.by_age.insert(entry);
    }

    /// Removes it: it was authenticated, or has closed before.
    pub(super) fn remove(&mut self, addr: IpAddr, entry: Entry) {
        self.change(addr, |entries| entries.remove(&entry));
        self.by_age.remove(&entry);
    }

    fn change(&mut self, addr: IpAddr, change: impl FnOnce(&mut BTreeSet<Entry>) -> bool) {
        let site = site(addr);
        let entries = self.by_site.entry(site).or_default();
        self.by_count.remove(&(entries.len(), site));
        change(entries);
        if entries.is_empty() {
            self.by_site.remove(&site);
        } else {
            self.by_count.insert((entries.len(), site));
        }
    }

    /// Returns the slot of the connection that makes room for one from `addr`; nothing when none is to.
    ///
    /// Of the address that has most the oldest goes, at any age, so long as the newcomer's has fewer after that
    /// as well: however fast some come, they take no place from others. Among equals the oldest goes, after its
    /// grace; of an address that has several that is one of its own.
    pub(super) fn makes_room(&self, addr: IpAddr, now: Instant) -> Option<usize> {
        let own = self.by_site.get(&site(addr));
        let (most, heaviest) = *self.by_count.last()?;
        if most > own.map_or(0, BTreeSet::len) + 1 {
            return self.by_site.get(&heaviest)?.first().map(|(_, slot)| *slot);
        }
        let among = own.filter(|own| own.len() > 1).unwrap_or(&self.by_age);
        self.ripe(among, now)
    }

    /// Returns the slot of the oldest, when it has had its grace.
    pub(super) fn oldest(&self, now: Instant) -> Option<usize> {
        self.ripe(&self.by_age, now)
    }

    fn ripe(&self, among: &BTreeSet<Entry>, now: Instant) -> Option<usize> {
        among.first().filter(|(accepted, _)| now.duration_since(*accepted) >= GRACE).map(|(_, slot)| *slot)
    }
}

/// Returns what counts as one address: of IPv6 the /64, for every host has that many.
fn site(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A full full: `slots` by address, each a millisecond younger than the one before.
    fn full(slots: &[&str], begin: Instant) -> Unauthenticated {
        let mut full = Unauthenticated::default();
        for (slot, name) in slots.iter().enumerate() {
            full.add(addr(name), (begin + Duration::from_millis(slot as u64), slot));
        }
        full
    }

    #[test]
    fn addresses_are_counted_by_site() {
        let begin = Instant::now();
        let mut full = full(&["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2", "fe80::1", "fe80::2"], begin);
        for (name, count) in [("10.0.0.1", 2), ("10.0.0.2", 1), ("fe80::9", 2), ("fe80:0:0:1::1", 0)] {
            assert_eq!(full.count(addr(name)), count, "{name}");
        }
        for (slot, name) in ["10.0.0.1", "10.0.0.1", "10.0.0.2", "fe80::7", "fe80::8"].into_iter().enumerate() {
            full.remove(addr(name), (begin + Duration::from_millis(slot as u64), slot));
        }
        assert!(full.by_site.is_empty() && full.by_count.is_empty() && full.by_age.is_empty());
    }

    #[test]
    fn address_with_most_connections_makes_room_at_any_age() {
        let begin = Instant::now();
        let now = begin + Duration::from_millis(10);
        let full = full(&["10.0.0.2", "10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2"], begin);
        for (name, makes_room) in [
            ("10.0.0.9", Some(1)),
            ("10.0.0.2", None), // It would have as many as the other after that.
            ("10.0.0.1", None), // Its own have not had their grace.
        ] {
            assert_eq!(full.makes_room(addr(name), now), makes_room, "{name}");
        }
        let later = begin + GRACE + Duration::from_millis(10);
        for (name, makes_room) in [("10.0.0.9", Some(1)), ("10.0.0.2", Some(0)), ("10.0.0.1", Some(1))] {
            assert_eq!(full.makes_room(addr(name), later), makes_room, "{name}");
        }
        assert_eq!((full.oldest(now), full.oldest(later)), (None, Some(0)));
    }

    #[test]
    fn among_equals_the_oldest_makes_room_after_its_grace() {
        let begin = Instant::now();
        let full = full(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], begin);
        assert_eq!(full.makes_room(addr("10.0.0.9"), begin), None);
        assert_eq!(full.makes_room(addr("10.0.0.9"), begin + GRACE), Some(0));
        assert_eq!(Unauthenticated::default().makes_room(addr("10.0.0.9"), begin), None);
    }

    #[test]
    fn two_addresses_that_come_all_the_time_take_no_place_of_others() {
        let begin = Instant::now();
        let mut full = Unauthenticated::default();
        let mut next = 0;
        // The holder of each slot, as in the event loop.
        let mut holders: HashMap<usize, (IpAddr, Instant)> = HashMap::new();
        let mut come = |name: IpAddr, now: Instant, full: &mut Unauthenticated| {
            if holders.len() >= 100 {
                let Some(slot) = full.makes_room(name, now) else { return false };
                let (addr, accepted) = holders.remove(&slot).unwrap();
                full.remove(addr, (accepted, slot));
            }
            full.add(name, (now, next));
            holders.insert(next, (name, now));
            next += 1;
            true
        };
        for i in 0..2000_u32 {
            let now = begin + Duration::from_micros(u64::from(i) * 100);
            come(addr(if i % 2 == 0 { "10.0.0.1" } else { "10.0.0.2" }), now, &mut full);
            if i % 50 == 49 {
                let other = IpAddr::from([10, 1, 0, (i / 50) as u8]);
                assert!(come(other, now, &mut full), "a newcomer is let in");
            }
        }
        // Twenty milliseconds between two of them: none of the forty was closed for one of the two.
        assert!((0..40).all(|n| full.count(IpAddr::from([10, 1, 0, n])) == 1));
    }
}
