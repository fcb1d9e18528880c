//! Any split of any bytes gives the same messages: the first byte says how the rest is split.
#![no_main]

use jsagent::output::marker::{MAX_BLOCK, MAX_LINE, Parser};
use libfuzzer_sys::fuzz_target;

fn parse<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<(u8, bool, bool, String)> {
    let mut found = Vec::new();
    let mut sink = |m: jsagent::output::marker::Message<'_>| {
        assert!(m.text.len() <= if m.marked { MAX_BLOCK } else { MAX_LINE });
        found.push((m.level, m.marked, m.continued, m.text.to_owned()));
    };
    let mut parser = Parser::new(1);
    pieces.for_each(|piece| parser.feed(piece, &mut sink));
    parser.finish(&mut sink);
    found
}

fuzz_target!(|data: &[u8]| {
    let Some((split, bytes)) = data.split_first() else { return };
    let whole = parse(std::iter::once(bytes));
    assert_eq!(parse(bytes.chunks(usize::from(*split).max(1))), whole);
});
