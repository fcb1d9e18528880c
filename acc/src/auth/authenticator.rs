//! Authenticates requests: node tokens, client certificates, revocations, the metrics token.
//!
//! Owns: the node secrets and the revocations as they are held in memory, and every reason to refuse.
//! Does not own: refreshing them (the periodic tasks do, from the state directory and from Redis), or what
//! a request does afterwards. Asked by the proxy for each request; nothing here blocks or looks up.

use super::authenticate::{Admitted, Authenticate, PresentedCredentials};
use crate::auth::dates;
use crate::auth::secrets::Secrets;
use crate::auth::state_dir::CLIENT_DAYS;
use crate::http::Refusal;
use crate::route::Route;
use crossbeam_channel::Sender;
use jscommon::NodeId;
use jscommon::lock::{read_lock, write_lock};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{OnceLock, RwLock};

/// Most milliseconds by which the clock of a certificate's issuer may be ahead.
const MAX_CLOCK_SKEW_MS: u64 = 10 * 60 * 1000;

/// The credentials that requests must have.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Nodes need no credentials.
    pub(crate) no_auth: bool,
    /// A token alone is not enough.
    pub(crate) require_cert: bool,
    /// The token for reading metrics from anywhere; without it metrics are for loopback.
    pub(crate) metrics_token: Option<String>,
    /// The token for reading the nodes' figures from anywhere, and nothing else.
    pub(crate) nodes_token: Option<String>,
}

/// A node's request that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The node of the path.
    pub(crate) node: NodeId,
    /// From where it came.
    pub(crate) peer: IpAddr,
    /// The sentence that was answered.
    pub(crate) reason: String,
}

/// Authenticates the requests of one controller.
pub struct Authenticator {
    /// Refusals go here; those that do not fit are only counted.
    refused: OnceLock<Sender<Refused>>,
    rules: Rules,
    secrets: RwLock<Secrets>,
    /// Nothing until they were read for the first time.
    revoked: RwLock<Option<HashMap<NodeId, u64>>>,
    clock: fn() -> u64,
}

impl Authenticator {
    /// An authenticator with these rules and secrets; `clock` tells milliseconds since 1970.
    pub fn new(rules: Rules, secrets: Secrets, clock: fn() -> u64) -> Authenticator {
        Authenticator {
            refused: OnceLock::new(),
            rules,
            secrets: RwLock::new(secrets),
            revoked: RwLock::default(),
            clock,
        }
    }

    /// Sends refusals to `events` from now on.
    pub(crate) fn report_refusals(&self, events: Sender<Refused>) {
        let _ = self.refused.set(events);
    }

    /// The node secrets as they hold now.
    pub(crate) fn secrets(&self) -> Secrets {
        read_lock(&self.secrets).clone()
    }

    /// Other secrets hold from now on.
    pub(crate) fn set_secrets(&self, secrets: Secrets) {
        *write_lock(&self.secrets) = secrets;
    }

    /// These revocations hold from now on; answers the nodes that are new or newly revoked.
    pub fn set_revoked(&self, revoked: HashMap<NodeId, u64>) -> Vec<NodeId> {
        let mut held = write_lock(&self.revoked);
        let before = held.take().unwrap_or_default();
        let fresh = revoked.iter().filter(|(node, until)| before.get(node) != Some(until)).map(|(node, _)| *node);
        let fresh = fresh.collect();
        *held = Some(revoked);
        fresh
    }

    /// These revocations hold from now on, unless some were set before, which are newer.
    pub fn set_first_revoked(&self, revoked: HashMap<NodeId, u64>) {
        write_lock(&self.revoked).get_or_insert(revoked);
    }

    /// The time (ms) up to which what `node` holds was revoked.
    pub fn revoked_until(&self, node: NodeId) -> Option<u64> {
        read_lock(&self.revoked).as_ref()?.get(&node).copied()
    }

    /// Whether it is known what was revoked: before that nobody's credentials can be told from revoked ones.
    pub fn knows_revoked(&self) -> bool {
        read_lock(&self.revoked).is_some()
    }

    /// Whether the node's credentials are good; says why not.
    pub(crate) fn node(&self, head: &PresentedCredentials<'_>) -> Result<NodeId, Refusal> {
        let refuse = |status, label, reason: String| Err(Refusal { status, reason, label });
        let asked = head.route.node();
        let mut proved = None;
        if let Some(cert) = head.cert {
            self.not_revoked(cert.node, self.dated(cert.issued.unwrap_or(0)))?;
            proved = Some(cert.node);
        } else if self.rules.require_cert {
            return refuse(401, "no-certificate", "this controller asks nodes for a client certificate".into());
        }
        match head.bearer {
            Some(token) => {
                let secrets = read_lock(&self.secrets);
                match secrets.check(token, (self.clock)()) {
                    Ok(checked) => {
                        drop(secrets);
                        self.not_revoked(checked.claims.node, checked.claims.issued)?;
                        if proved.is_some_and(|node| node != checked.claims.node) {
                            return refuse(403, "other-node", "token and certificate are of different nodes".into());
                        }
                        proved = Some(checked.claims.node);
                    }
                    // A certificate alone is enough, but a bad token beside it is a mistake to tell.
                    Err(e) if !self.rules.no_auth => return refuse(401, "bad-token", e.to_string()),
                    Err(_) => {}
                }
            }
            None if proved.is_none() && !self.rules.no_auth => {
                return refuse(
                    401,
                    "no-token",
                    "no credentials: send the node's token as 'Authorization: Bearer <token>', or a client certificate"
                        .into(),
                );
            }
            None => {}
        }
        match (asked, proved) {
            (Some(asked), Some(proved)) if asked != proved => refuse(
                403,
                "other-node",
                format!("these are the credentials of node {proved}, and the path is of node {asked}"),
            ),
            (Some(node), _) | (None, Some(node)) => Ok(node),
            (None, None) => refuse(401, "no-token", "no credentials".into()),
        }
    }

    /// Whether what was admitted for `node` a while ago still is: it may be revoked by now. `cert_issued` is 0 for
    /// a certificate that does not say.
    pub(crate) fn recheck_revocation(
        &self,
        node: NodeId,
        bearer: Option<&str>,
        cert_issued: Option<u64>,
    ) -> Result<(), Refusal> {
        self.revoked_until(node).map_or(Ok(()), |until| self.issued_after(node, until, bearer, cert_issued))
    }

    /// Whether these credentials of `node` were issued after `until` (ms), when it was revoked.
    pub(crate) fn issued_after(
        &self,
        node: NodeId,
        until: u64,
        bearer: Option<&str>,
        cert_issued: Option<u64>,
    ) -> Result<(), Refusal> {
        let secrets = read_lock(&self.secrets);
        let checked = bearer.and_then(|token| secrets.check(token, (self.clock)()).ok());
        drop(secrets);
        let token_issued = checked.map(|checked| checked.claims.issued);
        let cert_issued = cert_issued.map(|issued| self.dated(issued));
        let early = [cert_issued, token_issued].into_iter().flatten().any(|issued| issued <= until);
        if early { Err(self.revoked(node, until)) } else { Ok(()) }
    }

    /// Returns when a certificate was issued (ms), or 0 where it says a time to come: a CA that signs any name would
    /// otherwise make certificates that outlive every revocation.
    fn dated(&self, issued: u64) -> u64 {
        if issued > (self.clock)().saturating_add(MAX_CLOCK_SKEW_MS) { 0 } else { issued }
    }

    /// Why a node should fetch new credentials, when it should: they are good, but not for long.
    pub(crate) fn renewal(&self, bearer: Option<&str>, cert_issued: Option<u64>) -> Option<&'static str> {
        let now = (self.clock)();
        let is_old = |issued: u64| now > issued.saturating_add(dates::days(CLIENT_DAYS * 2 / 3));
        if cert_issued.is_some_and(is_old) {
            return Some("certificate");
        }
        let checked = read_lock(&self.secrets).check(bearer?, now).ok()?;
        if checked.old {
            return Some("secret");
        }
        is_old(checked.claims.issued).then_some("certificate")
    }

    fn not_revoked(&self, node: NodeId, issued: u64) -> Result<(), Refusal> {
        match self.revoked_until(node) {
            Some(until) if issued <= until => Err(self.revoked(node, until)),
            _ => Ok(()),
        }
    }

    /// The refusal of what was issued at or before `until` (ms).
    pub(crate) fn revoked(&self, node: NodeId, until: u64) -> Refusal {
        Refusal {
            status: 401,
            reason: format!(
                "the credentials of node {node} were revoked at {}: enrol it again; the controller's clock says {}",
                dates::shown(until),
                dates::shown((self.clock)())
            ),
            label: "revoked",
        }
    }

    fn metrics(&self, head: &PresentedCredentials<'_>) -> Result<Admitted, Refusal> {
        let refuse = |status, reason: &str| Err(Refusal { status, reason: reason.to_owned(), label: "metrics" });
        let Rules { metrics_token, nodes_token, .. } = &self.rules;
        let own = nodes_token.as_deref().filter(|_| head.route == Route::NodeMetrics);
        if let (Some(token), Some(shown)) = (own, head.bearer)
            && same(token, shown)
        {
            return Ok(Admitted::Operator);
        }
        match (metrics_token, head.bearer) {
            (Some(token), Some(shown)) if same(token, shown) => Ok(Admitted::Operator),
            (Some(_), Some(_)) => refuse(401, "this is not the metrics token"),
            (None, Some(_)) if own.is_some() => refuse(401, "this is not the token of --nodes-token-file"),
            (None, None) if own.is_some() => refuse(401, "the nodes' figures need the token of --nodes-token-file"),
            (Some(_), None) => refuse(401, "metrics need the token of --metrics-token-file"),
            (None, _) if head.peer.to_canonical().is_loopback() => Ok(Admitted::Operator),
            (None, _) => refuse(403, "metrics are for loopback only; give the controller a --metrics-token-file"),
        }
    }
}

impl Authenticate for Authenticator {
    fn admit(&self, head: &PresentedCredentials<'_>) -> Result<Admitted, Refusal> {
        match head.route {
            // The handler of /enroll looks at its token itself, for that one is counted in Redis.
            Route::Health | Route::Enroll => Ok(Admitted::Open),
            Route::Metrics | Route::NodeMetrics => self.metrics(head),
            _ if !self.knows_revoked() => Err(Refusal {
                status: 503,
                reason: "redis has not answered yet: which nodes were revoked is not known; try again".into(),
                label: "starting",
            }),
            _ => self.node(head).map(Admitted::Node).inspect_err(|refusal| {
                if let (Some(events), Some(node)) = (self.refused.get(), head.route.node()) {
                    let _ = events.try_send(Refused { node, peer: head.peer, reason: refusal.reason.clone() });
                }
            }),
        }
    }
}

/// Compares in a time that does not tell where two texts differ.
fn same(a: &str, b: &str) -> bool {
    use ring::digest::{SHA256, digest};
    digest(&SHA256, a.as_bytes()).as_ref() == digest(&SHA256, b.as_bytes()).as_ref()
}

#[cfg(test)]
#[path = "authenticator_tests.rs"]
mod tests;
