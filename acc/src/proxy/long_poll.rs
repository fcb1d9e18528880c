//! Which node waits on which connection, and whether its next poll may wait without asking. Pure.
//!
//! Owns: for each node the one poll that counts (the newest), whether it is with its handler or
//! parked, and the registration that a handler's "park" stands for: this controller holds the node's
//! poll, so whatever is queued for it wakes this controller.
//! Does not own: connections, timers, answers. The event loop does what is returned here.
//!
//! **A registration is trusted only while nothing was heard against it.** A delivery, a recheck, a poll
//! that says anything new (another `ack`, other roles), or its age sends the next poll to its handler,
//! which looks into Redis.

use jscommon::NodeId;
use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, Instant};

/// The part of a poll that decides whether its handler has to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PollFingerprint {
    /// A hash of everything but `ack`: roles, `wait`, whatever comes later.
    pub(crate) rest: u64,
    /// A hash of `ack`, when it is there.
    pub(crate) ack: Option<NonZeroU64>,
}

/// The steps for a poll that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival<C> {
    /// The node's parked poll, which this one replaces: it gets its 204 now.
    pub(crate) replaced: Option<C>,
    /// Park it at once, for so many seconds; else its handler is asked.
    pub(crate) park: Option<u32>,
}

/// The outcome for a poll that its handler wants parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parked {
    /// It waits.
    Waits,
    /// A wake-up came meanwhile: its handler is to be asked again.
    AskAgain,
    /// A newer poll of the node has come: this one gets its 204.
    Displaced,
}

#[derive(Clone, Copy, Debug)]
struct Holder<C> {
    conn: C,
    fingerprint: PollFingerprint,
    parked: bool,
    /// A wake-up came while the handler was asked.
    notified: bool,
}

#[derive(Clone, Copy, Debug)]
struct Registration {
    fingerprint: PollFingerprint,
    seconds: u32,
    /// The second of the table in which it was made: there is one for each node, and an `Instant` takes 16 bytes more.
    since: NonZeroU32,
}

#[derive(Clone, Copy, Debug)]
struct NodeEntry<C> {
    holder: Option<Holder<C>>,
    registration: Option<Registration>,
}

/// The table of nodes and their polls; `C` names a connection.
#[derive(Debug)]
pub(crate) struct ParkedPolls<C> {
    nodes: HashMap<NodeId, NodeEntry<C>>,
    /// How long a registration is trusted, to the second.
    trust: Duration,
    began: Instant,
    parked: usize,
}

impl<C: Copy + Eq> ParkedPolls<C> {
    /// An empty table; registrations are trusted for `trust`.
    pub(crate) fn new(trust: Duration, now: Instant) -> ParkedPolls<C> {
        ParkedPolls { nodes: HashMap::new(), trust, began: now, parked: 0 }
    }

    /// The second of `now` since the table was made, which is 1.
    fn second(&self, now: Instant) -> NonZeroU32 {
        let seconds = now.duration_since(self.began).as_secs();
        NonZeroU32::MIN.saturating_add(u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// The first second in which a registration is trusted that was made so long ago.
    fn oldest_trusted(&self, now: Instant) -> u32 {
        self.second(now).get().saturating_sub(u32::try_from(self.trust.as_secs()).unwrap_or(u32::MAX)) + 1
    }

    /// Polls that are parked.
    pub(crate) fn parked(&self) -> usize {
        self.parked
    }

    /// `node` polls on `conn`.
    pub(crate) fn arrive(&mut self, node: NodeId, conn: C, fingerprint: PollFingerprint, now: Instant) -> Arrival<C> {
        let oldest = self.oldest_trusted(now);
        let entry = self.nodes.entry(node).or_insert(NodeEntry { holder: None, registration: None });
        let good = entry.registration.take_if(|r| {
            let same = r.fingerprint.rest == fingerprint.rest
                && (fingerprint.ack.is_none() || fingerprint.ack == r.fingerprint.ack);
            // The registration is removed first: a poll that says something new ends it.
            !same || r.since.get() < oldest
        });
        let park = if good.is_none() { entry.registration.map(|r| r.seconds) } else { None };
        let before = entry.holder.replace(Holder { conn, fingerprint, parked: park.is_some(), notified: false });
        let replaced = before.filter(|holder| holder.parked).map(|holder| holder.conn);
        self.parked += usize::from(park.is_some());
        self.parked -= usize::from(replaced.is_some());
        Arrival { replaced, park }
    }

    /// The handler of the poll on `conn` found nothing: it may wait for `seconds` in all.
    pub(crate) fn park(&mut self, node: NodeId, conn: C, seconds: u32, now: Instant) -> Parked {
        let since = self.second(now);
        let Some((entry, holder)) = self.held(node, conn) else {
            return Parked::Displaced;
        };
        if std::mem::take(&mut holder.notified) {
            return Parked::AskAgain;
        }
        holder.parked = true;
        let fingerprint = holder.fingerprint;
        *entry = Some(Registration { fingerprint, seconds, since });
        self.parked += 1;
        Parked::Waits
    }

    /// The handler of the poll on `conn` gave another answer, so the poll is over and nothing is
    /// registered.
    pub(crate) fn answered(&mut self, node: NodeId, conn: C) {
        if let Some((registration, _)) = self.held(node, conn) {
            *registration = None;
            self.leave(node, conn);
        }
    }

    /// The poll on `conn` is over without an answer of a handler: its time is up, or its client is gone.
    pub(crate) fn leave(&mut self, node: NodeId, conn: C) {
        let Some(entry) = self.nodes.get_mut(&node) else {
            return;
        };
        if let Some(holder) = entry.holder.take_if(|holder| holder.conn == conn) {
            self.parked -= usize::from(holder.parked);
            if entry.registration.is_none() {
                self.nodes.remove(&node);
            }
        }
    }

    /// Something is to be handed to `node`: the connection that gets it now.
    pub(crate) fn deliver(&mut self, node: NodeId) -> Option<C> {
        let conn = self.mark_notified(node)?;
        self.leave(node, conn);
        Some(conn)
    }

    /// The registration of `node` is in doubt: the connection whose handler is to be asked again.
    pub(crate) fn recheck(&mut self, node: NodeId) -> Option<C> {
        let conn = self.mark_notified(node)?;
        if let Some((_, holder)) = self.held(node, conn) {
            holder.parked = false;
            self.parked -= 1;
        }
        Some(conn)
    }

    /// As `recheck`, where the registration was made before `asked`: Redis was asked about it then. A newer one, or
    /// that which a handler is about to make, is not the one that Redis spoke of.
    pub(crate) fn recheck_older(&mut self, node: NodeId, asked: Instant) -> Option<C> {
        let asked = self.second(asked);
        let entry = self.nodes.get(&node)?;
        let is_older = entry.registration.map_or(entry.holder.is_none(), |registration| registration.since < asked);
        if is_older { self.recheck(node) } else { None }
    }

    /// As `recheck` for every node.
    pub(crate) fn recheck_all(&mut self) -> Vec<C> {
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        nodes.into_iter().filter_map(|node| self.recheck(node)).collect()
    }

    /// Forgets registrations of nodes that have not polled for as long as one is trusted.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let oldest = self.oldest_trusted(now);
        self.nodes
            .retain(|_, entry| entry.holder.is_some() || entry.registration.is_some_and(|r| r.since.get() >= oldest));
    }

    /// Ends the registration of `node`; its connection when it is parked.
    fn mark_notified(&mut self, node: NodeId) -> Option<C> {
        let entry = self.nodes.get_mut(&node)?;
        entry.registration = None;
        match &mut entry.holder {
            Some(holder) if holder.parked => Some(holder.conn),
            Some(holder) => {
                holder.notified = true;
                None
            }
            None => {
                self.nodes.remove(&node);
                None
            }
        }
    }

    fn held(&mut self, node: NodeId, conn: C) -> Option<(&mut Option<Registration>, &mut Holder<C>)> {
        let entry = self.nodes.get_mut(&node)?;
        let holder = entry.holder.as_mut().filter(|holder| holder.conn == conn)?;
        Some((&mut entry.registration, holder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };
    const TRUST: Duration = Duration::from_secs(180);
    const ASK: PollFingerprint = PollFingerprint { rest: 1, ack: NonZeroU64::new(5) };
    const TO_HANDLER: Arrival<u32> = Arrival { replaced: None, park: None };

    fn table() -> (ParkedPolls<u32>, Instant) {
        let now = Instant::now();
        (ParkedPolls::new(TRUST, now), now)
    }

    /// A table with the poll of `NODE` parked on connection 1.
    fn parked() -> (ParkedPolls<u32>, Instant) {
        let (mut polls, now) = table();
        assert_eq!(polls.arrive(NODE, 1, ASK, now), TO_HANDLER);
        assert_eq!(polls.park(NODE, 1, 30, now), Parked::Waits);
        assert_eq!(polls.parked(), 1);
        (polls, now)
    }

    #[test]
    fn poll_after_a_timeout_is_parked_without_asking() {
        let (mut polls, now) = parked();
        polls.leave(NODE, 1);
        assert_eq!(polls.parked(), 0);
        assert_eq!(polls.arrive(NODE, 2, ASK, now), Arrival { replaced: None, park: Some(30) });
        polls.leave(NODE, 2);
        let silent = PollFingerprint { ack: None, ..ASK };
        assert_eq!(polls.arrive(NODE, 3, silent, now), Arrival { replaced: None, park: Some(30) });
        assert_eq!(polls.parked(), 1);
    }

    #[test]
    fn a_poll_that_says_something_new_is_asked_about() {
        for new in [PollFingerprint { rest: 2, ..ASK }, PollFingerprint { ack: NonZeroU64::new(6), ..ASK }] {
            let (mut polls, now) = parked();
            polls.leave(NODE, 1);
            assert_eq!(polls.arrive(NODE, 2, new, now), TO_HANDLER, "{new:?}");
            polls.leave(NODE, 2);
            assert_eq!(polls.arrive(NODE, 3, ASK, now), TO_HANDLER, "the registration is gone");
        }
    }

    #[test]
    fn old_registration_sends_the_poll_to_its_handler() {
        let (mut polls, now) = parked();
        polls.leave(NODE, 1);
        assert_eq!(polls.arrive(NODE, 2, ASK, now + TRUST), TO_HANDLER);
    }

    #[test]
    fn a_delivery_goes_to_the_parked_poll_once() {
        let (mut polls, now) = parked();
        assert_eq!(polls.deliver(NODE), Some(1));
        assert_eq!((polls.deliver(NODE), polls.parked()), (None, 0));
        assert_eq!(polls.arrive(NODE, 1, ASK, now), TO_HANDLER);
    }

    #[test]
    fn a_delivery_between_polls_sends_the_next_one_to_its_handler() {
        let (mut polls, now) = parked();
        polls.leave(NODE, 1);
        assert_eq!(polls.deliver(NODE), None);
        assert_eq!(polls.arrive(NODE, 1, ASK, now), TO_HANDLER);
    }

    #[test]
    fn a_delivery_while_the_handler_is_asked_has_it_asked_again() {
        let (mut polls, now) = table();
        polls.arrive(NODE, 1, ASK, now);
        assert_eq!(polls.deliver(NODE), None);
        assert_eq!(polls.park(NODE, 1, 30, now), Parked::AskAgain);
        assert_eq!(polls.park(NODE, 1, 30, now), Parked::Waits);
        assert_eq!(polls.parked(), 1);
    }

    #[test]
    fn recheck_asks_the_handler_again() {
        let (mut polls, now) = parked();
        assert_eq!(polls.recheck(NODE), Some(1));
        assert_eq!((polls.parked(), polls.recheck(NODE)), (0, None));
        assert_eq!(polls.park(NODE, 1, 30, now), Parked::AskAgain, "the second recheck came while it was asked");
        assert_eq!(polls.park(NODE, 1, 30, now), Parked::Waits);
        assert_eq!(polls.recheck_all(), [1]);
        polls.answered(NODE, 1);
        assert!(polls.nodes.is_empty());
    }

    #[test]
    fn a_second_poll_replaces_the_first() {
        let (mut polls, now) = parked();
        assert_eq!(polls.arrive(NODE, 2, ASK, now), Arrival { replaced: Some(1), park: Some(30) });
        polls.leave(NODE, 1);
        assert_eq!(polls.parked(), 1);
        assert_eq!(polls.deliver(NODE), Some(2));
    }

    #[test]
    fn a_poll_that_is_replaced_while_its_handler_is_asked_gets_its_204() {
        let (mut polls, now) = table();
        polls.arrive(NODE, 1, ASK, now);
        assert_eq!(polls.arrive(NODE, 2, ASK, now), TO_HANDLER);
        assert_eq!(polls.park(NODE, 1, 30, now), Parked::Displaced);
        polls.answered(NODE, 1);
        assert_eq!(polls.park(NODE, 2, 30, now), Parked::Waits);
    }

    #[test]
    fn an_answer_ends_the_poll_and_the_registration() {
        let (mut polls, now) = parked();
        assert_eq!(polls.recheck(NODE), Some(1));
        polls.answered(NODE, 1);
        assert_eq!(polls.parked(), 0);
        assert_eq!(polls.arrive(NODE, 1, ASK, now), TO_HANDLER);
        assert_eq!(polls.deliver(NodeId { gid: 9, nid: 9 }), None);
    }

    /// There is one for each node, in a table that is up to twice as large.
    #[test]
    fn registration_is_not_rechecked_for_an_older_answer_of_redis() {
        let (mut polls, now) = parked();
        let later = now + Duration::from_secs(1);
        // It stands since the second in which Redis was asked, or longer.
        assert_eq!(polls.recheck_older(NODE, now), None);
        assert_eq!((polls.recheck_older(NODE, later), polls.parked()), (Some(1), 0));
        // A handler is asked about it already, and what it answers stands.
        assert_eq!(polls.recheck_older(NODE, later), None);
        assert_eq!(polls.park(NODE, 1, 30, later), Parked::Waits);
        assert_eq!(polls.recheck_older(NODE, later), None);
        // Between polls the next one goes to its handler.
        polls.leave(NODE, 1);
        assert_eq!(polls.recheck_older(NODE, later + Duration::from_secs(1)), None);
        assert_eq!(polls.arrive(NODE, 2, ASK, later), TO_HANDLER);
    }

    #[test]
    fn a_node_has_room_in_56_bytes() {
        assert!(size_of::<NodeEntry<crate::proxy::client::ConnectionId>>() <= 56);
    }

    #[test]
    fn nodes_that_went_away_are_forgotten() {
        let (mut polls, now) = parked();
        polls.leave(NODE, 1);
        polls.sweep(now);
        assert_eq!(polls.nodes.len(), 1);
        polls.sweep(now + TRUST);
        assert_eq!(polls.nodes.len(), 0);
    }
}
