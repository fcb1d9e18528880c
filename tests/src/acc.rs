//! The real controller as a process.

use crate::node::FakeNode;
use crate::process::{Output, Process, bin_of, log_level, run_with};
use crate::redis_server::{Redis, free_port};
use crate::wait::{LONG, wait_for};
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// How a controller is started; the default is plain HTTP and no credentials.
#[derive(Clone, Debug, Default)]
pub struct AccOptions {
    /// HTTPS with a certificate that it makes itself.
    pub tls: bool,
    /// Nodes need a token or a certificate.
    pub auth: bool,
    /// A state directory shared with another controller; else one of its own.
    pub state_dir: Option<PathBuf>,
    /// The folder of the program, when it is another build's.
    pub programs: Option<PathBuf>,
    /// More flags.
    pub args: Vec<String>,
    /// More of its environment, `JS_DIE_AT` for one.
    pub env: Vec<(String, String)>,
}

impl AccOptions {
    /// HTTPS and credentials, as in real life.
    pub fn secure() -> AccOptions {
        AccOptions { tls: true, auth: true, ..AccOptions::default() }
    }

    /// Credentials, over plain HTTP.
    pub fn with_auth() -> AccOptions {
        AccOptions { auth: true, ..AccOptions::default() }
    }

    /// With `JS_DIE_AT=point`.
    pub fn dying_at(point: &str) -> AccOptions {
        AccOptions { env: vec![("JS_DIE_AT".to_owned(), point.to_owned())], ..AccOptions::default() }
    }

    /// With `JS_PANIC_AT=point`: the thread that passes there panics.
    pub fn panicking_at(point: &str) -> AccOptions {
        AccOptions { env: vec![("JS_PANIC_AT".to_owned(), point.to_owned())], ..AccOptions::default() }
    }
}

/// A running `jsacc`.
#[derive(Debug)]
pub struct Acc {
    process: Process,
    options: AccOptions,
    redis_url: String,
    port: u16,
    dir: Arc<TempDir>,
}

/// The files that `jsacc enroll` wrote for one node.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// The folder that was given as `--out`.
    pub dir: PathBuf,
    /// The text of its `agent.toml`.
    pub config: String,
    /// The node's token.
    pub token: String,
    /// The CA certificate, PEM.
    pub ca: PathBuf,
    /// The client certificate and its key, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl Acc {
    /// Starts a controller on a free port and waits until `/health` says that all is well.
    #[track_caller]
    pub fn start(redis: &Redis, options: AccOptions) -> Acc {
        Acc::start_at(&redis.url(), options)
    }

    /// As `start`, with the address of a Redis.
    #[track_caller]
    pub fn start_at(redis_url: &str, options: AccOptions) -> Acc {
        let dir = Arc::new(tempfile::Builder::new().prefix("js-acc-").tempdir().expect("a temporary folder"));
        // Another process may take the port between the look and the bind; then the next one is tried.
        for _ in 0..5 {
            let mut acc = Acc::of(redis_url, &options, free_port(), &dir);
            if acc.ready() {
                return acc;
            }
            let output = acc.process.output();
            acc.process.quiet = true;
            assert!(output.contains("in use"), "jsacc ended at its start: {output}");
        }
        panic!("no free port after five tries");
    }

    /// Starts a controller and does not wait: it may be meant to fail or to die.
    #[track_caller]
    pub fn start_unready(redis_url: &str, options: AccOptions) -> Acc {
        let dir = Arc::new(tempfile::Builder::new().prefix("js-acc-").tempdir().expect("a temporary folder"));
        Acc::of(redis_url, &options, free_port(), &dir)
    }

    #[track_caller]
    fn of(redis_url: &str, options: &AccOptions, port: u16, dir: &Arc<TempDir>) -> Acc {
        let process = launch(redis_url, options, port, dir.path());
        Acc { process, options: options.clone(), redis_url: redis_url.to_owned(), port, dir: dir.clone() }
    }

    /// Waits until it answers; false when it ended before that.
    fn ready(&mut self) -> bool {
        wait_for("jsacc answers /health with 200", LONG, || {
            if self.process.try_wait().is_some() {
                return Some(false);
            }
            // The CA is there before the port is open.
            std::net::TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            (self.anonymous().get("/health").status == 200).then_some(true)
        })
    }

    /// Kills it with -9.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop, and returns its exit status; nothing when it had to be killed.
    pub fn stop(&mut self) -> Option<i32> {
        self.process.stop(LONG).map(crate::process::code)
    }

    /// Waits for it to end by itself, and returns its exit status.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let status = self.process.wait(LONG).expect("jsacc was to end by itself");
        crate::process::code(status)
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.process.try_wait().is_some()
    }

    /// Starts it again where it was, after `kill` or `stop`, without `JS_DIE_AT` and `JS_PANIC_AT`.
    #[track_caller]
    pub fn resume(&mut self) {
        self.resume_unready();
        assert!(self.ready(), "jsacc ended at its second start: {}", self.process.output());
    }

    /// As `resume`, without waiting until it answers.
    #[track_caller]
    pub fn resume_unready(&mut self) {
        let mut options = self.options.clone();
        options.env.retain(|(key, _)| !["JS_DIE_AT", "JS_PANIC_AT"].contains(&key.as_str()));
        self.process = launch(&self.redis_url, &options, self.port, self.dir.path());
        self.options = options;
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address for nodes.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.options.tls { "https" } else { "http" }, self.port)
    }

    /// The Redis that it works on.
    pub fn redis_url(&self) -> &str {
        &self.redis_url
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.options.state_dir.clone().unwrap_or_else(|| self.dir.path().join("state"))
    }

    /// The CA of its certificate, where it speaks TLS.
    pub fn ca(&self) -> Option<PathBuf> {
        self.options.tls.then(|| self.state_dir().join("ca.pem"))
    }

    /// Whether nodes need credentials.
    pub fn needs_auth(&self) -> bool {
        self.options.auth
    }

    /// Everything that it has logged.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Runs `jsacc <args>` beside it: same Redis, same state directory.
    #[track_caller]
    pub fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(bin_of(self.options.programs.as_deref(), "jsacc"));
        command.args(args).args(["-r", &self.redis_url]).arg("--state-dir").arg(self.state_dir());
        run_with(&mut command)
    }

    /// Runs `jsacc enroll` for a node, into a folder of its own.
    #[track_caller]
    pub fn enroll(&self, gid: u32, nid: u32) -> Enrolled {
        let dir = self.dir.path().join(format!("enrolled-{gid}-{nid}"));
        self.enroll_into(gid, nid, &dir)
    }

    /// Runs `jsacc enroll` for a node, into `dir`.
    #[track_caller]
    pub fn enroll_into(&self, gid: u32, nid: u32, dir: &Path) -> Enrolled {
        let (gid, nid) = (gid.to_string(), nid.to_string());
        let out = dir.to_str().expect("a path in UTF-8");
        let done = self.command(&["enroll", &gid, &nid, "--url", &self.url(), "--out", out]);
        assert_eq!(done.code, 0, "jsacc enroll failed: {}", done.stderr);
        Enrolled::read(dir)
    }

    /// A node without credentials.
    pub fn anonymous(&self) -> FakeNode {
        FakeNode::new(&self.url(), self.ca().as_deref(), 1, 1, None)
    }

    /// A node with the credentials that this controller wants.
    #[track_caller]
    pub fn node(&self, gid: u32, nid: u32) -> FakeNode {
        let token = self.options.auth.then(|| self.enroll(gid, nid).token);
        FakeNode::new(&self.url(), self.ca().as_deref(), gid, nid, token)
    }
}

impl Drop for Acc {
    fn drop(&mut self) {
        // Its socket towards the backend and such go with an orderly end; a test does not wait long.
        self.process.stop(Duration::from_secs(5));
    }
}

impl Enrolled {
    /// Reads what lies in a folder that `enroll` wrote.
    #[track_caller]
    pub fn read(dir: &Path) -> Enrolled {
        let config = fs::read_to_string(dir.join("agent.toml")).expect("agent.toml of an enrolled node");
        let parsed: toml::Table = config.parse().expect("agent.toml is TOML");
        let controllers = parsed["controllers"].as_table().expect("controllers in agent.toml");
        let controller = controllers.values().next().expect("a controller in agent.toml");
        let path = |key: &str| Some(PathBuf::from(controller.get(key)?.as_str().filter(|p| !p.is_empty())?));
        let token = fs::read_to_string(path("token_file").expect("token_file")).expect("the token");
        let client = path("client_cert").zip(path("client_key"));
        Enrolled { dir: dir.to_owned(), config, token: token.trim().to_owned(), ca: path("ca").expect("ca"), client }
    }
}

#[track_caller]
fn launch(redis_url: &str, options: &AccOptions, port: u16, dir: &Path) -> Process {
    let mut command = Command::new(bin_of(options.programs.as_deref(), "jsacc"));
    command.args(["-b", "127.0.0.1", "-p", &port.to_string(), "-r", redis_url]);
    command.arg("--state-dir").arg(options.state_dir.clone().unwrap_or_else(|| dir.join("state")));
    if !options.tls {
        command.arg("--insecure-http");
    }
    if !options.auth {
        command.arg("--insecure-no-auth");
    }
    log_level(&mut command, &options.args);
    command.args(&options.args).env_remove("JS_DIE_AT").env_remove("JS_PANIC_AT");
    command.envs(options.env.iter().map(|(k, v)| (k, v)));
    Process::spawn(&mut command, "jsacc", dir, Signal::SIGTERM)
}
