//! Message levels and sets of them.

use std::fmt;

/// Ordinary text on stdout.
pub const STDOUT: u8 = 1;
/// Ordinary text on stderr.
pub const STDERR: u8 = 2;
/// An error for the operators.
pub const OPS_ERROR: u8 = 8;
/// A critical error.
pub const CRITICAL: u8 = 9;
/// statsd lines.
pub const STATSD: u8 = 10;
/// A result as JSON; 21 is YAML, 22 TOML, 23 HRD.
pub const RESULT_JSON: u8 = 20;
/// The full result of a job as JSON, written by the agent alone.
pub const JOB: u8 = 30;

/// Whether a process may mark a message with this level: 1-11 and 20-23.
pub fn may_be_marked(level: u8) -> bool {
    matches!(level, 1..=11 | 20..=23)
}

/// Whether a message of this level is the result of its job: 20-23.
pub fn is_result(level: u8) -> bool {
    matches!(level, 20..=23)
}

/// A set of levels from 0 to 31.
///
/// Written `"*"`, `"1"`, `"1,2,3"`, `"1-5"`, a mix of these, or as a JSON list of numbers; the empty
/// text is the empty set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LevelSet(u32);

impl LevelSet {
    /// Every level.
    pub const ALL: LevelSet = LevelSet(u32::MAX);
    /// No level at all.
    pub const NONE: LevelSet = LevelSet(0);

    /// Reads the written form; the error says what is wrong with it, in one sentence.
    pub fn parse(text: &str) -> Result<LevelSet, String> {
        let mut set = LevelSet::NONE;
        if text.trim().is_empty() {
            return Ok(set);
        }
        for part in text.split(',').map(str::trim) {
            if part == "*" {
                set = LevelSet::ALL;
                continue;
            }
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (level(first, text)?, level(last, text)?);
            if first > last {
                return Err(format!("level set '{text}': the range '{part}' runs backwards"));
            }
            for level in first..=last {
                set.0 |= 1 << level;
            }
        }
        Ok(set)
    }

    /// Reads a JSON value: the written form as a string, or a list of numbers.
    pub fn from_json(value: &serde_json::Value) -> Result<LevelSet, String> {
        match value {
            serde_json::Value::String(text) => LevelSet::parse(text),
            serde_json::Value::Array(list) => list.iter().try_fold(LevelSet::NONE, |set, item| match item.as_u64() {
                Some(level @ 0..=31) => Ok(LevelSet(set.0 | 1 << level)),
                _ => Err(format!("a level is a number from 0 to 31, not {item}")),
            }),
            other => Err(format!("a level set is a string or a list of numbers, not {other}")),
        }
    }

    /// Whether `level` is in the set; levels above 31 are in none.
    pub fn contains(self, level: u8) -> bool {
        level < 32 && self.0 & (1 << level) != 0
    }

    /// The levels that are in both sets.
    #[must_use]
    pub fn and(self, other: LevelSet) -> LevelSet {
        LevelSet(self.0 & other.0)
    }

    /// The levels of this set that are not among `gone`.
    #[must_use]
    pub fn without(self, gone: &[u8]) -> LevelSet {
        gone.iter().filter(|level| **level < 32).fold(self, |set, level| LevelSet(set.0 & !(1 << level)))
    }

    /// Whether no level is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

fn level(part: &str, whole: &str) -> Result<u32, String> {
    match part.trim().parse::<u32>() {
        Ok(level @ 0..=31) => Ok(level),
        _ => Err(format!("level set '{whole}': '{part}' is no level from 0 to 31")),
    }
}

impl fmt::Debug for LevelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((0..32).filter(|level| self.contains(*level))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(text: &str, levels: &[u8]) {
        let set = LevelSet::parse(text).unwrap();
        let found: Vec<u8> = (0..=40).filter(|level| set.contains(*level)).collect();
        assert_eq!(found, levels, "{text}");
    }

    #[test]
    fn level_sets_are_read_from_text() {
        check("", &[]);
        check("1", &[1]);
        check("1,2,3", &[1, 2, 3]);
        check("1-3", &[1, 2, 3]);
        check("3, 7-9 ,30", &[3, 7, 8, 9, 30]);
        check("*", &(0..32).collect::<Vec<u8>>());
        for bad in ["x", "1-", "-1", "5-1", "32", "1,,2", "1;2"] {
            assert!(LevelSet::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels_are_taken_out() {
        assert_eq!(LevelSet::parse("1-5").unwrap().without(&[2, 4, 40]), LevelSet::parse("1,3,5").unwrap());
    }

    #[test]
    fn level_sets_are_read_from_json() {
        assert_eq!(LevelSet::from_json(&json!([1, 9])), LevelSet::parse("1,9"));
        assert_eq!(LevelSet::from_json(&json!("1-2")), LevelSet::parse("1,2"));
        assert_eq!(LevelSet::from_json(&json!([])), Ok(LevelSet::NONE));
        for bad in [json!([-1]), json!(["1"]), json!({}), json!(null), json!(3)] {
            assert!(LevelSet::from_json(&bad).is_err(), "{bad}");
        }
    }
}
