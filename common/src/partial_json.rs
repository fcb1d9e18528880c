//! Reads some fields of a text that is no JSON, so that its sender can be answered. Pure.

use serde_json::{Map, Value};

/// Reads the fields `names` of the outermost object, as far as `text` reads as JSON up to them; only strings and
/// numbers are taken. The text behind a field may be broken: half a surrogate pair, bytes that are no UTF-8, NaN, too
/// many levels, or a text that was cut off.
pub(crate) fn fields(text: &[u8], names: &[&str]) -> Map<String, Value> {
    let mut found = Map::new();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut at = blanks(text, 0);
    if text.get(at) != Some(&b'{') {
        return found;
    }
    at += 1;
    loop {
        at = blanks(text, at);
        let Some(end) = string(text, at) else { return found };
        let name: Option<String> = serde_json::from_slice(&text[at..end]).ok();
        at = blanks(text, end);
        if text.get(at) != Some(&b':') {
            return found;
        }
        at = blanks(text, at + 1);
        let Some(end) = value(text, at) else { return found };
        if let Some(name) = name.filter(|name| names.contains(&name.as_str()))
            && let Ok(value @ (Value::String(_) | Value::Number(_))) = serde_json::from_slice(&text[at..end])
        {
            found.insert(name, value);
        }
        at = blanks(text, end);
        if text.get(at) != Some(&b',') {
            return found;
        }
        at += 1;
    }
}

/// Returns where the blanks that begin at `at` end.
fn blanks(text: &[u8], at: usize) -> usize {
    let count = text[at.min(text.len())..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    at + count
}

/// Returns where the string that begins at `at` ends, its quotes included.
fn string(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Returns where the value that begins at `at` ends; its brackets are counted, and not told apart.
fn value(text: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0_usize);
    loop {
        at = match text.get(at)? {
            b'"' => string(text, at)?,
            b'{' | b'[' => {
                depth += 1;
                at + 1
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at + 1
            }
            b',' | b':' if depth > 0 => at + 1,
            b',' | b':' => return None,
            b if b.is_ascii_whitespace() => at + 1,
            _ => at + text[at..].iter().take_while(|b| !b",:]}\"[{".contains(b) && !b.is_ascii_whitespace()).count(),
        };
        if depth == 0 {
            // A number that the text ends with may have lost digits.
            return (at < text.len() || text[at - 1] == b'"').then_some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(text: &[u8], want: Value) {
        let found = Value::Object(fields(text, &["id", "gid"]));
        assert_eq!(found, want, "{}", String::from_utf8_lossy(text));
    }

    #[test]
    fn fields_before_and_behind_a_fault_are_read() {
        let both = json!({"id": "a", "gid": 1});
        check(br#"{"id": "a", "args": {"f": "caf\udce9.txt", "id": "x"}, "gid": 1}"#, both.clone());
        check(b"{\"data\": \"caf\xe9 \\\" }\", \"gid\":1,\"id\":\"a\"}", both.clone());
        check(br#"{"args": {"a": [NaN, -Infinity, 1e999]}, "x": NaN, "id": "a", "gid" : 1 }"#, both.clone());
        check(format!(r#" {{"a": {}{}, "id": "a", "gid": 1}}"#, "[".repeat(9000), "]".repeat(9000)).as_bytes(), both);
        check(b"\xef\xbb\xbf{\"id\": \"a\"}", json!({"id": "a"}));
        check(br#"{"id": "a", "data": "cut o"#, json!({"id": "a"}));
        check(br#"{"id": "a", "gid": 1"#, json!({"id": "a"}));
        check(br#"{"id": "a", "gid": 1 "nid": 2}"#, json!({"id": "a", "gid": 1}));
        check(br#"{"id": ["a"], "gid": {"id": "b"}}"#, json!({}));
        check(br#"{"id": "\udce9", "gid": 1}"#, json!({"gid": 1}));
    }

    #[test]
    fn texts_of_another_form_have_no_fields() {
        for text in
            ["", " ", "{", "{}", "[{\"id\": \"a\"}]", "{'id': 'a'}", "{\"id\" \"a\"}", "{\"id\":", "{,}", "\"id\""]
        {
            check(text.as_bytes(), json!({}));
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_read_without_a_panic() {
        let text = br#"{"id": "a\\\"b", "args": {"x": [1, {"y": "\u00e9"}]}, "gid": 1}"#;
        for end in 0..text.len() {
            fields(&text[..end], &["id", "gid"]);
            for byte in b"\"\\{}[],: x\xff" {
                let mut other = text.to_vec();
                other[end] = *byte;
                fields(&other, &["id", "gid"]);
            }
        }
    }
}
