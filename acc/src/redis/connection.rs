//! One connection to Redis, whatever kind of service it is, and batches of calls over it.
//!
//! Owns: running a batch in one round trip, batches that need each other, scripts that a server has
//! forgotten. Does not own: when to connect again (`pool`), what is asked (the rooms beside it), bytes
//! (`redis_connection`).

use crate::config::redis_address::{Kind, Target};
use crate::redis::cluster::Cluster;
use crate::redis::pool::{describe, is_spoilt, is_wrong_type};
use crate::redis::redis_connection::{self, CONNECT_TIMEOUT, Mode, Sending};
use crate::redis::roster::{Place, Roster};
use crate::redis::scripts::{Schema, Script};
use crate::redis::sentinel;
use crate::redis::slots;
use redis::{Cmd, Connection, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The code of an error that a key is at fault for, which is named; no server answers with it.
pub(crate) const SPOILT: &str = "SPOILT";
/// Most errors of one batch in which keys are named.
const MAX_NAMED_ERRORS: usize = 16;

/// How to reach Redis.
#[derive(Clone, Debug)]
pub struct Address {
    /// Where it is.
    pub(crate) target: Target,
    /// PEM text of the CA that signed its certificate, when that is none of the public ones.
    pub(crate) ca: Option<Vec<u8>>,
    /// Of a cluster its servers, and the Sentinels otherwise.
    pub(crate) roster: Arc<Roster>,
    /// Of a cluster the servers that do not answer, for the log.
    pub(crate) silent: Arc<Silent>,
    /// It is a cluster, of which one server was named.
    cluster: Arc<AtomicBool>,
    pub(crate) schema: &'static Schema,
}

/// Servers of a cluster that do not answer, so that each is told of once.
#[derive(Debug, Default)]
pub(crate) struct Silent(Mutex<HashSet<Place>>);

impl Silent {
    /// This one does not answer.
    pub(crate) fn failed(&self, place: &Place, error: &RedisError) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone()) {
            let what = describe(error);
            log::error!("no answer from redis at {}:{}: {what}; what lies there waits", place.0, place.1);
        }
    }

    /// This one answers.
    pub(crate) fn answered(&self, place: &Place) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(place) {
            log::info!("redis at {}:{} answers again", place.0, place.1);
        }
    }
}

/// An open connection.
pub struct Conn {
    inner: Inner,
    schema: &'static Schema,
}

enum Inner {
    Single(Box<Single>),
    Cluster(Box<Cluster>),
}

/// One server.
struct Single {
    conn: Connection,
    /// It has all scripts, as far as is known.
    scripted: bool,
    /// This user of Redis may not call MULTI.
    no_multi: bool,
    /// Where to note that it is one of a cluster.
    cluster: Arc<AtomicBool>,
    schema: &'static Schema,
}

impl Address {
    /// An address with the CA for its certificates; `schema` is what is kept there.
    pub fn new(target: Target, ca: Option<Vec<u8>>, schema: &'static Schema) -> Address {
        let named = target.servers.iter().filter_map(redis_connection::place).collect();
        let roster = Arc::new(Roster::new(named));
        Address { target, ca, roster, silent: Arc::default(), cluster: Arc::default(), schema }
    }

    /// Whether it is a cluster, as far as is known.
    pub(crate) fn is_cluster(&self) -> bool {
        self.target.kind == Kind::Cluster || self.cluster.load(Ordering::Relaxed)
    }

    /// Opens a connection on which no answer is waited for longer than `patience`.
    ///
    /// With blocking reads `patience` must be well above their own wait: a read that is given up
    /// leaves its BRPOP behind, which then swallows a later push.
    pub fn connect(&self, patience: Duration) -> RedisResult<Conn> {
        let schema = self.schema;
        let follow = || Ok(Conn { inner: Inner::Cluster(Box::new(Cluster::connect(self, patience)?)), schema });
        let conn = match &self.target.kind {
            Kind::Cluster => return follow(),
            Kind::Single if self.is_cluster() => {
                // A server that was made anew may stand alone now.
                return follow().inspect_err(|_| self.cluster.store(false, Ordering::Relaxed));
            }
            Kind::Single => {
                let info = self.target.servers[0].clone();
                match redis_connection::server(info, self.ca.as_deref(), CONNECT_TIMEOUT, patience)? {
                    (conn, Mode::Alone) => conn,
                    (_, Mode::Sentinel) => {
                        let what = "it is a Sentinel: give -r sentinel://host:26379/group";
                        return Err(RedisError::from((ErrorKind::InvalidClientConfig, what)));
                    }
                    (_, Mode::Cluster) if self.roster.places().is_empty() => {
                        let what =
                            "it is one server of a cluster, which a Unix socket does not lead to: give -r host:port";
                        return Err(RedisError::from((ErrorKind::InvalidClientConfig, what)));
                    }
                    (_, Mode::Cluster) => {
                        let conn = follow()?;
                        if !self.cluster.swap(true, Ordering::Relaxed) {
                            log::info!("redis at {} is one server of a cluster; the others are used too", self.target);
                        }
                        return Ok(conn);
                    }
                }
            }
            Kind::Sentinel(group) => sentinel::master(self, group, patience)?,
        };
        let cluster = self.cluster.clone();
        let single = Single { conn, scripted: false, no_multi: false, cluster, schema };
        Ok(Conn { inner: Inner::Single(Box::new(single)), schema })
    }
}

/// Room for the arguments of a script behind its keys, and for the bytes of all of them, so that a usual call does not
/// grow step by step.
const SCRIPT_ARGUMENTS: usize = 16;
const SCRIPT_BYTES: usize = 512;

/// Calls that travel together, in order, in one round trip; each is atomic, all of them are not.
#[derive(Default)]
pub struct Batch {
    calls: Vec<Cmd>,
    /// There is a script among them.
    scripted: bool,
}

impl Batch {
    /// None yet.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a command.
    pub(crate) fn call(&mut self, cmd: Cmd) -> &mut Batch {
        self.calls.push(cmd);
        self
    }

    /// Adds a call of `script`; `fill` adds its arguments behind the keys.
    pub(crate) fn script(&mut self, script: &Script, keys: &[String], fill: impl FnOnce(&mut Cmd)) -> &mut Batch {
        let mut cmd = Cmd::with_capacity(keys.len() + SCRIPT_ARGUMENTS, SCRIPT_BYTES);
        cmd.arg("EVALSHA").arg(script.hash()).arg(keys.len());
        for key in keys {
            cmd.arg(key);
        }
        fill(&mut cmd);
        self.scripted = true;
        self.call(cmd)
    }

    /// Adds all calls of `other` behind its own.
    pub(crate) fn append(&mut self, other: Batch) -> &mut Batch {
        self.calls.extend(other.calls);
        self.scripted |= other.scripted;
        self
    }

    /// How many calls are in it.
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is no call in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

impl Conn {
    /// Runs one command.
    pub(crate) fn one<T: FromRedisValue>(&mut self, cmd: &Cmd) -> RedisResult<T> {
        let answer = self.each(std::slice::from_ref(cmd), false)?.pop().unwrap_or(Ok(Value::Nil))?;
        T::from_redis_value(answer).map_err(|e| unfit(&RedisError::from(e), &slots::keys_of(cmd)))
    }

    /// Runs calls and gives what became of each; an error that a key is at fault for names it.
    fn each(&mut self, calls: &[Cmd], scripted: bool) -> RedisResult<Vec<RedisResult<Value>>> {
        let mut answers: Vec<RedisResult<Value>> = match &mut self.inner {
            Inner::Single(server) => server.run(calls, scripted)?.into_iter().map(Ok).collect(),
            Inner::Cluster(cluster) => cluster.run(calls, scripted),
        };
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
            let keys = slots::keys_of(&calls[i]);
            let mut wrong = Vec::new();
            if is_wrong_type(error) {
                for key in &keys {
                    let mut cmd = redis::cmd("TYPE");
                    cmd.arg(key);
                    let single = std::slice::from_ref(&cmd);
                    let kind = match &mut self.inner {
                        Inner::Single(server) => server.run(single, false).ok().and_then(|mut answers| answers.pop()),
                        Inner::Cluster(cluster) => cluster.run(single, false).pop().and_then(Result::ok),
                    };
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
        matches!(self.inner, Inner::Cluster(_))
    }

    /// Runs one script.
    pub(crate) fn script<T: FromRedisValue>(
        &mut self,
        script: &Script,
        keys: &[String],
        fill: impl FnOnce(&mut Cmd),
    ) -> RedisResult<T> {
        let mut batch = Batch::new();
        batch.script(script, keys, fill);
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
        if let Inner::Single(server) = &mut self.inner
            && !server.no_multi
        {
            let ahead = first.len();
            let mut all = first;
            all.append(second);
            let mut answers: Vec<RedisResult<Value>> = server.transact(&all)?.into_iter().map(Ok).collect();
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
        if matches!(self.inner, Inner::Cluster(_)) {
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

impl Single {
    /// One round trip; a second one for what the server has no script for any more.
    fn run(&mut self, calls: &[Cmd], scripted: bool) -> RedisResult<Vec<Value>> {
        let mut answers = self.send(&calls.iter().collect::<Vec<_>>(), scripted)?;
        self.again(calls, &mut answers, Single::send)?;
        Ok(answers)
    }

    /// All or nothing, as far as a server refuses calls before it does any.
    fn transact(&mut self, batch: &Batch) -> RedisResult<Vec<Value>> {
        let mut answers = self.exec(&batch.calls.iter().collect::<Vec<_>>(), batch.scripted)?;
        self.again(&batch.calls, &mut answers, Single::exec)?;
        Ok(answers)
    }

    /// Calls whose scripts were missing are done once more. None of them has one that must not run without
    /// those that were there (see `scripts`).
    fn again(
        &mut self,
        calls: &[Cmd],
        answers: &mut [Value],
        send: fn(&mut Single, &[&Cmd], bool) -> RedisResult<Vec<Value>>,
    ) -> RedisResult<()> {
        let forgotten: Vec<usize> = (0..answers.len()).filter(|i| is_forgotten(&answers[*i])).collect();
        if forgotten.is_empty() {
            return Ok(());
        }
        self.scripted = false;
        let some: Vec<&Cmd> = forgotten.iter().map(|i| &calls[*i]).collect();
        for (i, answer) in forgotten.into_iter().zip(send(self, &some, true)?) {
            answers[i] = answer;
        }
        Ok(())
    }

    fn send(&mut self, calls: &[&Cmd], scripted: bool) -> RedisResult<Vec<Value>> {
        let loads = self.loads(scripted);
        let mut sending = Sending::new(&mut self.conn, loads.0);
        calls.iter().try_for_each(|call| sending.call(call))?;
        sending.end()?;
        self.answers(loads.1, calls.len())
    }

    fn exec(&mut self, calls: &[&Cmd], scripted: bool) -> RedisResult<Vec<Value>> {
        let loads = self.loads(scripted);
        let mut sending = Sending::new(&mut self.conn, loads.0);
        sending.packed(b"*1\r\n$5\r\nMULTI\r\n");
        calls.iter().try_for_each(|call| sending.call(call))?;
        sending.packed(b"*1\r\n$4\r\nEXEC\r\n");
        sending.end()?;
        let mut answers = self.answers(loads.1, calls.len() + 2)?;
        let done = answers.pop().unwrap_or(Value::Nil);
        let begun = answers.remove(0);
        if matches!(begun, Value::ServerError(_)) {
            // Without MULTI each call was done by itself, and its answer is there; from now on it takes two
            // round trips.
            log::debug!("redis lets this user have no transactions: {begun:?}");
            self.no_multi = true;
            return Ok(answers);
        }
        match done {
            Value::Array(answers) => Ok(answers),
            // Which of the calls was refused says more than that all were.
            done => {
                answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop))?;
                done.extract_error()?;
                Err((redis::ErrorKind::UnexpectedReturnType, "a transaction was not done").into())
            }
        }
    }

    /// Reads all answers before it looks at any: those to `loads` scripts come first.
    fn answers(&mut self, loads: usize, count: usize) -> RedisResult<Vec<Value>> {
        let mut loaded = redis_connection::receive(&mut self.conn, loads + count)?;
        let answers = loaded.split_off(loads);
        if answers.iter().any(is_redirection) {
            // A server that may not be asked how it works shows it by this.
            self.cluster.store(true, Ordering::Relaxed);
            return Err(RedisError::from((ErrorKind::Io, "it is one server of a cluster; the others are looked for")));
        }
        loaded.into_iter().try_for_each(|answer| answer.extract_error().map(drop))?;
        Ok(answers)
    }

    /// What makes the server know all scripts, when they are needed and it may not; and how many calls it is.
    fn loads(&mut self, scripted: bool) -> (&'static [u8], usize) {
        if !scripted || std::mem::replace(&mut self.scripted, true) {
            return (&[], 0);
        }
        self.schema.loading()
    }
}

/// Whether only a server of a cluster answers so.
fn is_redirection(answer: &Value) -> bool {
    use ServerErrorKind::{Ask, CrossSlot, Moved};
    matches!(answer, Value::ServerError(e) if matches!(e.kind(), Some(Moved | Ask | CrossSlot)))
}

/// The error for an answer of another form than it must have.
fn unfit(error: &RedisError, keys: &[String]) -> RedisError {
    let what = format!("what the key {} holds cannot be read: {}", keys.join(" or "), describe(error));
    redis::make_extension_error(SPOILT.into(), Some(what))
}

/// Makes an answer that is an error one.
fn extract(answer: &mut RedisResult<Value>) {
    if let Ok(Value::ServerError(error)) = answer {
        *answer = Err(error.clone().into());
    }
}

fn is_forgotten(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(e) if e.kind() == Some(ServerErrorKind::NoScript))
}
