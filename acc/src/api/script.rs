//! `GET /{gid}/{nid}/script?hash=<sha256>`: the source of a script.

use super::{Fault, Outcome, bad, expect_room, refuse};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::http::{Reply, Request};
use crate::model::{DAY, keys};
use jscommon::NodeId;
use redis::Cmd;
use std::time::Instant;

/// The hash in a query.
pub(super) fn read_hash(request: &Request) -> Result<&str, Fault> {
    let hash = request.query.first("hash").unwrap_or("");
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(bad("hash is the SHA-256 of the whole, 64 hex digits in lower case"));
    }
    Ok(hash)
}

pub(super) fn get(context: &Context, node: NodeId, request: &Request) -> Outcome {
    let hash = read_hash(request)?;
    expect_room(context, node, &[Charge::new(Resource::Lookups, 1)])?;
    let key = keys::script(hash);
    let renew = || context.pool.with(|conn| conn.one::<bool>(&Cmd::expire(&key, 7 * DAY as i64)));
    let read = || {
        context.pool.with(|conn| {
            let source: Option<Vec<u8>> = conn.one(&Cmd::get(&key))?;
            if source.is_some() {
                conn.one::<()>(&Cmd::expire(&key, 7 * DAY as i64))?;
            }
            Ok(source)
        })
    };
    let source = context.scripts.get(hash, Instant::now(), read, renew)?;
    let price = source.as_ref().map_or(1, |source| source.len() >> 20);
    context.rate_limiter.owe(node, Charge::new(Resource::Lookups, price), context.clock.now());
    match source {
        Some(source) => Ok(Reply::shared("application/octet-stream", source)),
        None => Err(refuse(404, format!("there is no script with the hash {hash}"))),
    }
}
