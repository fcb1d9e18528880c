//! Names of log lists and series.

/// A domain or a name as it stands in keys: every character outside `A-Z a-z 0-9 _ -` becomes `_`,
/// and an empty one becomes `unknown`.
pub fn part(text: &str) -> String {
    if text.is_empty() {
        return "unknown".to_owned();
    }
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}

/// The Redis list that records of this domain and name go to: `log.<domain>.<name>`.
pub fn log_key(domain: &str, name: &str) -> String {
    format!("log.{}.{}", part(domain), part(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        for (text, want) in [("", "unknown"), ("web-1_a", "web-1_a"), ("a.b c", "a_b_c"), ("é", "_"), (".", "_")] {
            assert_eq!(part(text), want, "{text}");
        }
        assert_eq!(log_key("a/b", ""), "log.a_b.unknown");
    }
}
