//! Bytes in JSON, as base64 (RFC 4648, 4: with padding).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Returns the bytes that this text stands for; `None` where it is no base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Returns the text that stands for these bytes.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
