//! The proxy: the only module here that meets the network.
//!
//! It accepts, shakes hands, reads one whole bounded request at a time, authenticates its
//! credentials before it reads a body, and hands it to tiny_http over a private local socket. Polls
//! with nothing to do wait here, as a socket and no thread.
//!
//! Owns: every socket of a client, every deadline and bound of what clients may cost.
//! Does not own: credentials (`auth`), answers (the handlers behind tiny_http), Redis.
//! Threads of `work` talk to it through `Remote`; `daemon` starts and stops it.
//!
//! | file | what |
//! |---|---|
//! | `request_parser`, `request_head` | bytes → one whole request, or its refusal (pure) |
//! | `long_poll` | which node waits on which connection (pure) |
//! | `response`, `timers`, `budget` | forms, deadlines, bounds (pure) |
//! | `request_queue` | which request goes to tiny_http next (pure) |
//! | `transport`, `backend_connection` | one client's socket; one connection to tiny_http |
//! | `event_loop`, `accept`, `unauthenticated` | the event loop; new connections, and which is closed for one |
//! | `connection` | the life of a connection: what is to be done in which phase |
//! | `actions`, `request` | what the event loop does for a connection; the way of a request |
//! | `backend` | connections to tiny_http: opened, used again, closed |

mod accept;
mod actions;
mod backend;
mod backend_connection;
mod budget;
mod certificate_end;
mod client;
mod connection;
mod event_loop;
mod long_poll;
mod request;
mod request_head;
mod request_parser;
mod request_queue;
mod response;
mod timers;
mod transport;
mod unauthenticated;

#[cfg(test)]
mod tests;

use crate::api::server::Backend;
use crate::auth::authenticate::Authenticate;
use crate::auth::tls::TlsSource;
use crate::critical_thread;
use crate::metrics::Metrics;
use anyhow::Context;
pub use budget::Limits;
use crossbeam_channel::{Receiver, Sender};
use jscommon::NodeId;
use jscommon::worker::Worker;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Stack of the proxy's thread, in bytes; TLS handshakes are the deepest thing on it.
const STACK: usize = 512 * 1024;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4096;

/// Nodes that wait, each with the time at which its poll came.
pub(crate) type Seen = Vec<(NodeId, Instant)>;

/// The settings of a proxy.
pub struct ProxyConfig {
    /// Where to listen; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// TLS, or plain HTTP where there is none.
    pub tls: Option<TlsSource>,
    /// tiny_http.
    pub backend: Backend,
    /// Bounds of everything.
    pub limits: Limits,
}

/// A running proxy; dropping it stops it politely: no new connections, parked polls get 204 with
/// `Connection: close`, requests under way end, all within 5 seconds.
pub struct Handle {
    // Joined before the waker below goes: a waker that is closed before its call was heard is not heard.
    _thread: Worker,
    remote: Remote,
    addr: SocketAddr,
}

/// Talks to a running proxy from any thread; all calls return at once.
#[derive(Clone)]
pub struct Remote {
    inbox: Sender<Message>,
    woken: Arc<AtomicBool>,
    waker: Arc<mio::Waker>,
}

enum Message {
    Deliver(NodeId, Vec<u8>),
    Recheck(NodeId),
    RecheckOlder(NodeId, Instant),
    ReleasePoll(NodeId),
    RecheckAll,
    Disconnect(NodeId),
    Ping(Sender<()>),
    Stop,
}

impl Handle {
    /// Listens and starts the proxy's thread. `seen` gets the nodes whose polls wait, about
    /// once a second; `fatal` hears why when the proxy has ended without being told to.
    ///
    /// The process' limit of open files is raised as far as it may be, and the connections are fitted
    /// into it.
    pub fn start(
        mut config: ProxyConfig,
        authenticator: Arc<dyn Authenticate>,
        metrics: Arc<Metrics>,
        seen: Sender<Seen>,
        fatal: Sender<String>,
    ) -> anyhow::Result<Handle> {
        let wanted = config.limits.max_connections;
        let descriptors = budget::raise_descriptors();
        config.limits = config.limits.within(descriptors);
        if config.limits.max_connections < wanted {
            let fits = config.limits.max_connections;
            log::info!("the limit of {descriptors} open files leaves room for {fits} connections");
        }
        let listener = listen(config.listen)
            .with_context(|| format!("cannot listen on {}: choose another --port or --bind", config.listen))?;
        let addr = listener.local_addr()?;
        let (inbox, messages) = crossbeam_channel::unbounded();
        let woken = Arc::new(AtomicBool::new(false));
        let parts =
            event_loop::Parts { listener, inbox: messages, woken: woken.clone(), config, authenticator, metrics, seen };
        let (event_loop, waker) =
            event_loop::EventLoop::new(parts).context("the proxy has no way to wait for events")?;
        let thread = critical_thread::spawn("proxy", STACK, fatal, move || event_loop.run())
            .context("no thread for the proxy")?;
        let remote = Remote { inbox, woken, waker: Arc::new(waker) };
        Ok(Handle { _thread: thread, remote, addr })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// For other threads.
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.remote.send(Message::Stop);
    }
}

impl Remote {
    /// Answers the parked poll of `node` with 200 and `body` (JSON). Without one, the proxy remembers
    /// that the node was notified: the next poll goes to its handler.
    pub(crate) fn deliver(&self, node: NodeId, body: Vec<u8>) {
        self.send(Message::Deliver(node, body));
    }

    /// The registration of `node` is no longer ours, or in doubt: its parked poll, or its next one,
    /// goes to its handler again.
    pub(crate) fn recheck(&self, node: NodeId) {
        self.send(Message::Recheck(node));
    }

    /// As `recheck`, where the registration was made before `asked`, the second in which Redis was asked about it.
    pub(crate) fn recheck_older(&self, node: NodeId, asked: Instant) {
        self.send(Message::RecheckOlder(node, asked));
    }

    /// `node` polls at another controller by now: the poll that is parked here gets its 204 (nobody may
    /// be there any more: asking its handler again would take the node away from where it is), and the
    /// next one goes to its handler.
    pub(crate) fn release_poll(&self, node: NodeId) {
        self.send(Message::ReleasePoll(node));
    }

    /// As `recheck` for every node: after Redis was away, say.
    pub(crate) fn recheck_all(&self) {
        self.send(Message::RecheckAll);
    }

    /// The credentials of `node` were revoked: its connections are closed, whatever they are at, but for
    /// requests that are admitted all the same.
    pub(crate) fn disconnect(&self, node: NodeId) {
        self.send(Message::Disconnect(node));
    }

    /// Answers once the proxy's thread has come round: a sign of its life.
    pub(crate) fn ping(&self) -> Receiver<()> {
        let (answer, pong) = crossbeam_channel::bounded(1);
        self.send(Message::Ping(answer));
        pong
    }

    fn send(&self, message: Message) {
        // The proxy is gone: then there is no poll to answer either.
        if self.inbox.send(message).is_err() {
            return;
        }
        // Many messages in a row wake it once.
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Err(e) = self.waker.wake()
        {
            log::error!("the proxy cannot be woken: {e}");
        }
    }
}

fn listen(addr: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the last run that are still winding down.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
