//! Connections to Redis for many threads, made anew with backoff when they break.
//!
//! Owns: idle connections, whether Redis answers, the two log lines that say so (gone, back).
//! Does not own: what is asked. While Redis is away nobody waits here: a call fails at once until the
//! next try is due, so that no thread hangs and no herd of threads knocks.

use crate::metrics::Metrics;
use crate::redis::cluster::SERVER_AWAY;
use crate::redis::connection::{Address, Conn, SPOILT};
use crate::redis::redis_connection;
use jscommon::backoff::Backoff;
use redis::{ErrorKind, RedisError, RedisResult, ServerErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer to a call that does not block may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Redis is back when nothing has failed for so long: of a cluster some servers answer while another is away.
const RECOVERY_TIME: Duration = Duration::from_secs(2);
/// Most reasons that are logged until Redis is back.
const MAX_LOGGED_REASONS: usize = 8;
/// Longest part of an answer that is logged, in bytes.
const MAX_LOGGED_BYTES: usize = 300;
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

    /// A connection for a thread's own use; `patience` is the longest wait for an answer.
    pub fn open(&self, patience: Duration) -> RedisResult<Conn> {
        let connect = || self.0.address.connect(patience);
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
        let mut state = self.state();
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
        let mut state = self.state();
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
        let mut state = self.state();
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
                let mut state = self.state();
                if state.idle.len() < MAX_IDLE_CONNECTIONS {
                    state.idle.push(conn);
                }
                answer
            }
        }
    }

    fn forget_idle(&self) {
        self.state().idle.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a signal has interrupted the call. It may have been done; Redis is there.
pub(crate) fn is_interrupted(error: &RedisError) -> bool {
    error.code() == Some(redis_connection::INTERRUPTED)
}

/// Whether the connection is of no more use after this error.
pub(crate) fn is_broken(error: &RedisError) -> bool {
    if is_moving(error) {
        return false;
    }
    if is_interrupted(error) {
        return true;
    }
    // Another server of the cluster may know more.
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ClusterDown))
        || !matches!(
            error.kind(),
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::UnexpectedReturnType | ErrorKind::Parse
        )
        || error.code() == Some("NOAUTH")
        || error.code() == Some("READONLY")
        || error.code() == Some("LOADING")
}

/// Whether a cluster says that the keys are on their way from one server to another. That may last, and is
/// nothing against the connection, nor against calls for other keys.
pub(crate) fn is_moving(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, Moved, TryAgain};
    matches!(error.kind(), ErrorKind::Server(Moved | Ask | TryAgain))
}

/// Whether a server of a cluster does not answer that has the key of this call. It may have done the call, and is
/// nothing against the connection, nor against calls for other keys.
pub(crate) fn is_away(error: &RedisError) -> bool {
    error.code() == Some(SERVER_AWAY)
}

/// Whether a key is of another type than the call needs, also where a script has met it.
pub(crate) fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE")
        || error.detail().is_some_and(|detail| detail.contains("WRONGTYPE"))
        || (error.code() == Some(SPOILT) && error.detail().is_some_and(|detail| detail.contains(" and must be a ")))
}

/// Whether the error comes of what lies in a key: its type is another one, or a script cannot read it.
pub(crate) fn is_spoilt(error: &RedisError) -> bool {
    let of_script = |detail: &str| detail.contains("user_script");
    error.code() == Some(SPOILT)
        || is_wrong_type(error)
        || matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse)
        || (error.code() == Some("ERR") && error.detail().is_some_and(of_script))
}

/// The error as a sentence for people: what is wrong, and what to do where that is known. An answer that is not known
/// is given in the server's own words.
pub(crate) fn describe(error: &RedisError) -> String {
    let detail = error.detail().unwrap_or_default();
    match error.code() {
        Some(redis_connection::TOO_OLD | redis_connection::INTERRUPTED | SERVER_AWAY | SPOILT) => detail.to_owned(),
        Some("NOAUTH") => "it asks for a password: give -r redis://user:password@host:port".into(),
        Some("WRONGPASS") => format!("it refuses the password: {}", words(error)),
        Some("OOM") => "it is full (maxmemory is reached): free memory or raise the limit".into(),
        Some("READONLY") => "it is a read-only replica: give the address of the master".into(),
        Some("MISCONF") => "it cannot save to its disk and takes no writes".into(),
        Some("LOADING") => "it is still loading its data".into(),
        _ if is_moving(error) => {
            "a slot of the cluster is being moved; what lies in it waits until that is done".into()
        }
        _ if detail.contains("SELECT is not allowed in cluster mode") => {
            "it is one server of a cluster, which has no numbered databases: leave the number out of -r".into()
        }
        Some(_) => words(error),
        None if error.kind() == ErrorKind::AuthenticationFailed => "it refuses the password".into(),
        // Without the library's name of its kind.
        None => error.to_string().replacen(&format!(" - {:?}", error.kind()), "", 1),
    }
}

/// Returns the error text of a server without control characters, shortened when it is long.
fn words(error: &RedisError) -> String {
    let said = format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    let said: String = said.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if said.len() <= MAX_LOGGED_BYTES {
        return said;
    }
    let end = (0..=MAX_LOGGED_BYTES).rev().find(|at| said.is_char_boundary(*at)).unwrap_or(0);
    // At the end of a sentence, where there is one.
    match said[..end].rfind(". ") {
        Some(dot) => said[..=dot].to_owned(),
        None => format!("{}...", &said[..end]),
    }
}

/// Whether the server is of a version that is too old.
pub(crate) fn is_too_old(error: &RedisError) -> bool {
    error.code() == Some(redis_connection::TOO_OLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_made_anew_where_that_helps() {
        let broken = |answer: &str| {
            let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
            is_broken(&value.extract_error().unwrap_err())
        };
        // A slot that stays open is nothing against the connection.
        for answer in ["MOVED 3999 127.0.0.1:6381", "ASK 3999 127.0.0.1:6381", "TRYAGAIN keys move"] {
            assert!(!broken(answer), "{answer}");
        }
        for answer in ["CLUSTERDOWN", "READONLY a replica", "LOADING the dataset", "NOAUTH Authentication required."] {
            assert!(broken(answer), "{answer}");
        }
        for answer in ["ERR syntax error", "WRONGTYPE no list", "NOSCRIPT unknown", "OOM full", "NOPERM no"] {
            assert!(!broken(answer), "{answer}");
        }
        for (answer, is) in [
            ("WRONGTYPE Operation against a key holding the wrong kind of value", true),
            ("WRONGTYPE Operation against a key script: 1234, on @user_script:6.", true),
            ("ERR Error running script (call to f_12): @user_script:6: WRONGTYPE Operation against a key", true),
            ("OOM full", false),
        ] {
            let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
            assert_eq!(is_wrong_type(&value.extract_error().unwrap_err()), is, "{answer}");
        }
        assert!(is_broken(&RedisError::from((ErrorKind::Io, "cut"))));
        assert!(!is_broken(&RedisError::from((ErrorKind::UnexpectedReturnType, "a list"))));
        // A value that is no number, say.
        assert!(!is_broken(&RedisError::from((ErrorKind::Parse, "a value"))));
    }

    #[test]
    fn an_unknown_answer_stands_in_the_servers_own_words() {
        let said = |answer: &str| {
            let value = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
            describe(&value.extract_error().unwrap_err())
        };
        assert_eq!(said("ERR max number of clients reached"), "ERR max number of clients reached");
        let refused = said("WRONGPASS invalid username-password pair or user is disabled.");
        assert!(refused.contains("refuses the password: WRONGPASS invalid username-password pair"), "{refused}");
        let long =
            format!("DENIED Redis is in protected mode. Only loopback may connect. If you want {}", "x ".repeat(200));
        assert_eq!(said(&long), "DENIED Redis is in protected mode. Only loopback may connect.");
        assert!(said("ERR SELECT is not allowed in cluster mode").contains("leave the number out"));
    }
}
