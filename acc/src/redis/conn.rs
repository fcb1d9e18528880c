//! One connection to Redis, whatever kind of service it is, and batches of calls over it.
//!
//! Owns: batches that need each other, and the names of keys in errors. Does not own: which server has which key
//! (`router`), when to connect again (`pool`), what is asked (`model`).

use super::address::Address;
use super::batch::{Batch, command};
use super::connection::{self, CONNECT_TIMEOUT, Mode};
use super::errors::{SPOILT, describe, is_spoilt, is_wrong_type, unfit};
use super::router::Router;
use super::scripts::{Schema, Script};
use super::sentinel;
use super::topology;
use crate::config::redis_address::Kind;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ToRedisArgs, Value};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Most errors of one batch in which keys are named.
const MAX_NAMED_ERRORS: usize = 16;

/// An open connection.
pub struct Conn {
    router: Router,
    schema: &'static Schema,
}

impl Conn {
    /// Opens a connection on which no answer is waited for longer than `response_timeout`.
    ///
    /// With blocking reads `response_timeout` must be well above their own wait: a read that is given up
    /// leaves its BRPOP behind, which then swallows a later push.
    pub fn connect(address: &Address, response_timeout: Duration) -> RedisResult<Conn> {
        Ok(Conn { router: router(address, response_timeout)?, schema: address.schema })
    }

    /// Runs one command.
    pub(crate) fn one<T: FromRedisValue>(&mut self, cmd: &Cmd) -> RedisResult<T> {
        let answer = self.each(std::slice::from_ref(cmd), false)?.pop().unwrap_or(Ok(Value::Nil))?;
        T::from_redis_value(answer).map_err(|e| unfit(&RedisError::from(e), &topology::keys_of(cmd)))
    }

    /// Runs calls and gives what became of each; an error that a key is at fault for names it.
    fn each(&mut self, calls: &[Cmd], scripted: bool) -> RedisResult<Vec<RedisResult<Value>>> {
        let mut answers = self.router.run(calls, scripted)?;
        answers.iter_mut().for_each(extract);
        self.name_keys(calls, &mut answers);
        Ok(answers)
    }

    /// Names the keys in errors that keys are at fault for.
    fn name_keys(&mut self, calls: &[Cmd], answers: &mut [RedisResult<Value>]) {
        let spoilt = |answer: &RedisResult<Value>| answer.as_ref().is_err_and(is_spoilt);
        let at_fault: Vec<usize> = (0..answers.len()).filter(|i| spoilt(&answers[*i])).take(MAX_NAMED_ERRORS).collect();
        for i in at_fault {
            let Err(error) = &answers[i] else { continue };
            let keys = topology::keys_of(&calls[i]);
            let mut wrong = Vec::new();
            if is_wrong_type(error) {
                for key in &keys {
                    let kind = self
                        .router
                        .run(&[command("TYPE", key)], false)
                        .ok()
                        .and_then(|mut answers| answers.pop()?.ok());
                    let kind = kind.and_then(|kind| String::from_redis_value(kind).ok()).unwrap_or_default();
                    let want = (self.schema.key_type)(key);
                    if !want.is_empty() && !matches!(kind.as_str(), "" | "none") && !want.contains(&kind) {
                        wrong.push(format!("the key {key} in redis is a {kind} and must be a {want}"));
                    }
                }
            }
            let what = if wrong.is_empty() {
                format!("{} (keys {})", describe(error), keys.join(", "))
            } else {
                format!("{}: delete or rename it", wrong.join(", "))
            };
            answers[i] = Err(redis::make_extension_error(SPOILT.into(), Some(what)));
        }
    }

    /// Whether keys of different slots lie on different servers, so that no call may have both.
    pub(crate) fn is_cluster(&self) -> bool {
        self.router.is_cluster()
    }

    /// Runs one script.
    pub(crate) fn script<T: FromRedisValue>(
        &mut self,
        script: &Script,
        keys: &[String],
        args: impl ToRedisArgs,
    ) -> RedisResult<T> {
        let mut batch = Batch::new();
        batch.script(script, keys, args);
        let value = self.run(&batch)?.pop().unwrap_or(Value::Nil);
        T::from_redis_value(value).map_err(|e| unfit(&RedisError::from(e), keys))
    }

    /// Runs all calls and gives their answers, or the first error; the others have run all the same.
    pub fn run(&mut self, batch: &Batch) -> RedisResult<Vec<Value>> {
        self.run_each(batch)?.into_iter().collect()
    }

    /// Runs `first` and then `second`, and gives the answers to the second: who sees anything of that
    /// sees all of the first, and **where the first cannot be written (Redis is full, say) the second is not done**.
    /// One server does both in one round trip, as a transaction; the servers of a cluster do not wait for
    /// each other.
    pub(crate) fn run_in_turn(&mut self, first: Batch, second: Batch) -> RedisResult<Vec<Value>> {
        let (first, second) = self.run_in_turn_each(first, second, |_| false)?;
        first.into_iter().try_for_each(|answer| answer.map(drop))?;
        second.into_iter().collect()
    }

    /// As `run_in_turn`, and gives what became of each call of both. The second is done also where calls of the
    /// first fail with errors that are `harmless`.
    #[allow(clippy::type_complexity)] // Twice the same list.
    pub(crate) fn run_in_turn_each(
        &mut self,
        first: Batch,
        second: Batch,
        harmless: impl Fn(&RedisError) -> bool,
    ) -> RedisResult<(Vec<RedisResult<Value>>, Vec<RedisResult<Value>>)> {
        if first.is_empty() {
            return Ok((Vec::new(), self.run_each(&second)?));
        }
        if self.router.has_transactions() {
            let ahead = first.len();
            let mut all = first;
            all.append(second);
            let mut answers: Vec<RedisResult<Value>> = self.router.transact(&all)?.into_iter().map(Ok).collect();
            answers.iter_mut().for_each(extract);
            self.name_keys(&all.calls, &mut answers);
            let second = answers.split_off(ahead);
            return Ok((answers, second));
        }
        let first = self.run_each(&first)?;
        if let Some(Err(e)) = first.iter().find(|answer| answer.as_ref().is_err_and(|e| !harmless(e))) {
            return Err(e.clone());
        }
        Ok((first, self.run_each(&second)?))
    }

    /// Runs all calls and gives what became of each; an error of the whole is one of the connection.
    pub(crate) fn run_each(&mut self, batch: &Batch) -> RedisResult<Vec<RedisResult<Value>>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.each(&batch.calls, batch.scripted)
    }

    /// Runs `first` and then `second`, and gives what became of each call of the second. Unlike with `run_in_turn`
    /// the second may be done though the first failed: for what is harmless then, and too much for one transaction.
    pub(crate) fn run_in_order(&mut self, mut first: Batch, second: Batch) -> RedisResult<Vec<RedisResult<Value>>> {
        if self.is_cluster() {
            self.run(&first)?;
            return self.run_each(&second);
        }
        let ahead = first.len();
        first.append(second);
        let mut answers = self.run_each(&first)?;
        let second = answers.split_off(ahead);
        answers.into_iter().try_for_each(|answer| answer.map(drop))?;
        Ok(second)
    }
}

/// Connects to one server or to a cluster, as the address and the servers say.
fn router(address: &Address, response_timeout: Duration) -> RedisResult<Router> {
    let info = address.target.servers[0].clone();
    let conn = match &address.target.kind {
        Kind::Cluster => return Router::cluster(address, response_timeout),
        Kind::Single if address.is_cluster() => {
            // A server that was made anew may stand alone now.
            let router = Router::cluster(address, response_timeout);
            return router.inspect_err(|_| address.cluster.store(false, Ordering::Relaxed));
        }
        Kind::Single => {
            match connection::server(info.clone(), address.ca.as_deref(), CONNECT_TIMEOUT, response_timeout)? {
                (conn, Mode::Alone) => conn,
                (_, Mode::Sentinel) => {
                    let what = "it is a Sentinel: give -r sentinel://host:26379/group";
                    return Err(RedisError::from((ErrorKind::InvalidClientConfig, what)));
                }
                (_, Mode::Cluster) if address.known_servers.addrs().is_empty() => {
                    let what = "it is one server of a cluster, which a Unix socket does not lead to: give -r host:port";
                    return Err(RedisError::from((ErrorKind::InvalidClientConfig, what)));
                }
                (_, Mode::Cluster) => {
                    let router = Router::cluster(address, response_timeout)?;
                    if !address.cluster.swap(true, Ordering::Relaxed) {
                        log::info!("redis at {} is one server of a cluster; the others are used too", address.target);
                    }
                    return Ok(router);
                }
            }
        }
        Kind::Sentinel(group) => sentinel::master(address, group, response_timeout)?,
    };
    Ok(Router::alone(address, conn, response_timeout))
}

/// Makes an answer that is an error one.
fn extract(answer: &mut RedisResult<Value>) {
    if let Ok(Value::ServerError(error)) = answer {
        *answer = Err(error.clone().into());
    }
}
