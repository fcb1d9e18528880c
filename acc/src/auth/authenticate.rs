//! The question whether a request is allowed, and its answer.

use super::tls::PeerCert;
use crate::http::Refusal;
use crate::route::Route;
use jscommon::NodeId;
use std::net::IpAddr;

/// Decides whether a request is allowed. The proxy's own thread calls it for each request, so it must never block.
pub trait Authenticate: Send + Sync + 'static {
    /// Whether this request may go on, by its head alone. The path is a known route with its right method.
    fn admit(&self, head: &PresentedCredentials<'_>) -> Result<Admitted, Refusal>;
}

/// The part of a request's head that authentication needs.
#[derive(Clone, Copy, Debug)]
pub struct PresentedCredentials<'a> {
    /// The route.
    pub route: Route,
    /// The token of `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
    /// The client's address.
    pub peer: IpAddr,
    /// The content of the client's certificate, when our CA signed it.
    pub cert: Option<&'a PeerCert>,
}

/// The identity behind a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// This node, by its credentials; it is the node of the path.
    Node(NodeId),
    /// Anybody: the path is open, or its handler checks the request itself.
    Open,
    /// Somebody who may read metrics.
    Operator,
}
