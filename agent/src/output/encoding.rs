//! The encoding of a stream, known from its first bytes. Pure.
//!
//! A byte order mark is dropped. A stream that begins with one of UTF-16 is turned into UTF-8; on Windows, whose
//! own programs write it without a mark, one that begins with ASCII text in UTF-16LE as well. Everything else
//! passes unchanged: elsewhere one-letter words with a NUL after each are what `find -print0` writes.

use std::borrow::Cow;

/// The bytes that decide whether a stream without a mark is UTF-16LE: four characters.
const ENOUGH: usize = 8;

/// The decoder of one stream.
#[derive(Debug)]
pub(super) struct Encoding {
    state: State,
    /// Whether UTF-16LE is recognized without a mark.
    unmarked: bool,
    /// The first bytes of the stream while they decide nothing, or the start of a character of UTF-16.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    /// Too few bytes came.
    #[default]
    Unknown,
    /// The bytes pass as they are.
    Plain,
    /// Two bytes a unit, the low one first or last.
    Utf16 { little: bool },
}

/// Bytes for their next reader.
#[derive(Debug, PartialEq)]
pub(super) enum Decoded<'a> {
    /// As the program wrote them.
    Plain(Cow<'a, [u8]>),
    /// They were UTF-16.
    Text(String),
}

impl Default for Encoding {
    fn default() -> Encoding {
        Encoding::new(cfg!(windows))
    }
}

impl Encoding {
    fn new(unmarked: bool) -> Encoding {
        Encoding { state: State::Unknown, unmarked, held: Vec::new() }
    }

    /// Whether bytes pass unchanged from here on.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.state == State::Plain
    }

    /// Takes the next bytes. A few of the first may be held back until more come.
    pub(super) fn feed<'a>(&mut self, bytes: &'a [u8]) -> Decoded<'a> {
        if self.state == State::Unknown {
            self.held.extend_from_slice(bytes);
            let (state, mark) = decide(&self.held, self.unmarked);
            self.state = state;
            if state == State::Unknown {
                return Decoded::Plain(Cow::Borrowed(&[]));
            }
            let mut held = std::mem::take(&mut self.held);
            held.drain(..mark);
            return match state {
                State::Utf16 { little } => Decoded::Text(self.utf16(&held, little)),
                _ => Decoded::Plain(Cow::Owned(held)),
            };
        }
        match self.state {
            State::Utf16 { little } => Decoded::Text(self.utf16(bytes, little)),
            _ => Decoded::Plain(Cow::Borrowed(bytes)),
        }
    }

    /// Takes the end of the stream and returns what was held back.
    pub(super) fn finish(&mut self) -> Decoded<'static> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            // A unit or a pair of units without its end.
            State::Utf16 { .. } if !held.is_empty() => Decoded::Text("\u{fffd}".to_owned()),
            // A short text of whole units that ended before it was certain.
            State::Unknown
                if self.unmarked && held.len() >= 4 && held.len().is_multiple_of(2) && is_ascii_utf16(&held) =>
            {
                Decoded::Text(self.utf16(&held, true))
            }
            _ => Decoded::Plain(Cow::Owned(held)),
        }
    }

    fn utf16(&mut self, bytes: &[u8], little: bool) -> String {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        let unit = |pair: &[u8]| match little {
            true => u16::from_le_bytes([pair[0], pair[1]]),
            false => u16::from_be_bytes([pair[0], pair[1]]),
        };
        let mut whole = all.len() / 2 * 2;
        // The first half of a pair of units waits for the second.
        if whole >= 2 && (0xd800..0xdc00).contains(&unit(&all[whole - 2..whole])) {
            whole -= 2;
        }
        let text = char::decode_utf16(all[..whole].chunks_exact(2).map(unit)).map(|c| c.unwrap_or('\u{fffd}'));
        let text = text.collect();
        self.held.extend_from_slice(&all[whole..]);
        text
    }
}

/// Returns the state that the first bytes of a stream show, and the length of their byte order mark.
fn decide(first: &[u8], unmarked: bool) -> (State, usize) {
    const UTF8: &[u8] = &[0xef, 0xbb, 0xbf];
    for (mark, state) in [
        (UTF8, State::Plain),
        (&[0xff, 0xfe], State::Utf16 { little: true }),
        (&[0xfe, 0xff], State::Utf16 { little: false }),
    ] {
        if first.starts_with(mark) {
            return (state, mark.len());
        }
        if mark.starts_with(first) {
            return (State::Unknown, 0);
        }
    }
    // A first line that is blank is known at once: it must not wait for the next.
    if first == b"\n" || !unmarked || !is_ascii_utf16(first) {
        return (State::Plain, 0);
    }
    if first.len() >= ENOUGH {
        return (State::Utf16 { little: true }, 0);
    }
    // A whole short line is enough as well.
    let ended = first.len() >= 4 && first[2..].chunks_exact(2).any(|unit| unit == b"\n\0");
    (if ended { State::Utf16 { little: true } } else { State::Unknown }, 0)
}

/// Whether these can be the first bytes of ASCII text in UTF-16LE: every other one is a NUL.
fn is_ascii_utf16(bytes: &[u8]) -> bool {
    let text = |byte: u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x1b | 0x20..0x7f);
    bytes.iter().take(ENOUGH).enumerate().all(|(at, byte)| if at % 2 == 0 { text(*byte) } else { *byte == 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the decoded bytes of a stream that is read in pieces of `size` bytes.
    fn decode(stream: &[u8], size: usize, unmarked: bool) -> Vec<u8> {
        let mut encoding = Encoding::new(unmarked);
        let mut out = Vec::new();
        let mut add = |decoded: Decoded<'_>| match decoded {
            Decoded::Plain(bytes) => out.extend_from_slice(&bytes),
            Decoded::Text(text) => out.extend_from_slice(text.as_bytes()),
        };
        stream.chunks(size).for_each(|piece| add(encoding.feed(piece)));
        add(encoding.finish());
        out
    }

    #[track_caller]
    fn check_on(unmarked: bool, stream: &[u8], want: &[u8]) {
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(decode(stream, size, unmarked), want, "{stream:x?} in pieces of {size}, {unmarked}");
        }
    }

    /// The same on every system.
    #[track_caller]
    fn check(stream: &[u8], want: &[u8]) {
        [true, false].into_iter().for_each(|unmarked| check_on(unmarked, stream, want));
    }

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn utf8_passes_and_its_mark_is_dropped() {
        for text in ["", "\n", "a", "20::42\n", "é", "\u{ff}", "日本", "\u{feff}"] {
            let marked = [&b"\xef\xbb\xbf"[..], text.as_bytes()].concat();
            check(&marked, text.as_bytes());
            if text != "\u{feff}" {
                check(text.as_bytes(), text.as_bytes());
            }
        }
    }

    #[test]
    fn mark_is_dropped_at_the_start_only() {
        check(b"\xef\xbb\xbfa\xef\xbb\xbfb", b"a\xef\xbb\xbfb");
        check(b"a\xef\xbb\xbf", b"a\xef\xbb\xbf");
    }

    #[test]
    fn utf16_is_known_by_its_mark() {
        for text in ["", "a", "20::42\r\n", "é😀日\n", "\0\0"] {
            check(&[b"\xff\xfe".to_vec(), utf16(text)].concat(), text.as_bytes());
            let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            check(&[b"\xfe\xff".to_vec(), big].concat(), text.as_bytes());
        }
    }

    #[test]
    fn utf16_is_known_by_its_nuls_on_windows_only() {
        for text in ["ok", "a\n", "20::42\r\n", "plain text, then é😀\n", "\t\r\n\r\n"] {
            check_on(true, &utf16(text), text.as_bytes());
            check_on(false, &utf16(text), &utf16(text));
        }
    }

    #[test]
    fn bytes_with_nuls_that_are_no_text_pass() {
        for stream in [&b"a"[..], b"a\0", b"a\0b", b"\0a\0b\0c\0d\0e", b"a\0b\0c\0dd\0", b"\x7fELF\0\0\0\0", b"a\0\0\0"]
        {
            check(stream, stream);
        }
    }

    #[test]
    fn broken_utf16_is_marked() {
        check(b"\xff\xfea\0b", "a\u{fffd}".as_bytes());
        check(b"\xff\xfe\x3d\xd8", "\u{fffd}".as_bytes());
        check(b"\xff\xfe\x3d\xd8a\0", "\u{fffd}a".as_bytes());
        check(b"\xff\xfe\x00\xdea\0", "\u{fffd}a".as_bytes());
    }

    #[test]
    fn incomplete_mark_passes() {
        for stream in [&b"\xef"[..], b"\xef\xbb", b"\xff", b"\xfe", b"\xef\xbba", b"\xffa"] {
            check(stream, stream);
        }
    }

    #[test]
    fn first_bytes_of_usual_output_are_not_held_back() {
        let all: [(&[u8], bool); 6] =
            [(b"\n", true), (b"ab", true), (b"\xc3\xa9", true), (b"20::1\n", true), (b"a", false), (b"a\0b\0", false)];
        for (first, unmarked) in all {
            let mut encoding = Encoding::new(unmarked);
            assert_eq!(encoding.feed(first), Decoded::Plain(Cow::Borrowed(first)), "{first:?}");
            assert!(encoding.is_plain());
        }
    }
}
