//! Whether a certificate of the operator's own does for this server.
//!
//! Owns: the checks by which a node refuses a certificate, and a sentence that says what to do for each.
//! Does not own: reading the files (`mod`), or the certificates of the built-in CA (`ca`).

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use std::path::Path;
use std::time::Duration;
use webpki::{EndEntityCert, Error, KeyUsage};

/// How to make one that does.
const MAKE: &str = "make one with `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=NAME \
                    -addext subjectAltName=DNS:NAME -addext basicConstraints=critical,CA:FALSE`, or have your CA sign one";

/// Checks the certificate of `cert_file` and its key, as a node would at `now` (milliseconds since 1970). The error
/// is one sentence that says what is wrong and what to do.
pub(crate) fn check(
    cert_file: &Path,
    key_file: &Path,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    now: u64,
) -> Result<(), String> {
    let (cert, keys) = (cert_file.display(), key_file.display());
    let Some(first) = chain.first() else { return Err(format!("{cert} holds no certificate")) };
    let leaf = EndEntityCert::try_from(first).map_err(|e| unfit(cert_file, &e))?;
    let key = ring::sign::any_supported_type(key).map_err(|_| {
        format!(
            "the key {keys} is of a kind that is not supported: take one of P-256, P-384, Ed25519, or RSA with 2048 to \
             8192 bits, and a certificate for it"
        )
    })?;
    CertifiedKey::new(chain.to_vec(), key).keys_match().map_err(|_| {
        format!("the key {keys} does not belong to the first certificate of {cert}: give the key that it was made for")
    })?;
    verify(&leaf, chain, now).or_else(|e| match e {
        // The CA may be one that nodes know by themselves.
        Error::UnknownIssuer => Ok(()),
        Error::CertNotValidYet { .. } => {
            log::warn!("the certificate {cert} is not valid yet by this machine's clock: set the clock");
            Ok(())
        }
        e => Err(unfit(cert_file, &e)),
    })?;
    if !names_hosts(first) {
        return Err(format!(
            "the certificate {cert} names no host in subjectAltName, where nodes look for theirs: {MAKE}"
        ));
    }
    Ok(())
}

/// As a node does that trusts the last certificate of the chain: `jsacc enroll` gives it that one.
fn verify(leaf: &EndEntityCert<'_>, chain: &[CertificateDer<'static>], now: u64) -> Result<(), Error> {
    let Some(last) = chain.last() else { return Ok(()) };
    let anchors = [webpki::anchor_from_trusted_cert(last)?];
    let between = chain.get(1..chain.len() - 1).unwrap_or_default();
    let time = UnixTime::since_unix_epoch(Duration::from_millis(now));
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    leaf.verify_for_usage(algorithms, &anchors, between, time, KeyUsage::server_auth(), None, None).map(drop)
}

fn unfit(file: &Path, error: &Error) -> String {
    let cert = file.display();
    match error {
        Error::CaUsedAsEndEntity => {
            format!("the certificate {cert} is that of a CA, which nodes do not take for a server's: {MAKE}")
        }
        Error::UnsupportedCertVersion => {
            format!("the certificate {cert} is of version 1 or 2, which nodes do not take: {MAKE}")
        }
        Error::CertExpired { .. } => {
            format!("the certificate {cert} has ended by this machine's clock: renew it, or set the clock")
        }
        Error::RequiredEkuNotFoundContext(_) => format!(
            "the certificate {cert} is not for servers (its extendedKeyUsage lacks serverAuth): have one signed with it"
        ),
        Error::UnsupportedSignatureAlgorithmContext(_) | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            format!(
                "a certificate of {cert} is signed in a way that nodes do not know: have it signed by a CA with a key of \
             P-256, P-384, Ed25519 or RSA, and with SHA-256 or better"
            )
        }
        other => format!("nodes do not take the certificate {cert} ({other:?}): {MAKE}"),
    }
}

/// Whether the certificate has the extension for names of hosts: its object identifier stands in it, 2.5.29.17.
fn names_hosts(cert: &CertificateDer<'_>) -> bool {
    cert.windows(5).any(|bytes| bytes == [0x06, 0x03, 0x55, 0x1d, 0x11])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};
    use rustls::pki_types::pem::PemObject;

    const NOW: u64 = 1_780_000_000_000;

    fn try_pem(certs: &str, key: &str) -> Result<(), String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certs.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        check(Path::new("/x/chain.pem"), Path::new("/x/key.pem"), &chain, &key, NOW)
    }

    /// A certificate signed by its own key.
    fn alone(change: impl Fn(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["ac.example".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2090, 1, 1));
        change(&mut params);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn unfit_certificate_is_refused_with_advice() {
        let plain = alone(|_| {});
        let cases = [
            (alone(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "that of a CA", "CA:FALSE"),
            (alone(|p| p.not_after = date_time_ymd(2021, 1, 1)), "has ended", "renew it"),
            (alone(|p| p.subject_alt_names.clear()), "names no host", "subjectAltName"),
            (alone(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]), "serverAuth", "signed"),
            ((plain.0.clone(), alone(|_| {}).1), "does not belong", "give the key"),
            (
                (include_str!("testdata/p521.pem").to_owned(), include_str!("testdata/p521.key").to_owned()),
                "kind that is not supported",
                "P-256",
            ),
            (
                (include_str!("testdata/v1.pem").to_owned(), include_str!("testdata/v1.key").to_owned()),
                "version 1",
                "make one",
            ),
        ];
        for ((cert, key), what, to_do) in cases {
            let said = try_pem(&cert, &key).unwrap_err();
            assert!(said.contains("/x/") && !said.contains('\n'), "{said}");
            assert!(said.contains(what) && said.contains(to_do), "{what}: {said}");
        }
    }

    #[test]
    fn certificate_that_nodes_accept_is_accepted() {
        let (cert, key) = alone(|_| {});
        assert_eq!(try_pem(&cert, &key), Ok(()));
        let (cert, key) = alone(|p| p.is_ca = IsCa::ExplicitNoCa);
        assert_eq!(try_pem(&cert, &key), Ok(()));
        let (cert, key) = alone(|p| p.not_before = date_time_ymd(2080, 1, 1));
        assert_eq!(try_pem(&cert, &key), Ok(()), "the clock may be wrong");
        let dir = tempfile::tempdir().unwrap();
        let ca = super::super::ca::Ca::open(dir.path(), NOW).unwrap();
        let (cert, key) = ca.server(&["ac.example".to_owned()], NOW, 10).unwrap();
        assert_eq!(try_pem(&cert, &key), Ok(()), "its CA may be known to nodes");
        assert_eq!(try_pem(&(cert + &ca.pem), &key), Ok(()));
    }
}
