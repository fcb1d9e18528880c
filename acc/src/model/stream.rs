//! Streams of live output: the frames that nodes send while somebody watches.
//!
//! Owns: `jsacc:stream:<id>` and the hash beside it, `jsacc:streams`, their bounds, and `room`.
//! Does not own: `jsacc:watch:<id>`, which the watching client writes; which node may write to which stream (`api`).
//!
//! A single server does a request in one call. On a cluster watch, stream and the sum of all streams lie on different
//! servers: the watch is read first, then the frames are stored together with `have`, then the sum is written down. A
//! request that ends between those steps was stored or was not, and `have` says which; [`sweep`] mends the sum.

use crate::model::{keys, scripts};
use crate::redis::{Batch, Conn, command};
use jscommon::{NodeId, failpoint};
use redis::{Cmd, FromRedisValue, RedisResult, Value};

/// Most bytes of one stream.
const MAX_STREAM_BYTES: u64 = 32 << 20;
/// Nodes share the room with those that have sent something in this window of time (ms), or in the one before.
const WINDOW_MS: u64 = 2000;
/// Most streams that one round trip looks after.
const SWEPT_AT_ONCE: usize = 100;

/// Bounds of the bytes in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    stream: u64,
    all: u64,
}

impl Limits {
    /// All streams have at most so many MiB together.
    pub(crate) fn of_mib(all: u64) -> Limits {
        Limits { stream: MAX_STREAM_BYTES, all: all << 20 }
    }
}

/// Frames of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames<'a> {
    pub(crate) node: NodeId,
    pub(crate) id: &'a str,
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
    /// Otherwise the job must name the node.
    pub(crate) has_ticket: bool,
}

/// The verdict on the frames of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They are stored.
    Taken,
    /// The watch has ended.
    Lapsed,
    /// Other bytes are next.
    Offset,
    /// There is no room for them.
    Full,
    /// There never was such a watch, or it ended long ago.
    Gone,
    /// Nothing says that the node may write to the stream.
    Forbidden,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) verdict: Verdict,
    pub(crate) have: u64,
    pub(crate) watch: u64,
    pub(crate) room: u64,
    bytes: u64,
}

impl Answer {
    fn read(value: Value) -> RedisResult<Answer> {
        let (verdict, have, watch, room, bytes): (String, u64, u64, u64, u64) =
            FromRedisValue::from_redis_value(value)?;
        let verdict = match verdict.as_str() {
            "ok" => Verdict::Taken,
            "lapsed" => Verdict::Lapsed,
            "offset" => Verdict::Offset,
            "full" => Verdict::Full,
            "gone" => Verdict::Gone,
            _ => Verdict::Forbidden,
        };
        Ok(Answer { verdict, have, watch, room, bytes })
    }
}

/// Takes frames of a node.
pub(crate) fn post(conn: &mut Conn, frames: Frames<'_>, limits: Limits, now: u64) -> RedisResult<Answer> {
    let node = frames.node.to_string();
    let args = (&node, frames.offset, frames.bytes, frames.id, limits.stream, limits.all, now / WINDOW_MS);
    let mut key_list = vec![keys::stream(frames.id), keys::stream_state(frames.id)];
    if !conn.is_cluster() {
        key_list.extend([keys::watch(frames.id), keys::STREAMS.to_owned()]);
        key_list.extend((!frames.has_ticket).then(|| keys::job(frames.id)));
        return Answer::read(conn.script(&scripts::STREAM_POST, &key_list, args)?);
    }
    let mut batch = ask_watch(frames.id);
    if !frames.has_ticket {
        batch.call(Cmd::hexists(keys::job(frames.id), &node));
    }
    let mut answers = conn.run(&batch)?.into_iter();
    let watch = Watch::read(&mut answers)?;
    if !frames.has_ticket && !bool::from_redis_value(answers.next().unwrap_or(Value::Nil))? {
        return Ok(Answer { verdict: Verdict::Forbidden, have: 0, watch: 0, room: 0, bytes: 0 });
    }
    failpoint::hit("acc.stream.asked");
    let answer = Answer::read(conn.script(&scripts::STREAM_POST, &key_list, (args, watch.args()))?)?;
    failpoint::hit("acc.stream.uncounted");
    if watch.own != answer.bytes && watch.lives() {
        // The frames are stored, whatever becomes of this.
        let use_of = (frames.id, answer.bytes);
        if let Err(e) = conn.script::<()>(&scripts::STREAM_USE, &[keys::STREAMS.to_owned()], use_of) {
            log::debug!("the bytes of the stream {} are not counted yet: {e}", frames.id);
        }
    }
    Ok(answer)
}

/// A watch as a cluster has it, and what is counted of the streams.
struct Watch {
    value: Option<Vec<u8>>,
    left: i64,
    own: u64,
    others: u64,
}

/// Asks for the watch `id`; [`Watch::read`] reads the answers.
fn ask_watch(id: &str) -> Batch {
    let mut batch = Batch::new();
    batch.call(Cmd::get(keys::watch(id))).call(Cmd::pttl(keys::watch(id)));
    batch.call(command("HMGET", (keys::STREAMS, "", id)));
    batch
}

impl Watch {
    fn read(answers: &mut impl Iterator<Item = Value>) -> RedisResult<Watch> {
        let mut next = || answers.next().unwrap_or(Value::Nil);
        let (value, left) = (FromRedisValue::from_redis_value(next())?, FromRedisValue::from_redis_value(next())?);
        let (sum, own): (Option<u64>, Option<u64>) = FromRedisValue::from_redis_value(next())?;
        let own = own.unwrap_or(0);
        Ok(Watch { value, left, own, others: sum.unwrap_or(0).saturating_sub(own) })
    }

    fn lives(&self) -> bool {
        self.value.is_some() && self.left != -2
    }

    /// The last arguments of `stream_post.lua`.
    fn args(&self) -> (&[u8], i64, u64) {
        (self.value.as_deref().unwrap_or_default(), if self.lives() { self.left } else { -2 }, self.others)
    }
}

/// Keeps the streams of watches that live, has the others expire, drops what was read, and counts anew. Returns how many
/// streams there are, and their bytes.
pub(crate) fn sweep(conn: &mut Conn, limits: Limits, now: u64) -> RedisResult<(i64, i64)> {
    let ids: Vec<String> = conn.one(&Cmd::hkeys(keys::STREAMS))?;
    if ids.is_empty() {
        return Ok((0, 0));
    }
    let mut gone = Vec::new();
    let ids: Vec<String> = ids.into_iter().filter(|id| !id.is_empty()).collect();
    for some in ids.chunks(SWEPT_AT_ONCE) {
        let answers = look_after(conn, some, limits, now)?;
        for (id, answer) in some.iter().zip(answers) {
            // A key of another type is somebody else's fault, and holds nothing up.
            if answer.and_then(Answer::read).is_ok_and(|answer| answer.verdict == Verdict::Gone) {
                gone.push(id.clone());
            }
        }
    }
    let recount = keys::STREAMS.to_owned();
    conn.script(&scripts::STREAM_RECOUNT, &[recount], gone)
}

fn look_after(conn: &mut Conn, ids: &[String], limits: Limits, now: u64) -> RedisResult<Vec<RedisResult<Value>>> {
    let mut batch = Batch::new();
    let args = |id| ("", 0, "", id, limits.stream, limits.all, now / WINDOW_MS);
    if !conn.is_cluster() {
        for id in ids {
            let key_list = [keys::stream(id), keys::stream_state(id), keys::watch(id), keys::STREAMS.to_owned()];
            batch.script(&scripts::STREAM_POST, &key_list, args(id));
        }
        return conn.run_each(&batch);
    }
    let mut questions = Batch::new();
    for id in ids {
        questions.append(ask_watch(id));
    }
    let mut answers = conn.run(&questions)?.into_iter();
    for id in ids {
        let watch = Watch::read(&mut answers)?;
        let key_list = [keys::stream(id), keys::stream_state(id)];
        batch.script(&scripts::STREAM_POST, &key_list, (args(id), watch.args()));
    }
    let answers = conn.run_each(&batch)?;
    let mut uses = Batch::new();
    for (id, value) in ids.iter().zip(&answers) {
        if let Some(answer) = value.as_ref().ok().and_then(|value| Answer::read(value.clone()).ok())
            && !matches!(answer.verdict, Verdict::Lapsed | Verdict::Gone)
        {
            uses.script(&scripts::STREAM_USE, &[keys::STREAMS.to_owned()], (id, answer.bytes));
        }
    }
    conn.run(&uses)?;
    Ok(answers)
}
