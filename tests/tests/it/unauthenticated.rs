//! Clients without credentials at the real controller: each ends in bounded time and memory, with its
//! reason counted, and others are served meanwhile.

use jstests::proc;
use jstests::process::{Process, bin};
use jstests::redis_server::free_port;
use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use socket2::{SockRef, Socket};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// The longest that such a client may take to be gone: every deadline of the proxy is below it.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(300);

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

fn quiet(options: AccOptions) -> AccOptions {
    AccOptions { args: vec!["--log-level".into(), "info".into()], ..options }
}

fn addr(acc: &Acc) -> SocketAddr {
    ([127, 0, 0, 1], acc.port()).into()
}

fn dial(acc: &Acc) -> TcpStream {
    let stream = TcpStream::connect(addr(acc)).expect("a connection");
    stream.set_read_timeout(Some(DISCONNECT_TIMEOUT)).expect("a timeout");
    stream
}

/// Sends `bytes` and reads until the end of the connection.
fn told(acc: &Acc, bytes: impl AsRef<[u8]>) -> String {
    let mut stream = dial(acc);
    // The refusal may come, and the connection end, before all is sent.
    let _ = stream.write_all(bytes.as_ref());
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    String::from_utf8_lossy(&got).into_owned()
}

#[track_caller]
fn refused(acc: &Acc, bytes: impl AsRef<[u8]>, status: u16, label: &str) {
    let before = refusals(acc, label);
    let told = told(acc, &bytes);
    assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{label}: {told}");
    assert!(told.contains("Connection: close\r\n") && told.contains("{\"error\":"), "{label}: {told}");
    assert_eq!(refusals(acc, label), before + 1, "{label}");
}

/// A figure of `/metrics`; 0 when it is not there.
fn figure(acc: &Acc, name: &str) -> u64 {
    let reply = acc.anonymous().get("/metrics");
    assert_eq!(reply.status, 200, "{reply:?}");
    let line = reply.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0) as u64
}

fn refusals(acc: &Acc, label: &str) -> u64 {
    figure(acc, &format!("jsacc_refusals_total{{reason=\"{label}\"}}"))
}

/// Resident memory in KiB.
fn memory(pid: u32) -> u64 {
    proc::memory(pid).expect("the controller runs") / 1024
}

/// A program with nothing to do makes few system calls; one that spins makes thousands in two seconds.
#[track_caller]
fn assert_rests(pid: u32) {
    let tracer = proc::Tracer::start(pid).expect("strace");
    std::thread::sleep(Duration::from_secs(2));
    let calls = tracer.end().expect("a count of calls");
    assert!(calls < 1000, "{calls} system calls in two seconds");
}

/// An honest node has its command at once, whatever goes on beside it.
#[track_caller]
fn served(acc: &Acc, client: &mut Client) {
    let node = acc.node(7, 7);
    // A command that was acknowledged last time may be with this controller still.
    let id = client.push(json!({"gid": 7, "nid": 7, "cmd": "ping"}));
    let batch = node.poll_as(&[], 20, None).expect("the command");
    assert!(batch.cmds.iter().any(|command| command["id"] == id.as_str()), "{batch:?}");
    assert!(node.poll_as(&[], 0, Some(&batch.batch)).is_none());
}

/// One request for each reason: the texts that lead to it are tested in `acc/src/proxy/request_parser_tests.rs`.
#[test]
fn malformed_request_is_refused_with_its_reason() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let post = |headers: &str| format!("POST /1/10/result HTTP/1.1\r\nHost: x\r\n{headers}\r\n");

    refused(
        &acc,
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(100_000)),
        431,
        "head-too-long",
    );
    refused(&acc, post("Content-Length: 99999999999999\r\n"), 413, "body-too-long");
    refused(&acc, post("Content-Length: 5\r\nContent-Length: 5\r\n") + "[1,2]", 400, "framing");
    refused(&acc, post("Transfer-Encoding: chunked\r\n") + "2\r\n[]\r\n0\r\n\r\n", 411, "chunked");
    refused(&acc, post(""), 411, "no-length");
    refused(&acc, format!("{HEALTH}{HEALTH}"), 400, "pipelined");
    refused(&acc, b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03", 400, "garbage");
    refused(&acc, "GET /health HTTP/1.1\n\n", 400, "line-end");
    refused(&acc, "GET /health HTTP/3.0\r\n\r\n", 505, "version");
    refused(&acc, "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, "path");
    refused(&acc, "GET /health HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417, "expect");
    // A body of 17 MiB is read to its end, so that the client can read why it was in vain.
    let big = "x".repeat(17 * 1024 * 1024);
    let reply = acc.node(1, 10).post_text("/1/10/log", &big);
    assert_eq!(reply.status, 413, "{reply:?}");
    assert!(reply.error().contains("16777216"), "{reply:?}");
    assert_eq!(acc.anonymous().get("/health").status, 200);
}

#[test]
fn clients_of_old_http_are_served() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let answer = told(&acc, "GET /health HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("Connection: close"), "{answer}");
    let answer = told(&acc, "GET http://x/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    let mut stream = dial(&acc);
    let body = json!({"name": "startup", "data": {}}).to_string();
    let head = "POST /1/10/event HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n", body.len()).unwrap();
    let mut got = [0; 25];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    // Its half of the connection is closed; the answer comes all the same.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
}

#[test]
fn stalled_client_is_disconnected() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let mut client = Client::new(&redis);
    // More than the buffers of both sides hold; each of the four answers is held once.
    let script = "x".repeat(12 * 1024 * 1024);
    let hash = jscommon::token::sha256_hex(script.as_bytes());
    let _: () = client.redis(&["SET", &format!("jsacc:script:{hash}"), &script]);
    served(&acc, &mut client);
    let before = memory(acc.pid());

    let silent: Vec<TcpStream> = (0..200).map(|_| dial(&acc)).collect();
    let mut slow: Vec<TcpStream> = (0..100).map(|_| dial(&acc)).collect();
    let body: Vec<TcpStream> = (0..10)
        .map(|_| {
            let mut stream = dial(&acc);
            stream.write_all(b"POST /1/10/log HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{").unwrap();
            stream
        })
        .collect();
    let deaf: Vec<Socket> = (0..4)
        .map(|_| {
            let mut stream = dial(&acc);
            SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
            write!(stream, "GET /1/10/script?hash={hash} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            Socket::from(stream)
        })
        .collect();
    for _ in 0..20 {
        let mut stream = dial(&acc);
        stream.write_all(b"POST /1/10/log HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{").unwrap();
        // Dropped with unread time to linger of nothing: a reset in the middle of the body.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    let start = Instant::now();
    let drip = HEALTH.as_bytes();
    let mut sent = 0;
    let mut most = before;
    loop {
        // A byte a second, from clients that never come to the end of their head.
        if start.elapsed().as_secs() as usize > sent {
            slow.retain_mut(|stream| stream.write_all(&drip[sent % 20..=sent % 20]).is_ok());
            sent += 1;
        }
        served(&acc, &mut client);
        most = most.max(memory(acc.pid()));
        // The one connection that is left is the one that asks.
        if figure(&acc, "jsacc_connections") <= 3 {
            break;
        }
        assert!(start.elapsed() < DISCONNECT_TIMEOUT, "{} connections are left", figure(&acc, "jsacc_connections"));
        std::thread::sleep(Duration::from_millis(250));
    }
    assert!(refusals(&acc, "silent") >= 200);
    assert!(refusals(&acc, "head-timeout") >= 90);
    assert!(refusals(&acc, "body-timeout") >= 10);
    assert!(refusals(&acc, "body-cut") >= 20);
    assert!(refusals(&acc, "answer-timeout") >= 4);
    assert_eq!(figure(&acc, "jsacc_body_bytes"), 0);
    let grown = most.saturating_sub(before);
    assert!(grown < 150 * 1024, "{grown} KiB more");
    drop((silent, body, deaf));
}

#[test]
fn client_without_tls_is_disconnected() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::secure()));
    let mut client = Client::new(&redis);
    proc::open_files(3000);
    served(&acc, &mut client);
    let before = memory(acc.pid());

    // The beginning of a ClientHello that never goes on, a thousand times.
    let stalled: Vec<TcpStream> = (0..1000)
        .map(|_| {
            let mut stream = dial(&acc);
            stream.write_all(b"\x16\x03\x01\x01\x00\x01\x00\x00\xfc\x03\x03").unwrap();
            stream
        })
        .collect();
    // On a slow machine the first of them are let go before the last one is in.
    wait_until("they are in", DISCONNECT_TIMEOUT, || {
        figure(&acc, "jsacc_connections") + refusals(&acc, "handshake-timeout") >= 1000
    });
    served(&acc, &mut client);
    // The seven bytes of a close_notify, that once pinned a core.
    told(&acc, b"\x15\x03\x03\x00\x02\x01\x00");
    let answer = told(&acc, HEALTH);
    assert!(answer.contains("this port speaks HTTPS"), "{answer}");
    told(&acc, b"\xff\xff\xff\xff\xff\xff\xff\xff");
    let memory_for_them = memory(acc.pid()).saturating_sub(before);
    assert!(memory_for_them < 100 * 1024, "{memory_for_them} KiB for a thousand stalled handshakes");
    // A spin over them makes many calls for each; what ends them makes a few, and so does each look.
    let tracer = proc::Tracer::start(acc.pid()).expect("strace");
    let mut looks = 0;
    wait_until("they are gone", DISCONNECT_TIMEOUT, || {
        std::thread::sleep(Duration::from_millis(250));
        looks += 1;
        figure(&acc, "jsacc_connections") <= 3
    });
    let calls = tracer.end().expect("a count of calls");
    // A tracer that goes interrupts the controller's reads, and it connects to Redis again.
    wait_until("it answers", LONG, || acc.anonymous().get("/health").status == 200);
    let most = 20_000 + 300 * looks;
    assert!(calls < most, "{calls} system calls for a thousand connections that do nothing, and {looks} looks");
    assert!(refusals(&acc, "handshake-timeout") >= 1000);
    assert_eq!(refusals(&acc, "plain-http"), 1);
    served(&acc, &mut client);
    drop(stalled);
}

fn all_at_once(nodes: u32) {
    proc::open_files(u64::from(nodes) + 200);
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let swarm = Swarm::start(SwarmOptions { wait: 15, ..SwarmOptions::new(addr(&acc), nodes) }).unwrap();
    swarm.wait_polling(LONG).unwrap();
    let mut client = Client::new(&redis);
    let command = json!({"roles": ["swarm"], "fanout": true, "cmd": "ping"});
    wait_until("all are seen", LONG, || client.redis::<u32>(&["ZCARD", "jsacc:agents"]) >= nodes);
    client.push(command);
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    wait_until("all have their command", DISCONNECT_TIMEOUT, || count(&swarm.tally.results) >= u64::from(nodes));
    assert_eq!(count(&swarm.tally.commands), u64::from(nodes), "{:?}", swarm.tally);
    assert_eq!(count(&swarm.tally.cut), 0, "{:?}", swarm.tally);
    assert!(swarm.tally.others.lock().unwrap().is_empty(), "{:?}", swarm.tally);
    // And those that nothing comes for have their 204.
    wait_until("polls end by themselves", DISCONNECT_TIMEOUT, || count(&swarm.tally.idle_polls) >= u64::from(nodes));
}

#[test]
fn three_hundred_polls_at_once_are_all_answered() {
    all_at_once(300);
}

#[test]
fn three_thousand_polls_at_once_are_all_answered() {
    all_at_once(3000);
}

/// A controller with room for `files` open files; `prlimit` and shells can only lower it.
fn acc_with_files(redis: &Redis, files: u32, dir: &std::path::Path) -> (Process, u16) {
    let port = free_port();
    let mut command = Command::new("/bin/sh");
    let line = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
    command.args(["-c", &line]).arg(bin("jsacc")).args(["-b", "127.0.0.1", "-p", &port.to_string()]);
    command.args(["-r", &redis.url(), "--insecure-http", "--insecure-no-auth", "--state-dir"]).arg(dir.join("state"));
    (Process::spawn(&mut command, "jsacc", dir, Signal::SIGTERM), port)
}

#[test]
fn connections_beyond_the_descriptors_make_room() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let (process, port) = acc_with_files(&redis, 256, dir.path());
    let health = || FakeNode::new(&format!("http://127.0.0.1:{port}"), None, 1, 1, None).get("/health").status;
    wait_until("it answers", LONG, || health() == 200);

    let connect = || TcpStream::connect(("127.0.0.1", port)).expect("the kernel takes it");
    let mut held: Vec<TcpStream> = (0..600).map(|_| connect()).collect();
    // While all connections are taken by silent clients, one that sends something gets in within moments.
    wait_until("room is made", LONG, || health() == 200);
    assert_rests(process.pid());
    let files = proc::files(process.pid()).unwrap();
    assert!(files <= 256, "{files}");
    held.clear();
    wait_until("it has recovered", LONG, || health() == 200);
}

#[test]
fn controller_without_a_descriptor_recovers() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let mut client = Client::new(&redis);
    served(&acc, &mut client);
    // Less than it counted on when it started: accepting fails with EMFILE.
    let lowered = Command::new("prlimit").args(["--pid", &acc.pid().to_string(), "--nofile=64:20000"]).status();
    assert!(lowered.is_ok_and(|status| status.success()), "prlimit sets the limit of another process");
    let held: Vec<TcpStream> = (0..200).map(|_| dial(&acc)).collect();
    assert_rests(acc.pid());
    drop(held);
    wait_until("it has recovered", LONG, || acc.anonymous().get("/health").status == 200);
    assert!(refusals(&acc, "no-descriptor") >= 1);
    served(&acc, &mut client);
}

/// Sets the soft limit of open files of a process.
#[track_caller]
fn set_files(pid: u32, soft: usize) {
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")]).status();
    assert!(status.expect("prlimit, of util-linux").success(), "the limit of open files can be set");
}

/// The soft limit of open files of a process.
fn files_limit(pid: u32) -> usize {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process runs");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit of open files");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// The limit of open files at which a process can open just `count` more.
fn limit_for(pid: u32, count: usize) -> usize {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    let open: Vec<usize> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    (0..).filter(|number| !open.contains(number)).nth(count).expect("numbers do not end")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// More connections than a controller keeps to its web server.
fn dial_some(acc: &Acc) -> Vec<TcpStream> {
    (0..6).map(|_| dial(acc)).collect()
}

/// The status of the next answer on a connection, if there is one.
fn status_on(stream: &mut TcpStream) -> Option<u16> {
    let mut got = Vec::new();
    let mut piece = [0; 4096];
    // A body of the controller is JSON; a request that tiny_http could not pass on has none.
    let is_empty = |got: &[u8]| got.ends_with(b"\r\n\r\n") && contains(got, b"Content-Length: 0\r\n");
    while !got.ends_with(b"}") && !got.ends_with(b"}\n") && !is_empty(&got) {
        let n = stream.read(&mut piece).ok().filter(|n| *n > 0)?;
        got.extend_from_slice(&piece[..n]);
    }
    String::from_utf8_lossy(&got).split(' ').nth(1)?.parse().ok()
}

#[test]
fn a_web_server_that_found_no_descriptor_is_made_anew() {
    // One more is the proxy's own end of a connection; with two more, tiny_http accepts it and has none for its copy.
    for more in [1, 2] {
        let redis = Redis::start();
        let mut acc = Acc::start(&redis, quiet(AccOptions::default()));
        let (mut clients, before) = (dial_some(&acc), files_limit(acc.pid()));
        let server = Pid::from_raw(redis.pid() as i32);
        // The controller may open or close something between the look and the request: it is tried until the web
        // server has failed, and not the proxy before it.
        wait_until("the web server fails", LONG, || {
            // While Redis answers nothing, more requests are under way than connections are kept.
            kill(server, Signal::SIGSTOP).expect("redis stops");
            set_files(acc.pid(), limit_for(acc.pid(), more));
            clients.iter_mut().for_each(|client| drop(client.write_all(HEALTH.as_bytes())));
            std::thread::sleep(Duration::from_millis(100));
            kill(server, Signal::SIGCONT).expect("redis goes on");
            let answers: Vec<Option<u16>> = clients.iter_mut().map(status_on).collect();
            set_files(acc.pid(), before);
            if answers.contains(&None) {
                clients = dial_some(&acc);
            }
            if !answers.iter().flatten().any(|status| status / 100 == 5) {
                return false;
            }
            // It is told right after such a request; where it is not, the proxy had no descriptor.
            (0..50).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                acc.output().contains("the web server behind the proxy stopped")
            })
        });
        wait_until("requests are answered again", LONG, || acc.anonymous().get("/health").status == 200);
        wait_until("it is said", LONG, || acc.output().contains("the web server behind the proxy was made anew"));
        assert_eq!(acc.stop(), Some(0));
    }
}

#[test]
fn graceful_stop_answers_every_poll() {
    proc::open_files(600);
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, quiet(AccOptions::default()));
    let mut polls: Vec<TcpStream> = (1..=100)
        .map(|nid| {
            let mut stream = dial(&acc);
            write!(stream, "GET /1/{nid}/cmd?wait=60 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    wait_until("they are parked", LONG, || figure(&acc, "jsacc_polls_parked") == 100);
    assert_eq!(acc.stop(), Some(0), "before the polls end by themselves");
    for stream in &mut polls {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 204 ") && answer.contains("Connection: close\r\n"), "{answer}");
    }
}

#[test]
fn a_second_poll_of_a_node_takes_the_place_of_the_first() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, quiet(AccOptions::default()));
    let poll = || {
        let mut stream = dial(&acc);
        stream.write_all(b"GET /1/10/cmd?wait=50 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream
    };
    let mut first = poll();
    wait_until("it is parked", LONG, || figure(&acc, "jsacc_polls_parked") == 1);
    let mut second = poll();
    let start = Instant::now();
    let mut piece = [0; 1024];
    let n = first.read(&mut piece).unwrap();
    assert!(piece[..n].starts_with(b"HTTP/1.1 204 "), "{}", String::from_utf8_lossy(&piece[..n]));
    assert!(start.elapsed() < Duration::from_secs(50), "before its own time is up");
    let mut client = Client::new(&redis);
    let id = client.send("ping", json!({}));
    let n = second.read(&mut piece).unwrap();
    let text = String::from_utf8_lossy(&piece[..n]).into_owned();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains(&id), "{text}");
}
