//! Requests on their way through tiny_http: the line of those that wait, and who travels together.
//!
//! Owns: what goes on which connection, and whose the answers are. Does not own: the bytes of a connection
//! (exchange), what becomes of an answer (serve), how many connections there may be (limits).

use super::client::{Name, Phase};
use super::exchange::{Exchange, request_head};
use super::pump::Pump;
use super::reply::refusal;
use crate::route::Route;
use crate::server::QUICK_BODY;
use crate::turns::Place;
use std::collections::VecDeque;
use std::time::Instant;

/// An exchange, and who waits for its answers.
pub(super) struct Trip {
    pub(super) exchange: Exchange,
    /// Whose requests it carries, in their order.
    pub(super) owners: VecDeque<Name>,
}

impl Pump {
    /// Puts the request in the line for tiny_http.
    pub(super) fn ask(&mut self, name: Name, body: Vec<u8>) {
        if self.queue.len() >= self.limits.max_queue {
            return self.refuse(name.slot, refusal(503, "queue-full", "too many requests wait; try again"));
        }
        let Some(client) = self.clients.at(name.slot) else {
            return;
        };
        client.phase = Phase::Asking;
        let at = Instant::now() + self.limits.handler;
        self.set_deadline(name.slot, at);
        self.queue.push_back((name, body));
        self.start_trips();
    }

    /// Sends waiting requests to tiny_http, as many as it may have.
    fn start_trips(&mut self) {
        while !self.queue.is_empty()
            && let Some(trip) = self.trips.iter().position(Option::is_none)
        {
            let (owners, out) = self.next_group(trip);
            if owners.is_empty() {
                return;
            }
            let made = Exchange::new(self.backend(), out, owners.len()).and_then(|mut exchange| {
                self.register_trip(trip, &mut exchange)?;
                Ok(exchange)
            });
            match made {
                Ok(exchange) => {
                    self.trips[trip] = Some(Trip { exchange, owners });
                    self.drive(trip);
                }
                Err(e) => {
                    log::warn!("the web server behind the gate is not reached: {e}");
                    let refusal = refusal(503, "no-backend", "the controller is short of something; try again");
                    owners.into_iter().for_each(|owner| self.give_up(owner, refusal.clone()));
                }
            }
        }
    }

    /// Takes the next requests out of the line that go to tiny_http on one connection, which costs more than
    /// what most of them ask for: whose they are, and their bytes. While few wait each has its own. What may
    /// take long goes alone, for answers come in the order of the requests: one that is slow all the same keeps
    /// those few waiting that travel behind it, and nobody else (see `turns`).
    fn next_group(&mut self, slot: usize) -> (VecDeque<Name>, VecDeque<Vec<u8>>) {
        let most = self.queue.len().div_ceil(self.trips.len().max(1)).min(self.limits.together);
        let mut group: Vec<(Name, Vec<u8>)> = Vec::with_capacity(most);
        while group.len() < most
            && let Some(&(owner, ref body)) = self.queue.front()
        {
            let length = body.len();
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
            }
            if route.is_some() && !quick {
                break;
            }
        }
        self.trips_begun += 1;
        let (trip, of) = (self.trips_begun, group.len());
        let (mut owners, mut out) = (VecDeque::with_capacity(group.len()), VecDeque::new());
        let mut small = Vec::new();
        for (at, (owner, body)) in group.into_iter().enumerate() {
            let Some(client) = self.clients.at(owner.slot) else { continue };
            let Some(head) = client.head.as_deref() else { continue };
            let place = Place { slot, trip, at, of };
            let issued = client.cert.and_then(|cert| cert.issued);
            small.extend(request_head(head, client.node, client.peer.ip(), issued, body.len(), place));
            owners.push_back(owner);
            if body.len() <= QUICK_BODY {
                small.extend(body);
            } else {
                out.push_back(std::mem::take(&mut small));
                out.push_back(body);
            }
        }
        out.push_back(small);
        (owners, out)
    }

    /// Moves one exchange on.
    pub(super) fn drive(&mut self, trip: usize) {
        let Some(Some(on_way)) = self.trips.get_mut(trip) else {
            return;
        };
        let mut answers = Vec::new();
        let moved = on_way.exchange.drive(&mut self.trip_scratch, &mut answers);
        let answered: Vec<Name> = on_way.owners.drain(..answers.len()).collect();
        let over = match moved {
            Ok(false) => None,
            Ok(true) | Err(_) => self.trips.get_mut(trip).and_then(Option::take),
        };
        for (owner, answer) in answered.into_iter().zip(answers) {
            self.answered(owner, answer);
        }
        let Some(mut over) = over else { return };
        let _ = self.poll.registry().deregister(over.exchange.stream());
        if let Err(e) = moved {
            log::error!("{e}");
            let refusal = refusal(502, "backend-failed", "the controller failed at this request; try again");
            over.owners.into_iter().for_each(|owner| self.give_up(owner, refusal.clone()));
        }
        self.start_trips();
    }
}
