//! Wake-ups: messages to the controller that holds a node's poll.

use super::{keys, scripts};
use crate::redis::{Batch, Conn, command};
use jscommon::NodeId;
use redis::{Cmd, RedisResult};
use std::collections::HashSet;

/// Seconds that the read of wake-ups waits: longer, for it can be ended (`wake`), and well below
/// `wakeups::RESPONSE_TIMEOUT`.
const WAKEUP_READ_TIMEOUT_SECONDS: u64 = 5;

/// A message to the controller that holds a node's poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wakeup {
    /// Something waits for this node, whose poll is held here.
    Fetch(NodeId),
    /// This node polls at another controller from now on.
    Moved(NodeId),
}

impl Wakeup {
    /// The form in Redis: `gid:nid`, or `-gid:nid`.
    fn read(text: &str) -> Option<Wakeup> {
        match text.strip_prefix('-') {
            Some(node) => node.parse().ok().map(Wakeup::Moved),
            None => text.parse().ok().map(Wakeup::Fetch),
        }
    }
}

/// Tells the controller `ac` that `node` polls elsewhere from now on.
pub(crate) fn notify_moved(batch: &mut Batch, ac: &str, node: NodeId) {
    push_wakeup(batch, ac, &format!("-{node}"));
}

/// Tells the controller `ac` that something waits for `node`.
pub(crate) fn notify(batch: &mut Batch, ac: &str, node: NodeId) {
    push_wakeup(batch, ac, &node.to_string());
}

fn push_wakeup(batch: &mut Batch, ac: &str, text: &str) {
    batch.call(Cmd::lpush(keys::wakeups(ac), text));
    // Nobody reads the wake-ups of a dead controller, and its nodes come back elsewhere by themselves.
    batch.call(Cmd::expire(keys::wakeups(ac), 60));
}

/// Whether there are wake-ups for `me` that were not read yet.
pub(crate) fn has_wakeups(conn: &mut Conn, me: &str) -> RedisResult<bool> {
    conn.one(&Cmd::exists(keys::wakeups(me)))
}

/// Ends the wait of `read_wakeups` with an empty message.
pub(crate) fn wake(conn: &mut Conn, me: &str) -> RedisResult<()> {
    let mut batch = Batch::new();
    push_wakeup(&mut batch, me, "");
    conn.run(&batch).map(drop)
}

/// Waits up to 5 s for wake-ups of `me`; returns each once, in their order.
pub(crate) fn read_wakeups(conn: &mut Conn, me: &str) -> RedisResult<Vec<Wakeup>> {
    let read = command("BRPOP", (keys::wakeups(me), WAKEUP_READ_TIMEOUT_SECONDS));
    let Some((_, first)): Option<(String, String)> = conn.one(&read)? else { return Ok(Vec::new()) };
    let rest: Vec<String> = conn.script(&scripts::WAKEUPS, &[keys::wakeups(me)], 1000)?;
    let mut seen = HashSet::new();
    let wakeups = std::iter::once(first).chain(rest.into_iter().rev()).filter_map(|text| Wakeup::read(&text));
    Ok(wakeups.filter(|wakeup| seen.insert(*wakeup)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_wakeup_are_read() {
        let node = NodeId { gid: 1, nid: 10 };
        assert_eq!(Wakeup::read("1:10"), Some(Wakeup::Fetch(node)));
        assert_eq!(Wakeup::read("-1:10"), Some(Wakeup::Moved(node)));
        assert_eq!((Wakeup::read(""), Wakeup::read("-"), Wakeup::read("x")), (None, None, None));
    }
}
