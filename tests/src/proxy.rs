//! A programmable HTTP proxy in front of a controller.
//!
//! **In scope**: plain HTTP/1.1 on loopback, bodies with a `Content-Length`, and an answer by rule:
//! each request is forwarded, answered by the proxy itself, or cut.
//!
//! **Out of scope**: TLS, chunked bodies. Start the controller without TLS, and the agent with
//! [`crate::AgentOptions::via`] set to [`Proxy::url`].

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// One request as the proxy received it.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET` or `POST`.
    pub method: String,
    /// The last segment of the path: `cmd`, `result`, `log`, `stats`, `event`, `script`, `renew`.
    pub path: String,
    /// The query, without the `?`.
    pub query: String,
    /// The body; empty for a GET.
    pub body: Vec<u8>,
    /// The number of earlier requests with this `path`.
    pub nth: usize,
}

impl Request {
    /// Returns whether the body contains `text`.
    pub fn has(&self, text: &str) -> bool {
        let text = text.as_bytes();
        self.body.windows(text.len().max(1)).any(|part| part == text)
    }
}

/// The action of the proxy on one request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Forward the request, and pass the answer back.
    Forward,
    /// Answer with this status, these header lines (each ended by CR LF), and this body.
    Answer(u16, String, String),
    /// Forward the request, wait for the answer, and close the connection without passing it back.
    Swallow,
    /// Close the connection without an answer; the request is not forwarded.
    Cut,
}

impl Action {
    /// Returns an answer with an HTML page, as a proxy or a captive portal gives one.
    pub fn page(status: u16) -> Action {
        let page = format!("<html><body><h1>{status}</h1></body></html>");
        Action::Answer(status, "Content-Type: text/html\r\nServer: test-proxy\r\n".to_owned(), page)
    }
}

type Rule = Arc<dyn Fn(&Request) -> Action + Send + Sync>;

struct Shared {
    upstream: SocketAddr,
    rule: Mutex<Rule>,
    seen: Mutex<Vec<(Request, u16)>>,
    counts: Mutex<HashMap<String, usize>>,
    /// Both ends of every connection, so that a stop can close them.
    open: Mutex<Vec<TcpStream>>,
    stopping: AtomicBool,
}

/// A running proxy; its threads and connections end when it is dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy in front of the server on loopback port `upstream`. It forwards everything.
    pub fn start(upstream: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for the proxy");
        let port = listener.local_addr().expect("the proxy's address").port();
        let shared = Arc::new(Shared {
            upstream: SocketAddr::from(([127, 0, 0, 1], upstream)),
            rule: Mutex::new(Arc::new(|_: &Request| Action::Forward)),
            seen: Mutex::default(),
            counts: Mutex::default(),
            open: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let accepting = std::thread::spawn({
            let shared = shared.clone();
            move || shared.accept(&listener)
        });
        Proxy { port, shared, accepting: Some(accepting) }
    }

    /// Returns the address of the proxy, for `url` of an agent.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sets the rule for all requests from now on.
    pub fn rule(&self, rule: impl Fn(&Request) -> Action + Send + Sync + 'static) {
        *lock(&self.shared.rule) = Arc::new(rule);
    }

    /// Returns every request so far with the status of its answer; 0 where the connection was cut.
    pub fn seen(&self) -> Vec<(Request, u16)> {
        lock(&self.shared.seen).clone()
    }

    /// Returns the number of answered requests with this path.
    pub fn count(&self, path: &str) -> usize {
        lock(&self.shared.seen).iter().filter(|(request, _)| request.path == path).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn accept(self: Arc<Shared>, listener: &TcpListener) {
        let mut threads = Vec::new();
        for stream in listener.incoming() {
            if self.stopping.load(Ordering::SeqCst) {
                break;
            }
            let Ok(stream) = stream else { continue };
            self.keep(&stream);
            let shared = self.clone();
            threads.push(std::thread::spawn(move || drop(shared.serve(stream))));
        }
        lock(&self.open).iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }

    /// Registers a connection to be closed at the stop.
    fn keep(&self, stream: &TcpStream) {
        let _ = stream.set_nodelay(true);
        if let Ok(stream) = stream.try_clone() {
            lock(&self.open).push(stream);
        }
        // The stop closes what is registered, and may have done so already.
        if self.stopping.load(Ordering::SeqCst) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Serves one connection until either side closes it.
    fn serve(&self, client: TcpStream) -> std::io::Result<()> {
        let end = client.try_clone()?;
        let done = self.relay(client);
        // A clone is registered in `open`, so dropping the stream does not close the connection.
        let _ = end.shutdown(Shutdown::Both);
        done
    }

    fn relay(&self, mut client: TcpStream) -> std::io::Result<()> {
        let mut requests = BufReader::new(client.try_clone()?);
        let mut upstream: Option<BufReader<TcpStream>> = None;
        loop {
            let (head, body) = read_message(&mut requests, true)?;
            let request = self.request(&head, body);
            let rule = lock(&self.rule).clone();
            match rule(&request) {
                Action::Answer(status, headers, body) => {
                    lock(&self.seen).push((request, status));
                    let length =
                        if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
                    client.write_all(format!("HTTP/1.1 {status} x\r\n{length}{headers}\r\n{body}").as_bytes())?;
                }
                Action::Cut => {
                    lock(&self.seen).push((request, 0));
                    return Ok(());
                }
                action @ (Action::Forward | Action::Swallow) => {
                    let server = match &mut upstream {
                        Some(server) => server,
                        none => {
                            let stream = TcpStream::connect(self.upstream)?;
                            self.keep(&stream);
                            none.insert(BufReader::new(stream))
                        }
                    };
                    server.get_mut().write_all(head.as_bytes())?;
                    server.get_mut().write_all(&request.body)?;
                    let (answer, content) = read_message(server, false)?;
                    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
                    let cut = matches!(action, Action::Swallow);
                    lock(&self.seen).push((request, if cut { 0 } else { status }));
                    if cut {
                        return Ok(());
                    }
                    client.write_all(answer.as_bytes())?;
                    client.write_all(&content)?;
                    if header(&answer, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn request(&self, head: &str, body: Vec<u8>) -> Request {
        let mut words = head.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut counts = lock(&self.counts);
        let count = counts.entry(path.clone()).or_default();
        let nth = *count;
        *count += 1;
        Request { method, path, query: query.to_owned(), body, nth }
    }
}

/// Reads one message: its head up to the empty line, and its body by `Content-Length`.
fn read_message(from: &mut BufReader<TcpStream>, is_request: bool) -> std::io::Result<(String, Vec<u8>)> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if from.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if head[before..].trim().is_empty() {
            break;
        }
    }
    let bodiless = !is_request && head.split(' ').nth(1) == Some("204");
    let length = header(&head, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; if bodiless { 0 } else { length }];
    from.read_exact(&mut body)?;
    Ok((head, body))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
