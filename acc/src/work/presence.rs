//! Nodes whose polls wait at the proxy: they are written down as seen, and their registrations compared.
//!
//! Owns: what follows when Redis has it otherwise. Does not own: when this is due (`periodic`), the polls (the proxy).

use crate::api::context::Context;
use crate::model::{nodes, polls, queue};
use crate::proxy::{Remote, Seen};
use crate::redis::errors::is_broken;
use crate::redis::{Batch, Conn, describe};
use jscommon::NodeId;
use redis::{FromRedisValue, RedisResult};
use std::time::{Duration, Instant};

/// How often nodes that wait here are written down as seen.
pub(crate) const PRESENCE_INTERVAL: Duration = Duration::from_secs(5);

/// Nodes that wait here: when they were last there, and whether Redis still has it that they wait here. The
/// proxy parks a node's next polls without asking, so what came to nothing on the way to it is found here.
pub(crate) fn note(context: &Context, proxy: &Remote, conn: &mut Conn, list: &[(NodeId, Instant)]) -> RedisResult<()> {
    let now = context.clock.now();
    // Of nodes that were once revoked it is asked whether they still are: those are not there any more.
    let is_of_interest = |(node, _): &&(NodeId, Instant)| context.authenticator.revoked_until(*node).is_some();
    let once: Vec<NodeId> = list.iter().filter(is_of_interest).map(|(node, _)| *node).collect();
    let closed = queue::closed(conn, &once)?;
    let list: Seen = list.iter().filter(|(node, _)| !closed.contains(node)).copied().collect();
    for some in list.chunks(500) {
        let mut batch = Batch::new();
        let ago = |at: &Instant| now.saturating_sub(at.elapsed().as_millis() as u64);
        let times: Vec<(NodeId, u64)> = some.iter().map(|(node, at)| (*node, ago(at))).collect();
        nodes::seen(&mut batch, &times, &context.me);
        // About once an hour for each node that waits here, its registration is kept alive.
        let turn = now / PRESENCE_INTERVAL.as_millis() as u64 % 720;
        for (node, _) in some.iter().filter(|(node, _)| u64::from(node.nid) % 720 == turn) {
            polls::keep(&mut batch, *node);
        }
        let before = batch.len();
        some.iter().for_each(|(node, _)| polls::holder(&mut batch, *node));
        let asked = Instant::now();
        let mut answers = conn.run_each(&batch)?;
        let holders = answers.split_off(before);
        // An error about one node does not fail the others.
        for e in answers.iter().filter_map(|answer| answer.as_ref().err()) {
            if is_broken(e) {
                return Err(e.clone());
            }
            log::debug!("seen: {}", describe(e));
        }
        for ((node, _), holder) in some.iter().zip(holders) {
            let Ok(holder) = holder.and_then(|holder| Ok(Option::<String>::from_redis_value(holder)?)) else {
                continue;
            };
            match holder {
                Some(holder) if holder == context.me => {}
                // It went there in silence: asking for it here would take it away again.
                Some(_) => proxy.release_poll(*node),
                // It was handed something, or something was lost on the way to it. In a fanout most have polled again
                // by now; what is lost of those is found the next time.
                None => proxy.recheck_older(*node, asked),
            }
        }
    }
    Ok(())
}
