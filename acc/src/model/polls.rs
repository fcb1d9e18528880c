//! Polls of nodes: they acknowledge what was handed over, get what waits, and one controller holds each that waits.
//!
//! Does not own: the commands (`queue`), waiting polls (the proxy).

use super::handover::{Handover, MOST, MOST_BYTES, handover};
use super::queue::KEEP_NODE;
use super::{keys, scripts};
use crate::redis::{Batch, Conn};
use jscommon::NodeId;
use redis::{FromRedisValue, RedisResult, Value};

/// The ids that an acknowledgement of `batch` covers.
pub(crate) fn acked(conn: &mut Conn, node: NodeId, batch: u64) -> RedisResult<Vec<String>> {
    conn.script(&scripts::ACKED, &[keys::queue(node), keys::meta(node)], batch)
}

/// Why a poll is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The node will wait here when there is nothing: this controller becomes the holder.
    Poll,
    /// The node wants an answer at once.
    Ask,
    /// A wake-up came for a poll that is held here.
    Fetch,
}

/// A question for what waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    /// This controller.
    pub(crate) me: &'a str,
    /// The node whose queue it is.
    pub(crate) node: NodeId,
    /// Milliseconds since 1970.
    pub(crate) now: u64,
    /// The batch that the node has stored.
    pub(crate) ack: Option<u64>,
    /// Which start of the agent asks; empty where it does not say.
    pub(crate) instance: &'a str,
    /// From where it asks.
    pub(crate) peer: &'a str,
    /// Why.
    pub(crate) mode: Mode,
    /// The instance that held the identity is known to be gone.
    pub(crate) takeover: bool,
    /// The controller that was told that the node polls here now: see `PollAnswer::Moved`.
    pub(crate) told: &'a str,
}

impl<'a> Question<'a> {
    /// A question of this controller that says nothing of the agent.
    pub(crate) fn new(me: &'a str, node: NodeId, now: u64, mode: Mode) -> Question<'a> {
        Question { me, node, now, ack: None, instance: "", peer: "", mode, takeover: false, told: "" }
    }
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PollAnswer {
    /// Something waits.
    Batch(Handover),
    /// Nothing waits.
    Empty,
    /// Another controller trusts that it holds this node's poll. Nothing was done: tell it
    /// (`wakeups::notify_moved`), and ask again with that said. The order matters: a controller that dies in between
    /// must not leave it in that belief.
    Moved(String),
    /// `Fetch` only: another controller is the holder by now (true), or none is.
    Elsewhere(bool),
    /// A newer agent with this identity polls from this address; when that is news, the word for `told`.
    Displaced(String, Option<String>),
}

/// Adds a question to `batch`; read the answer with `answered`.
pub(crate) fn ask(batch: &mut Batch, q: &Question<'_>) {
    let mode = match q.mode {
        Mode::Poll => "poll",
        Mode::Ask => "ask",
        Mode::Fetch => "fetch",
    };
    let ack = q.ack.map(|ack| ack.to_string()).unwrap_or_default();
    let keys = [keys::queue(q.node), keys::waiting(q.node), keys::meta(q.node)];
    let limits = (MOST, MOST_BYTES);
    let args = (q.me, q.now, ack, limits, q.instance, q.peer, KEEP_NODE, mode, q.takeover, q.told);
    batch.script(&scripts::POLL, &keys, args);
}

/// Reads the answer to `ask`.
pub(crate) fn answered(answer: Value) -> RedisResult<PollAnswer> {
    let mut parts = Vec::<Value>::from_redis_value(answer)?.into_iter();
    let mut text = |what: &'static str| match parts.next() {
        Some(part) => Ok(String::from_redis_value(part)?),
        None => {
            Err(redis::RedisError::from((redis::ErrorKind::UnexpectedReturnType, "a poll's answer lacks", what.into())))
        }
    };
    Ok(match text("its kind")?.as_str() {
        "elsewhere" => PollAnswer::Elsewhere(!text("its holder")?.is_empty()),
        "moved" => PollAnswer::Moved(text("its holder")?),
        "displaced" => {
            let peer = text("its address")?;
            let word = text("its word")?;
            PollAnswer::Displaced(peer, Some(word).filter(|word| !word.is_empty()))
        }
        _ => handover(parts)?.map_or(PollAnswer::Empty, PollAnswer::Batch),
    })
}

/// The agent `instance` of `node` has stopped: nothing is handed over to its poll any more.
pub(crate) fn left(batch: &mut Batch, node: NodeId, instance: &str) {
    batch.script(&scripts::END_POLL, &[keys::meta(node)], instance);
}

/// It was told that a newer agent with this identity is there: `word` is that of `PollAnswer::Displaced`.
pub(crate) fn told(batch: &mut Batch, node: NodeId, word: &str) {
    batch.call(redis::Cmd::hset(keys::meta(node), "told", word));
}

/// Keeps the registration of a node that is parked for weeks.
pub(crate) fn keep(batch: &mut Batch, node: NodeId) {
    batch.call(redis::Cmd::expire(keys::meta(node), KEEP_NODE as i64));
}

/// Asks which controller holds the poll of `node`: its name, or nothing when none does.
pub(crate) fn holder(batch: &mut Batch, node: NodeId) {
    batch.call(redis::Cmd::hget(keys::meta(node), "ac"));
}
