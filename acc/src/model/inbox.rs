//! Commands as clients push them, and the processing list of each controller.
//!
//! Owns: taking commands so that a controller's death loses none. Does not own: the rules about them (`work`).

use super::{keys, scripts};
use crate::redis::{Batch, Conn, command};
use redis::{Cmd, FromRedisValue, RedisResult, Value};

/// Seconds that a blocking read waits.
const READ_TIMEOUT_SECONDS: u64 = 2;

/// Waits up to 2 s for a command and takes it: it is in `me`'s processing list then.
pub fn take(conn: &mut Conn, me: &str) -> RedisResult<Option<Vec<u8>>> {
    conn.one(&command("BRPOPLPUSH", (keys::COMMANDS, keys::taken(me), READ_TIMEOUT_SECONDS)))
}

/// Takes up to `most` more commands, without waiting; the answer is read by `taken_more`.
pub(crate) fn take_more(batch: &mut Batch, me: &str, most: usize) {
    batch.script(&scripts::TAKE_COMMANDS, &[keys::COMMANDS.to_owned(), keys::taken(me)], most);
}

/// Reads the answer to `take_more`.
pub(crate) fn taken_more(answer: Option<Value>) -> RedisResult<Vec<Vec<u8>>> {
    Ok(FromRedisValue::from_redis_value(answer.unwrap_or(Value::Nil))?)
}

/// Everything in `me`'s processing list, oldest first.
pub(crate) fn taken(conn: &mut Conn, me: &str) -> RedisResult<Vec<Vec<u8>>> {
    let mut texts: Vec<Vec<u8>> = conn.one(&Cmd::lrange(keys::taken(me), 0, -1))?;
    texts.reverse();
    Ok(texts)
}

/// Whether there is anything in `me`'s processing list.
pub(crate) fn has_taken(conn: &mut Conn, me: &str) -> RedisResult<bool> {
    conn.one(&Cmd::exists(keys::taken(me)))
}

/// `text` was passed on: off the processing list.
pub(crate) fn complete(batch: &mut Batch, me: &str, text: &[u8]) {
    batch.call(Cmd::lrem(keys::taken(me), -1, text));
}

/// Asks how many commands wait for a controller, and how many for nodes; read by `depths`.
pub(crate) fn ask_depths(batch: &mut Batch) {
    batch.call(Cmd::llen(keys::COMMANDS)).call(Cmd::zcard(keys::EXPIRING));
}

/// Reads the two answers to `ask_depths`.
pub(crate) fn depths(pending: RedisResult<Value>, queued: RedisResult<Value>) -> RedisResult<(i64, i64)> {
    Ok((i64::from_redis_value(pending?)?, i64::from_redis_value(queued?)?))
}
