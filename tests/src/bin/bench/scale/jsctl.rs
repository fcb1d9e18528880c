//! `jsctl` on a terminal, where a Python with its libraries was made ready.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// The observations of one `jsctl`.
pub(super) struct Run {
    pub(super) seconds: f64,
    pub(super) megabytes: f64,
    /// Different numbers of returned nodes that its progress bar has shown.
    pub(super) steps: f64,
}

/// Runs `jsctl` with these words until it ends; `None` where `JS_PYTHON` is not set.
pub(super) fn run(redis_url: String, words: &[&str], nodes: u32) -> Result<Option<Run>> {
    let Some(python) = std::env::var_os("JS_PYTHON") else { return Ok(None) };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(&python);
    command.arg(root.join("src/bin/bench/scale/terminal.py")).args(words).args(["--timeout", "600"]);
    command.env("JSCTL_REDIS", redis_url).env("PYTHONPATH", root.join("../pyclient")).stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{python:?} cannot be started"))?;
    let seen: Value = serde_json::from_slice(&output.stdout).context("what the measuring program says")?;
    let number = |name: &str| seen[name].as_f64().with_context(|| format!("no {name} in {seen}"));
    ensure!(seen["code"] == 0 && number("ok")? == f64::from(nodes), "jsctl {words:?}: {seen}");
    Ok(Some(Run { seconds: number("seconds")?, megabytes: number("megabytes")?, steps: number("steps")? }))
}
