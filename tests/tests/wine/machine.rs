//! A Windows machine: wine's prefix, the program in it, and an agent as a process.

use jstests::process::{Output, Process};
use jstests::{Acc, run_with};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run scripts/test windows")).into()
}

/// `jsagent.exe` under wine.
fn command() -> Command {
    let mut command = Command::new(variable("JS_WINE"));
    command.arg(program()).env("WINEDEBUG", "-all").env("WINEDLLOVERRIDES", "mscoree,mshtml=").env_remove("DISPLAY");
    command
}

fn program() -> PathBuf {
    variable("JS_WINDOWS_AGENT").join("jsagent.exe")
}

/// Runs `jsagent.exe` to its end.
#[track_caller]
pub(crate) fn windows(args: &[&str]) -> Output {
    run_with(command().args(args))
}

/// A path of this system as Windows' programs see it.
pub(crate) fn drive(path: &Path) -> String {
    format!("Z:{}", path.to_str().expect("a path in UTF-8").replace('/', "\\"))
}

/// A file of a folder.
pub(crate) fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(name)
}

/// An agent of node 1:10 that runs in the foreground.
pub(crate) struct Node {
    process: Process,
    dir: TempDir,
}

impl Node {
    /// Enrols it at a controller and starts it, with more TOML tables.
    #[track_caller]
    pub(crate) fn start(acc: &Acc, config: &str) -> Node {
        let dir = tempfile::Builder::new().prefix("js-wine-").tempdir().expect("a temporary folder");
        let enrolled = acc.enroll_into(1, 10, &dir.path().join("credentials"));
        let token = dir.path().join("token");
        fs::write(&token, &enrolled.token).expect("write the token");
        let quoted = |path: &Path| serde_json::Value::from(drive(path)).to_string();
        let text = format!(
            "[main]\ngid = 1\nnid = 10\ndata_dir = {}\n[controllers.main]\nurl = \"{}\"\ntoken_file = {}\nca = {}\n{config}",
            quoted(&dir.path().join("data")),
            acc.url(),
            quoted(&token),
            quoted(&enrolled.ca),
        );
        fs::write(dir.path().join("agent.toml"), text).expect("write agent.toml");
        Node { process: launch(dir.path()), dir }
    }

    /// Its program.
    pub(crate) fn program(&self) -> PathBuf {
        program()
    }

    /// A folder that goes with it.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Its data folder.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after `kill`.
    #[track_caller]
    pub(crate) fn resume(&mut self) {
        self.process = launch(self.dir.path());
    }
}

/// The processes whose command line has a word: wine's are this system's too, and no word of the
/// environment tells them, for that is wine's alone.
pub(crate) fn processes_with(word: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let lines = entries.flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(word)).collect()
}

fn launch(dir: &Path) -> Process {
    let mut command = command();
    command.arg("-c").arg(drive(&dir.join("agent.toml"))).args(["--log-level", "info"]);
    Process::spawn(&mut command, "jsagent", dir, Signal::SIGKILL)
}

/// Keeps wine's machine up: it goes down, services and all, when nobody uses it.
pub(crate) struct Session(std::process::Child);

impl Session {
    /// A command interpreter that waits for a word.
    pub(crate) fn open() -> Session {
        let mut command = Command::new(variable("JS_WINE"));
        command.args(["cmd", "/c", "pause"]).env("WINEDEBUG", "-all").env_remove("DISPLAY");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Session(command.spawn().expect("wine starts"))
    }

    /// `%ProgramData%`.
    pub(crate) fn program_data(&self) -> PathBuf {
        variable("WINEPREFIX").join("drive_c/ProgramData")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        std::thread::sleep(Duration::from_millis(100));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
