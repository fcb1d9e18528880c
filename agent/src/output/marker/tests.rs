//! The parser by tables, and against a plain one that sees the whole text at once.

use super::*;
use proptest::prelude::*;

/// Level, marked, continued, text.
type Found = (u8, bool, bool, String);

fn parse(pieces: &[&[u8]]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut sink = |m: Message<'_>| found.push((m.level, m.marked, m.continued, m.text.to_owned()));
    let mut parser = Parser::new(level::STDOUT);
    for piece in pieces {
        parser.feed(piece, &mut sink);
    }
    parser.finish(&mut sink);
    found
}

/// Whole messages of the text, at once and byte by byte.
#[track_caller]
fn check(text: &str, want: &[(u8, &str)]) {
    let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    for found in [parse(&[text.as_bytes()]), parse(&single)] {
        let found: Vec<(u8, &str)> = found.iter().map(|(level, _, _, text)| (*level, text.as_str())).collect();
        assert_eq!(found, want, "{text:?}");
    }
}

#[test]
fn lines() {
    check("", &[]);
    check("a", &[(1, "a")]);
    check("a\n", &[(1, "a")]);
    check("a\r\nb\rc\n\r\n\n", &[(1, "a"), (1, "b\rc"), (1, ""), (1, "")]);
    check("a\r", &[(1, "a\r")]);
    check("7::warn\n", &[(7, "warn")]);
    check("20::{}\r\n", &[(20, "{}")]);
    check("9::", &[(9, "")]);
    check("3::7::x\n", &[(3, "7::x")]);
}

#[test]
fn levels_that_are_none_are_text() {
    for text in [
        "0::x", "12::1", "19::x", "24::x", "30::x", "30:::x", "99::", "100::x", "07::x", " 7::x", "7:x", "::x", "7",
        "7:",
    ] {
        check(text, &[(1, text)]);
    }
    for level in (1..=11).chain(20..=23) {
        check(&format!("{level}::x"), &[(level, "x")]);
    }
}

#[test]
fn blocks() {
    check("20:::\na\nb\n:::\nc\n", &[(20, "a\nb"), (1, "c")]);
    check("20:::a\nb\n:::\n", &[(20, "a\nb")]);
    check("20:::\r\na\r\nb\r\n:::\r\n", &[(20, "a\nb")]);
    check("20:::\n:::\n", &[(20, "")]);
    check("20:::\n\na\n\n:::\n", &[(20, "\na\n")]);
    check("20:::\n7::x\n9:::\n ::: \n:::dropped\nx", &[(20, "7::x\n9:::\n ::: "), (1, "x")]);
    check("20::::a\n:::", &[(20, ":a")]);
    check(":::\n:::x\n", &[(1, ":::"), (1, ":::x")]);
}

#[test]
fn a_block_that_is_cut_off_is_delivered_as_it_stands() {
    check("20:::", &[(20, "")]);
    check("20:::\n", &[(20, "")]);
    check("20:::\na", &[(20, "a")]);
    check("20:::\na\n", &[(20, "a")]);
    check("20:::\na\n\n", &[(20, "a\n")]);
    check("20:::a\n::", &[(20, "a\n::")]);
    check("20:::a\nb\r", &[(20, "a\nb\r")]);
    check("20:::a\n:::b", &[(20, "a")]);
}

#[test]
fn bytes_that_are_no_utf8_are_marked_and_the_rest_stays_readable() {
    let found = parse(&[b"caf\xe9 ol\xc3\xa9\n7::\xff\xfe\n\xe2\x82"]);
    let texts: Vec<&str> = found.iter().map(|(_, _, _, text)| text.as_str()).collect();
    assert_eq!(texts, ["caf\u{fffd} olé", "\u{fffd}\u{fffd}", "\u{fffd}"]);
}

#[test]
fn long_lines_come_in_pieces() {
    let long = "x".repeat(MAX_LINE);
    check(&format!("{long}\r\n7::{long}\n"), &[(1, &long), (7, &long)]);
    let found = parse(&[format!("8::{long}{long}yz\r\n").as_bytes()]);
    let shape: Vec<(u8, bool, usize)> = found.iter().map(|(l, _, c, text)| (*l, *c, text.len())).collect();
    assert_eq!(shape, [(8, false, MAX_LINE), (8, true, MAX_LINE), (8, true, 2)]);
    // No character is cut in two.
    let found = parse(&["é".repeat(MAX_LINE).as_bytes(), b"a"]);
    assert_eq!(found.iter().map(|f| f.3.as_str()).collect::<String>(), format!("{}a", "é".repeat(MAX_LINE)));
    assert!(found.iter().all(|f| f.3.len() <= MAX_LINE));
}

#[test]
fn long_blocks_come_in_pieces_and_memory_stays_bounded() {
    let mut parser = Parser::new(2);
    let (mut total, mut most) = (0, 0);
    let mut sink = |m: Message<'_>| {
        assert_eq!(m.level, 20);
        (total, most) = (total + m.text.len(), most.max(m.text.len()));
    };
    parser.feed(b"20:::", &mut sink);
    for _ in 0..3000 {
        parser.feed(&[b'y'; 1000], &mut sink);
        assert!(parser.block.len() <= MAX_BLOCK && parser.held.len() < MAX_LINE + 10);
    }
    parser.finish(&mut sink);
    assert_eq!((total, most), (3_000_000, MAX_BLOCK));
}

/// Applies the contract to the whole text at once.
fn plainly(bytes: &[u8]) -> Vec<Found> {
    let text = String::from_utf8_lossy(bytes);
    let mut found = Vec::new();
    let mut put = |level: u8, marked: bool, text: &str, max: usize| {
        pieces(level, marked, false, text, max, &mut |m| {
            found.push((m.level, m.marked, m.continued, m.text.to_owned()))
        });
    };
    let mut lines: Vec<&str> = text.split('\n').collect();
    let last = lines.pop().unwrap_or_default();
    let mut lines: Vec<&str> = lines.iter().map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    if !last.is_empty() {
        lines.push(last);
    }
    let mut lines = lines.into_iter();
    while let Some(line) = lines.next() {
        match marker(line) {
            None => put(1, false, line, MAX_LINE),
            Some(Marker { level, block: false, len }) => put(level, true, &line[len..], MAX_LINE),
            Some(Marker { level, block: true, len }) => {
                let mut block = Vec::new();
                if line.len() > len {
                    block.push(&line[len..]);
                }
                block.extend(lines.by_ref().take_while(|line| !line.starts_with(":::")));
                put(level, true, &block.join("\n"), MAX_BLOCK);
            }
        }
    }
    found
}

/// Texts that are full of what matters to the parser.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => prop::sample::select(vec!["\n", "\r\n", "\r", ":", "::", ":::", "7::", "20:::", "1", "2", "30::", "a", "é"])
            .prop_map(|s: &str| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
        1 => (MAX_LINE - 8..MAX_LINE + 8).prop_map(|n| vec![b'x'; n]),
    ];
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_of_any_bytes_gives_the_same_messages(bytes in texts(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let want = plainly(&bytes);
        prop_assert_eq!(&parse(&parts), &want);
        prop_assert_eq!(&parse(&[&bytes]), &want);
    }

    #[test]
    fn byte_by_byte_as_well(bytes in prop::collection::vec(prop::sample::select(b"127:\n\r:a\xc3\xa9\xff".to_vec()), 0..200)) {
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(parse(&single), plainly(&bytes));
    }
}
