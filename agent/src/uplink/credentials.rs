//! The credentials of a node: token, CA and client certificate, from their files and into them.
//!
//! Owns the reading, the checks and the writing of these files. Never prints or logs what is in them.

use super::credential_set::{self, Decided};
use super::trust;
use crate::{config, platform};
use anyhow::{Context, bail};
use jscommon::token::NODE_TOKEN_FORM;
use jscommon::{NodeId, file, text, token};
use rustls::crypto::ring as provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

/// Token, trusted CAs and client certificate, read and checked.
pub(crate) struct Credentials {
    /// The node's token.
    pub(super) token: Option<String>,
    roots: Vec<Certificate<'static>>,
    client: Option<ClientCert>,
    /// Why the configured client certificate is not used: with the token another is to be asked for.
    pub(crate) fault: Option<String>,
    /// The certificate in use is not in its file but beside it, as a renewal of version 0.1.0 left it.
    is_beside: bool,
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
    /// The advice for a node without any.
    pub(crate) const NONE: &str = "there is neither token_file nor client_cert, and only a controller with --insecure-no-auth \
                            takes a node without: enrol the node, with jsagent enroll or jsacc enroll";

    /// Puts in place what an interrupted renewal has left; `false` when a file cannot be replaced yet.
    pub(super) fn finish(config: &config::Controller) -> bool {
        first(config).is_none_or(credential_set::finish)
    }

    /// Reads what this controller's configuration names.
    pub(crate) fn load(config: &config::Controller) -> anyhow::Result<Credentials> {
        let https = config.urls.iter().any(|url| url.starts_with("https:"));
        let decided = first(config).map(Decided::of).transpose()?.unwrap_or_default();
        let token = config.token_file.as_deref().map(|path| read_token(&decided, path)).transpose()?;
        let roots = match &config.ca {
            Some(path) => certificates(&decided, path)?,
            None if https => system_roots()?,
            None => Vec::new(),
        };
        let (mut client, mut fault, mut is_beside) = (None, None, false);
        if let (Some(cert), Some(key)) = (&config.client_cert, &config.client_key) {
            match read_client(&decided, cert, key) {
                Ok((found, beside)) => (client, is_beside) = (Some(found), beside),
                // Where the token is enough, the certificate can be renewed with it.
                Err(error) if token.is_some() => {
                    fault = Some(format!("{error:#}; the token is used, and a new certificate asked for"));
                }
                Err(error) => return Err(error),
            }
        }
        let mut all = token.clone().unwrap_or_default().into_bytes();
        roots.iter().for_each(|der| all.extend_from_slice(der));
        client.iter().flat_map(|client| client.certs()).for_each(|cert| all.extend_from_slice(cert.der()));
        let digest = jscommon::token::sha256_hex(&all);
        let roots = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        Ok(Credentials { token, roots, client, fault, is_beside, digest })
    }

    /// Returns why a controller will not take them from this node, as far as that can be seen here.
    pub(crate) fn fault_for(&self, node: NodeId, config: &config::Controller) -> Option<String> {
        let (token, path) = self.token.as_deref().zip(config.token_file.as_deref())?;
        token_fault(token, node).map(|fault| format!("the token file {}: {fault}", path.display()))
    }

    /// Credentials that are not there yet: an enrolment token, and whom to trust.
    pub(super) fn of_enrolment(token: &str, trusted: &[CertificateDer]) -> Credentials {
        let roots = trusted.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        Credentials {
            token: Some(token.to_owned()),
            roots,
            client: None,
            fault: None,
            is_beside: false,
            digest: String::new(),
        }
    }

    /// Says what is wrong with them, and puts a certificate in use into its file.
    pub(super) fn finish_renewal(&self, config: &config::Controller) {
        if let Some(fault) = &self.fault {
            log::warn!("{fault}");
        }
        if let Some(cert) = config.client_cert.as_deref().filter(|_| self.is_beside) {
            let left = cert.with_added_extension("new");
            log::warn!("{} does not fit its key, and {} does: it is used", cert.display(), left.display());
            let _ = platform::rename(&left, cert);
        }
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
    /// Checks that they can be used: nothing is written over good ones that cannot.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(is_token(&self.token), "the new token is none");
        if !self.ca.is_empty() {
            parse_certificates(self.ca.as_bytes()).context("the new CA")?;
        }
        if !self.client_cert.is_empty() {
            let chain = parse_certificates(self.client_cert.as_bytes()).context("the new certificate")?;
            pair(&chain, self.client_key.as_bytes()).context("the new certificate and key")?;
        }
        Ok(())
    }

    /// Writes them over the files that the configuration names, as one set; `false` when a file could not
    /// be put in place yet.
    pub(super) fn store(&self, config: &config::Controller) -> anyhow::Result<bool> {
        let Some(first) = first(config) else { return Ok(true) };
        let mut files: Vec<(&Path, String)> = Vec::new();
        if let (Some(cert), Some(key)) = (&config.client_cert, &config.client_key)
            && !self.client_cert.is_empty()
        {
            files.extend([(key.as_path(), self.client_key.clone()), (cert, self.client_cert.clone())]);
        }
        // A file elsewhere is not the node's own: the system's CAs, say.
        let beside = config.token_file.as_deref().or(config.client_cert.as_deref()).and_then(Path::parent);
        if let Some(path) = config.ca.as_deref().filter(|path| path.parent() == beside) {
            let present = file::read_text(path).unwrap_or_default();
            files.extend(trust::renewed(&present, &self.ca).map(|text| (path, text)));
        }
        if let Some(path) = &config.token_file {
            files.push((path, format!("{}\n", self.token)));
        }
        credential_set::replace(first, &files)
    }
}

/// Returns the file beside which the journal of a renewal lies.
fn first(config: &config::Controller) -> Option<&Path> {
    config.token_file.as_deref().or(config.client_key.as_deref())
}

/// Returns why a text is not the token of this node, as far as it tells without the controller.
fn token_fault(text: &str, node: NodeId) -> Option<String> {
    match token::claimed(text) {
        Some(claims) if claims.node == node => None,
        Some(claims) => Some(format!(
            "it is the token of node {} and not of {node}: take the file of this node, or set gid and nid",
            claims.node
        )),
        None if text.starts_with("jse1.") || text.starts_with("jse2.") => {
            Some("it is an enrolment token: exchange it for the node's own with jsagent enroll".to_owned())
        }
        None => Some(format!(
            "it is no node token ({NODE_TOKEN_FORM}): enrol the node, with jsagent enroll or jsacc enroll"
        )),
    }
}

fn is_token(text: &str) -> bool {
    (1..=4096).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn read_token(decided: &Decided, path: &Path) -> anyhow::Result<String> {
    let what = || format!("cannot read the token file {}", path.display());
    let token = text::decode(decided.read_file(path).with_context(what)?).with_context(what)?;
    let token = token.trim();
    if !is_token(token) {
        bail!("the token file {} holds no token; see jsacc enroll", path.display());
    }
    Ok(token.to_owned())
}

/// The certificates of a PEM file, at least one.
pub(crate) fn read_certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    certificates(&Decided::default(), path)
}

fn certificates(decided: &Decided, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let what = || format!("cannot read the certificate {}", path.display());
    let pem = read_pem(decided, path).with_context(what)?;
    parse_certificates(&pem).with_context(what)
}

fn parse_certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    anyhow::ensure!(!all.is_empty(), "there is no certificate in it");
    Ok(all)
}

/// Reads a PEM file. Its comments may have any encoding that leaves ASCII as it is.
fn read_pem(decided: &Decided, path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = decided.read_file(path)?;
    text::check_utf16(&bytes)?;
    Ok(text::without_bom(&bytes).to_vec())
}

/// Makes a client certificate of a chain and its key.
fn pair(chain: &[CertificateDer<'static>], pem: &[u8]) -> anyhow::Result<ClientCert> {
    let secret = PrivateKeyDer::from_pem_slice(pem)?;
    // ureq panics on a pair that does not fit, so it is tried here.
    CertifiedKey::from_der(chain.to_vec(), secret, &provider::default_provider())?;
    let chain: Vec<Certificate<'static>> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    Ok(ClientCert::new_with_certs(&chain, PrivateKey::from_pem(pem)?))
}

/// Reads a certificate and its key; `true` when the certificate lies beside its file.
fn read_client(decided: &Decided, cert: &Path, key: &Path) -> anyhow::Result<(ClientCert, bool)> {
    let chain = certificates(decided, cert)?;
    let pem = read_pem(decided, key).with_context(|| format!("cannot read the key {}", key.display()))?;
    let client =
        pair(&chain, &pem).with_context(|| format!("{} and {} do not belong together", cert.display(), key.display()));
    client.map(|client| (client, false)).or_else(|error| {
        // A renewal of version 0.1.0 that was interrupted has left the certificate of this key beside.
        let left = read_certificates(&cert.with_added_extension("new"));
        let client = left.and_then(|chain| pair(&chain, &pem)).map_err(|_| error)?;
        Ok((client, true))
    })
}

fn system_roots() -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        bail!("this system has no CA certificates: install them (ca-certificates), or set ca");
    }
    Ok(found.certs)
}
