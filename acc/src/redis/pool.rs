//! Connections to Redis for many threads, made anew with backoff when they break.
//!
//! Owns: idle connections, whether Redis answers, the two log lines that say so (gone, back).
//! Does not own: what is asked. While Redis is away nobody waits here: a call fails at once until the
//! next try is due, so that no thread hangs and not all threads connect at once.

use super::address::Address;
use super::conn::Conn;
use super::errors::{describe, is_away, is_broken, is_interrupted};
use crate::metrics::Metrics;
use jscommon::backoff::Backoff;
use jscommon::lock::lock;
use redis::{ErrorKind, RedisError, RedisResult};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long an answer to a call that does not block may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Redis is back when nothing has failed for so long: of a cluster some servers answer while another is away.
const RECOVERY_TIME: Duration = Duration::from_secs(2);
/// Most reasons that are logged until Redis is back.
const MAX_LOGGED_REASONS: usize = 8;
/// Most connections kept for later.
const MAX_IDLE_CONNECTIONS: usize = 32;

/// Redis, for any thread. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    address: Address,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

struct State {
    idle: Vec<Conn>,
    /// When the next try is due; nothing while Redis answers.
    down: Option<Instant>,
    backoff: Backoff,
    /// Why Redis is away, as far as it was logged; empty for what is no answer of Redis.
    said: Vec<String>,
    /// The last of those reasons.
    why: String,
    failed: Option<Instant>,
}

impl Pool {
    /// No connection is made yet.
    pub(crate) fn new(address: Address, metrics: Arc<Metrics>) -> Pool {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
        let state = Mutex::new(State {
            idle: Vec::new(),
            down: None,
            backoff,
            said: Vec::new(),
            why: String::new(),
            failed: None,
        });
        Pool(Arc::new(Shared { address, metrics, state }))
    }

    /// Runs `calls` on a connection. It runs a second time when the first one's connection had been
    /// idle and turned out to be cut, or when a signal interrupted it: every step that is stored by a call may be
    /// repeated.
    pub(crate) fn with<T>(&self, mut calls: impl FnMut(&mut Conn) -> RedisResult<T>) -> RedisResult<T> {
        if let Some(mut conn) = self.idle()? {
            let answer = match calls(&mut conn) {
                // The connection to one server of a cluster was cut while it was idle.
                Err(e) if is_away(&e) => calls(&mut conn),
                answer => answer,
            };
            match answer {
                Err(e) if is_interrupted(&e) => {}
                Err(e) if is_broken(&e) && !e.is_timeout() => self.forget_idle(),
                Err(e) if is_broken(&e) => return Err(self.failed(e)),
                answer => return self.give_back(conn, answer),
            }
        }
        let mut conn = self.open(RESPONSE_TIMEOUT)?;
        let mut answer = calls(&mut conn);
        if answer.as_ref().is_err_and(is_interrupted) {
            conn = self.open(RESPONSE_TIMEOUT)?;
            answer = calls(&mut conn);
        }
        self.give_back(conn, answer)
    }

    /// A connection for a thread's own use; `response_timeout` is the longest wait for an answer.
    pub fn open(&self, response_timeout: Duration) -> RedisResult<Conn> {
        let connect = || Conn::connect(&self.0.address, response_timeout);
        match connect().or_else(|e| if is_interrupted(&e) { connect() } else { Err(e) }) {
            Ok(conn) => {
                self.answered();
                Ok(conn)
            }
            Err(e) => {
                if !is_interrupted(&e) {
                    self.0.metrics.redis_errors.inc();
                    self.away(&e);
                }
                Err(e)
            }
        }
    }

    /// Whether Redis is a cluster, as far as is known.
    pub(crate) fn is_cluster(&self) -> bool {
        self.0.address.is_cluster()
    }

    /// Notes an error that a thread met on a connection of its own; gives it back.
    pub(crate) fn failed(&self, error: RedisError) -> RedisError {
        if is_interrupted(&error) {
            return error;
        }
        self.0.metrics.redis_errors.inc();
        if is_broken(&error) {
            self.away(&error);
        }
        error
    }

    /// Notes that Redis is away. Each answer by which it refuses is logged once until it is back, and one other error.
    fn away(&self, error: &RedisError) {
        self.0.metrics.redis_up.set(0);
        let mut state = lock(&self.0.state);
        state.idle.clear();
        let wait = state.backoff.fail(fastrand::f64());
        state.failed = Some(Instant::now());
        state.down = Some(Instant::now() + wait);
        let refusal = error.code().is_some();
        state.why = describe(error);
        let reason = if refusal { state.why.clone() } else { String::new() };
        if state.said.contains(&reason) || state.said.len() >= MAX_LOGGED_REASONS {
            return;
        }
        let (target, what) = (&self.0.address.target, &state.why);
        if refusal {
            log::error!("redis at {target} refuses: {what}; trying on");
        } else {
            log::error!("no answer from redis at {target}: {what}; trying on");
        }
        state.said.push(reason);
    }

    fn answered(&self) {
        self.0.metrics.redis_up.set(1);
        let mut state = lock(&self.0.state);
        state.down = None;
        if state.failed.is_some_and(|at| at.elapsed() < RECOVERY_TIME) {
            return;
        }
        state.failed = None;
        state.backoff.succeed();
        if !std::mem::take(&mut state.said).is_empty() {
            log::info!("redis at {} answers again", self.0.address.target);
        }
    }

    /// An idle connection, or none when one must be made; an error while it is too early for that.
    fn idle(&self) -> RedisResult<Option<Conn>> {
        let mut state = lock(&self.0.state);
        if let Some(conn) = state.idle.pop() {
            return Ok(Some(conn));
        }
        match &mut state.down {
            Some(next) if Instant::now() < *next => {
                let why = state.why.clone();
                Err(RedisError::from((ErrorKind::Io, "redis is away, and the next try is not due yet", why)))
            }
            Some(next) => {
                // One thread tries; the others fail at once until it knows.
                *next = Instant::now() + Duration::from_secs(3);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    fn give_back<T>(&self, conn: Conn, answer: RedisResult<T>) -> RedisResult<T> {
        match answer {
            Err(e) if is_broken(&e) => Err(self.failed(e)),
            answer => {
                match &answer {
                    Ok(_) => self.answered(),
                    Err(_) => self.0.metrics.redis_errors.inc(),
                }
                let mut state = lock(&self.0.state);
                if state.idle.len() < MAX_IDLE_CONNECTIONS {
                    state.idle.push(conn);
                }
                answer
            }
        }
    }

    fn forget_idle(&self) {
        lock(&self.0.state).idle.clear();
    }
}
