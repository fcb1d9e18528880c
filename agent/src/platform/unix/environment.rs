//! Variables of the environment that programs inherit.

/// The root of the file system.
pub(crate) const ROOT: &str = "/";

/// Whether an environment variable of this name says where programs are looked for.
pub(crate) fn is_path_variable(name: &str) -> bool {
    name == "PATH"
}

/// Whether a child inherits this variable of the agent's environment: a small set, and what `more` names.
pub(crate) fn is_inherited_variable(name: &str, more: &[String]) -> bool {
    matches!(name, "PATH" | "HOME" | "LANG" | "TZ" | "TMPDIR")
        || name.starts_with("LC_")
        || more.iter().any(|other| other == name)
}
