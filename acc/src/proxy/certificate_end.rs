//! When a certificate ends. Pure.
//!
//! Does not own: whether the certificate is good. The handshake has verified it before anything is read here, and a
//! session that is resumed never verifies again, which is why the end is looked at with each request.

use yasna::tags::TAG_UTCTIME;
use yasna::{ASN1Result, BERReader, parse_der};

/// The first byte of the optional version, which stands ahead of all other fields.
const VERSION: u8 = 0xA0;
/// Serial number, algorithm and issuer stand ahead of the validity.
const FIELDS_BEFORE_VALIDITY: usize = 3;

/// The last moment at which a certificate (DER) holds, in milliseconds since 1970.
pub(super) fn ends(certificate: &[u8]) -> Option<u64> {
    let signed = fields(certificate).ok()?;
    let fields = fields(signed.first()?).ok()?;
    let has_version = fields.first()?.first() == Some(&VERSION);
    let validity = fields.get(FIELDS_BEFORE_VALIDITY + usize::from(has_version))?;
    let seconds = parse_der(validity, |reader| {
        reader.read_sequence(|validity| {
            validity.next().read_der()?;
            unix_seconds(validity.next())
        })
    });
    u64::try_from(seconds.ok()?).ok().map(|seconds| seconds * 1000 + 999)
}

/// The elements of a sequence, each as DER.
fn fields(sequence: &[u8]) -> ASN1Result<Vec<Vec<u8>>> {
    let mut fields = Vec::new();
    parse_der(sequence, |reader| {
        reader.read_sequence_of(|element| {
            fields.push(element.read_der()?);
            Ok(())
        })
    })?;
    Ok(fields)
}

fn unix_seconds(time: BERReader<'_, '_>) -> ASN1Result<i64> {
    if time.lookahead_tag()? == TAG_UTCTIME {
        return time.read_utctime().map(|time| time.datetime().unix_timestamp());
    }
    time.read_generalized_time().map(|time| time.datetime().unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use std::time::Duration;

    #[test]
    fn end_of_any_century_is_read() {
        let key = KeyPair::generate().unwrap();
        for (date, seconds) in [
            ((1999, 12, 31), 946_598_400),
            ((2024, 2, 29), 1_709_164_800),
            ((2026, 1, 1), 1_767_225_600),
            ((2049, 12, 31), 2_524_521_600),
            ((2050, 3, 1), 2529705600_u64),
            ((2126, 11, 22), 4950979200),
        ] {
            let mut params = CertificateParams::new(["10.1.5.node.jsacc.internal".to_owned()]).unwrap();
            params.not_after = date_time_ymd(date.0, date.1, date.2) + Duration::from_secs(12 * 3600 + 34 * 60 + 56);
            let cert = params.self_signed(&key).unwrap();
            let want = i64::try_from(seconds).unwrap();
            assert_eq!(date_time_ymd(date.0, date.1, date.2).unix_timestamp(), want, "{date:?}: the table is wrong");
            assert_eq!(ends(cert.der()), Some((seconds + 45_296) * 1000 + 999), "{date:?}");
            // A certificate that is cut off is none.
            for length in 0..cert.der().len() {
                assert_eq!(ends(&cert.der()[..length]), None);
            }
        }
        assert_eq!(ends(&[0x30, 0x85, 1, 2, 3, 4, 5]), None);
    }
}
