//! Counts the values of a JSON text before it is read, for each of them takes many times the memory of its text. Pure.

/// Most JSON values of one command. An object counts as [`OBJECT`]. A result has the arguments of its command, so this is
/// less than what a controller takes in the body of one result.
pub const MAX_VALUES: usize = 200_000;

/// As many values take the memory of an object with one field.
const OBJECT: usize = 8;

/// Whether a JSON text has more than `most` values.
pub(crate) fn has_more_values(text: &[u8], most: usize) -> bool {
    // No byte counts as more than an object does.
    text.len().saturating_mul(OBJECT) >= most && count_values(text) > most
}

/// Returns how many values a JSON text has, an object counted as eight.
pub fn count_values(text: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (1_usize, false, false);
    for byte in text {
        if in_string {
            in_string = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else {
            in_string = *byte == b'"';
            count += match byte {
                b',' | b'[' => 1,
                b'{' => OBJECT,
                _ => 0,
            };
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        let text = r#"[{"a": 1, "b": [2, 3]}, "x,[{\\\",,,", "\\\\", null]"#;
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(value.as_array().unwrap().len(), 4);
        // Each of the nine: the list, the object, 1, its list, 2, 3, two texts, null.
        let nine = 8 + OBJECT;
        for (most, more) in [(nine - 2, true), (nine - 1, true), (nine, false), (nine + 1, false)] {
            assert_eq!(has_more_values(text.as_bytes(), most), more, "{most}");
        }
        assert!(has_more_values(b"{}", OBJECT) && !has_more_values(b"{}", OBJECT + 1));
    }
}
