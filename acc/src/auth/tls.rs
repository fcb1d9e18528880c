//! The server side of TLS: rustls with ring, optional client certificates, resumption by ticket.
//!
//! Owns: how a `ServerConfig` is made, and what a client's certificate says about its node.
//! Does not own: where certificates and keys come from (`state_dir`), or the bytes (the event loop).

use anyhow::Context;
use jscommon::NodeId;
use jscommon::lock::{read_lock, write_lock};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::sync::{Arc, RwLock};

/// The TLS configuration that new connections take; it can be changed while the proxy runs.
#[derive(Clone)]
pub struct TlsSource {
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl TlsSource {
    /// A source that hands out `config` until it is replaced.
    pub(crate) fn new(config: Arc<ServerConfig>) -> TlsSource {
        TlsSource { current: Arc::new(RwLock::new(config)) }
    }

    /// New connections take `config` from now on; the ones that are open keep theirs.
    pub(crate) fn replace(&self, config: Arc<ServerConfig>) {
        *write_lock(&self.current) = config;
    }

    /// The configuration for a new connection.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        read_lock(&self.current).clone()
    }
}

/// The content of a verified client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCert {
    /// The node it was made for.
    pub node: NodeId,
    /// When it was issued, in milliseconds since 1970; a certificate of another CA may not say.
    pub issued: Option<u64>,
}

/// The end of the DNS name by which a client certificate names its node.
pub(crate) const NODE_DOMAIN: &str = "node.jsacc.internal";

impl PeerCert {
    /// The DNS name that stands for this in a certificate: `<nid>.<gid>.<issued>.node.jsacc.internal`,
    /// or without `<issued>.`.
    pub fn dns_name(&self) -> String {
        match self.issued {
            Some(issued) => format!("{}.{}.{issued}.{NODE_DOMAIN}", self.node.nid, self.node.gid),
            None => format!("{}.{}.{NODE_DOMAIN}", self.node.nid, self.node.gid),
        }
    }

    /// Reads a DNS name; `None` when it is none of ours.
    pub(crate) fn from_dns_name(name: &str) -> Option<PeerCert> {
        let mut parts = name.strip_suffix(NODE_DOMAIN)?.strip_suffix('.')?.split('.');
        let (nid, gid, issued, end) = (parts.next()?, parts.next()?, parts.next(), parts.next());
        let issued = issued.map(str::parse).transpose().ok()?;
        let node = format!("{gid}:{nid}").parse().ok()?;
        end.is_none().then_some(PeerCert { node, issued })
    }

    /// Reads a certificate: the first of its DNS names that is one of ours.
    pub fn read(cert: &CertificateDer<'_>) -> Option<PeerCert> {
        let cert = webpki::EndEntityCert::try_from(cert).ok()?;
        cert.valid_dns_names().find_map(PeerCert::from_dns_name)
    }
}

/// A server configuration: `chain` and `key` are ours; with `client_roots` clients are asked for a
/// certificate, which may be missing but not bad.
pub(crate) fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_roots: Option<RootCertStore>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .context("no TLS version is supported")?;
    let builder = match client_roots {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .context("the client CA is not usable")?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(chain, key).context("the server's certificate and key do not fit together")?;
    // Tickets keep resumption state at the client, so that an idle fleet costs no memory here.
    config.ticketer = rustls::crypto::ring::Ticketer::new().context("no randomness for session tickets")?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_name_is_read_back() {
        let node = NodeId { gid: 1, nid: 10 };
        for issued in [None, Some(1_766_385_000_123)] {
            let cert = PeerCert { node, issued };
            assert_eq!(PeerCert::from_dns_name(&cert.dns_name()), Some(cert));
        }
        for bad in [
            "",
            "localhost",
            "node.jsacc.internal",
            "10.node.jsacc.internal",
            "10.0.5.node.jsacc.internal",
            "10.1.x.node.jsacc.internal",
            "10.1.5.6.node.jsacc.internal",
            "10.1.5.node.jsacc.internal.example",
            "10.1.5.xnode.jsacc.internal",
        ] {
            assert_eq!(PeerCert::from_dns_name(bad), None, "{bad}");
        }
    }
}
