//! Limits of clients, the share of descriptors, and the counts that are held against the limits.
//!
//! Owns: every number that bounds the proxy, the raising of the descriptor limit, and the counts of
//! memory for bodies, and of connections and requests by node.
//! Does not own: what happens to who is over a bound; the event loop asks here and refuses.

use crate::http::Refusal;
use jscommon::NodeId;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::HashMap;
use std::time::Duration;

/// Bounds of what clients may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest time for a TLS handshake.
    pub(crate) handshake: Duration,
    /// Longest time for a head; of a connection's first one it counts from the handshake on.
    pub(crate) head: Duration,
    /// Longest time in which nothing of a body comes.
    pub(crate) body_pause: Duration,
    /// Longest time for a body, on top of its length at `slowest`.
    pub(crate) body: Duration,
    /// Bytes a second that a client's line is thought to carry at least.
    pub(crate) slowest: u32,
    /// Longest time from a whole request to its answer, parking aside.
    pub(crate) handler: Duration,
    /// Longest time in which nothing of an answer is taken.
    pub(crate) answer_pause: Duration,
    /// How long a kept connection of a node may be idle.
    pub(crate) idle: Duration,
    /// How long bytes that nobody wants are read after a refusal, so that the client can read why.
    pub(crate) linger: Duration,
    /// Longest time that a poll is parked.
    pub(crate) wait: Duration,
    /// How long polls of a node are parked without asking their handler, before that one is asked again. The
    /// presence task looks in between whether Redis has it otherwise, at a hundredth of the price.
    pub(crate) trust: Duration,
    /// Longest polite stop.
    pub(crate) stop: Duration,
    /// Bytes of a head.
    pub(crate) max_head: usize,
    /// Bytes of a body.
    pub(crate) max_body: usize,
    /// Bytes of a body whose sender has not proved to be a node.
    pub(crate) max_open_body: usize,
    /// Bytes of all request and answer bodies that are held at once.
    pub(crate) max_bodies: usize,
    /// Bytes of one node's bodies that are held at once when it sends another one.
    pub(crate) max_node_bodies: usize,
    /// Bytes of one node's bodies that are held at once when it is to be told more.
    pub(crate) max_node_answers: usize,
    /// Requests of one node that are under way at once, parked ones aside.
    pub(crate) max_node_requests: u32,
    /// Connections of one node at once: what was stolen of it must not fill the full.
    pub(crate) max_node_connections: usize,
    /// Connections at once; the limit of descriptors may lower it.
    pub(crate) max_connections: usize,
    /// Connections to tiny_http at once; each is a thread of its.
    pub(crate) max_backend: usize,
    /// Quick requests that travel together on one of them at most, while others wait.
    pub(crate) max_group: usize,
    /// Those of them that are kept however long they are idle.
    pub(crate) kept_backend: usize,
    /// How long the others are kept while they are idle.
    pub(crate) backend_idle: Duration,
    /// Requests that wait for one of those.
    pub(crate) max_queue: usize,
    /// How long a node that goes over a bound waits for its answer: it sends less meanwhile.
    pub(crate) pause: Duration,
    /// Records that a node may send a second.
    pub(crate) max_records: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits {
            handshake: seconds(15),
            head: seconds(15),
            body_pause: seconds(20),
            body: seconds(30),
            slowest: 32 * 1024,
            handler: seconds(30),
            answer_pause: seconds(20),
            idle: seconds(75),
            linger: seconds(5),
            wait: seconds(60),
            trust: seconds(900),
            stop: Duration::from_millis(4500),
            max_head: 16 * 1024,
            max_body: 16 * 1024 * 1024,
            max_open_body: 64 * 1024,
            max_bodies: 128 * 1024 * 1024,
            max_node_bodies: 16 * 1024 * 1024,
            max_node_answers: 64 * 1024 * 1024,
            max_node_requests: 64,
            max_node_connections: 128,
            max_connections: 50_000,
            max_backend: 12,
            max_group: 8,
            kept_backend: 4,
            backend_idle: seconds(2),
            max_queue: 20_000,
            pause: seconds(1),
            max_records: 5000,
        }
    }
}

/// Descriptors that are neither clients' nor tiny_http's: Redis, files, listeners, pollers.
const OTHER_DESCRIPTORS: usize = 80;

/// Descriptors of one connection to tiny_http: ours, the one that it accepts, and a copy of that one; and its two
/// of the connection before, which it may close a moment after us.
const BACKEND_DESCRIPTORS: usize = 5;

impl Limits {
    /// Fits the connections into `descriptors`: tiny_http ends when it gets none, so its share is set aside first.
    #[must_use]
    pub(crate) fn within(mut self, descriptors: usize) -> Limits {
        let spare = descriptors.saturating_sub(OTHER_DESCRIPTORS);
        self.max_backend = self.max_backend.min(spare / 8).max(2);
        let left = spare.saturating_sub(BACKEND_DESCRIPTORS * self.max_backend);
        self.max_connections = self.max_connections.min(left).max(8);
        self
    }

    /// Connections of one address that have not proved to be a node's. Half of all, for a whole fleet
    /// may come back at once from behind one address.
    pub(crate) fn max_unauthenticated(&self) -> usize {
        (self.max_connections / 2).max(4)
    }

    /// Longest time for a body of `length` bytes.
    pub(crate) fn body_time(&self, length: usize) -> Duration {
        self.body + Duration::from_secs_f64(length as f64 / f64::from(self.slowest.max(1)))
    }
}

/// Raises the soft limit of open files to the hard one; the limit that holds now.
pub(crate) fn raise_descriptors() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let raised = soft >= hard || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let limit = if raised { hard } else { soft };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// The resources that the clients of one proxy use.
#[derive(Debug, Default)]
pub(crate) struct ResourceAccounting {
    nodes: HashMap<NodeId, NodeUse>,
    connections: HashMap<NodeId, usize>,
    bodies: usize,
}

#[derive(Debug, Default)]
struct NodeUse {
    requests: u32,
    bodies: usize,
    answers: usize,
}

impl NodeUse {
    fn held(&self) -> usize {
        self.bodies + self.answers
    }

    fn is_nothing(&self) -> bool {
        self.requests == 0 && self.held() == 0
    }
}

/// An answer up to here is given whatever is held already: a refusal would not be smaller by much.
const SMALL: usize = 4 * 1024;

/// OverLimit which bound a request would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OverLimit {
    /// The node has too many connections.
    NodeConnections,
    /// The node has too many requests under way.
    NodeRequests,
    /// The node has too many bytes under way.
    NodeBodies,
    /// All together have too many bytes under way.
    Bodies,
    /// The node sends too much a second.
    Rate,
}

impl OverLimit {
    /// The refusal of a request that goes over this bound.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            OverLimit::NodeConnections => {
                Refusal::new(429, "node-connections", "this node has too many connections open")
            }
            OverLimit::NodeRequests => Refusal::new(429, "node-requests", "this node has too many requests under way"),
            OverLimit::NodeBodies => Refusal::new(429, "node-bodies", "this node sends too much at once"),
            OverLimit::Rate => Refusal::new(429, "node-rate", "this node sends too many requests or bytes a second"),
            OverLimit::Bodies => Refusal::new(503, "bodies-full", "too much is being sent here at once; try again"),
        }
    }
}

impl ResourceAccounting {
    /// Counts a connection that has proved to be `node`'s.
    pub(crate) fn connect(&mut self, limits: &Limits, node: NodeId) -> Result<(), OverLimit> {
        let count = self.connections.entry(node).or_default();
        if *count >= limits.max_node_connections {
            return Err(OverLimit::NodeConnections);
        }
        *count += 1;
        Ok(())
    }

    /// Such a connection has closed.
    pub(crate) fn disconnect(&mut self, node: NodeId) {
        if let Some(count) = self.connections.get_mut(&node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.connections.remove(&node);
            }
        }
    }

    /// Counts a request of `node` with a body of `length` bytes.
    ///
    /// A client may never hold more than is left for all others: however many take what they
    /// can, somebody new finds room.
    pub(crate) fn begin(&mut self, limits: &Limits, node: Option<NodeId>, length: usize) -> Result<(), OverLimit> {
        let free = limits.max_bodies.saturating_sub(self.bodies);
        if length > free {
            return Err(OverLimit::Bodies);
        }
        if let Some(node) = node {
            let used = self.nodes.entry(node).or_default();
            let held = used.held();
            if used.requests >= limits.max_node_requests {
                return Err(OverLimit::NodeRequests);
            }
            if length > 0 && held > 0 && held + length > limits.max_node_bodies.min(free) {
                return Err(OverLimit::NodeBodies);
            }
            // A client that does not read its answers gets no others.
            if used.answers > limits.max_node_bodies.min(free) {
                return Err(OverLimit::NodeBodies);
            }
            used.requests += 1;
            used.bodies += length;
        }
        self.bodies += length;
        Ok(())
    }

    /// Such a request was answered, or is given up.
    pub(crate) fn end(&mut self, node: Option<NodeId>, length: usize) {
        self.bodies = self.bodies.saturating_sub(length);
        self.less(node, |used| {
            used.requests = used.requests.saturating_sub(1);
            used.bodies = used.bodies.saturating_sub(length);
        });
    }

    /// Counts an answer of `length` bytes to `node` that waits to be taken. Half of what is free stays so,
    /// for those who send something.
    pub(crate) fn reserve(&mut self, limits: &Limits, node: Option<NodeId>, length: usize) -> Result<(), OverLimit> {
        let free = limits.max_bodies.saturating_sub(self.bodies);
        if length > SMALL {
            let held = node.and_then(|node| self.nodes.get(&node)).map_or(0, NodeUse::held);
            if length > free / 2 {
                return Err(OverLimit::Bodies);
            }
            if held > 0 && (held + length > limits.max_node_answers || held + 2 * length > free) {
                return Err(OverLimit::NodeBodies);
            }
        }
        if let Some(node) = node {
            self.nodes.entry(node).or_default().answers += length;
        }
        self.bodies += length;
        Ok(())
    }

    /// That answer was taken, or is given up.
    pub(crate) fn release(&mut self, node: Option<NodeId>, length: usize) {
        self.bodies = self.bodies.saturating_sub(length);
        self.less(node, |used| used.answers = used.answers.saturating_sub(length));
    }

    fn less(&mut self, node: Option<NodeId>, change: impl FnOnce(&mut NodeUse)) {
        if let Some(node) = node
            && let Some(used) = self.nodes.get_mut(&node)
        {
            change(used);
            if used.is_nothing() {
                self.nodes.remove(&node);
            }
        }
    }

    /// Bytes of bodies that are held.
    pub(crate) fn bodies(&self) -> usize {
        self.bodies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    #[test]
    fn descriptors_are_shared_out() {
        let share = |descriptors| {
            let limits = Limits::default().within(descriptors);
            (limits.max_connections, limits.max_backend)
        };
        assert_eq!(share(1_048_576), (50_000, 12));
        assert_eq!(share(20_000), (19_860, 12));
        assert_eq!(share(1024), (884, 12));
        assert_eq!(share(256), (116, 12));
        assert_eq!(share(64), (8, 2));
        for descriptors in [256, 1024, 20_000] {
            let (connections, backend) = share(descriptors);
            assert!(connections + BACKEND_DESCRIPTORS * backend + OTHER_DESCRIPTORS <= descriptors);
        }
    }

    #[test]
    fn a_node_has_its_share_of_connections() {
        let limits = Limits { max_node_connections: 2, ..Limits::default() };
        let (mut accounting, other) = (ResourceAccounting::default(), NodeId { gid: 1, nid: 11 });
        assert_eq!((accounting.connect(&limits, NODE), accounting.connect(&limits, NODE)), (Ok(()), Ok(())));
        assert_eq!(accounting.connect(&limits, NODE), Err(OverLimit::NodeConnections));
        assert_eq!(accounting.connect(&limits, other), Ok(()));
        accounting.disconnect(NODE);
        assert_eq!(accounting.connect(&limits, NODE), Ok(()));
        for node in [NODE, NODE, other] {
            accounting.disconnect(node);
        }
        assert!(accounting.connections.is_empty());
    }

    #[test]
    fn bodies_share_one_memory() {
        let limits = Limits { max_bodies: 100, max_node_bodies: 60, max_node_requests: 2, ..Limits::default() };
        let mut accounting = ResourceAccounting::default();
        assert_eq!(accounting.begin(&limits, Some(NODE), 60), Ok(()));
        assert_eq!(accounting.begin(&limits, Some(NODE), 1), Err(OverLimit::NodeBodies));
        assert_eq!(accounting.begin(&limits, None, 41), Err(OverLimit::Bodies));
        assert_eq!(accounting.begin(&limits, Some(NODE), 0), Ok(()));
        assert_eq!(accounting.begin(&limits, Some(NODE), 0), Err(OverLimit::NodeRequests));
        accounting.end(Some(NODE), 60);
        accounting.end(Some(NODE), 0);
        assert_eq!(accounting.reserve(&limits, Some(NODE), 5), Ok(()));
        assert_eq!(accounting.bodies(), 5);
        accounting.release(Some(NODE), 5);
        assert!(accounting.nodes.is_empty() && accounting.bodies() == 0);
    }

    #[test]
    fn client_that_does_not_read_its_answers_keeps_no_other_out() {
        const MIB: usize = 1 << 20;
        let limits = Limits::default();
        let mut accounting = ResourceAccounting::default();
        let node = |nid| Some(NodeId { gid: 1, nid });
        // Each takes answers of 8 MiB until it gets no more.
        for nid in 1..=20 {
            while accounting.reserve(&limits, node(nid), 8 * MIB).is_ok() {}
            assert_eq!(accounting.begin(&limits, node(1), MIB), Err(OverLimit::NodeBodies), "{nid}");
            assert_eq!(accounting.begin(&limits, node(100 + nid), MIB), Ok(()), "{nid}");
            accounting.end(node(100 + nid), MIB);
        }
        assert!(accounting.bodies() <= limits.max_bodies);
        assert_eq!(accounting.begin(&limits, node(1), 0), Err(OverLimit::NodeBodies), "it reads first");
        assert_eq!(accounting.begin(&limits, node(100), 0), Ok(()), "a poll of another one");
        assert_eq!(accounting.reserve(&limits, node(100), 100), Ok(()));
        // The memory is free again.
        for nid in 1..=20 {
            while node(nid).is_some_and(|node| accounting.nodes.contains_key(&node)) {
                accounting.release(node(nid), 8 * MIB);
            }
        }
        assert_eq!(accounting.begin(&limits, node(1), 16 * MIB), Ok(()));
    }
}
