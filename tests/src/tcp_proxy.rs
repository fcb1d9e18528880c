//! A TCP proxy that cuts and stalls connections, and looks at no byte of them.
//!
//! One that knows HTTP, and answers by rule, is [`crate::Proxy`].

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Bytes that are forwarded at once.
const CHUNK: usize = 16 * 1024;

#[derive(Default)]
struct Flow {
    stalled: bool,
    /// Bytes that are forwarded yet, before everything is cut and stalls.
    allowance: Option<usize>,
    /// Both ends of every open connection, by number.
    open: Vec<(u64, TcpStream)>,
    next: u64,
}

impl Flow {
    fn cut(&mut self) -> usize {
        let ends = self.open.len();
        self.open.drain(..).for_each(|(_, stream)| drop(stream.shutdown(Shutdown::Both)));
        ends / 2
    }

    /// Counts bytes that this connection has forwarded, unless it was cut since, and cuts everything where those were
    /// the last.
    fn spend(&mut self, number: u64, bytes: usize) {
        if self.open.iter().all(|(open, _)| *open != number) {
            return;
        }
        self.allowance = self.allowance.map(|left| left.saturating_sub(bytes));
        if self.allowance == Some(0) {
            (self.allowance, self.stalled) = (None, true);
            self.cut();
        }
    }
}

struct Shared {
    upstream: SocketAddr,
    flow: Mutex<Flow>,
    flows: Condvar,
    stopping: AtomicBool,
}

/// A running proxy; its threads and connections end when it is dropped.
pub struct TcpProxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl TcpProxy {
    /// Starts a proxy in front of the server on loopback port `upstream`.
    pub fn start(upstream: u16) -> TcpProxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for the proxy");
        let port = listener.local_addr().expect("the proxy's address").port();
        let shared = Arc::new(Shared {
            upstream: SocketAddr::from(([127, 0, 0, 1], upstream)),
            flow: Mutex::default(),
            flows: Condvar::new(),
            stopping: AtomicBool::new(false),
        });
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener)
        });
        TcpProxy { port, shared, accepting: Some(accepting) }
    }

    /// Returns the port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts all connections, and returns how many there were.
    pub fn cut(&self) -> usize {
        self.shared.flow().cut()
    }

    /// Cuts all connections and stalls, once about so many bytes more were forwarded.
    pub fn stall_after(&self, bytes: usize) {
        self.shared.flow().allowance = Some(bytes);
    }

    /// Whether nothing is forwarded now.
    pub fn is_stalled(&self) -> bool {
        self.shared.flow().stalled
    }

    /// Forwards nothing while `stalled`, and everything afterwards.
    pub fn stall(&self, stalled: bool) {
        self.shared.flow().stalled = stalled;
        self.shared.flows.notify_all();
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.stall(false);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Shared>, listener: &TcpListener) {
        let mut pumps: Vec<JoinHandle<()>> = Vec::new();
        for client in listener.incoming() {
            if self.stopping.load(Ordering::SeqCst) {
                break;
            }
            pumps.retain(|pump| !pump.is_finished());
            // A server that is away refuses, and so does the proxy.
            let Ok(client) = client else { continue };
            let Ok(server) = TcpStream::connect(self.upstream) else { continue };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let Some(number) = self.keep(&client, &server) else { continue };
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                let shared = self.clone();
                pumps.push(std::thread::spawn(move || shared.pump(number, from, to)));
            }
        }
        pumps.into_iter().for_each(|pump| drop(pump.join()));
    }

    /// Registers both ends, to be cut; nothing where that cannot be done.
    fn keep(&self, client: &TcpStream, server: &TcpStream) -> Option<u64> {
        let ends = [client.try_clone().ok()?, server.try_clone().ok()?];
        let mut flow = self.flow();
        // A connection that comes after the last cut would never end.
        if self.stopping.load(Ordering::SeqCst) {
            return None;
        }
        let number = flow.next;
        flow.next += 1;
        flow.open.extend(ends.map(|end| (number, end)));
        Some(number)
    }

    /// Forwards one direction until it ends; then both do.
    fn pump(&self, number: u64, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            drop(self.flows.wait_while(self.flow(), |flow| flow.stalled).unwrap_or_else(PoisonError::into_inner));
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
            self.flow().spend(number, count);
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        self.flow().open.retain(|(open, _)| *open != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{LONG, SHORT, wait_until};

    /// A server that sends back what it gets.
    fn echo() -> (u16, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || {
            for mut stream in listener.incoming().take(2).flatten() {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            }
        };
        (port, std::thread::spawn(serve))
    }

    #[test]
    fn stalled_connection_goes_on_and_a_cut_one_ends() {
        let (port, server) = echo();
        let proxy = TcpProxy::start(port);
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        let mut byte = [0];
        client.write_all(b"a").unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"a");
        proxy.stall(true);
        client.write_all(b"b").unwrap();
        client.set_read_timeout(Some(SHORT)).unwrap();
        assert!(client.read_exact(&mut byte).is_err(), "nothing passes");
        proxy.stall(false);
        client.set_read_timeout(Some(LONG)).unwrap();
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"b");
        assert_eq!(proxy.cut(), 1);
        assert_eq!(client.read(&mut byte).unwrap_or(0), 0);
        // Another one passes, but for what comes after its last byte.
        proxy.stall_after(1);
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        client.write_all(b"c").unwrap();
        assert!(matches!(client.read(&mut byte), Ok(0)), "the answer is cut off");
        assert!(proxy.is_stalled());
        proxy.stall(false);
        drop(client);
        wait_until("the proxy forgets it", LONG, || proxy.shared.flow().open.is_empty());
        drop(proxy);
        server.join().unwrap();
    }
}
