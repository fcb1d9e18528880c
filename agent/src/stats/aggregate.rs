//! The samples of one interval, and the series that come of them. Pure: time is handed in.
//!
//! Bounded: so many series, so many values that are kept for medians and sets. Exact are counts, sums
//! and extremes whatever comes; a median, a percentile and the size of a set as long as the bounds
//! hold, after that from a uniform sample, and the set stays at its bound.

use super::statsd::{self, Value};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::mem;

/// Most series of all jobs together.
const MAX_SERIES: usize = 250_000;
/// Most series that datagrams make: any local user may send some.
const MAX_DATAGRAM_SERIES: usize = 50_000;
/// Most values of one timer that are kept in an interval.
const MAX_VALUES: usize = 10_000;
/// Most members of one set.
const MAX_MEMBERS: usize = 50_000;
/// Most values and members of all series together.
const MAX_KEPT: usize = 2_000_000;
/// Most of these that come of datagrams.
const MAX_DATAGRAM_KEPT: usize = 400_000;
/// Gauges of nobody's job (from UDP) are forgotten after so many seconds without a change.
const GAUGE_AGE: u64 = 86_400;

/// Everything of the interval that runs.
#[derive(Debug, Default)]
pub(super) struct Aggregate {
    groups: HashMap<String, Group>,
    hasher: RandomState,
    /// For the uniform samples.
    random: Random,
    used: Used,
    faults: Faults,
}

/// How many series there are, and how many values and members are kept: all, and those of datagrams.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    series: usize,
    kept: usize,
    datagram_series: usize,
    datagram_kept: usize,
}

impl Used {
    /// Counts one more series, when there is room.
    fn add_series(&mut self, origin: Origin) -> bool {
        let own = if origin == Origin::Datagram { self.datagram_series } else { 0 };
        let has_room = self.series < MAX_SERIES && own < MAX_DATAGRAM_SERIES;
        self.series += usize::from(has_room);
        self.datagram_series += usize::from(has_room && origin == Origin::Datagram);
        has_room
    }

    fn may_keep(&self, origin: Origin) -> bool {
        self.kept < MAX_KEPT && (origin == Origin::Job || self.datagram_kept < MAX_DATAGRAM_KEPT)
    }

    fn keep(&mut self, origin: Origin) {
        self.kept += 1;
        self.datagram_kept += usize::from(origin == Origin::Datagram);
    }
}

/// The faults of one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Faults {
    /// Lines that were none of the grammar, or whose key has no character that a name may have.
    pub(super) bad_lines: u64,
    /// Samples that would have made one series too many.
    pub(super) dropped: u64,
    /// Sets that have reached their bound.
    pub(super) full_sets: u64,
}

/// The series of one domain and name.
#[derive(Debug, Default)]
struct Group {
    counters: HashMap<Box<str>, f64>,
    gauges: HashMap<Box<str>, Gauge>,
    plain: HashMap<Box<str>, f64>,
    timers: HashMap<Box<str>, Timer>,
    sets: HashMap<Box<str>, Members>,
}

#[derive(Debug)]
struct Gauge {
    value: f64,
    /// Seconds since its last change, at the flush before.
    age: u64,
    /// The origin of the gauge's last change.
    origin: Origin,
}

/// Where lines come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The output of a job: its gauges end with the last job of their domain and name.
    Job,
    /// A datagram, of which nobody knows when its sender ends.
    Datagram,
}

#[derive(Debug, Default)]
struct Timer {
    /// The number of samples, with sample rates counted in.
    count: f64,
    sum: f64,
    lower: f64,
    upper: f64,
    /// Values seen, and those of them that are kept.
    seen: u64,
    values: Vec<f64>,
}

#[derive(Debug, Default)]
struct Members {
    hashes: HashSet<u64>,
    full: bool,
}

/// xorshift64*: good enough to choose samples.
#[derive(Debug)]
struct Random(u64);

impl Default for Random {
    fn default() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }
}

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(bound)) >> 64) as u64
    }
}

/// The series of one interval.
pub(super) struct Interval {
    groups: HashMap<String, Group>,
    /// The faults of the interval.
    pub(super) faults: Faults,
}

impl Aggregate {
    /// Takes lines of the group (`domain.name`); blank ones are none.
    pub(super) fn lines(&mut self, origin: Origin, group: &str, text: &[u8]) {
        let Aggregate { groups, hasher, random, used, faults } = self;
        if !groups.contains_key(group) {
            groups.insert(group.to_owned(), Group::default());
        }
        let Some(group) = groups.get_mut(group) else { return };
        let mut start = 0;
        let ends = memchr::memchr_iter(b'\n', text).chain(std::iter::once(text.len()));
        for end in ends {
            let line = text[start..end].strip_suffix(b"\r").unwrap_or(&text[start..end]);
            start = end + 1;
            if line.is_empty() {
                continue;
            }
            let mut nameless = false;
            let done = statsd::parse(line, &mut |key, value| {
                let key = statsd::clean(key);
                if key.is_empty() {
                    nameless = true;
                } else if !group.take(origin, &key, value, hasher, random, used) {
                    faults.dropped += 1;
                }
            });
            faults.bad_lines += u64::from(done.is_err() || nameless);
        }
    }

    /// Ends the interval, which was `seconds` long; gauges of jobs go on where `lives` says so of their
    /// group, others for a day.
    pub(super) fn flush(&mut self, seconds: u64, lives: impl Fn(&str) -> bool) -> Interval {
        let mut next: HashMap<String, Group> = HashMap::new();
        let mut used = Used::default();
        for (name, group) in &self.groups {
            let lives = lives(name);
            let keep = |gauge: &Gauge| match gauge.origin {
                Origin::Job => lives,
                Origin::Datagram => gauge.age + seconds < GAUGE_AGE,
            };
            let gauges: HashMap<Box<str>, Gauge> = group
                .gauges
                .iter()
                .filter(|(_, gauge)| keep(gauge))
                .map(|(key, gauge)| (key.clone(), Gauge { age: gauge.age + seconds, ..*gauge }))
                .collect();
            if !gauges.is_empty() {
                used.series += gauges.len();
                used.datagram_series += gauges.values().filter(|gauge| gauge.origin == Origin::Datagram).count();
                next.insert(name.clone(), Group { gauges, ..Group::default() });
            }
        }
        self.used = used;
        Interval { groups: mem::replace(&mut self.groups, next), faults: mem::take(&mut self.faults) }
    }
}

impl Group {
    /// Takes one sample; says whether there was room for its series.
    fn take(
        &mut self,
        origin: Origin,
        key: &str,
        value: Value<'_>,
        hasher: &RandomState,
        random: &mut Random,
        used: &mut Used,
    ) -> bool {
        match value {
            Value::Count(count) => with(&mut self.counters, key, origin, used, |sum, _| *sum += count),
            Value::Plain(value) => with(&mut self.plain, key, origin, used, |last, _| *last = value),
            Value::Gauge(value) => with(&mut self.gauges, key, origin, used, |gauge, _| {
                *gauge = Gauge { value, age: 0, origin };
            }),
            Value::Change(change) => with(&mut self.gauges, key, origin, used, |gauge, _| {
                *gauge = Gauge { value: gauge.value + change, age: 0, origin };
            }),
            Value::Time(value, weight) => with(&mut self.timers, key, origin, used, |timer, used| {
                timer.take(value, weight, random, origin, used);
            }),
            Value::Member(member) => with(&mut self.sets, key, origin, used, |set, used| {
                set.take(hasher.hash_one(member), origin, used);
            }),
        }
    }
}

impl Default for Gauge {
    fn default() -> Gauge {
        Gauge { value: 0.0, age: 0, origin: Origin::Job }
    }
}

/// Changes the series of this key, which is made when there is room; says whether there was.
#[inline]
fn with<T: Default>(
    map: &mut HashMap<Box<str>, T>,
    key: &str,
    origin: Origin,
    used: &mut Used,
    change: impl FnOnce(&mut T, &mut Used),
) -> bool {
    if let Some(found) = map.get_mut(key) {
        change(found, used);
        return true;
    }
    if !used.add_series(origin) {
        return false;
    }
    change(map.entry(key.into()).or_default(), used);
    true
}

impl Timer {
    fn take(&mut self, value: f64, weight: f64, random: &mut Random, origin: Origin, used: &mut Used) {
        if self.seen == 0 {
            (self.lower, self.upper) = (value, value);
        }
        self.lower = self.lower.min(value);
        self.upper = self.upper.max(value);
        self.count += weight;
        self.sum += value * weight;
        self.seen += 1;
        if self.values.len() < MAX_VALUES && (used.may_keep(origin) || self.values.is_empty()) {
            self.values.push(value);
            used.keep(origin);
        } else if let Some(place) = self.values.get_mut(random.below(self.seen) as usize) {
            *place = value;
        }
    }

    /// Mean, median, 95th and 99th percentile.
    fn spread(&mut self) -> [f64; 4] {
        self.values.sort_unstable_by(f64::total_cmp);
        let count = self.values.len();
        // The smallest value that so many of a hundred do not exceed.
        let rank = |percent: usize| self.values[(count * percent).div_ceil(100).max(1) - 1];
        let median = (self.values[(count - 1) / 2] + self.values[count / 2]) / 2.0;
        [self.sum / self.count, median, rank(95), rank(99)]
    }
}

impl Members {
    fn take(&mut self, hash: u64, origin: Origin, used: &mut Used) {
        if self.hashes.contains(&hash) {
            return;
        }
        if self.hashes.len() < MAX_MEMBERS && used.may_keep(origin) {
            self.hashes.insert(hash);
            used.keep(origin);
        } else {
            self.full = true;
        }
    }
}

impl Interval {
    /// Hands over every series as `<group>.<key>`; the interval was `seconds` long.
    pub(super) fn series(mut self, seconds: u64, sink: &mut impl FnMut(&str, &str, &str, f64)) -> Faults {
        let per_second = 1.0 / seconds.max(1) as f64;
        for (name, group) in &mut self.groups {
            for (key, sum) in &group.counters {
                sink(name, key, "", *sum);
                sink(name, key, ".rate", sum * per_second);
            }
            for (key, value) in &group.plain {
                sink(name, key, "", *value);
            }
            for (key, gauge) in &group.gauges {
                sink(name, key, "", gauge.value);
            }
            for (key, set) in &group.sets {
                sink(name, key, "", set.hashes.len() as f64);
                self.faults.full_sets += u64::from(set.full);
            }
            for (key, timer) in &mut group.timers {
                let [mean, median, p95, p99] = timer.spread();
                sink(name, key, ".mean", mean);
                sink(name, key, ".count", timer.count);
                sink(name, key, ".sum", timer.sum);
                sink(name, key, ".lower", timer.lower);
                sink(name, key, ".upper", timer.upper);
                sink(name, key, ".median", median);
                sink(name, key, ".p95", p95);
                sink(name, key, ".p99", p99);
            }
        }
        self.faults
    }
}

#[cfg(test)]
mod tests;
