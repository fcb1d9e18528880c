//! The built-in CA and the certificates that it signs.
//!
//! Owns: `ca.pem` and `ca.key`, names and lifetimes of certificates. All are dated back a day, for
//! clocks that are off.
//! Does not own: when a certificate is made (`mod`), or what a token is.

use crate::auth::dates;
use crate::auth::state_files::{CA_CERTIFICATE, CA_KEY, write_state};
use anyhow::Context;
use jscommon::file;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::path::Path;

/// Days that the CA holds.
const CA_DAYS: i64 = 20 * 365;

/// The CA, able to sign.
pub struct Ca {
    /// Its certificate.
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Reads the CA of the state directory, or makes it; `now` is in milliseconds since 1970.
    pub fn open(dir: &Path, now: u64) -> anyhow::Result<Ca> {
        let (cert_file, key_file) = (dir.join(CA_CERTIFICATE), dir.join(CA_KEY));
        match (cert_file.exists(), key_file.exists()) {
            (true, true) => {
                let key = file::read_text(&key_file)
                    .with_context(|| format!("the CA key {} cannot be read", key_file.display()))?;
                let key = KeyPair::from_pem(&key)
                    .with_context(|| format!("{} is no private key in PEM", key_file.display()))?;
                let pem = file::read_text(&cert_file)
                    .with_context(|| format!("the CA certificate {} cannot be read", cert_file.display()))?;
                Ok(Ca { pem, issuer: Issuer::new(params(now), key) })
            }
            (true, false) | (false, true) => anyhow::bail!(
                "{} has only one of ca.pem and ca.key: bring the other back, or remove both (all nodes must enrol again then)",
                dir.display()
            ),
            (false, false) => {
                let key = KeyPair::generate().context("no key can be made")?;
                let params = params(now);
                let pem = params.self_signed(&key).context("the CA certificate cannot be made")?.pem();
                write_state(&key_file, key.serialize_pem().as_bytes(), 0o600)?;
                write_state(&cert_file, pem.as_bytes(), 0o644)?;
                Ok(Ca { pem, issuer: Issuer::new(params, key) })
            }
        }
    }

    /// Certificate and key (PEM) for a server that is reached by these names.
    pub fn server(&self, names: &[String], now: u64, days: i64) -> anyhow::Result<(String, String)> {
        self.sign("jsacc", names, ExtendedKeyUsagePurpose::ServerAuth, now, days)
    }

    /// Certificate and key (PEM) for the node that `name` stands for.
    pub fn client(&self, name: &str, now: u64, days: i64) -> anyhow::Result<(String, String)> {
        self.sign("jsagent", &[name.to_owned()], ExtendedKeyUsagePurpose::ClientAuth, now, days)
    }

    fn sign(
        &self,
        common_name: &str,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
        now: u64,
        days: i64,
    ) -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate().context("no key can be made")?;
        let mut params = CertificateParams::new(names.to_vec()).context("a name cannot stand in a certificate")?;
        params.distinguished_name = named(common_name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = (dates::midnight(now, -1), dates::midnight(now, days));
        let cert = params.signed_by(&key, &self.issuer).context("a certificate cannot be signed")?;
        Ok((cert.pem(), key.serialize_pem()))
    }
}

/// The same on every start: with the key they name the issuer, so that no certificate is parsed.
fn params(now: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("jsacc CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (dates::midnight(now, -1), dates::midnight(now, CA_DAYS));
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::server::WebPkiClientVerifier;
    use std::sync::Arc;
    use std::time::Duration;

    const NOW: u64 = 1_780_000_000_000;
    const HOUR: i64 = 3600;

    #[test]
    fn certificates_are_dated_back_a_day_and_end_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), NOW).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
        let (roots, provider) = (Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()));
        let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
        let (server, _) = ca.server(&["localhost".to_owned()], NOW, 10).unwrap();
        let (client, _) = ca.client("10.1.5.node.jsacc.internal", NOW, 10).unwrap();
        let read = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (server, client, name) = (read(&server), read(&client), ServerName::try_from("localhost").unwrap());
        for (hours, holds) in [(-49, false), (-24, true), (0, true), (9 * 24, true), (11 * 24, false)] {
            let at = ((NOW / 1000) as i64 + hours * HOUR) as u64;
            let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
            let good = servers.verify_server_cert(&server, &[], &name, &[], at).is_ok();
            assert_eq!(good, holds, "a server's, {hours} hours on");
            assert_eq!(clients.verify_client_cert(&client, &[], at).is_ok(), holds, "a node's, {hours} hours on");
        }
    }
}
