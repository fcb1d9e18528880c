//! tiny_http behind the gate: a private Unix socket, some threads, one handler.
//!
//! Owns: the socket's private folder, the threads that take a request, answer it and take the next.
//! Does not own: what is answered; that is the `Handler` (the rooms in `handlers`).
//! The gate alone talks to it, in whole and well-formed requests, each on a connection of its own.
//! A request therefore needs no second look: its node was verified, its route and its length are good.

use crate::query::Query;
use crate::route::Route;
use jscommon::NodeId;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A request that the gate has let through.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it asks for.
    pub route: Route,
    /// The node whose credentials it came with; for a node's route that is the route's node.
    pub node: Option<NodeId>,
    /// The address of the client.
    pub peer: Option<IpAddr>,
    /// The query, decoded.
    pub query: Query,
    /// The bearer token as it came, for routes that check it themselves (`/enroll`).
    pub bearer: Option<String>,
    /// The whole body, at most 16 MiB; empty for a GET.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body's type; not sent with an empty body.
    pub content_type: &'static str,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u32>,
    /// The gate shall keep the client waiting so many seconds and answer 204 then, unless something
    /// is delivered for the node: the node's poll found nothing, and this controller is registered as
    /// the one that holds it.
    pub park: Option<u32>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// 200 with JSON text.
    pub fn json(body: impl Into<Vec<u8>>) -> Reply {
        Reply { status: 200, content_type: "application/json", retry_after: None, park: None, body: body.into() }
    }

    /// 200 with plain text of another type.
    pub fn text(content_type: &'static str, body: impl Into<Vec<u8>>) -> Reply {
        Reply { content_type, ..Reply::json(body) }
    }

    /// `{"error": "<reason>"}` with `status`.
    pub fn error(status: u16, reason: impl Into<String>) -> Reply {
        Reply { status, ..Reply::json(error_body(&reason.into())) }
    }

    /// As `error`, and the client is asked to wait `seconds` before it tries again.
    pub fn busy(status: u16, reason: impl Into<String>, seconds: u32) -> Reply {
        Reply { retry_after: Some(seconds), ..Reply::error(status, reason) }
    }

    /// 204: nothing to say.
    pub fn empty() -> Reply {
        Reply { status: 204, ..Reply::json(Vec::new()) }
    }

    /// Nothing to hand over: the gate keeps the poll for `seconds`.
    pub fn park(seconds: u32) -> Reply {
        Reply { park: Some(seconds), ..Reply::empty() }
    }
}

/// `{"error": "<reason>"}`
pub(crate) fn error_body(reason: &str) -> Vec<u8> {
    serde_json::json!({ "error": reason }).to_string().into_bytes()
}

/// What answers requests; called on several threads at once.
pub trait Handler: Send + Sync + 'static {
    /// The answer to `request`. May block on Redis, in bounded time.
    fn handle(&self, request: &Request) -> Reply;
}

/// A running tiny_http; dropping it ends its threads.
pub struct Handle {
    socket: PathBuf,
}

impl Handle {
    /// Starts `threads` threads that answer by `handler`.
    pub fn start(threads: usize, handler: Arc<dyn Handler>) -> anyhow::Result<Handle> {
        let _ = (threads, handler);
        anyhow::bail!("not built yet")
    }

    /// Where the gate reaches it.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}
