//! `POST /{gid}/{nid}/stream?id=&offset=&ticket=`: frames of live output, stored while somebody watches.
//!
//! Owns: the query, the form of the body, the answers. Does not own: what is stored, and how much (`model::stream`).

use super::{Fault, Outcome, bad, expect_room, refuse};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::http::{Reply, Request};
use crate::model::stream::{self, Answer, Frames, Limits, Verdict};
use jscommon::frame::{self, MAX_REQUEST_BYTES};
use jscommon::{NodeId, failpoint};

/// Offsets are below 2^53, which is what Lua and JSON can count to.
const MAX_OFFSET: u64 = 1 << 53;

pub(super) fn post(context: &Context, node: NodeId, request: &Request) -> Outcome {
    let length = request.body.len();
    expect_room(context, node, &[Charge::new(Resource::StreamWaste, length)])?;
    let outcome = answer(context, node, request);
    // Frames that were not taken cost everybody else something all the same; that Redis is away is nobody's fault.
    let wasted = match &outcome {
        Ok((_, taken)) => !taken,
        Err(Fault::Reply(_)) => true,
        Err(Fault::Redis(_)) => false,
    };
    if wasted && length > 0 {
        context.rate_limiter.owe(node, Charge::new(Resource::StreamWaste, length), context.clock.now());
    }
    outcome.map(|(reply, _)| reply)
}

/// Returns the reply, and whether the frames were taken.
fn answer(context: &Context, node: NodeId, request: &Request) -> Result<(Reply, bool), Fault> {
    let refused = |reason: &str| context.metrics.stream_refused.with_label_values(&[reason]).inc();
    let query = &request.query;
    let malformed = |reason: String| {
        refused("malformed");
        bad(reason)
    };
    let id = query.first("id").filter(|id| jscommon::command::is_job_id(id));
    let id = id.ok_or_else(|| malformed("'id' is no job id".into()))?;
    let offset = query.first("offset").filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let offset = offset.and_then(|text| text.parse().ok()).filter(|offset| *offset < MAX_OFFSET);
    let offset = offset.ok_or_else(|| malformed("'offset' must be a whole number below 2^53".into()))?;
    if request.body.len() > MAX_REQUEST_BYTES {
        return Err(malformed(format!("a request has at most {MAX_REQUEST_BYTES} bytes")));
    }
    frame::check(&request.body).map_err(|fault| malformed(format!("the body is no whole frames: {fault}")))?;
    let ticket = query.first("ticket");
    if ticket.is_some_and(|ticket| context.tickets.check(node, id, ticket).is_err()) {
        refused("ticket");
        return Err(refuse(403, format!("live output of {id}: its ticket is not that of this node and job")));
    }
    let frames = Frames { node, id, offset, bytes: &request.body, has_ticket: ticket.is_some() };
    let (limits, now) = (Limits::of_mib(context.config.stream_memory), context.clock.now());
    failpoint::hit("acc.stream.storing");
    let answer = context.pool.with(|conn| stream::post(conn, frames, limits, now))?;
    failpoint::hit("acc.stream.stored");
    match answer.verdict {
        Verdict::Taken => {
            context.metrics.stream_bytes.inc_by(request.body.len() as u64);
            context.metrics.stream_entries.inc_by(u64::from(!request.body.is_empty()));
            Ok((reply(200, answer), true))
        }
        Verdict::Lapsed => Ok((reply(200, answer), false)),
        Verdict::Offset => {
            refused("offset");
            Ok((reply(409, answer), false))
        }
        Verdict::Full => {
            refused("room");
            Ok((reply(409, answer), false))
        }
        Verdict::Gone => {
            refused("gone");
            Err(refuse(410, format!("nobody watches {id}, and nobody did in the last minute")))
        }
        Verdict::Forbidden => {
            refused("job");
            Err(refuse(403, format!("live output of {id}: it has no ticket, and redis knows no such job of this node")))
        }
    }
}

fn reply(status: u16, answer: Answer) -> Reply {
    let Answer { have, watch, room, .. } = answer;
    let body = serde_json::json!({"have": have, "watch": watch, "room": room});
    Reply { status, ..Reply::json(body.to_string()) }
}
