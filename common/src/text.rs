//! Reads text that people wrote, and writes text that they copy: files in UTF-8, words of a shell.

use std::borrow::Cow;
use std::fmt;

/// The byte order mark of UTF-8, which some editors write.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The fault of a file that is not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotUtf8 {
    /// The first line that is not UTF-8, counted from 1.
    pub(crate) line: usize,
    /// The description of the content that was found instead, and the remedy.
    pub(crate) message: String,
}

impl fmt::Display for NotUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for NotUtf8 {}

/// Returns the text of a file without its byte order mark.
pub fn decode(bytes: Vec<u8>) -> Result<String, NotUtf8> {
    check_utf16(&bytes)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let bytes = error.as_bytes();
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            let message = format!(
                "the byte 0x{:02x} is not UTF-8, the file seems to be Windows-1252 or ISO-8859-1: save it as UTF-8",
                bytes[at]
            );
            Err(NotUtf8 { line, message })
        }
    }
}

/// Returns the bytes behind the byte order mark of UTF-8, where there is one.
pub fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BOM).unwrap_or(bytes)
}

/// Refuses bytes that are UTF-16, by their byte order mark or by the zero bytes of plain letters.
pub fn check_utf16(bytes: &[u8]) -> Result<(), NotUtf8> {
    let kind = match bytes {
        [0xff, 0xfe, ..] | [1..=255, 0, 1..=255, 0, ..] => "UTF-16 (little endian)",
        [0xfe, 0xff, ..] | [0, 1..=255, 0, 1..=255, ..] => "UTF-16 (big endian)",
        _ => return Ok(()),
    };
    Err(NotUtf8 { line: 1, message: format!("the file is {kind}: save it as UTF-8") })
}

/// Returns a word as a POSIX shell reads it back, quoted where it has to be.
pub fn posix_word(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%=".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")).into(),
    }
}

/// Returns a path as `cmd.exe` and PowerShell read it back, quoted where it has to be.
pub fn windows_word(path: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || r"\/._-:".contains(c);
    match !path.is_empty() && path.chars().all(plain) {
        true => path.into(),
        false => format!("\"{path}\"").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_mark_is_dropped_once() {
        assert_eq!(decode(b"\xef\xbb\xbfa\r\n".to_vec()).as_deref(), Ok("a\r\n"));
        assert_eq!(decode("\u{feff}\u{feff}".into()).as_deref(), Ok("\u{feff}"));
        assert_eq!(decode("é".into()).as_deref(), Ok("é"));
        assert_eq!(decode(Vec::new()).as_deref(), Ok(""));
        assert_eq!((without_bom(b"\xef\xbb\xbfx"), without_bom(b"x")), (&b"x"[..], &b"x"[..]));
    }

    #[test]
    fn word_is_quoted_for_its_shell() {
        for (word, posix, windows) in [
            ("/etc/a-b.toml", "/etc/a-b.toml", "/etc/a-b.toml"),
            ("/a b", "'/a b'", "\"/a b\""),
            ("it's", r"'it'\''s'", "\"it's\""),
            ("$x", "'$x'", "\"$x\""),
            ("", "''", "\"\""),
            (r"C:\Program Files\a.toml", r"'C:\Program Files\a.toml'", r#""C:\Program Files\a.toml""#),
            (r"C:\x\a.toml", r"'C:\x\a.toml'", r"C:\x\a.toml"),
            ("C:\\a&b", r"'C:\a&b'", r#""C:\a&b""#),
        ] {
            assert_eq!((posix_word(word).as_ref(), windows_word(word).as_ref()), (posix, windows), "{word}");
        }
    }

    #[test]
    fn other_encoding_is_named_with_its_line() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        for (bytes, want) in [
            (utf16("\u{feff}[main]"), "line 1: the file is UTF-16 (little endian): save it as UTF-8"),
            (utf16("[main]"), "line 1: the file is UTF-16 (little endian): save it as UTF-8"),
            (b"\xfe\xff\0[".to_vec(), "line 1: the file is UTF-16 (big endian): save it as UTF-8"),
            (b"\0[\0m".to_vec(), "line 1: the file is UTF-16 (big endian): save it as UTF-8"),
            (b"a\n# f\xfcr\n".to_vec(), "line 2: the byte 0xfc is not UTF-8, the file seems to be Windows-1252"),
        ] {
            let fault = decode(bytes.clone()).unwrap_err().to_string();
            assert!(fault.starts_with(want), "{bytes:?}: {fault}");
        }
    }
}
