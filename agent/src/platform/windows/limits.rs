//! Resource limits: Windows has none by these names.

use serde_json::Value;

/// A resource limit: there are none by these names here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limit {
    /// Its name.
    pub(crate) name: &'static str,
}

impl Limit {
    /// Refuses every limit.
    pub(crate) fn new(name: &str, _value: &Value) -> Result<Limit, String> {
        Err(format!("'{name}' cannot be limited on Windows"))
    }
}

/// Refuses a common argument that only other systems know.
pub(crate) fn supports(arg: &str) -> Result<(), String> {
    Err(format!("{arg} cannot be set on Windows"))
}
