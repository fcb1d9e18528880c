//! What a node proves itself with: token, CA and client certificate, from their files and into them.
//!
//! Owns the reading, the checks and the writing of these files. Never prints or logs what is in them.

use super::trust;
use crate::{config, os};
use anyhow::{Context, bail};
use jscommon::text;
use rustls::crypto::ring as provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

/// Token, trusted CAs and client certificate, read and checked.
pub struct Credentials {
    /// The node's token.
    pub(super) token: Option<String>,
    roots: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
    /// Tells two sets apart without telling either.
    pub(super) digest: String,
}

/// New credentials as a controller issues them; the fields hold PEM, but for the token.
#[derive(Deserialize)]
pub(crate) struct Enrolled {
    /// The node's token.
    pub(crate) token: String,
    /// The CA of the controller.
    pub(crate) ca: String,
    /// The node's client certificate.
    #[serde(default)]
    pub(crate) client_cert: String,
    /// Its private key.
    #[serde(default)]
    pub(crate) client_key: String,
}

impl Credentials {
    /// Reads what this controller's configuration names.
    pub fn load(config: &config::Controller) -> anyhow::Result<Credentials> {
        let https = config.urls.iter().any(|url| url.starts_with("https:"));
        let token = config.token_file.as_deref().map(read_token).transpose()?;
        let roots = match &config.ca {
            Some(path) => read_certificates(path)?,
            None if https => system_roots()?,
            None => Vec::new(),
        };
        let client = match (&config.client_cert, &config.client_key) {
            (Some(cert), Some(key)) => Some(read_client(cert, key)?),
            _ => None,
        };
        let mut all = token.clone().unwrap_or_default().into_bytes();
        roots.iter().for_each(|der| all.extend_from_slice(der));
        client.iter().flat_map(|client| client.certs()).for_each(|cert| all.extend_from_slice(cert.der()));
        let digest = jscommon::token::sha256_hex(&all);
        let roots = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        Ok(Credentials { token, roots, client, digest })
    }

    /// Credentials that are not there yet: an enrolment token, and whom to trust.
    pub(super) fn of_enrolment(token: &str, trusted: &[CertificateDer]) -> Credentials {
        let roots = trusted.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        Credentials { token: Some(token.to_owned()), roots, client: None, digest: String::new() }
    }

    /// The TLS settings of a connection with these credentials.
    pub(super) fn tls(&self) -> TlsConfig {
        TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(provider::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(self.roots.clone())))
            .client_cert(self.client.clone())
            .build()
    }
}

impl Enrolled {
    /// Writes them over the files that the configuration names.
    ///
    /// All are written beside their places first, so that between the first rename and the last there
    /// is no time to speak of in which key and certificate do not fit.
    pub(super) fn store(&self, config: &config::Controller) -> anyhow::Result<()> {
        let mut files: Vec<(&Path, String)> = Vec::new();
        if let (Some(cert), Some(key)) = (&config.client_cert, &config.client_key)
            && !self.client_cert.is_empty()
        {
            files.extend([(key.as_path(), self.client_key.clone()), (cert, self.client_cert.clone())]);
        }
        // A file elsewhere is not the node's own: the system's CAs, say.
        let beside = config.token_file.as_deref().or(config.client_cert.as_deref()).and_then(Path::parent);
        if let Some(path) = config.ca.as_deref().filter(|path| path.parent() == beside) {
            let present = fs::read_to_string(path).unwrap_or_default();
            files.extend(trust::renewed(&present, &self.ca).map(|text| (path, text)));
        }
        if let Some(path) = &config.token_file {
            files.push((path, format!("{}\n", self.token)));
        }
        write_private(&files)
    }
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    warn_if_open(path);
    let what = || format!("cannot read the token file {}", path.display());
    let token = text::decode(fs::read(path).with_context(what)?).with_context(what)?;
    let token = token.trim();
    if token.is_empty() || token.len() > 4096 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("the token file {} holds no token; see jsacc enroll", path.display());
    }
    Ok(token.to_owned())
}

/// The certificates of a PEM file, at least one.
pub(crate) fn read_certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let what = || format!("cannot read the certificate {}", path.display());
    let pem = read_pem(path).with_context(what)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.with_context(what)?;
    if all.is_empty() {
        bail!("there is no certificate in {}", path.display());
    }
    Ok(all)
}

/// Reads a PEM file. Its comments may have any encoding that leaves ASCII as it is.
fn read_pem(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    text::check_utf16(&bytes)?;
    Ok(text::without_bom(&bytes).to_vec())
}

fn read_client(cert: &Path, key: &Path) -> anyhow::Result<ClientCert> {
    warn_if_open(key);
    let chain = read_certificates(cert)?;
    let what = || format!("cannot read the key {}", key.display());
    let pem = read_pem(key).with_context(what)?;
    let secret = PrivateKeyDer::from_pem_slice(&pem).with_context(what)?;
    // ureq panics on a pair that does not fit, so it is tried here.
    let pair = CertifiedKey::from_der(chain.clone(), secret, &provider::default_provider());
    pair.with_context(|| format!("{} and {} do not belong together", cert.display(), key.display()))?;
    let chain: Vec<Certificate<'static>> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let secret = PrivateKey::from_pem(&pem).with_context(what)?;
    Ok(ClientCert::new_with_certs(&chain, secret))
}

fn system_roots() -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        bail!("this system has no CA certificates: install them (ca-certificates), or set ca");
    }
    Ok(found.certs)
}

/// Writes files that only their owner can read, each whole or not at all.
pub(crate) fn write_private(files: &[(&Path, String)]) -> anyhow::Result<()> {
    let new = |path: &Path| path.with_added_extension("new");
    for (path, text) in files {
        os::write_private(&new(path), text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for (path, _) in files {
        os::rename(&new(path), path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn warn_if_open(path: &Path) {
    if os::open_to_others(path) {
        log::warn!("{} can be read by others; run: chmod 600 {}", path.display(), os::shell_word(path));
    }
}
