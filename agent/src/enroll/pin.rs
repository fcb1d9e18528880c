//! The certificate that an enrolment token pins: found in what a controller presents, and checked.

use crate::uplink;
use anyhow::{Context, Result, anyhow, bail};
use jscommon::lock::lock;
use jscommon::token::sha256_hex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(10);

/// The fingerprint that a token carries after its last dot.
pub(super) fn fingerprint(token: &str) -> Option<String> {
    let (_, part) = token.rsplit_once('.')?;
    (part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| part.to_ascii_lowercase())
}

/// Shakes hands with the controller and returns the pinned certificate, when it is or signed the server's.
pub(super) fn find(url: &str, fingerprint: &str) -> Result<CertificateDer<'static>> {
    let uri: ureq::http::Uri = url.parse().context("the address is no URL")?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let what = || format!("cannot reach {host}:{port}");
    let provider = Arc::new(provider::default_provider());
    let verifier =
        Arc::new(Pinned { fingerprint: fingerprint.to_owned(), provider: provider.clone(), found: Mutex::new(None) });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(host.clone()).with_context(|| format!("\"{host}\" is no host name"))?;
    let mut tls = ClientConnection::new(Arc::new(config), name)?;
    let addresses: Vec<_> = match (host.as_str(), port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => bail!("{}: {}", what(), uplink::unresolved(&error.to_string())),
    };
    let mut socket = connect(&addresses).with_context(what)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.set_write_timeout(Some(DEADLINE))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).map_err(|error| match error.get_ref().and_then(|e| e.downcast_ref()) {
            Some(rustls::Error::General(reason)) => anyhow!("{reason}"),
            Some(other) => anyhow!("{}: {}", what(), uplink::of_tls(other)),
            None => anyhow!("{}: {}", what(), uplink::of_io(&error)),
        })?;
    }
    let found = lock(&verifier.found).take();
    found.context("the controller presented no certificate")
}

fn connect(addresses: &[std::net::SocketAddr]) -> Result<TcpStream> {
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(address, DEADLINE) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => bail!(uplink::of_io(&error)),
        None => bail!("its name has no address"),
    }
}

/// Takes a chain that contains the pinned certificate and hangs on it.
#[derive(Debug)]
struct Pinned {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = std::iter::once(leaf).chain(others).find(|der| sha256_hex(der) == self.fingerprint);
        let Some(pinned) = pinned else {
            return Err(rustls::Error::General(
                "the controller does not present the CA that the token pins: wrong address, a token of another \
                 controller, or somebody in between"
                    .to_owned(),
            ));
        };
        // The leaf itself may be what is pinned: its holder is proven by the handshake's signature.
        if pinned != leaf {
            let mut roots = RootCertStore::empty();
            roots.add(pinned.clone())?;
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            verifier.verify_server_cert(leaf, others, name, ocsp, now)?;
        }
        *lock(&self.found) = Some(pinned.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_carries_its_fingerprint() {
        let hash = "ab".repeat(32);
        assert_eq!(fingerprint(&format!("jse1.id.1.99.{}", hash.to_uppercase())), Some(hash));
        for bad in ["", "jse1", "jse1.id.1.99.short", &format!("jse1.id.1.99.{}", "z".repeat(64))] {
            assert_eq!(fingerprint(bad), None, "{bad}");
        }
    }
}
