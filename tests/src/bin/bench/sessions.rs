//! The cost of admission: new TLS sessions with and without resumption, and the check of a token and a certificate.

use crate::Options;
use crate::measure::{Case, interleaved};
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jsacc::auth::authenticate::{Authenticate, PresentedCredentials};
use jsacc::auth::authenticator::{Authenticator, Rules};
use jsacc::auth::ca::Ca;
use jsacc::auth::secrets::Secrets;
use jsacc::auth::tls::PeerCert;
use jsacc::route::Route;
use jscommon::NodeId;
use jstests::swarm::trusting;
use jstests::{Acc, AccOptions, Redis, now_ms, proc};
use rustls::client::{Resumption, Tls12Resumption};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::collections::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODE: NodeId = NodeId { gid: 1, nid: 10 };
/// Revocations that the guard holds meanwhile.
const REVOKED: u32 = 10_000;

/// Measures both and prints their tables.
pub(crate) fn run(options: &Options) -> Result<()> {
    handshakes(options)?;
    checks(options)
}

fn handshakes(options: &Options) -> Result<()> {
    let seconds = if options.quick { 0.2 } else { 1.5 };
    let redis = Redis::start();
    let quiet = vec!["--log-level".to_owned(), "warn".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args: quiet, ..AccOptions::secure() });
    let ca = acc.ca().context("the controller's CA")?;
    let enrolled = acc.enroll(NODE.gid, NODE.nid);
    let (cert, key) = enrolled.client.context("a client certificate")?;
    let base = trusting(&ca)?.as_ref().clone();
    let certified = with_certificate(&ca, &cert, &key)?;
    let resumed = |mut config: ClientConfig| {
        config.resumption = Resumption::in_memory_sessions(8).tls12_resumption(Tls12Resumption::SessionIdOrTickets);
        Arc::new(config)
    };
    let full = HandshakeKind::Full;
    let kinds = [
        ("without resumption, token", Arc::new(base.clone()), full),
        ("without resumption, client certificate", Arc::new(certified.clone()), full),
        ("resumed, token", resumed(base.clone()), HandshakeKind::Resumed),
        ("resumed, client certificate", resumed(certified), HandshakeKind::Resumed),
    ];
    let mut cases = Vec::new();
    for (name, config, kind) in &kinds {
        let (port, pid) = (acc.port(), acc.pid());
        cases.push(Case::new(name, move || {
            session(config, port)?;
            let (used, begin, mut count) = (proc::cpu(pid)?, Instant::now(), 0_u32);
            while begin.elapsed() < Duration::from_secs_f64(seconds) {
                let was = session(config, port)?;
                ensure!(was == *kind, "a session was {was:?} and not {kind:?}");
                count += 1;
            }
            let cost = 1e6 * (proc::cpu(pid)? - used) / f64::from(count);
            Ok(vec![1e6 / cost, cost, f64::from(count) / begin.elapsed().as_secs_f64()])
        }));
    }
    let medians = interleaved(options.rounds, &mut cases)?;
    drop(cases);
    let mut table = Table::new(&["new TLS sessions", "a second on one core", "CPU us each", "a second, one client"]);
    for ((name, ..), figures) in kinds.iter().zip(&medians) {
        table.row([(*name).to_owned(), number(figures[0]), number(figures[1]), number(figures[2])]);
    }
    println!();
    table.print();
    println!("\naim: 1,000 a second on one core with resumption");
    Ok(())
}

/// One connection, up to its ticket.
fn session(config: &Arc<ClientConfig>, port: u16) -> Result<HandshakeKind> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).context("connect to the controller")?;
    socket.set_nodelay(true)?;
    let mut tls = ClientConnection::new(config.clone(), ServerName::try_from("localhost")?)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    // The ticket for the next time comes behind the handshake, by itself.
    tls.read_tls(&mut socket)?;
    tls.process_new_packets()?;
    tls.handshake_kind().context("a handshake")
}

fn with_certificate(ca: &Path, cert: &Path, key: &Path) -> Result<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_file_iter(ca)? {
        roots.add(der?)?;
    }
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let mut config = builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn now() -> u64 {
    now_ms() as u64
}

fn checks(options: &Options) -> Result<()> {
    let times = if options.quick { 2_000 } else { 100_000 };
    let secrets = Secrets::generate()?;
    let (old, rotated) = (secrets.current.issue(NODE, now()), secrets.rotated(now())?);
    let new = rotated.current.issue(NODE, now());
    let spoilt = format!("{}x", &new[..new.len() - 1]);
    let authenticator = Authenticator::new(Rules::default(), rotated, now);
    authenticator.set_revoked((1..=REVOKED).map(|nid| (NodeId { gid: 2, nid }, now())).collect::<HashMap<_, _>>());
    let dir = tempfile::tempdir()?;
    let name = PeerCert { node: NODE, issued: Some(now()) };
    let (pem, _) = Ca::open(dir.path(), now())?.client(&name.dns_name(), now(), 10)?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes())?;
    let cert = PeerCert::read(&der).context("what the certificate says")?;
    let head = |bearer, cert| PresentedCredentials {
        route: Route::Cmd(NODE),
        bearer,
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        cert,
    };
    let each = |work: &dyn Fn() -> bool, want: bool| {
        let begin = Instant::now();
        for _ in 0..times {
            ensure!(black_box(work()) == want, "it was decided otherwise");
        }
        Ok(vec![1e6 * begin.elapsed().as_secs_f64() / f64::from(times)])
    };
    let names = [
        "a token",
        "a token of the rotated secret",
        "a bad token",
        "a certificate, each request",
        "both",
        "a certificate's names, each session",
    ];
    let mut cases = vec![
        Case::new(names[0], || each(&|| authenticator.admit(&head(Some(&new), None)).is_ok(), true)),
        Case::new(names[1], || each(&|| authenticator.admit(&head(Some(&old), None)).is_ok(), true)),
        Case::new(names[2], || each(&|| authenticator.admit(&head(Some(&spoilt), None)).is_ok(), false)),
        Case::new(names[3], || each(&|| authenticator.admit(&head(None, Some(&cert))).is_ok(), true)),
        Case::new(names[4], || each(&|| authenticator.admit(&head(Some(&new), Some(&cert))).is_ok(), true)),
        Case::new(names[5], || each(&|| PeerCert::read(&der).is_some(), true)),
    ];
    let medians = interleaved(options.rounds, &mut cases)?;
    drop(cases);
    let mut table = Table::new(&["checking", "us"]);
    for (name, figures) in names.iter().zip(&medians) {
        table.row([(*name).to_owned(), format!("{:.2}", figures[0])]);
    }
    println!();
    table.print();
    println!("\naim: below 20 us; {REVOKED} nodes are revoked meanwhile");
    Ok(())
}
