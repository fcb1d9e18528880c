//! The real agent as a process.

use crate::acc::Acc;
use crate::mounts::Mounts;
use crate::process::{Process, bin_of, code, log_level, sweep};
use crate::wait::LONG;
use nix::sys::signal::Signal;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Grid id.
    pub gid: u32,
    /// Node id.
    pub nid: u32,
    /// Its roles.
    pub roles: Vec<String>,
    /// Most jobs at once; nothing takes the default.
    pub max_jobs: Option<usize>,
    /// Another address of the controller than its own: that of something in between.
    pub via: Option<String>,
    /// More of its configuration, whole TOML tables.
    pub config: String,
    /// The folder of the program, when it is another build's.
    pub programs: Option<PathBuf>,
    /// More flags.
    pub args: Vec<String>,
    /// More of its environment, `JS_DIE_AT` for one.
    pub env: Vec<(String, String)>,
    /// File systems that the agent alone sees mounted.
    pub mounts: Mounts,
    /// Lines of a shell that becomes the agent; with its folder as `$1`.
    pub prelude: Option<String>,
}

impl Default for AgentOptions {
    fn default() -> AgentOptions {
        AgentOptions {
            gid: 1,
            nid: 10,
            roles: Vec::new(),
            max_jobs: None,
            via: None,
            config: String::new(),
            programs: None,
            args: Vec::new(),
            env: Vec::new(),
            mounts: Mounts::default(),
            prelude: None,
        }
    }
}

impl AgentOptions {
    /// Node 1:`nid`.
    pub fn nid(nid: u32) -> AgentOptions {
        AgentOptions { nid, ..AgentOptions::default() }
    }

    /// With these roles.
    pub fn roles(mut self, roles: &[&str]) -> AgentOptions {
        self.roles = roles.iter().map(|role| (*role).to_owned()).collect();
        self
    }

    /// With these TOML tables in its configuration.
    pub fn config(mut self, text: &str) -> AgentOptions {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// With `JS_DIE_AT=point`.
    pub fn dying_at(mut self, point: &str) -> AgentOptions {
        self.env.push(("JS_DIE_AT".to_owned(), point.to_owned()));
        self
    }
}

/// A running `jsagent`.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    options: AgentOptions,
    dir: TempDir,
}

impl Agent {
    /// Starts an agent of one controller, enrolled there when it asks for credentials.
    #[track_caller]
    pub fn start(acc: &Acc, options: AgentOptions) -> Agent {
        Agent::start_of(&[("main", &[acc])], options)
    }

    /// Starts an agent of several controllers: a name, and the addresses that are tried in turn.
    #[track_caller]
    pub fn start_of(controllers: &[(&str, &[&Acc])], options: AgentOptions) -> Agent {
        let dir = tempfile::Builder::new().prefix("js-agent-").tempdir().expect("a temporary folder");
        let quoted = |text: &str| serde_json::to_string(text).expect("a string as JSON, which TOML takes too");
        let mut text = String::from("[main]\n");
        let roles: Vec<String> = options.roles.iter().map(|role| quoted(role)).collect();
        let home = dir.path().join("data");
        let home = quoted(home.to_str().expect("a path in UTF-8"));
        writeln!(text, "gid = {}\nnid = {}", options.gid, options.nid).expect("write to a string");
        writeln!(text, "roles = [{}]\ndata_dir = {home}", roles.join(", ")).expect("write to a string");
        if let Some(max_jobs) = options.max_jobs {
            writeln!(text, "max_jobs = {max_jobs}").expect("write to a string");
        }
        for (name, accs) in controllers {
            let urls: Vec<String> = match &options.via {
                Some(url) => vec![quoted(url)],
                None => accs.iter().map(|acc| quoted(&acc.url())).collect(),
            };
            writeln!(text, "[controllers.{name}]\nurl = [{}]", urls.join(", ")).expect("write to a string");
            let first = accs.first().expect("an address for each controller");
            if first.needs_auth() {
                let enrolled = first.enroll_into(options.gid, options.nid, &dir.path().join(format!("creds-{name}")));
                // The token is enough; the certificate has tests of its own.
                let token = dir.path().join(format!("{name}.token"));
                fs::write(&token, &enrolled.token).expect("write the token");
                writeln!(text, "token_file = {}", quoted(&token.display().to_string())).expect("write to a string");
            }
            if let Some(ca) = first.ca() {
                writeln!(text, "ca = {}", quoted(&ca.display().to_string())).expect("write to a string");
            }
        }
        text.push_str(&options.config);
        fs::write(dir.path().join("agent.toml"), text).expect("write agent.toml");
        let process = Agent::launch(dir.path(), &options);
        Agent { process, options, dir }
    }

    #[track_caller]
    fn launch(dir: &Path, options: &AgentOptions) -> Process {
        let program = bin_of(options.programs.as_deref(), "jsagent");
        let mut command = match &options.prelude {
            Some(lines) => {
                let mut shell = Command::new("sh");
                let script = format!("{lines}\nshift; exec \"$@\"");
                shell.args(["-c", &script, "sh"]).arg(dir).arg(&program);
                shell
            }
            None => Command::new(&program),
        };
        command.arg("-c").arg(dir.join("agent.toml"));
        log_level(&mut command, &options.args);
        command.args(&options.args);
        command.env_remove("JS_DIE_AT").env_remove("JS_PANIC_AT").envs(options.env.iter().map(|(k, v)| (k, v)));
        options.mounts.apply(&mut command);
        Process::spawn(&mut command, &format!("jsagent-{}", options.nid), dir, Signal::SIGTERM)
    }

    /// Starts it again in the same folder, after it ended, without `JS_DIE_AT` and `JS_PANIC_AT`.
    #[track_caller]
    pub fn resume(&mut self) {
        self.options.env.retain(|(key, _)| !["JS_DIE_AT", "JS_PANIC_AT"].contains(&key.as_str()));
        let next = Agent::launch(self.dir.path(), &self.options);
        drop(std::mem::replace(&mut self.process, next));
    }

    /// Kills it with -9, and leaves its children as they are.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop (TERM), and returns its exit status; nothing when it had to be killed.
    pub fn stop(&mut self) -> Option<i32> {
        self.process.stop(LONG).map(code)
    }

    /// Waits for it to end by itself, and returns its exit status.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        code(self.process.wait(LONG).expect("jsagent was to end by itself"))
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.process.try_wait().is_some()
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("agent.toml")
    }

    /// A folder that lives as long as the agent, for what its jobs write.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Everything that it has logged.
    pub fn output(&self) -> String {
        self.process.output()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.stop(Duration::from_secs(8));
        sweep(&self.data_dir());
    }
}
