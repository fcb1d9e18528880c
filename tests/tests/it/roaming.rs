//! Nodes that change their controller at the worst moment.

use jstests::{Acc, AccOptions, Client, LONG, Redis, wait_until};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A poll of 1:10 on a connection of its own.
fn poll(acc: &Acc, wait: u32) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", acc.port())).expect("a connection");
    stream.set_read_timeout(Some(LONG)).expect("a timeout");
    write!(stream, "GET /1/10/cmd?wait={wait} HTTP/1.1\r\nHost: x\r\n\r\n").expect("a request");
    stream
}

fn parked(acc: &Acc) -> bool {
    acc.anonymous().get("/metrics").body.contains("jsacc_polls_parked 1\n")
}

/// The text that comes on a connection that ends.
fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

/// The next answer on a kept connection.
fn answer(stream: &mut TcpStream) -> String {
    let mut piece = [0; 4096];
    let n = stream.read(&mut piece).expect("an answer");
    String::from_utf8_lossy(&piece[..n]).into_owned()
}

#[test]
fn node_that_returns_from_a_controller_that_died_gets_its_wakeup_at_once() {
    let redis = Redis::start();
    let first = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    assert!(answer(&mut poll(&first, 2)).starts_with("HTTP/1.1 204"), "it waits at the first controller");
    // It goes to another one, which dies with this very poll.
    let dying = AccOptions { state_dir: Some(first.state_dir()), ..AccOptions::dying_at("acc.polled") };
    let mut second = Acc::start_unready(&redis.url(), dying);
    wait_until("the second is there", LONG, || TcpStream::connect(("127.0.0.1", second.port())).is_ok());
    rest(poll(&second, 20));
    assert!(second.wait() != 0);
    let mut stream = poll(&first, 2);
    wait_until("it waits at the first one again", LONG, || parked(&first));
    let (start, id) = (Instant::now(), client.send("ping", json!({})));
    while !answer(&mut stream).contains(&id) {
        assert!(start.elapsed() < LONG * 3, "it polls the same again and again, and gets no wake-up");
        stream = poll(&first, 2);
    }
}

#[test]
fn a_connection_that_nobody_is_behind_takes_no_node_away() {
    let redis = Redis::start();
    let first = Acc::start(&redis, AccOptions::default());
    let second = Acc::start(&redis, AccOptions { state_dir: Some(first.state_dir()), ..AccOptions::default() });
    let mut client = Client::new(&redis);
    // The node's way to the first controller is cut in silence: this connection stays, and nobody is there.
    let silent = poll(&first, 60);
    wait_until("it waits at the first controller", LONG, || parked(&first));
    let mut node = poll(&second, 60);
    wait_until("it waits at the second", LONG, || parked(&second));
    wait_until("the first lets go", LONG, || !parked(&first));
    let polls = |client: &mut Client| {
        let stats: String = client.redis(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap_or("0");
        line.split(',').next().and_then(|calls| calls.parse::<u64>().ok()).unwrap_or(0)
    };
    let before = polls(&mut client);
    std::thread::sleep(Duration::from_secs(2));
    let asked = polls(&mut client) - before;
    assert!(asked < 50, "the controllers fight for the node: {asked} scripts in two seconds");
    let id = client.send("ping", json!({}));
    assert!(answer(&mut node).contains(&id), "and the node that is there has its command");
    drop(silent);
}

#[test]
fn a_registration_that_redis_has_lost_is_found_again() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let mut node = poll(&acc, 5);
    wait_until("it waits", LONG, || parked(&acc));
    // Nobody knows any longer that its poll is here, and nobody rings.
    assert_eq!(client.redis::<u32>(&["HDEL", "jsacc:{1:10}:meta", "ac"]), 1);
    let (start, id) = (Instant::now(), client.send("ping", json!({})));
    // Where this poll was looked at before that, its next one is, which waits without its handler's knowing.
    while !answer(&mut node).contains(&id) {
        assert!(start.elapsed() < LONG * 3, "{:?}", start.elapsed());
        node = poll(&acc, 5);
    }
}

#[test]
fn a_node_that_stops_while_its_poll_is_not_yet_written_down_has_stopped() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let started = json!({"name": "startup", "data": {"hostname": "h", "instance": "i"}});
    assert_eq!(node.post("event", &started).status, 200);
    let mut field = |command: &str, name: &str| -> Option<u64> {
        match command {
            "HDEL" => client.redis(&["HDEL", "jsacc:agent:1:10", name]),
            _ => client.redis(&["HGET", "jsacc:agent:1:10", name]),
        }
    };
    // The presence task is told of a poll a second after it came, and may be at it already on a busy machine.
    let written = (0..3).find_map(|_| {
        let waiting = poll(&acc, 60);
        wait_until("it waits", LONG, || parked(&acc));
        let stopped = json!({"name": "shutdown", "data": {"instance": "i"}});
        assert_eq!(node.post("event", &stopped).status, 200);
        field("HDEL", "last_seen");
        let end = Instant::now() + LONG;
        let mut seen = None;
        while seen.is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
            seen = field("HGET", "last_seen");
        }
        drop(waiting);
        wait_until("it is gone", LONG, || !parked(&acc));
        seen
    });
    let (seen, stopped) =
        (written.expect("the presence task writes it down"), field("HGET", "stopped").expect("it said so"));
    assert!(seen <= stopped, "seen {} ms after it stopped", seen - stopped);
}
