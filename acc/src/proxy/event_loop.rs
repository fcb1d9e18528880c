//! The event loop: one thread that moves the bytes of all clients.
//!
//! Owns: every client's socket, every connection to tiny_http, timers, and the order of
//! things in one turn: messages first, nodes, deadlines, leftovers, unauthenticated clients.
//! Does not own: the rules. Bytes are read by `request_parser`, waiting polls are in `long_poll`, limits are in
//! `budget`, the life of a connection is in `connection`, that of a request in `request`, new connections are in `accept`.
//!
//! **Nothing here blocks** but the wait for events. Nothing is polled either: a turn begins when a
//! socket, a message or a deadline asks for it.

use super::backend_connection::{BackendConnection, PendingRequest};
use super::budget::{Limits, ResourceAccounting};
use super::client::{Clients, ConnectionId, Phase};
use super::connection::Action;
use super::long_poll::ParkedPolls;
use super::request_queue::RequestQueue;
use super::timers::Timers;
use super::transport::ReadOutcome;
use super::unauthenticated::Unauthenticated;
use super::{Message, ProxyConfig, Seen};
use crate::api::rate_limiter::RateLimiter;
use crate::auth::authenticate::Authenticate;
use crate::metrics::Metrics;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use jscommon::{NodeId, failpoint};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LISTENER: Token = Token(usize::MAX - 1);
const WAKER: Token = Token(usize::MAX - 2);
/// Tokens of connections to tiny_http have this bit; a client's are its slot and its turn.
pub(super) const BACKEND_TOKEN: usize = 1 << 63;

/// The time for unauthenticated clients in a turn in which others want something too.
const UNAUTHENTICATED_TIME: Duration = Duration::from_millis(2);
/// Bytes of one client in one turn.
const MAX_READ_BYTES: usize = 256 * 1024;
/// How often the nodes that were seen are told.
const SEEN_INTERVAL: Duration = Duration::from_secs(1);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The event loop and all that it holds.
pub(super) struct EventLoop {
    pub(super) poll: Poll,
    pub(super) listener: Option<TcpListener>,
    inbox: Receiver<Message>,
    woken: Arc<AtomicBool>,
    pub(super) config: ProxyConfig,
    pub(super) limits: Limits,
    pub(super) authenticator: Arc<dyn Authenticate>,
    pub(super) metrics: Arc<Metrics>,
    seen_to: Sender<Seen>,
    /// Nodes that are to be told as seen, and when their latest polls came.
    pub(super) seen: HashMap<NodeId, Instant>,
    pub(super) seen_at: Option<Instant>,
    pub(super) clients: Clients,
    pub(super) timers: Timers,
    pub(super) accounting: ResourceAccounting,
    /// The requests and bytes that nodes have sent of late.
    pub(super) rate_limiter: RateLimiter,
    pub(super) parked_polls: ParkedPolls<ConnectionId>,
    pub(super) hasher: RandomState,
    /// Clients that have proved nothing.
    pub(super) unauthenticated: Unauthenticated,
    /// Requests that wait for a connection to tiny_http.
    pub(super) queue: RequestQueue<(PendingRequest, Vec<u8>)>,
    pub(super) backends: Vec<Option<BackendConnection>>,
    /// How many connections to tiny_http were opened.
    pub(super) openings: u64,
    /// Clients whose sockets hold more than their turn allowed to read.
    pub(super) again: VecDeque<ConnectionId>,
    /// Clients that have proved nothing and want something (whether to be read from): they come
    /// after the nodes, and have only so much time in a turn, for a handshake costs more than a poll.
    unauthenticated_ready: VecDeque<(ConnectionId, bool)>,
    pub(super) accept_more: bool,
    pub(super) accept_after: Option<Instant>,
    sweep_at: Instant,
    /// When a polite stop ends.
    pub(super) stopping: Option<Instant>,
    /// How many requests tiny_http's threads had taken when one was last not answered in time, and when that was.
    pub(super) stalled: Option<(u64, Instant)>,
    /// Why it cannot go on.
    pub(super) failure: Option<String>,
    pub(super) scratch: Vec<u8>,
    pub(super) backend_scratch: Vec<u8>,
}

pub(super) struct Parts {
    pub(super) listener: std::net::TcpListener,
    pub(super) inbox: Receiver<Message>,
    pub(super) woken: Arc<AtomicBool>,
    pub(super) config: ProxyConfig,
    pub(super) authenticator: Arc<dyn Authenticate>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) seen: Sender<Seen>,
}

impl EventLoop {
    /// A loop that is ready to run, and what wakes it.
    pub(super) fn new(parts: Parts) -> io::Result<(EventLoop, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let mut listener = TcpListener::from_std(parts.listener);
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let limits = parts.config.limits.clone();
        parts.metrics.connections_max.set(limits.max_connections as i64);
        let now = Instant::now();
        let rate_limiter = RateLimiter::new(limits.max_records);
        let event_loop = EventLoop {
            poll,
            listener: Some(listener),
            inbox: parts.inbox,
            woken: parts.woken,
            parked_polls: ParkedPolls::new(limits.trust, Instant::now()),
            backends: (0..limits.max_backend).map(|_| None).collect(),
            openings: 0,
            config: parts.config,
            limits,
            authenticator: parts.authenticator,
            metrics: parts.metrics,
            seen_to: parts.seen,
            seen: HashMap::new(),
            seen_at: None,
            clients: Clients::default(),
            timers: Timers::default(),
            accounting: ResourceAccounting::default(),
            rate_limiter,
            hasher: RandomState::new(),
            unauthenticated: Unauthenticated::default(),
            queue: RequestQueue::default(),
            again: VecDeque::new(),
            unauthenticated_ready: VecDeque::new(),
            accept_more: false,
            accept_after: None,
            sweep_at: now + SWEEP_INTERVAL,
            stopping: None,
            stalled: None,
            failure: None,
            scratch: vec![0; 64 * 1024],
            backend_scratch: vec![0; 64 * 1024],
        };
        Ok((event_loop, waker))
    }

    /// Serves unauthenticated clients in their order, and new ones after them.
    fn serve_unauthenticated(&mut self) {
        let end = Instant::now() + UNAUTHENTICATED_TIME;
        for _ in 0..self.unauthenticated_ready.len() {
            if Instant::now() >= end {
                return;
            }
            if let Some((id, readable)) = self.unauthenticated_ready.pop_front() {
                self.handle_event(id, readable);
            }
        }
        self.accept();
    }

    /// Runs until it is stopped. The error says why it cannot go on.
    pub(super) fn run(mut self) -> Result<(), String> {
        let mut events = Events::with_capacity(1024);
        while !self.is_finished() {
            let timeout = self.poll_timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(format!("it cannot wait for events: {e}")),
            }
            failpoint::hit("acc.proxy");
            self.handle_messages();
            for event in &events {
                match event.token() {
                    WAKER => {}
                    LISTENER => self.accept_more = true,
                    Token(token) if token & BACKEND_TOKEN != 0 => self.drive(token & !BACKEND_TOKEN),
                    Token(token) => {
                        let id = ConnectionId::new(token & 0xffff_ffff, (token >> 32) as u32);
                        let readable = event.is_readable() || event.is_error();
                        match self.clients.get(id) {
                            Some(client) if client.authenticated => self.handle_event(id, readable),
                            Some(_) => self.unauthenticated_ready.push_back((id, readable)),
                            None => {}
                        }
                    }
                }
            }
            self.expire_deadlines();
            for _ in 0..self.again.len() {
                if let Some(id) = self.again.pop_front() {
                    self.handle_event(id, true);
                }
            }
            self.serve_unauthenticated();
            self.update_gauges();
            if let Some(why) = self.failure.take() {
                return Err(why);
            }
        }
        self.clients.ids().into_iter().for_each(|id| self.close(id.slot()));
        self.report_seen();
        self.update_gauges();
        Ok(())
    }

    fn is_finished(&self) -> bool {
        self.stopping.is_some_and(|at| self.clients.len() == 0 || Instant::now() >= at)
    }

    /// How long the next turn may wait for events.
    fn poll_timeout(&self) -> Option<Duration> {
        // While accepting has its rest, one that knocks is no reason for a turn.
        let accepts = self.accept_more && self.accept_after.is_none();
        if accepts || !self.again.is_empty() || !self.unauthenticated_ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let backends = self.backends_deadline();
        let first = [self.timers.next(), self.seen_at, self.accept_after, Some(self.sweep_at), self.stopping, backends];
        let first = first.into_iter().flatten().min()?;
        // One more millisecond, for epoll's are whole ones and rounding down would wake for nothing.
        Some(first.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    fn update_gauges(&self) {
        self.metrics.connections.set(self.clients.len() as i64);
        self.metrics.polls_parked.set(self.parked_polls.parked() as i64);
        self.metrics.body_bytes.set(self.accounting.bodies() as i64);
        let on_way: usize = self.backends.iter().flatten().map(|one| one.pending.len()).sum();
        let with_handlers = on_way + self.queue.len();
        self.metrics.requests_waiting.set(with_handlers as i64);
    }

    fn handle_messages(&mut self) {
        if !self.woken.swap(false, Ordering::AcqRel) {
            return;
        }
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Deliver(node, body) => self.deliver(node, body),
                Message::Recheck(node) => self.recheck(node),
                Message::RecheckOlder(node, asked) => self.recheck_older(node, asked),
                Message::ReleasePoll(node) => self.release_poll(node),
                Message::RecheckAll => self.recheck_all(),
                Message::Disconnect(node) => self.disconnect(node),
                Message::Ping(answer) => {
                    let _ = answer.try_send(());
                }
                Message::Stop => self.stop(),
            }
        }
    }

    fn expire_deadlines(&mut self) {
        let now = Instant::now();
        while let Some(slot) = self.timers.due(now) {
            let Some(client) = self.clients.at(slot) else { continue };
            client.deadline = None;
            let (id, asking, action) = (client.id, client.phase == Phase::Asking, client.expired());
            if asking {
                self.check_backend();
            }
            self.apply(id, action);
        }
        self.expire_backends(now);
        if self.seen_at.is_some_and(|at| at <= now) {
            self.report_seen();
        }
        if self.accept_after.is_some_and(|at| at <= now) {
            self.accept_after = None;
            self.accept_more = true;
        }
        if self.sweep_at <= now {
            self.parked_polls.sweep(now);
            self.sweep_at = now + SWEEP_INTERVAL;
        }
    }

    fn report_seen(&mut self) {
        self.seen_at = None;
        if self.seen.is_empty() {
            return;
        }
        let nodes: Seen = self.seen.drain().collect();
        if let Err(TrySendError::Full(nodes)) = self.seen_to.try_send(nodes) {
            // The receiver is busy (Redis is away, say); a node counts once however often it came.
            self.seen.extend(nodes);
            self.seen_at = Some(Instant::now() + SEEN_INTERVAL);
        }
    }

    /// The poll of `node` that came at `at` waits.
    pub(super) fn note_seen(&mut self, node: NodeId, at: Instant) {
        self.seen.insert(node, at);
        self.seen_at.get_or_insert_with(|| Instant::now() + SEEN_INTERVAL);
    }

    fn handle_event(&mut self, id: ConnectionId, readable: bool) {
        self.flush(id);
        if readable && let Some(client) = self.clients.get(id) {
            client.readable = true;
            self.read_client(id);
        }
    }

    /// Reads from a client as long as its phase wants bytes, it has some, and its turn lasts.
    fn read_client(&mut self, id: ConnectionId) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut left = MAX_READ_BYTES;
        while let Some(client) = self.clients.get(id).filter(|client| client.readable) {
            if left == 0 {
                self.again.push_back(id);
                break;
            }
            let read = match client.phase {
                Phase::Responding | Phase::Pausing => break,
                // One byte too many is enough to know.
                Phase::Asking | Phase::Parked if client.conn.has_excess() => break,
                Phase::Handshake if client.transport.speaks_plain() => {
                    let action = client.speaks_plain_http();
                    self.apply(id, action);
                    break;
                }
                Phase::Linger => client.transport.discard(&mut scratch),
                _ => client.transport.read(&mut scratch),
            };
            if client.phase == Phase::Handshake && !client.transport.is_handshaking() {
                let kind = if client.transport.is_resumed() == Some(true) { "resumed" } else { "full" };
                self.metrics.handshakes.with_label_values(&[kind]).inc();
                let action = client.handshake_completed(&self.limits);
                self.apply(id, action);
            }
            let Some(client) = self.clients.get(id) else { break };
            let action = match read {
                Ok(ReadOutcome::Data(n)) => {
                    left = left.saturating_sub(n);
                    self.feed_client(id, &scratch[..n]);
                    continue;
                }
                Ok(ReadOutcome::Blocked) => {
                    client.readable = false;
                    Action::Nothing
                }
                Ok(ReadOutcome::Again) => {
                    left = 0;
                    Action::Nothing
                }
                Ok(ReadOutcome::End) => client.input_ended(),
                Err(e) => client.failed(&e),
            };
            self.apply(id, action);
        }
        self.scratch = scratch;
    }

    fn stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Instant::now() + self.limits.stop);
        if let Some(mut listener) = self.listener.take() {
            let _ = self.poll.registry().deregister(&mut listener);
        }
        for id in self.clients.ids() {
            if let Some(client) = self.clients.get(id) {
                let action = client.stopped();
                self.apply(id, action);
            }
        }
    }
}

#[cfg(test)]
#[path = "event_loop_tests.rs"]
mod tests;
