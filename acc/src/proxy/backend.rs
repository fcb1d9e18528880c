//! Connections to tiny_http: which are open, and which request goes on which.
//!
//! Owns: their number, their reuse and their end, and who travels together. Does not own: the bytes of a connection (backend_connection), the
//! order of requests that wait (request_queue), what becomes of a response (request).
//!
//! A kept connection holds a thread of tiny_http. A new one is given to a thread that waits for one, by a count that
//! a burst of new ones makes wrong: then one of them has no thread until another connection is closed. So they are
//! opened one after the other, each once the first request of the one before it was taken; where that does not happen
//! soon though a handler is free, none is kept until it does.

use super::backend_connection::{BackendConnection, Group, PendingRequest, request_bytes};
use super::client::{ConnectionId, Phase};
use super::connection::Action;
use super::event_loop::{BACKEND_TOKEN, EventLoop};
use crate::api::server::QUICK_BODY;
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
        let route = client.head.as_deref().map(|head| head.route);
        let is_result = matches!(route, Some(Route::Result(_)));
        let is_quick = (is_result || matches!(route, Some(Route::Cmd(_)))) && body.len() <= QUICK_BODY;
        self.queue.push(is_result, (PendingRequest { owner: id, cost, is_quick, asked: Instant::now() }, body));
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
        {
            let group = self.next_group();
            if !group.pending.is_empty() {
                self.send(slot, group);
            }
        }
    }

    /// Takes the requests out of the queue that go next on one connection. While few wait each goes alone. A request
    /// that may take long goes alone too, for responses come in the order of the requests.
    fn next_group(&mut self) -> Group {
        let share = self.queue.len().div_ceil(self.backends.len().max(1));
        let most = self.config.backend.max_group(self.limits.max_group).min(share);
        let mut group = Group::default();
        let mut only_quick = false;
        while group.pending.len() < most.max(1)
            && let Some((request, bytes)) = self.next_request(only_quick)
        {
            only_quick = true;
            let is_quick = request.is_quick;
            group.push(request, bytes);
            if !is_quick {
                break;
            }
        }
        group
    }

    /// Takes the next request out of the queue whose client still waits for it, with its bytes.
    fn next_request(&mut self, only_quick: bool) -> Option<(PendingRequest, VecDeque<Vec<u8>>)> {
        loop {
            let (request, body) = self.queue.pop_if(|(request, _)| !only_quick || request.is_quick)?;
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
            self.backends.iter().position(|one| one.as_ref().is_some_and(|one| one.pending.is_empty()))
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

    /// Sends requests on the connection of a slot, which is made where there is none.
    fn send(&mut self, slot: usize, mut group: Group) {
        if self.backends[slot].is_none() {
            match self.open_backend(slot) {
                Ok(connection) => {
                    connection.announce(&mut group.out);
                    self.backends[slot] = Some(connection);
                }
                Err(e) => {
                    log::warn!("the web server behind the proxy is not reached: {e}");
                    if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) {
                        self.config.backend.refused();
                    }
                    let reason = "the controller is short of something; try again";
                    let refusal = Refusal::new(503, "no-backend", reason);
                    return group.pending.into_iter().for_each(|request| self.fail_request(request, refusal.clone()));
                }
            }
        }
        if let Some(connection) = &mut self.backends[slot] {
            connection.begin(group);
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

    /// Closes the connection of a slot, and fails the requests that it carries; those of which nothing was sent go on
    /// a new connection.
    fn close_backend(&mut self, slot: usize) {
        let Some(connection) = self.backends[slot].take() else { return };
        let (group, is_unsent) = connection.close(self.poll.registry());
        if is_unsent && !group.pending.is_empty() {
            return self.send(slot, group);
        }
        let refusal = Refusal::new(502, "backend-failed", "the controller failed at this request; try again");
        group.pending.into_iter().for_each(|request| self.fail_request(request, refusal.clone()));
    }

    /// Moves the connection of a slot on.
    pub(super) fn drive(&mut self, slot: usize) {
        let Some(Some(connection)) = self.backends.get_mut(slot) else { return };
        let mut responses = Vec::new();
        let moved = connection.drive(&mut self.backend_scratch, self.poll.registry(), &mut responses);
        let answered: Vec<_> = responses.into_iter().map(|response| (connection.end(), response)).collect();
        let is_idle = connection.pending.is_empty();
        if let Err(e) = &moved {
            log::log!(if is_idle { log::Level::Debug } else { log::Level::Error }, "{e}");
        } else if answered.is_empty() {
            return;
        }
        let is_over = is_idle && (!connection.is_reusable() || self.awaits_thread(Instant::now()));
        if moved.is_err() || is_over {
            self.close_backend(slot);
        }
        for (request, response) in answered {
            let Some(request) = request else { continue };
            self.metrics.request_seconds.observe(request.asked.elapsed().as_secs_f64());
            let owner = self.end_request(request);
            let action = self.handler_responded(owner, response);
            self.apply(owner, action);
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
        let is_idle = |one: &BackendConnection| one.pending.is_empty();
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
                one.pending.is_empty() && (awaits_thread || idle_for_long)
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
