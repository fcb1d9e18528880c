//! Requests on their way to the handlers and back.

use super::*;

#[test]
fn requests_one_after_the_other_get_each_their_own_answer() {
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
fn slow_request_delays_no_other() {
    // The handlers have four threads.
    let site = Site::new(Limits { max_backend: 8, ..Limits::default() });
    let (unstick, stuck) = crossbeam_channel::bounded::<()>(0);
    *site.desk.stuck.lock().unwrap() = Some((9, stuck));
    let mut clients: Vec<Client> = (0..120).map(|_| site.client()).collect();
    let poll = |client: &mut Client, nid: usize| {
        client.send(format!("GET /1/{nid}/cmd?wait=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"));
    };
    for (i, client) in clients.iter_mut().enumerate() {
        poll(client, i + 1);
    }
    for (i, client) in clients.iter_mut().enumerate() {
        if i != 8 {
            client.expect(204);
        }
    }
    wait_until(|| site.metrics.requests_waiting.get() == 1);
    drop(unstick);
    clients[8].expect(204);
}

#[test]
fn next_request_goes_to_a_server_that_was_made_anew() {
    let site = Site::new(Limits::default());
    let (mut client, mut slow) = (site.client(), site.client());
    client.post("/1/10/log", b"x");
    client.expect(200);
    // This one is with the old server while that is replaced.
    let (unstick, stuck) = crossbeam_channel::bounded::<()>(0);
    *site.desk.stuck.lock().unwrap() = Some((9, stuck));
    let asked = site.asked();
    slow.post("/1/9/result", b"x");
    wait_until(|| site.asked() > asked);
    let before = site.server.backend().generation();
    site.server.remake();
    assert_eq!(site.server.backend().generation(), before + 1);
    for _ in 0..3 {
        client.post("/1/10/log", b"x");
        client.expect(200);
    }
    drop(unstick);
    slow.expect(200);
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
    let mut taken = Vec::new();
    for count in 1..=4 {
        let mut client = dial(&proxy);
        client.post("/1/10/log", &vec![b'x'; BODY as usize]);
        wait_until(|| metrics.requests_waiting.get() == count);
        if count <= 2 {
            taken.push(backend.accept().unwrap());
        }
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
    drop(taken);
    wait_until(|| metrics.body_bytes.get() == 0 && metrics.requests_waiting.get() == 0);
}

/// A backend of which the test sees every connection.
struct Watched {
    listener: std::os::unix::net::UnixListener,
    proxy: Handle,
    metrics: Arc<Metrics>,
    _folder: tempfile::TempDir,
}

impl Watched {
    fn new(limits: Limits) -> Watched {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join("http")).unwrap();
        let (proxy, metrics, _) = before_a_silent_backend(limits, folder.path());
        Watched { listener, proxy, metrics, _folder: folder }
    }

    fn accept(&self) -> BufReader<std::os::unix::net::UnixStream> {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        BufReader::new(stream)
    }

    fn has_another(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        let accepted = self.listener.accept().is_ok();
        self.listener.set_nonblocking(false).unwrap();
        accepted
    }
}

/// The path of the next request on a connection of the proxy.
fn next_path(input: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(input.read_line(&mut head).unwrap() > 0, "the connection ended: {head}");
    }
    let length: usize = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
    input.read_exact(&mut vec![0; length]).unwrap();
    head.split(' ').nth(1).unwrap().to_owned()
}

fn answer(connection: &mut BufReader<std::os::unix::net::UnixStream>) {
    connection.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
}

#[test]
fn kept_connection_carries_the_next_request() {
    let site = Watched::new(Limits::default());
    let (mut client, mut kept) = (dial(&site.proxy), None);
    for body in ["one", "two", "three"] {
        client.post("/1/10/log", body.as_bytes());
        let backend = kept.get_or_insert_with(|| site.accept());
        assert_eq!(next_path(backend), "/1/10/log");
        answer(backend);
        client.expect(200);
    }
    assert!(!site.has_another());
    // Once it is closed the next request goes on a new one.
    drop(kept);
    client.post("/1/10/log", b"four");
    let mut backend = site.accept();
    next_path(&mut backend);
    answer(&mut backend);
    client.expect(200);
}

#[test]
fn idle_connections_are_closed_but_for_a_few() {
    let limits = Limits { kept_backend: 1, backend_idle: Duration::from_millis(50), ..Limits::default() };
    let site = Watched::new(limits);
    let (mut first, mut second) = (dial(&site.proxy), dial(&site.proxy));
    first.post("/1/10/log", b"x");
    let mut kept = site.accept();
    next_path(&mut kept);
    // It is opened though the one before it is slow to answer.
    second.post("/1/10/log", b"x");
    let mut other = site.accept();
    next_path(&mut other);
    answer(&mut kept);
    answer(&mut other);
    first.expect(200);
    second.expect(200);
    assert_eq!(other.read(&mut [0]).unwrap(), 0, "it is closed");
    first.post("/1/10/log", b"x");
    assert_eq!(next_path(&mut kept), "/1/10/log");
}

#[test]
fn none_is_kept_while_a_new_connection_has_no_thread() {
    let site = Watched::new(Limits::default());
    let (mut first, mut second) = (dial(&site.proxy), dial(&site.proxy));
    first.post("/1/10/log", b"x");
    let mut kept = site.accept();
    next_path(&mut kept);
    answer(&mut kept);
    first.expect(200);
    first.post("/1/10/log", b"x");
    next_path(&mut kept);
    second.post("/1/10/log", b"x");
    let mut stuck = site.accept();
    std::thread::sleep(2 * Duration::from_millis(50));
    answer(&mut kept);
    first.expect(200);
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "its thread is free for the other one");
    next_path(&mut stuck);
    answer(&mut stuck);
    second.expect(200);
}

#[test]
fn result_goes_before_polls_that_wait() {
    let site = Watched::new(Limits { max_backend: 2, ..Limits::default() });
    let mut clients: Vec<Client> = (0..5).map(|_| dial(&site.proxy)).collect();
    let ask = |client: &mut Client, nid: usize| {
        client.send(format!("GET /1/{nid}/cmd?wait=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"));
    };
    let mut backends = Vec::new();
    for nid in [1, 2] {
        ask(&mut clients[nid - 1], nid);
        backends.push(site.accept());
    }
    for (client, backend) in clients.iter_mut().zip(&mut backends) {
        next_path(backend);
        answer(backend);
        client.expect(200);
    }
    for nid in [1, 2] {
        ask(&mut clients[nid - 1], nid);
        next_path(&mut backends[nid - 1]);
    }
    for nid in [3, 4] {
        ask(&mut clients[nid - 1], nid);
        std::thread::sleep(Duration::from_millis(20));
    }
    clients[4].post("/1/5/result", b"x");
    std::thread::sleep(Duration::from_millis(20));
    for path in ["/1/5/result", "/1/3/cmd?wait=0", "/1/4/cmd?wait=0"] {
        answer(&mut backends[0]);
        assert_eq!(next_path(&mut backends[0]), path);
    }
    backends.iter_mut().for_each(answer);
    clients.iter_mut().for_each(|client| drop(client.expect(200)));
}

#[test]
fn quick_requests_that_wait_travel_together_and_others_alone() {
    let site = Watched::new(Limits { max_backend: 2, max_group: 3, ..Limits::default() });
    let mut clients: Vec<Client> = (0..9).map(|_| dial(&site.proxy)).collect();
    let poll = |client: &mut Client, nid: usize| {
        client.send(format!("GET /1/{nid}/cmd?wait=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"));
    };
    let mut backends = Vec::new();
    for i in [8, 0] {
        poll(&mut clients[i], i + 1);
        backends.push(site.accept());
    }
    for (i, backend) in [8, 0].into_iter().zip(&mut backends) {
        next_path(backend);
        answer(backend);
        clients[i].expect(200);
    }
    for (i, backend) in [8, 0].into_iter().zip(&mut backends) {
        poll(&mut clients[i], i + 1);
        next_path(backend);
    }
    let [other, backend] = backends.get_disjoint_mut([0, 1]).unwrap();
    for (i, client) in clients.iter_mut().enumerate().skip(1).take(7) {
        match i {
            1..=4 => poll(client, i + 1),
            5 => client.post("/1/6/log", b"x"),
            6 => client.post("/1/7/result", &vec![b'x'; 2 * QUICK]),
            _ => client.post("/1/8/result", b"x"),
        }
        wait_until(|| site.metrics.requests_waiting.get() == i as i64 + 2);
    }
    let answer_all = |backend: &mut BufReader<std::os::unix::net::UnixStream>, paths: &[&str]| {
        let texts = paths.iter().map(|path| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()));
        backend.get_mut().write_all(texts.collect::<String>().as_bytes()).unwrap();
    };
    answer_all(backend, &["/1/1"]);
    // The large result alone, then the small one and the first polls, the other polls, and the log.
    let groups: [&[&str]; 4] = [
        &["/1/7/result"],
        &["/1/8/result", "/1/2/cmd?wait=0", "/1/3/cmd?wait=0"],
        &["/1/4/cmd?wait=0", "/1/5/cmd?wait=0"],
        &["/1/6/log"],
    ];
    for group in groups {
        group.iter().for_each(|path| assert_eq!(next_path(backend), *path));
        assert!(backend.buffer().is_empty(), "no other travels with {group:?}");
        backend.get_mut().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert!(backend.fill_buf().is_err(), "no other travels behind {group:?}");
        backend.get_mut().set_read_timeout(Some(LONG)).unwrap();
        answer_all(backend, group);
    }
    answer_all(other, &["/1/9"]);
    for (i, client) in clients.iter_mut().enumerate() {
        let body = client.expect(200).body;
        assert!(body.starts_with(format!("/1/{}", i + 1).as_bytes()), "client {i} got another's answer");
    }
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

/// A thread that is at a slow request is not one that is missing.
#[test]
fn slow_first_request_ends_no_other_connection() {
    let site = Site::new(Limits::default());
    let (free, wait) = crossbeam_channel::bounded::<()>(0);
    *site.desk.stuck.lock().unwrap() = Some((11, wait));
    // No connection is open yet, so each of these opens one.
    let mut slow: Vec<Client> = (0..2).map(|_| site.client()).collect();
    for (n, client) in slow.iter_mut().enumerate() {
        client.post("/1/11/log", b"x");
        wait_until(|| site.asked() == n + 1);
    }
    std::thread::sleep(2 * Duration::from_millis(50));
    let mut quick = site.client();
    for _ in 0..20 {
        quick.post("/1/10/log", b"x");
        quick.expect(200);
    }
    let opened = site.server.opened();
    assert_eq!(opened, 3, "one for all that are quick");
    drop(free);
    slow.iter_mut().for_each(|client| drop(client.expect(200)));
}
