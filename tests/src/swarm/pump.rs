//! One thread of the swarm: the sockets of its nodes, moved by mio.

use super::http::{self, Answer};
use super::node::{Next, Node};
use super::{Arrived, Order, SwarmOptions, Tally};
use crossbeam_channel::{Receiver, Sender};
use jscommon::NodeId;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::errno::Errno;
use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use socket2::{Domain, Socket, Type};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const WAKER: Token = Token(usize::MAX - 1);

struct Line {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    out: Vec<u8>,
    input: Vec<u8>,
    connected: bool,
}

struct Place {
    node: Node,
    line: Option<Line>,
    back_at: Option<Instant>,
    /// A controller asked it to stay away until then.
    asked_away: Option<Instant>,
}

pub(crate) struct Pump {
    poll: Poll,
    options: SwarmOptions,
    places: Vec<Place>,
    returns: BinaryHeap<Reverse<(Instant, usize)>>,
    tally: Arc<Tally>,
    told: Sender<Arrived>,
    orders: Receiver<Order>,
    /// Connections that nobody looks at any more.
    half_open: Vec<Line>,
}

fn clock_ms() -> u64 {
    crate::now_ms().unsigned_abs()
}

impl Pump {
    pub(crate) fn new(
        options: SwarmOptions,
        nids: Vec<u32>,
        tally: Arc<Tally>,
        told: Sender<Arrived>,
        orders: Receiver<Order>,
    ) -> io::Result<(Pump, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let now = Instant::now();
        let place = |nid| {
            let node = Node::new(NodeId { gid: options.gid, nid }, &options, now, clock_ms());
            Place { node, line: None, back_at: None, asked_away: None }
        };
        let places: Vec<Place> = nids.into_iter().map(place).collect();
        let (returns, half_open) = (BinaryHeap::new(), Vec::new());
        let mut pump = Pump { poll, options, places, returns, tally, told, orders, half_open };
        (0..pump.places.len()).for_each(|at| pump.come_back(at, pump.options.spread.mul_f64(fastrand::f64())));
        Ok((pump, waker))
    }

    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let next = self.returns.peek().map(|Reverse((at, _))| at.saturating_duration_since(Instant::now()));
            if let Err(e) = self.poll.poll(&mut events, next)
                && e.kind() != ErrorKind::Interrupted
            {
                return;
            }
            while let Ok(order) = self.orders.try_recv() {
                match order {
                    Order::Stop => return self.stop(),
                    other => self.obey(&other),
                }
            }
            for event in &events {
                if event.token() != WAKER {
                    self.drive(event.token().0);
                }
            }
            // Some at a time: a whole fleet that connects in one go would not be served meanwhile.
            for _ in 0..64 {
                match self.returns.peek() {
                    Some(Reverse((at, _))) if *at <= Instant::now() => {}
                    _ => break,
                }
                if let Some(Reverse((at, place))) = self.returns.pop()
                    && self.places[place].back_at == Some(at)
                {
                    match self.places[place].line {
                        Some(_) => {
                            self.places[place].back_at = None;
                            self.ask(place);
                        }
                        None => self.connect(place),
                    }
                }
            }
        }
    }

    fn obey(&mut self, order: &Order) {
        let all = 0..self.places.len();
        match order {
            Order::Stop => {}
            Order::Controllers(controllers) => self.options.controllers = controllers.clone(),
            Order::Restart => {
                for at in all {
                    self.hang_up(at);
                    self.places[at].node.stopped(&self.options);
                    self.come_back(at, self.options.spread.mul_f64(fastrand::f64()));
                }
            }
            Order::Come(within) => {
                let now = Instant::now();
                for at in all.filter(|at| self.places[*at].back_at.is_some()).collect::<Vec<usize>>() {
                    let asked = self.places[at].asked_away.map_or(Duration::ZERO, |until| until - now.min(until));
                    self.come_back(at, within.mul_f64(fastrand::f64()).max(asked));
                }
            }
            Order::Cut(share) => {
                for at in all.filter(|_| fastrand::f64() < *share) {
                    self.hang_up(at);
                    let pause = self.places[at].node.lost();
                    self.come_back(at, pause);
                }
            }
            Order::HalfOpen(share) => {
                for at in all.filter(|_| fastrand::f64() < *share) {
                    if let Some(mut line) = self.take_line(at) {
                        let _ = self.poll.registry().deregister(&mut line.stream);
                        self.half_open.push(line);
                    }
                    let pause = self.places[at].node.lost();
                    self.come_back(at, pause);
                }
            }
        }
    }

    fn stop(&mut self) {
        (0..self.places.len()).for_each(|at| self.hang_up(at));
    }

    fn come_back(&mut self, at: usize, pause: Duration) {
        let when = Instant::now() + pause;
        self.places[at].back_at = Some(when);
        self.returns.push(Reverse((when, at)));
    }

    /// Takes the line out of the counts.
    fn take_line(&mut self, at: usize) -> Option<Line> {
        let place = &mut self.places[at];
        let line = place.line.take()?;
        self.tally.connected.fetch_sub(i64::from(line.connected), Relaxed);
        if place.node.polls() {
            self.tally.polling.fetch_sub(1, Relaxed);
        }
        Some(line)
    }

    fn hang_up(&mut self, at: usize) {
        if let Some(mut line) = self.take_line(at) {
            let _ = self.poll.registry().deregister(&mut line.stream);
        }
    }

    fn connect(&mut self, at: usize) {
        let place = &mut self.places[at];
        place.back_at = None;
        if place.asked_away.take().is_some_and(|until| until > Instant::now()) {
            self.tally.too_early.fetch_add(1, Relaxed);
        }
        place.node.turns += 1;
        let controller = self.options.controllers[place.node.turns % self.options.controllers.len()];
        let source = self.options.many_sources.then(|| Ipv4Addr::new(127, 0, 1, (place.node.id.nid % 200 + 1) as u8));
        let made = open(controller, source).and_then(|mut stream| {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(at), both)?;
            let tls = self.options.tls.clone().map(|config| {
                let name = ServerName::try_from("localhost").expect("a good name");
                ClientConnection::new(config, name).map(Box::new).map_err(io::Error::other)
            });
            Ok(Line { stream, tls: tls.transpose()?, out: Vec::new(), input: Vec::new(), connected: false })
        });
        match made {
            Ok(line) => place.line = Some(line),
            Err(_) => self.lost(at),
        }
    }

    fn lost(&mut self, at: usize) {
        self.tally.cut.fetch_add(1, Relaxed);
        self.hang_up(at);
        let pause = self.places[at].node.lost();
        self.come_back(at, pause);
    }

    fn drive(&mut self, at: usize) {
        let Some(line) = self.places.get_mut(at).and_then(|place| place.line.as_mut()) else {
            return;
        };
        let ended = match line.turn() {
            Ok(ended) => ended,
            Err(_) => return self.lost(at),
        };
        if !line.connected && line.is_ready() {
            line.connected = true;
            self.tally.connected.fetch_add(1, Relaxed);
            self.tally.connects.fetch_add(1, Relaxed);
            self.ask(at);
        }
        while let Some(line) = self.places[at].line.as_mut()
            && let Some(answer) = http::take(&mut line.input)
        {
            // It may hang up, and so may the last answer before the end.
            self.answered(at, &answer);
        }
        if ended && self.places[at].line.is_some() {
            self.lost(at);
        }
    }

    fn ask(&mut self, at: usize) {
        if let Some(pause) = self.places[at].node.pause(Instant::now()) {
            return self.come_back(at, pause);
        }
        let place = &mut self.places[at];
        let Some(line) = place.line.as_mut() else {
            return;
        };
        line.out.extend(place.node.ask(&self.options, Instant::now(), clock_ms()));
        let sent = line.turn();
        if place.node.polls() {
            self.tally.polling.fetch_add(1, Relaxed);
        }
        if sent.unwrap_or(true) {
            self.lost(at);
        }
    }

    fn answered(&mut self, at: usize, answer: &Answer) {
        let place = &mut self.places[at];
        if place.node.polls() {
            self.tally.polling.fetch_sub(1, Relaxed);
        }
        let told = &self.told;
        let next = place.node.answered(answer, &self.tally, clock_ms(), |arrived| {
            let _ = told.send(arrived);
        });
        match next {
            Next::Ask => self.ask(at),
            Next::Back(pause) => {
                let asked = answer.retry_after.filter(|_| matches!(answer.status, 429 | 503));
                self.places[at].asked_away = asked.map(|seconds| Instant::now() + Duration::from_secs(seconds));
                self.hang_up(at);
                self.come_back(at, pause);
            }
        }
    }
}

/// Begins to connect, from this address where there is one.
fn open(controller: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(controller) };
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    match socket.connect(&controller.into()) {
        Err(e) if e.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(e),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

impl Line {
    fn is_ready(&self) -> bool {
        match &self.tls {
            Some(tls) => !tls.is_handshaking(),
            None => self.stream.peer_addr().is_ok(),
        }
    }

    /// Writes and reads what can be; whether the other side has ended.
    fn turn(&mut self) -> io::Result<bool> {
        let would_block = |e: &io::Error| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected);
        let mut buf = [0; 8192];
        match &mut self.tls {
            None => {
                if !self.out.is_empty() && self.stream.peer_addr().is_ok() {
                    match self.stream.write(&self.out) {
                        Ok(n) => drop(self.out.drain(..n)),
                        Err(e) if would_block(&e) => {}
                        Err(e) => return Err(e),
                    }
                }
                loop {
                    match self.stream.read(&mut buf) {
                        Ok(0) => return Ok(true),
                        Ok(n) => self.input.extend_from_slice(&buf[..n]),
                        Err(e) if would_block(&e) => return Ok(false),
                        Err(e) => return Err(e),
                    }
                }
            }
            Some(tls) => {
                if !self.out.is_empty() && !tls.is_handshaking() {
                    tls.writer().write_all(&self.out)?;
                    self.out = Vec::new();
                }
                loop {
                    while tls.wants_write() {
                        match tls.write_tls(&mut self.stream) {
                            Ok(_) => {}
                            Err(e) if would_block(&e) => break,
                            Err(e) => return Err(e),
                        }
                    }
                    match tls.read_tls(&mut self.stream) {
                        Ok(0) => return Ok(true),
                        Ok(_) => {}
                        Err(e) if would_block(&e) => return Ok(false),
                        Err(e) => return Err(e),
                    }
                    tls.process_new_packets().map_err(io::Error::other)?;
                    loop {
                        match tls.reader().read(&mut buf) {
                            Ok(0) => return Ok(true),
                            Ok(n) => self.input.extend_from_slice(&buf[..n]),
                            Err(e) if would_block(&e) => break,
                            Err(e) => return Err(e),
                        }
                    }
                }
            }
        }
    }
}
