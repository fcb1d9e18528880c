//! tiny_http behind the proxy: a private Unix socket, some threads, one handler.
//!
//! Owns: the socket's private folder, the threads that take a request, answer it and take the next.
//! Does not own: what is answered; that is the `Handler` (the files beside this folder).
//! The proxy alone talks to it, in whole and well-formed requests, one after the other on connections that it keeps.
//! A request therefore needs no second look: its node was verified, its route and its length are good.

mod folder;
mod message;

#[cfg(test)]
mod tests;

use crate::critical_thread;
use crate::http::{Handler, Reply};
use anyhow::Context;
use crossbeam_channel::Sender;
use jscommon::failpoint;
use jscommon::lock::lock;
use jscommon::worker::Worker;
use message::{is_quick, opening, read, response};
use nix::fcntl::Flock;
use std::collections::VecDeque;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, io};

/// Bytes of a body that tiny_http reads before anybody asks for them: no handler waits for the rest of it.
pub(crate) const QUICK_BODY: usize = 1024;
/// Stack of a handler's thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;

/// Most connections that are remembered as served: more than there are at once.
const MAX_OPENINGS: usize = 256;

/// How long to wait before tiny_http is made anew once more, after it could not be.
const REMAKE_PAUSE: Duration = Duration::from_millis(100);
/// How long requests to a replaced server are awaited: the proxy looks which one it is right before it sends one.
const DRAIN: Duration = Duration::from_secs(1);

/// The header by which the proxy says whose request it is: `gid:nid`.
pub(crate) const NODE_HEADER: &str = "X-JS-Node";
/// The header by which the proxy says where the request came from.
pub(crate) const PEER_HEADER: &str = "X-JS-Peer";
/// The header by which the proxy says when the client's certificate was issued, or `UNDATED`.
pub(crate) const ISSUED_HEADER: &str = "X-JS-Cert-Issued";
/// The value of `ISSUED_HEADER` for a certificate without an issue date.
pub(crate) const UNDATED: &str = "-";
/// The header by which the first request of a connection says its number.
pub(crate) const OPENING_HEADER: &str = "X-JS-Opening";
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
    /// How often tiny_http was made anew.
    generation: AtomicU64,
    /// How many requests the threads have taken.
    taken: AtomicU64,
    /// The last connections of which a thread has taken the first request.
    openings: Mutex<VecDeque<u64>>,
    /// How many threads are at requests.
    busy: AtomicUsize,
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

    /// How many requests may travel together on a connection, at most `most`. Their responses come in their order, so
    /// one that waits for one server of a cluster would delay others.
    pub(crate) fn max_group(&self, most: usize) -> usize {
        self.shared.as_ref().map_or(most, |shared| shared.handler.max_batch().min(most))
    }

    /// Whether a connection may have no thread of tiny_http: its first request, which says its number, was not taken, and
    /// there are threads of ours that wait for one.
    pub(crate) fn may_lack_thread(&self, opening: u64) -> bool {
        !self.has_taken(opening)
            && self.shared.as_ref().is_none_or(|shared| shared.busy.load(Ordering::Acquire) < shared.threads)
    }

    /// Whether the first request of a connection was taken.
    pub(crate) fn has_taken(&self, opening: u64) -> bool {
        self.shared.as_ref().is_some_and(|shared| lock(&shared.openings).contains(&opening))
    }

    /// Which tiny_http listens, where one that ended was made anew.
    pub(crate) fn generation(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.generation.load(Ordering::Acquire))
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
            generation: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            openings: Mutex::default(),
            busy: AtomicUsize::new(0),
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

    /// Makes tiny_http anew as after an error.
    #[cfg(test)]
    pub(crate) fn remake(&self) {
        let shared = self.shared.clone();
        let dead = shared.current().expect("it runs");
        let remade = shared.generation.load(Ordering::Acquire) + 1;
        std::thread::spawn(move || shared.remake(&dead, Some(&io::Error::other("a test"))));
        while self.shared.generation.load(Ordering::Acquire) < remade {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How many connections were opened.
    #[cfg(test)]
    pub(crate) fn opened(&self) -> u64 {
        lock(&self.shared.openings).iter().copied().max().unwrap_or(0)
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
        lock(&self.server).clone()
    }

    fn take(&self) -> Option<Arc<tiny_http::Server>> {
        lock(&self.server).take()
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
                    failpoint::hit("acc.http");
                    let (taken, failed) = self.take_batch(&server, request);
                    self.taken.fetch_add(taken.len() as u64, Ordering::Relaxed);
                    taken.iter().filter_map(opening).for_each(|opening| self.note_opening(opening));
                    self.busy.fetch_add(1, Ordering::AcqRel);
                    self.answer(taken);
                    self.busy.fetch_sub(1, Ordering::AcqRel);
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

    fn note_opening(&self, opening: u64) {
        let mut openings = lock(&self.openings);
        openings.push_back(opening);
        if openings.len() > MAX_OPENINGS {
            openings.pop_front();
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
        let mut taken = vec![first];
        while taken.len() < self.handler.max_batch() && taken.last().is_some_and(is_quick) {
            match server.try_recv() {
                Ok(Some(next)) => taken.push(next),
                Ok(None) => break,
                Err(e) => return (taken, Some(e)),
            }
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
        let is_replaced = is_dead && self.replace(dead, error);
        self.remaking.store(false, Ordering::Release);
        if is_replaced {
            (0..self.threads).for_each(|_| dead.unblock());
            self.drain(dead);
            // It may have taken what was meant for another thread.
            (0..self.threads).for_each(|_| dead.unblock());
        }
    }

    /// Answers what the replaced server had taken, or takes yet on a connection that the proxy had kept.
    fn drain(&self, dead: &tiny_http::Server) {
        let end = Instant::now() + DRAIN;
        while self.current().is_some() && Instant::now() < end {
            if let Ok(Some(request)) = dead.recv_timeout(REMAKE_PAUSE) {
                self.answer(vec![request]);
            }
        }
    }

    /// Puts a new server instead of `dead`, as soon as that can be; false when there is another one, or
    /// none any more.
    fn replace(&self, dead: &Arc<tiny_http::Server>, error: Option<&io::Error>) -> bool {
        let mut told = String::new();
        let why = error.map_or_else(|| "its accept thread has ended".to_owned(), ToString::to_string);
        log::error!("the web server behind the proxy stopped, it is made anew: {why}");
        loop {
            let mut current = lock(&self.server);
            if !current.as_ref().is_some_and(|server| Arc::ptr_eq(server, dead)) {
                return false;
            }
            // It starts a thread by a call that panics when there is none.
            let made = catch_unwind(AssertUnwindSafe(|| listen(&self.socket)))
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the system gives no more threads")));
            match made {
                Ok(server) => {
                    *current = Some(Arc::new(server));
                    self.generation.fetch_add(1, Ordering::AcqRel);
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
            // The proxy is gone or has given up on this request; the client sends it again.
            if let Err(e) = request.respond(response(reply)) {
                log::debug!("an answer was not taken by the proxy: {e}");
            }
        }
    }
}

/// Whether nobody listens on `socket`.
fn is_refused(socket: &Path) -> bool {
    UnixStream::connect(socket).is_err_and(|e| matches!(e.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound))
}

/// tiny_http on `socket`, instead of whatever was there.
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
