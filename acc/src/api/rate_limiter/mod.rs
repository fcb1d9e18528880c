//! How much each node may send, and have written into Redis for it. Pure: the time is handed in.
//!
//! A node has a token bucket of every resource: a burst that it may spend at once, refilled at a steady rate.
//! Owns: the rates, and what each node has spent of late. Does not own: what counts as one, or what is said
//! to a node that has spent too much. Requests to other controllers do not count here.

mod resource;

use jscommon::NodeId;
use jscommon::lock::lock;
pub(crate) use resource::Resource;
use resource::{HOUR, MIB, Rate};
use std::collections::HashMap;
use std::sync::Mutex;

/// Bytes that records, series and events leave for results, which are waited for.
pub(crate) const RESERVED_FOR_RESULTS: f64 = 8.0 * MIB;

/// So many nodes are remembered before those that have spent nothing of late are forgotten. Low, for an account costs
/// a hundred bytes, and most nodes are silent most of the time.
const MAX_NODES: usize = 1_000;

/// Sums of fractions are only about right.
const ROUNDING: f64 = 1e-6;

/// An amount of one resource that a request needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Charge {
    resource: Resource,
    amount: f64,
    leaves: f64,
}

impl Charge {
    /// So much of this resource.
    pub(crate) fn new(resource: Resource, amount: usize) -> Charge {
        Charge { resource, amount: amount as f64, leaves: 0.0 }
    }

    /// It is spent only where so much is left over.
    #[must_use]
    pub(crate) fn leaving(self, leaves: f64) -> Charge {
        Charge { leaves, ..self }
    }
}

/// A charge that is more than the node has left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exceeded {
    /// Which resource it is.
    pub(crate) resource: Resource,
    /// After so many seconds it is worth another try.
    pub(crate) seconds: u32,
    per_second: f64,
}

impl Exceeded {
    /// The sentence for the node.
    pub(crate) fn sentence(&self, node: NodeId) -> String {
        let (rate, unit) = match self.per_second {
            per_second if per_second >= 1.0 => (per_second, "a second"),
            per_second => (per_second * HOUR, "an hour"),
        };
        format!(
            "node {node} sends more than {rate:.0} {} {unit}; it may try again in {} seconds",
            self.resource.name(),
            self.seconds
        )
    }
}

/// The amount of one resource that a node has spent, and the time (ms) of that figure.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    at: u64,
    amount: f64,
}

impl Spent {
    /// Returns the amount that is not refilled yet at `now` (ms). A clock that goes back refills nothing.
    fn by(self, rate: Rate, now: u64) -> f64 {
        (self.amount - rate.per_second * now.saturating_sub(self.at) as f64 / 1000.0).max(0.0)
    }

    /// The seconds after which the charge is worth another try; nothing where it can be spent now. More than the
    /// whole burst is spent when nothing else is.
    fn wait(self, rate: Rate, charge: Charge, now: u64) -> Option<u32> {
        let spent = self.by(rate, now);
        let over = spent + charge.amount + charge.leaves - rate.burst;
        if spent <= ROUNDING || over <= ROUNDING {
            return None;
        }
        Some((over.min(spent) / rate.per_second).ceil().clamp(1.0, 60.0) as u32)
    }
}

/// The amounts that one node has spent of the resources of which it ever spent some: of most it never does, and there may
/// be very many nodes.
#[derive(Debug, Default)]
struct Account(Vec<(Resource, Spent)>);

impl Account {
    fn of(&self, resource: Resource) -> Spent {
        self.0.iter().find(|(of, _)| *of == resource).map_or_else(Spent::default, |(_, spent)| *spent)
    }

    fn entry(&mut self, resource: Resource) -> &mut Spent {
        let at = self.0.iter().position(|(of, _)| *of == resource).unwrap_or_else(|| {
            self.0.reserve_exact(1);
            self.0.push((resource, Spent::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// Adds the charge at `now` (ms).
    fn charge(&mut self, charge: Charge, rate: Rate, now: u64) {
        let entry = self.entry(charge.resource);
        *entry = Spent { at: now.max(entry.at), amount: entry.by(rate, now) + charge.amount };
    }
}

/// The amounts that all nodes have spent.
pub(crate) struct RateLimiter {
    max_records: f64,
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    spent: HashMap<NodeId, Account>,
    /// When those were last forgotten that have spent nothing (ms), and how many were left.
    swept: u64,
    left: usize,
}

impl RateLimiter {
    /// Nothing is spent; a node may send `max_records` records a second.
    pub(crate) fn new(max_records: u64) -> RateLimiter {
        RateLimiter { max_records: max_records as f64, nodes: Mutex::default() }
    }

    /// Spends all of `charges` for `node` at `now` (ms), or none of them.
    pub(crate) fn take(&self, node: NodeId, charges: &[Charge], now: u64) -> Result<(), Exceeded> {
        let mut nodes = lock(&self.nodes);
        nodes.sweep(self.max_records, now);
        let spent = nodes.spent.entry(node).or_default();
        self.check_all(spent, charges, now)?;
        for charge in charges {
            spent.charge(*charge, charge.resource.rate(self.max_records), now);
        }
        Ok(())
    }

    /// Whether `take` would spend them now.
    pub(crate) fn check(&self, node: NodeId, charges: &[Charge], now: u64) -> Result<(), Exceeded> {
        match lock(&self.nodes).spent.get(&node) {
            Some(spent) => self.check_all(spent, charges, now),
            None => Ok(()),
        }
    }

    /// Spends the charge whether there is so much left or not.
    pub(crate) fn owe(&self, node: NodeId, charge: Charge, now: u64) {
        let mut nodes = lock(&self.nodes);
        nodes.spent.entry(node).or_default().charge(charge, charge.resource.rate(self.max_records), now);
    }

    /// `node` did not use what it took just now.
    pub(crate) fn give_back(&self, node: NodeId, charges: &[Charge]) {
        if let Some(spent) = lock(&self.nodes).spent.get_mut(&node) {
            for charge in charges {
                let entry = spent.entry(charge.resource);
                entry.amount = (entry.amount - charge.amount).max(0.0);
            }
        }
    }

    /// How much of `resource` the node has left at `now` (ms).
    pub(crate) fn left(&self, node: NodeId, resource: Resource, now: u64) -> f64 {
        let rate = resource.rate(self.max_records);
        let spent = lock(&self.nodes).spent.get(&node).map_or(0.0, |spent| spent.of(resource).by(rate, now));
        (rate.burst - spent).max(0.0)
    }

    fn check_all(&self, spent: &Account, charges: &[Charge], now: u64) -> Result<(), Exceeded> {
        for charge in charges {
            let rate = charge.resource.rate(self.max_records);
            if let Some(seconds) = spent.of(charge.resource).wait(rate, *charge, now) {
                return Err(Exceeded { resource: charge.resource, seconds, per_second: rate.per_second });
            }
        }
        Ok(())
    }
}

impl Nodes {
    /// Forgets nodes that have spent nothing. Once there are many, every second, or when there are twice as many:
    /// it looks at them all.
    fn sweep(&mut self, max_records: f64, now: u64) {
        let count = self.spent.len();
        if count > MAX_NODES && (now.saturating_sub(self.swept) >= 1000 || count > self.left.saturating_mul(2)) {
            let is_spent = |(of, spent): &(Resource, Spent)| spent.by(of.rate(max_records), now) > 0.0;
            self.spent.retain(|_, account| account.0.iter().any(is_spent));
            if self.spent.len() < self.spent.capacity() / 4 {
                self.spent.shrink_to(self.spent.len() * 2);
            }
            (self.swept, self.left) = (now, self.spent.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Resource; 18] = [
        Resource::Requests,
        Resource::Bodies,
        Resource::StreamRequests,
        Resource::StreamWaste,
        Resource::Bytes,
        Resource::Growth,
        Resource::Records,
        Resource::Results,
        Resource::Series,
        Resource::Keys,
        Resource::Queue,
        Resource::Events,
        Resource::EventBytes,
        Resource::Lookups,
        Resource::Polls,
        Resource::Renewals,
        Resource::RefusedEvents,
        Resource::LateEvents,
    ];
    const _: () = assert!(ALL.len() == Resource::LateEvents as usize + 1);

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };
    const OTHER: NodeId = NodeId { gid: 1, nid: 11 };
    const NORMAL: u64 = 5000;

    fn records(amount: usize) -> [Charge; 1] {
        [Charge::new(Resource::Records, amount)]
    }

    #[test]
    fn burst_is_spent_at_once_and_refilled() {
        // (at ms, amount, seconds to wait); 10 records a second, 600 at once.
        let steps = [
            (0, 600, None),
            (0, 100, Some(10)),
            (0, 1000, Some(60)),
            (10_000, 100, None),
            (10_000, 1, Some(1)),
            (9_000, 1, Some(1)),
            (10_100, 1, None),
            (100_000, 10_000, None),
            (100_000, 1, Some(60)),
        ];
        let all = RateLimiter::new(10);
        for (i, (now, amount, wait)) in steps.into_iter().enumerate() {
            let told = all.take(NODE, &records(amount), now).err().map(|exceeded| exceeded.seconds);
            assert_eq!(told, wait, "step {i}");
        }
        assert_eq!(all.take(OTHER, &records(600), 100_000), Ok(()), "another node has its own");
    }

    #[test]
    fn resources_have_bursts_of_their_own_and_all_or_none_is_spent() {
        let all = RateLimiter::new(10);
        let both = [Charge::new(Resource::Records, 10), Charge::new(Resource::Bytes, 20 << 20)];
        assert_eq!(all.take(NODE, &both, 0), Ok(()));
        let exceeded = all.take(NODE, &both, 0).unwrap_err();
        assert_eq!((exceeded.resource, exceeded.seconds), (Resource::Bytes, 16));
        let sentence = exceeded.sentence(NODE);
        assert!(sentence.contains("node 1:10 sends more than 1048576 bytes a second"), "{sentence}");
        assert_eq!(all.take(NODE, &records(590), 0), Ok(()), "what was refused has cost no records");
        all.give_back(NODE, &both);
        assert_eq!(all.take(NODE, &both, 0), Ok(()));
        assert!(all.take(NODE, &[Charge::new(Resource::Events, 1000)], 0).is_ok());
        let hourly = all.take(NODE, &[Charge::new(Resource::Events, 1)], 0).unwrap_err();
        assert!(hourly.sentence(NODE).contains("720 events an hour"), "{}", hourly.sentence(NODE));
    }

    #[test]
    fn results_have_bytes_that_nothing_else_spends() {
        let all = RateLimiter::new(NORMAL);
        let piece = |leaves| [Charge::new(Resource::Bytes, 1 << 20).leaving(leaves)];
        let taken = |leaves| (0..100).take_while(|_| all.take(NODE, &piece(leaves), 0).is_ok()).count();
        assert_eq!((taken(RESERVED_FOR_RESULTS), taken(0.0), taken(RESERVED_FOR_RESULTS)), (16, 8, 0));
        assert!(all.take(NODE, &piece(RESERVED_FOR_RESULTS), 8_000).is_err(), "results come first");
        assert!(all.take(NODE, &piece(0.0), 8_000).is_ok());
    }

    #[test]
    fn amount_that_is_owed_counts() {
        let all = RateLimiter::new(NORMAL);
        all.owe(NODE, Charge::new(Resource::Keys, 15_000), 0);
        assert_eq!((all.left(NODE, Resource::Keys, 0), all.left(OTHER, Resource::Keys, 0)), (0.0, 10_000.0));
        assert!(all.check(NODE, &[Charge::new(Resource::Keys, 1)], 0).is_err());
        assert_eq!(all.left(NODE, Resource::Keys, 3_000_000), 1000.0);
    }

    #[test]
    fn nodes_without_spending_are_forgotten() {
        let all = RateLimiter::new(10);
        let ask = |nid, now| {
            all.take(NodeId { gid: 1, nid }, &records(1), now).unwrap();
            lock(&all.nodes).spent.len()
        };
        let many = MAX_NODES as u32;
        for nid in 0..=many {
            ask(nid, 1000);
        }
        assert_eq!(ask(many + 1, 1050), MAX_NODES + 2, "they have spent something within the last tenth of a second");
        assert_eq!(ask(many + 1, 2040), MAX_NODES + 2, "it was looked less than a second ago");
        assert_eq!(ask(many + 1, 2300), 1);
    }

    #[test]
    fn resources_are_counted_apart() {
        let all = RateLimiter::new(NORMAL);
        let left = || ALL.map(|resource| all.left(NODE, resource, 1000));
        for resource in ALL {
            let mut want = left();
            all.owe(NODE, Charge { resource, amount: 0.5, leaves: 0.0 }, 1000);
            want[ALL.iter().position(|other| *other == resource).unwrap()] -= 0.5;
            assert_eq!(left(), want, "{resource:?}");
        }
    }

    proptest! {
        /// However requests come: a node gets no more than its store and the rate, a refusal costs nothing, and
        /// after the told seconds it is served.
        #[test]
        fn node_gets_its_burst_and_its_rate_and_no_more(
            resource in 0..ALL.len(),
            steps in proptest::collection::vec((0_u64..5000, 0.0_f64..1.2), 1..200),
        ) {
            let resource = ALL[resource];
            let rate = resource.rate(NORMAL as f64);
            let all = RateLimiter::new(NORMAL);
            let (mut now, mut taken, mut largest) = (1_000_000, 0.0, 0.0_f64);
            let begin = now;
            for (pause, part) in steps {
                now += pause;
                let charge = Charge { resource, amount: rate.burst * part * part, leaves: 0.0 };
                let before = all.left(NODE, resource, now);
                match all.take(NODE, &[charge], now) {
                    Ok(()) => {
                        taken += charge.amount;
                        largest = largest.max(charge.amount);
                    }
                    Err(exceeded) => {
                        prop_assert!((1..=60).contains(&exceeded.seconds));
                        prop_assert_eq!(all.left(NODE, resource, now), before);
                        // Nobody is told to come back for nothing, but where even a minute does not do.
                        let later = now + u64::from(exceeded.seconds) * 1000;
                        prop_assert!(exceeded.seconds == 60 || all.check(NODE, &[charge], later).is_ok());
                    }
                }
                let most = rate.burst.max(largest) + rate.per_second * (now - begin) as f64 / 1000.0;
                prop_assert!(taken <= most * (1.0 + 1e-9), "{} of {}", taken, most);
            }
        }
    }
}
