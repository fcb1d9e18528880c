//! tiny_http behind the gate: a private Unix socket, some threads, one handler.
//!
//! Owns: the socket's private folder, the threads that take a request, answer it and take the next.
//! Does not own: what is answered; that is the `Handler` (the rooms in `handlers`).
//! The gate alone talks to it, in whole and well-formed requests, each on a connection of its own, or a few quick
//! ones on one: their answers go out in their order, and no thread waits for that (`turns`).
//! A request therefore needs no second look: its node was verified, its route and its length are good.

mod message;

pub(crate) use message::error_body;
pub use message::{Body, Handler, Reply, Request};

use crate::query::Query;
use crate::route::route;
use crate::turns::{Place, Turns};
use anyhow::Context;
use jscommon::worker::Worker;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};

/// Bytes of a body that tiny_http reads before anybody asks for them: what comes behind it on its connection
/// does not wait for its handler.
pub(crate) const QUICK_BODY: usize = 1024;
/// Most connections whose requests one thread answers together: while it is at them they carry nothing else.
const CONNECTIONS: usize = 3;
/// Stack of a handler's thread, in bytes.
const STACK: usize = 512 * 1024;

/// How long to wait before tiny_http is made anew once more, after it could not be.
const REMAKE_PAUSE: Duration = Duration::from_millis(100);

/// The header by which the gate says whose request it is: `gid:nid`.
pub(crate) const NODE_HEADER: &str = "X-JS-Node";
/// The header by which the gate says where the request came from.
pub(crate) const PEER_HEADER: &str = "X-JS-Peer";
/// The header by which the gate says when the client's certificate was issued.
pub(crate) const ISSUED_HEADER: &str = "X-JS-Cert-Issued";
/// The header by which the gate says where a request stands among those of its connection.
pub(crate) const PLACE_HEADER: &str = "X-JS-Place";
/// The header by which an answer asks the gate to park the poll for so many seconds.
pub(crate) const PARK_HEADER: &str = "X-JS-Park";

/// A running tiny_http; dropping it ends its threads, each after the request that it is at.
pub struct Handle {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
}

struct Shared {
    folder: PathBuf,
    socket: PathBuf,
    handler: Arc<dyn Handler>,
    /// Nothing once it was stopped. tiny_http's accept loop ends for good at the first error, so it
    /// may have to be made anew.
    server: Mutex<Option<Arc<tiny_http::Server>>>,
    threads: usize,
    turns: Turns<Answered>,
}

/// A request and the answer to it.
type Answered = (tiny_http::Request, Reply);

impl Handle {
    /// Starts `threads` threads that answer by `handler`, on a socket in a private folder.
    pub fn start(threads: usize, handler: Arc<dyn Handler>) -> anyhow::Result<Handle> {
        let folder = private_folder()?;
        let socket = folder.join("http");
        let server = Mutex::new(Some(Arc::new(listen(&socket)?)));
        let turns = Turns::default();
        let shared = Arc::new(Shared { folder, socket, handler, server, threads, turns });
        let mut handle = Handle { shared: shared.clone(), workers: Vec::new() };
        for i in 0..threads {
            let shared = shared.clone();
            let worker = Worker::spawn(&format!("http-{i}"), STACK, move || shared.serve());
            handle.workers.push(worker.context("no thread for the web server")?);
        }
        Ok(handle)
    }

    /// Where the gate reaches it.
    pub fn socket(&self) -> &Path {
        &self.shared.socket
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
            match server.recv() {
                Ok(request) => self.answer(self.together(&server, request)),
                Err(e) => self.remake(&server, &e),
            }
        }
    }

    /// What waits behind a quick request, up to one that may take longer.
    ///
    /// Looking may eat a word that was to wake this thread (see `remake`): it looks for another server, or for
    /// none, before it waits again.
    fn together(&self, server: &tiny_http::Server, first: tiny_http::Request) -> Vec<tiny_http::Request> {
        let connection = |request: &tiny_http::Request| place(request).map(|place| place.slot);
        let mut connections = vec![connection(&first)];
        let mut taken = vec![first];
        while taken.len() < self.handler.together()
            && connections.len() < CONNECTIONS
            && taken.last().is_some_and(is_quick)
            && let Ok(Some(next)) = server.try_recv()
        {
            let of = connection(&next);
            if of.is_none() || !connections.contains(&of) {
                connections.push(of);
            }
            taken.push(next);
        }
        taken
    }

    /// `recv` failed: either it was unblocked, because there is another server or none, or tiny_http
    /// will accept nothing any more.
    fn remake(&self, dead: &Arc<tiny_http::Server>, error: &io::Error) {
        let mut said = false;
        loop {
            let mut current = self.server.lock().unwrap_or_else(|e| e.into_inner());
            if !current.as_ref().is_some_and(|server| Arc::ptr_eq(server, dead)) {
                return;
            }
            if !std::mem::replace(&mut said, true) {
                log::error!("the web server behind the gate stopped, it is made anew: {error}");
            }
            match listen(&self.socket) {
                Ok(server) => {
                    *current = Some(Arc::new(server));
                    return (0..self.threads).for_each(|_| dead.unblock());
                }
                Err(e) => {
                    drop(current);
                    log::error!("the web server behind the gate could not be made anew: {e:#}");
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
                Err(e) => replies.push(Some(Reply::error(502, format!("the gate handed over half a request: {e:#}")))),
            }
        }
        let handled = catch_unwind(AssertUnwindSafe(|| self.handler.handle_all(&requests))).unwrap_or_else(|_| {
            log::error!("a handler panicked at {:?}", requests.iter().map(|request| request.route).collect::<Vec<_>>());
            Vec::new()
        });
        let mut handled = handled.into_iter();
        for (request, reply) in taken.into_iter().zip(replies) {
            let failed = || Reply::error(500, "the controller failed at this request; its log says more");
            let reply = reply.unwrap_or_else(|| handled.next().unwrap_or_else(failed));
            match place(&request) {
                Some(place) => self.turns.give(place, (request, reply), give),
                None => give((request, reply)),
            }
        }
    }
}

fn give((request, reply): Answered) {
    // The gate is gone or has given up on this request; the client sends it again.
    if let Err(e) = request.respond(response(reply)) {
        log::debug!("an answer was not taken by the gate: {e}");
    }
}

/// Where the request stands on its connection, if it is not alone there.
fn place(request: &tiny_http::Request) -> Option<Place> {
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
    let cert_issued = header(ISSUED_HEADER).map(|issued| issued.parse()).transpose()?;
    let length = request.body_length().unwrap_or(0);
    let mut body = Vec::with_capacity(length);
    request.as_reader().read_to_end(&mut body)?;
    anyhow::ensure!(body.len() == length, "{} of {length} bytes came", body.len());
    Ok(Request { route, node, peer, query, bearer, cert_issued, body })
}

fn response(reply: Reply) -> tiny_http::Response<io::Cursor<Body>> {
    let length = reply.body.as_ref().len();
    // Never chunked: the gate reads as far as the length says.
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

/// tiny_http on `socket`, in the place of whatever was there.
///
/// Its `Drop` removes the path that it was bound to, which would be its successor's: so it is bound
/// to another name first and moved into place.
fn listen(socket: &Path) -> anyhow::Result<tiny_http::Server> {
    let made = socket.with_extension("new");
    let listener = UnixListener::bind(&made).with_context(|| format!("cannot listen on {}", made.display()))?;
    let server = tiny_http::Server::from_listener(listener, None)
        .map_err(|e| anyhow::anyhow!("cannot start the web server behind the gate: {e}"))?;
    fs::rename(&made, socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    Ok(server)
}

/// A new folder that nobody else may look into; those that killed controllers left behind go.
fn private_folder() -> anyhow::Result<PathBuf> {
    let parent = std::env::temp_dir();
    sweep(&parent);
    let folder = parent.join(format!("jsacc-{}-{:08x}", std::process::id(), fastrand::u32(..)));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("cannot make {}, where the socket of the web server goes", folder.display()))?;
    Ok(folder)
}

/// Removes the folders of processes that are no more; another user's stay, for they cannot be removed.
fn sweep(parent: &Path) {
    if !Path::new("/proc/self").exists() {
        return;
    }
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("jsacc-")).and_then(|rest| rest.split_once('-'));
        if let Some((pid, _)) = pid
            && pid.parse::<u32>().is_ok()
            && !Path::new("/proc").join(pid).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    struct Echo;

    /// Whose polls of node 1:1 last until it is told; it counts all that it was asked.
    struct Slow(crossbeam_channel::Receiver<()>, std::sync::atomic::AtomicUsize);

    impl Handler for Slow {
        fn handle(&self, request: &Request) -> Reply {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if request.node.is_some_and(|node| node.nid == 1) {
                let _ = self.0.recv();
            }
            Reply::text("text/plain", format!("{:?}.", request.node))
        }
    }

    impl Handler for Echo {
        fn handle(&self, request: &Request) -> Reply {
            if request.query.first("panic").is_some() {
                panic!("asked to");
            }
            let said = format!("{:?} {:?} {}", request.route, request.bearer, request.body.len());
            Reply { park: Some(7), retry_after: Some(3), ..Reply::text("text/plain", said) }
        }
    }

    fn ask(handle: &Handle, request: &str) -> String {
        let mut stream = UnixStream::connect(handle.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn answers_until_it_is_dropped() {
        let handle = Handle::start(2, Arc::new(Echo)).unwrap();
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
        let handle = Handle::start(3, slow.clone()).unwrap();
        let mut stream = UnixStream::connect(handle.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for at in 0..8 {
            let close = if at == 7 { "Connection: close\r\n" } else { "" };
            let head = format!("X-JS-Node: 1:{}\r\n{PLACE_HEADER}: 0 1 {at} 8\r\n", at + 1);
            stream.write_all(format!("GET /1/{}/cmd HTTP/1.1\r\n{close}{head}\r\n", at + 1).as_bytes()).unwrap();
        }
        let mut other = UnixStream::connect(handle.socket()).unwrap();
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
    fn is_made_anew_when_its_accept_loop_ended() {
        let handle = Handle::start(2, Arc::new(Echo)).unwrap();
        let dead = handle.shared.current().unwrap();
        handle.shared.remake(&dead, &io::Error::other("a test"));
        assert!(!Arc::ptr_eq(&dead, &handle.shared.current().unwrap()));
        drop(dead);
        for _ in 0..4 {
            let answer = ask(&handle, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }
}
