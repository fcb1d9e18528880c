//! Accepts connections, and closes unauthenticated ones when there are too many.
//!
//! Owns: accepting, the share of unauthenticated clients. Does not own: the bounds (budget), what
//! they then send (connection).

use super::budget::OverLimit;
use super::client::{Client, Phase};
use super::connection::Action;
use super::event_loop::EventLoop;
use super::request_parser::Conn;
use super::response::Response;
use super::transport::Transport;
use crate::http::Refusal;
use jscommon::NodeId;
use mio::net::TcpStream;
use mio::{Interest, Token};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

/// New clients in one turn, so that those that are here have theirs.
const MAX_ACCEPTS: usize = 64;
/// How long nothing is accepted after the process had no descriptor left.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl EventLoop {
    /// Accepts connections, some in a turn.
    pub(super) fn accept(&mut self) {
        if !self.accept_more || self.accept_after.is_some() {
            return;
        }
        self.accept_more = false;
        for _ in 0..MAX_ACCEPTS {
            let Some(listener) = &self.listener else {
                return;
            };
            match listener.accept() {
                Ok((stream, peer)) => self.add_client(stream, peer),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    // No descriptor, no memory: it would say so again at once, so it gets a rest.
                    log::warn!("no connection can be taken for a moment: {e}");
                    self.metrics.refused("no-descriptor");
                    let now = Instant::now();
                    self.evict(self.unauthenticated.oldest(now));
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_more = true;
    }

    fn add_client(&mut self, mut stream: TcpStream, peer: SocketAddr) {
        self.metrics.accepted.inc();
        let now = Instant::now();
        if self.unauthenticated.count(peer.ip()) >= self.limits.max_unauthenticated() {
            return self.reject(stream, "address-full");
        }
        if self.clients.len() >= self.limits.max_connections && !self.make_room(peer.ip(), now) {
            return self.reject(stream, "full");
        }
        let tls = self.config.tls.as_ref().map(|source| source.current());
        let id = self.clients.vacant();
        let token = Token(id.slot() | (id.generation as usize) << 32);
        let both = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut stream, token, both);
        // Answers are small and whole; waiting to fill a segment would only delay them.
        let _ = stream.set_nodelay(true);
        let secure = tls.is_some();
        let transport = match (registered, Transport::new(stream, tls)) {
            (Ok(()), Ok(transport)) => transport,
            (registered, transport) => {
                log::warn!("a connection could not be set up: {:?} {:?}", registered.err(), transport.err());
                self.metrics.refused("setup");
                return self.clients.forgo(id);
            }
        };
        let client = Client {
            id,
            transport,
            conn: Conn::new(self.limits.max_head, self.limits.max_body),
            peer,
            phase: if secure { Phase::Handshake } else { Phase::Idle },
            accepted: now,
            deadline: None,
            hard_deadline: now,
            readable: false,
            authenticated: false,
            first_node: None,
            refused: false,
            cert: None,
            cert_ends: None,
            head: None,
            node: None,
            request_complete_at: now,
            request_bytes: None,
            delayed_response: None,
            response_bytes: 0,
        };
        self.clients.insert(client);
        self.unauthenticated.add(peer.ip(), (now, id.slot()));
        let time = if secure { self.limits.handshake } else { self.limits.head };
        self.apply(id, Action::WaitUntil(now + time));
    }

    /// Refuses a connection when there are too many. Plain HTTP is told so; TLS has no session yet.
    fn reject(&self, mut stream: TcpStream, label: &'static str) {
        self.metrics.refused(label);
        if self.config.tls.is_none() {
            let refusal = Refusal::new(503, label, "too many connections; try again");
            // A new socket's buffer takes this at once, or the client is told by the closing alone.
            let _ = stream.write(&Response::refusal(&refusal).bytes(false, false, SystemTime::now()).concat());
        }
    }

    /// Closes a client that has proved nothing for one that comes from `addr`; whether there was one to close.
    fn make_room(&mut self, addr: IpAddr, now: Instant) -> bool {
        self.evict(self.unauthenticated.makes_room(addr, now))
    }

    fn evict(&mut self, slot: Option<usize>) -> bool {
        if let Some(slot) = slot {
            self.metrics.refused("evicted");
            self.close(slot);
        }
        slot.is_some()
    }

    /// The client has proved to be `node`'s: it counts there from now on, and no longer against its
    /// address.
    pub(super) fn mark_authenticated(&mut self, slot: usize, node: NodeId) -> Result<(), OverLimit> {
        if let Some(client) = self.clients.at(slot)
            && !client.authenticated
        {
            self.accounting.connect(&self.limits, node)?;
            client.authenticated = true;
            client.first_node = Some(node);
            self.unauthenticated.remove(client.peer.ip(), (client.accepted, slot));
        }
        Ok(())
    }
}
