//! The cost of clients without credentials: polls that honest nodes have answered beside a thousand of them, and what one
//! of each kind takes of the controller; and the cost of authentication (`sessions`).

use crate::Options;
use crate::measure::{Case, interleaved, ms, quantile};
use crate::table::{Table, number};
use anyhow::{Context, Result};
use jscommon::NodeId;
use jstests::swarm::{read_secret, trusting};
use jstests::{Acc, AccOptions, FakeNode, LONG, Redis, proc, wait_until};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Threads that poll without a pause, each on its kept connection.
const HONEST: u32 = 4;
/// Nodes of each of them in turn, for one that polls for nothing too often is told to wait.
const NODES: u32 = 1000;

type Begin = fn(&Target) -> Result<Held>;

/// The clients that wait: what each of them does, and how one begins.
const WAITING: &[(&str, Begin)] =
    &[("silent", silent), ("stalled handshakes", stalled), ("heads that never end, over TLS", slow_head)];

/// The clients that come again and again, one after the other, from two threads.
const COMING: &[(&str, Begin)] =
    &[("garbage", garbage), ("handshakes without a request", hello), ("bad tokens", bad_token)];

/// The connection of a client that waits.
type Held = Box<dyn Send>;

struct Target {
    acc: Acc,
    tls: Arc<ClientConfig>,
}

impl Target {
    fn dial(&self) -> Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.acc.port())).context("connect to the controller")
    }

    fn handshake(&self) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let name = ServerName::try_from("localhost").context("a server's name")?;
        let mut stream = StreamOwned::new(ClientConnection::new(self.tls.clone(), name)?, self.dial()?);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(stream)
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let (clients, seconds) = if options.quick { (50, 0.3) } else { (1000, 2.0) };
    let redis = Redis::start();
    let quiet = vec!["--log-level".to_owned(), "warn".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet, ..AccOptions::secure() });
    let tls = trusting(&acc.ca().context("the controller's CA")?)?;
    let nodes: Vec<FakeNode> = honest_nodes(&acc)?;
    let target = Arc::new(Target { acc, tls });

    let mut cases = vec![Case::new("alone", || honest(&nodes, seconds, &target))];
    for (name, begin) in WAITING {
        let (nodes, target) = (&nodes, &target);
        cases.push(Case::new(name, move || {
            let used = proc::cpu(target.acc.pid())?;
            let held = (0..clients).map(|_| begin(target)).collect::<Result<Vec<Held>>>()?;
            let cost = 1e6 * (proc::cpu(target.acc.pid())? - used) / f64::from(clients);
            let mut figures = honest(nodes, seconds, target)?;
            figures[4] = cost;
            drop(held);
            Ok(figures)
        }));
    }
    for (name, begin) in COMING {
        let (nodes, target) = (&nodes, &target);
        cases.push(Case::new(name, move || {
            let (begun, end) = (Arc::new(std::sync::atomic::AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
            let come = |_| {
                let (target, begun, end, begin) = (target.clone(), begun.clone(), end.clone(), *begin);
                thread::spawn(move || {
                    while !end.load(Ordering::Relaxed) {
                        if begin(&target).is_ok() {
                            begun.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            };
            let used = proc::cpu(target.acc.pid())?;
            let threads: Vec<JoinHandle<()>> = (0..2).map(come).collect();
            let mut figures = honest(nodes, seconds, target)?;
            end.store(true, Ordering::Relaxed);
            threads.into_iter().for_each(|thread| drop(thread.join()));
            let count = begun.load(Ordering::Relaxed).max(1) as f64;
            // The figure includes the cost of the honest polls: it is an upper bound.
            figures[4] = 1e6 * (proc::cpu(target.acc.pid())? - used) / count;
            figures.push(count / seconds);
            Ok(figures)
        }));
    }
    let mut medians = interleaved(options.rounds, &mut cases)?;
    drop(cases);
    for ((_, begin), figures) in WAITING.iter().zip(&mut medians[1..]) {
        figures[3] = memory_each(*begin, clients)?;
    }

    let alone = medians[0].clone();
    let heads = ["honest polls over TLS", "polls/s", "p50 ms", "p99 ms", "p99 ratio", "KB each", "CPU us each"];
    let mut table = Table::new(&heads);
    let names = std::iter::once(("alone".to_owned(), false))
        .chain(WAITING.iter().map(|(name, _)| (format!("beside {clients} {name}"), false)))
        .chain(COMING.iter().map(|(name, _)| (format!("beside {name}, as fast as they come"), true)));
    for ((name, coming), figures) in names.zip(&medians) {
        let mut cells =
            vec![name, number(figures[0]), number(figures[1]), number(figures[2]), number(figures[2] / alone[2])];
        if cells[0] != "alone" {
            cells.push(if coming { String::new() } else { number(figures[3]) });
            cells.push(number(figures[4]));
        }
        table.row(cells);
    }
    table.print();
    println!(
        "\naim: p99 at most doubled beside 1,000 of them; those that come as fast as they can share two cores with all"
    );
    crate::sessions::run(options)
}

/// KB that one more such client takes of a controller that has seen none before: one that has keeps the
/// memory of those that left for those that come.
fn memory_each(begin: Begin, clients: u32) -> Result<f64> {
    let redis = Redis::start();
    let quiet = vec!["--log-level".to_owned(), "warn".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet, ..AccOptions::secure() });
    let tls = trusting(&acc.ca().context("the controller's CA")?)?;
    let target = Target { acc, tls };
    let connections = || {
        let text = target.acc.anonymous().get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix("jsacc_connections "));
        line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let before = proc::memory(target.acc.pid())? as f64;
    let held = (0..clients).map(|_| begin(&target)).collect::<Result<Vec<Held>>>()?;
    wait_until("all are in", LONG, || connections() >= f64::from(clients));
    let grown = proc::memory(target.acc.pid())? as f64 - before;
    drop(held);
    Ok(grown / f64::from(clients) / 1e3)
}

/// Nodes for all pollers, one after the other.
fn honest_nodes(acc: &Acc) -> Result<Vec<FakeNode>> {
    let secret = read_secret(&acc.state_dir().join("node.secret"))?;
    let issued = jstests::now_ms() as u64;
    let first = acc.node(1, 1);
    let node = |nid| {
        let mut node = first.with_token(Some(&secret.issue(NodeId { gid: 1, nid }, issued)));
        node.nid = nid;
        node
    };
    Ok((1..=HONEST * NODES).map(node).collect())
}

/// Polls of all honest nodes for a time: polls a second, p50 and p99 in ms, and room for two more figures.
fn honest(nodes: &[FakeNode], seconds: f64, _door: &Target) -> Result<Vec<f64>> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let poller = |nodes: &[FakeNode]| {
        let nodes = nodes.to_vec();
        thread::spawn(move || {
            let mut times = Vec::new();
            for node in nodes.iter().cycle().take_while(|_| Instant::now() < until) {
                let start = Instant::now();
                let reply = node.get(&node.path("cmd?wait=0"));
                anyhow::ensure!(reply.status == 204, "an honest poll was answered {reply:?}");
                times.push(ms(start.elapsed()));
            }
            Ok(times)
        })
    };
    let threads: Vec<JoinHandle<Result<Vec<f64>>>> = nodes.chunks(NODES as usize).map(poller).collect();
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().map_err(|_| anyhow::anyhow!("a poller panicked"))??);
    }
    Ok(vec![times.len() as f64 / seconds, quantile(&times, 0.5), quantile(&times, 0.99), 0.0, 0.0])
}

fn silent(target: &Target) -> Result<Held> {
    Ok(Box::new(target.dial()?))
}

fn stalled(target: &Target) -> Result<Held> {
    let mut stream = target.dial()?;
    stream.write_all(b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03")?;
    Ok(Box::new(stream))
}

fn slow_head(target: &Target) -> Result<Held> {
    let mut stream = target.handshake()?;
    stream.write_all(b"GET /hea")?;
    Ok(Box::new(stream))
}

fn garbage(target: &Target) -> Result<Held> {
    let mut stream = target.dial()?;
    stream.write_all(b"\xff\xff\xff\xff\xff\xff\xff\xff")?;
    let _ = stream.read(&mut [0; 64]);
    Ok(Box::new(()))
}

fn hello(target: &Target) -> Result<Held> {
    drop(target.handshake()?);
    Ok(Box::new(()))
}

fn bad_token(target: &Target) -> Result<Held> {
    let mut stream = target.handshake()?;
    stream.write_all(b"GET /1/1/cmd?wait=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer 1.1.1.AAAA\r\n\r\n")?;
    let _ = stream.read(&mut [0; 512]);
    Ok(Box::new(()))
}
