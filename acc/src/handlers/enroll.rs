//! `POST /enroll` with an enrolment token, and `POST /{gid}/{nid}/renew` with a node's own credentials.

use super::{Fault, Outcome, bad, json, spend};
use crate::allowance::{Charge, Resource};
use crate::context::Context;
use crate::identity::Credentials;
use crate::identity::enrolment::Enrolment;
use crate::server::{Reply, Request};
use crate::store::{Batch, grants, lists, nodes};
use jscommon::NodeId;
use serde_json::{Value, json as object};

/// Most bytes of a request for new credentials.
const MAX_RENEWAL: usize = 4096;

pub(super) fn post(context: &Context, request: &Request) -> Outcome {
    let refused = |status, reason: String| Err(Fault::Reply(Reply::error(status, reason)));
    let Some(token) = request.bearer.as_deref() else {
        return refused(401, "no enrolment token: send the one that `jsacc token` printed as a bearer token".into());
    };
    let body = json(&request.body)?;
    let number = |name: &str| body.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let node = number("gid").zip(number("nid")).and_then(|(gid, nid)| NodeId::new(gid, nid));
    let Some(node) = node else { return Err(bad("the body names 'gid' and 'nid', whole numbers of 1 or more")) };
    let now = context.clock.now();
    let enrolment = match Enrolment::check(token, &context.door.secrets(), now) {
        Ok(enrolment) => enrolment,
        Err(reason) => {
            context.metrics.refused("enrolment");
            return refused(403, reason);
        }
    };
    if let Some(only) = enrolment.terms.node.filter(|only| *only != node) {
        context.metrics.refused("enrolment");
        return refused(403, format!("the enrolment token is for node {only} alone, not for {node}"));
    }
    let keep = enrolment.expires.saturating_sub(now) / 1000 + 60;
    // The call is repeated when its connection was cut, and may have been counted then.
    let use_id = format!("{:016x}", fastrand::u64(..));
    let left = context.pool.with(|conn| nodes::use_enrolment(conn, &enrolment.id, &use_id, enrolment.uses, keep))?;
    if !left {
        context.metrics.refused("enrolment");
        return refused(403, format!("the enrolment token is spent: it was for {} use(s)", enrolment.uses));
    }
    // Newer than any revocation, even one of this very millisecond.
    let until = context.pool.with(|conn| nodes::revoked_until(conn, node))?;
    let issued = context.clock.now().max(until.map_or(0, |until| until + 1));
    let credentials = issue(context, node, issued)?;
    context.pool.with(|conn| {
        let by = format!("jsacc token {}", enrolment.id);
        grants::enrolled(conn, node, issued, &enrolment.terms.named, &by)?;
        let mut batch = Batch::new();
        let peer = request.peer.map(|peer| peer.to_string());
        lists::event(&mut batch, "enrolled", Some(node), now, &object!({"addr": peer, "token": enrolment.id}));
        conn.run(&batch).map(drop)
    })?;
    Ok(answer(node, &credentials))
}

pub(super) fn renew(context: &Context, node: NodeId, request: &Request) -> Outcome {
    // With a certificate of another CA the age of what it holds is not known: it gets new ones.
    let dated = request.bearer.is_some() || request.cert_issued.is_some();
    // A node may come without the certificate that it has lost.
    if request.body.len() > MAX_RENEWAL {
        return Err(Fault::Reply(Reply::error(
            413,
            format!("a request for credentials has at most {MAX_RENEWAL} bytes"),
        )));
    }
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let lost = request.cert_issued.is_none() && body["certificate"] == true;
    if dated && !lost && context.door.renewal(request.bearer.as_deref(), request.cert_issued).is_none() {
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
            context.door.outlives(node, until, bearer, cert)
        } else {
            Err(context.door.revoked(node, until))
        };
        if let Err(refusal) = holds {
            context.metrics.refused(refusal.label);
            return Err(Fault::Reply(Reply::error(refusal.status, refusal.reason)));
        }
    }
    let issued = now.max(until.map_or(0, |until| until + 1));
    let mut credentials = issue(context, node, issued)?;
    if context.config.client_ca.is_some() && request.cert_issued.is_none() {
        // What lies at the node may be of that CA: whoever signed it makes the next one.
        (credentials.client_cert, credentials.client_key) = Default::default();
    }
    Ok(answer(node, &credentials))
}

fn issue(context: &Context, node: NodeId, issued: u64) -> Result<Credentials, Fault> {
    let secrets = context.door.secrets();
    context.identity.issue(&context.config, &secrets, node, issued).map_err(|e| {
        ::log::error!("credentials for node {node} cannot be made: {e:#}");
        Fault::Reply(Reply::error(500, "the controller cannot make credentials; its log says why"))
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
