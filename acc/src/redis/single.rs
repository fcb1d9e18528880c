//! One server of Redis, by itself or the master of a group: whole batches, as transactions where that is wanted.
//!
//! Owns: scripts that the server has forgotten. Does not own: which server it is (`router`, `sentinel`), or bytes
//! (`connection`).

use super::batch::Batch;
use super::connection::{self, Sending};
use super::scripts::Schema;
use redis::{Cmd, Connection, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One server.
pub(super) struct Single {
    conn: Connection,
    /// It has all scripts, as far as is known.
    scripted: bool,
    /// This user of Redis may not call MULTI.
    pub(super) no_multi: bool,
    /// Where to note that it is one of a cluster.
    cluster: Arc<AtomicBool>,
    schema: &'static Schema,
}

impl Single {
    /// Over this connection; `cluster` is where to note that the server is one of a cluster.
    pub(super) fn new(conn: Connection, cluster: Arc<AtomicBool>, schema: &'static Schema) -> Single {
        Single { conn, scripted: false, no_multi: false, cluster, schema }
    }

    /// One round trip; a second one for what the server has no script for any more.
    pub(super) fn run(&mut self, calls: &[Cmd], scripted: bool) -> RedisResult<Vec<Value>> {
        let mut answers = self.send(&calls.iter().collect::<Vec<_>>(), scripted)?;
        self.again(calls, &mut answers, Single::send)?;
        Ok(answers)
    }

    /// All or nothing, as far as a server refuses calls before it does any.
    pub(super) fn transact(&mut self, batch: &Batch) -> RedisResult<Vec<Value>> {
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
        let mut loaded = connection::receive(&mut self.conn, loads + count)?;
        let answers = loaded.split_off(loads);
        if answers.iter().any(is_redirection) {
            // A server that may not be asked how it works shows it by this.
            self.cluster.store(true, Ordering::Relaxed);
            return Err(RedisError::from((ErrorKind::Io, "it is one server of a cluster; the others are looked for")));
        }
        loaded.into_iter().try_for_each(|answer| answer.extract_error().map(drop))?;
        Ok(answers)
    }

    /// Returns the calls that load all scripts, when they are needed and may be missing, and their count.
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

fn is_forgotten(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(e) if e.kind() == Some(ServerErrorKind::NoScript))
}
