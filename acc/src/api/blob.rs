//! `GET /{gid}/{nid}/blob?hash=<sha256>&piece=<i>`: a piece of a large file.
//!
//! Nothing is kept here: a node reads each piece once, and checks the hash of the whole.

use super::script::read_hash;
use super::{Outcome, bad, expect_room, refuse};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::http::{Reply, Request};
use crate::model::{DAY, keys};
use jscommon::NodeId;
use jscommon::blob::{MAX_PIECES, PIECE_BYTES};
use jscommon::failpoint;
use redis::Cmd;

pub(super) fn get(context: &Context, node: NodeId, request: &Request) -> Outcome {
    let hash = read_hash(request)?;
    let piece = request.query.first("piece").and_then(|text| text.parse::<u32>().ok());
    let Some(piece) = piece.filter(|piece| *piece < MAX_PIECES) else {
        return Err(bad(format!("piece is the number of a piece, from 0 to {}", MAX_PIECES - 1)));
    };
    // As much as a MiB of a script.
    expect_room(context, node, &[Charge::new(Resource::Lookups, 1)])?;
    failpoint::hit("acc.blob");
    let key = keys::blob(hash, piece);
    let bytes = context.pool.with(|conn| {
        // One byte more than a piece may have, and not all of a value that is no piece.
        let bytes: Vec<u8> = conn.one(&Cmd::getrange(&key, 0, PIECE_BYTES as isize))?;
        if !bytes.is_empty() {
            conn.one::<()>(&Cmd::expire(&key, DAY as i64))?;
        }
        Ok(bytes)
    })?;
    match bytes.len() {
        0 => Err(refuse(404, format!("there is no piece {piece} of the file with the hash {hash}"))),
        length if length > PIECE_BYTES => Err(bad(format!("piece {piece} in Redis is longer than 1 MiB"))),
        _ => Ok(Reply::shared("application/octet-stream", bytes.into())),
    }
}
