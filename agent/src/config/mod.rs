//! The configuration of one agent: what it may hold, and the defaults.
//!
//! Owns the shape of every setting; [`parse`] knows the keys and [`read`] finds the faults. Does not
//! open files and knows no flags: `app` does both. Every module reads it, none changes it.

mod parse;
mod read;

pub(crate) use parse::{Overrides, address};

use jscommon::{LevelSet, NodeId};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything an agent was told.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Config {
    /// The node's identity and its data folder.
    pub(crate) main: Main,
    /// The controllers by name; one poller for each.
    pub(crate) controllers: BTreeMap<String, Controller>,
    /// Which messages of the jobs are kept, and which are forwarded.
    pub(crate) logging: Logging,
    /// Figures: how often they go out and where they come in.
    pub(crate) stats: Stats,
    /// Samples of the process trees.
    pub(crate) monitor: Monitor,
    /// Interpreters and folder of the jumpscripts.
    pub(crate) scripts: Scripts,
    /// Commands of the operator's own, by name.
    pub(crate) extensions: BTreeMap<String, Extension>,
    /// Jobs that run at every start of the agent, by name; the name is the job's id.
    pub(crate) startup: BTreeMap<String, Startup>,
}

/// `[main]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Main {
    /// Grid id, 1 or more.
    pub(crate) gid: u32,
    /// Node id, 1 or more, unique in its grid.
    pub(crate) nid: u32,
    /// The purposes of the node; commands can be addressed to roles.
    pub(crate) roles: Vec<String>,
    /// state.db, logs/, scripts/ and the lock of the one agent that owns it; an absolute path.
    pub(crate) data_dir: PathBuf,
    /// Processes that run at one time; more jobs wait in order.
    pub(crate) max_jobs: usize,
    /// Variables of the agent's own environment that every process inherits beside the small set.
    pub(crate) env: Vec<String>,
    /// Paths that other accounts can change are trusted all the same, see [`crate::trusted_paths`].
    pub(crate) insecure_paths: bool,
}

/// `[controllers.NAME]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Controller {
    /// Where it is; controllers of one Redis, tried in turn. Never empty, no slash at the end.
    pub(crate) urls: Vec<String>,
    /// The file that holds the node's token, mode 0600.
    pub(crate) token_file: Option<PathBuf>,
    /// The CA that signed the controller's certificate; none: the system's roots.
    pub(crate) ca: Option<PathBuf>,
    /// A client certificate in PEM.
    pub(crate) client_cert: Option<PathBuf>,
    /// Its private key in PEM.
    pub(crate) client_key: Option<PathBuf>,
}

/// `[logging]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Logging {
    /// `[logging.db]`: what goes into SQLite.
    pub(crate) db: LogDb,
    /// `[logging.ac]`: what goes to the controllers.
    pub(crate) ac: LogAc,
}

/// `[logging.db]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LogDb {
    /// The levels that are stored.
    pub(crate) levels: LevelSet,
    /// Size of one database, its WAL counted in, in MiB.
    pub(crate) max_size_mb: u64,
    /// Rotated databases that are kept; the oldest go first.
    pub(crate) keep: usize,
}

/// `[logging.ac]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LogAc {
    /// The levels that are forwarded.
    pub(crate) levels: LevelSet,
    /// Longest time that a record waits for its batch.
    pub(crate) flush_interval: Duration,
    /// Most records of a batch.
    pub(crate) batch_size: usize,
    /// The controllers by name; empty is all.
    pub(crate) controllers: Vec<String>,
}

/// `[stats]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stats {
    /// Time between flushes, aligned to the clock.
    pub(crate) interval: Duration,
    /// Also takes statsd over UDP here.
    pub(crate) listen: Option<SocketAddr>,
    /// The controllers by name; empty is all.
    pub(crate) controllers: Vec<String>,
}

/// `[monitor]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Monitor {
    /// Time between samples.
    pub(crate) interval: Duration,
}

/// `[scripts]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scripts {
    /// The Python interpreter.
    pub(crate) python: String,
    /// The Lua interpreter; empty is the built-in one.
    pub(crate) lua: String,
    /// Where scripts lie by domain and name; empty is `data_dir/jumpscripts`, see [`Config::script_path`].
    pub(crate) path: PathBuf,
}

/// `[extensions.NAME]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Extension {
    /// The program.
    pub(crate) binary: String,
    /// Its arguments; `{key}` is taken from the command's args.
    pub(crate) args: Vec<String>,
    /// Where it runs.
    pub(crate) cwd: Option<PathBuf>,
    /// Added to its environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Keys whose values may begin with `-`, as options do; `*` is every one.
    pub(crate) allow_options: Vec<String>,
}

/// `[startup.NAME]`.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Startup {
    /// The command's name.
    pub(crate) cmd: String,
    /// Its arguments.
    pub(crate) args: Map<String, Value>,
    /// Its data.
    pub(crate) data: String,
}

impl Default for Main {
    fn default() -> Main {
        Main {
            gid: 0,
            nid: 0,
            roles: Vec::new(),
            data_dir: default_data_dir(),
            max_jobs: 100,
            env: Vec::new(),
            insecure_paths: false,
        }
    }
}

impl Default for LogDb {
    fn default() -> LogDb {
        LogDb { levels: levels("1-9,20-23,30"), max_size_mb: 100, keep: 10 }
    }
}

impl Default for LogAc {
    fn default() -> LogAc {
        LogAc {
            levels: levels("3,4,7-9,30"),
            flush_interval: Duration::from_secs(5),
            batch_size: 1000,
            controllers: Vec::new(),
        }
    }
}

impl Default for Stats {
    fn default() -> Stats {
        Stats { interval: Duration::from_secs(60), listen: None, controllers: Vec::new() }
    }
}

impl Default for Monitor {
    fn default() -> Monitor {
        Monitor { interval: Duration::from_secs(30) }
    }
}

impl Default for Scripts {
    fn default() -> Scripts {
        let python = if cfg!(windows) { "python" } else { "python3" };
        Scripts { python: python.into(), lua: String::new(), path: PathBuf::new() }
    }
}

impl Main {
    /// The node's name.
    ///
    /// # Panics
    /// When gid or nid is 0, which no configuration that was read can hold.
    pub(crate) fn node(&self) -> NodeId {
        NodeId::new(self.gid, self.nid).expect("a configuration has both ids")
    }
}

impl Config {
    /// Where scripts lie by domain and name.
    pub(crate) fn script_path(&self) -> PathBuf {
        match self.scripts.path.as_os_str().is_empty() {
            true => self.main.data_dir.join("jumpscripts"),
            false => self.scripts.path.clone(),
        }
    }

    /// The names of the controllers that `chosen` names; empty is all.
    pub(crate) fn chosen(&self, chosen: &[String]) -> Vec<String> {
        self.controllers.keys().filter(|name| chosen.is_empty() || chosen.contains(name)).cloned().collect()
    }
}

fn levels(text: &str) -> LevelSet {
    LevelSet::parse(text).unwrap_or(LevelSet::NONE)
}

fn default_data_dir() -> PathBuf {
    if cfg!(windows) {
        let base = std::env::var_os("ProgramData").unwrap_or_else(|| "C:\\ProgramData".into());
        PathBuf::from(base).join("jsagent")
    } else {
        PathBuf::from("/var/lib/jsagent")
    }
}
