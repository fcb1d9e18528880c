//! The queue of each node: what waits for it, what it was handed, who holds its poll.
//!
//! Owns: enqueueing, polling with acknowledgement, taking back what expired or was cancelled.
//! Does not own: which nodes are meant (`targets`), when something expires (`work::expiry`).
//! Its callers are the dispatcher, the wake-up reader, the poll's handler and the periodic tasks.
//!
//! A command stays in the queue until the node has acknowledged it; until then every poll gets it
//! again. Its number (the batch's name is the highest) goes up over the node's whole life.

use crate::model::{DAY, keys, scripts};
use crate::redis::{Batch, Conn};
use jscommon::command::TICKET;
use jscommon::{Command, NodeId};
use redis::{FromRedisValue, RedisResult, Value};

/// Most commands that one answer carries.
const MOST: usize = 1_000;
/// Most bytes that one answer carries, unless a single command is longer.
const MOST_BYTES: usize = 4 << 20;
/// Seconds that a node's own keys are kept after it was last there.
pub(crate) const KEEP_NODE: u64 = 30 * 86_400;
/// For how many milliseconds a hand-over without acknowledgement counts as under way.
const UNDER_WAY: u64 = 90_000;
/// So many commands of a node are marked as withdrawn, or as many as may wait where that is more. A command is passed
/// on again for a day at most.
const MIN_WITHDRAWN: usize = 10_000;

/// A command on its way to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueuedCommand {
    /// Its id.
    pub(crate) id: String,
    /// When its client pushed it, in milliseconds since 1970, as near as that is known.
    pub(crate) created: u64,
    /// The grid that the command itself names, where it names its node by roles or in a list: its copy for a
    /// node names that node alone.
    pub(crate) chosen_from: Option<u32>,
    /// Its JSON text, with its ticket.
    pub(crate) text: String,
    /// For how many seconds a mark that it was withdrawn counts: after them its id may be that of another command.
    pub(crate) marked: u64,
    /// The same for a mark that its wait has ended.
    pub(crate) marked_expired: u64,
}

impl QueuedCommand {
    /// As it lies in Redis: `<created>t:<json>`, or `<created>t/<gid>:<json>`. The `t` says that the text has a ticket.
    fn packed(&self) -> String {
        match self.chosen_from {
            None => format!("{}t:{}", self.created, self.text),
            Some(gid) => format!("{}t/{gid}:{}", self.created, self.text),
        }
    }
}

/// The fields that precede the JSON text of a packed command, and the text.
#[derive(Debug, PartialEq, Eq)]
struct Unpacked<'a> {
    created: u64,
    has_ticket: bool,
    chosen_from: Option<u32>,
    text: &'a str,
}

fn unpack(packed: &str) -> Unpacked<'_> {
    let (label, text) = packed.split_once(':').unwrap_or(("", packed));
    let (created, chosen_from) =
        label.split_once('/').map_or((label, None), |(created, gid)| (created, gid.parse().ok()));
    let (created, has_ticket) = created.strip_suffix('t').map_or((created, false), |created| (created, true));
    Unpacked { created: created.parse().unwrap_or(0), has_ticket, chosen_from, text }
}

/// Commands that a node is handed in one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    /// The name of the batch, which the node gives back when it has stored it.
    pub(crate) batch: String,
    /// The commands' ids.
    pub(crate) ids: Vec<String>,
    /// The JSON texts.
    pub(crate) texts: Vec<String>,
    /// When each was created, in milliseconds since 1970.
    pub(crate) created: Vec<u64>,
    /// The places in `texts` of those that have no ticket of a controller: see `give_tickets`.
    pub(crate) without_ticket: Vec<usize>,
}

impl Handover {
    /// Puts a ticket, which `issue` makes, into each text that a controller of an earlier version has queued.
    pub(crate) fn give_tickets(&mut self, issue: impl Fn(&Command) -> String) {
        for i in std::mem::take(&mut self.without_ticket) {
            if let Some(text) = self.texts.get_mut(i)
                && let Ok(mut command) = Command::parse(text.as_bytes())
            {
                let ticket = issue(&command);
                command.extra.insert(TICKET.into(), ticket.into());
                *text = command.to_value().to_string();
            }
        }
    }

    /// The body of the answer to the poll.
    pub(crate) fn body(&self) -> Vec<u8> {
        let size: usize = self.texts.iter().map(|text| text.len() + 1).sum();
        let mut body = Vec::with_capacity(size + 64);
        body.extend_from_slice(b"{\"batch\":\"");
        body.extend_from_slice(self.batch.as_bytes());
        body.extend_from_slice(b"\",\"cmds\":[");
        for (i, text) in self.texts.iter().enumerate() {
            if i > 0 {
                body.push(b',');
            }
            body.extend_from_slice(text.as_bytes());
        }
        body.extend_from_slice(b"]}");
        body
    }
}

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
    let keys = [keys::queue(node), keys::waiting(node), keys::meta(node), keys::closed(node), keys::withdrawn(node)];
    batch.script(&scripts::ENQUEUE, &keys, |cmd| {
        cmd.arg(me).arg(now).arg(limit).arg(keep.max(KEEP_NODE)).arg(MOST).arg(MOST_BYTES);
        for command in commands {
            cmd.arg(&command.id).arg(command.packed()).arg(command.marked).arg(command.marked_expired);
        }
    });
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

fn handover(mut parts: impl Iterator<Item = Value>) -> RedisResult<Option<Handover>> {
    let Some(batch) = parts.next() else { return Ok(None) };
    let batch = String::from_redis_value(batch)?;
    let (mut ids, mut texts, mut created, mut without_ticket) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    while let (Some(id), Some(text)) = (parts.next(), parts.next()) {
        ids.push(String::from_redis_value(id)?);
        let text = String::from_redis_value(text)?;
        let unpacked = unpack(&text);
        created.push(unpacked.created);
        if !unpacked.has_ticket {
            without_ticket.push(texts.len());
        }
        texts.push(unpacked.text.to_owned());
    }
    Ok((!texts.is_empty()).then_some(Handover { batch, ids, texts, created, without_ticket }))
}

/// The ids that an acknowledgement of `batch` covers.
pub(crate) fn acked(conn: &mut Conn, node: NodeId, batch: u64) -> RedisResult<Vec<String>> {
    conn.script(&scripts::ACKED, &[keys::queue(node), keys::meta(node)], |cmd| {
        cmd.arg(batch);
    })
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
    /// The controller that was told that the node polls here now: see `Answer::Moved`.
    pub(crate) told: &'a str,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Something waits.
    Batch(Handover),
    /// Nothing waits.
    Empty,
    /// Another controller trusts that it holds this node's poll. Nothing was done: tell it
    /// (`lists::gone`), and ask again with that said. In this order, for whoever dies in between must not
    /// leave it in that belief.
    Moved(String),
    /// `Fetch` only: another controller is the holder by now (true), or none is.
    Elsewhere(bool),
    /// A newer agent with this identity polls from this address; when that is news, the word for `told`.
    Displaced(String, Option<String>),
}

/// Adds a question to `batch`; read the answer with `answered`.
pub(crate) fn ask(batch: &mut Batch, q: &Question<'_>) {
    batch.script(&scripts::POLL, &[keys::queue(q.node), keys::waiting(q.node), keys::meta(q.node)], |cmd| {
        let mode = match q.mode {
            Mode::Poll => "poll",
            Mode::Ask => "ask",
            Mode::Fetch => "fetch",
        };
        let ack = q.ack.map(|ack| ack.to_string()).unwrap_or_default();
        cmd.arg(q.me).arg(q.now).arg(ack).arg(MOST).arg(MOST_BYTES).arg(q.instance).arg(q.peer);
        cmd.arg(KEEP_NODE).arg(mode).arg(u8::from(q.takeover)).arg(q.told);
    });
}

/// Reads the answer to `ask`.
pub(crate) fn answered(answer: Value) -> RedisResult<Answer> {
    let mut parts = Vec::<Value>::from_redis_value(answer)?.into_iter();
    let mut text = |what: &'static str| match parts.next() {
        Some(part) => Ok(String::from_redis_value(part)?),
        None => {
            Err(redis::RedisError::from((redis::ErrorKind::UnexpectedReturnType, "a poll's answer lacks", what.into())))
        }
    };
    Ok(match text("its kind")?.as_str() {
        "elsewhere" => Answer::Elsewhere(!text("its holder")?.is_empty()),
        "moved" => Answer::Moved(text("its holder")?),
        "displaced" => {
            let peer = text("its address")?;
            let word = text("its word")?;
            Answer::Displaced(peer, Some(word).filter(|word| !word.is_empty()))
        }
        _ => handover(parts)?.map_or(Answer::Empty, Answer::Batch),
    })
}

/// The agent `instance` of `node` has stopped: nothing is handed over to its poll any more.
pub(crate) fn left(batch: &mut Batch, node: NodeId, instance: &str) {
    batch.script(&scripts::LEFT, &[keys::meta(node)], |cmd| {
        cmd.arg(instance);
    });
}

/// It was told that a newer agent with this identity is there: `word` is that of `Answer::Displaced`.
pub(crate) fn told(batch: &mut Batch, node: NodeId, word: &str) {
    batch.call(redis::Cmd::hset(keys::meta(node), "told", word));
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
    let answer: Vec<String> = conn.script(&scripts::WITHDRAW, &keys, |cmd| {
        cmd.arg(id).arg(now).arg(UNDER_WAY).arg(reason as u8).arg(max_queue.max(MIN_WITHDRAWN)).arg(DAY);
    })?;
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

/// Keeps the registration of a node that is parked for weeks.
pub(crate) fn keep(batch: &mut Batch, node: NodeId) {
    batch.call(redis::Cmd::expire(keys::meta(node), KEEP_NODE as i64));
}

/// Asks which controller holds the poll of `node`: its name, or nothing when none does.
pub(crate) fn holder(batch: &mut Batch, node: NodeId) {
    batch.call(redis::Cmd::hget(keys::meta(node), "ac"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queued_commands_are_unpacked_as_they_were_packed() {
        for (chosen_from, text) in [(None, r#"{"id":"a:b"}"#), (Some(0), "{}"), (Some(7), "")] {
            let command = QueuedCommand {
                id: "a".into(),
                created: 17,
                chosen_from,
                text: text.into(),
                marked: 1,
                marked_expired: 1,
            };
            let packed = command.packed();
            assert_eq!(unpack(&packed), Unpacked { created: 17, has_ticket: true, chosen_from, text });
        }
        let old = |created, chosen_from, text| Unpacked { created, has_ticket: false, chosen_from, text };
        assert_eq!(unpack("{}"), old(0, None, "{}"));
        assert_eq!(unpack("17:{}"), old(17, None, "{}"));
        assert_eq!(unpack("17/7:{}"), old(17, Some(7), "{}"));
    }

    #[test]
    fn command_that_waited_without_a_ticket_is_given_one() {
        let old = r#"{"id":"a","gid":1,"nid":2,"cmd":"ping","ticket":"of the client","later":1}"#;
        let good = r#"{"id":"b","ticket":"x"}"#;
        let mut handover = Handover {
            batch: "17".into(),
            ids: vec!["a".into(), "b".into()],
            texts: vec![old.into(), good.into()],
            created: vec![1, 2],
            without_ticket: vec![0],
        };
        handover.give_tickets(|command| format!("{}.mac", command.id));
        let text: serde_json::Value = serde_json::from_str(&handover.texts[0]).unwrap();
        assert_eq!((&text["ticket"], &text["later"], &text["cmd"]), (&"a.mac".into(), &1.into(), &"ping".into()));
        assert_eq!(handover.texts[1], good);
    }

    #[test]
    fn a_body_is_json() {
        let handover = Handover {
            batch: "17".into(),
            ids: vec!["a".into(), "b".into()],
            texts: vec![r#"{"id":"a"}"#.into(), r#"{"id":"b"}"#.into()],
            created: vec![1, 2],
            without_ticket: Vec::new(),
        };
        let body: serde_json::Value = serde_json::from_slice(&handover.body()).unwrap();
        assert_eq!(body, serde_json::json!({"batch": "17", "cmds": [{"id": "a"}, {"id": "b"}]}));
    }
}
