//! The same through `jsctl` and, beside it, through ssh to a server of its own.

use anyhow::{Context, Result, ensure};
use jstests::redis_server::free_port;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Returns `jsctl` with these words, on this Redis; nothing where no Python was made ready for it.
pub(super) fn jsctl(redis_url: &str, words: &[&str]) -> Option<Command> {
    let mut command = python(redis_url)?;
    command.args(["-m", "jsclient.cli"]).args(words);
    Some(command)
}

/// Returns how long keys took to be shown in `jsctl shell`, in milliseconds.
pub(super) fn echo(redis_url: &str, node: &str, count: usize) -> Result<Option<Vec<f64>>> {
    let Some(mut command) = python(redis_url) else { return Ok(None) };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/bench/stream/echo.py");
    let output = command.arg(script).args([node, &count.to_string()]).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the shell: {}", output.status);
    Ok(Some(serde_json::from_slice(&output.stdout).context("the delays")?))
}

fn python(redis_url: &str) -> Option<Command> {
    let mut command = Command::new(std::env::var_os("JS_PYTHON")?);
    command.env("JSCTL_REDIS", redis_url).stdin(Stdio::null());
    command.env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("../pyclient"));
    Some(command)
}

/// Runs a program and returns its megabytes of stdout a second, start and end included.
pub(super) fn speed(mut command: Command, bytes: usize) -> Result<f64> {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let (mut out, mut buffer, mut count) = (child.stdout.take().context("a pipe")?, vec![0; 1 << 16], 0);
    loop {
        match out.read(&mut buffer)? {
            0 => break,
            read => count += read,
        }
    }
    let status = child.wait()?;
    ensure!(status.success() && count == bytes, "{count} of {bytes} bytes, and {status}");
    Ok(count as f64 / 1e6 / start.elapsed().as_secs_f64())
}

/// A server of ssh on loopback, with keys of its own.
pub(super) struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Sshd {
    /// Starts it; nothing where there is none on this machine.
    pub(super) fn start() -> Result<Option<Sshd>> {
        let program = Path::new("/usr/sbin/sshd");
        if !program.exists() {
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        for key in ["host", "user"] {
            let mut command = Command::new("ssh-keygen");
            ensure!(
                command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(key)).status()?.success(),
                "ssh-keygen"
            );
        }
        fs::copy(path("user.pub"), path("authorized_keys"))?;
        let port = free_port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized_keys\n\
             StrictModes no\nUsePAM no\nPidFile none\n",
            dir.path().display()
        );
        fs::write(path("config"), config)?;
        // Its unprivileged part is locked into this folder.
        fs::create_dir_all("/run/sshd")?;
        let mut command = Command::new(program);
        command.args(["-D", "-f"]).arg(path("config")).stderr(Stdio::null());
        let sshd = Sshd { child: command.spawn()?, dir, port };
        let end = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < end, "sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(sshd))
    }

    /// Returns the client with these words.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        let known = format!("UserKnownHostsFile={}", self.dir.path().join("known").display());
        command.args([
            "-q",
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            &known,
            "-p",
            &self.port.to_string(),
        ]);
        command.arg("-i").arg(self.dir.path().join("user")).arg("127.0.0.1").args(words).stdin(Stdio::null());
        command
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
