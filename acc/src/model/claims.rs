//! Claims of nodes (roles, labels, a host name): read from their messages, and compared with their grants.
//!
//! Owns: the form of claims, a cache of comparisons, and how often grants are read again.
//! Does not own: the grants (`grants`), the choice of targets by them (`targets`).
//!
//! A poll whose claims were compared before asks nothing of Redis. Grants are changed in Redis by others, who tell no
//! controller: nodes that claim more than they are granted are compared each time, and all others
//! in turn.

use crate::bounded_map::BoundedMap;
use crate::model::events;
use crate::model::grants::{self, Standing};
use crate::redis::Batch;
use jscommon::NodeId;
use jscommon::lock::lock;
use jscommon::node::is_role;
use serde_json::{Map, Value as Json, json};
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::sync::Mutex;

/// Most roles, and most labels, of a node.
pub(crate) const MAX_CLAIMS: usize = 100;
/// Longest host name, in bytes.
const MAX_HOST_BYTES: usize = 253;
/// The nodes whose comparison is kept, at least.
const MAX_NODES: usize = 50_000;
/// Most nodes that are looked at because they claim more than they are granted, in one look.
const MAX_BEYOND: usize = 500;
/// Most other nodes that are looked at in one look.
const MAX_IN_TURN: usize = 250;

/// Returns the labels of a `startup` event that are good, as `name=value` in order, and how many are not.
pub(crate) fn labels(labels: &Map<String, Json>) -> (Vec<String>, usize) {
    let good = |(name, value): (&String, &Json)| {
        let value = value.as_str().filter(|value| is_role(value))?;
        is_role(name).then(|| format!("{name}={value}"))
    };
    let mut found: Vec<String> = labels.iter().filter_map(good).take(MAX_CLAIMS).collect();
    found.sort_unstable();
    let refused = labels.len() - found.len();
    (found, refused)
}

/// Whether `text` can be a host name: characters that mean nothing to a shell or a terminal.
pub(crate) fn is_host(text: &str) -> bool {
    (1..=MAX_HOST_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The last comparison of each node that has polled this controller.
pub(crate) struct Claimed {
    held: Mutex<Held>,
    hasher: RandomState,
}

struct Held {
    nodes: BoundedMap<NodeId, Entry>,
    /// Nodes that are still to be looked at in this turn.
    turn: Vec<NodeId>,
}

impl Default for Claimed {
    fn default() -> Claimed {
        let held = Held { nodes: BoundedMap::new(MAX_NODES), turn: Vec::new() };
        Claimed { held: Mutex::new(held), hasher: RandomState::new() }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    /// A hash of what its last poll claimed; nothing where a poll is still to say it.
    says: Option<NonZeroU64>,
    /// A hash of what was found to be granted; odd when it claims more than that. One word, for there may be very many
    /// nodes.
    standing: u64,
}

impl Entry {
    fn is_beyond(&self) -> bool {
        self.standing & 1 == 1
    }
}

impl Claimed {
    /// A hash of what a poll claims: its roles, the time (ms) at which its credentials were issued, and a number that
    /// moves when Redis may have forgotten what it was told.
    pub(crate) fn hash(&self, roles: &[String], issued: u64, epoch: u64) -> NonZeroU64 {
        NonZeroU64::MIN | self.hasher.hash_one((roles, issued, epoch))
    }

    /// Whether a poll of `node` that claims what has this hash is still to be compared.
    pub(crate) fn is_news(&self, node: NodeId, says: NonZeroU64) -> bool {
        lock(&self.held).nodes.get(&node).is_none_or(|entry| entry.says != Some(says))
    }

    /// Notes that the claims of `node` were compared and its granted ones stored. `says` is the hash of its poll, when
    /// a poll made the claims.
    pub(crate) fn note(&self, node: NodeId, says: Option<NonZeroU64>, standing: &Standing) {
        let entry = Entry { says, standing: self.hash_standing(standing) };
        lock(&self.held).nodes.insert(node, entry);
    }

    /// Forgets `node`: its next poll is compared.
    pub(crate) fn forget(&self, node: NodeId) {
        lock(&self.held).nodes.remove(&node);
    }

    /// Nodes whose grants are to be looked at now.
    pub(crate) fn due(&self) -> Vec<NodeId> {
        let mut held = lock(&self.held);
        let mut due: Vec<NodeId> =
            held.nodes.iter().filter(|(_, entry)| entry.is_beyond()).map(|(node, _)| *node).take(MAX_BEYOND).collect();
        if held.turn.is_empty() {
            held.turn = held.nodes.iter().filter(|(_, entry)| !entry.is_beyond()).map(|(node, _)| *node).collect();
        }
        let rest = held.turn.len().saturating_sub(MAX_IN_TURN);
        due.extend(held.turn.drain(rest..));
        due
    }

    /// The hash of the last poll of `node`, where something else than `standing` was found before.
    pub(crate) fn changed(&self, node: NodeId, standing: &Standing) -> Option<Option<NonZeroU64>> {
        let hash = self.hash_standing(standing);
        lock(&self.held).nodes.get(&node).filter(|entry| entry.standing != hash).map(|entry| entry.says)
    }

    fn hash_standing(&self, standing: &Standing) -> u64 {
        self.hasher.hash_one(standing) & !1 | u64::from(!standing.beyond.is_empty())
    }
}

/// Adds the calls that store the granted claims, and the event about the others.
pub(crate) fn write_down(batch: &mut Batch, node: NodeId, now: u64, standing: &Standing, tell: bool) {
    grants::show(batch, node, standing);
    if tell {
        self::report(batch, node, now, standing);
    }
}

/// Adds the event that tells of claims beyond the grants.
pub(crate) fn report(batch: &mut Batch, node: NodeId, now: u64, standing: &Standing) {
    let claims = standing.beyond.join(" ");
    log::warn!("node {node} claims what is not granted to it: {claims}; allow it with `jsctl grant`");
    events::add(batch, "not_granted", Some(node), now, &json!({"claims": standing.beyond}));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn node(nid: u32) -> NodeId {
        NodeId { gid: 1, nid }
    }

    const ONE: Option<NonZeroU64> = Some(NonZeroU64::MIN);

    fn standing(beyond: &[&str]) -> Standing {
        Standing { beyond: beyond.iter().map(|claim| (*claim).to_owned()).collect(), ..Standing::default() }
    }

    #[test]
    fn labels_and_hosts_are_of_a_small_set_of_characters() {
        let read = |value: Json| labels(value.as_object().unwrap());
        let value = json!({"site": "ams", "rack": "a/1", "a b": "x", "x": "$(y)", "n": 5, "": "e", "z": ""});
        assert_eq!(read(value), (vec!["rack=a/1".to_owned(), "site=ams".to_owned()], 5));
        let many: Map<String, Json> = (0..1000).map(|i| (format!("l{i}"), json!("v"))).collect();
        assert_eq!((labels(&many).0.len(), labels(&many).1), (MAX_CLAIMS, 1000 - MAX_CLAIMS));
        for good in ["a", "web-1.example", "WIN_7"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "a b", "a;b", "h\u{1b}[1m", "ü", &"x".repeat(MAX_HOST_BYTES + 1)] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn compared_claims_are_no_news_until_they_change() {
        let claimed = Claimed::default();
        let says = |role: &str, issued, epoch| claimed.hash(&[role.to_owned()], issued, epoch);
        assert!(claimed.is_news(node(1), says("web", 5, 0)));
        claimed.note(node(1), Some(says("web", 5, 0)), &standing(&[]));
        assert!(!claimed.is_news(node(1), says("web", 5, 0)));
        for (role, issued, epoch) in [("db", 5, 0), ("web", 6, 0), ("web", 5, 1)] {
            assert!(claimed.is_news(node(1), says(role, issued, epoch)), "{role} {issued} {epoch}");
        }
        // Claims of a `startup` event are to be compared with the next poll.
        claimed.note(node(1), None, &standing(&[]));
        assert!(claimed.is_news(node(1), says("web", 5, 0)));
        claimed.note(node(1), ONE, &standing(&[]));
        claimed.forget(node(1));
        assert!(claimed.is_news(node(1), NonZeroU64::MIN));
    }

    #[test]
    fn nodes_with_claims_beyond_are_due_each_time_and_all_others_in_turn() {
        let claimed = Claimed::default();
        claimed.note(node(1), ONE, &standing(&["role:vault"]));
        (2..=601).for_each(|nid| claimed.note(node(nid), ONE, &standing(&[])));
        let mut seen = HashMap::new();
        for _ in 0..3 {
            let due = claimed.due();
            assert!(due.len() <= MAX_IN_TURN + 1);
            due.into_iter().for_each(|node| *seen.entry(node).or_insert(0) += 1);
        }
        assert_eq!((seen.len(), seen[&node(1)]), (601, 3));
        assert_eq!(claimed.changed(node(1), &standing(&["role:vault"])), None);
        assert_eq!(claimed.changed(node(1), &standing(&[])), Some(ONE));
        assert_eq!(claimed.changed(node(999), &standing(&[])), None);
    }

    #[test]
    fn nodes_are_forgotten_when_many_others_came_since() {
        let claimed = Claimed::default();
        (1..=3 * MAX_NODES as u32).for_each(|nid| claimed.note(node(nid), ONE, &standing(&["role:x"])));
        assert!(
            !claimed.is_news(node(3 * MAX_NODES as u32), NonZeroU64::MIN) && claimed.is_news(node(1), NonZeroU64::MIN)
        );
        assert!(claimed.due().len() <= MAX_BEYOND + MAX_IN_TURN);
    }
}
