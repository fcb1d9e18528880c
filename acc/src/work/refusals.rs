//! Requests that were refused for their credentials, as events.

use crate::api::context::Context;
use crate::auth::authenticator::Refused;
use crate::model::events;
use crate::redis::{Batch, Conn};
use jscommon::NodeId;
use redis::RedisResult;
use serde_json::json;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time between two events about one node at one address.
const REFUSAL_EVENT_INTERVAL: Duration = Duration::from_secs(60);

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
#[derive(Default)]
pub(crate) struct RefusalThrottle {
    at: HashMap<(NodeId, IpAddr), Instant>,
    second: Option<(Instant, u32)>,
}

impl RefusalThrottle {
    /// Whether this refusal is to become an event.
    pub(crate) fn admits(&mut self, refused: &Refused) -> bool {
        let now = Instant::now();
        let (since, count) = match self.second {
            Some((since, count)) if now.duration_since(since) < Duration::from_secs(1) => (since, count + 1),
            _ => (now, 1),
        };
        self.second = Some((since, count));
        if count > 10 {
            return false;
        }
        if self.at.len() > 1000 {
            self.at.retain(|_, at| now.duration_since(*at) < REFUSAL_EVENT_INTERVAL);
        }
        let before = self.at.insert((refused.node, refused.peer), now);
        before.is_none_or(|at| now.duration_since(at) >= REFUSAL_EVENT_INTERVAL)
    }
}
