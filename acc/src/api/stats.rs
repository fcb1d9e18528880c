//! `POST /{gid}/{nid}/stats`: batches of series.

use super::{ENTRY_BYTES, Fault, Outcome, bad, batch_number, bytes, expect_room, json, refuse, spend};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::http::Reply;
use crate::model::{nodes, records};
use crate::redis::Batch;
use jscommon::NodeId;
use redis::FromRedisValue;
use serde_json::Value;

/// Most series of one batch.
const MAX_SERIES: usize = 50_000;
/// Longest name of a series, in bytes.
const MAX_NAME_BYTES: usize = 512;
/// Longest text that is a value, in bytes.
const MAX_VALUE_BYTES: usize = 256;
/// A batch has at least so many bytes of its node's share of the queue, so that many small ones use it up too.
const MIN_QUEUE_BYTES: usize = 8 << 10;

/// A batch of series.
struct Posted {
    number: u64,
    /// The keys, with `[value, seconds]`.
    series: Vec<(String, String)>,
    /// The batch as it goes into the queue.
    text: String,
}

pub(super) fn post(context: &Context, node: NodeId, body: Vec<u8>) -> Outcome {
    super::within_batch(&body)?;
    expect_room(context, node, &[bytes(body.len())])?;
    let posted = read(node, json(&context.values, &context.metrics, node, body)?.value, context.clock.now() / 1000)?;
    let now = context.clock.now();
    let share = Charge::new(Resource::Queue, posted.text.len().max(MIN_QUEUE_BYTES));
    let charges = [Charge::new(Resource::Series, posted.series.len()), bytes(posted.text.len() + ENTRY_BYTES)];
    spend(context, node, &charges)?;
    let no_share = context.rate_limiter.check(node, &[share], now).is_err();
    let new = context.rate_limiter.left(node, Resource::Keys, now) as usize;
    let written = context.pool.with(|conn| {
        let mut batch = Batch::new();
        records::stats_queue(&mut batch, node, posted.number, &posted.text, no_share);
        let pushed = records::pushed(conn.run(&batch)?.pop().unwrap_or(redis::Value::Nil))?;
        // A batch that was queued before may have died before its values were written: they are
        // written again, which changes nothing unless newer ones came since.
        let mut batch = Batch::new();
        records::stats(&mut batch, node, posted.number, &posted.series, pushed.last.is_none(), new);
        let parts = batch.len();
        nodes::known(&mut batch, node, context.clock.now());
        let mut answers = conn.run(&batch)?;
        answers.truncate(parts);
        Ok((pushed, answers))
    });
    let (pushed, answers) = match written {
        Ok(written) => written,
        Err(e) => {
            // It is sent again, and pays then.
            context.rate_limiter.give_back(node, &charges);
            return Err(e.into());
        }
    };
    let (mut made, mut left_out) = (0, 0);
    for answer in answers {
        let (new, out): (usize, usize) = FromRedisValue::from_redis_value(answer).map_err(redis::RedisError::from)?;
        (made, left_out) = (made + new, left_out + out);
    }
    context.rate_limiter.owe(node, Charge::new(Resource::Keys, made), now);
    if left_out > 0 {
        context.metrics.refused("new-series");
    }
    if pushed.left_out {
        context.metrics.refused("stats-queue");
    } else if pushed.last.is_none() && !no_share {
        context.rate_limiter.owe(node, share, now);
    }
    Ok(pushed.last.map_or_else(|| Reply::json("{}"), super::taken_before))
}

fn read(node: NodeId, mut body: Value, now: u64) -> Result<Posted, Fault> {
    let number = batch_number(&body)?;
    let timestamp = match body.get("timestamp") {
        None | Some(Value::Null) => now,
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64))
            .ok_or_else(|| bad("'timestamp' must be seconds since 1970"))?,
    };
    let Some(list @ Value::Array(_)) = body.get_mut("series").map(Value::take) else {
        return Err(bad("'series' must be a list"));
    };
    let count = list.as_array().map_or(0, Vec::len);
    if count > MAX_SERIES {
        return Err(super::too_many(format!("a batch has at most {MAX_SERIES} series, and this one {count}")));
    }
    // Other fields of the body are nobody's. The list is written as it is: a large one is held as rarely as can be.
    let NodeId { gid, nid } = node;
    let text = format!(r#"{{"batch":{number},"gid":{gid},"nid":{nid},"series":{list},"timestamp":{timestamp}}}"#);
    let Value::Array(list) = list else { return Err(bad("'series' must be a list")) };
    let mut series = Vec::with_capacity(count);
    for (i, entry) in list.into_iter().enumerate() {
        let pair = if let Value::Array(pair) = entry { <[Value; 2]>::try_from(pair).ok() } else { None };
        let Some([Value::String(key), value]) = pair else {
            return Err(bad(format!("series {i} is no pair of a key and a value")));
        };
        if !(1..=MAX_NAME_BYTES).contains(&key.len()) {
            return Err(bad(format!("the key of series {i} has none or more than {MAX_NAME_BYTES} bytes")));
        }
        match &value {
            Value::Number(_) => {}
            Value::String(text) if text.len() <= MAX_VALUE_BYTES => {}
            _ => {
                return Err(bad(format!(
                    "the value of series {i} is no number and no text of up to {MAX_VALUE_BYTES} bytes"
                )));
            }
        }
        if names_another(node, &key) {
            let sentence = format!("series {i} is named after another node than the one that sends it");
            return Err(refuse(403, sentence));
        }
        series.push((key, format!("[{value},{timestamp}]")));
    }
    Ok(Posted { number, series, text })
}

/// Whether `key` begins with the `gid.nid.` of another node.
fn names_another(node: NodeId, key: &str) -> bool {
    let mut parts = key.splitn(3, '.');
    let (Some(gid), Some(nid), Some(_)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let named: Option<NodeId> = format!("{gid}:{nid}").parse().ok();
    named.is_some_and(|named| named != node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as object;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    fn status(body: Value) -> u16 {
        match read(NODE, body, 7) {
            Ok(_) => 200,
            Err(Fault::Reply(reply)) => reply.status,
            Err(Fault::Redis(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn values_are_numbers_or_short_texts_and_names_are_bounded() {
        let long = |length: usize| "x".repeat(length);
        for (key, value, want) in [
            (long(1), object!(1), 200),
            (long(1), object!(-1.5e300), 200),
            (long(1), object!("up"), 200),
            (long(1), object!(long(MAX_VALUE_BYTES)), 200),
            (long(1), object!(long(MAX_VALUE_BYTES + 1)), 400),
            (long(1), object!(null), 400),
            (long(1), object!([1]), 400),
            (long(1), object!({"a": 1}), 400),
            (long(1), object!(true), 400),
            (long(MAX_NAME_BYTES), object!(1), 200),
            (long(MAX_NAME_BYTES + 1), object!(1), 400),
            (String::new(), object!(1), 400),
            ("1.11.a.b.c".into(), object!(1), 403),
        ] {
            assert_eq!(status(object!({"batch": 1, "series": [[key, value]]})), want, "{key} {value}");
        }
        let many = vec![object!(["a", 1]); MAX_SERIES + 1];
        assert_eq!(status(object!({"batch": 1, "series": many})), 413);
        assert_eq!(status(object!({"batch": 1, "series": [["a"]]})), 400);
        assert_eq!(status(object!({"batch": 1, "series": {}})), 400);
        assert_eq!(status(object!({"batch": 1, "series": [], "timestamp": -1})), 400);
    }

    #[test]
    fn nothing_else_of_the_body_is_queued() {
        let body = object!({"batch": 1, "gid": 9, "junk": "x".repeat(1000), "series": [["a", 1]]});
        let posted = read(NODE, body, 7).map_err(|_| ()).unwrap();
        let text: Value = serde_json::from_str(&posted.text).unwrap();
        assert_eq!(text, object!({"batch": 1, "gid": 1, "nid": 10, "timestamp": 7, "series": [["a", 1]]}));
        assert_eq!(posted.number, 1);
        assert_eq!(posted.series, [("a".to_owned(), "[1,7]".to_owned())]);
    }

    #[test]
    fn series_of_another_node_are_refused() {
        let node = NodeId { gid: 1, nid: 10 };
        for (key, want) in [("1.10.a.b.c", false), ("1.11.a.b.c", true), ("a.b", false), ("1.5", false), ("x", false)] {
            assert_eq!(names_another(node, key), want, "{key}");
        }
    }
}
