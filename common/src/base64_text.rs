//! Bytes in JSON, as base64 (RFC 4648, 4: with padding).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Returns the bytes that this text stands for; `None` where it is no base64.
///
/// It is small, for the agent has no other use for a decoder of all kinds.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    let padding = text.len() - digits.len();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        let count = group.len() * 6 / 8;
        // Bits beyond the last byte are 0, so that every text has one meaning and every meaning one text.
        if bits & (0xff_ffff >> (8 * count)) != 0 {
            return None;
        }
        bytes.extend_from_slice(&bits.to_be_bytes()[1..1 + count]);
    }
    Some(bytes)
}

/// Returns the text that stands for these bytes.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_come_back_and_anything_else_is_refused() {
        for bytes in [&b""[..], b"a", b"ab", b"abc", b"\x00\xff\n"] {
            assert_eq!(decode(&encode(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!(decode("YQ==").as_deref(), Some(&b"a"[..]));
        for text in ["YQ", "YQ=", "Y Q==", "-_==", "\n"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_reads_what_the_library_reads(bytes in prop::collection::vec(any::<u8>(), 0..20), text in "[A-D+/=]{0,8}") {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
            prop_assert_eq!(decode(&text), STANDARD.decode(&text).ok());
        }
    }
}
