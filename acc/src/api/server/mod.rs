//! tiny_http behind the proxy: a private Unix socket, some threads, one handler.
//!
//! Owns: the socket's private folder, the threads that take a request, answer it and take the next.
//! Does not own: what is answered; that is the `Handler` (the files beside this folder).
//! The proxy alone talks to it, in whole and well-formed requests, each on a connection of its own, or a few quick
//! ones on one: their answers go out in their order, and no thread waits for that (`response_order`).
//! A request therefore needs no second look: its node was verified, its route and its length are good.

mod folder;

use crate::api::response_order::{PipelineSlot, ResponseOrder};
use crate::critical_thread;
use crate::http::{Body, Handler, Reply, Request};
use crate::query::Query;
use crate::route::route;
use anyhow::Context;
use crossbeam_channel::Sender;
use jscommon::death;
use jscommon::worker::Worker;
use nix::fcntl::Flock;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};

/// Bytes of a body that tiny_http reads before anybody asks for them: what comes behind it on its connection
/// does not wait for its handler.
pub(crate) const QUICK_BODY: usize = 1024;
/// Most connections whose requests one thread answers together: while it is at them they carry nothing else.
const MAX_CONNECTIONS_A_THREAD: usize = 3;
/// Stack of a handler's thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;

/// How long to wait before tiny_http is made anew once more, after it could not be.
const REMAKE_PAUSE: Duration = Duration::from_millis(100);

/// The header by which the proxy says whose request it is: `gid:nid`.
pub(crate) const NODE_HEADER: &str = "X-JS-Node";
/// The header by which the proxy says where the request came from.
pub(crate) const PEER_HEADER: &str = "X-JS-Peer";
/// The header by which the proxy says when the client's certificate was issued, or `UNDATED`.
pub(crate) const ISSUED_HEADER: &str = "X-JS-Cert-Issued";
/// The value of `ISSUED_HEADER` for a certificate without an issue date.
pub(crate) const UNDATED: &str = "-";
/// The header by which the proxy says where a request stands among those of its connection.
pub(crate) const PLACE_HEADER: &str = "X-JS-Place";
/// The header by which an answer asks the proxy to park the poll for so many seconds.
pub(crate) const PARK_HEADER: &str = "X-JS-Park";

/// A running tiny_http; dropping it ends its threads, each after the request that it is at.
pub(crate) struct Handle {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

struct Shared {
    folder: PathBuf,
    /// Locked while this process lives: nobody else removes the folder.
    _lock: Flock<File>,
    socket: PathBuf,
    handler: Arc<dyn Handler>,
    /// Nothing once it was stopped. tiny_http's accept loop ends for good at the first error, so it
    /// may have to be made anew.
    server: Mutex<Option<Arc<tiny_http::Server>>>,
    threads: usize,
    response_order: ResponseOrder<Answered>,
    /// How many requests the threads have taken.
    taken: AtomicU64,
    /// The proxy was refused a connection: tiny_http's accept thread may have ended.
    refused: AtomicBool,
    /// A thread is making tiny_http anew.
    remaking: AtomicBool,
}

/// How the proxy reaches tiny_http, and says that it does not.
#[derive(Clone)]
pub struct Backend {
    socket: PathBuf,
    shared: Option<Arc<Shared>>,
}

impl Backend {
    /// The backend that listens on `socket`.
    pub fn at(socket: PathBuf) -> Backend {
        Backend { socket, shared: None }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// How many requests its threads have taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.taken.load(Ordering::Relaxed))
    }

    /// How many requests may travel on one connection, at most `most`.
    pub(crate) fn share(&self, most: usize) -> usize {
        let apart = self.shared.as_ref().is_some_and(|shared| shared.handler.apart());
        if apart { 1 } else { most }
    }

    /// A connection was refused: one of the threads looks whether tiny_http still listens, and makes it anew if
    /// not. Returns at once.
    pub(crate) fn refused(&self) {
        let Some(shared) = &self.shared else { return };
        if !shared.remaking.load(Ordering::Acquire)
            && !shared.refused.swap(true, Ordering::AcqRel)
            && let Some(server) = shared.current()
        {
            server.unblock();
        }
    }
}

/// A request and the answer to it.
type Answered = (tiny_http::Request, Reply);

impl Handle {
    /// Starts `threads` threads that answer by `handler`, on a socket in a private folder. `fatal` hears of a
    /// thread that fails.
    pub(crate) fn start(threads: usize, handler: Arc<dyn Handler>, fatal: &Sender<String>) -> anyhow::Result<Handle> {
        let (folder, lock) = folder::private(&std::env::temp_dir())?;
        let socket = folder.join("http");
        let server = Mutex::new(Some(Arc::new(listen(&socket)?)));
        let shared = Arc::new(Shared {
            folder,
            _lock: lock,
            socket,
            handler,
            server,
            threads,
            response_order: ResponseOrder::default(),
            taken: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            remaking: AtomicBool::new(false),
        });
        let mut handle = Handle { shared: shared.clone(), workers: Vec::new() };
        for i in 0..threads {
            let shared = shared.clone();
            let serve = move || {
                shared.serve();
                Ok(())
            };
            let worker = critical_thread::spawn(&format!("http-{i}"), STACK_BYTES, fatal.clone(), serve);
            handle.workers.push(worker.context("no thread for the web server")?);
        }
        Ok(handle)
    }

    /// For the proxy.
    pub(crate) fn backend(&self) -> Backend {
        Backend { socket: self.shared.socket.clone(), shared: Some(self.shared.clone()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(server) = self.shared.take() {
            self.workers.iter().for_each(|_| server.unblock());
            self.workers.clear();
            // Dropping it tells its accept thread to end; tiny_http knows the socket by another name
            // (see `listen`), so the connection that wakes that thread has to come from here.
            drop(server);
            let _ = UnixStream::connect(&self.shared.socket);
        }
        let _ = fs::remove_dir_all(&self.shared.folder);
    }
}

impl Shared {
    fn current(&self) -> Option<Arc<tiny_http::Server>> {
        self.server.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn take(&self) -> Option<Arc<tiny_http::Server>> {
        self.server.lock().unwrap_or_else(|e| e.into_inner()).take()
    }

    /// One thread: takes a request, answers it, takes the next.
    fn serve(&self) {
        while let Some(server) = self.current() {
            if self.refused.swap(false, Ordering::AcqRel) {
                self.remake(&server, None);
                continue;
            }
            match server.recv() {
                Ok(request) => {
                    death::point("acc.http");
                    let (taken, failed) = self.take_batch(&server, request);
                    self.taken.fetch_add(taken.len() as u64, Ordering::Relaxed);
                    self.answer(taken);
                    if let Some(e) = failed {
                        self.remake(&server, Some(&e));
                    }
                }
                // Another thread's word is not an error of the server: `refused` or `current` tells.
                Err(e) if e.raw_os_error().is_none() && e.kind() == ErrorKind::Other => {}
                Err(e) => self.remake(&server, Some(&e)),
            }
        }
    }

    /// Takes the requests that wait behind a quick one, up to one that may take longer.
    ///
    /// Looking may eat a word that was to wake this thread: it looks for what that said before it waits again.
    /// It may also meet the error with which tiny_http's accept loop has ended.
    fn take_batch(
        &self,
        server: &tiny_http::Server,
        first: tiny_http::Request,
    ) -> (Vec<tiny_http::Request>, Option<io::Error>) {
        let connection = |request: &tiny_http::Request| place(request).map(|place| place.slot);
        let mut connections = vec![connection(&first)];
        let mut taken = vec![first];
        while taken.len() < self.handler.max_batch()
            && connections.len() < MAX_CONNECTIONS_A_THREAD
            && taken.last().is_some_and(is_quick)
        {
            let next = match server.try_recv() {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(e) => return (taken, Some(e)),
            };
            let of = connection(&next);
            if of.is_none() || !connections.contains(&of) {
                connections.push(of);
            }
            taken.push(next);
        }
        (taken, None)
    }

    /// tiny_http accepts nothing any more, as its `error` says, or as it seems to the proxy: it is made anew, by
    /// one thread. The others answer what it had taken before.
    fn remake(&self, dead: &Arc<tiny_http::Server>, error: Option<&io::Error>) {
        if self.remaking.swap(true, Ordering::AcqRel) {
            return;
        }
        let is_dead = error.is_some() || is_refused(&self.socket);
        if is_dead && self.replace(dead, error) {
            (0..self.threads).for_each(|_| dead.unblock());
        }
        self.remaking.store(false, Ordering::Release);
    }

    /// Puts a new server in the place of `dead`, as soon as that can be; false when there is another one, or
    /// none any more.
    fn replace(&self, dead: &Arc<tiny_http::Server>, error: Option<&io::Error>) -> bool {
        let mut told = String::new();
        let why = error.map_or_else(|| "its accept thread has ended".to_owned(), ToString::to_string);
        log::error!("the web server behind the proxy stopped, it is made anew: {why}");
        loop {
            let mut current = self.server.lock().unwrap_or_else(|e| e.into_inner());
            if !current.as_ref().is_some_and(|server| Arc::ptr_eq(server, dead)) {
                return false;
            }
            // It starts a thread by a call that panics when there is none.
            let made = catch_unwind(AssertUnwindSafe(|| listen(&self.socket)))
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the system gives no more threads")));
            match made {
                Ok(server) => {
                    *current = Some(Arc::new(server));
                    log::info!("the web server behind the proxy was made anew");
                    return true;
                }
                Err(e) => {
                    drop(current);
                    let said = format!("{e:#}");
                    if said != told {
                        log::error!("the web server behind the proxy could not be made anew, trying on: {said}");
                        told = said;
                    }
                    std::thread::sleep(REMAKE_PAUSE);
                }
            }
        }
    }

    fn answer(&self, mut taken: Vec<tiny_http::Request>) {
        let (mut requests, mut replies) = (Vec::with_capacity(taken.len()), Vec::with_capacity(taken.len()));
        for request in &mut taken {
            match read(request) {
                Ok(request) => {
                    requests.push(request);
                    replies.push(None);
                }
                Err(e) => replies.push(Some(Reply::error(502, format!("the proxy handed over half a request: {e:#}")))),
            }
        }
        let handled = catch_unwind(AssertUnwindSafe(|| self.handler.handle_all(&mut requests))).unwrap_or_else(|_| {
            log::error!("a handler panicked at {:?}", requests.iter().map(|request| request.route).collect::<Vec<_>>());
            Vec::new()
        });
        let mut handled = handled.into_iter();
        for (request, reply) in taken.into_iter().zip(replies) {
            let failed = || Reply::error(500, "the controller failed at this request; its log says more");
            let reply = reply.unwrap_or_else(|| handled.next().unwrap_or_else(failed));
            match place(&request) {
                Some(place) => self.response_order.give(place, (request, reply), give),
                None => give((request, reply)),
            }
        }
    }
}

fn give((request, reply): Answered) {
    // The proxy is gone or has given up on this request; the client sends it again.
    if let Err(e) = request.respond(response(reply)) {
        log::debug!("an answer was not taken by the proxy: {e}");
    }
}

/// Where the request stands on its connection, if it is not alone there.
fn place(request: &tiny_http::Request) -> Option<PipelineSlot> {
    header(request, PLACE_HEADER).and_then(|place| place.parse().ok())
}

fn header(request: &tiny_http::Request, name: &'static str) -> Option<String> {
    request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.as_str().to_owned())
}

/// Whether a request, by its path, is one of those that come by the thousand and ask little of Redis.
fn is_quick(request: &tiny_http::Request) -> bool {
    let path = request.url().split('?').next().unwrap_or_default();
    (path.ends_with("/cmd") || path.ends_with("/result")) && request.body_length().unwrap_or(0) <= QUICK_BODY
}

/// The request as handlers see it, body and all.
fn read(request: &mut tiny_http::Request) -> anyhow::Result<Request> {
    let header = |name: &'static str| header(request, name);
    let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
    let route = route(request.method().as_str(), path)?;
    let query = Query::parse(query);
    let node = header(NODE_HEADER).map(|node| node.parse()).transpose()?;
    let peer = header(PEER_HEADER).map(|peer| peer.parse()).transpose()?;
    let bearer = header("Authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    let issued = header(ISSUED_HEADER);
    let cert_undated = issued.as_deref() == Some(UNDATED);
    let cert_issued = issued.filter(|_| !cert_undated).map(|issued| issued.parse()).transpose()?;
    let length = request.body_length().unwrap_or(0);
    let mut body = Vec::with_capacity(length);
    request.as_reader().read_to_end(&mut body)?;
    anyhow::ensure!(body.len() == length, "{} of {length} bytes came", body.len());
    Ok(Request { route, node, peer, query, bearer, cert_issued, cert_undated, body })
}

fn response(reply: Reply) -> tiny_http::Response<io::Cursor<Body>> {
    let length = reply.body.as_ref().len();
    // Never chunked: the proxy reads as far as the length says.
    let mut response =
        tiny_http::Response::new(reply.status.into(), Vec::new(), io::Cursor::new(reply.body), Some(length), None)
            .with_chunked_threshold(usize::MAX);
    let mut add = |name: &str, value: &str| match tiny_http::Header::from_bytes(name, value) {
        Ok(header) => response.add_header(header),
        Err(()) => log::error!("no header can be made of {name}: {value}"),
    };
    add("Content-Type", reply.content_type);
    for (name, value) in &reply.headers {
        add(name, value);
    }
    if let Some(seconds) = reply.retry_after {
        add("Retry-After", &seconds.to_string());
    }
    if let Some(seconds) = reply.park {
        add(PARK_HEADER, &seconds.to_string());
    }
    response
}

/// Whether nobody listens on `socket`.
fn is_refused(socket: &Path) -> bool {
    UnixStream::connect(socket).is_err_and(|e| matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound))
}

/// tiny_http on `socket`, in the place of whatever was there.
///
/// Its `Drop` removes the path that it was bound to, which would be its successor's: so it is bound
/// to another name first and moved into place.
fn listen(socket: &Path) -> anyhow::Result<tiny_http::Server> {
    let made = socket.with_extension(format!("{:08x}", fastrand::u32(..)));
    let listener = UnixListener::bind(&made).with_context(|| format!("cannot listen on {}", made.display()))?;
    let server = tiny_http::Server::from_listener(listener, None)
        .map_err(|e| anyhow::anyhow!("cannot start the web server behind the proxy: {e}"))?;
    fs::rename(&made, socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    struct Echo;

    /// Holds polls of node 1:1 until it is told to answer, and counts all requests.
    struct Slow(crossbeam_channel::Receiver<()>, std::sync::atomic::AtomicUsize);

    impl Handler for Slow {
        fn handle(&self, request: &mut Request) -> Reply {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if request.node.is_some_and(|node| node.nid == 1) {
                let _ = self.0.recv();
            }
            Reply::text("text/plain", format!("{:?}.", request.node))
        }
    }

    impl Handler for Echo {
        fn handle(&self, request: &mut Request) -> Reply {
            if request.query.first("panic").is_some() {
                panic!("asked to");
            }
            if request.query.first("cert").is_some() {
                return Reply::text("text/plain", format!("{:?} {:?}", request.cert_issued, request.cert_dated()));
            }
            let said = format!("{:?} {:?} {}", request.route, request.bearer, request.body.len());
            Reply { park: Some(7), retry_after: Some(3), ..Reply::text("text/plain", said) }
        }
    }

    fn start(threads: usize, handler: Arc<dyn Handler>) -> Handle {
        Handle::start(threads, handler, &crossbeam_channel::unbounded().0).unwrap()
    }

    fn ask(handle: &Handle, request: &str) -> String {
        let mut stream = UnixStream::connect(&handle.shared.socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn server_answers_until_it_is_dropped() {
        let handle = start(2, Arc::new(Echo));
        let body = "x".repeat(100_000);
        let head = "POST /1/2/log HTTP/1.1\r\nConnection: close\r\nX-JS-Node: 1:2\r\nAuthorization: Bearer t";
        let answer = ask(&handle, &format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("X-JS-Park: 7\r\n") && answer.contains("Retry-After: 3\r\n"), "{answer}");
        assert!(answer.ends_with("Log(NodeId { gid: 1, nid: 2 }) Some(\"t\") 100000"), "{answer}");
        let answer = ask(&handle, "GET /health?panic HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        let folder = handle.shared.folder.clone();
        assert!(folder.exists());
        drop(handle);
        assert!(!folder.exists());
    }

    #[test]
    fn a_slow_request_stops_no_thread_but_its_own() {
        let (done, wait) = crossbeam_channel::bounded::<()>(0);
        let slow = Arc::new(Slow(wait, 0.into()));
        let handle = start(3, slow.clone());
        let mut stream = UnixStream::connect(&handle.shared.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for at in 0..8 {
            let close = if at == 7 { "Connection: close\r\n" } else { "" };
            let head = format!("X-JS-Node: 1:{}\r\n{PLACE_HEADER}: 0 1 {at} 8\r\n", at + 1);
            stream.write_all(format!("GET /1/{}/cmd HTTP/1.1\r\n{close}{head}\r\n", at + 1).as_bytes()).unwrap();
        }
        let mut other = UnixStream::connect(&handle.shared.socket).unwrap();
        other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        while slow.1.load(std::sync::atomic::Ordering::SeqCst) < 3 {
            std::thread::sleep(Duration::from_millis(2));
        }
        other.write_all(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        let answered = other.read_to_string(&mut answer);
        drop(done);
        assert!(answered.is_ok() && answer.starts_with("HTTP/1.1 200 "), "{answered:?} {answer}");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        let seen: Vec<usize> = (1..=8).filter_map(|nid| answers.find(&format!("nid: {nid} }}"))).collect();
        assert!(seen.len() == 8 && seen.is_sorted(), "{answers}");
    }

    #[test]
    fn a_certificate_without_a_date_is_older_than_any_revocation() {
        let handle = start(1, Arc::new(Echo));
        for (header, want) in [
            ("", "None None"),
            ("X-JS-Cert-Issued: 5\r\n", "Some(5) Some(5)"),
            ("X-JS-Cert-Issued: -\r\n", "None Some(0)"),
        ] {
            let answer = ask(&handle, &format!("GET /health?cert HTTP/1.1\r\nConnection: close\r\n{header}\r\n"));
            assert!(answer.ends_with(want), "{header}: {answer}");
        }
    }

    #[test]
    fn server_is_made_anew_when_the_proxy_is_refused() {
        let handle = start(2, Arc::new(Echo));
        let dead = handle.shared.current().unwrap();
        // It listens as before: then nothing is done.
        handle.backend().refused();
        let answer = ask(&handle, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let end = std::time::Instant::now() + Duration::from_secs(20);
        let wait = |what: &str, done: &dyn Fn() -> bool| {
            while !done() {
                assert!(std::time::Instant::now() < end, "waited in vain until {what}");
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        wait("it was looked", &|| !handle.shared.refused.load(Ordering::SeqCst));
        wait("it was looked", &|| !handle.shared.remaking.load(Ordering::SeqCst));
        assert!(Arc::ptr_eq(&dead, &handle.shared.current().unwrap()));
        // A socket that nobody accepts from refuses connections as this one does.
        fs::remove_file(&handle.shared.socket).unwrap();
        drop(UnixListener::bind(&handle.shared.socket).unwrap());
        assert!(is_refused(&handle.shared.socket));
        wait("it is made anew", &|| {
            handle.backend().refused();
            !is_refused(&handle.shared.socket)
        });
        wait("it is the one", &|| !Arc::ptr_eq(&dead, &handle.shared.current().unwrap()));
        drop(dead);
        for _ in 0..4 {
            let answer = ask(&handle, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        assert!(handle.backend().taken() >= 5);
    }

    #[test]
    fn server_is_made_anew_when_its_accept_loop_ended() {
        let handle = start(2, Arc::new(Echo));
        let dead = handle.shared.current().unwrap();
        handle.shared.remake(&dead, Some(&io::Error::other("a test")));
        assert!(!Arc::ptr_eq(&dead, &handle.shared.current().unwrap()));
        drop(dead);
        for _ in 0..4 {
            let answer = ask(&handle, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
}
