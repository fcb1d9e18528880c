//! The hash of each job, the list of the last jobs, and what may wait until when.
//!
//! Owns: `jsacc:job:<id>`, `jsacc:jobs`, `jsacc:expiring`.
//! Does not own: what stands in a command or a result; secrets are taken out by the caller.

use crate::model::{DAY, HISTORY, keys, scripts};
use crate::redis::{Batch, Conn, command};
use jscommon::{Command, NodeId};
use redis::{Cmd, FromRedisValue, RedisResult, ToRedisArgs, Value};

/// A job as it is written down.
#[derive(Clone, Debug)]
pub(crate) struct Job<'a> {
    /// Its id.
    pub(crate) id: &'a str,
    /// Its command as JSON, without secrets.
    pub(crate) cmd: &'a str,
    /// When its client pushed it, in milliseconds since 1970, as near as that is known.
    pub(crate) created: u64,
    /// The nodes that are meant.
    pub(crate) targets: &'a [NodeId],
    /// Seconds that its commands may wait.
    pub(crate) expires: u64,
    /// It is kept for a minute after that, whatever follows, and not for a day.
    pub(crate) quiet: bool,
}

/// Seconds that the hash of a quiet job is kept after its command may have waited.
const QUIET_RETENTION_SECONDS: u64 = 60;

/// Seconds that the hash of a job is kept after its command may have waited.
pub(crate) fn keep(quiet: bool) -> u64 {
    if quiet { QUIET_RETENTION_SECONDS } else { DAY }
}

/// The JSON list of `nodes`.
pub(crate) fn node_list(nodes: &[NodeId]) -> String {
    let mut text = String::with_capacity(nodes.len() * 10 + 2);
    text.push('[');
    for (i, node) in nodes.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push('"');
        text.push_str(&node.to_string());
        text.push('"');
    }
    text.push(']');
    text
}

/// Adds the writing down of `job` to `batch`; the answer is read by `opened`.
pub(crate) fn open(batch: &mut Batch, job: &Job<'_>) {
    let targets: Vec<String> = job.targets.iter().map(NodeId::to_string).collect();
    batch.script(&scripts::OPEN, &[keys::job(job.id)], (open_args(job), targets));
}

/// The arguments of `job.lua`, but for the nodes.
pub(super) fn open_args<'a>(job: &Job<'a>) -> impl ToRedisArgs + use<'a> {
    let keep = job.expires.saturating_add(keep(job.quiet));
    (job.cmd, job.created, node_list(job.targets), keep, job.quiet)
}

/// Reads the answer to `open`: nothing for a new job; of one that was written down before, whether it had targets.
pub(crate) fn opened(answer: Value) -> RedisResult<Option<bool>> {
    Ok(Option::<String>::from_redis_value(answer)?.map(|targets| targets != "[]"))
}

/// Where a job stands that was written down before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// All nodes that it was for, also those for which the controller has answered since.
    pub(crate) targets: Vec<NodeId>,
    /// Those that are not known to have it.
    pub(crate) queued: Vec<NodeId>,
}

/// Reads where the job `id` stands.
pub(crate) fn standing(conn: &mut Conn, id: &str) -> RedisResult<Standing> {
    let (all, queued): (Vec<String>, Vec<String>) = conn.script(&scripts::STANDING, &[keys::job(id)], None::<&str>)?;
    let nodes = |names: Vec<String>| {
        let mut nodes: Vec<NodeId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        nodes.sort_unstable();
        nodes
    };
    Ok(Standing { targets: nodes(all), queued: nodes(queued) })
}

/// Adds `ids`, oldest first, to the list of jobs.
pub(crate) fn list(batch: &mut Batch, ids: &[&str]) {
    if !ids.is_empty() {
        batch.call(Cmd::lpush(keys::JOBS, ids));
        batch.call(Cmd::ltrim(keys::JOBS, 0, HISTORY as isize - 1));
    }
}

/// Whether `id` is in the list of jobs.
pub(crate) fn is_listed(conn: &mut Conn, id: &str) -> RedisResult<bool> {
    conn.one::<Option<i64>>(&command("LPOS", (keys::JOBS, id))).map(|place| place.is_some())
}

/// Writes down until when (ms) a command may wait for `node`; an earlier word stands.
pub(crate) fn expire_at(batch: &mut Batch, node: NodeId, id: &str, at: u64) {
    batch.call(command("ZADD", (keys::EXPIRING, "NX", at, keys::expiring(node, id))));
}

/// Puts off the end of a wait to `at` (ms).
pub(crate) fn put_off(batch: &mut Batch, node: NodeId, id: &str, at: u64) {
    batch.call(command("ZADD", (keys::EXPIRING, "XX", at, keys::expiring(node, id))));
}

/// The call for nodes and jobs whose wait has ended by `now` (ms), at most `most`; its answer is a list of names.
pub(crate) fn expired(now: u64, most: usize) -> Cmd {
    command("ZRANGEBYSCORE", (keys::EXPIRING, "-inf", now, "LIMIT", 0, most))
}

/// The node has stored the command: it runs, and waits no longer.
pub(crate) fn running(batch: &mut Batch, node: NodeId, id: &str) {
    batch.script(&scripts::RUNNING, &[keys::job(id)], (node.to_string(), DAY));
    batch.call(Cmd::zrem(keys::EXPIRING, keys::expiring(node, id)));
}

/// The result of a node, as it stands in the job's hash, which is kept for `kept` seconds.
pub(crate) fn result(batch: &mut Batch, field: &str, id: &str, text: &str, writing: Writing, kept: HashKept) {
    let args = (field, text, kept, writing == Writing::Withdrawn, writing == Writing::Repeated);
    batch.script(&scripts::RESULT, &[keys::job(id)], args);
}

/// Seconds that a job's hash is kept after a result: while other nodes are waited for, and once none is.
pub(crate) type HashKept = (u64, u64);

/// `HashKept` where a finished job is kept for `keep` seconds. One that recurs goes on.
pub(crate) fn hash_kept(keep: u64, recurs: bool) -> HashKept {
    (keep.max(DAY), if recurs { keep.max(DAY) } else { keep })
}

/// How a result goes into the job's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// It is the one that counts.
    Counts,
    /// It was pushed before: an answer that stands there stays.
    Repeated,
    /// The controller answers for a node, which is a target no longer.
    Withdrawn,
}

/// How a job knows a node that brings its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobEligibility {
    /// Redis does not know the job (any more).
    Nothing,
    /// It was for this node.
    Meant(Meant),
    /// It was for other nodes.
    NotMeant,
}

/// A job that is known, and for the node that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meant {
    /// When it was created, in milliseconds since 1970.
    pub(crate) created: u64,
    /// It is a quiet one.
    pub(crate) quiet: bool,
    /// No more targets than this.
    pub(crate) targets: usize,
}

/// Asks whether the job was for `node`; the answers are read by `known`.
pub(crate) fn ask(batch: &mut Batch, node: NodeId, id: &str) {
    batch.call(command("HMGET", (keys::job(id), "created", "quiet")));
    batch.call(Cmd::hexists(keys::job(id), node.to_string()));
    size(batch, id);
}

/// Asks for a number that the job's targets do not exceed; 0 when Redis does not know the job.
pub(crate) fn size(batch: &mut Batch, id: &str) {
    batch.call(Cmd::hlen(keys::job(id)));
}

/// Reads the three answers to `ask`.
pub(crate) fn known(job: Value, field: Value, fields: Value) -> RedisResult<JobEligibility> {
    let (created, quiet): (Option<u64>, Option<String>) = FromRedisValue::from_redis_value(job)?;
    let targets = usize::from_redis_value(fields)?;
    Ok(match (created, bool::from_redis_value(field)?) {
        (None, _) => JobEligibility::Nothing,
        (Some(created), true) => JobEligibility::Meant(Meant { created, quiet: quiet.is_some(), targets }),
        (Some(_), false) => JobEligibility::NotMeant,
    })
}

/// Asks for the `recurring_period` of the job's command; the answer is read by `period`. For results without a
/// ticket, which says it.
pub(crate) fn ask_period(batch: &mut Batch, id: &str) {
    batch.script(&scripts::PERIOD, &[keys::job(id)], MAX_SEARCHED_BYTES);
}

/// Reads the answer to `ask_period`: seconds, or nothing for a job that does not recur.
pub(crate) fn period(answer: Value) -> RedisResult<Option<u64>> {
    let text = Option::<String>::from_redis_value(answer)?;
    let seconds = text.and_then(|text| text.parse::<f64>().ok()).filter(|seconds| *seconds > 0.0);
    Ok(seconds.map(|seconds| seconds.ceil() as u64))
}

/// Longest command (bytes) in which a period is looked for.
const MAX_SEARCHED_BYTES: usize = 64 << 10;

/// The command of a job that was queued for `node` and never handed over, as its hash has it, without
/// secrets; nothing when the node has it, or when it was answered.
pub(crate) fn lost(conn: &mut Conn, node: NodeId, id: &str) -> RedisResult<Option<Command>> {
    let (text, state): (Option<String>, Option<String>) =
        conn.one(&command("HMGET", (keys::job(id), "cmd", node.to_string())))?;
    let queued = state.is_some_and(|state| state == r#"{"state":"QUEUED"}"#);
    Ok(text.filter(|_| queued).and_then(|text| Command::parse(text.as_bytes()).ok()))
}

/// Whether `node` is known to have the job, and has not answered it. It may have had it before it was queued once more.
pub(crate) fn has_node(conn: &mut Conn, node: NodeId, id: &str) -> RedisResult<bool> {
    let state: Option<String> = conn.one(&Cmd::hget(keys::job(id), node.to_string()))?;
    Ok(state.is_some_and(|state| state == r#"{"state":"RUNNING"}"#))
}

/// The whole hash of a job: `cmd`, `created`, `targets` and a field for each node.
pub(crate) fn read(conn: &mut Conn, id: &str) -> RedisResult<Vec<(String, String)>> {
    conn.one(&Cmd::hgetall(keys::job(id)))
}
