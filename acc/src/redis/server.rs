//! One server, over one connection.
//!
//! Owns: whether the server has all scripts and grants transactions, and the order of answers.
//! Does not own: which server it is (`router`, `sentinel`), or bytes (`connection`).

use super::connection::{self, Sending};
use super::scripts::Schema;
use redis::{Cmd, Connection, RedisResult, Value};

/// A connection to a server.
pub(super) struct Server {
    pub(super) conn: Connection,
    schema: &'static Schema,
    /// It has all scripts, as far as is known.
    has_scripts: bool,
    /// This user of Redis may call MULTI, as far as is known.
    pub(super) has_transactions: bool,
}

impl Server {
    /// A server that is connected to; of `schema` it may have nothing yet.
    pub(super) fn new(conn: Connection, schema: &'static Schema) -> Server {
        Server { conn, schema, has_scripts: false, has_transactions: true }
    }

    /// It lacks a script: they are loaded once more with the next call that needs them.
    pub(super) fn forget_scripts(&mut self) {
        self.has_scripts = false;
    }

    /// Sends calls, each with whether ASKING goes ahead of it; returns how many answers come ahead of theirs.
    /// `scripted`: there may be scripts among them.
    pub(super) fn send<'a>(
        &mut self,
        calls: impl Iterator<Item = (&'a Cmd, bool)>,
        scripted: bool,
    ) -> RedisResult<usize> {
        let (loading, loads) = self.loading(scripted);
        let mut sending = Sending::new(&mut self.conn, loading);
        for (call, asking) in calls {
            if asking {
                sending.packed(b"*1\r\n$6\r\nASKING\r\n");
            }
            sending.call(call)?;
        }
        sending.end()?;
        Ok(loads)
    }

    /// As `send`, between MULTI and EXEC, which have answers of their own.
    pub(super) fn send_transaction(&mut self, calls: &[&Cmd], scripted: bool) -> RedisResult<usize> {
        let (loading, loads) = self.loading(scripted);
        let mut sending = Sending::new(&mut self.conn, loading);
        sending.packed(b"*1\r\n$5\r\nMULTI\r\n");
        calls.iter().try_for_each(|call| sending.call(call))?;
        sending.packed(b"*1\r\n$4\r\nEXEC\r\n");
        sending.end()?;
        Ok(loads)
    }

    /// Reads the answers to what was sent, each with whether that of ASKING comes ahead of it.
    pub(super) fn receive(&mut self, loads: usize, asking: impl Iterator<Item = bool>) -> RedisResult<Vec<Value>> {
        let loaded = connection::receive(&mut self.conn, loads)?;
        let mut answers = Vec::with_capacity(asking.size_hint().0);
        for asking in asking {
            if asking {
                connection::receive(&mut self.conn, 1)?;
            }
            answers.push(connection::receive_one(&mut self.conn)?);
        }
        loaded.into_iter().try_for_each(|answer| answer.extract_error().map(drop))?;
        Ok(answers)
    }

    /// The calls that load all scripts, when they are needed and may be missing, and their count.
    fn loading(&mut self, scripted: bool) -> (&'static [u8], usize) {
        if !scripted || std::mem::replace(&mut self.has_scripts, true) {
            return (&[], 0);
        }
        self.schema.loading()
    }
}
