//! The actions of connections: the event loop responds, refuses, parks, closes.
//!
//! Owns: the accounts and the timer that go with each action, and the memory that a response is held in.
//! Does not own: which action it is (`connection`, `request`), the form of a response (`response`).

use super::client::{ConnectionId, Phase};
use super::connection::Action;
use super::event_loop::EventLoop;
use super::response::Response;
use crate::clock::local_ms;
use crate::http::Refusal;
use std::time::{Duration, Instant, SystemTime};

impl EventLoop {
    /// Does the action for a connection; nothing where its client is gone.
    pub(super) fn apply(&mut self, id: ConnectionId, action: Action) {
        let Some(client) = self.clients.get(id) else { return };
        match action {
            Action::Nothing => {}
            Action::WaitUntil(at) => self.set_deadline(id, at),
            Action::ReadWithin(time) => {
                if client.readable {
                    self.again.push_back(id);
                }
                self.set_deadline(id, Instant::now() + time);
            }
            Action::Write => self.flush(id),
            Action::Ask(body) => self.ask(id, body),
            Action::Park(seconds) => self.park(id, seconds),
            Action::Unpark => {
                if let Some(node) = client.node {
                    self.parked_polls.leave(node, id);
                    self.respond(id, Response::empty());
                }
            }
            Action::Respond(response) => self.respond(id, response),
            Action::RespondLater(response) => self.respond_later(id, response),
            Action::Refuse(refusal) => self.refuse(id, refusal),
            Action::Fail(refusal) => {
                if let Some(node) = client.node {
                    self.parked_polls.answered(node, id);
                }
                self.refuse(id, refusal);
            }
            Action::Close(label) => {
                label.into_iter().for_each(|label| self.metrics.refused(label));
                self.close(id.slot());
            }
            Action::CloseGracefully(label) => {
                client.transport.finish();
                self.apply(id, Action::Close(label));
            }
        }
    }

    fn set_deadline(&mut self, id: ConnectionId, at: Instant) {
        if let Some(client) = self.clients.get(id) {
            self.timers.change(id.slot(), client.deadline.replace(at), Some(at));
        }
    }

    fn park(&mut self, id: ConnectionId, seconds: u32) {
        let Some(client) = self.clients.get(id) else { return };
        client.phase = Phase::Parked;
        let wait = Duration::from_secs(seconds.into()).min(self.limits.wait);
        let mut at = client.request_complete_at + wait;
        if let Some(ends) = client.cert_ends {
            // Its next poll is refused then.
            at = at.min(Instant::now() + Duration::from_millis(ends.get().saturating_sub(local_ms())));
        }
        // A parked poll waits for nobody: it does not count among its node's requests.
        if let Some(length) = client.request_bytes.take() {
            self.accounting.end(client.node, length as usize);
        }
        self.set_deadline(id, at);
    }

    fn respond(&mut self, id: ConnectionId, mut response: Response) {
        let stopping = self.stopping.is_some();
        let Some(client) = self.clients.get(id) else { return };
        if stopping {
            client.conn.close_after();
        }
        let head = client.head.take();
        let bodiless = head.as_ref().is_some_and(|head| head.bodiless);
        if let Some(length) = client.request_bytes.take() {
            self.accounting.end(client.node, length as usize);
        }
        if let Err(over) = self.accounting.reserve(&self.limits, client.node, response.body.len()) {
            // Nothing is lost: what a node has not acknowledged comes again.
            let refusal = over.refusal();
            log::debug!("{} refused ({}): {}", client.peer, refusal.label, refusal.reason);
            self.metrics.refused(refusal.label);
            response = Response::refusal(&refusal);
        } else {
            client.response_bytes += response.body.len();
        }
        let now = Instant::now();
        client.phase = Phase::Responding;
        client.hard_deadline = now + self.limits.body_time(response.body.len());
        let path = head.map_or("none", |head| head.route.label());
        self.metrics.requests.with_label_values(&[path, &response.status.to_string()]).inc();
        let bytes = response.bytes(client.conn.keeps_alive(), bodiless, SystemTime::now());
        bytes.into_iter().for_each(|piece| client.transport.push(piece));
        self.set_deadline(id, now + self.limits.answer_pause);
        self.flush(id);
        jscommon::hops::mark("acc.response");
    }

    pub(super) fn refuse(&mut self, id: ConnectionId, refusal: Refusal) {
        self.metrics.refused(refusal.label);
        if let Some(client) = self.clients.get(id) {
            log::debug!("{} refused ({}): {}", client.peer, refusal.label, refusal.reason);
            client.refused = true;
            client.conn.close_after();
            let response = Response::refusal(&refusal);
            if refusal.status == 429 { self.respond_later(id, response) } else { self.respond(id, response) }
        }
    }

    fn respond_later(&mut self, id: ConnectionId, response: Response) {
        if self.stopping.is_some() {
            return self.respond(id, response);
        }
        if let Some(client) = self.clients.get(id) {
            client.phase = Phase::Pausing;
            client.delayed_response = Some(Box::new(response));
            self.set_deadline(id, Instant::now() + self.limits.pause);
        }
    }

    /// Writes what can be written; at the end of a response the next request may come.
    pub(super) fn flush(&mut self, id: ConnectionId) {
        let Some(client) = self.clients.get(id) else { return };
        let action = match client.transport.flush() {
            Err(_) => Action::Close(Some("answer-cut")),
            Ok((true, _)) if client.phase == Phase::Responding => {
                self.accounting.release(client.node, std::mem::take(&mut client.response_bytes));
                client.response_sent(&self.limits)
            }
            Ok((false, true)) if client.phase == Phase::Responding => {
                Action::WaitUntil(client.hard_deadline.min(Instant::now() + self.limits.answer_pause))
            }
            Ok(_) => Action::Nothing,
        };
        self.apply(id, action);
    }

    /// Closes, and ends all that was kept for the client.
    pub(super) fn close(&mut self, slot: usize) {
        let Some(mut client) = self.clients.remove(slot) else { return };
        self.timers.change(slot, client.deadline, None);
        if !client.authenticated {
            self.unauthenticated.remove(client.peer.ip(), (client.accepted, slot));
        }
        if let Some(home) = client.first_node {
            self.accounting.disconnect(home);
        }
        if let Some(length) = client.request_bytes {
            self.accounting.end(client.node, length as usize);
        }
        self.accounting.release(client.node, client.response_bytes);
        if let Some(node) = client.node {
            self.parked_polls.leave(node, client.id);
        }
        let _ = self.poll.registry().deregister(client.transport.stream());
    }
}
