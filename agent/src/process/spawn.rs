//! What a process is started from, and the only place that starts one.

use std::path::PathBuf;

/// A process to start. What the common arguments ask for (user, limits, nice) the supervisor adds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Added to the agent's environment, over what every child sees.
    pub env: Vec<(String, String)>,
    /// Where it runs; nothing is the agent's own folder.
    pub cwd: Option<PathBuf>,
    /// Given to it on stdin, which is then closed.
    pub stdin: Vec<u8>,
}
