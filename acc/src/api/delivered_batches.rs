//! Batches that were handed to nodes here and not acknowledged yet, so that an acknowledgement costs no look into
//! Redis. Pure.
//!
//! Owns: for some nodes the ids of their last batch. Does not own: the truth, which is in Redis: whatever is
//! missing here is asked there.

use jscommon::NodeId;
use jscommon::lock::lock;
use std::collections::HashMap;
use std::sync::Mutex;

/// Bytes that are held at most; then all is forgotten and it begins anew. Ids as clients make them leave
/// room for 100,000 nodes with one command each.
const MAX_BYTES: usize = 24 << 20;
/// A longer batch is not remembered: asking for it costs little beside what it holds.
const MAX_BATCH_IDS: usize = 64;
/// Bytes of an entry beside its ids, and of each id beside its text: in the table and on the heap.
const ENTRY_OVERHEAD_BYTES: usize = 128;
const ID_OVERHEAD_BYTES: usize = 48;

/// The ids of a batch.
pub(crate) type Ids = Box<[Box<str>]>;

/// The last batch of each node.
#[derive(Debug, Default)]
pub(crate) struct DeliveredBatches(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    batches: HashMap<NodeId, (u64, Ids)>,
    bytes: usize,
}

/// The size of a batch, in bytes.
fn size(ids: &[impl AsRef<str>]) -> usize {
    ENTRY_OVERHEAD_BYTES + ids.iter().map(|id| ID_OVERHEAD_BYTES + id.as_ref().len()).sum::<usize>()
}

impl Entries {
    fn remove(&mut self, node: NodeId) -> Option<Ids> {
        let (_, ids) = self.batches.remove(&node)?;
        self.bytes -= size(&ids);
        Some(ids)
    }
}

impl DeliveredBatches {
    /// `node` was handed `batch`, which holds `ids` and with them everything that it has not acknowledged.
    pub(crate) fn note(&self, node: NodeId, batch: &str, ids: &[String]) {
        let mut held = lock(&self.0);
        held.remove(node);
        let Some(batch) = batch.parse().ok().filter(|_| ids.len() <= MAX_BATCH_IDS) else { return };
        let more = size(ids);
        if held.bytes + more > MAX_BYTES {
            // The table too: it has room for as many nodes as there ever were.
            *held = Entries::default();
        }
        held.bytes += more;
        held.batches.insert(node, (batch, ids.iter().map(|id| id.as_str().into()).collect()));
    }

    /// The ids that `node` acknowledges with `batch`, when that is the last one which it was handed here.
    pub(crate) fn take(&self, node: NodeId, batch: u64) -> Option<Ids> {
        let mut held = lock(&self.0);
        held.batches.get(&node).filter(|(last, _)| *last == batch)?;
        held.remove(node)
    }

    /// `node` polls elsewhere from now on, and acknowledges there.
    pub(crate) fn forget(&self, node: NodeId) {
        lock(&self.0).remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|i| i.to_string()).collect()
    }

    fn taken(handed: &DeliveredBatches, batch: u64) -> Option<Vec<String>> {
        handed.take(NODE, batch).map(|ids| ids.iter().map(|id| id.to_string()).collect())
    }

    #[test]
    fn the_last_batch_is_known_once() {
        let handed = DeliveredBatches::default();
        assert_eq!(taken(&handed, 7), None);
        handed.note(NODE, "7", &ids(1));
        handed.note(NODE, "9", &ids(2));
        assert_eq!(taken(&handed, 7), None, "another one came since");
        assert_eq!(taken(&handed, 9), Some(ids(2)));
        assert_eq!(taken(&handed, 9), None);
        handed.note(NODE, "9", &ids(1));
        handed.note(NODE, "10", &ids(MAX_BATCH_IDS + 1));
        assert_eq!((taken(&handed, 9), taken(&handed, 10)), (None, None));
        handed.note(NODE, "11", &ids(1));
        handed.forget(NODE);
        assert_eq!(taken(&handed, 11), None);
        assert_eq!(lock(&handed.0).bytes, 0);
    }

    #[test]
    fn the_longest_ids_of_many_nodes_stay_within_the_bound() {
        let handed = DeliveredBatches::default();
        let longest: Vec<String> = (0..MAX_BATCH_IDS).map(|i| format!("{i:0128}")).collect();
        let mut most = 0;
        for nid in 1..=50_000 {
            handed.note(NodeId { gid: 1, nid }, "7", &longest);
            most = most.max(lock(&handed.0).bytes);
        }
        assert!(most <= MAX_BYTES && most > MAX_BYTES / 2, "{most}");
        assert!(handed.take(NodeId { gid: 1, nid: 50_000 }, 7).is_some(), "the newest are known");
        // A fleet with short batches fits, whatever was there before.
        let handed = DeliveredBatches::default();
        (1..=100_000).for_each(|nid| handed.note(NodeId { gid: 1, nid }, "7", &["x".repeat(36)]));
        assert!(handed.take(NodeId { gid: 1, nid: 1 }, 7).is_some());
        let held = lock(&handed.0);
        assert_eq!(held.bytes, held.batches.values().map(|(_, ids)| size(ids)).sum::<usize>());
    }
}
