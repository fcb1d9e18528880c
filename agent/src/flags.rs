//! The command line. PURE: arguments in, what is to be done out.

use crate::config::{Overrides, address};
use jscommon::directives::Directives;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;

/// The text that `--help` prints.
pub(crate) const HELP: &str = "\
jsagent: runs the commands of its controllers on this node

usage: jsagent [-c FILE] [--gid N --nid N --controller URL --data-dir DIR]
       jsagent --check-config -c FILE
       jsagent status [-c FILE | --data-dir DIR]
       jsagent enroll --controller URL --token T --gid N --nid N --out DIR
       jsagent service install|start|stop|uninstall [-c FILE]      (Windows)

  -c, --config FILE     the configuration, TOML
      --gid N           grid id; with this flag and the next three no file is needed,
                        and they override one
      --nid N           node id, unique in its grid
      --controller URL  address of the controller
      --data-dir DIR    state directory: database, logs, scripts
      --insecure-paths  take files and folders that other accounts of this machine
                        can change, and credentials that they can read
      --check-config    print the faults of the configuration, and exit
      --log-level L     off, error, warn, info (the default), debug or trace;
                        of one module: warn,jsagent::uplink=debug
      --help, --version

status                  print the state of the agent of this state directory
enroll                  fetch this node's credentials, and write an agent.toml beside them
      --token T         an enrolment token (jsacc token); - reads it from stdin
      --out DIR         folder for the credentials
      --ca FILE         trust this CA and not the one that the token pins
service                 on Windows: manage the service, with the configuration
                        %ProgramData%\\jsagent\\agent.toml unless -c says otherwise
";

const SERVICE_VERBS: &str = "install, start, stop or uninstall";

/// The task that the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Task {
    /// Print the help.
    Help,
    /// Print the version.
    Version,
    /// Run the agent, or only check its configuration.
    Run { config: Option<PathBuf>, overrides: Overrides, check: bool, log: Directives },
    /// Say what the agent of a data folder is doing.
    Status { config: Option<PathBuf>, overrides: Overrides },
    /// Fetch this node's credentials.
    Enroll(Enroll),
    /// The agent as a service of the system.
    Service { verb: Verb, config: Option<PathBuf> },
}

/// The word after `jsagent service`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Install it, or bring it up to date.
    Install,
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Stop it and remove it.
    Uninstall,
    /// Be it: what the service manager starts.
    Run,
}

/// The arguments of `jsagent enroll`.
#[derive(Debug, PartialEq)]
pub(crate) struct Enroll {
    /// Address of the controller.
    pub(crate) controller: String,
    /// The enrolment token; `-` is stdin.
    pub(crate) token: String,
    /// Grid id.
    pub(crate) gid: u32,
    /// Node id.
    pub(crate) nid: u32,
    /// The folder that the files go to.
    pub(crate) out: PathBuf,
    /// Trust this CA.
    pub(crate) ca: Option<PathBuf>,
    /// Other accounts may be able to change that folder.
    pub(crate) insecure_paths: bool,
}

/// Reads the arguments without the program's name; the error is one line for the user.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Task, String> {
    read(lexopt::Parser::from_args(args)).map_err(|error| match error {
        lexopt::Error::Custom(reason) => reason.to_string(),
        other => other.to_string(),
    })
}

fn read(mut parser: lexopt::Parser) -> Result<Task, lexopt::Error> {
    let mut overrides = Overrides::default();
    let (mut config, mut check, mut log) = (None, false, Directives::parse("info")?);
    let (mut token, mut out, mut ca) = (None, None, None);
    let mut command: Option<String> = None;
    let mut verb = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(Task::Help),
            Long("version") | Short('V') => return Ok(Task::Version),
            Short('c') | Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("gid") => overrides.gid = Some(number("gid", parser.value()?)?),
            Long("nid") => overrides.nid = Some(number("nid", parser.value()?)?),
            Long("controller") => overrides.controller = Some(parser.value()?.string()?),
            Long("data-dir") => overrides.data_dir = Some(PathBuf::from(parser.value()?)),
            Long("insecure-paths") => overrides.insecure_paths = true,
            Long("check-config") => check = true,
            Long("log-level") => {
                log = Directives::parse(&parser.value()?.string()?).map_err(|e| format!("--log-level: {e}"))?;
            }
            Long("token") => token = Some(parser.value()?.string()?),
            Long("out") => out = Some(PathBuf::from(parser.value()?)),
            Long("ca") => ca = Some(PathBuf::from(parser.value()?)),
            Value(word) if command.is_none() => {
                let word = word.string()?;
                if !matches!(word.as_str(), "status" | "enroll" | "service") {
                    return Err(format!("there is no command \"{word}\"; see jsagent --help").into());
                }
                command = Some(word);
            }
            Value(word) if command.as_deref() == Some("service") && verb.is_none() => {
                verb = Some(match word.string()?.as_str() {
                    "install" => Verb::Install,
                    "start" => Verb::Start,
                    "stop" => Verb::Stop,
                    "uninstall" => Verb::Uninstall,
                    "run" => Verb::Run,
                    other => return Err(format!("a service is not told to \"{other}\"; {SERVICE_VERBS}").into()),
                });
            }
            other => return Err(format!("{}; see jsagent --help", other.unexpected()).into()),
        }
    }
    if command.as_deref() == Some("enroll") {
        let missing = |flag: &str| lexopt::Error::from(format!("enroll needs {flag}; see jsagent --help"));
        let (Overrides { gid, nid, controller, insecure_paths, .. }, Some(token), Some(out)) =
            (overrides, &token, &out)
        else {
            return Err(missing(if token.is_none() { "--token" } else { "--out" }));
        };
        let controller = controller.ok_or_else(|| missing("--controller"))?;
        return Ok(Task::Enroll(Enroll {
            controller: address(&controller).map_err(|reason| format!("--controller: {reason}"))?,
            token: token.clone(),
            gid: gid.filter(|gid| *gid > 0).ok_or_else(|| missing("--gid, 1 or more"))?,
            nid: nid.filter(|nid| *nid > 0).ok_or_else(|| missing("--nid, 1 or more"))?,
            out: out.clone(),
            ca,
            insecure_paths,
        }));
    }
    for (flag, given) in [("--token", token.is_some()), ("--out", out.is_some()), ("--ca", ca.is_some())] {
        if given {
            return Err(format!("{flag} belongs to jsagent enroll").into());
        }
    }
    if command.as_deref() == Some("service") {
        let verb = verb.ok_or_else(|| format!("jsagent service needs a word: {SERVICE_VERBS}"))?;
        if overrides != Overrides::default() || check {
            return Err("jsagent service takes -c FILE alone: what else it needs stands in that file".into());
        }
        return Ok(Task::Service { verb, config });
    }
    match command {
        Some(_) => Ok(Task::Status { config, overrides }),
        None => Ok(Task::Run { config, overrides, check, log }),
    }
}

fn number(name: &str, value: OsString) -> Result<u32, lexopt::Error> {
    let text = value.string()?;
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("--{name} must be a whole number from 1 to {}, not \"{text}\"", u32::MAX).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Task, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn tasks() {
        assert_eq!(parse_line("--help"), Ok(Task::Help));
        assert_eq!(parse_line("-c x --version"), Ok(Task::Version));
        let overrides = Overrides {
            gid: Some(1),
            nid: Some(2),
            controller: Some("u".into()),
            data_dir: Some("d".into()),
            insecure_paths: true,
        };
        assert_eq!(
            parse_line("--gid 1 --nid=2 --controller u --data-dir d --insecure-paths --log-level debug"),
            Ok(Task::Run {
                config: None,
                overrides: overrides.clone(),
                check: false,
                log: Directives::parse("debug").unwrap()
            })
        );
        assert_eq!(
            parse_line("-c a.toml --check-config"),
            Ok(Task::Run {
                config: Some("a.toml".into()),
                overrides: Overrides::default(),
                check: true,
                log: Directives::parse("info").unwrap()
            })
        );
        assert!(matches!(parse_line("status -c a.toml"), Ok(Task::Status { .. })));
        let enroll = parse_line("enroll --controller https://u/ --token t --gid 1 --nid 2 --out o").unwrap();
        assert!(
            matches!(&enroll, Task::Enroll(Enroll { gid: 1, nid: 2, ca: None, controller, .. }) if controller == "https://u")
        );
        let service = parse_line("service install -c a.toml");
        assert_eq!(service, Ok(Task::Service { verb: Verb::Install, config: Some("a.toml".into()) }));
    }

    #[test]
    fn bad_usage_is_one_line() {
        for (line, want) in [
            ("--nope", "invalid option '--nope'; see jsagent --help"),
            ("--gid 0", "--gid must be a whole number"),
            ("--gid x", "--gid must be a whole number"),
            ("--gid", "missing argument for option '--gid'"),
            ("run", "there is no command \"run\""),
            ("status more", "unexpected argument \"more\""),
            ("--token x", "--token belongs to jsagent enroll"),
            ("enroll --token x", "enroll needs --out"),
            ("enroll --token x --out o --gid 1 --nid 1", "enroll needs --controller"),
            (
                "enroll --controller https://h:70000 --token x --out o --gid 1 --nid 1",
                "--controller: \"https://h:70000\" has a port that is no number from 1 to 65535",
            ),
            ("enroll --controller h --token x --out o --gid 1 --nid 1", "--controller: \"h\" must begin with https://"),
            ("service", "jsagent service needs a word: install"),
            ("service reload", "a service is not told to \"reload\""),
            ("service start twice", "unexpected argument \"twice\""),
            ("service install --gid 1", "jsagent service takes -c FILE alone"),
            ("--log-level loud", "--log-level: 'loud' is no log level"),
        ] {
            let error = parse_line(line).unwrap_err();
            assert!(error.starts_with(want) && !error.contains('\n'), "{line}: {error}");
        }
    }
}
