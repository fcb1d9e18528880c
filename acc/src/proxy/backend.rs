//! Connections to tiny_http: which are open, and which request goes on which.
//!
//! Owns: their number, their reuse and their end. Does not own: the bytes of a connection (backend_connection), the
//! order of requests that wait (request_queue), what becomes of a response (request).
//!
//! A kept connection holds a thread of tiny_http. A new one is given to a thread that waits for one, by a count that
//! a burst of new ones makes wrong: then one of them has no thread until another connection is closed. So they are
//! opened one after the other, each once the first request of the one before it was taken; where that does not happen
//! soon though a handler is free, none is kept until it does.

use super::backend_connection::{BackendConnection, PendingRequest, request_bytes};
use super::client::{ConnectionId, Phase};
use super::connection::Action;
use super::event_loop::{BACKEND_TOKEN, EventLoop};
use crate::http::Refusal;
use crate::route::Route;
use mio::Token;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// How long the next connection waits until the first request of a new one is taken.
const FIRST_TAKEN: Duration = Duration::from_millis(50);

impl EventLoop {
    /// Puts the request in the queue for tiny_http.
    pub(super) fn ask(&mut self, id: ConnectionId, body: Vec<u8>) {
        if self.queue.len() >= self.limits.max_queue {
            return self.refuse(id, Refusal::new(503, "queue-full", "too many requests wait; try again"));
        }
        let Some(client) = self.clients.get(id) else { return };
        client.phase = Phase::Asking;
        let cost = client.request_bytes.take().map(|length| (client.node, length as usize));
        let is_result = client.head.as_deref().is_some_and(|head| matches!(head.route, Route::Result(_)));
        self.queue.push(is_result, (PendingRequest { owner: id, cost, asked: Instant::now() }, body));
        self.apply(id, Action::WaitUntil(Instant::now() + self.limits.handler));
        self.send_waiting();
    }

    /// Ends a request, whose body is held no more, and returns its owner.
    fn end_request(&mut self, request: PendingRequest) -> ConnectionId {
        if let Some((node, length)) = request.cost {
            self.accounting.end(node, length);
        }
        request.owner
    }

    fn fail_request(&mut self, request: PendingRequest, refusal: Refusal) {
        let owner = self.end_request(request);
        self.apply(owner, Action::Fail(refusal));
    }

    /// Sends waiting requests to tiny_http, as many as it may have.
    fn send_waiting(&mut self) {
        while !self.queue.is_empty()
            && let Some(slot) = self.usable_slot()
            && let Some((request, out)) = self.next_request()
        {
            self.send(slot, request, out);
        }
    }

    /// Takes the next request out of the queue whose client still waits for it, with its bytes.
    fn next_request(&mut self) -> Option<(PendingRequest, VecDeque<Vec<u8>>)> {
        loop {
            let (request, body) = self.queue.pop()?;
            let client = self.clients.get(request.owner).filter(|client| client.phase == Phase::Asking);
            let bytes = client.as_deref().and_then(|client| {
                let head = client.head.as_deref()?;
                Some((head, client.node, client.peer.ip(), client.cert))
            });
            match bytes {
                Some((head, node, peer, cert)) => return Some((request, request_bytes(head, node, peer, cert, body))),
                None => drop(self.end_request(request)),
            }
        }
    }

    /// The slot of an idle connection, or one for a new connection. The first one is taken, so that those behind
    /// it become idle for long where few are needed.
    fn usable_slot(&mut self) -> Option<usize> {
        let generation = self.config.backend.generation();
        while let Some(slot) =
            self.backends.iter().position(|one| one.as_ref().is_some_and(|one| one.request.is_none()))
        {
            if self.backends[slot].as_ref().is_some_and(|one| one.generation == generation) {
                return Some(slot);
            }
            // Nobody reads the requests of a tiny_http that was replaced.
            self.close_backend(slot);
        }
        let now = Instant::now();
        let is_taken = |one: &BackendConnection| one.answered || self.config.backend.has_taken(one.opening);
        let awaits_first = self.backends.iter().flatten().any(|one| !is_taken(one) && now < one.since + FIRST_TAKEN);
        self.backends.iter().position(Option::is_none).filter(|_| !awaits_first)
    }

    /// Sends a request on the connection of a slot, which is made where there is none.
    fn send(&mut self, slot: usize, request: PendingRequest, mut out: VecDeque<Vec<u8>>) {
        if self.backends[slot].is_none() {
            match self.open_backend(slot) {
                Ok(connection) => {
                    connection.announce(&mut out);
                    self.backends[slot] = Some(connection);
                }
                Err(e) => {
                    log::warn!("the web server behind the proxy is not reached: {e}");
                    if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) {
                        self.config.backend.refused();
                    }
                    let reason = "the controller is short of something; try again";
                    return self.fail_request(request, Refusal::new(503, "no-backend", reason));
                }
            }
        }
        if let Some(connection) = &mut self.backends[slot] {
            connection.begin(request, out);
        }
        self.drive(slot);
    }

    fn open_backend(&mut self, slot: usize) -> io::Result<BackendConnection> {
        self.openings += 1;
        // Read before it connects: a connection to a newer one is closed too early, and none too late.
        let generation = self.config.backend.generation();
        let token = Token(BACKEND_TOKEN | slot);
        BackendConnection::open(self.config.backend.socket(), (generation, self.openings), self.poll.registry(), token)
    }

    /// Closes the connection of a slot, and fails the request that it carries; one of which nothing was sent goes on
    /// a new connection.
    fn close_backend(&mut self, slot: usize) {
        let Some(connection) = self.backends[slot].take() else { return };
        match connection.close(self.poll.registry()) {
            Some((request, Some(out))) => self.send(slot, request, out),
            Some((request, None)) => {
                let reason = "the controller failed at this request; try again";
                self.fail_request(request, Refusal::new(502, "backend-failed", reason));
            }
            None => {}
        }
    }

    /// Moves the connection of a slot on.
    pub(super) fn drive(&mut self, slot: usize) {
        let Some(Some(connection)) = self.backends.get_mut(slot) else { return };
        match connection.drive(&mut self.backend_scratch, self.poll.registry()) {
            Ok(None) => return,
            Ok(Some(response)) => {
                let (request, reusable) = connection.end();
                if !reusable || self.awaits_thread(Instant::now()) {
                    self.close_backend(slot);
                }
                if let Some(request) = request {
                    self.metrics.request_seconds.observe(request.asked.elapsed().as_secs_f64());
                    let owner = self.end_request(request);
                    let action = self.handler_responded(owner, response);
                    self.apply(owner, action);
                }
            }
            Err(e) => {
                let level = if connection.request.is_some() { log::Level::Error } else { log::Level::Debug };
                log::log!(level, "{e}");
                self.close_backend(slot);
            }
        }
        self.send_waiting();
    }

    /// Whether the first request of a new connection was not taken for long, so that it may have no thread.
    fn awaits_thread(&self, now: Instant) -> bool {
        let may_lack = |one: &BackendConnection| {
            !one.answered && one.since + FIRST_TAKEN <= now && self.config.backend.may_lack_thread(one.opening)
        };
        self.backends.iter().flatten().any(may_lack)
    }

    /// When `expire_backends` has something to do.
    pub(super) fn backends_deadline(&self) -> Option<Instant> {
        let is_idle = |one: &BackendConnection| one.request.is_none();
        let can_open = !self.queue.is_empty() && self.backends.iter().any(Option::is_none);
        let hinders = can_open || self.backends.iter().flatten().any(is_idle);
        let now = Instant::now();
        let deadline = |(slot, one): (usize, &Option<BackendConnection>)| {
            let one = one.as_ref()?;
            if !one.answered {
                // Once that has passed, each answer of another connection is a look.
                return Some(one.since + FIRST_TAKEN).filter(|at| hinders && *at > now);
            }
            (is_idle(one) && slot >= self.limits.kept_backend).then_some(one.since + self.limits.backend_idle)
        };
        self.backends.iter().enumerate().filter_map(deadline).min()
    }

    /// Closes connections that were idle for long, and all idle ones while a new one may have no thread.
    pub(super) fn expire_backends(&mut self, now: Instant) {
        let awaits_thread = self.awaits_thread(now);
        for slot in 0..self.backends.len() {
            let is_over = |one: &BackendConnection| {
                let idle_for_long = slot >= self.limits.kept_backend && one.since + self.limits.backend_idle <= now;
                one.request.is_none() && (awaits_thread || idle_for_long)
            };
            if self.backends[slot].as_ref().is_some_and(is_over) {
                self.close_backend(slot);
            }
        }
        if awaits_thread {
            self.send_waiting();
        }
    }

    /// Fails requests that wait for a tiny_http that was replaced, and were not answered in time.
    pub(super) fn close_replaced_backends(&mut self, now: Instant) {
        let generation = self.config.backend.generation();
        for slot in 0..self.backends.len() {
            let is_lost =
                |one: &BackendConnection| one.generation != generation && one.since + self.limits.handler <= now;
            if self.backends[slot].as_ref().is_some_and(is_lost) {
                self.close_backend(slot);
            }
        }
    }
}
