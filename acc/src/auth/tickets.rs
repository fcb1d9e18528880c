//! Tickets: by its ticket the controller knows that it gave this job to this node.
//!
//! A ticket is `<flags>.<mac>`. `flags` is empty, or `r<seconds>` for a job that may bring more than one result, with
//! the seconds between its runs. `mac` is the HMAC-SHA-256 (RFC 2104) of `<gid>:<nid>`, the job's id and the flags,
//! each ended by a line feed, in base64url without padding. A controller makes and checks it without a look-up.
//!
//! Owns: the form, the keys that hold here, which nodes are known to return tickets.
//! Does not own: where the key lies (`state_dir` has the file, `model` the key of Redis).

use jscommon::NodeId;
use jscommon::lock::{lock, read_lock, write_lock};
use jscommon::token::MacKey;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

/// Longest text that is checked as a ticket, in bytes.
const MAX_TICKET: usize = 80;
/// Most seconds between two runs that a ticket tells.
pub(crate) const MAX_PERIOD: u64 = 400 * 86_400;
/// So many nodes are known to return tickets before all of them are forgotten here; Redis knows them too.
const MAX_NODES: usize = 100_000;

/// The properties of a job that its ticket states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// More than one result may come, about so many seconds apart.
    pub recurring: Option<u64>,
}

impl Flags {
    /// The flags of a command with these arguments.
    pub(crate) fn of(args: &Map<String, Value>) -> Flags {
        let period = args.get("recurring_period").and_then(Value::as_f64).filter(|period| *period > 0.0);
        Flags { recurring: period.map(|period| (period.ceil() as u64).min(MAX_PERIOD)) }
    }

    fn parse(text: &str) -> Option<Flags> {
        match text.strip_prefix('r') {
            None => text.is_empty().then(Flags::default),
            Some(period) => {
                Some(Flags { recurring: Some(period.parse().ok().filter(|period| *period <= MAX_PERIOD)?) })
            }
        }
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.recurring.map_or(Ok(()), |period| write!(f, "r{period}"))
    }
}

/// The text is no ticket of this node and job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTicket;

/// The key under which tickets are made: 64 hex digits, as it lies in Redis and in the state directory.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey(String);

impl TicketKey {
    /// Reads 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<TicketKey> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(is_hex)).then(|| TicketKey(text.to_owned()))
    }

    /// A key of these bytes.
    pub fn new(bytes: &[u8; 32]) -> TicketKey {
        TicketKey(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The text, which is a secret.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    fn mac(&self) -> MacKey {
        MacKey::new(self.0.as_bytes())
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey(..)")
    }
}

/// The keys that hold: tickets are made with the first, and the one before it is still taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketKeys {
    /// Makes tickets.
    pub current: TicketKey,
    /// Was replaced by the one that Redis had.
    pub previous: Option<TicketKey>,
}

impl TicketKeys {
    /// Reads the lines of the file: the current key, then the previous one where there is one.
    pub(crate) fn parse(text: &str) -> Option<TicketKeys> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let current = TicketKey::parse(lines.next()?)?;
        let previous = match lines.next() {
            Some(line) => Some(TicketKey::parse(line)?),
            None => None,
        };
        lines.next().is_none().then_some(TicketKeys { current, previous })
    }

    /// The text of the file.
    pub(crate) fn text(&self) -> String {
        let previous = self.previous.as_ref().map(|key| format!("{}\n", key.0)).unwrap_or_default();
        format!("{}\n{previous}", self.current.0)
    }
}

struct Macs {
    keys: TicketKeys,
    current: MacKey,
    previous: Option<MacKey>,
}

/// Makes and checks tickets.
pub struct Tickets {
    macs: RwLock<Arc<Macs>>,
    /// Redis has the current key, so that all controllers have it.
    agreed: AtomicBool,
    /// Nodes that Redis knows to return tickets, and the epoch of that.
    returning: Mutex<(u64, HashSet<NodeId>)>,
    agreeing: Mutex<()>,
}

impl Tickets {
    /// Uses these keys; nothing is agreed yet.
    pub fn new(keys: TicketKeys) -> Tickets {
        let macs = RwLock::new(Arc::new(Macs::new(keys)));
        Tickets { macs, agreed: AtomicBool::new(false), returning: Mutex::default(), agreeing: Mutex::default() }
    }

    /// The keys that hold now.
    pub fn keys(&self) -> TicketKeys {
        self.macs().keys.clone()
    }

    /// Uses these keys from now on, which Redis has too.
    pub(crate) fn agree(&self, keys: TicketKeys) {
        if self.macs().keys != keys {
            *write_lock(&self.macs) = Arc::new(Macs::new(keys));
        }
        self.agreed.store(true, Ordering::Release);
    }

    /// Held by the thread that compares the keys with that of Redis.
    pub(crate) fn agreeing(&self) -> MutexGuard<'_, ()> {
        lock(&self.agreeing)
    }

    /// Whether Redis was found to have the current key.
    pub fn is_agreed(&self) -> bool {
        self.agreed.load(Ordering::Acquire)
    }

    /// The ticket of the job `id` for `node`.
    pub fn issue(&self, node: NodeId, id: &str, flags: Flags) -> String {
        let flags = flags.to_string();
        let mac = self.macs().current.sign(&signed(node, id, &flags));
        format!("{flags}.{mac}")
    }

    /// Returns the flags of `ticket` when it belongs to this node and job. Compares in constant time.
    pub fn check(&self, node: NodeId, id: &str, ticket: &str) -> Result<Flags, BadTicket> {
        if ticket.len() > MAX_TICKET {
            return Err(BadTicket);
        }
        let (flags, mac) = ticket.split_once('.').ok_or(BadTicket)?;
        let read = Flags::parse(flags).ok_or(BadTicket)?;
        let text = signed(node, id, flags);
        let macs = self.macs();
        let mut keys = [Some(&macs.current), macs.previous.as_ref()].into_iter().flatten();
        if keys.any(|key| key.verify(&text, mac)) { Ok(read) } else { Err(BadTicket) }
    }

    /// Whether it is still to be written down that `node` returns tickets; `epoch` moves when Redis may have
    /// forgotten it.
    pub(crate) fn is_news(&self, node: NodeId, epoch: u64) -> bool {
        let returning = lock(&self.returning);
        returning.0 != epoch || !returning.1.contains(&node)
    }

    /// It was written down that these nodes return tickets.
    pub(crate) fn note(&self, nodes: &[NodeId], epoch: u64) {
        let mut returning = lock(&self.returning);
        if returning.0 != epoch || returning.1.len() + nodes.len() > MAX_NODES {
            *returning = (epoch, HashSet::new());
        }
        returning.1.extend(nodes);
    }

    fn macs(&self) -> Arc<Macs> {
        read_lock(&self.macs).clone()
    }
}

impl Macs {
    fn new(keys: TicketKeys) -> Macs {
        Macs { current: keys.current.mac(), previous: keys.previous.as_ref().map(TicketKey::mac), keys }
    }
}

/// The text under the mac. No part of it can hold a line feed.
fn signed(node: NodeId, id: &str, flags: &str) -> String {
    format!("{node}\n{id}\n{flags}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };
    const OTHER: NodeId = NodeId { gid: 11, nid: 0 };

    fn key(byte: u8) -> TicketKey {
        TicketKey::new(&[byte; 32])
    }

    fn tickets(byte: u8) -> Tickets {
        Tickets::new(TicketKeys { current: key(byte), previous: None })
    }

    #[test]
    fn ticket_holds_for_its_node_job_and_flags_alone() {
        let tickets = tickets(1);
        for (flags, text) in [(Flags::default(), ""), (Flags { recurring: Some(60) }, "r60")] {
            let ticket = tickets.issue(NODE, "a", flags);
            assert!(ticket.starts_with(&format!("{text}.")), "{ticket}");
            assert_eq!(tickets.check(NODE, "a", &ticket), Ok(flags));
            assert_eq!(tickets.check(OTHER, "a", &ticket), Err(BadTicket));
            assert_eq!(tickets.check(NODE, "b", &ticket), Err(BadTicket));
            assert_eq!(super::tests::tickets(2).check(NODE, "a", &ticket), Err(BadTicket));
            for i in 0..ticket.len() {
                let mut bytes = ticket.clone().into_bytes();
                bytes[i] = if bytes[i] == b'1' { b'2' } else { b'1' };
                assert_eq!(tickets.check(NODE, "a", std::str::from_utf8(&bytes).unwrap()), Err(BadTicket), "byte {i}");
            }
            let mac = ticket.split_once('.').unwrap().1;
            for flags in ["r", "r5", "r60", "x", "", "r060", "r+60", "r99999999999"] {
                let changed = format!("{flags}.{mac}");
                assert!(changed == ticket || tickets.check(NODE, "a", &changed).is_err(), "{changed}");
            }
            for bad in
                ["", ".", "..", &ticket[1..], &ticket[..ticket.len() - 1], &format!("{ticket}A"), &"x".repeat(999)]
            {
                assert_eq!(tickets.check(NODE, "a", bad), Err(BadTicket), "{bad}");
            }
        }
    }

    #[test]
    fn flags_come_from_the_command() {
        let of = |args: Value| Flags::of(args.as_object().unwrap()).to_string();
        assert_eq!(of(json!({})), "");
        assert_eq!(of(json!({"recurring_period": 0})), "");
        assert_eq!(of(json!({"recurring_period": "x"})), "");
        assert_eq!(of(json!({"recurring_period": 0.5})), "r1");
        assert_eq!(of(json!({"recurring_period": 3600})), "r3600");
        assert_eq!(of(json!({"recurring_period": 1e300})), format!("r{MAX_PERIOD}"));
    }

    #[test]
    fn ticket_of_a_replaced_key_is_taken() {
        let (tickets, other) = (tickets(1), tickets(2));
        let old = tickets.issue(NODE, "a", Flags::default());
        tickets.agree(TicketKeys { current: key(2), previous: Some(key(1)) });
        assert!(tickets.check(NODE, "a", &old).is_ok());
        let new = tickets.issue(NODE, "a", Flags::default());
        assert!(other.check(NODE, "a", &new).is_ok());
        assert!(tickets.is_agreed() && !other.is_agreed());
    }

    #[test]
    fn damaged_key_file_is_refused() {
        let keys = TicketKeys { current: key(1), previous: Some(key(2)) };
        assert_eq!(TicketKeys::parse(&keys.text()), Some(keys.clone()));
        assert!(!format!("{keys:?}").contains("0101"));
        let line = "a".repeat(64);
        for bad in ["", "abc", &line[1..], &format!("{line}\nx"), &format!("{line}\n{line}\n{line}"), &"A".repeat(64)] {
            assert_eq!(TicketKeys::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn returning_nodes_are_noted_once_an_epoch_and_bounded() {
        let tickets = tickets(1);
        assert!(tickets.is_news(NODE, 0));
        tickets.note(&[NODE], 0);
        assert!(!tickets.is_news(NODE, 0) && tickets.is_news(OTHER, 0) && tickets.is_news(NODE, 1));
        for nid in 1..=2 * MAX_NODES as u32 {
            tickets.note(&[NodeId { gid: 2, nid }], 0);
        }
        assert!(tickets.returning.lock().unwrap().1.len() <= MAX_NODES);
    }
}
