//! How much each node may send: so much a second, saved up over a minute.
//!
//! Owns: what each node has spent of late, for one kind of thing. Does not own: what counts as one, or what
//! is said to who has spent too much. What another controller took does not count here.

use jscommon::NodeId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// For how long (ms) a node may save up its allowance.
const SPAN: u64 = 60_000;
/// So many nodes are remembered before those that have spent nothing for a minute are forgotten.
const MANY: usize = 20_000;

/// What nodes have spent of one allowance.
pub(super) struct Allowance {
    per_second: f64,
    spent: Mutex<Spent>,
}

#[derive(Default)]
struct Spent {
    /// When each node last asked (ms), and what it had spent then.
    by_node: HashMap<NodeId, (u64, f64)>,
    /// When those were last forgotten that have spent nothing (ms), and how many were left.
    swept: u64,
    left: usize,
}

impl Spent {
    /// Once there are many: every second, or when there are twice as many; it looks at them all.
    fn sweep(&mut self, now: u64) {
        let count = self.by_node.len();
        if count > MANY && (now.saturating_sub(self.swept) >= 1000 || count > self.left.saturating_mul(2)) {
            self.by_node.retain(|_, (at, _)| now.saturating_sub(*at) < SPAN);
            (self.swept, self.left) = (now, self.by_node.len());
        }
    }
}

impl Allowance {
    /// Each node may spend `per_second`, and a minute's worth at once.
    pub(super) fn new(per_second: f64) -> Allowance {
        Allowance { per_second, spent: Mutex::default() }
    }

    /// What it is for a second.
    pub(super) fn per_second(&self) -> f64 {
        self.per_second
    }

    /// Takes `amount` for `node` at `now` (ms), or says after how many seconds there is room. An amount
    /// larger than the whole allowance is taken when nothing else was spent.
    pub(super) fn take(&self, node: NodeId, amount: f64, now: u64) -> Result<(), u32> {
        let rate = self.per_second / 1000.0;
        let most = rate * SPAN as f64;
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        spent.sweep(now);
        let (at, used) = spent.by_node.entry(node).or_insert((now, 0.0));
        *used = (*used - rate * now.saturating_sub(*at) as f64).max(0.0);
        *at = now;
        if *used > 0.0 && *used + amount > most {
            return Err(((*used + amount - most).min(*used) / rate / 1000.0).ceil().clamp(1.0, 60.0) as u32);
        }
        *used += amount;
        Ok(())
    }

    /// `node` did not use the `amount` that it took just now.
    pub(super) fn give_back(&self, node: NodeId, amount: f64) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, used)) = spent.by_node.get_mut(&node) {
            *used = (*used - amount).max(0.0);
        }
    }
}

/// Bytes of one kind of thing that a node may send a second.
const MAX_BYTES: f64 = 4_194_304.0;

/// How much of one kind of thing each node has sent here of late, by number and in bytes.
pub(super) struct Limits {
    kind: &'static str,
    count: Allowance,
    bytes: Allowance,
}

impl Limits {
    /// So many of this `kind` a second.
    pub(super) fn new(kind: &'static str, per_second: f64) -> Limits {
        Limits { kind, count: Allowance::new(per_second), bytes: Allowance::new(MAX_BYTES) }
    }

    /// Takes a batch of `node`, or says after how many seconds there is room, and for what.
    pub(super) fn take(&self, node: NodeId, count: usize, bytes: usize, now: u64) -> Result<(), (u32, String)> {
        let more = |what: String| move |seconds| (seconds, format!("node {node} sends more than {what} a second"));
        let many = format!("{} {}", self.count.per_second(), self.kind);
        self.count.take(node, count as f64, now).map_err(more(many))?;
        self.bytes.take(node, bytes as f64, now).map_err(|seconds| {
            // What is refused is sent again, and pays then.
            self.count.give_back(node, count as f64);
            more(format!("{MAX_BYTES} bytes of {}", self.kind))(seconds)
        })
    }

    /// The batch that `node` has paid for was not taken: it is sent again, and pays then.
    pub(super) fn give_back(&self, node: NodeId, count: usize, bytes: usize) {
        self.count.give_back(node, count as f64);
        self.bytes.give_back(node, bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    #[test]
    fn an_allowance_fills_again() {
        let limits = Allowance::new(10.0);
        assert_eq!(limits.take(NODE, 600.0, 0), Ok(()));
        assert_eq!(limits.take(NODE, 100.0, 0), Err(10));
        assert_eq!(limits.take(NODE, 100.0, 10_000), Ok(()));
        assert!(limits.take(NODE, 10_000.0, 10_000).is_err());
        assert_eq!(limits.take(NODE, 10_000.0, 100_000), Ok(()), "a huge amount goes alone");
        assert_eq!(limits.take(NodeId { gid: 9, nid: 9 }, 5.0, 100_000), Ok(()));
    }

    #[test]
    fn who_spends_nothing_is_forgotten_now_and_then() {
        let limits = Allowance::new(10.0);
        let ask = |nid, now| {
            limits.take(NodeId { gid: 1, nid }, 1.0, now).unwrap();
            limits.spent.lock().unwrap().by_node.len()
        };
        let many = MANY as u32;
        for nid in 0..=many {
            ask(nid, 59_000);
        }
        assert_eq!(ask(many + 1, 118_500), MANY + 2, "they were here within the minute");
        assert_eq!(ask(many + 1, 119_400), MANY + 2, "it was looked less than a second ago");
        assert_eq!(ask(many + 1, 119_500), 1);
    }

    #[test]
    fn few_records_may_be_too_many_bytes() {
        let limits = Limits::new("records", 10.0);
        assert_eq!(limits.take(NODE, 1, 16 << 20, 0), Ok(()));
        assert_eq!(limits.take(NODE, 1, 210 << 20, 0), Ok(()));
        let (seconds, why) = limits.take(NODE, 1, 20 << 20, 0).unwrap_err();
        assert!((1..=60).contains(&seconds) && why.contains("bytes"), "{seconds} {why}");
        assert_eq!(limits.take(NODE, 1, 1, 70_000), Ok(()));
        assert!(limits.take(NODE, 10_000, 1, 70_000).unwrap_err().1.contains("10 records"));
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let limits = Limits::new("records", 10.0);
        assert_eq!(limits.take(NODE, 599, 1, 0), Ok(()));
        for _ in 0..100 {
            assert!(limits.take(NODE, 2, 16 << 20, 0).unwrap_err().1.contains("10 records"));
        }
        assert_eq!(limits.take(NODE, 1, 239 << 20, 0), Ok(()), "its bytes are all there");
        for _ in 0..100 {
            assert!(limits.take(NODE, 90, 200 << 20, 10_000).unwrap_err().1.contains("bytes"));
        }
        assert_eq!(limits.take(NODE, 100, 1, 10_000), Ok(()), "its records are all there");
    }
}
