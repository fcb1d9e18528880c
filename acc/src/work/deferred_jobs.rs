//! The jobs that a dispatcher leaves on its processing list while a cluster slot moves or its server is away.
//!
//! Owns: which nodes are left of which job, when to come back to them, the two log lines that say so.
//! Does not own: the processing list, and what is done again (`dispatcher`).
//!
//! While a slot is open a server answers `TRYAGAIN` to calls for several keys of which it has some, and that may
//! last as long as an operator likes. Everything else goes on.

use jscommon::NodeId;
use jscommon::backoff::Backoff;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// The longest time that is added to the one between two looks.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// Commands that stay on the processing list because a slot of a cluster is being moved.
pub(crate) struct DeferredJobs {
    /// Jobs that are passed on but for these nodes.
    pub(crate) jobs: HashMap<String, Vec<NodeId>>,
    /// Nodes whose slot was found open: nothing overtakes what is held for them.
    pub(crate) nodes: HashSet<NodeId>,
    look: Duration,
    backoff: Backoff,
    /// It was said.
    said: bool,
}

impl DeferredJobs {
    /// Nothing is held; `look` is the least time between two looks.
    pub(crate) fn new(look: Duration) -> DeferredJobs {
        let backoff = Backoff::new(look, MAX_BACKOFF);
        DeferredJobs { jobs: HashMap::new(), nodes: HashSet::new(), look, backoff, said: false }
    }

    /// Says that something is held, once.
    pub(crate) fn say(&mut self) {
        if !std::mem::replace(&mut self.said, true) {
            log::warn!(
                "a slot of the cluster is being moved, or a server is away: commands and answers that lie there wait \
                 until that is done"
            );
        }
    }

    /// All that was held was tried once more, and some of it still is, or nothing; in how long to look again.
    pub(crate) fn end_round(&mut self, held: bool) -> Duration {
        if held {
            return self.look + self.backoff.fail(fastrand::f64());
        }
        self.jobs.clear();
        self.nodes.clear();
        self.backoff.succeed();
        if std::mem::take(&mut self.said) {
            log::info!("the cluster has all its slots again, and what waited for that is passed on");
        }
        self.look
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_become_rarer_and_nothing_stays_behind() {
        let second = Duration::from_secs(1);
        let mut held = DeferredJobs::new(second);
        held.jobs.insert("a".into(), Vec::new());
        for _ in 0..20 {
            let wait = held.end_round(true);
            assert!(wait >= second && wait <= second + MAX_BACKOFF);
        }
        assert_eq!(held.end_round(false), second);
        assert!(held.jobs.is_empty() && held.end_round(true) <= 2 * second);
    }
}
