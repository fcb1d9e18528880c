//! Requests as tiny_http has read them, and replies as it writes them.

use super::{ISSUED_HEADER, NODE_HEADER, OPENING_HEADER, PARK_HEADER, PEER_HEADER, QUICK_BODY, UNDATED};
use crate::http::{Body, Reply, Request};
use crate::query::Query;
use crate::route::route;
use std::io;

fn header(request: &tiny_http::Request, name: &'static str) -> Option<String> {
    request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.as_str().to_owned())
}

/// The number of the connection, of its first request.
pub(super) fn opening(request: &tiny_http::Request) -> Option<u64> {
    header(request, OPENING_HEADER)?.parse().ok()
}

/// Whether a request, by its path, is one of those that come by the thousand and ask little of Redis.
pub(super) fn is_quick(request: &tiny_http::Request) -> bool {
    let path = request.url().split('?').next().unwrap_or_default();
    (path.ends_with("/cmd") || path.ends_with("/result")) && request.body_length().unwrap_or(0) <= QUICK_BODY
}

/// The request as handlers see it, body and all.
pub(super) fn read(request: &mut tiny_http::Request) -> anyhow::Result<Request> {
    let header = |name: &'static str| header(request, name);
    let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
    let route = route(request.method().as_str(), path)?;
    let query = Query::parse(query);
    let node = header(NODE_HEADER).map(|node| node.parse()).transpose()?;
    let peer = header(PEER_HEADER).map(|peer| peer.parse()).transpose()?;
    let bearer = header("Authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    let issued = header(ISSUED_HEADER);
    let cert_undated = issued.as_deref() == Some(UNDATED);
    let cert_issued = issued.filter(|_| !cert_undated).map(|issued| issued.parse()).transpose()?;
    let length = request.body_length().unwrap_or(0);
    let mut body = Vec::with_capacity(length);
    request.as_reader().read_to_end(&mut body)?;
    anyhow::ensure!(body.len() == length, "{} of {length} bytes came", body.len());
    Ok(Request { route, node, peer, query, bearer, cert_issued, cert_undated, body })
}

pub(super) fn response(reply: Reply) -> tiny_http::Response<io::Cursor<Body>> {
    let length = reply.body.as_ref().len();
    // Never chunked: the proxy reads as far as the length says.
    let mut response =
        tiny_http::Response::new(reply.status.into(), Vec::new(), io::Cursor::new(reply.body), Some(length), None)
            .with_chunked_threshold(usize::MAX);
    let mut add = |name: &str, value: &str| match tiny_http::Header::from_bytes(name, value) {
        Ok(header) => response.add_header(header),
        Err(()) => log::error!("no header can be made of {name}: {value}"),
    };
    add("Content-Type", reply.content_type);
    for (name, value) in &reply.headers {
        add(name, value);
    }
    if let Some(seconds) = reply.retry_after {
        add("Retry-After", &seconds.to_string());
    }
    if let Some(seconds) = reply.park {
        add(PARK_HEADER, &seconds.to_string());
    }
    response
}
