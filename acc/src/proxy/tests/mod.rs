//! The proxy over real sockets, with an authenticator and handlers of the tests' own.

mod backend;
mod polls;
mod requests;
mod secure;

use super::*;
use crate::api::server;
use crate::auth::authenticate::{Admitted, PresentedCredentials};
use crate::http::Refusal;
use crate::http::{Reply, Request};
use crate::route::Route;
use crossbeam_channel::Receiver;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

const NODE: NodeId = NodeId { gid: 1, nid: 10 };
const LONG: Duration = Duration::from_secs(20);

/// Lets everybody be the node of its path whose token is "new", or "good" while that is not revoked.
#[derive(Default)]
struct FakeAuthenticator {
    revoked: AtomicBool,
}

impl Authenticate for FakeAuthenticator {
    fn admit(&self, head: &PresentedCredentials<'_>) -> Result<Admitted, Refusal> {
        match head.route.node() {
            None => Ok(Admitted::Open),
            Some(node) if head.bearer == Some("new") => Ok(Admitted::Node(node)),
            Some(_) if self.revoked.load(Ordering::Relaxed) => {
                Err(Refusal { status: 401, reason: "revoked: enrol it again".into(), label: "revoked" })
            }
            Some(node) if head.bearer == Some("good") => Ok(Admitted::Node(node)),
            Some(node) if head.cert.is_some_and(|cert| cert.node == node) => Ok(Admitted::Node(node)),
            Some(_) => Err(Refusal { status: 401, reason: "no good token".into(), label: "credentials" }),
        }
    }
}

/// Parks polls with `wait` > 0, hands over what `commands` holds, echoes the length of bodies.
#[derive(Default)]
struct Desk {
    asked: Mutex<Vec<String>>,
    commands: Mutex<Option<String>>,
    slow: Mutex<Option<Receiver<()>>>,
    /// As `slow`, for this node alone, and every request is handled alone.
    stuck: Mutex<Option<(u32, Receiver<()>)>>,
}

impl crate::http::Handler for Desk {
    fn handle(&self, request: &mut Request) -> Reply {
        self.asked.lock().unwrap().push(format!("{} {:?} {:?}", request.route, request.node, request.cert_issued));
        if let Some(proxy) = self.slow.lock().unwrap().clone() {
            let _ = proxy.recv();
        }
        let stuck = self.stuck.lock().unwrap().clone().filter(|(nid, _)| request.node.is_some_and(|n| n.nid == *nid));
        if let Some((_, proxy)) = stuck {
            let _ = proxy.recv();
        }
        match request.route {
            Route::Cmd(_) => match self.commands.lock().unwrap().take() {
                Some(commands) => Reply::json(commands),
                None => match request.query.first("wait").and_then(|w| w.parse().ok()) {
                    Some(0) => Reply::empty(),
                    wait => Reply::park(wait.unwrap_or(30)),
                },
            },
            Route::Log(_) => Reply::json(format!("{{\"took\":{}}}", request.body.len())),
            Route::Result(node) => Reply::json(format!("{node} {}", request.body.len())),
            Route::Stats(_) => Reply::json("x".repeat(8 * 1024 * 1024)),
            _ => Reply::json("{}"),
        }
    }

    fn max_batch(&self) -> usize {
        if self.stuck.lock().unwrap().is_some() { 1 } else { 16 }
    }
}

struct Site {
    proxy: Option<Handle>,
    server: server::Handle,
    authenticator: Arc<FakeAuthenticator>,
    desk: Arc<Desk>,
    metrics: Arc<Metrics>,
    seen: Receiver<Seen>,
    addr: SocketAddr,
}

impl Site {
    fn new(limits: Limits) -> Site {
        Site::start(limits, None)
    }

    fn start(limits: Limits, tls: Option<TlsSource>) -> Site {
        let desk = Arc::new(Desk::default());
        let server = server::Handle::start(4, desk.clone(), &crossbeam_channel::unbounded().0).unwrap();
        let metrics = Arc::new(Metrics::new());
        let (sender, seen) = crossbeam_channel::bounded(16);
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = ProxyConfig { listen, tls, backend: server.backend(), limits };
        let authenticator = Arc::new(FakeAuthenticator::default());
        let proxy =
            Handle::start(config, authenticator.clone(), metrics.clone(), sender, crossbeam_channel::unbounded().0)
                .unwrap();
        let addr = proxy.addr();
        Site { proxy: Some(proxy), server, authenticator, desk, metrics, seen, addr }
    }

    fn remote(&self) -> Remote {
        self.proxy.as_ref().unwrap().remote()
    }

    fn client(&self) -> Client {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Client { input: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    fn revoke(&self) {
        self.authenticator.revoked.store(true, Ordering::Relaxed);
        self.remote().disconnect(NODE);
    }

    fn asked(&self) -> usize {
        self.desk.asked.lock().unwrap().len()
    }

    fn wait_parked(&self, count: i64) {
        wait_until(|| self.metrics.polls_parked.get() == count);
    }

    fn refusals(&self, label: &str) -> u64 {
        self.metrics.refusals.with_label_values(&[label]).get()
    }
}

#[track_caller]
fn wait_until(done: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Client {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Got {
    fn closes(&self) -> bool {
        self.head.contains("Connection: close\r\n")
    }
}

impl Client {
    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    fn poll(&mut self, query: &str) {
        self.send(format!("GET /1/10/cmd?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"));
    }

    fn post(&mut self, path: &str, body: &[u8]) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(head);
        self.send(body);
    }

    /// The next answer; nothing when the connection ends instead.
    fn answer(&mut self) -> Option<Got> {
        let mut head = String::new();
        loop {
            let at = head.len();
            if self.input.read_line(&mut head).ok()? == 0 {
                return None;
            }
            if head[at..] == *"\r\n" {
                break;
            }
        }
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).map_or(0, |l| l.parse().unwrap());
        let mut body = vec![0; length];
        self.input.read_exact(&mut body).ok()?;
        Some(Got { status, head, body })
    }

    #[track_caller]
    fn expect(&mut self, status: u16) -> Got {
        let got = self.answer().expect("the connection ended");
        assert_eq!(got.status, status, "{} {}", got.head, String::from_utf8_lossy(&got.body));
        got
    }
}

/// About as long as a body may be that does not hold up the request behind it.
const QUICK: usize = 960;
