//! Connections to one address, with a deadline on every phase.

use super::LONGEST_POLL;
use super::joined_writes::JoinWrites;
use crate::uplink::credentials::Credentials;
use crate::uplink::resolver::Resolve;
use std::time::Duration;
use ureq::http;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, DefaultConnector};

/// How long a controller may be silent. With a poll that waits 30 s, a path that swallows everything
/// is noticed after 40 s at the latest.
#[derive(Clone, Copy)]
pub(super) struct Timeouts {
    /// Until a connection stands, TLS included.
    pub(super) connect: Duration,
    /// Until the answer to a whole request.
    pub(super) answer: Duration,
    /// Until the answer to a poll, its own waiting time counted in.
    pub(super) poll: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            poll: LONGEST_POLL + Duration::from_secs(10),
        }
    }
}

/// The connections to one address under one set of credentials.
pub(super) struct Link {
    /// Counts up with each change of address; the address is this modulo their number.
    pub(super) endpoint: usize,
    pub(super) polls: ureq::Agent,
    pub(super) posts: ureq::Agent,
    /// The settings that `posts` was made with.
    pub(super) settings: ureq::config::Config,
    pub(super) names: Resolve<DefaultResolver>,
    pub(super) token: Option<String>,
    pub(super) digest: String,
}

impl Link {
    pub(super) fn new(credentials: Credentials, timeouts: Timeouts, urls: &[String], endpoint: usize) -> Link {
        let tls = credentials.tls();
        // A proxy of the environment (HTTPS_PROXY, NO_PROXY) is used, but never towards this very machine.
        let proxy = ureq::Proxy::try_from_env().filter(|_| !urls.iter().any(|url| is_loopback(url)));
        // Every deadline stands here and none at a request: a request with settings of its own makes ureq
        // forget the TLS session, and each new connection would cost both sides a whole handshake.
        let settings = |answer| {
            ureq::Agent::config_builder()
                .tls_config(tls.clone())
                .proxy(proxy.clone())
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("jsagent/", env!("CARGO_PKG_VERSION")))
                .accept("application/json")
                .accept_encoding("identity")
                .timeout_resolve(Some(timeouts.connect))
                .timeout_connect(Some(timeouts.connect))
                .timeout_send_request(Some(timeouts.connect))
                .timeout_send_body(Some(timeouts.answer))
                .timeout_recv_response(Some(answer))
                .timeout_recv_body(Some(timeouts.answer))
                .max_idle_connections_per_host(2)
                .max_idle_age(Duration::from_secs(50))
                .no_delay(true)
                .build()
        };
        let names = Resolve::new(DefaultResolver::default());
        let (polls, settings) = (connections(&settings(timeouts.poll), &names), settings(timeouts.answer));
        let posts = connections(&settings, &names);
        Link { endpoint, polls, posts, settings, names, token: credentials.token, digest: credentials.digest }
    }

    /// That of the next address; `anew`: with new connections for all but the polls.
    pub(super) fn next(&self, anew: bool) -> Link {
        Link {
            endpoint: self.endpoint.wrapping_add(1),
            polls: self.polls.clone(),
            posts: if anew { connections(&self.settings, &self.names) } else { self.posts.clone() },
            settings: self.settings.clone(),
            names: self.names.clone(),
            token: self.token.clone(),
            digest: self.digest.clone(),
        }
    }

    pub(super) fn bearer(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }
}

pub(super) fn connections(settings: &ureq::config::Config, names: &Resolve<DefaultResolver>) -> ureq::Agent {
    ureq::Agent::with_parts(settings.clone(), DefaultConnector::new().chain(JoinWrites), names.clone())
}

pub(super) fn is_loopback(url: &str) -> bool {
    let uri: Option<http::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let address: Option<std::net::IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback())
}

pub(super) fn with_bearer<B>(request: ureq::RequestBuilder<B>, bearer: Option<String>) -> ureq::RequestBuilder<B> {
    match bearer {
        Some(bearer) => request.header("authorization", bearer),
        None => request,
    }
}
