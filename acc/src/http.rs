//! Requests, replies and refusals, as the proxy and `api` exchange them.
//!
//! Owns: the shapes of both. Does not own: how they travel (`api::server`), what the answer is (`api`).

use crate::query::Query;
use crate::route::Route;
use jscommon::NodeId;
use std::net::IpAddr;
use std::sync::Arc;

/// A request that the proxy has let through.
#[derive(Clone, Debug)]
pub struct Request {
    /// The route.
    pub route: Route,
    /// The node whose credentials it came with; for a node's route that is the route's node.
    pub node: Option<NodeId>,
    /// The address of the client.
    pub peer: Option<IpAddr>,
    /// The query, decoded.
    pub query: Query,
    /// The bearer token as it came; `/enroll` checks it itself.
    pub bearer: Option<String>,
    /// When the client's certificate was issued, in milliseconds since 1970, if it gave one that says.
    pub cert_issued: Option<u64>,
    /// The client gave a certificate that does not say when it was issued.
    pub cert_undated: bool,
    /// The whole body, at most 16 MiB; empty for a GET.
    pub body: Vec<u8>,
}

impl Request {
    /// The time (ms) that the client's certificate is measured by when its node was revoked: one that does not
    /// say when it was issued is older than any revocation.
    pub(crate) fn cert_dated(&self) -> Option<u64> {
        if self.cert_undated { Some(0) } else { self.cert_issued }
    }

    /// When its credentials were issued (ms): the older of token and certificate, and 0 where neither says.
    pub(crate) fn issued(&self) -> u64 {
        let token = self.bearer.as_deref().and_then(jscommon::token::issued);
        [token, self.cert_dated()].into_iter().flatten().min().unwrap_or(0)
    }
}

/// The body of an answer: bytes of its own, or some that others hold too and that are not copied for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Its own.
    Own(Vec<u8>),
    /// Shared ones.
    Shared(Arc<[u8]>),
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        match self {
            Body::Own(bytes) => bytes,
            Body::Shared(bytes) => bytes,
        }
    }
}

impl<B: Into<Vec<u8>>> From<B> for Body {
    fn from(bytes: B) -> Body {
        Body::Own(bytes.into())
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body's type; not sent with an empty body.
    pub(crate) content_type: &'static str,
    /// Seconds for `Retry-After`.
    pub(crate) retry_after: Option<u32>,
    /// Other headers.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The proxy shall keep the client waiting so many seconds and answer 204 then, unless something
    /// is delivered for the node: the node's poll found nothing, and this controller is registered as
    /// the one that holds it.
    pub(crate) park: Option<u32>,
    /// The body.
    pub(crate) body: Body,
}

impl Reply {
    /// 200 with JSON text.
    pub(crate) fn json(body: impl Into<Body>) -> Reply {
        Reply {
            status: 200,
            content_type: "application/json",
            retry_after: None,
            headers: Vec::new(),
            park: None,
            body: body.into(),
        }
    }

    /// 200 with plain text of another type.
    pub(crate) fn text(content_type: &'static str, body: impl Into<Vec<u8>>) -> Reply {
        Reply { content_type, ..Reply::json(body.into()) }
    }

    /// 200 with bytes that are shared.
    pub(crate) fn shared(content_type: &'static str, body: Arc<[u8]>) -> Reply {
        Reply { content_type, body: Body::Shared(body), ..Reply::json(Vec::new()) }
    }

    /// `{"error": "<reason>"}` with `status`.
    pub(crate) fn error(status: u16, reason: impl Into<String>) -> Reply {
        Reply { status, ..Reply::json(error_body(&reason.into())) }
    }

    /// As `error`, and the client is asked to wait `seconds` before it tries again.
    pub(crate) fn busy(status: u16, reason: impl Into<String>, seconds: u32) -> Reply {
        Reply { retry_after: Some(seconds), ..Reply::error(status, reason) }
    }

    /// 204: nothing to say.
    pub(crate) fn empty() -> Reply {
        Reply { status: 204, ..Reply::json(Vec::new()) }
    }

    /// Nothing to hand over: the proxy keeps the poll for `seconds`.
    pub(crate) fn park(seconds: u32) -> Reply {
        Reply { park: Some(seconds), ..Reply::empty() }
    }
}

/// `{"error": "<reason>", "time": <ms>}`: a node whose clock is off learns it from the time.
pub(crate) fn error_body(reason: &str) -> Vec<u8> {
    serde_json::json!({ "error": reason, "time": crate::clock::local_ms() }).to_string().into_bytes()
}

/// Why a request goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub(crate) status: u16,
    /// The sentence of `{"error": ...}`.
    pub(crate) reason: String,
    /// The reason's name in metrics: one of a few.
    pub(crate) label: &'static str,
}

impl Refusal {
    /// A refusal with a sentence; `label` is its name in metrics.
    pub(crate) fn new(status: u16, label: &'static str, reason: impl Into<String>) -> Refusal {
        Refusal { status, reason: reason.into(), label }
    }

    /// 400 with a sentence.
    pub(crate) fn bad_request(label: &'static str, reason: impl Into<String>) -> Refusal {
        Refusal::new(400, label, reason)
    }
}

/// Answers requests; called on several threads at once.
pub trait Handler: Send + Sync + 'static {
    /// The answer to `request`, whose body it may take. May block on Redis, in bounded time.
    fn handle(&self, request: &mut Request) -> Reply;

    /// How many requests it likes to be asked at once, where so many wait.
    fn max_batch(&self) -> usize {
        1
    }

    /// The answers to requests that came together, in their order.
    fn handle_all(&self, requests: &mut [Request]) -> Vec<Reply> {
        requests.iter_mut().map(|request| self.handle(request)).collect()
    }
}
