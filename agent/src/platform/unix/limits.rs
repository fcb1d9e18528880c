//! Resource limits by name.

use nix::sys::resource::{RLIM_INFINITY, Resource};
use serde_json::Value;

/// The limits that can be set, by name.
const LIMITS: &[(&str, Resource)] = &[
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

/// A resource limit for a child.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limit {
    /// Its name in lower case without `RLIMIT_`.
    pub(crate) name: &'static str,
    pub(crate) resource: Resource,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl Limit {
    /// Reads a limit: its name in lower case without `RLIMIT_`, and a number, `"unlimited"`, or a list
    /// of the soft and the hard limit.
    pub(crate) fn new(name: &str, value: &Value) -> Result<Limit, String> {
        let Some((name, resource)) = LIMITS.iter().find(|(known, _)| *known == name).copied() else {
            let known: Vec<&str> = LIMITS.iter().map(|(known, _)| *known).collect();
            return Err(format!("'{name}' is none of {}", known.join(", ")));
        };
        let one = |value: &Value| match value {
            Value::String(text) if text == "unlimited" || text == "infinity" => Ok(RLIM_INFINITY),
            Value::Number(number) if number.as_i64() == Some(-1) => Ok(RLIM_INFINITY),
            Value::Number(number) if number.as_u64().is_some() => Ok(number.as_u64().unwrap_or(0)),
            other => Err(format!("{name} must be a whole number or \"unlimited\", not {other}")),
        };
        let (soft, hard) = match value {
            Value::Array(pair) if pair.len() == 2 => (one(&pair[0])?, one(&pair[1])?),
            value => (one(value)?, one(value)?),
        };
        match soft <= hard {
            true => Ok(Limit { name, resource, soft, hard }),
            false => Err(format!("{name}: the soft limit {soft} is above the hard limit {hard}")),
        }
    }
}

/// Whether a common argument that not every system knows can be used here: every one.
pub(crate) fn supports(_arg: &str) -> Result<(), String> {
    Ok(())
}
