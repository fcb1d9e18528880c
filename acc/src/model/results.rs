//! Results on their way to clients: each final answer of a target reaches its list once.
//!
//! Three steps, each of which may be repeated: `decide` whether it is the first, write it into the job's
//! hash (`jobs`), `push` it. A client that has popped a result therefore finds it in the hash too. Where one server has
//! all keys, `deliver` does the same in one call.
//!
//! Owns: `cmds_queue_<id>` and the keys beside it that remember what was delivered.
//! Does not own: whether the node may answer (the handler asks `jobs` first).

use crate::model::{DAY, HISTORY, history, jobs, keys, records, scripts};
use crate::redis::{Batch, Conn};
use jscommon::{NodeId, State};
use redis::{Cmd, FromRedisValue, RedisResult, Value};

/// Seconds that results of a quiet job are kept, and what was delivered of them.
const QUIET_RETENTION_SECONDS: u64 = 120;
/// Most runs of a recurring job that are remembered of each node: those that it may have sent without hearing that
/// they were taken, several requests of them.
const MAX_REMEMBERED_RUNS: usize = 4000;
/// Seconds that a result is kept, and remembered as delivered, while neither Redis nor a ticket says that its job is
/// one of this node. Anybody with the credentials of a node can make up ids, so this is short.
const UNKNOWN_RETENTION_SECONDS: u64 = 3600;
/// Results of a recurring job that one node may bring at once. Those that were brought count down at `PER_PERIOD`.
const MAX_RUNS: u64 = 100;
/// Results that it may bring in one period of the job, in the long run.
const PER_PERIOD: u64 = 4;
/// Most results that it may bring at once when it has brought none for a while: as many as their list holds.
const MAX_SAVED: u64 = HISTORY as u64;

/// Bytes of texts that are not held twice to save a round trip.
const MAX_HELD_TWICE_BYTES: usize = 256 << 10;

/// A result to deliver.
#[derive(Clone, Debug)]
pub struct Delivery<'a> {
    /// The job.
    pub id: &'a str,
    /// The node that answers: `gid:nid`.
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
    pub(crate) node: NodeId,
    /// When it started, in milliseconds since 1970.
    pub(crate) starttime: i64,
    /// Seconds between runs.
    pub(crate) period: u64,
    /// It ended well and said nothing: delivered only when it is the first.
    pub(crate) quiet: bool,
}

/// The decision about a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To be written down and pushed.
    First,
    /// A quiet run of a recurring job: to be written down, not pushed.
    Quiet,
    /// It was pushed before.
    Repeat,
    /// Another final answer stands for this target.
    Late,
    /// The node has brought more results than a job of this period has; there is room for this one after so many
    /// seconds.
    TooMany(u32),
}

/// Asks what is remembered of the job `id` for `node`, which has brought no ticket; read by `remembered`.
pub(crate) fn ask_remembered(batch: &mut Batch, node: NodeId, id: &str) {
    batch.call(Cmd::hexists(keys::done(id), node.to_string()));
    batch.call(Cmd::ttl(keys::done(id)));
}

/// The record of a job for a node: whether the node has answered, and whether the job recurs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// The node has answered for it, or has begun to.
    pub(crate) answered: bool,
    /// Redis knew the job as one that recurs.
    pub(crate) recurs: bool,
}

/// Reads the two answers to `ask_remembered`.
pub(crate) fn remembered(answered: Value, left: Value) -> RedisResult<Remembered> {
    // Only of a job that recurs and that Redis knew is it remembered for longer than a day: see `remember`.
    let left = i64::from_redis_value(left)?;
    Ok(Remembered { answered: bool::from_redis_value(answered)?, recurs: left > DAY as i64 })
}

/// Adds the decision on a delivery to `batch`; the answer is read by `verdict`. With `proven` a ticket says that the
/// job is one of this node.
pub fn decide(batch: &mut Batch, delivery: &Delivery<'_>, proven: bool) {
    let mut keys = vec![keys::done(delivery.id)];
    let (mut recurring, mut quiet) = (false, false);
    if let Some(run) = delivery.recurring {
        keys.extend(run_keys(delivery.id, run));
        (recurring, quiet) = (true, run.quiet);
    }
    // Without a ticket for a short time, for nothing is known yet of who says so: see `push` and `remember`.
    let keep = if proven { DAY } else { UNKNOWN_RETENTION_SECONDS };
    let args = (delivery.target, delivery.run, keep, recurring, quiet, run_bounds(delivery.recurring));
    batch.script(&scripts::DECIDE_RESULT, &keys, args);
}

/// The keys that remember the runs of a node.
fn run_keys(id: &str, run: Recurring) -> [String; 2] {
    [keys::done_runs(id, run.node), keys::done_run(id, run.node, run.starttime)]
}

/// Most runs that are remembered, the milliseconds in which a node may bring one more, and how many at once.
fn run_bounds(run: Option<Recurring>) -> (usize, u64, u64, u64) {
    let pace = run.map_or(0, |run| run.period.max(1).saturating_mul(1000) / PER_PERIOD);
    (MAX_REMEMBERED_RUNS, pace, MAX_RUNS, MAX_SAVED)
}

/// Seconds for which the results of a recurring job are remembered: until well after its next run, 400 days at most.
fn remembered_seconds(run: Recurring) -> u64 {
    run.period.saturating_mul(2).saturating_add(DAY).min(400 * DAY)
}

/// Adds all steps of a delivery that has a ticket, and ended in `state`; a finished job is kept for `keep` seconds. The
/// answer is read by `delivered`. Only where one server has all keys.
pub fn deliver(batch: &mut Batch, delivery: &Delivery<'_>, state: State, keep: u64) {
    let id = delivery.id;
    let mut keys = vec![keys::job(id), keys::done(id), keys::results(id), keys::AUDIT_RESULTS.to_owned()];
    let count = (history::count_field(id, state), history::COUNT_RETENTION_SECONDS);
    let kept = (jobs::hash_kept(keep, delivery.recurring.is_some()), keep);
    let args = (delivery.target, delivery.run, delivery.text, DAY, HISTORY, QUIET_RETENTION_SECONDS, count, kept);
    let Some(run) = delivery.recurring else {
        batch.script(&scripts::DELIVER_RESULT, &keys, args);
        return;
    };
    keys.extend(run_keys(id, run));
    let bounds = (run_bounds(delivery.recurring), remembered_seconds(run), records::MAX_LIST_BYTES);
    batch.script(&scripts::DELIVER_RESULT, &keys, (args, run.quiet, bounds));
}

/// Reads the answer to `deliver`: the verdict, or `None` when the job was for other nodes; and when it was created (ms),
/// where Redis knows it.
pub fn delivered(answer: Value) -> RedisResult<(Option<Verdict>, Option<u64>)> {
    let (said, created): (String, String) = FromRedisValue::from_redis_value(answer)?;
    Ok(((said != "other").then(|| verdict_of(&said)), created.parse().ok()))
}

/// Adds that the delivery is remembered until well after the next run of its job; `meant` says that Redis or a ticket knows the job as one of this node. Nothing for a job that does not recur.
pub(crate) fn remember(batch: &mut Batch, delivery: &Delivery<'_>, meant: bool) {
    let Some(run) = delivery.recurring else { return };
    let keys = [keys::done(delivery.id), keys::done_runs(delivery.id, run.node)];
    batch.script(&scripts::REMEMBER_RESULT, &keys, (remembered_seconds(run), meant, DAY));
}

/// How much is kept of a job's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    most: usize,
    /// Seconds that the results are kept, and for which it is remembered what was delivered.
    seconds: u64,
    done_seconds: u64,
    /// The same of results, where Redis turns out to have known the job.
    keep: u64,
}

impl Bounds {
    /// Of a job that neither Redis nor a ticket knows.
    pub(crate) fn unknown(keep: u64) -> Bounds {
        let seconds = UNKNOWN_RETENTION_SECONDS;
        Bounds { most: HISTORY, seconds: keep.min(seconds), done_seconds: seconds, keep }
    }

    /// The bounds of a job with at most so many targets, whose results are kept for `keep` seconds; of a `quiet` one
    /// little is kept, and not for long.
    pub fn of(targets: usize, quiet: bool, keep: u64) -> Bounds {
        let short = QUIET_RETENTION_SECONDS;
        let (seconds, done_seconds) = if quiet { (short, short) } else { (keep, DAY) };
        Bounds { most: targets.max(HISTORY), seconds, done_seconds, keep }
    }
}

/// A delivery that was decided to be the first.
#[derive(Clone, Debug)]
pub struct Push<'a> {
    /// The delivery to push.
    pub delivery: Delivery<'a>,
    /// How much is kept.
    pub bounds: Bounds,
    /// The state for the count of the audit list, if it counts there.
    pub counted: Option<State>,
}

/// Runs `hashes`, then pushes each of `pushes` that was not pushed since, and counts those for the audit list.
pub fn push_all(conn: &mut Conn, mut hashes: Batch, pushes: &[Push<'_>]) -> RedisResult<()> {
    let apart = conn.is_cluster();
    let length: usize = pushes.iter().map(|push| push.delivery.text.len()).sum();
    if length > MAX_HELD_TWICE_BYTES {
        // One after the other, for each batch has a copy of every text.
        conn.run(&std::mem::take(&mut hashes))?;
    }
    let mut batch = Batch::new();
    pushes.iter().for_each(|push| add_push(&mut batch, push, apart));
    let answers = conn.run_in_turn(hashes, batch)?;
    if !apart {
        return Ok(());
    }
    let done = pushes.iter().zip(answers).filter(|(_, answer)| *answer == Value::Int(1));
    let mut counts = Batch::new();
    history::count_results(&mut counts, done.filter_map(|(push, _)| Some((push.delivery.id, push.counted?))));
    history::unkept(conn.run_each(&counts)?)
}

/// Adds a push; with `apart` it is counted by the caller.
fn add_push(batch: &mut Batch, push: &Push<'_>, apart: bool) {
    let delivery = &push.delivery;
    let mut keys = vec![keys::results(delivery.id), keys::done(delivery.id)];
    if let Some(run) = delivery.recurring {
        keys.push(keys::done_runs(delivery.id, run.node));
    }
    let mut field = String::new();
    if let Some(state) = push.counted.filter(|_| !apart) {
        keys.push(keys::AUDIT_RESULTS.to_owned());
        field = history::count_field(delivery.id, state);
    }
    let (recurring, quiet) = (delivery.recurring.is_some(), push.bounds.done_seconds == QUIET_RETENTION_SECONDS);
    let kept = (push.bounds.most, push.bounds.seconds, recurring, quiet);
    let count = (field, history::COUNT_RETENTION_SECONDS, DAY);
    let bytes = records::MAX_LIST_BYTES;
    let args =
        (delivery.target, delivery.run, delivery.text, kept, count, bytes, push.bounds.done_seconds, push.bounds.keep);
    batch.script(&scripts::PUSH_RESULT, &keys, args);
}

/// Reads the answer to `decide`.
pub fn verdict(answer: Value) -> RedisResult<Verdict> {
    Ok(verdict_of(&String::from_redis_value(answer)?))
}

fn verdict_of(said: &str) -> Verdict {
    match said {
        "first" => Verdict::First,
        "quiet" => Verdict::Quiet,
        "repeat" => Verdict::Repeat,
        _ => said.parse().map_or(Verdict::Late, Verdict::TooMany),
    }
}
