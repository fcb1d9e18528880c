//! Requests, the limits of what clients may cost, and the stop.

use super::*;

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
