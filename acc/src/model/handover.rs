//! Commands on their way to a node: as they lie in its queue, and as the node gets them. Pure.

use jscommon::Command;
use jscommon::command::TICKET;
use redis::{FromRedisValue, RedisResult, RedisWrite, ToRedisArgs, Value};

/// Most commands that one answer carries.
pub(super) const MOST: usize = 1_000;
/// Most bytes that one answer carries, unless a single command is longer.
pub(super) const MOST_BYTES: usize = 4 << 20;

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
    pub(super) fn packed(&self) -> String {
        match self.chosen_from {
            None => format!("{}t:{}", self.created, self.text),
            Some(gid) => format!("{}t/{gid}:{}", self.created, self.text),
        }
    }
}

/// The arguments of one command in enqueue.lua.
impl ToRedisArgs for QueuedCommand {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        // Packed one after the other: a text may be long.
        (self.id.as_str(), self.packed(), self.marked, self.marked_expired).write_redis_args(out);
    }

    fn num_of_args(&self) -> usize {
        4
    }
}

/// The fields that precede the JSON text of a packed command, and the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unpacked<'a> {
    pub(super) created: u64,
    pub(super) has_ticket: bool,
    pub(super) chosen_from: Option<u32>,
    pub(super) text: &'a str,
}

pub(super) fn unpack(packed: &str) -> Unpacked<'_> {
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

/// Reads the end of an answer of a script: a batch, and its packed commands; `None` when there are none.
pub(super) fn handover(mut parts: impl Iterator<Item = Value>) -> RedisResult<Option<Handover>> {
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
