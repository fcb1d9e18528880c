//! Signals by name and number.

use serde_json::Value;
use std::fmt;

/// A signal by its number. On Windows there are only those that end a process, and they all do it alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) i32);

const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ABRT", 6),
    ("KILL", 9),
    ("USR1", 10),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("WINCH", 28),
];

/// Those whose meaning is an end, unless a program says otherwise.
const ENDS: &[i32] = &[1, 2, 3, 6, 9, 15];

impl Signal {
    /// Please end.
    pub(crate) const TERM: Signal = Signal(15);
    /// End.
    pub(crate) const KILL: Signal = Signal(9);
    /// Continue after a stop.
    #[cfg(unix)]
    pub(crate) const CONT: Signal = Signal(18);

    /// Reads a name (`TERM`, `SIGTERM`, in any case) or a number.
    pub(crate) fn from_json(value: &Value) -> Result<Signal, String> {
        let named = |name: &str| {
            let name = name.to_ascii_uppercase();
            let name = name.strip_prefix("SIG").unwrap_or(&name);
            SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| Signal(*number))
        };
        let numbered =
            |number: i64| SIGNALS.iter().find(|(_, known)| i64::from(*known) == number).map(|(_, n)| Signal(*n));
        let found = match value {
            Value::String(text) => named(text).or_else(|| text.parse().ok().and_then(numbered)),
            Value::Number(number) => number.as_i64().and_then(numbered),
            _ => None,
        };
        let found = found
            .ok_or_else(|| format!("{value} is no signal; HUP, INT, QUIT, TERM, KILL, USR1, USR2, CONT, STOP… are"))?;
        // Nothing but an end can be told to a process there.
        if cfg!(windows) && !ENDS.contains(&found.0) {
            return Err(format!(
                "{found} cannot be sent on Windows; HUP, INT, QUIT, ABRT, TERM and KILL end a process"
            ));
        }
        Ok(found)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn signals_by_name_and_number() {
        for value in [json!("TERM"), json!("SIGTERM"), json!("sigterm"), json!(15), json!("15")] {
            assert_eq!(Signal::from_json(&value), Ok(Signal::TERM), "{value}");
        }
        assert_eq!(Signal(10).to_string(), "USR1");
        for value in [json!("NOPE"), json!(0), json!(99), json!(null), json!([]), json!("")] {
            assert!(Signal::from_json(&value).is_err(), "{value}");
        }
    }
}
