//! A command that is passed on in one call, where one server has all keys.
//!
//! Does not own: the steps that it is made of (`jobs`, `queue`, `wakeups`, `history`, `inbox`), or which commands are
//! passed on so (the dispatcher).

use super::handover::QueuedCommand;
use super::jobs::{self, Job};
use super::queue::{self, Enqueued};
use super::{HISTORY, keys, scripts};
use crate::redis::Batch;
use jscommon::NodeId;
use redis::{FromRedisValue, RedisResult, Value};

/// Most keys of one call.
const MAX_KEYS: usize = 500;
/// The keys of a call that are not those of a target or of another controller.
const OWN_KEYS: usize = 5;
/// The keys of each target.
const TARGET_KEYS: usize = 5;
/// Most other controllers whose nodes are woken in the same call.
pub(crate) const MAX_CONTROLLERS: usize = 16;
/// Most targets of a command that is passed on in one call.
pub(crate) const MAX_TARGETS: usize = (MAX_KEYS - OWN_KEYS - MAX_CONTROLLERS) / TARGET_KEYS;

/// A command that was taken for the first time.
pub(crate) struct Dispatch<'a> {
    /// This controller.
    pub(crate) me: &'a str,
    /// Milliseconds since 1970.
    pub(crate) now: u64,
    /// The job; its targets are those of `copies`.
    pub(crate) job: Job<'a>,
    /// The text that was taken.
    pub(crate) text: &'a [u8],
    /// The entry of the audit list; empty where it is in no list.
    pub(crate) audit: String,
    /// The copy for each target, in the order of the job's targets.
    pub(crate) copies: Vec<QueuedCommand>,
    /// Most commands that may wait for a node, and for how many seconds they are kept.
    pub(crate) limit: usize,
    pub(crate) keep: u64,
    /// Other controllers that may hold the poll of a target.
    pub(crate) controllers: &'a [String],
}

/// The outcome of one command.
pub(crate) enum Dispatched {
    /// The job was known: nothing was done.
    Known,
    /// `is_done`: it is off the processing list; else the steps go on. `queued` has what became of each target, where
    /// that is known.
    Queued { is_done: bool, queued: Vec<Option<Enqueued>> },
}

/// Adds the call to `batch`; the answer is read by `dispatched`.
pub(crate) fn dispatch(batch: &mut Batch, dispatch: &Dispatch<'_>) {
    let Dispatch { job, .. } = dispatch;
    let (expiring, jobs, audit) = (keys::EXPIRING.to_owned(), keys::JOBS.to_owned(), keys::AUDIT.to_owned());
    let mut keys = vec![keys::job(job.id), expiring, jobs, audit, keys::taken(dispatch.me)];
    keys.extend(job.targets.iter().flat_map(|node| queue::enqueue_keys(*node)));
    keys.extend(dispatch.controllers.iter().take(MAX_CONTROLLERS).map(|ac| keys::wakeups(ac)));
    let until = dispatch.now.saturating_add(job.expires.saturating_mul(1000));
    let queueing = queue::enqueue_args(dispatch.me, dispatch.now, dispatch.limit, dispatch.keep);
    let written = (until, HISTORY, dispatch.audit.as_str(), dispatch.text);
    let copies: Vec<(String, &QueuedCommand)> =
        job.targets.iter().map(NodeId::to_string).zip(&dispatch.copies).collect();
    batch.script(&scripts::DISPATCH, &keys, (queueing, jobs::open_args(job), written, copies));
}

/// Reads the answer to `dispatch`, which `me` had asked for.
pub(crate) fn dispatched(me: &str, answer: Value) -> RedisResult<Dispatched> {
    let mut parts = Vec::<Value>::from_redis_value(answer)?.into_iter();
    let is_done = match i64::from_redis_value(parts.next().unwrap_or(Value::Nil))? {
        -1 => return Ok(Dispatched::Known),
        done => done == 1,
    };
    let read = |part: Value| if part == Value::Nil { Ok(None) } else { queue::enqueued(me, part).map(Some) };
    Ok(Dispatched::Queued { is_done, queued: parts.map(read).collect::<RedisResult<_>>()? })
}
