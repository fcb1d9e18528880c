//! The controller's settings: flags and a TOML file, which name the same things.
//!
//! Owns: names, types, defaults, and the sentence for every fault (in a file with its line; all at once).
//! Does not own: reading what the settings point at (`auth`, `redis`).
//! Read by `main` once; nothing in here changes afterwards.

pub mod redis_address;

use jscommon::directives::Directives;
use redis_address::Target;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// The fault of an escape that TOML does not know.
const BAD_ESCAPE: &str =
    "in \"…\" a backslash begins an escape, and this is none: write the text in single quotes, '…'";

/// Everything that can be set, with its default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Port of the web service (4000); 0 takes any that is free.
    pub port: u16,
    /// Address to listen on (0.0.0.0).
    pub bind: IpAddr,
    /// Where Redis is (localhost:6379).
    pub redis: Target,
    /// The CA of Redis' certificate, when it is none of the public ones.
    pub redis_ca: Option<PathBuf>,
    /// Where the CA, the server certificate and the node secret lie.
    pub state_dir: PathBuf,
    /// A server certificate of one's own, with the chain behind it.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// A CA whose client certificates hold beside those of the one in the state directory.
    pub client_ca: Option<PathBuf>,
    /// A node needs a client certificate, of `client_ca` where there is one; a token is not enough.
    pub require_client_cert: bool,
    /// Plain HTTP.
    pub insecure_http: bool,
    /// Nodes need no credentials.
    pub insecure_no_auth: bool,
    /// More names that the server certificate covers.
    pub hosts: Vec<String>,
    /// The file with the token that lets somebody read the metrics from afar.
    pub metrics_token_file: Option<PathBuf>,
    /// The file with the token that lets somebody read the nodes' figures alone.
    pub nodes_token_file: Option<PathBuf>,
    /// Paths that other accounts can change, or secrets that they can read, are taken all the same.
    pub insecure_paths: bool,
    /// The file of `-c`.
    pub file: Option<PathBuf>,
    /// That file holds the password of Redis.
    pub file_is_secret: bool,
    /// `insecure_paths` was a flag: then it holds for that file too.
    pub insecure_file: bool,
    /// The log level of each module.
    pub log_level: Directives,
    /// Most commands that may wait for one node.
    pub max_queue: usize,
    /// Most records a second, over a minute, that one node may send.
    pub max_records: u64,
    /// Most MiB of live output in Redis, of all controllers.
    pub stream_memory: u64,
    /// Seconds that a finished job and its unread results are kept.
    pub keep: u64,
    /// Warnings for the person who started this, each a sentence.
    pub warnings: Vec<String>,
}

/// A fault in a setting, and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Line in the file, from 1; nothing for a flag.
    pub(crate) line: Option<usize>,
    /// One sentence.
    pub(crate) message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// A setting's value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw {
    /// A flag's word, or a string of the file.
    Text(String),
    /// A number of the file.
    Number(i64),
    /// True or false of the file, or a flag without a word.
    Yes(bool),
    /// A list of strings of the file.
    List(Vec<String>),
}

impl Default for Config {
    fn default() -> Config {
        Config {
            port: 4000,
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            redis: Target::parse("localhost:6379").expect("the default is an address"),
            redis_ca: None,
            state_dir: default_state_dir(),
            tls_cert: None,
            tls_key: None,
            client_ca: None,
            require_client_cert: false,
            insecure_http: false,
            insecure_no_auth: false,
            hosts: Vec::new(),
            metrics_token_file: None,
            nodes_token_file: None,
            insecure_paths: false,
            file: None,
            file_is_secret: false,
            insecure_file: false,
            log_level: Directives::parse("info").expect("info is a level"),
            max_queue: 10_000,
            max_records: 5_000,
            stream_memory: 256,
            keep: 86_400,
            warnings: Vec::new(),
        }
    }
}

/// Settings whose flag takes no word.
pub(crate) const SWITCHES: [&str; 4] = ["require-client-cert", "insecure-http", "insecure-no-auth", "insecure-paths"];
/// Settings that take one.
const NAMES: &str = "port bind redis redis-ca state-dir tls-cert tls-key client-ca host metrics-token-file \
                     nodes-token-file log-level max-queue max-records stream-memory keep";

/// Whether a setting has this name.
pub(crate) fn is_setting(name: &str) -> bool {
    SWITCHES.contains(&name) || NAMES.split(' ').any(|known| known == name)
}

impl Config {
    /// Sets one setting by its flag's name. The error is a sentence.
    pub(crate) fn set(&mut self, name: &str, value: Raw) -> Result<(), String> {
        match name {
            "port" => self.port = number(name, value, 0, u16::MAX.into())? as u16,
            "bind" => {
                let word = text(name, value)?;
                let bare = word.strip_prefix('[').and_then(|w| w.strip_suffix(']')).unwrap_or(&word);
                self.bind = match bare {
                    "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    bare => bare.parse().map_err(|_| format!("bind is an IP address such as 0.0.0.0, not '{word}'"))?,
                }
            }
            "redis" => {
                let all = match value {
                    Raw::List(list) => list.join(","),
                    value => text(name, value)?,
                };
                self.redis = Target::parse(&all).map_err(|e| format!("redis: {e}"))?;
            }
            "redis-ca" => self.redis_ca = path(name, value)?,
            "state-dir" => {
                self.state_dir = path(name, value)?.ok_or("state-dir is a folder, not ''")?;
            }
            "tls-cert" => self.tls_cert = path(name, value)?,
            "tls-key" => self.tls_key = path(name, value)?,
            "client-ca" => self.client_ca = path(name, value)?,
            "require-client-cert" => self.require_client_cert = yes(name, value)?,
            "insecure-http" => self.insecure_http = yes(name, value)?,
            "insecure-no-auth" => self.insecure_no_auth = yes(name, value)?,
            "insecure-paths" => self.insecure_paths = yes(name, value)?,
            "host" => match value {
                Raw::List(hosts) => self.hosts = hosts,
                value => self.hosts.push(text(name, value)?),
            },
            "metrics-token-file" => self.metrics_token_file = path(name, value)?,
            "nodes-token-file" => self.nodes_token_file = path(name, value)?,
            "log-level" => self.log_level = Directives::parse(&text(name, value)?)?,
            "max-queue" => self.max_queue = number(name, value, 1, 1_000_000)? as usize,
            "max-records" => self.max_records = number(name, value, 1, 1_000_000_000)? as u64,
            "stream-memory" => self.stream_memory = number(name, value, 1, 1_048_576)? as u64,
            "keep" => self.keep = number(name, value, 60, 86_400)? as u64,
            _ => return Err(format!("unknown setting '{name}'")),
        }
        if self.hosts.iter().any(|host| !is_host(host)) {
            let bad = self.hosts.iter().find(|host| !is_host(host)).cloned().unwrap_or_default();
            self.hosts.retain(|host| is_host(host));
            return Err(format!("host is a name or an IP address, not '{bad}'"));
        }
        Ok(())
    }

    /// Reads the text of a file into `self`; every fault at once.
    pub(crate) fn read_toml(&mut self, source: &str) -> Result<(), Vec<Fault>> {
        let line_of = |at: usize| Some(source[..at.min(source.len())].matches('\n').count() + 1);
        let table = DeTable::parse(source).map_err(|e| {
            let line = e.span().and_then(|span| line_of(span.start));
            let message = match e.message().replace('\n', " ") {
                escape if escape.contains("escape") || escape.contains("unicode") => BAD_ESCAPE.to_owned(),
                other => other,
            };
            vec![Fault { line, message }]
        })?;
        let mut faults = Vec::new();
        for (key, value) in table.into_inner() {
            let line = line_of(key.span().start);
            let mut fault = |message: String| faults.push(Fault { line, message });
            let name = match key.get_ref().as_ref() {
                "hosts" => "host".to_owned(),
                name => name.replace('_', "-"),
            };
            if !is_setting(&name) {
                fault(format!("unknown setting '{}'", key.get_ref()));
                continue;
            }
            match raw(value.get_ref()) {
                None => fault(format!("{} takes no {}", key.get_ref(), value.get_ref().type_str())),
                Some(value) => {
                    if let Err(message) = self.set(&name, value) {
                        fault(message);
                    }
                }
            }
        }
        faults.sort_by_key(|fault| fault.line);
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Whether client certificates of the CA in the state directory hold, and are given to nodes. An
    /// operator who asks for certificates of another CA does not trust the holder of the state directory.
    pub(crate) fn trusts_own_ca(&self) -> bool {
        self.client_ca.is_none() || !self.require_client_cert
    }

    /// Refuses settings that exclude each other. The error is a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err("--tls-cert and --tls-key go together: give both or neither".into());
        }
        if self.insecure_http && (self.tls_cert.is_some() || self.client_ca.is_some() || self.require_client_cert) {
            return Err("--insecure-http has no certificates: leave out --tls-cert, --client-ca and --require-client-cert, or it".into());
        }
        if self.insecure_no_auth && self.require_client_cert {
            return Err("--insecure-no-auth and --require-client-cert contradict each other".into());
        }
        Ok(())
    }
}

fn raw(value: &DeValue<'_>) -> Option<Raw> {
    Some(match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => Raw::Number(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        DeValue::Boolean(yes) => Raw::Yes(*yes),
        DeValue::Array(list) => {
            let words: Vec<String> =
                list.iter().filter_map(|item| item.get_ref().as_str()).map(str::to_owned).collect();
            if words.len() != list.len() {
                return None;
            }
            Raw::List(words)
        }
        _ => return None,
    })
}

fn text(name: &str, value: Raw) -> Result<String, String> {
    match value {
        Raw::Text(text) => Ok(text),
        Raw::Number(_) => Err(format!("{name} is a string, not a number")),
        Raw::Yes(_) => Err(format!("{name} is a string, not true or false")),
        Raw::List(_) => Err(format!("{name} is a string, not a list")),
    }
}

fn path(name: &str, value: Raw) -> Result<Option<PathBuf>, String> {
    let text = text(name, value)?;
    if text.contains(char::is_control) {
        return Err(format!(
            "{name} holds a control character (\"{}\"): in \"…\" of TOML a backslash begins an escape; write the path \
             in single quotes",
            text.escape_debug()
        ));
    }
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

fn number(name: &str, value: Raw, least: i64, most: i64) -> Result<i64, String> {
    let (number, shown) = match value {
        Raw::Number(number) => (Some(number), number.to_string()),
        Raw::Text(text) => (text.parse().ok(), format!("'{text}'")),
        _ => (None, "that".to_owned()),
    };
    number
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("{name} is a whole number from {least} to {most}, not {shown}"))
}

fn yes(name: &str, value: Raw) -> Result<bool, String> {
    match value {
        Raw::Yes(yes) => Ok(yes),
        _ => Err(format!("{name} is true or false")),
    }
}

fn is_host(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok() || rustls_pki_types::DnsName::try_from(host).is_ok()
}

/// The state directory of a controller that root starts.
pub(crate) const ROOT_STATE_DIR: &str = "/var/lib/jsacc";

fn default_state_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from(ROOT_STATE_DIR);
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    data.or_else(home).unwrap_or_else(|| PathBuf::from(".")).join("jsacc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn faults(source: &str, want: &[&str]) {
        let found: Vec<String> =
            Config::default().read_toml(source).unwrap_err().iter().map(Fault::to_string).collect();
        assert_eq!(found, want, "{source}");
    }

    #[test]
    fn file_and_flags_give_the_same_settings() {
        let mut config = Config::default();
        config
            .read_toml(
                "port = 5000\nbind = \"::1\"\nredis = [\"a:1\", \"b:2\"]\nstate_dir = \"/x\"\ninsecure_http = true\n\
                 hosts = [\"ac.example\", \"10.0.0.1\"]\nlog-level = \"debug\"\ntls_cert = \"\"\n",
            )
            .unwrap();
        assert_eq!((config.port, config.bind.to_string().as_str()), (5000, "::1"));
        assert_eq!(config.redis.to_string(), "cluster a:1, b:2");
        assert_eq!(config.state_dir, PathBuf::from("/x"));
        assert!(config.insecure_http && config.tls_cert.is_none());
        assert_eq!(config.hosts, ["ac.example", "10.0.0.1"]);
    }

    #[test]
    fn every_fault_has_its_line() {
        faults(
            "port = 70000\n\nprot = 1\nbind = \"x\"\ninsecure_http = 1\nhosts = [1]\n[redis]\na = 1\n",
            &[
                "line 1: port is a whole number from 0 to 65535, not 70000",
                "line 3: unknown setting 'prot'",
                "line 4: bind is an IP address such as 0.0.0.0, not 'x'",
                "line 5: insecure-http is true or false",
                "line 6: hosts takes no array",
                "line 7: redis takes no table",
            ],
        );
        let text = "stream-memory is a whole number from 1 to 1048576, not 0";
        faults("stream_memory = 0\n", &[&format!("line 1: {text}")]);
        faults(
            "port = 1\nstate_dir = \"/a\\new\"\n",
            &[
                "line 2: state-dir holds a control character (\"/a\\new\"): in \"…\" of TOML a backslash begins an escape; \
              write the path in single quotes",
            ],
        );
        faults("port = 1\nstate_dir = \"/a\\q\\y\"\n", &[&format!("line 2: {BAD_ESCAPE}")]);
        let found = Config::default().read_toml("port = 1\nbind =\n").unwrap_err();
        assert_eq!(found[0].line, Some(2));
    }

    #[test]
    fn contradictory_settings_are_refused() {
        let check = |change: fn(&mut Config), want: &str| {
            let mut config = Config::default();
            change(&mut config);
            assert!(config.check().unwrap_err().contains(want));
        };
        check(|c| c.tls_cert = Some("x".into()), "--tls-key");
        check(|c| (c.insecure_http, c.require_client_cert) = (true, true), "--insecure-http");
        check(|c| (c.insecure_no_auth, c.require_client_cert) = (true, true), "contradict");
        assert_eq!(Config::default().check(), Ok(()));
    }
}
