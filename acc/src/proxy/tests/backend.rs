//! Requests on their way to the handlers and back.

use super::*;

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
