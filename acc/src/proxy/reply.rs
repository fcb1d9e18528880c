//! The way of an answer: counted, written as the client takes it, and what comes after it.
//!
//! Owns: refusals, the memory that an answer is held in, the end of a request.
//! Does not own: which answer (connection), its form (answer), the deadlines' meaning (connection).

use super::answer::Answer;
use super::client::{ConnectionId, Phase};
use super::event_loop::EventLoop;
use crate::http::Refusal;
use std::time::{Instant, SystemTime};

impl EventLoop {
    /// Begins to write an answer.
    pub(super) fn answer(&mut self, slot: usize, mut answer: Answer) {
        let stopping = self.stopping.is_some();
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        if stopping {
            client.conn.close_after();
        }
        let head = client.head.take();
        let bodiless = head.as_ref().is_some_and(|head| head.bodiless);
        if let Some(length) = client.request_bytes.take() {
            self.accounting.end(client.node, length);
        }
        if let Err(over) = self.accounting.reserve(&self.limits, client.node, answer.body.len()) {
            // Nothing is lost: what a node has not acknowledged comes again.
            let refusal = over.refusal();
            log::debug!("{} refused ({}): {}", client.peer, refusal.label, refusal.reason);
            self.metrics.refused(refusal.label);
            answer = Answer::refusal(&refusal);
        } else {
            client.answer_bytes += answer.body.len();
        }
        let now = Instant::now();
        client.phase = Phase::Answering;
        client.hard_deadline = now + self.limits.body_time(answer.body.len());
        let path = head.map_or("none", |head| head.route.label());
        self.metrics.requests.with_label_values(&[path, &answer.status.to_string()]).inc();
        let bytes = answer.bytes(client.conn.keeps_alive(), bodiless, SystemTime::now());
        bytes.into_iter().for_each(|piece| client.transport.push(piece));
        self.set_deadline(slot, now + self.limits.answer_pause);
        self.flush(slot);
    }

    /// Refuses a client, of which nothing more is looked at. One that sends too much is told so after a pause.
    pub(super) fn refuse(&mut self, slot: usize, refusal: Refusal) {
        self.metrics.refused(refusal.label);
        if let Some(client) = self.clients.at(slot) {
            log::debug!("{} refused ({}): {}", client.peer, refusal.label, refusal.reason);
            client.refused = true;
            client.conn.close_after();
            let answer = Answer::refusal(&refusal);
            if refusal.status == 429 { self.answer_later(slot, answer) } else { self.answer(slot, answer) }
        }
    }

    /// Begins to write an answer after a pause, in which nothing of this client is read.
    pub(super) fn answer_later(&mut self, slot: usize, answer: Answer) {
        if self.stopping.is_some() {
            return self.answer(slot, answer);
        }
        if let Some(client) = self.clients.at(slot) {
            client.phase = Phase::Pausing;
            client.delayed_answer = Some(Box::new(answer));
            self.set_deadline(slot, Instant::now() + self.limits.pause);
        }
    }

    /// The pause is over.
    pub(super) fn answer_now(&mut self, slot: usize) {
        if let Some(answer) = self.clients.at(slot).and_then(|client| client.delayed_answer.take()) {
            self.answer(slot, *answer);
        }
    }

    /// Writes what can be written; at the end of an answer the next request may come.
    pub(super) fn flush(&mut self, slot: usize) {
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        match client.transport.flush() {
            Err(_) => {
                self.metrics.refused("answer-cut");
                self.close(slot);
            }
            Ok((true, _)) if client.phase == Phase::Answering => self.delivered(slot),
            Ok((false, true)) if client.phase == Phase::Answering => {
                let at = client.hard_deadline.min(Instant::now() + self.limits.answer_pause);
                self.set_deadline(slot, at);
            }
            Ok(_) => {}
        }
    }

    /// The answer is out.
    fn delivered(&mut self, slot: usize) {
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        self.accounting.release(client.node, std::mem::take(&mut client.answer_bytes));
        if client.conn.finish() {
            client.phase = Phase::Idle;
            let name = ConnectionId { slot, generation: client.generation };
            let (authenticated, readable) = (client.authenticated, client.readable);
            let time = if authenticated { self.limits.idle } else { self.limits.head };
            self.set_deadline(slot, Instant::now() + time);
            if readable {
                self.again.push_back(name);
            }
        } else if client.refused || client.conn.has_excess() {
            // Closing a socket that holds unread bytes resets it, and the client would never read why.
            client.phase = Phase::Linger;
            client.transport.finish();
            client.readable = true;
            let name = ConnectionId { slot, generation: client.generation };
            self.again.push_back(name);
            self.set_deadline(slot, Instant::now() + self.limits.linger);
        } else {
            self.close_gracefully(slot);
        }
    }
}
