//! The proxy over TLS.

use super::*;
use crate::auth::tls::{self, PeerCert};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::Resumption;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Pki {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Pki { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn leaf(&self, name: &str) -> (Vec<rustls::pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>) {
        self.leaf_until(name, None)
    }

    /// One that ends at this second since 1970.
    fn leaf_until(
        &self,
        name: &str,
        end: Option<u64>,
    ) -> (Vec<rustls::pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if let Some(end) = end {
            params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
        }
        let cert = params.signed_by(&key, &self.ca).unwrap();
        (vec![cert.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        roots
    }

    fn site(&self, limits: Limits) -> Site {
        let (chain, key) = self.leaf("localhost");
        let config = tls::server_config(chain, key, Some(self.roots())).unwrap();
        Site::start(limits, Some(TlsSource::new(config)))
    }

    fn client(&self, node: Option<PeerCert>) -> Arc<ClientConfig> {
        self.client_until(node, None)
    }

    fn client_until(&self, node: Option<PeerCert>, end: Option<u64>) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(self.roots());
        let mut config = match node {
            None => builder.with_no_client_auth(),
            Some(node) => {
                let (chain, key) = self.leaf_until(&node.dns_name(), end);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.resumption = Resumption::in_memory_sessions(8);
        Arc::new(config)
    }
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn connect(site: &Site, config: &Arc<ClientConfig>) -> Stream {
    let socket = TcpStream::connect(site.addr).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), socket)
}

/// Sends `request` and reads until `until` stands in the answer.
fn ask(stream: &mut Stream, request: &str, until: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut got = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "the connection ended after {:?}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&got);
        if text.contains(until) {
            return text.into_owned();
        }
    }
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn a_node_is_known_by_its_certificate_also_when_its_session_is_resumed() {
    let pki = Pki::new();
    let site = pki.site(Limits::default());
    let config = pki.client(Some(PeerCert { node: NODE, issued: Some(123) }));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut stream = connect(&site, &config);
        let poll = "GET /1/10/cmd?wait=0 HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert!(ask(&mut stream, poll, "\r\n\r\n").starts_with("HTTP/1.1 204 "));
        assert_eq!(stream.conn.handshake_kind(), Some(kind));
        assert!(site.desk.asked.lock().unwrap().pop().unwrap().ends_with("Some(123)"));
        let other = "GET /1/11/cmd?wait=0 HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert!(ask(&mut stream, other, "no good token").starts_with("HTTP/1.1 401 "));
    }
}

#[test]
fn a_certificate_that_ends_is_refused_on_its_connection_and_when_its_session_is_resumed() {
    let pki = Pki::new();
    let site = pki.site(Limits::default());
    let end = crate::clock::local_ms() / 1000 + 5;
    let config = pki.client_until(Some(PeerCert { node: NODE, issued: None }), Some(end));
    let poll = "GET /1/10/cmd?wait=0 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = connect(&site, &config);
    assert!(ask(&mut stream, poll, "\r\n\r\n").starts_with("HTTP/1.1 204 "));
    // A poll that waits is answered when the certificate ends.
    let waits = "GET /1/10/cmd?wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let begin = Instant::now();
    assert!(ask(&mut stream, waits, "\r\n\r\n").starts_with("HTTP/1.1 204 "));
    assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
    wait_until(|| crate::clock::local_ms() / 1000 > end);
    let asked = site.asked();
    let answer = ask(&mut stream, poll, "enrol the node again");
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let mut stream = connect(&site, &config);
    let answer = ask(&mut stream, poll, "enrol the node again");
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    // A client without a session is refused by the handshake itself.
    let fresh = pki.client_until(Some(PeerCert { node: NODE, issued: None }), Some(end));
    let mut stream = connect(&site, &fresh);
    let _ = stream.write_all(poll.as_bytes());
    assert!(stream.read_to_string(&mut String::new()).is_err());
    assert_eq!(site.asked(), asked);
}

#[test]
fn a_certificate_of_another_ca_ends_the_handshake() {
    let (pki, other) = (Pki::new(), Pki::new());
    let site = pki.site(Limits::default());
    let (chain, key) = other.leaf(&PeerCert { node: NODE, issued: None }.dns_name());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(pki.roots()).with_client_auth_cert(chain, key).unwrap();
    let mut stream = connect(&site, &Arc::new(config));
    let _ = stream.write_all(HEALTH.as_bytes());
    assert!(stream.read_to_string(&mut String::new()).is_err());
    wait_until(|| site.refusals("tls") == 1);
    assert_eq!(site.asked(), 0);
}

#[test]
fn big_bodies_go_through_both_ways() {
    let pki = Pki::new();
    let site = pki.site(Limits::default());
    let mut stream = connect(&site, &pki.client(None));
    let body = "x".repeat(5_000_000);
    let head = format!(
        "POST /1/10/log HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    assert!(ask(&mut stream, &format!("{head}{body}"), "{\"took\":5000000}").starts_with("HTTP/1.1 200 "));
    let head = "POST /1/10/stats HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert!(all.len() > 8 * 1024 * 1024);
}

#[test]
fn clients_without_tls_end_and_are_counted() {
    let pki = Pki::new();
    let site = pki.site(Limits { handshake: Duration::from_millis(300), ..Limits::default() });
    let end = |bytes: &[u8]| {
        let mut socket = TcpStream::connect(site.addr).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket.write_all(bytes).unwrap();
        let mut got = Vec::new();
        // A reset is an end too.
        let _ = socket.read_to_end(&mut got);
        String::from_utf8_lossy(&got).into_owned()
    };
    // The seven bytes of a close_notify that pinned a core in older versions of rustls.
    end(b"\x15\x03\x03\x00\x02\x01\x00");
    end(b"\x16\x03\x01\x40\x00");
    end(b"\x00\xff nonsense");
    end(b"");
    let told = end(HEALTH.as_bytes());
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("this port speaks HTTPS"), "{told}");
    assert_eq!(site.refusals("plain-http"), 1);
    wait_until(|| site.metrics.connections.get() == 0);
    assert!(site.refusals("handshake-timeout") >= 1);
    let mut stream = connect(&site, &pki.client(None));
    ask(&mut stream, HEALTH, "{}");
}

#[test]
fn a_certificate_can_be_replaced_while_it_runs() {
    let (pki, next) = (Pki::new(), Pki::new());
    let (chain, key) = pki.leaf("localhost");
    let source = TlsSource::new(tls::server_config(chain, key, None).unwrap());
    let site = Site::start(Limits::default(), Some(source.clone()));
    let mut old = connect(&site, &pki.client(None));
    ask(&mut old, HEALTH, "{}");
    let (chain, key) = next.leaf("localhost");
    source.replace(tls::server_config(chain, key, None).unwrap());
    let mut new = connect(&site, &next.client(None));
    ask(&mut new, HEALTH, "{}");
    ask(&mut old, HEALTH, "{}");
}
