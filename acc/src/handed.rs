//! What was handed to nodes here and not acknowledged yet, so that an acknowledgement costs no look into
//! Redis. Pure.
//!
//! Owns: for some nodes the ids of their last batch. Does not own: the truth, which is in Redis: whatever is
//! missing here is asked there.

use jscommon::NodeId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many nodes are remembered; then all are forgotten and it begins anew.
const MANY: usize = 50_000;
/// A longer batch is not remembered: asking for it costs little beside what it holds.
const LONGEST: usize = 64;

/// The last batch of each node.
#[derive(Debug, Default)]
pub struct Handed(Mutex<HashMap<NodeId, (u64, Vec<String>)>>);

impl Handed {
    /// `node` was handed `batch`, which holds `ids` and with them everything that it has not acknowledged.
    pub fn note(&self, node: NodeId, batch: &str, ids: &[String]) {
        let mut held = self.held();
        let Some(batch) = batch.parse().ok().filter(|_| ids.len() <= LONGEST) else {
            held.remove(&node);
            return;
        };
        if held.len() >= MANY {
            held.clear();
        }
        held.insert(node, (batch, ids.to_vec()));
    }

    /// The ids that `node` acknowledges with `batch`, when that is the last one which it was handed here.
    pub fn take(&self, node: NodeId, batch: u64) -> Option<Vec<String>> {
        let mut held = self.held();
        held.get(&node).filter(|(last, _)| *last == batch)?;
        held.remove(&node).map(|(_, ids)| ids)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<NodeId, (u64, Vec<String>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_batch_is_known_once() {
        let (handed, node) = (Handed::default(), NodeId { gid: 1, nid: 10 });
        let ids = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<String>>();
        assert_eq!(handed.take(node, 7), None);
        handed.note(node, "7", &ids(1));
        handed.note(node, "9", &ids(2));
        assert_eq!(handed.take(node, 7), None, "another one came since");
        assert_eq!(handed.take(node, 9), Some(ids(2)));
        assert_eq!(handed.take(node, 9), None);
        handed.note(node, "9", &ids(1));
        handed.note(node, "10", &ids(LONGEST + 1));
        assert_eq!((handed.take(node, 9), handed.take(node, 10)), (None, None));
    }
}
