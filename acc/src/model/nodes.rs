//! Nodes: when they were last seen, their roles, and revocations.
//!
//! Owns: `jsacc:agents`, `jsacc:agent:*`, roles, revocations, the fingerprint of the node secret, the ticket key.
//! Does not own: who is chosen (`targets`), who is authenticated (`auth`), which roles are granted (`grants`).

use crate::model::queue::KEEP_NODE;
use crate::model::{DAY, keys, scripts};
use crate::redis::errors::{is_away, is_spoilt};
use crate::redis::{Batch, Conn, command};
use jscommon::NodeId;
use redis::{Cmd, FromRedisValue, RedisResult, Value};
use std::collections::HashMap;

/// Milliseconds after which a node that was not seen is not live any more: three polls.
pub(crate) const LIVE_TIMEOUT_MS: u64 = 90_000;

/// A node that has just polled.
#[derive(Clone, Debug)]
pub(crate) struct Poller<'a> {
    /// The node.
    pub(crate) node: NodeId,
    /// Its address.
    pub(crate) addr: &'a str,
    /// Which start of the agent; empty where it does not say.
    pub(crate) instance: &'a str,
    /// The controller it polls.
    pub(crate) ac: &'a str,
    /// Milliseconds since 1970.
    pub(crate) now: u64,
}

/// Writes down a poll.
pub(crate) fn polled(batch: &mut Batch, poll: &Poller<'_>) {
    batch.call(Cmd::zadd(keys::AGENTS, poll.node.to_string(), poll.now));
    let instance = (!poll.instance.is_empty()).then_some(("instance", poll.instance));
    let fields = ("addr", poll.addr, "last_seen", poll.now, "ac", poll.ac, instance);
    batch.call(command("HSET", (keys::agent(poll.node), fields)));
    batch.call(Cmd::hset_nx(keys::agent(poll.node), "roles", "[]"));
    batch.call(Cmd::expire(keys::agent(poll.node), KEEP_NODE as i64));
}

/// Writes down for the choice of targets which roles (a JSON list) `node` has.
pub(crate) fn set_roles(batch: &mut Batch, node: NodeId, roles: &str) {
    let keys = [keys::ROLES.to_owned(), keys::ROLES_VERSION.to_owned()];
    batch.script(&scripts::ROLES, &keys, (node.to_string(), roles));
}

/// There is such a node, whether it polls or not; when it does, its polls say when it was seen.
pub(crate) fn known(batch: &mut Batch, node: NodeId, now: u64) {
    batch.call(command("ZADD", (keys::AGENTS, "NX", now, node.to_string())));
}

/// Nodes that wait at the controller `ac`, and when (ms) their polls came: not when that is written down, for
/// one that has stopped since is not there any more.
pub(crate) fn seen(batch: &mut Batch, nodes: &[(NodeId, u64)], ac: &str) {
    if nodes.is_empty() {
        return;
    }
    let scores: Vec<(u64, String)> = nodes.iter().map(|(node, at)| (*at, node.to_string())).collect();
    batch.call(command("ZADD", (keys::AGENTS, scores)));
    for (node, at) in nodes {
        batch.script(&scripts::NODE_SEEN, &[keys::agent(*node)], (at, ac, KEEP_NODE));
    }
}

/// When `node` was last seen (ms).
pub(crate) fn last_seen(conn: &mut Conn, node: NodeId) -> RedisResult<Option<u64>> {
    conn.one::<Option<f64>>(&Cmd::zscore(keys::AGENTS, node.to_string())).map(|seen| seen.map(|ms| ms as u64))
}

/// Lists of records that one node may write to within the week that a list is kept.
pub(crate) const MAX_LISTS: usize = 10_000;

/// Whether a node may write to a list of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MayWrite {
    /// It has too many lists.
    No,
    /// It wrote to it within the week.
    Known,
    /// It did not.
    New,
}

/// The last batch of records that was taken whole from `node`, and for each of `lists` whether it may write
/// to that one at `now` (ms).
pub(crate) fn log_state<'a>(
    conn: &mut Conn,
    node: NodeId,
    lists: impl Iterator<Item = &'a String>,
    now: u64,
) -> RedisResult<(Option<u64>, Vec<MayWrite>)> {
    let mut batch = Batch::new();
    batch.call(Cmd::get(keys::last_log(node)));
    let args = (now, 7 * DAY, MAX_LISTS, lists.collect::<Vec<&String>>());
    batch.script(&scripts::LISTS, &[keys::lists(node)], args);
    let mut answers = conn.run(&batch)?.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil);
    let last = Option::from_redis_value(next())?;
    let may = Vec::<u8>::from_redis_value(next())?.into_iter().map(|may| match may {
        0 => MayWrite::No,
        1 => MayWrite::Known,
        _ => MayWrite::New,
    });
    Ok((last, may.collect()))
}

/// The batch `number` of records was taken whole from `node`.
pub(crate) fn set_last_log(conn: &mut Conn, node: NodeId, number: u64) -> RedisResult<()> {
    conn.one(&Cmd::set_ex(keys::last_log(node), number, KEEP_NODE))
}

/// Writes down what a starting agent says about itself.
pub(crate) fn describe(batch: &mut Batch, node: NodeId, facts: &[(&str, String)]) {
    if facts.is_empty() {
        return;
    }
    batch.call(command("HSET", (keys::agent(node), facts)));
    batch.call(Cmd::expire(keys::agent(node), KEEP_NODE as i64));
}

/// The agent of `node` says that it stops, at `now` (ms); nothing where another `instance` has been seen
/// since.
pub(crate) fn stopped(batch: &mut Batch, node: NodeId, instance: &str, now: u64) {
    batch.script(&scripts::AGENT_STOPPED, &[keys::agent(node)], (instance, now));
}

/// Whether the agent of `node` that was seen last has said that it stops: not where that cannot be read.
pub(crate) fn has_stopped(conn: &mut Conn, node: NodeId) -> RedisResult<bool> {
    match conn.one::<(Option<u64>, Option<u64>)>(&command("HMGET", (keys::agent(node), "stopped", "last_seen"))) {
        Ok((stopped, seen)) => Ok(stopped.is_some_and(|stopped| stopped >= seen.unwrap_or(0))),
        Err(e) if is_away(&e) || is_spoilt(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Nodes seen at or after `since` (ms).
pub(crate) fn live(conn: &mut Conn, since: u64) -> RedisResult<Vec<NodeId>> {
    let names: Vec<String> = conn.one(&command("ZRANGEBYSCORE", (keys::AGENTS, since, "+inf")))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// The roles of all nodes, with a number that moves when any changes.
pub(crate) fn roles_version(conn: &mut Conn) -> RedisResult<u64> {
    conn.one::<Option<u64>>(&Cmd::get(keys::ROLES_VERSION)).map(Option::unwrap_or_default)
}

/// The roles of all nodes.
pub(crate) fn roles(conn: &mut Conn) -> RedisResult<HashMap<NodeId, Vec<String>>> {
    let all: Vec<(String, String)> = conn.one(&Cmd::hgetall(keys::ROLES))?;
    Ok(all
        .into_iter()
        .filter_map(|(node, roles)| Some((node.parse().ok()?, serde_json::from_str(&roles).unwrap_or_default())))
        .collect())
}

/// Forgets up to `most` nodes that were not seen since `before` (ms). Answers how many.
pub(crate) fn prune(conn: &mut Conn, before: u64, most: usize) -> RedisResult<usize> {
    let oldest = (keys::AGENTS, "-inf", before, "LIMIT", 0, most);
    let names: Vec<String> = conn.one(&command("ZRANGEBYSCORE", oldest))?;
    let mut batch = Batch::new();
    for name in &names {
        match name.parse() {
            Ok(node) => forget(&mut batch, node),
            Err(_) => {
                batch.call(Cmd::zrem(keys::AGENTS, name));
            }
        }
    }
    conn.run(&batch)?;
    Ok(names.len())
}

/// Takes `node` out of the live set and its roles, with what is known of it.
pub(crate) fn forget(batch: &mut Batch, node: NodeId) {
    batch.call(Cmd::del(keys::agent(node)));
    batch.call(Cmd::hdel(keys::ROLES, node.to_string()));
    batch.call(Cmd::zrem(keys::AGENTS, node.to_string()));
}

/// The call for a number that moves when a revocation is added; nothing is 0.
pub(crate) fn revoked_version() -> Cmd {
    Cmd::get(keys::REVOKED_VERSION)
}

/// Each revoked node, with the time (ms) up to which its credentials do not hold.
pub(crate) fn revoked(conn: &mut Conn) -> RedisResult<HashMap<NodeId, u64>> {
    let all: Vec<(String, u64)> = conn.one(&Cmd::hgetall(keys::REVOKED))?;
    Ok(all.into_iter().filter_map(|(node, until)| Some((node.parse().ok()?, until))).collect())
}

/// The time (ms) up to which what `node` holds was revoked, as it stands in Redis now.
pub(crate) fn revoked_until(conn: &mut Conn, node: NodeId) -> RedisResult<Option<u64>> {
    conn.one(&Cmd::hget(keys::REVOKED, node.to_string()))
}

/// Redis' own time, which all controllers go by, in milliseconds since 1970.
pub(crate) fn time(conn: &mut Conn) -> RedisResult<u64> {
    let (seconds, micros): (u64, u64) = conn.one(&redis::cmd("TIME"))?;
    Ok(seconds * 1000 + micros / 1000)
}

/// Refuses what `node` holds by now; `local` (ms) is this machine's time. Answers until when it was
/// issued: whichever clock is ahead, and past what was issued right after an earlier revocation.
pub(crate) fn revoke(conn: &mut Conn, node: NodeId, local: u64) -> RedisResult<u64> {
    let before = revoked_until(conn, node)?.map_or(0, |until| until.saturating_add(1));
    let until = time(conn)?.max(local).max(before);
    let keys = [keys::REVOKED.to_owned(), keys::REVOKED_VERSION.to_owned()];
    conn.script::<u64>(&scripts::REVOKE, &keys, (node.to_string(), until))?;
    Ok(until)
}

/// Counts a use of the enrolment token `id` at `now` (ms), of which there may be `uses`; kept for `keep` seconds.
/// Answers when it was counted (ms), or nothing when none was left. `request` names this use: called again with it,
/// nothing more is counted.
pub fn use_enrolment(
    conn: &mut Conn,
    id: &str,
    request: &str,
    uses: u64,
    keep: u64,
    now: u64,
) -> RedisResult<Option<u64>> {
    let keys = [keys::enrolment(id), keys::enrolment_use(id, request)];
    conn.script(&scripts::USE_ENROLMENT, &keys, (uses, keep.max(1), now))
}

/// Whether the use `request` of the enrolment token `id` was counted, or one of `uses` is left.
pub(crate) fn can_use_enrolment(conn: &mut Conn, id: &str, request: &str, uses: u64) -> RedisResult<bool> {
    let mut batch = Batch::new();
    batch.call(Cmd::get(keys::enrolment(id))).call(Cmd::exists(keys::enrolment_use(id, request)));
    let answers = conn.run(&batch)?;
    let number = |i: usize| Option::<u64>::from_redis_value_ref(answers.get(i).unwrap_or(&Value::Nil));
    Ok(number(0)?.unwrap_or(0) < uses || number(1)? == Some(1))
}

/// Asks for the fingerprint of the node secret that this Redis belongs to; nil where none is written down.
pub(crate) fn ask_fingerprint() -> Cmd {
    Cmd::hget(keys::SECRET, "current")
}

/// The fingerprint of the node secret that this Redis belongs to, when one is written down.
pub(crate) fn fingerprint(conn: &mut Conn) -> RedisResult<Option<String>> {
    conn.one(&ask_fingerprint())
}

/// Writes down the fingerprint when there is none yet; answers the one that stands.
pub(crate) fn claim_fingerprint(conn: &mut Conn, fingerprint: &str) -> RedisResult<String> {
    let mut batch = Batch::new();
    batch.call(Cmd::hset_nx(keys::SECRET, "current", fingerprint));
    batch.call(Cmd::hget(keys::SECRET, "current"));
    String::from_redis_value(conn.run(&batch)?.pop().unwrap_or(Value::Nil)).map_err(Into::into)
}

/// Another fingerprint takes its place: the node secret was rotated.
pub(crate) fn set_fingerprint(conn: &mut Conn, fingerprint: &str) -> RedisResult<()> {
    conn.one(&Cmd::hset(keys::SECRET, "current", fingerprint))
}

/// The call for the ticket key, or nothing.
pub(crate) fn ticket_key() -> Cmd {
    Cmd::get(keys::TICKET_KEY)
}

/// Writes down the ticket key `ours` when Redis has none; answers the one that stands.
pub(crate) fn claim_ticket_key(conn: &mut Conn, ours: &str) -> RedisResult<String> {
    // Not with SETNX at once: a full Redis refuses to write, and can still be read.
    if let Some(theirs) = conn.one(&ticket_key())? {
        return Ok(theirs);
    }
    let mut batch = Batch::new();
    batch.call(Cmd::set_nx(keys::TICKET_KEY, ours));
    batch.call(ticket_key());
    String::from_redis_value(conn.run(&batch)?.pop().unwrap_or(Value::Nil)).map_err(Into::into)
}

/// Asks whether `node` has ever returned a ticket: then it returns one with each of its results.
pub(crate) fn ask_returns_tickets(batch: &mut Batch, node: NodeId) {
    batch.call(Cmd::hexists(keys::meta(node), "tickets"));
}

/// `node` has returned a ticket.
pub(crate) fn returns_tickets(batch: &mut Batch, node: NodeId) {
    batch.call(Cmd::hset(keys::meta(node), "tickets", "1"));
    batch.call(Cmd::expire(keys::meta(node), KEEP_NODE as i64));
}

/// Every node's latest stats: node → series → `[value, seconds]`.
pub(crate) fn all_stats(conn: &mut Conn, nodes: &[NodeId]) -> RedisResult<Vec<Vec<(String, String)>>> {
    let mut batch = Batch::new();
    for node in nodes {
        batch.call(Cmd::hgetall(keys::stats(*node)));
    }
    conn.run(&batch)?.into_iter().map(|value| Ok(FromRedisValue::from_redis_value(value)?)).collect()
}
