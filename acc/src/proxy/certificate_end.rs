//! When a certificate ends. Pure.
//!
//! Owns: the few fields of a certificate that lead to its `notAfter`. Does not own: whether it is good: the
//! handshake has verified it before anything is read here, and a session that is resumed never verifies
//! again, which is why the end is looked at with each request.

/// The last moment at which a certificate (DER) holds, in milliseconds since 1970.
pub(super) fn ends(certificate: &[u8]) -> Option<u64> {
    let (cert, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(cert, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields, VERSION)?.1;
    }
    // Serial number, algorithm, issuer; then comes the validity.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        fields = element(fields, tag)?.1;
    }
    let (validity, _) = element(fields, SEQUENCE)?;
    let (_, _, after) = any(validity)?;
    let (tag, text, _) = any(after)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let year = number(text.get(..2)?)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        GENERALIZED_TIME => (number(text.get(..4)?)?, text.get(4..)?),
        _ => return None,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |i: usize| number(rest.get(2 * i..2 * i + 2)?);
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = ((days(year, month, day)? * 24 + hour) * 60 + minute) * 60 + second;
    Some(seconds * 1000 + 999)
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xA0;

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Days since 1970 of a date of the calendar; nothing before that.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    // Howard Hinnant's days_from_civil: eras of 400 years that begin on 1 March.
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)
}

/// The content of the element of this kind that `bytes` begins with, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = any(bytes)?;
    (found == tag).then_some((content, rest))
}

/// Kind and content of the first element, and what follows it.
fn any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use std::time::Duration;

    #[test]
    fn the_end_is_read_of_any_century() {
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
            for length in 0..160 {
                assert_eq!(ends(&cert.der()[..length]), None);
            }
        }
        assert_eq!(ends(&[0x30, 0x85, 1, 2, 3, 4, 5]), None);
    }
}
