//! Thousands of nodes on a few threads, as a controller sees them.
//!
//! **In scope**: the wire side of nodes over TLS or plain HTTP: polls with acknowledgements, results,
//! records and stats, full jitter when they come back, cut and half-open connections, all of them at once.
//! **Out of scope**: running anything. Every command is answered at once, with `"pong"`, but for `lines N` with a watch:
//! a node then sends so many lines as live output, ten a second, before its result.
//!
//! Each node has one connection, on which it does one thing after the other (an agent has two). Which
//! node is on which thread is its place in the list; threads share nothing but counters.

pub(crate) mod http;
mod live;
mod node;
mod pump;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use jscommon::NodeId;
use jscommon::token::NodeSecret;
use jscommon::worker::Worker;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The settings of a swarm.
#[derive(Clone)]
pub struct SwarmOptions {
    /// The controllers, tried in turn.
    pub controllers: Vec<SocketAddr>,
    /// TLS with a server that this knows; plain HTTP without.
    pub tls: Option<Arc<ClientConfig>>,
    /// Signs the nodes' tokens; without it they have none.
    pub secret: Option<NodeSecret>,
    /// Their grid.
    pub gid: u32,
    /// The node id of the first.
    pub first: u32,
    /// How many; their node ids follow each other.
    pub nodes: u32,
    /// They come from 200 addresses of loopback: one address has some 28,000 ports towards one controller, and
    /// the kernel searches long for the last half of them.
    pub many_sources: bool,
    /// Their roles.
    pub roles: Vec<String>,
    /// Seconds of a poll.
    pub wait: u32,
    /// How many threads play them.
    pub threads: usize,
    /// They connect at a random moment of this time, at first and after `restart`.
    pub spread: Duration,
    /// Each sends a record and then a batch of series about so often.
    pub chatter: Option<Duration>,
    /// Each sends a startup event first.
    pub startup: bool,
}

impl SwarmOptions {
    /// `nodes` nodes of grid 1 at one controller: plain HTTP, no token, `wait=30`, all at once.
    pub fn new(controller: SocketAddr, nodes: u32) -> SwarmOptions {
        SwarmOptions {
            controllers: vec![controller],
            tls: None,
            secret: None,
            gid: 1,
            first: 1,
            nodes,
            many_sources: false,
            roles: vec!["swarm".to_owned()],
            wait: 30,
            threads: 1,
            spread: Duration::ZERO,
            chatter: None,
            startup: false,
        }
    }

    /// The TLS and the secret of the controller whose state directory this is.
    pub fn secured_by(mut self, state_dir: &Path) -> Result<SwarmOptions> {
        self.tls = Some(trusting(&state_dir.join("ca.pem"))?);
        self.secret = Some(read_secret(&state_dir.join("node.secret"))?);
        Ok(self)
    }
}

/// A client's TLS that trusts one CA. Sessions are not resumed: that is what costs a controller most.
pub fn trusting(ca: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(ca).with_context(|| format!("read {}", ca.display()))? {
        roots.add(cert?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The current node secret of a state directory.
pub fn read_secret(file: &Path) -> Result<NodeSecret> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let line = text.lines().find(|line| !line.trim().contains(' ')).context("no current secret")?.trim();
    let digit = |i: usize| line.get(i..i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..line.len()).step_by(2).map(digit).collect();
    Ok(NodeSecret::new(&bytes.context("the node secret is not hex")?))
}

/// The observations of the swarm, counted over all nodes.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that are through their handshake now.
    pub connected: AtomicI64,
    /// Polls that are out now.
    pub polling: AtomicI64,
    /// Connections that were made.
    pub connects: AtomicU64,
    /// Polls that were answered with 204.
    pub idle_polls: AtomicU64,
    /// Commands that came, repetitions included.
    pub commands: AtomicU64,
    /// Commands that came to a node that had them already.
    pub repeated: AtomicU64,
    /// Results that the controller took.
    pub results: AtomicU64,
    /// Records that the controller took.
    pub records: AtomicU64,
    /// Batches of series that the controller took.
    pub stats: AtomicU64,
    /// Requests with live output.
    pub live: AtomicU64,
    /// Startup events that the controller took.
    pub startups: AtomicU64,
    /// Answers that asked to come again later (429 and 503).
    pub put_off: AtomicU64,
    /// Of these the ones that named no time.
    pub put_off_without_time: AtomicU64,
    /// Nodes that came back before the time that their answer had named; there may be none.
    pub too_early: AtomicU64,
    /// Connections that ended before their answer.
    pub cut: AtomicU64,
    /// Answers of other kinds, by status.
    pub others: Mutex<BTreeMap<u16, u64>>,
}

/// A command that came to a node.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Its id.
    pub id: String,
    /// The node.
    pub node: NodeId,
    /// When the node had read it.
    pub at: Instant,
}

/// An order to one of its threads.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Close everything, come back within the spread.
    Restart,
    /// Close a share of the connections (0 to 1), some without a word.
    Cut(f64),
    /// Forget a share of the connections without closing them, and come back on new ones.
    HalfOpen(f64),
    /// Nodes that connect from now on go to these.
    Controllers(Vec<SocketAddr>),
    /// Nodes that wait to come back, but for those who were told until when, come within this time.
    Come(Duration),
    Stop,
}

/// A running swarm; dropping it ends it.
pub struct Swarm {
    orders: Vec<(Sender<Order>, Arc<mio::Waker>)>,
    _threads: Vec<Worker>,
    /// The observations so far.
    pub tally: Arc<Tally>,
    /// Every command that came; read it, or it grows.
    pub arrivals: Receiver<Arrived>,
    nodes: i64,
}

impl Swarm {
    /// Starts the nodes; `wait_polling` tells when they are all there.
    pub fn start(options: SwarmOptions) -> Result<Swarm> {
        let tally = Arc::new(Tally::default());
        let (told, arrivals) = unbounded();
        let mut swarm = Swarm {
            orders: Vec::new(),
            _threads: Vec::new(),
            tally: tally.clone(),
            arrivals,
            nodes: i64::from(options.nodes),
        };
        let threads = options.threads.max(1) as u32;
        for thread in 0..threads {
            let (order, orders) = bounded(16);
            let nids = (options.first..options.first + options.nodes).filter(|nid| nid % threads == thread).collect();
            let (pump, waker) = pump::Pump::new(options.clone(), nids, tally.clone(), told.clone(), orders)?;
            swarm._threads.push(Worker::spawn(&format!("swarm-{thread}"), 1024 * 1024, move || pump.run())?);
            swarm.orders.push((order, Arc::new(waker)));
        }
        Ok(swarm)
    }

    /// All nodes stop at once and come back.
    pub fn restart(&self) {
        self.tell(&Order::Restart);
    }

    /// A share of the nodes (0 to 1) loses its connection.
    pub fn cut(&self, share: f64) {
        self.tell(&Order::Cut(share));
    }

    /// A share of the nodes (0 to 1) leaves its connection half open, as a node that lost its power does.
    pub fn half_open(&self, share: f64) {
        self.tell(&Order::HalfOpen(share));
    }

    /// Nodes that connect from now on go to these controllers.
    pub fn redirect(&self, controllers: Vec<SocketAddr>) {
        self.tell(&Order::Controllers(controllers));
    }

    /// Nodes that wait for their next try come at a random moment of `within`, however long they had meant
    /// to wait, as a fleet does whose network is back; who was asked to stay away longer does.
    pub fn come(&self, within: Duration) {
        self.tell(&Order::Come(within));
    }

    /// Waits until every node's poll is out; how long that took, or an error after `limit`.
    pub fn wait_polling(&self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        while self.tally.polling.load(Ordering::Relaxed) < self.nodes {
            anyhow::ensure!(start.elapsed() < limit, "not all poll after {limit:?}: {:?}", self.tally);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(start.elapsed())
    }

    fn tell(&self, order: &Order) {
        for (orders, waker) in &self.orders {
            if orders.send(order.clone()).is_ok() {
                let _ = waker.wake();
            }
        }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.tell(&Order::Stop);
        // The wakers must outlive the threads that they wake.
        self._threads.clear();
    }
}
