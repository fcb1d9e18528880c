//! The Python client: its overhead over plain redis-py, how quickly `jsctl` starts, and a large fleet.
//!
//! The figures are taken by `client.py` beside this file, in the Python that `scripts/bench` made ready;
//! here are the real controller and agent that it talks to.

use crate::Options;
use anyhow::{Context, ensure};
use jstests::Stage;
use std::path::Path;
use std::process::Command;

/// Runs it.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let stage = Stage::start_secure();
    let python = std::env::var("JS_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(&python);
    command.arg(root.join("src/bin/bench/client.py"));
    command.args(["--redis", &stage.redis.url(), "--rounds", &options.rounds.to_string()]);
    if options.quick {
        command.arg("--quick");
    }
    let status = command.status().with_context(|| format!("{python} cannot be started"))?;
    ensure!(status.success(), "the measuring program ended with {status}");
    Ok(())
}
