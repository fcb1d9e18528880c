//! The query of a request, decoded. Pure.
//!
//! Owns: percent and plus decoding, and the look-up by name.
//! Does not own: what a name means; handlers and the proxy ask for the ones they know.

/// The `name=value` pairs behind the `?`, in order, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the text behind the `?`; what is no UTF-8 after decoding has each bad byte replaced.
    pub(crate) fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|part| !part.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        });
        Query(pairs.collect())
    }

    /// The first value of `name`.
    pub(crate) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Every value of `name`, in order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match bytes[i] {
            b'+' => out.push(b' '),
            b'%' => {
                if let (Some(high), Some(low)) = (hex(i + 1), hex(i + 2)) {
                    out.push((high * 16 + low) as u8);
                    i += 2;
                } else {
                    out.push(b'%');
                }
            }
            byte => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded() {
        let query = Query::parse("role=a&role=b%20c&&wait=30&flag&x=1=2&p=a+b&bad=%zz%4");
        assert_eq!(query.all("role").collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!(query.first("wait"), Some("30"));
        assert_eq!(query.first("flag"), Some(""));
        assert_eq!(query.first("x"), Some("1=2"));
        assert_eq!(query.first("p"), Some("a b"));
        assert_eq!(query.first("bad"), Some("%zz%4"));
        assert_eq!(query.first("none"), None);
        assert_eq!(Query::parse("a=%ff").first("a"), Some("\u{fffd}"));
        assert_eq!(Query::parse(""), Query::default());
    }
}
