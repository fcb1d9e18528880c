//! The command line of `jsacc`. Pure but for reading the file of `-c`.
//!
//! Owns: flags, subcommands, help. Does not own: what settings mean (`config`), or doing anything.

use crate::auth::enrolment::Terms;
use crate::config::{self, Config, Raw};
use jscommon::NodeId;
use jscommon::node::is_role;
use lexopt::{Arg, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// The outcome of reading the command line.
#[derive(Clone, Debug)]
pub enum Invocation {
    /// Print this and end.
    Print(String),
    /// Be a controller.
    Serve(Box<Config>),
    /// Do one thing and end.
    Do(Box<Config>, Task),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Write what one node needs.
    Enroll {
        /// The node.
        node: NodeId,
        /// Where the node reaches the controller.
        url: Option<String>,
        /// Where to write.
        out: Option<PathBuf>,
        /// The granted claims: `role:web`, `label:site=ams`.
        named: Vec<String>,
    },
    /// Refuse what a node holds by now.
    Revoke(NodeId),
    /// Make a new node secret.
    Rotate,
    /// Print an enrolment token.
    Token {
        /// How many nodes may use it.
        uses: u64,
        /// For how many seconds.
        ttl: u64,
        /// For which node, and what it grants.
        terms: Terms,
    },
}

const HELP: &str = "\
jsacc - the controller: hands commands from Redis to nodes over HTTPS, and their results back

usage: jsacc [flags]                             run a controller
       jsacc enroll GID NID [--url URL] [--out DIR] [--role R]... [--label K=V]...
                                                 write what one node needs into DIR
       jsacc revoke GID NID                      refuse the credentials that this node has by now
       jsacc rotate                              make a new node secret; the old one holds for another day
       jsacc token [--uses 1] [--ttl 1h] [--node GID.NID [--replace]]
                   [--role R]... [--label K=V]...
                                                 print an enrolment token for `jsagent enroll`; with --replace
                                                 it ends the credentials that this node has by now

--role and --label grant a node what it may be a target by; without them the roles and labels of its first
start are granted.

  -p, --port PORT            port of the web service (4000)
  -b, --bind ADDRESS         address to listen on (0.0.0.0)
  -r, --redis REDIS          host:port, redis://user:pw@host:port/db, rediss://..., unix:///path,
                             a,b,c for a cluster, sentinel://host,host/group
                             (sentinels:// over TLS; localhost:6379)
      --redis-ca FILE        the CA of Redis' certificate, when it is none of the public ones
      --state-dir DIR        the CA, the server certificate and the node secret; made by the first
                             start of a controller
      --host NAME            one more name or address that the server certificate covers
      --tls-cert FILE        server certificate with its chain, instead of one made by jsacc
      --tls-key FILE         key of --tls-cert
      --client-ca FILE       CA whose client certificates are accepted too
      --require-client-cert  a node needs a client certificate, a token is not enough; with --client-ca
                             it needs one of that CA
      --metrics-token-file FILE
                             file of a token that allows reading /metrics from other hosts
      --nodes-token-file FILE
                             file of a token that allows reading /metrics/nodes only
      --insecure-http        plain HTTP, for use behind a TLS proxy and in tests
      --insecure-no-auth     accept nodes without a token
      --insecure-paths       take a state directory and files that other accounts of this machine
                             can change, and keys that they can read
      --max-queue N          most commands that may wait for one node (10000)
      --max-records N        most records a second that one node may send (5000)
      --stream-memory MIB    most MiB of live output in Redis, of all controllers together (256)
      --keep SECONDS         for how long a finished job and its unread results stay in Redis (86400)
  -c, --config FILE          the same settings as TOML (state_dir = \"...\"); a flag wins over the file
      --log-level LEVEL      off, error, warn, info, debug, trace, or module=level,... (info)
  -h, --help
  -V, --version
";

/// Reads the command line. The error is one line that says what is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, String> {
    let mut parser = Parser::from_args(args);
    let mut settings: Vec<(String, Raw)> = Vec::new();
    let mut file: Option<PathBuf> = None;
    let mut words: Vec<String> = Vec::new();
    let mut flags = TaskFlags::default();
    while let Some(arg) = parser.next().map_err(|e| e.to_string())? {
        let name = match arg {
            Arg::Value(word) => {
                words.push(word.into_string().map_err(|_| "an argument is no UTF-8".to_owned())?);
                continue;
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(Invocation::Print(HELP.into())),
            Arg::Short('V') | Arg::Long("version") => {
                return Ok(Invocation::Print(format!("jsacc {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Arg::Short('p') => "port".to_owned(),
            Arg::Short('b') => "bind".to_owned(),
            Arg::Short('r') => "redis".to_owned(),
            Arg::Short('c') => "config".to_owned(),
            Arg::Short(c) => return Err(format!("unknown flag -{c} (see --help)")),
            Arg::Long(name) => name.to_owned(),
        };
        let mut word = || -> Result<String, String> {
            let value = parser.value().map_err(|_| format!("--{name} needs a value"))?;
            value.into_string().map_err(|_| format!("the value of --{name} is no UTF-8"))
        };
        match name.as_str() {
            "config" => file = Some(word()?.into()),
            "replace" => flags.terms.replace = true,
            "url" | "out" | "role" | "label" | "node" | "uses" | "ttl" => flags.set(&name, word()?)?,
            switch if config::SWITCHES.contains(&switch) => settings.push((name, Raw::Yes(true))),
            setting if config::is_setting(setting) => {
                let value = word()?;
                settings.push((name, Raw::Text(value)));
            }
            _ => return Err(format!("unknown flag --{name} (see --help)")),
        }
    }
    let config = Box::new(read_config(file, settings)?);
    Ok(match flags.task(&words)? {
        None => Invocation::Serve(config),
        Some(task) => Invocation::Do(config, task),
    })
}

/// The settings of the environment, of the file, and of the flags, each before the next.
fn read_config(file: Option<PathBuf>, settings: Vec<(String, Raw)>) -> Result<Config, String> {
    let mut config = Config::default();
    if let Ok(level) = std::env::var("RUST_LOG") {
        // A word for another program's logger is no reason not to start.
        let _ = config.set("log-level", Raw::Text(level));
    }
    if let Some(file) = &file {
        let bytes = jscommon::file::read_any(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let text = jscommon::text::decode(bytes).map_err(|e| format!("{}: {e}", file.display()))?;
        config.read_toml(&text).map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(|fault| format!("{}: {fault}", file.display())).collect();
            faults.join("; ")
        })?;
    }
    let is_given = |flag: &str| settings.iter().any(|(name, _)| name == flag);
    let redis_given = is_given("redis");
    config.insecure_file = is_given("insecure-paths");
    if is_given("host") {
        config.hosts.clear();
    }
    for (name, value) in settings {
        config.set(&name, value)?;
    }
    config.check()?;
    config.file_is_secret = config.redis.has_password() && !redis_given;
    if config.redis.has_password() && redis_given {
        config.warnings.push(
            "the password of redis stands on the command line, where every user of this machine can read it: put \
             redis = \"...\" into the file of -c"
                .into(),
        );
    }
    config.file = file;
    Ok(config)
}

/// The flags of the subcommands.
#[derive(Default)]
struct TaskFlags {
    url: Option<String>,
    out: Option<PathBuf>,
    uses: Option<u64>,
    ttl: Option<u64>,
    terms: Terms,
}

impl TaskFlags {
    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        match name {
            "url" => self.url = Some(value),
            "out" => self.out = Some(value.into()),
            "role" => {
                if !is_role(&value) {
                    return Err(format!("--role is 1 to 64 of A-Z a-z 0-9 . _ : / -, not '{value}'"));
                }
                self.terms.named.push(format!("role:{value}"));
            }
            "label" => {
                if !value.split_once('=').is_some_and(|(name, value)| is_role(name) && is_role(value)) {
                    return Err(format!("--label is NAME=VALUE, each 1 to 64 of A-Z a-z 0-9 . _ : / -, not '{value}'"));
                }
                self.terms.named.push(format!("label:{value}"));
            }
            "node" => {
                let node = value.replacen('.', ":", 1).parse().ok();
                let node = node.ok_or(format!("--node is GID.NID, whole numbers of 1 or more, not '{value}'"))?;
                self.terms.node = Some(node);
            }
            "uses" => {
                let number = value.parse().ok().filter(|n| (1..=1_000_000).contains(n));
                self.uses = Some(number.ok_or(format!("--uses is a whole number from 1 to 1000000, not '{value}'"))?);
            }
            _ => {
                let time = seconds(&value).ok_or(format!("--ttl is a time such as 30m, 1h or 7d, not '{value}'"))?;
                self.ttl = Some(time);
            }
        }
        Ok(())
    }

    /// The subcommand with its flags; nothing for a controller.
    fn task(self, words: &[String]) -> Result<Option<Task>, String> {
        let TaskFlags { url, out, uses, ttl, terms } = self;
        let mut words = words.iter().map(String::as_str);
        let name = words.next();
        if (url.is_some() || out.is_some()) && name != Some("enroll") {
            return Err("--url and --out belong to `jsacc enroll`".into());
        }
        let is_for_token = uses.is_some() || ttl.is_some() || terms.node.is_some() || terms.replace;
        if is_for_token && name != Some("token") {
            return Err("--uses, --ttl, --node and --replace belong to `jsacc token`".into());
        }
        if terms.replace && terms.node.is_none() {
            return Err(
                "--replace needs --node GID.NID: a token for any node must not end the credentials of one".into()
            );
        }
        if !terms.named.is_empty() && !matches!(name, Some("enroll" | "token")) {
            return Err("--role and --label belong to `jsacc enroll` and `jsacc token`".into());
        }
        if let Some(url) = url.as_deref().filter(|url| !is_url(url)) {
            return Err(format!("--url is https://host:port, with a port from 1 to 65535, not '{url}'"));
        }
        let mut node = |task: &str| -> Result<NodeId, String> {
            match (words.next(), words.next()) {
                (Some(gid), Some(nid)) => format!("{gid}:{nid}")
                    .parse()
                    .map_err(|_| format!("GID and NID are whole numbers of 1 or more, not '{gid}' and '{nid}'")),
                _ => Err(format!("jsacc {task} needs GID and NID")),
            }
        };
        let task = match name {
            None => return Ok(None),
            Some("enroll") => Task::Enroll { node: node("enroll")?, url, out, named: terms.named },
            Some("revoke") => Task::Revoke(node("revoke")?),
            Some("rotate") => Task::Rotate,
            Some("token") => Task::Token { uses: uses.unwrap_or(1), ttl: ttl.unwrap_or(3600), terms },
            Some(other) => {
                return Err(format!("unknown command '{other}': enroll, revoke, rotate or token (see --help)"));
            }
        };
        match words.next() {
            None => Ok(Some(task)),
            Some(more) => Err(format!("'{more}' is one argument too many")),
        }
    }
}

/// Whether an agent would take it for the address of a controller.
fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && matches!(port.parse::<u16>(), Ok(1..));
    !host.is_empty() && !rest.contains(['?', '#', '@', ' ']) && port.is_none_or(is_port)
}

/// `90`, `90s`, `30m`, `1h`, `7d` as seconds, from 1 second to 10 years.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|n| (1..=3650 * 86_400).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Invocation, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[track_caller]
    fn refused(line: &str, want: &str) {
        let error = run(line).unwrap_err();
        assert!(error.contains(want) && !error.contains('\n'), "{line}: {error}");
    }

    #[test]
    fn flags_override_the_defaults() {
        let Ok(Invocation::Serve(config)) = run("") else { panic!() };
        assert_eq!((config.port, config.redis.to_string().as_str()), (4000, "localhost:6379"));
        let Ok(Invocation::Serve(config)) =
            run("-p 5 -b 127.0.0.1 -r redis://h:1 --state-dir /s --insecure-http --host a --host=b --log-level debug")
        else {
            panic!()
        };
        assert_eq!((config.port, config.bind.to_string().as_str(), config.insecure_http), (5, "127.0.0.1", true));
        assert_eq!(config.hosts, ["a", "b"]);
    }

    #[test]
    fn password_on_the_command_line_is_warned_of() {
        let warned = |line: &str| match run(line) {
            Ok(Invocation::Serve(config)) => config.warnings.join(";"),
            other => panic!("{other:?}"),
        };
        assert_eq!(warned("-r redis://h:1"), "");
        let said = warned("-r redis://:geheim@h:1");
        assert!(said.contains("on the command line") && !said.contains("geheim"), "{said}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "redis = \"redis://:geheim@h:1\"\n").unwrap();
        let Ok(Invocation::Serve(config)) = run(&format!("-c {}", file.path().display())) else { panic!() };
        assert!(config.warnings.is_empty() && config.file_is_secret);
        let Ok(Invocation::Serve(config)) = run(&format!("-c {} -r h:1", file.path().display())) else { panic!() };
        assert!(!config.file_is_secret && !config.insecure_file && config.file.is_some());
    }

    #[test]
    fn tasks() {
        let node = NodeId { gid: 1, nid: 10 };
        let Ok(Invocation::Do(_, task)) = run("enroll 1 10 --url https://x:1 --out d --state-dir s") else { panic!() };
        let named = Vec::new();
        assert_eq!(task, Task::Enroll { node, url: Some("https://x:1".into()), out: Some("d".into()), named });
        let Ok(Invocation::Do(_, task)) = run("enroll 1 10 --role web --label site=ams --role a/b") else { panic!() };
        assert!(matches!(task, Task::Enroll { named, .. } if named == ["role:web", "label:site=ams", "role:a/b"]));
        assert!(matches!(run("revoke 1 10"), Ok(Invocation::Do(_, Task::Revoke(n))) if n == node));
        assert!(matches!(run("rotate"), Ok(Invocation::Do(_, Task::Rotate))));
        assert!(matches!(run("token --ttl 2d"), Ok(Invocation::Do(_, Task::Token { uses: 1, ttl: 172_800, .. }))));
        let Ok(Invocation::Do(_, Task::Token { terms, .. })) = run("token --node 1.10 --replace --role db") else {
            panic!()
        };
        assert_eq!((terms.node, terms.replace, terms.named), (Some(node), true, vec!["role:db".to_owned()]));
        assert!(matches!(run("--help"), Ok(Invocation::Print(text)) if text.contains("usage")));
        assert!(matches!(run("-V"), Ok(Invocation::Print(text)) if text.starts_with("jsacc ")));
    }

    #[test]
    fn bad_usage_is_one_line() {
        refused("--prot 1", "unknown flag --prot");
        refused("-x", "unknown flag -x");
        refused("-p", "needs a value");
        refused("-p x", "port is a whole number");
        refused("-p 70000", "port is a whole number");
        refused("-r http://x", "redis");
        refused("--log-level loud", "log level");
        refused("-c /nonexistent/file", "/nonexistent/file");
        refused("--tls-cert x", "--tls-key");
        refused("--insecure-http=1", "");
        refused("serve", "unknown command");
        refused("enroll 1", "needs GID and NID");
        refused("enroll 0 1", "whole numbers");
        refused("revoke 1 2 3", "one argument too many");
        refused("--url https://x", "belong to");
        refused("enroll 1 2 --url ftp://x", "--url is");
        for url in [
            "https://127.0.0.1:40000000",
            "https://x:0",
            "https://x:",
            "https://",
            "https://[::1]:70000/",
            "http://x:+1",
        ] {
            refused(&format!("enroll 1 2 --url {url}"), "--url is");
        }
        for url in ["https://x", "https://[::1]", "https://[::1]:65535/", "http://x:1/path"] {
            assert!(is_url(url), "{url}");
        }
        refused("token --uses 0", "--uses");
        refused("token --node 1", "--node is GID.NID");
        refused("token --replace", "--replace needs --node");
        refused("--replace", "belong to");
        refused("enroll 1 2 --node 1.2", "belong to");
        refused("enroll 1 2 --role $(x)", "--role is");
        refused("token --label site", "--label is");
        refused("revoke 1 2 --role web", "belong to");
        refused("token --ttl 1y", "--ttl");
    }
}
