//! Bodies of requests as JSON, within a bound of the memory that this takes.
//!
//! Owns: how many JSON values of bodies are held at once, of one node and of all. Does not own: the bytes of bodies,
//! which the proxy counts from the first one on (`proxy::limits`), and what the values mean.

use super::{Fault, RETRY, bad, too_many};
use crate::context::Context;
use crate::server::Reply;
use jscommon::NodeId;
use jscommon::json_size::count_values;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most JSON values of one node's bodies that are held at once, in one body or in several. A value takes up to 100 bytes
/// beside its text, so this is 24 MiB. A batch of 10,000 records has four fifths of it.
const MAX_NODE_VALUES: usize = 250_000;
/// Most of all bodies together.
const MAX_VALUES: usize = 4 * MAX_NODE_VALUES;
/// Values of a body that is too small to be counted.
const FEW: usize = 1000;
/// Seconds after which a node may send again what would have been one body too many.
const NODE_RETRY: u32 = 1;

/// The values that are held, by node; those of `None` are of senders that have not proved to be a node.
#[derive(Debug, Default)]
pub(crate) struct HeldValues(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    nodes: HashMap<Option<NodeId>, usize>,
    all: usize,
}

/// Which bound some more values would go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    One,
    Node,
    All,
}

/// A body that was read. Its values count until this is dropped.
pub(super) struct Body<'a> {
    pub(super) value: Value,
    _share: Option<Share<'a>>,
}

struct Share<'a> {
    values: &'a HeldValues,
    node: Option<NodeId>,
    count: usize,
}

impl HeldValues {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts so many values of `node`, where there is room for them.
    fn hold(&self, node: Option<NodeId>, count: usize) -> Result<Share<'_>, Over> {
        let mut counts = self.counts();
        let held = counts.nodes.get(&node).copied().unwrap_or_default();
        if count > MAX_NODE_VALUES {
            return Err(Over::One);
        }
        if held + count > MAX_NODE_VALUES {
            return Err(Over::Node);
        }
        if counts.all + count > MAX_VALUES {
            return Err(Over::All);
        }
        counts.nodes.insert(node, held + count);
        counts.all += count;
        Ok(Share { values: self, node, count })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut counts = self.values.counts();
        counts.all -= self.count;
        if let Some(held) = counts.nodes.get_mut(&self.node) {
            *held -= self.count;
            if *held == 0 {
                counts.nodes.remove(&self.node);
            }
        }
    }
}

/// Reads a body of `node` as JSON, and gives its bytes back. One of very many values, each of which takes many times the
/// memory of its text, is refused before that.
pub(super) fn json(context: &Context, node: Option<NodeId>, body: Vec<u8>) -> Result<Body<'_>, Fault> {
    read(&context.values, node, &body)
}

fn read<'a>(values: &'a HeldValues, node: Option<NodeId>, body: &[u8]) -> Result<Body<'a>, Fault> {
    let count = count_values(body);
    let share = (count > FEW).then(|| values.hold(node, count)).transpose().map_err(refusal)?;
    let value = serde_json::from_slice(body).map_err(|e| bad(format!("the body is no JSON: {e}")))?;
    Ok(Body { value, _share: share })
}

fn refusal(over: Over) -> Fault {
    match over {
        Over::One => too_many(format!("the body has more than {MAX_NODE_VALUES} JSON values")),
        Over::Node => {
            let sentence = format!("the node's requests under way have more than {MAX_NODE_VALUES} JSON values");
            Fault::Reply(Reply::busy(429, format!("{sentence} together"), NODE_RETRY))
        }
        Over::All => Fault::Reply(Reply::busy(503, "too many large requests are under way: try again", RETRY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    fn status(outcome: Result<Body<'_>, Fault>) -> u16 {
        match outcome {
            Ok(_) => 200,
            Err(Fault::Reply(reply)) => reply.status,
            Err(Fault::Redis(error)) => panic!("{error}"),
        }
    }

    fn list(count: usize) -> Vec<u8> {
        [b"[".as_slice(), &b"0,".repeat(count - 2), b"0]"].concat()
    }

    #[test]
    fn body_of_too_many_values_is_refused_unread() {
        let values = HeldValues::default();
        assert_eq!(status(read(&values, Some(NODE), &list(MAX_NODE_VALUES))), 200);
        assert_eq!(status(read(&values, Some(NODE), &list(MAX_NODE_VALUES + 1))), 413);
        let objects = [b"[".as_slice(), &b"{},".repeat(MAX_NODE_VALUES / 8), b"{}]"].concat();
        assert_eq!(status(read(&values, Some(NODE), &objects)), 413);
        assert_eq!(status(read(&values, Some(NODE), b"{")), 400);
    }

    #[test]
    fn bodies_of_one_node_share_one_bound_and_those_of_all_another() {
        let values = HeldValues::default();
        let node = |nid| Some(NodeId { gid: 1, nid });
        let large = list(MAX_NODE_VALUES);
        let first = read(&values, node(1), &large);
        assert_eq!(status(read(&values, node(1), &list(FEW + 1))), 429);
        assert_eq!(status(read(&values, node(1), &list(FEW))), 200, "a small one always passes");
        let others: Vec<_> = (2..=4).map(|nid| read(&values, node(nid), &large)).collect();
        assert_eq!(status(read(&values, node(5), &list(FEW + 1))), 503);
        drop(first);
        assert_eq!(status(read(&values, node(5), &large)), 200);
        assert_eq!(others.into_iter().map(status).collect::<Vec<_>>(), [200; 3]);
        assert!(values.counts().nodes.is_empty() && values.counts().all == 0);
    }
}
