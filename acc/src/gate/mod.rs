//! The door: the only thing here that meets the network.

pub mod tls;

use crate::metrics::Metrics;
use crate::route::Route;
use crossbeam_channel::Sender;
use jscommon::NodeId;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
pub use tls::{PeerCert, TlsSource};

/// Who may do what. Asked on the gate's own thread for each request, so it must never block.
pub trait Guard: Send + Sync + 'static {
    /// Whether this request may go on, by its head alone. The path is a known route with its right method.
    fn admit(&self, head: &Head<'_>) -> Result<Admitted, Refusal>;
}

/// The head of a request, as the guard sees it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// What is asked for.
    pub route: Route,
    /// The token of `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
    /// The client's address.
    pub peer: IpAddr,
    /// What the client's certificate says, when it gave one that our CA signed.
    pub cert: Option<&'a PeerCert>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// This node, by its credentials; it is the node of the path.
    Node(NodeId),
    /// Anybody: the path is open, or its handler checks the request itself.
    Open,
    /// Somebody who may read metrics.
    Operator,
}

/// Why a request goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The sentence of `{"error": ...}`.
    pub reason: String,
    /// The reason's name in metrics: one of a few.
    pub label: &'static str,
}

/// What a gate is started with.
pub struct GateConfig {
    /// Where to listen; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// TLS, or plain HTTP where there is none.
    pub tls: Option<TlsSource>,
    /// tiny_http's socket.
    pub backend: PathBuf,
    /// Bounds of everything.
    pub limits: Limits,
}

/// Bounds of what clients may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest time that a poll may wait.
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { wait: Duration::from_secs(60) }
    }
}

/// A running gate; dropping it stops it politely: no new connections, parked polls get 204 with
/// `Connection: close`, requests under way end, all within 5 seconds.
pub struct Handle {
    remote: Remote,
    addr: SocketAddr,
}

/// Talks to a running gate from any thread; all calls return at once.
#[derive(Clone, Debug)]
pub struct Remote {}

impl Handle {
    /// Listens and starts the gate's thread. `seen` gets the nodes whose polls the gate parked by
    /// itself, about once a second.
    pub fn start(
        config: GateConfig,
        guard: Arc<dyn Guard>,
        metrics: Arc<Metrics>,
        seen: Sender<Vec<NodeId>>,
    ) -> anyhow::Result<Handle> {
        let _ = (guard, metrics, seen, config.tls, config.backend, config.limits);
        anyhow::bail!("the gate at {} is not built yet", config.listen)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// For other threads.
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }
}

impl Remote {
    /// Answers the parked poll of `node` with 200 and `body` (JSON). Without one, the gate remembers
    /// that the bell has rung: the next poll goes to its handler.
    pub fn deliver(&self, node: NodeId, body: Vec<u8>) {
        let _ = (node, body);
    }

    /// The registration of `node` is no longer ours, or in doubt: its parked poll, or its next one,
    /// goes to its handler again.
    pub fn recall(&self, node: NodeId) {
        let _ = node;
    }

    /// As `recall` for every node: after Redis was away, say.
    pub fn recall_all(&self) {}
}
