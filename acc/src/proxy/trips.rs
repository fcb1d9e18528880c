//! Requests on their way through tiny_http: the line of those that wait, and who travels together.
//!
//! Owns: what goes on which connection, and whose the answers are. Does not own: the bytes of a connection
//! (exchange), what becomes of an answer (connection_state), how many connections there may be (limits).

use super::client::{ConnectionId, Phase};
use super::event_loop::EventLoop;
use super::exchange::{Exchange, request_head};
use super::reply::refusal;
use crate::response_order::PipelineSlot;
use crate::route::Route;
use crate::server::QUICK_BODY;
use jscommon::NodeId;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Instant;

/// A request that waits for tiny_http or is with it: whose it is, and what the books count for it (its node, and
/// the bytes of its body). That counts for as long as the body is held, whether the client stays or not.
pub(super) struct Errand {
    owner: ConnectionId,
    cost: Option<(Option<NodeId>, usize)>,
}

/// An exchange, and who waits for its answers.
pub(super) struct Trip {
    pub(super) exchange: Exchange,
    /// The errands that the exchange carries, in the order of the exchange.
    pub(super) errands: VecDeque<Errand>,
}

impl EventLoop {
    /// Puts the request in the line for tiny_http.
    pub(super) fn ask(&mut self, name: ConnectionId, body: Vec<u8>) {
        if self.queue.len() >= self.limits.max_queue {
            return self.refuse(name.slot, refusal(503, "queue-full", "too many requests wait; try again"));
        }
        let Some(client) = self.clients.at(name.slot) else {
            return;
        };
        client.phase = Phase::Asking;
        let cost = client.counted.take().map(|length| (client.node, length));
        let at = Instant::now() + self.limits.handler;
        self.set_deadline(name.slot, at);
        self.queue.push_back((Errand { owner: name, cost }, body));
        self.start_trips();
    }

    /// The request is over: its body is held no more. Whose it was.
    fn settle(&mut self, errand: Errand) -> ConnectionId {
        if let Some((node, length)) = errand.cost {
            self.accounting.end(node, length);
        }
        errand.owner
    }

    /// Sends waiting requests to tiny_http, as many as it may have.
    fn start_trips(&mut self) {
        while !self.queue.is_empty()
            && let Some(trip) = self.trips.iter().position(Option::is_none)
        {
            let (errands, out) = self.next_group(trip);
            if errands.is_empty() {
                return;
            }
            let made = Exchange::new(self.config.backend.socket(), out, errands.len()).and_then(|mut exchange| {
                self.register_trip(trip, &mut exchange)?;
                Ok(exchange)
            });
            match made {
                Ok(exchange) => {
                    self.trips[trip] = Some(Trip { exchange, errands });
                    self.drive(trip);
                }
                Err(e) => {
                    log::warn!("the web server behind the proxy is not reached: {e}");
                    if matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) {
                        self.config.backend.refused();
                    }
                    let refusal = refusal(503, "no-backend", "the controller is short of something; try again");
                    for errand in errands {
                        let owner = self.settle(errand);
                        self.give_up(owner, refusal.clone());
                    }
                }
            }
        }
    }

    /// Takes the next requests out of the line that go to tiny_http on one connection, which costs more than
    /// what most of them ask for: whose they are, and their bytes. While few wait each has its own. What may
    /// take long goes alone, for answers come in the order of the requests: one that is slow all the same keeps
    /// those few waiting that travel behind it, and nobody else (see `response_order`).
    fn next_group(&mut self, slot: usize) -> (VecDeque<Errand>, VecDeque<Vec<u8>>) {
        let share = self.config.backend.share(self.limits.together);
        let most = self.queue.len().div_ceil(self.trips.len().max(1)).min(share);
        let mut group: Vec<(Errand, Vec<u8>)> = Vec::with_capacity(most);
        while group.len() < most
            && let Some((errand, body)) = self.queue.front()
        {
            let (owner, length) = (errand.owner, body.len());
            let waits = self.clients.has(owner);
            let head = self.clients.at(owner.slot).filter(|client| waits && client.phase == Phase::Asking);
            let route = head.and_then(|client| client.head.as_deref()).map(|head| head.route);
            let quick = matches!(route, Some(Route::Cmd(_) | Route::Result(_))) && length <= QUICK_BODY;
            if route.is_some() && !quick && !group.is_empty() {
                break;
            }
            let next = self.queue.pop_front();
            if route.is_some() {
                group.extend(next);
            } else if let Some((gone, body)) = next {
                drop(body);
                self.settle(gone);
            }
            if route.is_some() && !quick {
                break;
            }
        }
        self.trips_begun += 1;
        let (trip, of) = (self.trips_begun, group.len());
        let (mut errands, mut out) = (VecDeque::with_capacity(group.len()), VecDeque::new());
        let mut small = Vec::new();
        for (at, (errand, body)) in group.into_iter().enumerate() {
            let client = self.clients.at(errand.owner.slot);
            let Some((client, head)) = client.as_deref().and_then(|client| Some((client, client.head.as_deref()?)))
            else {
                self.settle(errand);
                continue;
            };
            let place = PipelineSlot { slot, trip, at, of };
            small.extend(request_head(head, client.node, client.peer.ip(), client.cert, body.len(), place));
            errands.push_back(errand);
            if body.len() <= QUICK_BODY {
                small.extend(body);
            } else {
                out.push_back(std::mem::take(&mut small));
                out.push_back(body);
            }
        }
        out.push_back(small);
        (errands, out)
    }

    /// Moves one exchange on.
    pub(super) fn drive(&mut self, trip: usize) {
        let Some(Some(on_way)) = self.trips.get_mut(trip) else {
            return;
        };
        let mut answers = Vec::new();
        let moved = on_way.exchange.drive(&mut self.trip_scratch, &mut answers);
        let answered: Vec<Errand> = on_way.errands.drain(..answers.len()).collect();
        let over = match moved {
            Ok(false) => None,
            Ok(true) | Err(_) => self.trips.get_mut(trip).and_then(Option::take),
        };
        for (errand, answer) in answered.into_iter().zip(answers) {
            let owner = self.settle(errand);
            self.answered(owner, answer);
        }
        let Some(mut over) = over else { return };
        let _ = self.poll.registry().deregister(over.exchange.stream());
        if let Err(e) = moved {
            log::error!("{e}");
            let refusal = refusal(502, "backend-failed", "the controller failed at this request; try again");
            for errand in over.errands {
                let owner = self.settle(errand);
                self.give_up(owner, refusal.clone());
            }
        }
        self.start_trips();
    }
}
