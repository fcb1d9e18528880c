//! The queue of each node: the commands that wait for it.
//!
//! Owns: enqueueing, taking back what expired or was cancelled, closing the queue of a revoked node.
//! Does not own: which nodes are meant (`targets`), when something expires (`work::expiry`).
//! Its callers are the dispatcher, the wake-up reader, the poll's handler and the periodic tasks.
//!
//! A command stays in the queue until the node has acknowledged it; until then every poll gets it
//! again. Its number (the batch's name is the highest) goes up over the node's whole life.

use super::handover::{Handover, MOST, MOST_BYTES, QueuedCommand, handover, unpack};
use super::{DAY, keys, scripts};
use crate::redis::{Batch, Conn};
use jscommon::command::TICKET;
use jscommon::{Command, NodeId};
use redis::{FromRedisValue, RedisResult, ToRedisArgs, Value};

/// Seconds that a node's own keys are kept after it was last there.
pub(crate) const KEEP_NODE: u64 = 30 * 86_400;
/// For how many milliseconds a hand-over without acknowledgement counts as under way.
const UNDER_WAY: u64 = 90_000;
/// So many commands of a node are marked as withdrawn, or as many as may wait where that is more. A command is passed
/// on again for a day at most.
const MIN_WITHDRAWN: usize = 10_000;

/// The outcome of one command that was to be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It waits now.
    Now,
    /// It waited already, or it was withdrawn: who did that answers it.
    Before,
    /// As many wait for this node as may.
    Full,
    /// The node was revoked, and not enrolled since.
    Revoked,
}

/// The outcome of an enqueue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Enqueued {
    /// For each command, in order.
    pub(crate) verdicts: Vec<Queued>,
    /// Commands to hand over at once: this controller holds the node's poll.
    pub(crate) handover: Option<Handover>,
    /// The other controller that holds it, which must be woken.
    pub(crate) holder: Option<String>,
}

/// Adds to `batch` the enqueueing of `commands` for `node`; read the answer with `enqueued`.
/// `me` is this controller, `now` is in milliseconds, at most `limit` commands may wait, and what waits
/// is kept for `keep` seconds.
pub(crate) fn enqueue(
    batch: &mut Batch,
    me: &str,
    node: NodeId,
    commands: &[QueuedCommand],
    now: u64,
    limit: usize,
    keep: u64,
) {
    batch.script(&scripts::ENQUEUE, &enqueue_keys(node), (enqueue_args(me, now, limit, keep), commands));
}

/// The keys of `queue.lua`.
pub(super) fn enqueue_keys(node: NodeId) -> [String; 5] {
    [keys::queue(node), keys::waiting(node), keys::meta(node), keys::closed(node), keys::withdrawn(node)]
}

/// The arguments of `queue.lua` that are the same for all nodes.
pub(super) fn enqueue_args(me: &str, now: u64, limit: usize, keep: u64) -> impl ToRedisArgs {
    (me, now, limit, keep.max(KEEP_NODE), MOST, MOST_BYTES)
}

/// Reads the answer to `enqueue`, which `me` had asked for.
pub(crate) fn enqueued(me: &str, answer: Value) -> RedisResult<Enqueued> {
    let mut parts = Vec::<Value>::from_redis_value(answer)?.into_iter();
    let verdicts = Vec::<i64>::from_redis_value(parts.next().unwrap_or(Value::Nil))?
        .into_iter()
        .map(|verdict| match verdict {
            1 => Queued::Now,
            0 => Queued::Before,
            -1 => Queued::Full,
            _ => Queued::Revoked,
        })
        .collect();
    let holder = String::from_redis_value(parts.next().unwrap_or(Value::Nil))?;
    let handover = handover(parts)?;
    let holder = (handover.is_none() && !holder.is_empty() && holder != me).then_some(holder);
    Ok(Enqueued { verdicts, handover, holder })
}

/// Why a command was withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// By a `cancel`.
    Cancelled = 1,
    /// Its node did not come for it in time.
    Expired = 2,
    /// Its node was revoked.
    Revoked = 3,
}

/// The outcome of taking a command back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Withdrawn {
    /// It is not there: the node has it, or it was answered already.
    Gone,
    /// It was handed over and the acknowledgement may still come, until this time (ms).
    Handed(u64),
    /// It will not be handed over any more: the command as its client pushed it, unless its text is
    /// damaged, and the reason for which it was withdrawn first. Call `forget` once it is answered.
    Out(Option<Box<Command>>, Reason),
}

/// Takes the command `id` out of `node`'s queue; `now` is in milliseconds, and at most `max_queue` commands wait there.
/// A command that a revoked node may have already is taken out as well: no result of that node is taken any more.
pub(crate) fn withdraw(
    conn: &mut Conn,
    node: NodeId,
    id: &str,
    now: u64,
    reason: Reason,
    max_queue: usize,
) -> RedisResult<Withdrawn> {
    let keys = [keys::queue(node), keys::waiting(node), keys::meta(node), keys::withdrawn(node)];
    let args = (id, now, UNDER_WAY, reason as usize, max_queue.max(MIN_WITHDRAWN), DAY);
    let answer: Vec<String> = conn.script(&scripts::WITHDRAW, &keys, args)?;
    Ok(match answer.first().map(String::as_str) {
        Some("handed") => Withdrawn::Handed(answer.get(1).and_then(|till| till.parse().ok()).unwrap_or(now)),
        Some("withdrawn") => {
            let mut parts = answer.into_iter().skip(1);
            let packed = parts.next().unwrap_or_default();
            let first = match parts.next().as_deref() {
                Some("1") => Reason::Cancelled,
                Some("2") => Reason::Expired,
                _ => Reason::Revoked,
            };
            let unpacked = unpack(&packed);
            let mut command = Command::parse(unpacked.text.as_bytes()).ok();
            if let Some(command) = &mut command {
                command.extra.remove(TICKET);
                if let Some(gid) = unpacked.chosen_from {
                    (command.gid, command.nid) = (gid, 0);
                }
            }
            Withdrawn::Out(command.map(Box::new), first)
        }
        _ => Withdrawn::Gone,
    })
}

/// Forgets a withdrawn command: it was answered.
pub(crate) fn forget(batch: &mut Batch, node: NodeId, id: &str) {
    batch.call(redis::Cmd::hdel(keys::waiting(node), id));
    batch.call(redis::Cmd::zrem(keys::EXPIRING, keys::expiring(node, id)));
}

/// The ids of all commands that wait for `node`, those among them that were taken out and are not answered yet.
pub(crate) fn ids(conn: &mut Conn, node: NodeId) -> RedisResult<Vec<String>> {
    conn.one(&redis::Cmd::hkeys(keys::waiting(node)))
}

/// No command may wait for `node` from now on, for it was revoked at `until` (ms).
pub(crate) fn close(conn: &mut Conn, node: NodeId, until: u64) -> RedisResult<()> {
    conn.one(&redis::Cmd::set(keys::closed(node), until))
}

/// Commands may wait for `node` again.
pub(crate) fn open(conn: &mut Conn, node: NodeId) -> RedisResult<()> {
    conn.one(&redis::Cmd::del(keys::closed(node)))
}

/// Those of `nodes` for which no command may wait.
pub(crate) fn closed(conn: &mut Conn, nodes: &[NodeId]) -> RedisResult<Vec<NodeId>> {
    let mut batch = Batch::new();
    for node in nodes {
        batch.call(redis::Cmd::exists(keys::closed(*node)));
    }
    let answers = conn.run(&batch)?;
    Ok(nodes.iter().zip(&answers).filter(|(_, answer)| **answer == Value::Int(1)).map(|(node, _)| *node).collect())
}
