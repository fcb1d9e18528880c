//! Requests on their way through tiny_http: the line of those that wait, and who travels together.
//!
//! Owns: what goes on which connection, and whose the responses are. Does not own: the bytes of a connection
//! (backend_connection), what becomes of a response (request), how many connections there may be (budget).

use super::backend_connection::{BackendConnection, InFlight, PendingRequest, request_head};
use super::client::{ConnectionId, Phase};
use super::connection::Action;
use super::event_loop::EventLoop;
use crate::api::response_order::PipelineSlot;
use crate::api::server::QUICK_BODY;
use crate::http::Refusal;
use crate::route::Route;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Instant;

impl EventLoop {
    /// Puts the request in the line for tiny_http.
    pub(super) fn ask(&mut self, id: ConnectionId, body: Vec<u8>) {
        if self.queue.len() >= self.limits.max_queue {
            return self.refuse(id, Refusal::new(503, "queue-full", "too many requests wait; try again"));
        }
        let Some(client) = self.clients.get(id) else { return };
        client.phase = Phase::Asking;
        let cost = client.request_bytes.take().map(|length| (client.node, length as usize));
        self.queue.push_back((PendingRequest { owner: id, cost }, body));
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

    /// Sends waiting requests to tiny_http, as many as it may have.
    fn send_waiting(&mut self) {
        while !self.queue.is_empty()
            && let Some(slot) = self.in_flight.iter().position(Option::is_none)
        {
            let (pending, out) = self.next_group(slot);
            if pending.is_empty() {
                return;
            }
            let made =
                BackendConnection::new(self.config.backend.socket(), out, pending.len()).and_then(|mut connection| {
                    self.register_backend(slot, &mut connection)?;
                    Ok(connection)
                });
            match made {
                Ok(connection) => {
                    self.in_flight[slot] = Some(InFlight { connection, pending });
                    self.drive(slot);
                }
                Err(e) => {
                    log::warn!("the web server behind the proxy is not reached: {e}");
                    if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) {
                        self.config.backend.refused();
                    }
                    let refusal = Refusal::new(503, "no-backend", "the controller is short of something; try again");
                    for request in pending {
                        let owner = self.end_request(request);
                        self.apply(owner, Action::Fail(refusal.clone()));
                    }
                }
            }
        }
    }

    /// Takes the next requests that go to tiny_http on one connection out of the queue, with their bytes. A connection
    /// costs more than most requests. While few wait each has its own. A request that may take long goes alone, for
    /// responses come in the order of the requests: a slow one delays those few behind it, and no others (see
    /// `response_order`).
    fn next_group(&mut self, slot: usize) -> (VecDeque<PendingRequest>, VecDeque<Vec<u8>>) {
        let share = self.config.backend.share(self.limits.max_batch);
        let most = self.queue.len().div_ceil(self.in_flight.len().max(1)).min(share);
        let mut group: Vec<(PendingRequest, Vec<u8>)> = Vec::with_capacity(most);
        while group.len() < most
            && let Some((request, body)) = self.queue.front()
        {
            let (owner, length) = (request.owner, body.len());
            let waiting = self.clients.get(owner).filter(|client| client.phase == Phase::Asking);
            let route = waiting.and_then(|client| client.head.as_deref()).map(|head| head.route);
            let quick = matches!(route, Some(Route::Cmd(_) | Route::Result(_))) && length <= QUICK_BODY;
            if route.is_some() && !quick && !group.is_empty() {
                break;
            }
            let next = self.queue.pop_front();
            if route.is_some() {
                group.extend(next);
            } else if let Some((gone, body)) = next {
                drop(body);
                self.end_request(gone);
            }
            if route.is_some() && !quick {
                break;
            }
        }
        self.groups_begun += 1;
        let (number, of) = (self.groups_begun, group.len());
        let (mut pending, mut out) = (VecDeque::with_capacity(group.len()), VecDeque::new());
        let mut small = Vec::new();
        for (at, (request, body)) in group.into_iter().enumerate() {
            let client = self.clients.get(request.owner);
            let Some((client, head)) = client.as_deref().and_then(|client| Some((client, client.head.as_deref()?)))
            else {
                self.end_request(request);
                continue;
            };
            let position = PipelineSlot { slot, group: number, at, of };
            small.extend(request_head(head, client.node, client.peer.ip(), client.cert, body.len(), position));
            pending.push_back(request);
            if body.len() <= QUICK_BODY {
                small.extend(body);
            } else {
                out.push_back(std::mem::take(&mut small));
                out.push_back(body);
            }
        }
        out.push_back(small);
        (pending, out)
    }

    /// Moves one connection on.
    pub(super) fn drive(&mut self, slot: usize) {
        let Some(Some(on_way)) = self.in_flight.get_mut(slot) else {
            return;
        };
        let mut responses = Vec::new();
        let moved = on_way.connection.drive(&mut self.backend_scratch, &mut responses);
        let answered: Vec<PendingRequest> = on_way.pending.drain(..responses.len()).collect();
        let over = match moved {
            Ok(false) => None,
            Ok(true) | Err(_) => self.in_flight.get_mut(slot).and_then(Option::take),
        };
        for (request, response) in answered.into_iter().zip(responses) {
            let owner = self.end_request(request);
            let action = self.handler_responded(owner, response);
            self.apply(owner, action);
        }
        let Some(mut over) = over else { return };
        let _ = self.poll.registry().deregister(over.connection.stream());
        if let Err(e) = moved {
            log::error!("{e}");
            let refusal = Refusal::new(502, "backend-failed", "the controller failed at this request; try again");
            for request in over.pending {
                let owner = self.end_request(request);
                self.apply(owner, Action::Fail(refusal.clone()));
            }
        }
        self.send_waiting();
    }
}
