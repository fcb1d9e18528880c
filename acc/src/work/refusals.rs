//! Requests that were refused for their credentials, as events.

use crate::api::context::Context;
use crate::auth::authenticator::Refused;
use crate::bounded_map::Throttle;
use crate::model::events;
use crate::redis::{Batch, Conn};
use jscommon::NodeId;
use redis::RedisResult;
use serde_json::json;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time between two events about one node at one address.
const REFUSAL_EVENT_INTERVAL: Duration = Duration::from_secs(60);
/// Most events in a second.
const MAX_EVENTS_A_SECOND: usize = 10;

/// Adds an event for each of these refusals.
pub(crate) fn add_events(context: &Context, conn: &mut Conn, refused: &[Refused]) -> RedisResult<()> {
    let mut batch = Batch::new();
    for one in refused {
        let data = json!({"addr": one.peer.to_string(), "reason": one.reason});
        events::add(&mut batch, "refused", Some(one.node), context.clock.now(), &data);
    }
    conn.run(&batch).map(drop)
}

/// Lets through one refusal a minute of each node at each address, and ten in all a second: clients without
/// credentials must not push out other events.
pub(crate) struct RefusalThrottle {
    by_sender: Throttle<(NodeId, IpAddr)>,
    in_all: Throttle<u64>,
    /// The number of the last refusal.
    count: u64,
}

impl RefusalThrottle {
    /// Nothing was refused yet.
    pub(crate) fn new() -> RefusalThrottle {
        let by_sender = Throttle::new(REFUSAL_EVENT_INTERVAL, usize::MAX);
        RefusalThrottle { by_sender, in_all: Throttle::new(Duration::from_secs(1), MAX_EVENTS_A_SECOND), count: 0 }
    }

    /// Whether this refusal is to become an event.
    pub(crate) fn admits(&mut self, refused: &Refused, now: Instant) -> bool {
        self.count += 1;
        self.in_all.admits(&self.count, now) && self.by_sender.admits(&(refused.node, refused.peer), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sender_is_told_of_once_a_minute_and_ten_senders_a_second() {
        let (mut throttle, begin) = (RefusalThrottle::new(), Instant::now());
        let mut admits = |nid: u32, seconds: u64| {
            let refused = Refused { node: NodeId { gid: 1, nid }, peer: [10, 0, 0, 1].into(), reason: String::new() };
            throttle.admits(&refused, begin + Duration::from_secs(seconds))
        };
        let told: Vec<u64> = (0..130).step_by(10).filter(|at| admits(1, *at)).collect();
        assert_eq!(told, [0, 60, 120]);
        assert_eq!((2..50).filter(|nid| admits(*nid, 200)).count(), MAX_EVENTS_A_SECOND);
        assert!(admits(1, 201));
    }
}
