//! The plain lists: pushed commands, processing lists, wake-ups, events, rejected texts, records, stats,
//! audit.
//!
//! Owns: taking commands so that a controller's death loses none, and the bound of every list.
//! Does not own: what stands in the entries.

use crate::model::{DAY, HISTORY, keys, scripts};
use crate::redis::errors::{is_away, is_moving, is_spoilt};
use crate::redis::{Batch, Conn, describe};
use jscommon::NodeId;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value};
use std::collections::HashSet;

/// Seconds that a blocking read waits.
const READ_TIMEOUT_SECONDS: u64 = 2;
/// Seconds that the read of wake-ups waits: longer, for it can be ended (`wake`), and well below
/// `wakeups::RESPONSE_TIMEOUT`.
const WAKEUP_READ_TIMEOUT_SECONDS: u64 = 5;
/// Milliseconds without a beat after which a controller is dead.
const HEARTBEAT_TIMEOUT_MS: u64 = 15_000;
/// Most commands of a dead controller that are moved in one step.
const MAX_RECLAIMED: usize = 100;
/// Milliseconds for which a controller that is gone is known.
const DEAD_CONTROLLER_RETENTION_MS: u64 = DAY * 1000;
/// Most bytes of a list of records, or of stats that wait to be fetched; a single entry may be longer.
pub(crate) const MAX_LIST_BYTES: usize = 64 << 20;
/// Most series that are kept of a node.
const MAX_SERIES: usize = 10_000;

/// Waits up to 2 s for a command and takes it: it is in `me`'s processing list then.
pub fn take(conn: &mut Conn, me: &str) -> RedisResult<Option<Vec<u8>>> {
    let mut cmd = redis::cmd("BRPOPLPUSH");
    cmd.arg(keys::COMMANDS).arg(keys::taken(me)).arg(READ_TIMEOUT_SECONDS);
    conn.one(&cmd)
}

/// Takes up to `most` more commands, without waiting; the answer is read by `taken_more`.
pub(crate) fn take_more(batch: &mut Batch, me: &str, most: usize) {
    batch.script(&scripts::TAKE, &[keys::COMMANDS.to_owned(), keys::taken(me)], |cmd| {
        cmd.arg(most);
    });
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
    for keys in [vec![keys::TAKERS.to_owned(), keys::GONE.to_owned()], vec![keys::CONTROLLERS.to_owned()]] {
        batch.script(&scripts::BEAT, &keys, |cmd| {
            cmd.arg(me).arg(DAY);
        });
    }
    let mut said = Beat { new: false, now: 0 };
    for (i, answer) in conn.run_each(&batch)?.into_iter().enumerate() {
        match answer {
            // Without the second one it lives for all that reclaim; clients do not see it meanwhile.
            Err(e) if i > 0 && is_unkept(&e) => log::debug!("a beat is not written down: {}", describe(&e)),
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
        let mut cmd = redis::cmd("ZRANGEBYSCORE");
        cmd.arg(key).arg("-inf").arg(now.saturating_sub(HEARTBEAT_TIMEOUT_MS));
        batch.call(cmd);
    }
}

/// Reads the answers to `ask_dead`; `me` is not among the dead.
pub(crate) fn read_dead(answers: Vec<RedisResult<Value>>, me: &str) -> RedisResult<Vec<String>> {
    let mut dead = Vec::new();
    for answer in answers {
        match answer {
            // A controller that has died is on the other list too.
            Err(e) if is_unkept(&e) => log::debug!("some beats cannot be read: {}", describe(&e)),
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
        let more: i64 = conn.script(&scripts::RECLAIM, &keys, |cmd| {
            cmd.arg(ac).arg(HEARTBEAT_TIMEOUT_MS).arg(MAX_RECLAIMED).arg(DEAD_CONTROLLER_RETENTION_MS).arg(HISTORY);
        })?;
        let Ok(more) = usize::try_from(more) else { return Ok((moved > 0).then_some(moved)) };
        moved += more;
        if more < MAX_RECLAIMED {
            break;
        }
    }
    let off: bool = conn.script(&scripts::FORGET, &[keys::CONTROLLERS.to_owned()], |cmd| {
        cmd.arg(ac).arg(HEARTBEAT_TIMEOUT_MS);
    })?;
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

/// Commands that wait for a controller, and that wait for nodes.
pub(crate) fn depths(conn: &mut Conn) -> RedisResult<(i64, i64)> {
    let mut batch = Batch::new();
    batch.call(Cmd::llen(keys::COMMANDS)).call(Cmd::zcard(keys::EXPIRING));
    let answers = conn.run(&batch)?;
    let number = |i: usize| i64::from_redis_value_ref(answers.get(i).unwrap_or(&Value::Nil));
    Ok((number(0)?, number(1)?))
}

/// A message to the controller that holds a node's poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wakeup {
    /// Something waits for this node, whose poll is held here.
    Fetch(NodeId),
    /// This node polls at another controller from now on.
    Moved(NodeId),
}

impl Wakeup {
    /// As it travels: `gid:nid`, or `-gid:nid`.
    fn read(text: &str) -> Option<Wakeup> {
        match text.strip_prefix('-') {
            Some(node) => node.parse().ok().map(Wakeup::Moved),
            None => text.parse().ok().map(Wakeup::Fetch),
        }
    }
}

/// Tells the controller `ac` that `node` polls elsewhere from now on.
pub(crate) fn notify_moved(batch: &mut Batch, ac: &str, node: NodeId) {
    push_wakeup(batch, ac, &format!("-{node}"));
}

/// Tells the controller `ac` that something waits for `node`.
pub(crate) fn notify(batch: &mut Batch, ac: &str, node: NodeId) {
    push_wakeup(batch, ac, &node.to_string());
}

fn push_wakeup(batch: &mut Batch, ac: &str, text: &str) {
    batch.call(Cmd::lpush(keys::wakeups(ac), text));
    // Nobody reads the wake-ups of a dead controller, and its nodes come back elsewhere by themselves.
    batch.call(Cmd::expire(keys::wakeups(ac), 60));
}

/// Whether there are wake-ups for `me` that were not read yet.
pub(crate) fn has_wakeups(conn: &mut Conn, me: &str) -> RedisResult<bool> {
    conn.one(&Cmd::exists(keys::wakeups(me)))
}

/// Ends the wait of `read_wakeups` with an empty message.
pub(crate) fn wake(conn: &mut Conn, me: &str) -> RedisResult<()> {
    let mut batch = Batch::new();
    push_wakeup(&mut batch, me, "");
    conn.run(&batch).map(drop)
}

/// Waits up to 5 s for wake-ups of `me`; returns each once, in their order.
pub(crate) fn read_wakeups(conn: &mut Conn, me: &str) -> RedisResult<Vec<Wakeup>> {
    let mut cmd = redis::cmd("BRPOP");
    cmd.arg(keys::wakeups(me)).arg(WAKEUP_READ_TIMEOUT_SECONDS);
    let Some((_, first)): Option<(String, String)> = conn.one(&cmd)? else { return Ok(Vec::new()) };
    let rest: Vec<String> = conn.script(&scripts::WAKEUPS, &[keys::wakeups(me)], |cmd| {
        cmd.arg(1000);
    })?;
    let mut seen = HashSet::new();
    let wakeups = std::iter::once(first).chain(rest.into_iter().rev()).filter_map(|text| Wakeup::read(&text));
    Ok(wakeups.filter(|wakeup| seen.insert(*wakeup)).collect())
}

/// Whether an error keeps only an entry of a list for people (events, jobs, audit, rejected) from being written: the
/// list is spoilt, or the server of a cluster that has it is away. Nothing else waits for that.
pub(crate) fn is_unkept(error: &RedisError) -> bool {
    is_spoilt(error) || is_away(error) || is_moving(error)
}

/// Reads the answers to calls that add such entries; what was not kept is logged.
pub(crate) fn unkept(answers: Vec<RedisResult<Value>>) -> RedisResult<()> {
    for error in answers.into_iter().filter_map(Result::err) {
        if !is_unkept(&error) {
            return Err(error);
        }
        log::debug!("what happens is not kept: {}", describe(&error));
    }
    Ok(())
}

/// Adds an event: `name`, the node it is about, the time (ms), and what there is to say.
pub fn event(batch: &mut Batch, name: &str, node: Option<NodeId>, now: u64, data: &serde_json::Value) {
    super::events::add(batch, name, node, now, data);
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

/// Seconds that the counts of results are kept.
pub(crate) const COUNT_RETENTION_SECONDS: u64 = 30 * DAY;

/// The field that counts the results of the job `id` that ended in `state`.
pub(crate) fn count_field(id: &str, state: &str) -> String {
    format!("{id} {state}")
}

/// Counts results (a job's id and a state each) for the audit list.
pub(crate) fn count_results<'a>(batch: &mut Batch, results: impl Iterator<Item = (&'a str, &'a str)>) {
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

/// Adds the records of `node`'s batch `number` to the list `list`, oldest first, once.
pub(crate) fn records(batch: &mut Batch, list: &str, node: NodeId, number: u64, records: &[String]) {
    batch.script(&scripts::RECORDS, &[list.to_owned(), keys::seen(list)], |cmd| {
        cmd.arg(node.to_string()).arg(number).arg(HISTORY).arg(7 * DAY).arg(MAX_LIST_BYTES).arg(0).arg(records);
    });
}

/// Adds `node`'s batch `number` of stats, as it came, to the queue for others, once; where the node has `no_share`
/// left, only while the queue is less than half full.
pub(crate) fn stats_queue(batch: &mut Batch, node: NodeId, number: u64, text: &str, no_share: bool) {
    batch.script(&scripts::RECORDS, &[keys::STATS_QUEUE.to_owned(), keys::STATS_SEEN.to_owned()], |cmd| {
        cmd.arg(node.to_string()).arg(number).arg(HISTORY).arg(7 * DAY).arg(MAX_LIST_BYTES);
        cmd.arg(u8::from(no_share)).arg(text);
    });
}

/// The outcome of a batch that went to [`stats_queue`] or [`records`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// The bytes by which the list has grown.
    pub(crate) growth: usize,
    /// The list was too full for this node's batch.
    pub(crate) left_out: bool,
    /// The node's last batch, when this one was taken before.
    pub(crate) last: Option<u64>,
}

/// Reads the answer to [`stats_queue`] or [`records`].
pub(crate) fn pushed(answer: Value) -> RedisResult<Pushed> {
    let (growth, last): (i64, i64) = FromRedisValue::from_redis_value(answer)?;
    Ok(Pushed { growth: usize::try_from(growth).unwrap_or(0), left_out: growth < 0, last: u64::try_from(last).ok() })
}

/// Writes the latest values of `node`'s series, of its batch `number`: key and `[value, seconds]`. Unless
/// they are `fresh`, a value that is newer stays; of a batch that was written whole before, nothing is written. At most `new` series are written that
/// Redis did not know of the node. The answers say how many were new, and how many were left out.
pub fn stats(batch: &mut Batch, node: NodeId, number: u64, series: &[(String, String)], fresh: bool, new: usize) {
    let parts = series.chunks(1000);
    let last = parts.len();
    for (i, part) in parts.enumerate() {
        batch.script(&scripts::STATS, &[keys::stats(node), keys::stats_written(node)], |cmd| {
            cmd.arg(MAX_SERIES).arg(DAY).arg(u8::from(fresh)).arg(number).arg(u8::from(i + 1 == last));
            // As if all of the parts before had been new.
            cmd.arg(new.saturating_sub(1000 * i));
            for (key, value) in part {
                cmd.arg(key).arg(value);
            }
        });
    }
}

/// An entry of the audit list; its arguments may be long, and are not read.
#[derive(serde::Deserialize)]
struct Entry {
    id: Option<String>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_read() {
        let node = NodeId { gid: 1, nid: 10 };
        assert_eq!(Wakeup::read("1:10"), Some(Wakeup::Fetch(node)));
        assert_eq!(Wakeup::read("-1:10"), Some(Wakeup::Moved(node)));
        assert_eq!((Wakeup::read(""), Wakeup::read("-"), Wakeup::read("x")), (None, None, None));
    }
}
