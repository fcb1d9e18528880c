//! The proxy over real sockets, with an authenticator and handlers of the tests' own.

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
    /// As `slow`, for this node alone, and whoever else is asked is asked alone.
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
    _server: server::Handle,
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
        Site { proxy: Some(proxy), _server: server, authenticator, desk, metrics, seen, addr }
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

#[test]
fn requests_come_one_after_the_other_on_one_connection() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    for length in [0, 5, 100_000, 3_000_000] {
        client.post("/1/10/log", &vec![b'x'; length]);
        let got = client.expect(200);
        assert_eq!(String::from_utf8_lossy(&got.body), format!("{{\"took\":{length}}}"));
        assert!(!got.closes());
    }
    client.send("GET /health HTTP/1.0\r\n\r\n");
    assert!(client.expect(200).closes());
    assert!(client.answer().is_none());
    assert!(site.desk.asked.lock().unwrap()[0].contains("Some(NodeId { gid: 1, nid: 10 })"));
    assert_eq!(site.metrics.requests.with_label_values(&["log", "200"]).get(), 4);
    wait_until(|| site.metrics.body_bytes.get() == 0);
}

#[test]
fn poll_that_waits_is_refused_when_its_node_is_revoked() {
    let site = Site::new(Limits::default());
    let (mut client, mut idle) = (site.client(), site.client());
    idle.poll("wait=0");
    idle.expect(204);
    client.poll("wait=30");
    site.wait_parked(1);
    site.revoke();
    let got = client.expect(401);
    assert!(got.closes() && String::from_utf8_lossy(&got.body).contains("enrol it again"), "{got:?}");
    assert!(client.answer().is_none() && idle.answer().is_none(), "both connections end");
    site.wait_parked(0);
    assert_eq!(site.refusals("expelled"), 2);
}

#[test]
fn poll_of_a_node_that_was_enrolled_since_its_revocation_goes_on() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.send("GET /1/10/cmd?wait=30 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer new\r\n\r\n");
    site.wait_parked(1);
    site.revoke();
    site.remote().deliver(NODE, b"{}".to_vec());
    assert_eq!(client.expect(200).body, b"{}");
    assert_eq!(site.refusals("expelled"), 0);
}

#[test]
fn a_big_answer_comes_whole() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.post("/1/10/stats", b"");
    assert_eq!(client.expect(200).body.len(), 8 * 1024 * 1024);
}

#[test]
fn credentials_are_checked_before_the_body() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.send("POST /1/10/log HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer bad\r\nContent-Length: 16000000\r\n\r\n");
    let got = client.expect(401);
    assert!(got.body.starts_with(br#"{"error":"no good token","time":"#));
    assert!(got.closes());
    assert_eq!((site.asked(), site.refusals("credentials")), (0, 1));
    assert_eq!(site.metrics.requests.with_label_values(&["log", "401"]).get(), 1);
}

#[test]
fn one_node_cannot_take_all_connections() {
    let site = Site::new(Limits { max_node_connections: 2, ..Limits::default() });
    let mut held = [site.client(), site.client()];
    for client in &mut held {
        client.poll("wait=0");
        client.expect(204);
    }
    let mut third = site.client();
    third.poll("wait=0");
    let got = third.expect(429);
    assert!(got.closes() && got.head.contains("Retry-After: "), "{}", got.head);
    assert_eq!(site.refusals("node-connections"), 1);
    let mut other = site.client();
    other.send("GET /1/11/cmd?wait=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n");
    other.expect(204);
    drop(held);
    wait_until(|| {
        let mut again = site.client();
        again.poll("wait=0");
        again.answer().is_some_and(|got| got.status == 204)
    });
}

#[test]
fn a_parked_poll_gets_what_is_delivered() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.poll("wait=30");
    site.wait_parked(1);
    site.remote().deliver(NODE, b"{\"batch\":\"1\"}".to_vec());
    assert_eq!(client.expect(200).body, b"{\"batch\":\"1\"}");
    site.wait_parked(0);
    // The next poll acknowledges: its handler sees it.
    client.poll("wait=30&ack=1");
    site.wait_parked(1);
    assert_eq!(site.asked(), 2);
}

#[test]
fn an_idle_poll_gets_204_and_the_next_one_is_parked_by_the_proxy() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    for _ in 0..3 {
        let start = Instant::now();
        client.poll("wait=1");
        assert!(!client.expect(204).closes());
        assert!(start.elapsed() >= Duration::from_millis(990));
    }
    assert_eq!((site.asked(), site.metrics.polls_shortcut.get()), (1, 2));
    // A wake-up between two polls is remembered.
    *site.desk.commands.lock().unwrap() = Some("[]".into());
    site.remote().deliver(NODE, Vec::new());
    client.poll("wait=1");
    client.expect(200);
    assert_eq!(site.asked(), 2);
}

#[test]
fn rechecked_poll_goes_to_its_handler_again() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.poll("wait=30");
    site.wait_parked(1);
    *site.desk.commands.lock().unwrap() = Some("[1]".into());
    site.remote().recheck_all();
    assert_eq!(client.expect(200).body, b"[1]");
    assert_eq!(site.asked(), 2);
}

#[test]
fn a_second_poll_replaces_the_first() {
    let site = Site::new(Limits::default());
    let (mut first, mut second) = (site.client(), site.client());
    first.poll("wait=30");
    site.wait_parked(1);
    second.poll("wait=30");
    first.expect(204);
    site.wait_parked(1);
    site.remote().deliver(NODE, b"{}".to_vec());
    second.expect(200);
}

#[test]
fn a_poll_whose_client_went_away_is_forgotten() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.poll("wait=30");
    site.wait_parked(1);
    drop(client);
    site.wait_parked(0);
    wait_until(|| site.metrics.connections.get() == 0);
}

#[test]
fn graceful_stop_answers_every_request() {
    let mut site = Site::new(Limits::default());
    let (release, slow) = crossbeam_channel::bounded(0);
    let (mut poller, mut idle, mut poster) = (site.client(), site.client(), site.client());
    poller.poll("wait=30");
    site.wait_parked(1);
    idle.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    idle.expect(200);
    *site.desk.slow.lock().unwrap() = Some(slow);
    poster.post("/1/10/log", b"abc");
    wait_until(|| site.asked() == 3);
    let proxy = site.proxy.take();
    let stopper = std::thread::spawn(move || drop(proxy));
    assert!(poller.expect(204).closes());
    assert!(idle.answer().is_none());
    drop(release);
    assert!(poster.expect(200).closes());
    stopper.join().unwrap();
    assert!(TcpStream::connect(site.addr).is_err());
}

#[test]
fn stalled_clients_end_at_their_deadlines() {
    let short = Duration::from_millis(200);
    let site =
        Site::new(Limits { head: short, body_pause: short, answer_pause: short, linger: short, ..Limits::default() });
    let mut silent = site.client();
    assert!(silent.answer().is_none());
    let mut head = site.client();
    head.send("GET /hea");
    head.expect(408);
    let mut body = site.client();
    body.send("POST /1/10/log HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: 10\r\n\r\nabc");
    body.expect(408);
    let mut deaf = site.client();
    deaf.post("/1/10/stats", b"");
    wait_until(|| site.refusals("answer-timeout") == 1);
    assert_eq!((site.refusals("silent"), site.refusals("head-timeout"), site.refusals("body-timeout")), (1, 1, 1));
    wait_until(|| site.metrics.body_bytes.get() == 0 && site.metrics.connections.get() == 0);
}

#[test]
fn a_body_waits_for_its_continue() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.send(
        "POST /1/10/log HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    );
    client.expect(100);
    client.send("abc");
    client.expect(200);
}

#[test]
fn refused_client_can_read_the_reason() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    let mut body = client.stream.try_clone().unwrap();
    let length = 17 * 1024 * 1024;
    let writer = std::thread::spawn(move || {
        body.write_all(format!("POST /1/10/log HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").as_bytes())
            .unwrap();
        body.write_all(&vec![b'x'; length]).unwrap();
    });
    writer.join().unwrap();
    assert!(client.expect(413).closes());
    drop(client);
    wait_until(|| site.metrics.connections.get() == 0);
}

#[test]
fn a_request_too_many_ends_the_poll_before_it() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.poll("wait=30");
    site.wait_parked(1);
    client.poll("wait=30");
    assert!(client.expect(204).closes());
    assert!(client.answer().is_none());
    assert_eq!(site.refusals("pipelined"), 1);
}

#[test]
fn silent_connection_makes_room_when_all_are_taken() {
    let site = Site::new(Limits { max_connections: 8, ..Limits::default() });
    let mut held: Vec<Client> = (0..8).map(|_| site.client()).collect();
    wait_until(|| site.metrics.connections.get() >= 4);
    let refused: u64 = 4;
    wait_until(|| site.refusals("address-full") == refused);
    held.clear();
    wait_until(|| site.metrics.connections.get() == 0);
    let mut client = site.client();
    client.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    client.expect(200);
}

#[test]
fn many_polls_at_once_are_all_answered() {
    let site = Site::new(Limits::default());
    let mut clients: Vec<Client> = (0..300).map(|_| site.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let nid = i + 1;
        client.send(format!("GET /1/{nid}/cmd?wait=30 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"));
    }
    site.wait_parked(300);
    let remote = site.remote();
    for nid in 1..=300 {
        remote.deliver(NodeId { gid: 1, nid }, b"{}".to_vec());
    }
    for client in &mut clients {
        client.expect(200);
    }
}

#[test]
fn a_node_that_waits_was_seen_when_its_poll_came() {
    let site = Site::new(Limits::default());
    let (mut client, start) = (site.client(), Instant::now());
    client.poll("wait=30");
    site.wait_parked(1);
    let parked = Instant::now();
    // Told a second later.
    let seen = site.seen.recv_timeout(LONG).unwrap();
    assert!(matches!(seen[..], [(NODE, at)] if start <= at && at <= parked), "{seen:?}");
}

#[test]
fn requests_on_one_connection_get_each_their_own_answer() {
    let site = Site::new(Limits { max_backend: 2, ..Limits::default() });
    let (open, closed) = crossbeam_channel::bounded::<()>(0);
    *site.desk.slow.lock().unwrap() = Some(closed);
    let mut clients: Vec<Client> = (0..120).map(|_| site.client()).collect();
    let length = |i: usize| [10, QUICK, QUICK + 1, 70_000][i % 4] + i;
    for (i, client) in clients.iter_mut().enumerate() {
        let nid = i + 1;
        if i % 5 == 4 {
            client.send(format!("GET /1/{nid}/cmd?wait=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"));
        } else {
            client.post(&format!("/1/{nid}/result"), &vec![b'x'; length(i)]);
        }
    }
    wait_until(|| site.metrics.requests_waiting.get() == 120);
    drop(open);
    for (i, client) in clients.iter_mut().enumerate() {
        if i % 5 == 4 {
            client.expect(204);
        } else {
            assert_eq!(client.expect(200).body, format!("1:{} {}", i + 1, length(i)).into_bytes());
        }
    }
    wait_until(|| site.metrics.requests_waiting.get() == 0);
}

#[test]
fn slow_request_delays_only_those_behind_it() {
    // The handlers have four threads.
    let site = Site::new(Limits { max_backend: 8, ..Limits::default() });
    let (open, closed) = crossbeam_channel::bounded::<()>(0);
    let (unstick, stuck) = crossbeam_channel::bounded::<()>(0);
    *site.desk.slow.lock().unwrap() = Some(closed);
    *site.desk.stuck.lock().unwrap() = Some((9, stuck));
    let mut clients: Vec<Client> = (0..120).map(|_| site.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let nid = i + 1;
        client.send(format!("GET /1/{nid}/cmd?wait=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"));
        // In this order, whichever socket is looked at first.
        wait_until(|| site.metrics.requests_waiting.get() == nid as i64);
    }
    drop(open);
    // The first eight went alone, the ninth goes at the head of those behind it.
    for (i, client) in clients.iter_mut().enumerate() {
        if !(8..16).contains(&i) {
            client.expect(204);
        }
    }
    let mut other = site.client();
    other.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    other.expect(200);
    drop(unstick);
    clients[8..16].iter_mut().for_each(|client| drop(client.expect(204)));
}

/// About as long as a body may be that does not hold up the request behind it.
const QUICK: usize = 960;

/// A proxy before something that accepts connections, perhaps, and answers nothing.
fn before_a_silent_backend(limits: Limits, folder: &std::path::Path) -> (Handle, Arc<Metrics>, Receiver<String>) {
    let metrics = Arc::new(Metrics::new());
    let (sender, _seen) = crossbeam_channel::bounded(16);
    let (fatal_in, fatal) = crossbeam_channel::unbounded();
    let listen = "127.0.0.1:0".parse().unwrap();
    let config = ProxyConfig { listen, tls: None, backend: Backend::at(folder.join("http")), limits };
    let proxy =
        Handle::start(config, Arc::new(FakeAuthenticator::default()), metrics.clone(), sender, fatal_in).unwrap();
    (proxy, metrics, fatal)
}

fn dial(proxy: &Handle) -> Client {
    let stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    Client { input: BufReader::new(stream.try_clone().unwrap()), stream }
}

#[test]
fn a_body_counts_for_as_long_as_it_is_held_whether_its_client_stays_or_not() {
    const BODY: i64 = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let backend = std::os::unix::net::UnixListener::bind(folder.path().join("http")).unwrap();
    // Two are with the backend, and the others wait in the line.
    let limits = Limits { max_backend: 2, max_node_bodies: 4 * BODY as usize, ..Limits::default() };
    let (proxy, metrics, _fatal) = before_a_silent_backend(limits, folder.path());
    for count in 1..=4 {
        let mut client = dial(&proxy);
        client.post("/1/10/log", &vec![b'x'; BODY as usize]);
        wait_until(|| metrics.requests_waiting.get() == count);
        // A reset, with all that was sent taken already.
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        wait_until(|| metrics.connections.get() == 0);
        assert_eq!(metrics.body_bytes.get(), count * BODY, "it is still here");
    }
    let mut more = dial(&proxy);
    more.post("/1/10/log", &vec![b'x'; BODY as usize]);
    more.expect(429);
    // The rest has no client left that wants an answer.
    (0..2).for_each(|_| drop(backend.accept().unwrap()));
    wait_until(|| metrics.body_bytes.get() == 0 && metrics.requests_waiting.get() == 0);
}

#[test]
fn proxy_ends_when_no_request_is_taken_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let _backend = std::os::unix::net::UnixListener::bind(folder.path().join("http")).unwrap();
    let limits = Limits { handler: Duration::from_millis(100), ..Limits::default() };
    let (proxy, _metrics, fatal) = before_a_silent_backend(limits, folder.path());
    let end = Instant::now() + LONG;
    let why = loop {
        assert!(Instant::now() < end, "the proxy goes on");
        let mut client = dial(&proxy);
        // The connection may be the one that its end cuts.
        let _ = client.stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        if client.answer().is_some_and(|got| got.status != 503) {
            panic!("there is nobody who could answer");
        }
        if let Ok(why) = fatal.recv_timeout(Duration::from_millis(20)) {
            break why;
        }
    };
    assert!(why.contains("takes no requests"), "{why}");
}

#[test]
fn slow_handlers_do_not_end_the_proxy() {
    let site = Site::new(Limits { handler: Duration::from_millis(100), ..Limits::default() });
    for _ in 0..3 {
        let (free, wait) = crossbeam_channel::bounded::<()>(0);
        *site.desk.slow.lock().unwrap() = Some(wait);
        let before = site.asked();
        let mut client = site.client();
        client.post("/1/10/log", b"x");
        wait_until(|| site.asked() > before);
        client.expect(503);
        drop(free);
        *site.desk.slow.lock().unwrap() = None;
    }
    let mut client = site.client();
    client.post("/1/10/log", b"x");
    client.expect(200);
}
