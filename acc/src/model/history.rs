//! The lists for people: audit, rejected texts, counts of results, and what cannot be kept of them.
//!
//! Owns: the bound of every list. Does not own: the form of the entries.

use super::{DAY, HISTORY, keys};
use crate::redis::errors::is_partial;
use crate::redis::{Batch, Conn, describe};
use jscommon::State;
use redis::{Cmd, RedisResult, Value};
use std::collections::HashSet;

/// Seconds that the counts of results are kept.
pub(crate) const COUNT_RETENTION_SECONDS: u64 = 30 * DAY;

/// Reads the answers to calls that add such entries; what was not kept is logged.
pub(crate) fn unkept(answers: Vec<RedisResult<Value>>) -> RedisResult<()> {
    for error in answers.into_iter().filter_map(Result::err) {
        if !is_partial(&error) {
            return Err(error);
        }
        log::debug!("what happens is not kept: {}", describe(&error));
    }
    Ok(())
}

/// Adds a text that was no command, and why.
pub(crate) fn reject(batch: &mut Batch, entry: &serde_json::Value) {
    push(batch, keys::REJECTED, &[entry.to_string()]);
}

/// Adds entries, oldest first, to the audit list.
pub(crate) fn audit(batch: &mut Batch, entries: &[String]) {
    if !entries.is_empty() {
        push(batch, keys::AUDIT, entries);
    }
}

/// The field that counts the results of the job `id` that ended in `state`.
pub(crate) fn count_field(id: &str, state: State) -> String {
    let state = match state {
        State::Ok => "OK",
        State::Error => "ERROR",
        State::Timeout => "TIMEOUT",
        State::Killed => "KILLED",
    };
    format!("{id} {state}")
}

/// Counts results (a job's id and a state each) for the audit list.
pub(crate) fn count_results<'a>(batch: &mut Batch, results: impl Iterator<Item = (&'a str, State)>) {
    let mut any = false;
    for (id, state) in results {
        batch.call(Cmd::hincr(keys::AUDIT_RESULTS, count_field(id, state), 1));
        any = true;
    }
    if any {
        batch.call(Cmd::expire(keys::AUDIT_RESULTS, COUNT_RETENTION_SECONDS as i64));
    }
}

fn push(batch: &mut Batch, key: &str, entries: &[String]) {
    batch.call(Cmd::lpush(key, entries));
    batch.call(Cmd::ltrim(key, 0, HISTORY as isize - 1));
}

/// Drops counts of results whose job the audit list no longer has, once there are many.
pub(crate) fn sweep_audit(conn: &mut Conn) -> RedisResult<()> {
    let count: usize = conn.one(&Cmd::hlen(keys::AUDIT_RESULTS))?;
    if count <= 2 * HISTORY {
        return Ok(());
    }
    let entries: Vec<String> = conn.one(&Cmd::lrange(keys::AUDIT, 0, -1))?;
    let ids: HashSet<String> =
        entries.iter().filter_map(|entry| serde_json::from_str::<Entry>(entry).ok()?.id).collect();
    let fields: Vec<String> = conn.one(&Cmd::hkeys(keys::AUDIT_RESULTS))?;
    let old: Vec<&String> =
        fields.iter().filter(|field| field.split(' ').next().is_none_or(|id| !ids.contains(id))).collect();
    for some in old.chunks(1000) {
        conn.one::<()>(&Cmd::hdel(keys::AUDIT_RESULTS, some))?;
    }
    Ok(())
}

/// An entry of the audit list; its arguments may be long, and are not read.
#[derive(serde::Deserialize)]
struct Entry {
    id: Option<String>,
}
