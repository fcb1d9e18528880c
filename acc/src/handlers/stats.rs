//! `POST /{gid}/{nid}/stats`: batches of series.

use super::{Fault, Outcome, bad, batch_number, json};
use crate::context::Context;
use crate::server::Reply;
use crate::store::{Batch, lists, nodes};
use jscommon::NodeId;
use serde_json::{Value, json as object};

/// Most series of one batch, and the longest name of one.
const MAX_SERIES: usize = 50_000;
const MAX_KEY: usize = 512;

pub(super) fn post(context: &Context, node: NodeId, body: &[u8]) -> Outcome {
    let mut body = json(body)?;
    let number = batch_number(&body)?;
    let timestamp = match body.get("timestamp") {
        None | Some(Value::Null) => context.clock.now() / 1000,
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64))
            .ok_or_else(|| bad("'timestamp' must be seconds since 1970"))?,
    };
    let Some(Value::Array(list)) = body.get("series") else { return Err(bad("'series' must be a list")) };
    if list.len() > MAX_SERIES {
        return Err(super::too_many(format!("a batch has at most {MAX_SERIES} series, and this one {}", list.len())));
    }
    let mut series = Vec::with_capacity(list.len());
    for (i, entry) in list.iter().enumerate() {
        let pair = entry.as_array().filter(|pair| pair.len() == 2);
        let (key, value) = match pair.map(|pair| (&pair[0], &pair[1])) {
            Some((Value::String(key), value @ (Value::Number(_) | Value::String(_))))
                if (1..=MAX_KEY).contains(&key.len()) =>
            {
                (key, value)
            }
            _ => return Err(bad(format!("series {i} is no pair of a key and a value"))),
        };
        if names_another(node, key) {
            let sentence = format!("series {i} is named after another node than the one that sends it");
            return Err(Fault::Reply(Reply::error(403, sentence)));
        }
        series.push((key.clone(), object!([value, timestamp]).to_string()));
    }
    if let Some(fields) = body.as_object_mut() {
        fields.insert("gid".into(), node.gid.into());
        fields.insert("nid".into(), node.nid.into());
        fields.insert("timestamp".into(), timestamp.into());
    }
    let text = body.to_string();
    let last = context.pool.with(|conn| {
        let mut batch = Batch::new();
        lists::stats_queue(&mut batch, node, number, &text);
        let last = lists::last_batch(&conn.run(&batch)?);
        // A batch that was queued before may have died before its values were written: they are
        // written again, which changes nothing unless newer ones came since.
        let mut batch = Batch::new();
        lists::stats(&mut batch, node, number, &series, last.is_none());
        nodes::known(&mut batch, node, context.clock.now());
        conn.run(&batch)?;
        Ok(last)
    })?;
    Ok(last.map_or_else(|| Reply::json("{}"), super::taken_before))
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

    #[test]
    fn only_its_own_series() {
        let node = NodeId { gid: 1, nid: 10 };
        for (key, want) in [("1.10.a.b.c", false), ("1.11.a.b.c", true), ("a.b", false), ("1.5", false), ("x", false)] {
            assert_eq!(names_another(node, key), want, "{key}");
        }
    }
}
