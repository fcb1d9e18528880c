//! The CAs that a node trusts after a renewal: the one of its enrolment, and the controller's own.
//!
//! The two differ behind a TLS proxy, where the node meets the proxy's certificate, and while controllers
//! change their CA. So what the enrolment, or somebody by hand, has put into the file stays there, and the
//! controller's own stands below a line of ours, where the next one replaces it.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Begins the part of the file that renewals replace.
const GIVEN: &str = "# What follows was given by the controller; a later one replaces it.\n";

/// The file's new text when the controller says that its CA is `given`; nothing when it stays as it is.
pub(super) fn renewed(present: &str, given: &str) -> Option<String> {
    let certificates = certificates(given)?;
    let named = present.split(GIVEN).next().unwrap_or_default();
    let known = self::certificates(named).unwrap_or_default();
    let text = if certificates.iter().all(|certificate| known.contains(certificate)) {
        named.to_owned()
    } else {
        let end = if named.is_empty() || named.ends_with('\n') { "" } else { "\n" };
        format!("{named}{end}{GIVEN}{given}")
    };
    (text != present).then_some(text)
}

/// All certificates of a PEM text; nothing when there is none, or one that cannot be read.
fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.ok().filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block that reads as a certificate here, for nothing looks inside.
    fn pem(bytes: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{bytes}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn named_ca_stays_and_given_ca_is_replaced() {
        let (named, first, second) = (pem("AAAA"), pem("BBBB"), pem("CCCC"));
        let both = format!("mine\n{named}{first}");
        for (present, given, expected) in [
            // The controller's own, as it was enrolled: nothing changes.
            (named.clone(), named.as_str(), None),
            (both, first.as_str(), None),
            // Another one stands beside it, and a third takes the second one's place.
            (named.clone(), first.as_str(), Some(format!("{named}{GIVEN}{first}"))),
            (named.trim_end().to_owned(), first.as_str(), Some(format!("{named}{GIVEN}{first}"))),
            (format!("{named}{GIVEN}{first}"), first.as_str(), None),
            (format!("{named}{GIVEN}{first}"), second.as_str(), Some(format!("{named}{GIVEN}{second}"))),
            (format!("{named}{GIVEN}{first}"), named.as_str(), Some(named.clone())),
            // Certificates that cannot be read change nothing; where there was no file there is one.
            (named.clone(), "", None),
            (named.clone(), "-----BEGIN CERTIFICATE-----\n", None),
            (String::new(), first.as_str(), Some(format!("{GIVEN}{first}"))),
        ] {
            assert_eq!(renewed(&present, given), expected, "{present} {given}");
        }
    }
}
