//! The way of a request: its head, its node, its body, its handler, its poll.
//!
//! Owns: who is admitted, and which polls are parked at once. Does not own: bytes (`request_parser`), the rules of polls
//! (`long_poll`), the connection to the handlers (`backend`).

use super::budget::OverLimit;
use super::client::{ConnectionId, Phase};
use super::connection::Action;
use super::event_loop::EventLoop;
use super::long_poll::{Parked, PollFingerprint};
use super::request_head::RequestHead;
use super::request_parser::Step;
use super::response::Response;
use crate::api::rate_limiter::{Charge, Resource};
use crate::auth::authenticate::Admitted;
use crate::auth::dates;
use crate::clock::local_ms;
use crate::http::Refusal;
use crate::route::Route;
use jscommon::NodeId;
use std::hash::{BuildHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

impl EventLoop {
    /// Bytes came in.
    pub(super) fn feed_client(&mut self, id: ConnectionId, bytes: &[u8]) {
        let Some(client) = self.clients.get(id).filter(|client| client.phase != Phase::Linger) else { return };
        client.conn.feed(bytes);
        if client.conn.has_excess() {
            // A request came before the last one was answered: that one is, and then it is over.
            self.metrics.refused("pipelined");
            if client.phase == Phase::Parked {
                self.apply(id, Action::Unpark);
            }
            return;
        }
        while let Some(client) = self.clients.get(id) {
            let action = match client.conn.step() {
                Step::More => {
                    let action = client.await_more(&self.limits);
                    return self.apply(id, action);
                }
                Step::Head(head) => self.authorize(id, head),
                Step::Whole(body) => self.dispatch(id, body),
                Step::Refused(refusal) => Action::Refuse(refusal),
            };
            self.apply(id, action);
        }
    }

    /// A whole head: may it go on?
    fn authorize(&mut self, id: ConnectionId, head: RequestHead) -> Action {
        let admitted = self.admit(id, &head);
        let Some(client) = self.clients.get(id) else { return Action::Nothing };
        let (length, expects) = (head.length, head.expects);
        // A refusal is counted by its path too.
        client.head = Some(Box::new(head));
        match admitted {
            Ok(node) => {
                client.node = node;
                // The parser lets no more through.
                client.request_bytes = Some(length as u32);
                client.phase = Phase::Body;
                client.hard_deadline = Instant::now() + self.limits.body_time(length);
                client.conn.admit();
                if expects && client.conn.missing() > 0 {
                    client.transport.push(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec());
                    return Action::Write;
                }
                Action::Nothing
            }
            Err(refusal) => Action::Refuse(refusal),
        }
    }

    /// Authenticates the request and checks the limits; returns its node.
    fn admit(&mut self, id: ConnectionId, head: &RequestHead) -> Result<Option<NodeId>, Refusal> {
        let Some(client) = self.clients.get(id) else { return Ok(None) };
        let seen = client.presented(head);
        // The handshake has looked at it, perhaps hours ago: connections stay, and their sessions are resumed.
        if let Some(ends) =
            client.cert_ends.map(NonZeroU64::get).filter(|ends| seen.route.node().is_some() && local_ms() > *ends)
        {
            let sentence = format!("the client certificate ended at {}: enrol the node again", dates::shown(ends));
            return Err(Refusal::new(401, "certificate-ended", sentence));
        }
        let node = match self.authenticator.admit(&seen)? {
            Admitted::Node(node) => Some(node),
            Admitted::Open | Admitted::Operator => None,
        };
        if let Some(node) = node {
            self.mark_authenticated(id.slot(), node).map_err(OverLimit::refusal)?;
            let of_all = [Charge::new(Resource::Requests, 1), Charge::new(Resource::Bodies, head.length)];
            // `room` bounds what a stream sends, and its handler charges what goes beyond.
            let of_stream = [Charge::new(Resource::StreamRequests, 1)];
            let charges = if matches!(head.route, Route::Stream(_)) { &of_stream[..] } else { &of_all };
            self.rate_limiter.take(node, charges, local_ms()).map_err(|_| OverLimit::Rate.refusal())?;
        } else if head.length > self.limits.max_open_body {
            let most = self.limits.max_open_body;
            return Err(Refusal::new(413, "body-too-long", format!("the body is over {most} bytes")));
        }
        self.accounting.begin(&self.limits, node, head.length).map_err(OverLimit::refusal)?;
        Ok(node)
    }

    /// A whole request: polls may be parked at once, all else goes to tiny_http.
    fn dispatch(&mut self, id: ConnectionId, body: Vec<u8>) -> Action {
        let now = Instant::now();
        let Some(client) = self.clients.get(id) else { return Action::Nothing };
        jscommon::hops::mark("acc.request");
        client.request_complete_at = now;
        let fingerprint = client.head.as_deref().and_then(|head| poll_fingerprint(&self.hasher, head));
        let Some((node, fingerprint)) = client.node.zip(fingerprint) else { return Action::Ask(body) };
        if self.stopping.is_some() {
            return Action::Respond(Response::empty());
        }
        let arrival = self.parked_polls.arrive(node, id, fingerprint, now);
        if let Some(first) = arrival.replaced {
            self.metrics.refused("replaced");
            self.apply(first, Action::Unpark);
        }
        let Some(seconds) = arrival.park else { return Action::Ask(body) };
        self.metrics.polls_shortcut.inc();
        self.note_seen(node, now);
        Action::Park(seconds)
    }

    /// tiny_http answered.
    pub(super) fn handler_responded(&mut self, id: ConnectionId, response: Response) -> Action {
        let Some(client) = self.clients.get(id).filter(|client| client.phase == Phase::Asking) else {
            return Action::Nothing;
        };
        let too_much = response.status == 429 && client.node.is_some();
        let is_poll = client.head.as_ref().is_some_and(|head| matches!(head.route, Route::Cmd(_)));
        let poller = client.node.filter(|_| is_poll);
        let Some((node, seconds)) = poller.zip(response.park).filter(|_| !too_much) else {
            if let Some(node) = poller {
                self.parked_polls.answered(node, id);
            }
            return if too_much { Action::RespondLater(response) } else { Action::Respond(response) };
        };
        let asked = client.request_complete_at;
        let late = asked + Duration::from_secs(seconds.into()) <= Instant::now();
        let spoilt = client.conn.has_excess() || late || self.stopping.is_some();
        match self.parked_polls.park(node, id, seconds, Instant::now()) {
            Parked::Waits if !spoilt => {
                self.note_seen(node, asked);
                return Action::Park(seconds);
            }
            Parked::AskAgain if !spoilt => return Action::Ask(Vec::new()),
            Parked::Waits => self.parked_polls.leave(node, id),
            Parked::AskAgain => self.parked_polls.answered(node, id),
            Parked::Displaced => self.metrics.refused("replaced"),
        }
        Action::Respond(Response::empty())
    }

    pub(super) fn deliver(&mut self, node: NodeId, body: Vec<u8>) {
        if let Some(id) = self.parked_polls.deliver(node) {
            self.apply(id, Action::Respond(Response::json(body)));
        }
    }

    pub(super) fn release_poll(&mut self, node: NodeId) {
        if let Some(id) = self.parked_polls.deliver(node) {
            self.metrics.refused("replaced");
            self.apply(id, Action::Respond(Response::empty()));
        }
    }

    pub(super) fn recheck(&mut self, node: NodeId) {
        if let Some(id) = self.parked_polls.recheck(node) {
            self.apply(id, Action::Ask(Vec::new()));
        }
    }

    pub(super) fn recheck_older(&mut self, node: NodeId, asked: Instant) {
        if let Some(id) = self.parked_polls.recheck_older(node, asked) {
            self.apply(id, Action::Ask(Vec::new()));
        }
    }

    pub(super) fn recheck_all(&mut self) {
        for id in self.parked_polls.recheck_all() {
            self.apply(id, Action::Ask(Vec::new()));
        }
    }

    /// Ends the connections of a node whose credentials were revoked. A request that waits for a response is refused, and
    /// one with credentials that were issued since goes on: the node is enrolled again.
    pub(super) fn disconnect(&mut self, node: NodeId) {
        for id in self.clients.ids() {
            let Some(client) = self.clients.get(id).filter(|client| client.node == Some(node)) else { continue };
            let waits = matches!(client.phase, Phase::Parked | Phase::Asking);
            let head = client.head.as_deref().map(|head| client.presented(head));
            let held = head.map(|head| (head.bearer.is_some() || head.cert.is_some(), self.authenticator.admit(&head)));
            let action = match held {
                Some((true, Ok(_))) => Action::Nothing,
                Some((_, Err(refusal))) if waits => Action::Fail(Refusal { label: "expelled", ..refusal }),
                _ => Action::Close(Some("expelled")),
            };
            self.apply(id, action);
        }
    }

    /// A request was not answered in time. Its handler may be slow; but when tiny_http's threads have taken
    /// nothing since another one was not, none of them takes anything any more, or nobody accepts.
    pub(super) fn check_backend(&mut self) {
        let (taken, now) = (self.config.backend.taken(), Instant::now());
        self.close_replaced_backends(now);
        match self.stalled {
            Some((before, since)) if before == taken => {
                if now.duration_since(since) >= self.limits.handler {
                    self.failure = Some("the web server behind it takes no requests".to_owned());
                }
            }
            _ => self.stalled = Some((taken, now)),
        }
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
