//! `POST /enroll` with an enrolment token, and `POST /{gid}/{nid}/renew` with a node's own credentials.

use super::body::parse;
use super::{Fault, Outcome, bad, refuse, spend};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::auth::enrolment::Enrolment;
use crate::auth::revocation;
use crate::auth::state_dir::Credentials;
use crate::http::{Reply, Request};
use crate::model::grants::{self, Enrolling, Holder};
use crate::model::{events, nodes, queue};
use crate::redis::describe;
use jscommon::NodeId;
use jscommon::command::is_job_id;
use serde_json::{Value, json as object};

/// Most bytes of a request for new credentials.
const MAX_RENEWAL_BYTES: usize = 4096;
/// Longest name of a use of an enrolment token, in bytes.
const MAX_REQUEST_NAME_BYTES: usize = 64;

pub(super) fn post(context: &Context, request: &Request) -> Outcome {
    let refused = |status, reason: String| Err(refuse(status, reason));
    let Some(token) = request.bearer.as_deref() else {
        return refused(401, "no enrolment token: send the one that `jsacc token` printed as a bearer token".into());
    };
    let now = context.clock.now();
    let enrolment = match Enrolment::check(token, &context.authenticator.secrets(), now) {
        Ok(enrolment) => enrolment,
        Err(reason) => {
            context.metrics.refused("enrolment");
            return refused(403, reason);
        }
    };
    let body = parse(&request.body)?;
    let number = |name: &str| body.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let node = number("gid").zip(number("nid")).and_then(|(gid, nid)| NodeId::new(gid, nid));
    let Some(node) = node else { return Err(bad("the body names 'gid' and 'nid', whole numbers of 1 or more")) };
    if let Some(only) = enrolment.terms.node.filter(|only| *only != node) {
        context.metrics.refused("enrolment");
        return refused(403, format!("the enrolment token is for node {only} alone, not for {node}"));
    }
    let keep = enrolment.expires.saturating_sub(now) / 1000 + 60;
    // A node whose answer was lost asks again under the same name. The call itself is repeated when its connection was
    // cut, and may have been counted then.
    let named = match body.get("request").and_then(Value::as_str) {
        None => format!("{:016x}", fastrand::u64(..)),
        Some(name) if name.len() <= MAX_REQUEST_NAME_BYTES && is_job_id(name) => name.to_owned(),
        Some(_) => return Err(bad(format!("'request' is at most {MAX_REQUEST_NAME_BYTES} of A-Z a-z 0-9 . _ : -"))),
    };
    // For another node it is another use.
    let use_id = format!("{node}:{named}");
    let token_use = format!("{}/{named}", enrolment.id);
    let spent = || {
        context.metrics.refused("enrolment");
        refused(
            403,
            format!("the enrolment token is spent after {} use(s): make another with jsacc token", enrolment.uses),
        )
    };
    if !context.pool.with(|conn| nodes::can_use_enrolment(conn, &enrolment.id, &use_id, enrolment.uses))? {
        return spent();
    }
    // Not before it is known that the token is good for something: a spent one tells nobody which nodes there are.
    let revoker = revocation::Revoker { deliverer: context.deliverer(), max_queue: context.config.max_queue };
    let (holder, since) = context.pool.with(|conn| revoker.finish(conn, node, &token_use))?;
    if holder == Holder::Other && !enrolment.terms.replace {
        return taken(context, node);
    }
    let id = &enrolment.id;
    let counted = context.pool.with(|conn| nodes::use_enrolment(conn, id, &use_id, enrolment.uses, keep, now))?;
    let Some(counted) = counted else { return spent() };
    if counted != now && holder != Holder::ThisUse && counted <= since {
        // The node was revoked or enrolled otherwise since: nobody comes back by a use of before.
        return spent();
    }
    let by = format!("jsacc token {id}");
    let (replace, named) = (enrolment.terms.replace, &enrolment.terms.named);
    let new = Enrolling { issued: now, token_use: &token_use, replace, named, by: &by };
    if !context.pool.with(|conn| grants::enrolled(conn, node, &new))? {
        return taken(context, node);
    }
    // Newer than any revocation, even one of this very millisecond.
    let until = if replace && holder != Holder::Nobody {
        Some(context.pool.with(|conn| nodes::revoke(conn, node, now))?)
    } else {
        context.pool.with(|conn| nodes::revoked_until(conn, node))?
    };
    let issued = context.clock.now().max(until.map_or(0, |until| until + 1));
    // As of now they hold, whatever was revoked on the way.
    context.pool.with(|conn| grants::enrolled(conn, node, &Enrolling { issued, ..new }))?;
    let credentials = issue(context, node, issued)?;
    context.pool.with(|conn| queue::open(conn, node))?;
    let peer = request.peer.map(|peer| peer.to_string());
    let data = object!({"addr": peer, "token": enrolment.id, "replaced": holder == Holder::Other});
    let told = context.pool.with(|conn| events::tell(conn, "enrolled", Some(node), now, &data));
    // The use of the token is counted, and the node has what it came for.
    if let Err(e) = told {
        ::log::error!("that node {node} was enrolled with the token {} is in no event: {}", enrolment.id, describe(&e));
    }
    Ok(answer(node, &credentials))
}

/// 409: the node has credentials that hold.
fn taken(context: &Context, node: NodeId) -> Outcome {
    context.metrics.refused("enrolment");
    let NodeId { gid, nid } = node;
    Err(refuse(
        409,
        format!(
            "node {node} has credentials that hold; if it is to get new ones, enrol it with a token of `jsacc token \
             --node {gid}.{nid} --replace`, or end the old ones first with `jsacc revoke {gid} {nid}`"
        ),
    ))
}

pub(super) fn renew(context: &Context, node: NodeId, request: &Request) -> Outcome {
    // With a certificate of another CA the age of what it holds is not known: it gets new ones.
    let dated = request.bearer.is_some() || request.cert_issued.is_some();
    // A node may come without the certificate that it has lost.
    if request.body.len() > MAX_RENEWAL_BYTES {
        return Err(refuse(413, format!("a request for credentials has at most {MAX_RENEWAL_BYTES} bytes")));
    }
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let lost = request.cert_issued.is_none() && body["certificate"] == true;
    if dated && !lost && context.authenticator.renewal(request.bearer.as_deref(), request.cert_issued).is_none() {
        return Ok(Reply::empty());
    }
    spend(context, node, &[Charge::new(Resource::Renewals, 1)])?;
    // A revocation takes a moment to get to every controller: nothing must be made new in that moment.
    // One that comes after this look finds credentials that are older than itself.
    let now = context.clock.now();
    let until = context.pool.with(|conn| nodes::revoked_until(conn, node))?;
    if let Some(until) = until {
        let (bearer, cert) = (request.bearer.as_deref(), request.cert_dated());
        let holds = if dated {
            context.authenticator.issued_after(node, until, bearer, cert)
        } else {
            Err(context.authenticator.revoked(node, until))
        };
        if let Err(refusal) = holds {
            context.metrics.refused(refusal.label);
            return Err(refuse(refusal.status, refusal.reason));
        }
    }
    let issued = now.max(until.map_or(0, |until| until + 1));
    let mut credentials = issue(context, node, issued)?;
    if context.config.client_ca.is_some() && request.cert_issued.is_none() {
        // The node's certificate may be of that CA, which then makes the next one.
        (credentials.client_cert, credentials.client_key) = Default::default();
    }
    Ok(answer(node, &credentials))
}

fn issue(context: &Context, node: NodeId, issued: u64) -> Result<Credentials, Fault> {
    let secrets = context.authenticator.secrets();
    context.state_dir.issue(&context.config, &secrets, node, issued).map_err(|e| {
        ::log::error!("credentials for node {node} cannot be made: {e:#}");
        refuse(500, "the controller cannot make credentials; its log says why")
    })
}

fn answer(node: NodeId, credentials: &Credentials) -> Reply {
    let body = object!({
        "gid": node.gid,
        "nid": node.nid,
        "token": credentials.token,
        "ca": credentials.ca,
        "client_cert": credentials.client_cert,
        "client_key": credentials.client_key,
    });
    Reply::json(body.to_string())
}
