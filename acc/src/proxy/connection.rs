//! The life of a client's request, from its first byte to its answer.
//!
//! Owns: the moves between phases, and for each what a deadline, an end or an error means there.
//! Does not own: waiting for events, reading and accepting; that is done by `event_loop`.
//!
//! ```text
//! Handshake ─▶ Idle ─▶ Head ─▶ Body ─▶ Asking ◀──▶ Parked
//!               ▲        │       │        │           │
//!               │        └───────┴──────▶ Answering ◀─┘ ──▶ Linger ─▶ (closed)
//!               └─────────────────────────────┘
//! ```

use super::answer::Answer;
use super::budget::OverLimit;
use super::client::{Client, ConnectionId, Phase};
use super::event_loop::EventLoop;
use super::long_poll::{Parked, PollFingerprint};
use super::request_head::RequestHead;
use super::request_parser::{Stage, Step};
use crate::api::rate_limiter::{Charge, Resource};
use crate::auth::authenticate::{Admitted, PresentedCredentials};
use crate::auth::dates;
use crate::clock::local_ms;
use crate::http::Refusal;
use crate::route::Route;
use jscommon::NodeId;
use std::hash::{BuildHasher, Hash, Hasher};
use std::io::{self, ErrorKind};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

impl EventLoop {
    /// The handshake is over.
    pub(super) fn handshake_completed(&mut self, slot: usize) {
        if let Some(client) = self.clients.at(slot) {
            client.cert = client.transport.peer_cert();
            client.cert_ends = client.cert.and_then(|_| client.transport.cert_ends());
            let kind = if client.transport.is_resumed() == Some(true) { "resumed" } else { "full" };
            self.metrics.handshakes.with_label_values(&[kind]).inc();
            client.phase = Phase::Idle;
            self.set_deadline(slot, Instant::now() + self.limits.head);
        }
    }

    /// Somebody speaks plain HTTP to the TLS port.
    pub(super) fn refuse_plain_http(&mut self, slot: usize) {
        if let Some(client) = self.clients.at(slot) {
            client.transport.drop_tls();
            self.refuse(slot, Refusal::new(400, "plain-http", "this port speaks HTTPS: write https:// in the address"));
        }
    }

    /// Bytes came in.
    pub(super) fn feed_client(&mut self, name: ConnectionId, bytes: &[u8]) {
        let slot = name.slot;
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        if client.phase == Phase::Linger {
            return;
        }
        client.conn.feed(bytes);
        if client.conn.has_excess() {
            return self.pipelined(slot);
        }
        while self.clients.has(name)
            && let Some(client) = self.clients.at(slot)
        {
            match client.conn.step() {
                Step::More => return self.await_more(slot),
                Step::Head(head) => self.authorize(slot, head),
                Step::Whole(body) => self.dispatch(name, body),
                Step::Refused(refusal) => self.refuse(slot, refusal),
            }
        }
    }

    /// A request came before the last one was answered: that one is, and then it is over.
    fn pipelined(&mut self, slot: usize) {
        self.metrics.refused("pipelined");
        if self.clients.at(slot).is_some_and(|client| client.phase == Phase::Parked) {
            self.unpark(slot);
        }
    }

    /// Sets the deadline of whatever is not whole yet.
    fn await_more(&mut self, slot: usize) {
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        let now = Instant::now();
        match (client.conn.stage(), client.phase) {
            (Stage::Head, Phase::Idle) => {
                client.phase = Phase::Head;
                // The first head of an unauthenticated client has its deadline from the handshake on.
                if client.authenticated {
                    self.set_deadline(slot, now + self.limits.head);
                }
            }
            (Stage::Body, Phase::Body) => {
                let at = client.hard_deadline.min(now + self.limits.body_pause);
                self.set_deadline(slot, at);
            }
            _ => {}
        }
    }

    /// A whole head: may it go on?
    fn authorize(&mut self, slot: usize, head: RequestHead) {
        let admitted = self.admit(slot, &head);
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        let (length, expects) = (head.length, head.expects);
        // A refusal is counted by its path too.
        client.head = Some(Box::new(head));
        match admitted {
            Ok(node) => {
                client.node = node;
                client.request_bytes = Some(length);
                client.phase = Phase::Body;
                client.hard_deadline = Instant::now() + self.limits.body_time(length);
                client.conn.admit();
                if expects && client.conn.missing() > 0 {
                    client.transport.push(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec());
                    self.flush(slot);
                }
            }
            Err(refusal) => self.refuse(slot, refusal),
        }
    }

    /// Authenticates the request and checks the limits; returns its node.
    fn admit(&mut self, slot: usize, head: &RequestHead) -> Result<Option<NodeId>, Refusal> {
        let Some(client) = self.clients.at(slot) else {
            return Ok(None);
        };
        let seen = presented(client, head);
        // The handshake has looked at it, perhaps hours ago: connections stay, and their sessions are resumed.
        if let Some(ends) = client.cert_ends.filter(|ends| seen.route.node().is_some() && local_ms() > *ends) {
            let sentence = format!("the client certificate ended at {}: enrol the node again", dates::shown(ends));
            return Err(Refusal::new(401, "certificate-ended", sentence));
        }
        let node = match self.authenticator.admit(&seen)? {
            Admitted::Node(node) => Some(node),
            Admitted::Open | Admitted::Operator => None,
        };
        if let Some(node) = node {
            self.mark_authenticated(slot, node).map_err(OverLimit::refusal)?;
        } else if head.length > self.limits.max_open_body {
            let most = self.limits.max_open_body;
            return Err(Refusal::new(413, "body-too-long", format!("the body is over {most} bytes")));
        }
        if let Some(node) = node {
            let charges = [Charge::new(Resource::Requests, 1), Charge::new(Resource::Bodies, head.length)];
            self.rate_limiter.take(node, &charges, local_ms()).map_err(|_| OverLimit::Rate.refusal())?;
        }
        self.accounting.begin(&self.limits, node, head.length).map_err(OverLimit::refusal)?;
        Ok(node)
    }

    /// A whole request: polls may be parked at once, all else goes to tiny_http.
    fn dispatch(&mut self, name: ConnectionId, body: Vec<u8>) {
        let now = Instant::now();
        let Some(client) = self.clients.at(name.slot) else {
            return;
        };
        client.request_complete_at = now;
        if let (Some(node), Some(fingerprint)) =
            (client.node, client.head.as_deref().and_then(|head| poll_fingerprint(&self.hasher, head)))
        {
            if self.stopping.is_some() {
                return self.answer(name.slot, Answer::empty());
            }
            let arrival = self.parked_polls.arrive(node, name, fingerprint, now);
            if let Some(first) = arrival.replaced {
                self.metrics.refused("replaced");
                self.unpark(first.slot);
            }
            if let Some(seconds) = arrival.park {
                self.metrics.polls_shortcut.inc();
                self.note_seen(node, now);
                return self.park(name.slot, seconds);
            }
        }
        self.ask(name, body);
    }

    /// Lets a parked poll wait until its time is up.
    fn park(&mut self, slot: usize, seconds: u32) {
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        client.phase = Phase::Parked;
        let wait = Duration::from_secs(seconds.into()).min(self.limits.wait);
        let mut at = client.request_complete_at + wait;
        if let Some(ends) = client.cert_ends {
            // Its next poll is refused then.
            at = at.min(Instant::now() + Duration::from_millis(ends.saturating_sub(local_ms())));
        }
        // A parked poll waits for nobody: it does not count among its node's requests.
        if let Some(length) = client.request_bytes.take() {
            self.accounting.end(client.node, length);
        }
        self.set_deadline(slot, at);
    }

    /// tiny_http answered.
    pub(super) fn backend_answered(&mut self, name: ConnectionId, answer: Answer) {
        if !self.clients.has(name) {
            return;
        }
        let Some(client) = self.clients.at(name.slot).filter(|client| client.phase == Phase::Asking) else {
            return;
        };
        let poll = client.head.as_ref().is_some_and(|head| matches!(head.route, Route::Cmd(_)));
        let node = client.node.filter(|_| poll);
        let too_much = answer.status == 429 && client.node.is_some();
        if let Some(node) = node.filter(|_| too_much) {
            self.parked_polls.answered(node, name);
        }
        if too_much {
            return self.answer_later(name.slot, answer);
        }
        let Some(node) = node else {
            return self.answer(name.slot, answer);
        };
        let Some(seconds) = answer.park else {
            self.parked_polls.answered(node, name);
            return self.answer(name.slot, answer);
        };
        let asked = client.request_complete_at;
        let late = asked + Duration::from_secs(seconds.into()) <= Instant::now();
        let spoilt = client.conn.has_excess() || late || self.stopping.is_some();
        match self.parked_polls.park(node, name, seconds, Instant::now()) {
            Parked::Waits if spoilt => {
                self.parked_polls.leave(node, name);
                self.answer(name.slot, Answer::empty());
            }
            Parked::Waits => {
                self.note_seen(node, asked);
                self.park(name.slot, seconds);
            }
            Parked::AskAgain if spoilt => {
                self.parked_polls.answered(node, name);
                self.answer(name.slot, Answer::empty());
            }
            Parked::AskAgain => self.ask(name, Vec::new()),
            Parked::Displaced => {
                self.metrics.refused("replaced");
                self.answer(name.slot, Answer::empty());
            }
        }
    }

    /// A request ends without an answer of its handler.
    pub(super) fn fail_request(&mut self, name: ConnectionId, refusal: Refusal) {
        if !self.clients.has(name) {
            return;
        }
        if let Some(node) = self.clients.at(name.slot).and_then(|client| client.node) {
            self.parked_polls.answered(node, name);
        }
        self.refuse(name.slot, refusal);
    }

    /// The parked poll of this client is over: 204.
    pub(super) fn unpark(&mut self, slot: usize) {
        if let Some(client) = self.clients.at(slot)
            && let Some(node) = client.node
        {
            let name = ConnectionId { slot, generation: client.generation };
            self.parked_polls.leave(node, name);
            self.answer(slot, Answer::empty());
        }
    }

    pub(super) fn deliver(&mut self, node: NodeId, body: Vec<u8>) {
        if let Some(name) = self.parked_polls.deliver(node) {
            self.answer(name.slot, Answer::json(body));
        }
    }

    pub(super) fn release_poll(&mut self, node: NodeId) {
        if let Some(name) = self.parked_polls.deliver(node) {
            self.metrics.refused("replaced");
            self.answer(name.slot, Answer::empty());
        }
    }

    pub(super) fn recheck(&mut self, node: NodeId) {
        if let Some(name) = self.parked_polls.recheck(node) {
            self.ask(name, Vec::new());
        }
    }

    pub(super) fn recheck_all(&mut self) {
        for name in self.parked_polls.recheck_all() {
            self.ask(name, Vec::new());
        }
    }

    /// Ends the connections of a node whose credentials were revoked. A request that waits for an answer is refused, and
    /// one with credentials that were issued since goes on: the node is enrolled again.
    pub(super) fn disconnect(&mut self, node: NodeId) {
        for slot in self.clients.taken() {
            let Some(client) = self.clients.at(slot).filter(|client| client.node == Some(node)) else { continue };
            let waits = matches!(client.phase, Phase::Parked | Phase::Asking);
            let name = ConnectionId { slot, generation: client.generation };
            let head = client.head.as_deref().map(|head| presented(client, head));
            match head.map(|head| (head.bearer.is_some() || head.cert.is_some(), self.authenticator.admit(&head))) {
                Some((true, Ok(_))) => {}
                Some((_, Err(refusal))) if waits => self.fail_request(name, Refusal { label: "expelled", ..refusal }),
                _ => {
                    self.metrics.refused("expelled");
                    self.close(slot);
                }
            }
        }
    }

    /// The client sends no more.
    pub(super) fn end_of_input(&mut self, slot: usize) {
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        client.readable = false;
        match client.phase {
            Phase::Handshake => {
                self.metrics.refused("handshake-cut");
                self.close(slot);
            }
            Phase::Head => {
                self.metrics.refused("head-cut");
                self.close(slot);
            }
            Phase::Body => {
                self.metrics.refused("body-cut");
                self.close(slot);
            }
            Phase::Idle | Phase::Linger => self.close_gracefully(slot),
            // It may have closed its half alone and still read.
            Phase::Asking | Phase::Pausing | Phase::Answering => client.conn.close_after(),
            Phase::Parked => {
                client.conn.close_after();
                self.unpark(slot);
            }
        }
    }

    /// The connection failed.
    pub(super) fn connection_failed(&mut self, slot: usize, error: &io::Error) {
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        log::debug!("{}: {error}", client.peer);
        let label = match client.phase {
            _ if error.kind() == ErrorKind::InvalidData => "tls",
            Phase::Handshake => "handshake-cut",
            Phase::Head => "head-cut",
            Phase::Body => "body-cut",
            Phase::Asking | Phase::Pausing | Phase::Answering => "answer-cut",
            // Nodes come and go; that is no refusal.
            Phase::Idle | Phase::Parked | Phase::Linger => return self.close(slot),
        };
        self.metrics.refused(label);
        self.close(slot);
    }

    /// A request was not answered in time. Its handler may be slow; but when tiny_http's threads have taken
    /// nothing since another one was not, none of them takes anything any more, or nobody accepts.
    fn check_backend(&mut self) {
        let (taken, now) = (self.config.backend.taken(), Instant::now());
        match self.stalled {
            Some((before, since)) if before == taken => {
                if now.duration_since(since) >= self.limits.handler {
                    self.failure = Some("the web server behind it takes no requests".to_owned());
                }
            }
            _ => self.stalled = Some((taken, now)),
        }
    }

    /// The deadline of the client's phase has passed.
    pub(super) fn expire(&mut self, slot: usize) {
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        let name = ConnectionId { slot, generation: client.generation };
        match client.phase {
            Phase::Handshake => {
                self.metrics.refused("handshake-timeout");
                self.close(slot);
            }
            Phase::Idle => {
                if !client.authenticated {
                    self.metrics.refused("silent");
                }
                self.close_gracefully(slot);
            }
            Phase::Head => self.refuse(slot, Refusal::new(408, "head-timeout", "the head took too long")),
            Phase::Body => self.refuse(slot, Refusal::new(408, "body-timeout", "the body took too long")),
            Phase::Asking => {
                self.check_backend();
                self.fail_request(
                    name,
                    Refusal::new(503, "handler-timeout", "the controller took too long; try again"),
                );
            }
            Phase::Parked => self.unpark(slot),
            Phase::Pausing => self.answer_now(slot),
            Phase::Answering => {
                self.metrics.refused("answer-timeout");
                self.close(slot);
            }
            Phase::Linger => self.close(slot),
        }
    }
}

/// Returns the part of a request that authentication needs.
fn presented<'a>(client: &'a Client, head: &'a RequestHead) -> PresentedCredentials<'a> {
    PresentedCredentials {
        route: head.route,
        bearer: head.bearer.as_deref(),
        peer: client.peer.ip(),
        cert: client.cert.as_ref(),
    }
}

/// The fingerprint of a poll; `None` for other requests.
fn poll_fingerprint(hasher: &impl BuildHasher, head: &RequestHead) -> Option<PollFingerprint> {
    if !matches!(head.route, Route::Cmd(_)) {
        return None;
    }
    let mut rest = hasher.build_hasher();
    let mut ack = None;
    for part in head.query.split('&') {
        match part.strip_prefix("ack=") {
            Some("") => {}
            Some(batch) => ack = Some(NonZeroU64::MIN | hasher.hash_one(batch)),
            None => part.hash(&mut rest),
        }
    }
    Some(PollFingerprint { rest: rest.finish(), ack })
}
