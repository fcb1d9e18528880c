//! Bodies of requests as JSON, within a bound of the memory that this takes.
//!
//! Owns: how many JSON values of a node's bodies are held at once; of all nodes it is as many times that as there are
//! threads. Does not own: the bytes of bodies, which the proxy counts from the first one on (`proxy::limits`), and what
//! the values mean.

use super::{Fault, bad, too_many};
use crate::http::Reply;
use crate::metrics::Metrics;
use jscommon::NodeId;
use jscommon::json_size::count_values;
use jscommon::lock::lock;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Mutex;

/// Most JSON values of one node's bodies that are held at once, in one body or in several. A value takes up to 100 bytes
/// beside its text, so this is 24 MiB. A batch of 10,000 records has four fifths of it.
const MAX_NODE_VALUES: usize = 250_000;
/// Values of a body that is too small to be counted.
const FEW: usize = 1000;
/// Seconds after which a node may send again what would have been one body too many.
const NODE_RETRY: u32 = 1;

/// The values that are held, by node.
#[derive(Debug, Default)]
pub(crate) struct HeldValues(Mutex<HashMap<NodeId, usize>>);

/// Which bound some more values would go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    One,
    Node,
}

/// A body that was read. Its values count until this is dropped.
pub(super) struct Body<'a> {
    pub(super) value: Value,
    _share: Option<Share<'a>>,
}

struct Share<'a> {
    values: &'a HeldValues,
    node: NodeId,
    count: usize,
}

impl HeldValues {
    /// Counts so many values of `node`, where there is room for them.
    fn hold(&self, node: NodeId, count: usize) -> Result<Share<'_>, Over> {
        let mut counts = lock(&self.0);
        let held = counts.get(&node).copied().unwrap_or_default();
        if count > MAX_NODE_VALUES {
            return Err(Over::One);
        }
        if held + count > MAX_NODE_VALUES {
            return Err(Over::Node);
        }
        counts.insert(node, held + count);
        Ok(Share { values: self, node, count })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut counts = lock(&self.values.0);
        if let Some(held) = counts.get_mut(&self.node) {
            *held -= self.count;
            if *held == 0 {
                counts.remove(&self.node);
            }
        }
    }
}

/// Reads a body of `node` as JSON, and frees its bytes. One of very many values, each of which takes many times the
/// memory of its text, is refused before that.
pub(super) fn json<'a>(
    values: &'a HeldValues,
    metrics: &Metrics,
    node: NodeId,
    body: Vec<u8>,
) -> Result<Body<'a>, Fault> {
    let share = share(values, node, &body).map_err(|over| {
        metrics.refused("values");
        refusal(node, over)
    })?;
    Ok(Body { value: parse(&body)?, _share: share })
}

/// Counts the values of a body that has more than a few.
fn share<'a>(values: &'a HeldValues, node: NodeId, body: &[u8]) -> Result<Option<Share<'a>>, Over> {
    let count = count_values(body);
    (count > FEW).then(|| values.hold(node, count)).transpose()
}

/// Reads JSON of a sender that is bounded in bytes more closely than nodes are.
pub(super) fn parse(body: &[u8]) -> Result<Value, Fault> {
    serde_json::from_slice(body).map_err(|e| bad(format!("the body is no JSON: {e}")))
}

fn refusal(node: NodeId, over: Over) -> Fault {
    match over {
        Over::One => too_many(format!("the body has more than {MAX_NODE_VALUES} JSON values")),
        Over::Node => {
            let sentence =
                format!("requests of node {node} that are read now have more than {MAX_NODE_VALUES} JSON values");
            Fault::Reply(Reply::busy(429, format!("{sentence} together"), NODE_RETRY))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };
    const OTHER: NodeId = NodeId { gid: 1, nid: 11 };

    fn list(count: usize) -> Vec<u8> {
        [b"[".as_slice(), &b"0,".repeat(count - 2), b"0]"].concat()
    }

    #[test]
    fn body_of_too_many_values_is_refused_unread() {
        let values = HeldValues::default();
        let over = |body: &[u8]| share(&values, NODE, body).err();
        assert_eq!(over(&list(MAX_NODE_VALUES)), None);
        assert_eq!(over(&list(MAX_NODE_VALUES + 1)), Some(Over::One));
        let objects = [b"[".as_slice(), &b"{},".repeat(MAX_NODE_VALUES / 8), b"{}]"].concat();
        assert_eq!(over(&objects), Some(Over::One));
    }

    #[test]
    fn bodies_of_one_node_share_one_bound() {
        let values = HeldValues::default();
        let over = |node, count| share(&values, node, &list(count)).err();
        let large = list(MAX_NODE_VALUES - FEW - 1);
        let first = share(&values, NODE, &large);
        assert_eq!(over(NODE, FEW + 2), Some(Over::Node));
        assert_eq!((over(NODE, FEW + 1), over(NODE, FEW)), (None, None));
        assert_eq!(over(OTHER, MAX_NODE_VALUES), None);
        let rest = share(&values, NODE, &list(FEW + 1));
        assert_eq!(over(NODE, FEW), None, "a small one always passes");
        drop((first, rest));
        assert!(lock(&values.0).is_empty());
    }
}
