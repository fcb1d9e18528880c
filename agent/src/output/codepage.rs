//! Output in an old code page, turned into UTF-8 line by line. PURE: the code page is handed in.
//!
//! A line that is UTF-8 stays as it is; any other is taken to be of the code page as a whole. So
//! programs of both kinds may write to one pipe. Where a system has no code pages nothing comes here.

use crate::platform::Decode;
use std::borrow::Cow;

/// Most bytes of an unfinished line that are held back until it is known what they are.
const MOST_HELD: usize = 64 * 1024;

/// One pipe's bytes on their way to the parser.
#[derive(Debug)]
pub(super) struct CodePage {
    decode: Decode,
    /// The start of a line that is not plain ASCII and has no end yet.
    held: Vec<u8>,
}

impl CodePage {
    /// For a pipe whose lines are UTF-8, or what `decode` reads.
    pub(super) fn new(decode: Decode) -> CodePage {
        CodePage { decode, held: Vec::new() }
    }

    /// The next bytes as UTF-8, without the start of a line that may be either.
    pub(super) fn feed<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.held.is_empty() && bytes.is_ascii() {
            return bytes.into();
        }
        self.held.extend_from_slice(bytes);
        let whole = memchr::memrchr(b'\n', &self.held).map_or(0, |at| at + 1);
        let ready = match &self.held[whole..] {
            rest if rest.is_ascii() => self.held.len(),
            rest if rest.len() > MOST_HELD => self.held.len() - unfinished(rest),
            _ => whole,
        };
        let rest = self.held.split_off(ready);
        let lines = std::mem::replace(&mut self.held, rest);
        self.convert(lines).into()
    }

    /// The pipe has ended: what was held back.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        self.convert(held)
    }

    fn convert(&self, bytes: Vec<u8>) -> Vec<u8> {
        if std::str::from_utf8(&bytes).is_ok() {
            return bytes;
        }
        let mut out = Vec::with_capacity(bytes.len());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            match std::str::from_utf8(line) {
                Ok(text) => out.extend_from_slice(text.as_bytes()),
                Err(_) => out.extend_from_slice((self.decode)(line).as_bytes()),
            }
        }
        out
    }
}

/// How many bytes at the end are the start of a character of UTF-8 that is otherwise sound: 3 at most.
fn unfinished(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(fault) if fault.error_len().is_none() => bytes.len() - fault.valid_up_to(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Latin 1: every byte is the character of its number.
    fn latin(bytes: &[u8]) -> Cow<'_, str> {
        bytes.iter().map(|byte| char::from(*byte)).collect::<String>().into()
    }

    #[track_caller]
    fn check(reads: &[&[u8]], want: &str) {
        let mut page = CodePage::new(latin);
        let mut got = Vec::new();
        reads.iter().for_each(|read| got.extend_from_slice(&page.feed(read)));
        got.extend(page.finish());
        assert_eq!(String::from_utf8(got).as_deref(), Ok(want));
    }

    #[test]
    fn each_line_is_of_one_kind() {
        check(&[b"plain\r\n"], "plain\r\n");
        check(&["é\n".as_bytes(), b"\xe9\n"], "é\né\n");
        check(&["é\n".as_bytes(), b"a\xe9", b"b\n", "c€".as_bytes()], "é\naéb\nc€");
        // A character that two reads share.
        check(&[b"\xc3", b"\xa9\n"], "é\n");
        check(&[b"\xc3", b"\n"], "Ã\n");
        check(&[b"the end \xe9"], "the end é");
        check(&[b""], "");
    }

    #[test]
    fn a_line_without_an_end_is_not_held_for_ever() {
        let mut page = CodePage::new(latin);
        assert!(page.feed(&[0xe9; MOST_HELD]).is_empty());
        assert_eq!(page.feed(b"\xe9").len(), 2 * (MOST_HELD + 1));
        assert!(page.finish().is_empty());
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        for end in ["é", "€", "😀"] {
            for cut in 1..end.len() {
                let (first, second) = end.as_bytes().split_at(cut);
                let start = "é".repeat(MOST_HELD / 2);
                let long = [start.as_bytes(), first].concat();
                let mut page = CodePage::new(latin);
                assert_eq!(page.feed(&long).len(), MOST_HELD);
                check(&[&long, second], &format!("{start}{end}"));
                check(&[&long, second, start.as_bytes(), b"\n\xe9\n"], &format!("{start}{end}{start}\né\n"));
            }
        }
        // The character has no end.
        let long = [&b"a".repeat(MOST_HELD)[..], b"\xc3"].concat();
        check(&[&long, b"b\n"], &format!("{}Ãb\n", "a".repeat(MOST_HELD)));
    }

    proptest! {
        #[test]
        fn utf8_stays_as_it_is(text in "[a-zé€\n😀]{0,40}", cuts in proptest::collection::vec(0usize..60, 0..5)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let reads: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            check(&reads, &text);
        }
    }
}
