//! Controllers that live, and those that are gone: their heartbeats, and what they had taken.

use super::{DAY, HISTORY, keys, scripts};
use crate::redis::errors::is_partial;
use crate::redis::{Batch, Conn, command, describe};
use redis::{Cmd, FromRedisValue, RedisResult, Value};

/// Milliseconds without a beat after which a controller is dead.
const HEARTBEAT_TIMEOUT_MS: u64 = 15_000;
/// Most commands of a dead controller that are moved in one step.
const MAX_RECLAIMED: usize = 100;
/// Milliseconds for which a controller that is gone is known.
const DEAD_CONTROLLER_RETENTION_MS: u64 = DAY * 1000;

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Redis did not know this controller: the first beat, or data was lost.
    pub new: bool,
    /// Redis' own time, in milliseconds since 1970.
    pub now: u64,
}

/// Says that `me` lives: first where its processing list is looked for, then to all.
pub fn beat(conn: &mut Conn, me: &str) -> RedisResult<Beat> {
    let mut batch = Batch::new();
    ask_beat(&mut batch, me);
    read_beat(conn.run_each(&batch)?)
}

/// Adds the calls of `beat`; read by `read_beat`.
pub(crate) fn ask_beat(batch: &mut Batch, me: &str) {
    for keys in [vec![keys::TAKERS.to_owned(), keys::GONE.to_owned()], vec![keys::CONTROLLERS.to_owned()]] {
        batch.script(&scripts::BEAT, &keys, (me, DAY));
    }
}

/// Reads the answers to `ask_beat`.
pub(crate) fn read_beat(answers: Vec<RedisResult<Value>>) -> RedisResult<Beat> {
    let mut said = Beat { new: false, now: 0 };
    for (i, answer) in answers.into_iter().enumerate() {
        match answer {
            // Without the second one it lives for all that reclaim; clients do not see it meanwhile.
            Err(e) if i > 0 && is_partial(&e) => log::debug!("a beat is not written down: {}", describe(&e)),
            answer => {
                let (new, now): (i64, u64) = FromRedisValue::from_redis_value(answer?)?;
                said = Beat { new: said.new || new == 1, now };
            }
        }
    }
    Ok(said)
}

/// Controllers that have been silent too long at `now` (ms, by Redis' clock), `me` not among them.
pub fn dead(conn: &mut Conn, me: &str, now: u64) -> RedisResult<Vec<String>> {
    let mut batch = Batch::new();
    ask_dead(&mut batch, now);
    read_dead(conn.run_each(&batch)?, me)
}

/// Asks for controllers that have been silent too long at `now` (ms, by Redis' clock); the answers, two, are read
/// by `read_dead`.
pub(crate) fn ask_dead(batch: &mut Batch, now: u64) {
    for key in [keys::CONTROLLERS, keys::TAKERS] {
        batch.call(command("ZRANGEBYSCORE", (key, "-inf", now.saturating_sub(HEARTBEAT_TIMEOUT_MS))));
    }
}

/// Reads the answers to `ask_dead`; `me` is not among the dead.
pub(crate) fn read_dead(answers: Vec<RedisResult<Value>>, me: &str) -> RedisResult<Vec<String>> {
    let mut dead = Vec::new();
    for answer in answers {
        match answer {
            // A controller that has died is on the other list too.
            Err(e) if is_partial(&e) => log::debug!("some beats cannot be read: {}", describe(&e)),
            answer => dead.extend(Vec::<String>::from_redis_value(answer?)?),
        }
    }
    dead.sort_unstable();
    dead.dedup();
    dead.retain(|ac| ac != me);
    Ok(dead)
}

/// Controllers that are gone and have something in their processing lists all the same: they took it between the verdict
/// and their end.
pub(crate) fn gone_with_something(conn: &mut Conn, me: &str) -> RedisResult<Vec<String>> {
    let gone: Vec<String> = conn.one(&Cmd::zrange(keys::GONE, 0, -1))?;
    let mut found = Vec::new();
    for some in gone.chunks(1000) {
        let lists: Vec<String> = some.iter().map(|ac| keys::taken(ac)).collect();
        if conn.one::<usize>(&Cmd::exists(&lists))? == 0 {
            continue;
        }
        let mut batch = Batch::new();
        for list in &lists {
            batch.call(Cmd::exists(list));
        }
        for (ac, answer) in some.iter().zip(conn.run(&batch)?) {
            if bool::from_redis_value(answer)? && ac != me {
                found.push(ac.clone());
            }
        }
    }
    Ok(found)
}

/// Moves what the dead controller `ac` had taken into `me`'s processing list, and forgets `ac`.
/// Answers how many commands that were; nothing where it has beaten since it was found dead.
pub fn reclaim(conn: &mut Conn, me: &str, ac: &str) -> RedisResult<Option<usize>> {
    let mut keys = vec![keys::TAKERS.to_owned(), keys::GONE.to_owned(), keys::taken(ac), keys::taken(me)];
    if !conn.is_cluster() {
        keys.push(keys::CONTROLLERS.to_owned());
    }
    let mut moved = 0;
    loop {
        let args = (ac, HEARTBEAT_TIMEOUT_MS, MAX_RECLAIMED, DEAD_CONTROLLER_RETENTION_MS, HISTORY);
        let more: i64 = conn.script(&scripts::RECLAIM_COMMANDS, &keys, args)?;
        let Ok(more) = usize::try_from(more) else { return Ok((moved > 0).then_some(moved)) };
        moved += more;
        if more < MAX_RECLAIMED {
            break;
        }
    }
    let keys = [keys::CONTROLLERS.to_owned()];
    let off: bool = conn.script(&scripts::FORGET_CONTROLLER, &keys, (ac, HEARTBEAT_TIMEOUT_MS))?;
    if off {
        conn.one::<()>(&Cmd::del(keys::wakeups(ac)))?;
    }
    Ok(Some(moved))
}

/// `me` ends at `now` (ms), and has nothing taken.
pub(crate) fn leave(conn: &mut Conn, me: &str, now: u64) -> RedisResult<()> {
    let mut batch = Batch::new();
    // By this name others look for commands that a broken connection took in the last moment.
    batch.call(Cmd::zadd(keys::GONE, me, now));
    batch.call(Cmd::zrembyscore(keys::GONE, "-inf", now.saturating_sub(DEAD_CONTROLLER_RETENTION_MS)));
    batch.call(Cmd::zremrangebyrank(keys::GONE, 0, -(HISTORY as isize) - 1));
    batch.call(Cmd::pexpire(keys::GONE, DEAD_CONTROLLER_RETENTION_MS as i64));
    batch.call(Cmd::zrem(keys::TAKERS, me)).call(Cmd::zrem(keys::CONTROLLERS, me)).call(Cmd::del(keys::wakeups(me)));
    conn.run(&batch).map(drop)
}
