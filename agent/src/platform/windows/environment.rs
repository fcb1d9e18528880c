//! Variables of the environment that programs inherit.

/// The root of the file system.
pub(crate) const ROOT: &str = "C:\\";

/// Whether an environment variable of this name says where programs are looked for.
pub(crate) fn is_path_variable(name: &str) -> bool {
    name.eq_ignore_ascii_case("PATH")
}

/// The variables that programs need on Windows, and that a child inherits of the agent's environment.
const INHERITED: [&str; 30] = [
    "ALLUSERSPROFILE",
    "APPDATA",
    "CommonProgramFiles",
    "CommonProgramFiles(x86)",
    "CommonProgramW6432",
    "COMPUTERNAME",
    "COMSPEC",
    "DriverData",
    "HOME",
    "HOMEDRIVE",
    "HOMEPATH",
    "LANG",
    "LOCALAPPDATA",
    "NUMBER_OF_PROCESSORS",
    "OS",
    "PATH",
    "PATHEXT",
    "PROCESSOR_ARCHITECTURE",
    "ProgramData",
    "ProgramFiles",
    "ProgramFiles(x86)",
    "ProgramW6432",
    "PUBLIC",
    "SystemDrive",
    "SystemRoot",
    "TEMP",
    "TMP",
    "TZ",
    "USERPROFILE",
    "windir",
];

/// Whether a child inherits this variable of the agent's environment: a small set, and what `more` names.
pub(crate) fn is_inherited_variable(name: &str, more: &[String]) -> bool {
    INHERITED.iter().any(|known| known.eq_ignore_ascii_case(name))
        || more.iter().any(|other| other.eq_ignore_ascii_case(name))
}
