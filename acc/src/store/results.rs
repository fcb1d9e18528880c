//! Results on their way to clients: each final answer of a target reaches its list once.
//!
//! Owns: `cmds_queue_<id>` and the keys beside it that remember what was delivered.
//! Does not own: whether the node may answer (the handler asks `jobs` first).

use super::{Batch, DAY, HISTORY, keys};
use jscommon::NodeId;
use redis::{FromRedisValue, RedisResult, Script, Value};
use std::sync::LazyLock;

static DELIVER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/result.lua")));

/// A result to deliver.
#[derive(Clone, Debug)]
pub struct Delivery<'a> {
    /// The job.
    pub id: &'a str,
    /// Whose answer it is: `gid:nid`.
    pub target: &'a str,
    /// Which run: `starttime` as text, or `ac` for the controller's own answer.
    pub run: &'a str,
    /// The JSON text.
    pub text: &'a str,
    /// For a recurring job: the node, when the run started (ms), seconds between runs, and whether it
    /// is delivered only as the first one.
    pub recurring: Option<Recurring>,
}

/// A run of a recurring job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recurring {
    /// Where it ran.
    pub node: NodeId,
    /// When it started, in milliseconds since 1970.
    pub starttime: i64,
    /// Seconds between runs.
    pub period: u64,
    /// It ended well and said nothing: delivered only when it is the first.
    pub quiet: bool,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the list.
    First,
    /// A quiet run of a recurring job: noted, not delivered.
    Quiet,
    /// It was there before.
    Repeat,
    /// Another final answer stands for this target.
    Late,
}

/// Adds a delivery to `batch`; the answer is read by `verdict`.
pub fn deliver(batch: &mut Batch<'_>, delivery: &Delivery<'_>) {
    let mut keys = vec![keys::results(delivery.id), keys::done(delivery.id)];
    let (mut recurring, mut quiet, mut remember) = (false, false, DAY);
    if let Some(run) = delivery.recurring {
        keys.push(keys::done_run(delivery.id, run.node, run.starttime));
        (recurring, quiet) = (true, run.quiet);
        remember = run.period.saturating_mul(2).saturating_add(DAY).min(400 * DAY);
    }
    batch.script(&DELIVER, &keys, |cmd| {
        cmd.arg(delivery.target).arg(delivery.run).arg(delivery.text).arg(HISTORY).arg(DAY).arg(remember);
        cmd.arg(u8::from(recurring)).arg(u8::from(quiet));
    });
}

/// Reads the answer to `deliver`.
pub fn verdict(answer: Value) -> RedisResult<Verdict> {
    Ok(match String::from_redis_value(answer)?.as_str() {
        "first" => Verdict::First,
        "quiet" => Verdict::Quiet,
        "repeat" => Verdict::Repeat,
        _ => Verdict::Late,
    })
}
