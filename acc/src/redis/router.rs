//! The way of calls to the servers that have their keys: one server, or the masters of a cluster.
//!
//! Owns: the slots of each server as last learnt, following MOVED and ASK, waiting out TRYAGAIN, scripts on every
//! server before their first use there, transactions. Does not own: what the calls are, or when to connect again
//! (`pool`).
//!
//! **A call is sent again only when its server has said that it did not do it** (MOVED, ASK, TRYAGAIN,
//! NOSCRIPT). When an answer is lost with its connection that is an error: the caller knows what may be
//! repeated, and what has to be looked for then.
//!
//! **A server of a cluster that does not answer fails the calls that are for it, and no others** (`SERVER_AWAY`): a
//! cluster without `cluster-require-full-coverage` goes on with the rest.

use super::address::Address;
use super::batch::{Batch, command};
use super::connection::{self, CONNECT_TIMEOUT};
use super::errors::{SERVER_AWAY, describe, is_interrupted};
use super::known_servers::ServerAddr;
use super::server::Server;
use super::topology::{self, Topology, slot_of};
use redis::{Cmd, Connection, ConnectionInfo, ErrorKind, RedisError, RedisResult, ServerError, ServerErrorKind, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest time in which a server tells who has which slots; then the next one is asked.
const TOPOLOGY_QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for asking all of them, but for the answer of the last one that is asked. A caller that needs a
/// connection waits for it.
const TOPOLOGY_TOTAL_TIMEOUT: Duration = Duration::from_secs(6);
/// So often a call may be sent elsewhere.
const MAX_REDIRECTIONS: usize = 8;
/// For how long calls are tried again whose keys are on their way from one server to another.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long a server to which no connection came up is not tried again: at first, and at most.
const RECONNECT_BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// Time between two such tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Calls on their way to the servers that have their keys. A server that stands alone has all of them.
pub(super) struct Router {
    address: Address,
    /// How each server is reached, but for its name.
    model: ConnectionInfo,
    response_timeout: Duration,
    topology: Topology,
    /// The only server; it is no cluster. An error of it is one of the whole.
    alone: Option<ServerAddr>,
    /// The server that has told of it.
    map_source: Option<ServerAddr>,
    servers: HashMap<ServerAddr, Server>,
    /// Servers to which no connection came up: until when they are not tried, and for how long that was.
    avoided: HashMap<ServerAddr, (Instant, Duration)>,
    /// Slots whose keys are on their way, and since when that is known: each is waited for once.
    moving: HashMap<u16, Instant>,
}

/// Which way a call takes.
#[derive(Clone, Debug)]
enum Destination {
    /// To the master of its slot.
    Slot,
    /// To where MOVED has sent it.
    Moved(ServerAddr),
    /// To where ASK has sent it.
    Asking(ServerAddr),
}

/// A call that has no answer yet.
struct Open {
    index: usize,
    way: Destination,
    redirections: usize,
    /// Its script was missing once already.
    reloaded: bool,
}

impl Open {
    fn is_asking(&self) -> bool {
        matches!(self.way, Destination::Asking(_))
    }
}

impl Router {
    /// Routes all calls to the only server, over `conn`.
    pub(super) fn alone(address: &Address, conn: Connection, response_timeout: Duration) -> Router {
        let mut router = Router::new(address, response_timeout);
        // A socket of the file system has no host, and no other server is ever looked for.
        let alone = connection::server_addr(&router.model).unwrap_or_default();
        router.servers.insert(alone.clone(), Server::new(conn, address.schema));
        router.alone = Some(alone);
        router
    }

    /// Asks any of the servers that are known where all the others are.
    pub(super) fn cluster(address: &Address, response_timeout: Duration) -> RedisResult<Router> {
        let mut router = Router::new(address, response_timeout);
        router.refresh_topology()?;
        Ok(router)
    }

    fn new(address: &Address, response_timeout: Duration) -> Router {
        Router {
            model: address.target.servers[0].clone(),
            address: address.clone(),
            response_timeout,
            topology: Topology::default(),
            alone: None,
            map_source: None,
            servers: HashMap::new(),
            avoided: HashMap::new(),
            moving: HashMap::new(),
        }
    }

    /// Whether keys of different slots lie on different servers, so that no call may have both.
    pub(super) fn is_cluster(&self) -> bool {
        self.alone.is_none()
    }

    /// Runs all calls, side by side on their servers, and gives what became of each; an answer that is an error is a
    /// value. `scripted`: there may be scripts among them.
    pub(super) fn run(&mut self, calls: &[Cmd], scripted: bool) -> RedisResult<Vec<RedisResult<Value>>> {
        let mut answers: Vec<RedisResult<Value>> = calls.iter().map(|_| Ok(Value::Nil)).collect();
        let open = |index| Open { index, way: Destination::Slot, redirections: 0, reloaded: false };
        let mut todo: Vec<Open> = (0..calls.len()).map(open).collect();
        let (mut moved, mut failed) = (false, false);
        while !todo.is_empty() {
            todo.sort_unstable_by_key(|open| open.index);
            let mut shares: BTreeMap<ServerAddr, Vec<Open>> = BTreeMap::new();
            if let Some(alone) = &self.alone {
                shares.insert(alone.clone(), std::mem::take(&mut todo));
            }
            for open in todo.drain(..) {
                match self.destination(&calls[open.index], &open.way) {
                    Ok(addr) => shares.entry(addr).or_default().push(open),
                    Err(e) => {
                        failed = true;
                        answers[open.index] = Err(e);
                    }
                }
            }
            let mut sent = Vec::with_capacity(shares.len());
            for (addr, share) in shares {
                let outcome = self.send(&addr, &share, calls, scripted);
                sent.push((addr, share, outcome));
            }
            let mut wait = false;
            for (addr, share, outcome) in sent {
                let received = outcome.and_then(|loads| self.receive(&addr, &share, loads));
                let received = match received {
                    Ok(received) => received,
                    Err(e) if self.alone.is_some() => return Err(e),
                    Err(e) => {
                        failed |= !is_interrupted(&e);
                        let error = self.lost(&addr, &e);
                        share.iter().for_each(|open| answers[open.index] = Err(error.clone()));
                        continue;
                    }
                };
                for (mut open, answer) in share.into_iter().zip(received) {
                    let Value::ServerError(error) = &answer else {
                        if !self.moving.is_empty() {
                            slot_of(&calls[open.index]).map(|slot| self.moving.remove(&slot));
                        }
                        answers[open.index] = Ok(answer);
                        continue;
                    };
                    let again = self.next_way(&addr, &calls[open.index], &mut open, error);
                    moved |= error.kind() == Some(ServerErrorKind::Moved);
                    wait |= again.is_some() && error.kind() == Some(ServerErrorKind::TryAgain);
                    open.redirections += 1;
                    match again.filter(|_| open.redirections <= MAX_REDIRECTIONS) {
                        Some(way) => todo.push(Open { way, ..open }),
                        None => answers[open.index] = Ok(answer),
                    }
                }
            }
            if wait && !todo.is_empty() {
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
        if failed {
            // Its map has led here: it may be cut off from the others, and somebody else is asked next.
            self.map_source.iter().for_each(|map_source| self.address.known_servers.failed(map_source));
        }
        if moved || failed {
            // A failure is met again by the next call that is redirected.
            let _ = self.refresh_topology();
        }
        Ok(answers)
    }

    /// Which way a call takes next that a server has not done; nothing where its error stands.
    fn next_way(&mut self, addr: &ServerAddr, call: &Cmd, open: &mut Open, error: &ServerError) -> Option<Destination> {
        let to = || topology::redirection(error.details().unwrap_or_default(), addr);
        match error.kind()? {
            ServerErrorKind::Moved => to().map(Destination::Moved),
            ServerErrorKind::Ask => to().map(Destination::Asking),
            ServerErrorKind::TryAgain => {
                open.redirections = 0;
                let since = *self.moving.entry(slot_of(call)?).or_insert_with(Instant::now);
                (since.elapsed() < MIGRATION_TIMEOUT).then_some(Destination::Slot)
            }
            ServerErrorKind::NoScript if !std::mem::replace(&mut open.reloaded, true) => {
                self.servers.get_mut(addr).into_iter().for_each(Server::forget_scripts);
                Some(open.way.clone())
            }
            _ => None,
        }
    }

    /// Whether `transact` can be called: the servers of a cluster have no transaction together, and a user may have
    /// none at all.
    pub(super) fn has_transactions(&self) -> bool {
        let server = self.alone.as_ref().and_then(|alone| self.servers.get(alone));
        server.is_some_and(|server| server.has_transactions)
    }

    /// Runs all calls or none, as far as a server refuses calls before it does any.
    pub(super) fn transact(&mut self, batch: &Batch) -> RedisResult<Vec<Value>> {
        let mut answers = self.exec(&batch.calls.iter().collect::<Vec<_>>(), batch.scripted)?;
        // Calls whose scripts were missing are done once more. None of them has one that must not run without those
        // that were there (see `scripts`).
        let forgotten: Vec<usize> = (0..answers.len()).filter(|i| is_forgotten(&answers[*i])).collect();
        if !forgotten.is_empty() {
            self.servers.values_mut().for_each(Server::forget_scripts);
            let some: Vec<&Cmd> = forgotten.iter().map(|i| &batch.calls[*i]).collect();
            for (i, answer) in forgotten.into_iter().zip(self.exec(&some, true)?) {
                answers[i] = answer;
            }
        }
        Ok(answers)
    }

    fn exec(&mut self, calls: &[&Cmd], scripted: bool) -> RedisResult<Vec<Value>> {
        let server = self.alone.as_ref().and_then(|alone| self.servers.get_mut(alone)).ok_or_else(gone)?;
        let loads = server.send_transaction(calls, scripted)?;
        let mut answers = server.receive(loads, std::iter::repeat_n(false, calls.len() + 2))?;
        let done = answers.pop().unwrap_or(Value::Nil);
        let begun = answers.remove(0);
        if matches!(begun, Value::ServerError(_)) {
            // Without MULTI each call was done by itself, and its answer is there; from now on it takes two
            // round trips.
            log::debug!("redis lets this user have no transactions: {begun:?}");
            server.has_transactions = false;
            self.refuse_redirections(&answers)?;
            return Ok(answers);
        }
        self.refuse_redirections(&answers)?;
        // Where one server has all slots, it says so only of the whole transaction.
        self.refuse_redirections(if let Value::Array(done) = &done { done } else { std::slice::from_ref(&done) })?;
        match done {
            Value::Array(answers) => Ok(answers),
            // Which of the calls was refused says more than that all were.
            done => {
                answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop))?;
                done.extract_error()?;
                Err((ErrorKind::UnexpectedReturnType, "a transaction was not done").into())
            }
        }
    }

    /// A server that may not be asked how it works shows by its answers that it is one of a cluster.
    fn refuse_redirections(&self, answers: &[Value]) -> RedisResult<()> {
        if !answers.iter().any(is_redirection) {
            return Ok(());
        }
        self.address.cluster.store(true, Ordering::Relaxed);
        Err(RedisError::from((ErrorKind::Io, "it is one server of a cluster; the others are looked for")))
    }

    /// A server did not answer: what was not read there would be taken for the answer to something else.
    fn lost(&mut self, addr: &ServerAddr, error: &RedisError) -> RedisError {
        self.servers.remove(addr);
        if is_interrupted(error) {
            return error.clone();
        }
        self.address.known_servers.failed(addr);
        self.address.silent.failed(addr, error);
        away(addr, error)
    }

    /// Where a call goes.
    fn destination(&self, call: &Cmd, way: &Destination) -> RedisResult<ServerAddr> {
        let addr = match way {
            Destination::Moved(addr) | Destination::Asking(addr) => Some(addr),
            // A call without a key is anybody's.
            Destination::Slot => match slot_of(call) {
                Some(slot) => self.topology.master(slot),
                None => self.topology.any(),
            },
        };
        addr.cloned().ok_or_else(|| {
            let what = "no server of the cluster has the slot of this key, as far as it knows".to_owned();
            redis::make_extension_error(SERVER_AWAY.into(), Some(what))
        })
    }

    /// Sends a server its share; returns how many answers come ahead of those to the calls.
    fn send(&mut self, addr: &ServerAddr, share: &[Open], calls: &[Cmd], scripted: bool) -> RedisResult<usize> {
        let server = self.server(addr, CONNECT_TIMEOUT, self.response_timeout)?;
        server.send(share.iter().map(|open| (&calls[open.index], open.is_asking())), scripted)
    }

    /// Reads the answers to what `send` has sent.
    fn receive(&mut self, addr: &ServerAddr, share: &[Open], loads: usize) -> RedisResult<Vec<Value>> {
        let server = self.servers.get_mut(addr).ok_or_else(gone)?;
        let answers = server.receive(loads, share.iter().map(Open::is_asking))?;
        if self.alone.is_some() {
            self.refuse_redirections(&answers)?;
        }
        Ok(answers)
    }

    fn server(&mut self, addr: &ServerAddr, limit: Duration, response_timeout: Duration) -> RedisResult<&mut Server> {
        if !self.servers.contains_key(addr) {
            let (until, last) = self.avoided.get(addr).copied().unwrap_or((Instant::now(), Duration::ZERO));
            if Instant::now() < until {
                let what = "it did not answer just now, and the next try is not due yet";
                return Err(RedisError::from((ErrorKind::Io, what)));
            }
            let info = connection::with_host(&self.model, addr);
            match connection::server(info, self.address.ca.as_deref(), limit, response_timeout) {
                Ok((conn, _)) => {
                    self.avoided.remove(addr);
                    self.address.silent.answered(addr);
                    self.servers.insert(addr.clone(), Server::new(conn, self.address.schema));
                }
                Err(e) => {
                    let pause = (2 * last).clamp(RECONNECT_BACKOFF.0, RECONNECT_BACKOFF.1);
                    self.avoided.insert(addr.clone(), (Instant::now() + pause, pause));
                    return Err(e);
                }
            }
        }
        self.servers.get_mut(addr).ok_or_else(gone)
    }

    /// Asks who has which slots.
    fn refresh_topology(&mut self) -> RedisResult<()> {
        let mut why = RedisError::from((ErrorKind::Io, "no server of the cluster is known"));
        let begin = Instant::now();
        for addr in self.address.known_servers.addrs() {
            if begin.elapsed() >= TOPOLOGY_TOTAL_TIMEOUT {
                break;
            }
            match self.ask(&addr) {
                Ok((topology, told)) => {
                    self.map_source = Some(addr.clone());
                    self.address.known_servers.answered(&addr, told);
                    // Of servers that are no masters any more nothing is wanted.
                    self.servers.retain(|addr, _| topology.has(addr));
                    self.topology = topology;
                    return Ok(());
                }
                Err(e) => {
                    self.servers.remove(&addr);
                    // The next try, of whomever, goes on behind it.
                    self.address.known_servers.failed(&addr);
                    // An error that a server answers stands as it is.
                    why = if e.code().is_some() { e } else { named(&addr, &e) };
                }
            }
        }
        Err(why)
    }

    fn ask(&mut self, addr: &ServerAddr) -> RedisResult<(Topology, Vec<ServerAddr>)> {
        let response_timeout = self.response_timeout;
        let conn = &mut self.server(addr, TOPOLOGY_QUERY_TIMEOUT, response_timeout)?.conn;
        conn.set_read_timeout(Some(TOPOLOGY_QUERY_TIMEOUT.min(response_timeout)))?;
        let answer = connection::single(conn, &command("CLUSTER", "SLOTS"))?;
        conn.set_read_timeout(Some(response_timeout))?;
        Topology::read(&answer, addr).ok_or_else(|| {
            RedisError::from((ErrorKind::Io, "a server of the cluster knows of no slots: it is no part of it yet"))
        })
    }
}

/// The error of a call whose server does not answer.
fn away(addr: &ServerAddr, error: &RedisError) -> RedisError {
    let what = format!("the server {}:{} of the redis cluster does not answer: {}", addr.0, addr.1, describe(error));
    redis::make_extension_error(SERVER_AWAY.into(), Some(what))
}

/// `error` with the name of the server that it comes from, which perhaps nobody has named.
fn named(addr: &ServerAddr, error: &RedisError) -> RedisError {
    let what = format!("{}:{}: {}", addr.0, addr.1, describe(error));
    RedisError::from((ErrorKind::Io, "no server of the cluster answers", what))
}

fn gone() -> RedisError {
    RedisError::from((ErrorKind::Io, "the connection is gone"))
}

/// Whether only a server of a cluster answers so.
fn is_redirection(answer: &Value) -> bool {
    use ServerErrorKind::{Ask, CrossSlot, Moved};
    matches!(answer, Value::ServerError(e) if matches!(e.kind(), Some(Moved | Ask | CrossSlot)))
}

fn is_forgotten(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(e) if e.kind() == Some(ServerErrorKind::NoScript))
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
