//! The statsd grammar: a line to samples. Pure.
//!
//! `key:value|type[|@rate][|#tags]`, several values as `key:1:2:3|ms` (Datadog) or
//! `key:1|c:2|c|@0.5` (Etsy). Tags, and Datadog's container and timestamp fields, are read and not
//! used: a series has one name.

use std::borrow::Cow;

/// Longest key, in bytes.
const MAX_KEY: usize = 256;

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// `c`: is added; the sample rate is counted in.
    Count(f64),
    /// `g`: is set.
    Gauge(f64),
    /// `g` with a sign: is added to the gauge.
    Change(f64),
    /// `ms`, `h`: one measurement, and how many it stands for.
    Time(f64, f64),
    /// `s`: a member of a set.
    Member(&'a [u8]),
    /// `kv`: is set, for this interval.
    Plain(f64),
}

/// The line is none of the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadLine;

/// Hands every sample of a line (without its LF) to `sink`; nothing of a line is handed over before
/// the value that makes it bad.
pub(super) fn parse<'a>(line: &'a [u8], sink: &mut impl FnMut(&'a [u8], Value<'a>)) -> Result<(), BadLine> {
    let colon = memchr::memchr(b':', line).ok_or(BadLine)?;
    let (key, mut rest) = (&line[..colon], Some(&line[colon + 1..]));
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(BadLine);
    }
    while let Some(part) = rest {
        rest = metric(key, part, sink)?;
    }
    Ok(())
}

/// One `values|type[|fields]`; gives back what follows it in Etsy's form of several values.
fn metric<'a>(
    key: &'a [u8],
    part: &'a [u8],
    sink: &mut impl FnMut(&'a [u8], Value<'a>),
) -> Result<Option<&'a [u8]>, BadLine> {
    let bar = memchr::memchr(b'|', part).ok_or(BadLine)?;
    let values = &part[..bar];
    let (kind, mut fields, mut more) = field(&part[bar + 1..], true);
    let mut rate = 1.0;
    while let Some(rest) = fields {
        let (text, next, chained) = field(rest, rest.first() == Some(&b'@'));
        match text.first() {
            Some(b'@') => {
                rate = number(&text[1..]).filter(|rate| *rate > 0.0 && *rate <= 1.0).ok_or(BadLine)?;
            }
            Some(b'#') => {}
            Some(b'T') => {}
            Some(b'c') if text.starts_with(b"c:") => {}
            _ => return Err(BadLine),
        }
        fields = next;
        if chained.is_some() {
            more = chained;
        }
    }
    if kind == b"s" {
        // A member may be any text, colons among it.
        if values.is_empty() {
            return Err(BadLine);
        }
        sink(key, Value::Member(values));
        return Ok(more);
    }
    for value in values.split(|byte| *byte == b':') {
        let signed = matches!(value.first(), Some(b'+' | b'-'));
        let number = number(value).ok_or(BadLine)?;
        let value = match kind {
            b"c" => Value::Count(number / rate),
            b"g" if signed => Value::Change(number),
            b"g" => Value::Gauge(number),
            b"ms" | b"h" => Value::Time(number, 1.0 / rate),
            b"kv" => Value::Plain(number),
            _ => return Err(BadLine),
        };
        sink(key, value);
    }
    Ok(more)
}

/// The next field, the fields after it, and (where the field may end in a colon) what follows that colon.
#[allow(clippy::type_complexity)]
fn field(text: &[u8], chain: bool) -> (&[u8], Option<&[u8]>, Option<&[u8]>) {
    let bar = memchr::memchr(b'|', text);
    let colon = if chain { memchr::memchr(b':', &text[..bar.unwrap_or(text.len())]) } else { None };
    match (colon, bar) {
        (Some(colon), _) => (&text[..colon], None, Some(&text[colon + 1..])),
        (None, Some(bar)) => (&text[..bar], Some(&text[bar + 1..]), None),
        (None, None) => (text, None, None),
    }
}

/// A finite number.
fn number(text: &[u8]) -> Option<f64> {
    // Most values are short whole numbers.
    if (1..=9).contains(&text.len()) && text.iter().all(u8::is_ascii_digit) {
        return Some(f64::from(text.iter().fold(0u32, |n, digit| n * 10 + u32::from(digit - b'0'))));
    }
    let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    number.is_finite().then_some(number)
}

/// A key as it stands in names of series, after Etsy: blanks become `_`, slashes `-`, and what is not
/// of `A-Z a-z 0-9 _ - .` goes.
pub(super) fn clean(key: &[u8]) -> Cow<'_, str> {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if key.iter().all(good) {
        return String::from_utf8_lossy(key);
    }
    let mut clean = String::with_capacity(key.len());
    let mut blank = false;
    for byte in key {
        if byte.is_ascii_whitespace() {
            // A run of blanks is one.
            if !blank {
                clean.push('_');
            }
        } else if *byte == b'/' {
            clean.push('-');
        } else if good(byte) {
            clean.push(char::from(*byte));
        }
        blank = byte.is_ascii_whitespace();
    }
    Cow::Owned(clean)
}

#[cfg(test)]
mod tests {
    use super::Value::*;
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(line: &str, want: &[Value<'_>]) {
        let mut found = Vec::new();
        let done = parse(line.as_bytes(), &mut |key, value| {
            assert_eq!(key, b"k", "{line}");
            found.push(value);
        });
        assert_eq!((done, found.as_slice()), (Ok(()), want), "{line}");
    }

    #[test]
    fn every_type() {
        check("k:1|c", &[Count(1.0)]);
        check("k:-2.5|c", &[Count(-2.5)]);
        check("k:1|c|@0.1", &[Count(10.0)]);
        check("k:5|g", &[Gauge(5.0)]);
        check("k:+5|g", &[Change(5.0)]);
        check("k:-5|g", &[Change(-5.0)]);
        check("k:320|ms|@0.5", &[Time(320.0, 2.0)]);
        check("k:1e3|h", &[Time(1000.0, 1.0)]);
        check("k:user 1:x|s", &[Member(b"user 1:x")]);
        check("k:1234567890123|kv", &[Plain(1_234_567_890_123.0)]);
    }

    #[test]
    fn several_values_and_tags() {
        check("k:1:2:3|ms", &[Time(1.0, 1.0), Time(2.0, 1.0), Time(3.0, 1.0)]);
        check("k:1|c:2|c|@0.5:3|g", &[Count(1.0), Count(4.0), Gauge(3.0)]);
        check("k:1|c|#env:prod,host:a", &[Count(1.0)]);
        check("k:1|c|@0.5|#a", &[Count(2.0)]);
        check("k:1|c|#a:b|@0.5", &[Count(2.0)]);
        check("k:1|c|#a|c:container|T1656581400", &[Count(1.0)]);
    }

    #[test]
    fn bad_lines() {
        for line in [
            "",
            "k",
            "k:",
            "k:1",
            ":1|c",
            "k:|c",
            "k:1|",
            "k:1|x",
            "k:x|c",
            "k:1||@1",
            "k:1|c|",
            "k:1|c|0.1",
            "k:1|c|@",
            "k:1|c|@0",
            "k:1|c|@2",
            "k:1|c|@x",
            "k:nan|g",
            "k:inf|c",
            "k:|s",
            "k:1::2|ms",
            "k:1|d",
            "_sc|a|0",
        ] {
            assert_eq!(parse(line.as_bytes(), &mut |_, _| ()), Err(BadLine), "{line}");
        }
        let long = format!("{}:1|c", "k".repeat(257));
        assert_eq!(parse(long.as_bytes(), &mut |_, _| ()), Err(BadLine));
    }

    #[test]
    fn keys_are_cleaned() {
        for (key, want) in [("a.b-c_9", "a.b-c_9"), ("a  b/c", "a_b-c"), ("ä(x)", "x")] {
            assert_eq!(clean(key.as_bytes()), want);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_line_harms(line in prop::collection::vec(prop::sample::select(b"k:|@#.019+-cgmshv\xff ".to_vec()), 0..30)) {
            let _ = parse(&line, &mut |key, value| {
                assert!(!key.is_empty());
                if let Count(n) | Gauge(n) | Change(n) | Plain(n) | Time(n, _) = value {
                    assert!(n.is_finite());
                }
            });
        }
    }
}
