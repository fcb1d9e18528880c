//! The arguments that every process may have: reads them, checks them, says what is wrong.
//!
//! **Owns** the names, types and bounds of the common arguments. Does not act on any of them.

use super::Rules;
use super::fields::{Fields, kind, scalar};
use crate::platform::{self, Limit, Signal, TerminalSize};
use jscommon::LevelSet;
use jscommon::command::shorten;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;

/// Longest time that an argument may name: ten years, so that sums of times never overflow.
const LONGEST: f64 = 10.0 * 365.0 * 86400.0;

/// The common arguments of one command.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunArgs {
    /// `domain`: what it belongs to.
    pub(crate) domain: String,
    /// `name`: what it is called.
    pub(crate) name: String,
    /// `max_time` -1: long running and remembered.
    pub(crate) long: bool,
    /// `max_time` above 0.
    pub(crate) limit: Option<Duration>,
    /// `max_restart`: at most so many restarts.
    pub(crate) max_restart: u32,
    /// `recurring_period`: time between the starts of two runs.
    pub(crate) period: Option<Duration>,
    /// `loglevels`: the levels that are logged at all.
    pub(crate) levels: Option<LevelSet>,
    /// `loglevels_db`: overrules what the configuration stores.
    pub(crate) levels_db: Option<LevelSet>,
    /// `loglevels_ac`: overrules what the configuration forwards.
    pub(crate) levels_ac: Option<LevelSet>,
    /// `stats_interval`: time between two samples of its tree, where it is not the configuration's.
    pub(crate) stats_interval: Option<Duration>,
    /// `queue`: jobs of one queue run one at a time, in order.
    pub(crate) queue: Option<Arc<str>>,
    /// `user`: whom it runs as.
    pub(crate) user: Option<String>,
    /// `stop_signal`: how it is asked to end.
    pub(crate) stop_signal: Signal,
    /// `stop_timeout`: how long it may take to end before KILL.
    pub(crate) stop_timeout: Duration,
    /// `rlimits`.
    pub(crate) limits: Vec<Limit>,
    /// `nice`, from -20 to 19.
    pub(crate) nice: Option<i32>,
    /// `umask`, 022 where nothing is asked for.
    pub(crate) umask: u32,
    /// `oom_score_adj`, from -1000 to 1000.
    pub(crate) oom_score_adj: Option<i32>,
    /// `secret`: `env` and `data` stay out of records and results.
    pub(crate) secret: bool,
    /// `stream`: its output goes to a watch as it comes.
    pub(crate) stream: bool,
    /// `stdin` is `open`: it stays open for `input`.
    pub(crate) stdin_open: bool,
    /// `tty`: it runs on a terminal.
    pub(crate) tty: Option<Tty>,
}

/// The terminal of a process.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tty {
    /// `rows` and `cols`.
    pub(crate) size: TerminalSize,
    /// `term`: the name of its kind, for `TERM`.
    pub(crate) term: String,
}

impl Default for RunArgs {
    fn default() -> RunArgs {
        RunArgs::parse(&Map::new()).expect("no argument is wrong where there is none")
    }
}

impl RunArgs {
    /// Reads them; the error has a sentence about each that is wrong.
    pub(crate) fn parse(args: &Map<String, Value>) -> Result<RunArgs, String> {
        let mut args = Fields::new(args);
        let max_time = args.number("max_time", -1.0..=LONGEST).unwrap_or(0.0);
        if max_time < 0.0 && max_time != -1.0 {
            args.fault(format!("max_time is -1, 0 or seconds, not {max_time}"));
        }
        // Below a second it would be a busy loop with a name.
        let seconds = |args: &mut Fields, name| {
            let seconds = args.number(name, 0.0..=LONGEST).filter(|seconds| *seconds > 0.0)?;
            Some(Duration::from_secs_f64(seconds.max(1.0)))
        };
        let text = |args: &mut Fields, name| args.text(name).unwrap_or_default().to_owned();
        let levels = |args: &mut Fields, name: &str| {
            args.read(name, |value| LevelSet::from_json(value).map_err(|why| format!("{name}: {why}")))
        };
        let read = RunArgs {
            domain: text(&mut args, "domain"),
            name: text(&mut args, "name"),
            long: max_time == -1.0,
            limit: (max_time > 0.0).then(|| Duration::from_secs_f64(max_time)),
            max_restart: args.whole("max_restart", 0..=u32::MAX.into()).unwrap_or(0) as u32,
            period: seconds(&mut args, "recurring_period"),
            levels: levels(&mut args, "loglevels"),
            levels_db: levels(&mut args, "loglevels_db"),
            levels_ac: levels(&mut args, "loglevels_ac"),
            stats_interval: seconds(&mut args, "stats_interval"),
            queue: args.text("queue").filter(|queue| !queue.is_empty()).map(Arc::from),
            user: args.text("user").filter(|user| !user.is_empty()).map(str::to_owned),
            stop_signal: args
                .read("stop_signal", |value| Signal::from_json(value).map_err(|why| format!("stop_signal: {why}")))
                .unwrap_or(Signal::TERM),
            stop_timeout: Duration::from_secs_f64(args.number("stop_timeout", 0.0..=86400.0).unwrap_or(5.0)),
            limits: limits(&mut args),
            nice: args.whole("nice", -20..=19).map(|nice| nice as i32),
            umask: args.read("umask", umask).unwrap_or(platform::UMASK),
            oom_score_adj: args.whole("oom_score_adj", -1000..=1000).map(|score| score as i32),
            secret: args.flag("secret"),
            stream: args.flag("stream"),
            stdin_open: args.read("stdin", stdin).unwrap_or(false),
            tty: tty(&mut args),
        };
        if read.oom_score_adj.is_some()
            && let Err(why) = platform::supports("oom_score_adj")
        {
            args.fault(why);
        }
        args.finish(read)
    }

    /// Whether its stdin stays open.
    pub(crate) fn keeps_stdin(&self) -> bool {
        self.stdin_open || self.tty.is_some()
    }

    /// Returns the scheduler's rules; `process` is false for a task of the agent's own.
    pub(crate) fn rules(&self, process: bool) -> Rules {
        let millis = |time: Duration| time.as_millis() as u64;
        match process {
            true => Rules {
                process,
                goes_on: false,
                long: self.long,
                limit: self.limit.map(millis),
                period: self.period.map(millis),
                max_restart: self.max_restart,
                queue: self.queue.clone(),
                stop_timeout: millis(self.stop_timeout),
            },
            false => Rules { process, ..Rules::default() },
        }
    }
}

/// The arguments of `execute` beside the common ones.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct ExecuteArgs {
    /// `cmd`: the program, or a whole line when there are no `args`.
    pub(crate) cmd: String,
    /// `args`, when they were given.
    pub(crate) args: Option<Vec<String>>,
    /// `workingdir`.
    pub(crate) workingdir: Option<String>,
    /// `env`.
    pub(crate) env: Vec<(String, String)>,
}

impl ExecuteArgs {
    /// Reads them; the error has a sentence about each that is wrong.
    pub(crate) fn parse(args: &Map<String, Value>) -> Result<ExecuteArgs, String> {
        let mut args = Fields::new(args);
        let cmd = args.text("cmd");
        if args.get("cmd").is_none() || cmd.is_some_and(|cmd| cmd.trim().is_empty()) {
            args.fault("cmd is missing: it names the program to run");
        }
        let read = ExecuteArgs {
            cmd: cmd.unwrap_or_default().to_owned(),
            args: args.words("args"),
            workingdir: args.text("workingdir").filter(|dir| !dir.is_empty()).map(str::to_owned),
            env: environment(&mut args),
        };
        args.finish(read)
    }
}

/// Reads `env` of a command: an object of strings.
pub(crate) fn environment(args: &mut Fields) -> Vec<(String, String)> {
    let env = args.read("env", |value| match value {
        Value::Object(env) => env
            .iter()
            .map(|(name, value)| match name.is_empty() || name.contains(['=', '\0']) {
                true => Err(format!("env: '{name}' is no name of a variable")),
                false => Ok((name.clone(), variable(name, value)?)),
            })
            .collect(),
        other => Err(format!("env must be an object of strings, not {}", kind(other))),
    });
    env.unwrap_or_default()
}

fn limits(args: &mut Fields) -> Vec<Limit> {
    let Some(given) = args.object("rlimits") else { return Vec::new() };
    let mut limits = Vec::new();
    for (name, value) in given {
        match Limit::new(name, value) {
            Ok(limit) => limits.push(limit),
            Err(why) => args.fault(format!("rlimits: {why}")),
        }
    }
    limits
}

fn stdin(value: &Value) -> Result<bool, String> {
    match value.as_str() {
        Some("open") => Ok(true),
        _ => Err(format!("stdin must be \"open\", not {}", shorten(value))),
    }
}

fn tty(args: &mut Fields) -> Option<Tty> {
    let mut given = Fields::new(args.object("tty")?);
    let size = terminal_size(&mut given, TerminalSize { rows: 24, columns: 80 });
    let term = given.text("term").unwrap_or("xterm").to_owned();
    if !(1..=64).contains(&term.len()) || !term.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') {
        given.fault("term must be the name of a terminal, as in \"xterm-256color\"");
    }
    if let Err(why) = platform::supports("tty") {
        given.fault(why);
    }
    given.finish(Tty { size, term }).map_err(|why| args.fault(format!("tty: {why}"))).ok()
}

/// Reads `rows` and `cols`.
pub(crate) fn terminal_size(args: &mut Fields, default: TerminalSize) -> TerminalSize {
    let mut read = |name, default| args.whole(name, 1..=1000).map_or(default, |number| number as u16);
    TerminalSize { rows: read("rows", default.rows), columns: read("cols", default.columns) }
}

/// Octal text, as people write it: the number 22 would be another umask than 022.
fn umask(value: &Value) -> Result<u32, String> {
    platform::supports("umask")?;
    let octal = |text: &str| {
        let is_octal = (1..=5).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        is_octal.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|umask| *umask <= 0o777)
    };
    let umask = value.as_str().and_then(octal);
    umask.ok_or_else(|| format!("umask must be octal text from \"000\" to \"777\", not {}", shorten(value)))
}

/// Splits a line as a shell would: blanks, quotes and backslashes, and nothing else of a shell.
pub(crate) fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let text = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => text.push(c),
                        None => return Err("cmd: a ' is not closed".into()),
                    }
                }
            }
            '"' => {
                let text = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.peek() {
                            Some('"' | '\\' | '$' | '`') => text.extend(chars.next()),
                            Some('\n') => drop(chars.next()),
                            _ => text.push('\\'),
                        },
                        Some(c) => text.push(c),
                        None => return Err("cmd: a \" is not closed".into()),
                    }
                }
            }
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("cmd: nothing follows the last \\".into()),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// The program of a Windows command line, and the rest of the line as it stands: every program splits
/// its own there, so nobody else should.
pub(crate) fn program_and_rest(line: &str) -> Result<(&str, &str), String> {
    let line = line.trim();
    let (program, rest) = match line.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or("cmd: a \" is not closed")?,
        None => line.split_once([' ', '\t', '\r', '\n']).unwrap_or((line, "")),
    };
    Ok((program, rest.trim_start()))
}

/// The value of a variable; the error does not show it, for it may be a secret.
fn variable(name: &str, value: &Value) -> Result<String, String> {
    scalar("env", value).map_err(|_| match value {
        Value::String(_) => format!("env: {name} must not hold a NUL character"),
        other => format!("env: {name} must be a string, not {}", kind(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<RunArgs, String> {
        RunArgs::parse(value.as_object().unwrap())
    }

    #[test]
    fn defaults() {
        let args = parse(json!({"cmd": "ls", "domain": null})).unwrap();
        assert!(!args.long && args.limit.is_none() && args.period.is_none() && args.queue.is_none());
        assert_eq!((args.max_restart, args.stop_timeout, args.stop_signal), (0, Duration::from_secs(5), Signal::TERM));
    }

    #[test]
    fn all_of_them() {
        let args = parse(json!({
            "domain": "web", "name": "a", "max_time": 1.5, "max_restart": 3, "recurring_period": 60,
            "loglevels": "1-9", "loglevels_db": [1], "loglevels_ac": "", "queue": "q", "stop_timeout": 0.5,
            "nice": 5, "secret": true, "stats_interval": 10,
        }))
        .unwrap();
        assert_eq!((args.limit, args.period), (Some(Duration::from_millis(1500)), Some(Duration::from_secs(60))));
        assert_eq!((args.levels_ac, args.queue.as_deref()), (Some(LevelSet::NONE), Some("q")));
        assert!(args.rules(true).remembered() && args.secret);
        assert!(!args.rules(false).remembered());
        assert!(parse(json!({"max_time": -1})).unwrap().long);
    }

    #[cfg(unix)]
    #[test]
    fn umask_is_octal_text_and_the_oom_score_a_number() {
        let both = |args: Value| parse(args).map(|args| (args.umask, args.oom_score_adj));
        assert_eq!(both(json!({})), Ok((0o022, None)));
        assert_eq!(both(json!({"umask": "0077", "oom_score_adj": -5})), Ok((0o077, Some(-5))));
        assert_eq!(both(json!({"umask": "2"})), Ok((0o002, None)));
        for umask in [json!(22), json!(""), json!("8"), json!("1000"), json!("+22"), json!("0o22"), json!([])] {
            refused(json!({"umask": umask}), "umask must be octal text");
        }
        refused(json!({"oom_score_adj": 1001}), "oom_score_adj must be a whole number from -1000 to 1000");
        refused(json!({"oom_score_adj": "5"}), "oom_score_adj must be");
    }

    #[track_caller]
    fn refused(value: Value, reason: &str) {
        let fault = parse(value).unwrap_err();
        assert!(fault.contains(reason), "{fault} does not say {reason}");
    }

    #[test]
    fn every_fault_has_its_sentence() {
        refused(json!({"max_time": "10"}), "max_time must be a number");
        refused(json!({"max_time": -2}), "max_time must be");
        refused(json!({"max_time": -0.5}), "max_time is -1, 0 or seconds");
        refused(json!({"max_restart": -1}), "max_restart must be a whole number");
        refused(json!({"max_restart": 1.5}), "max_restart must be a whole number");
        refused(json!({"recurring_period": -1}), "recurring_period must be");
        refused(json!({"domain": 1}), "domain must be a string");
        refused(json!({"queue": []}), "queue must be a string");
        refused(json!({"loglevels": "x"}), "loglevels: ");
        refused(json!({"loglevels_db": 3}), "loglevels_db: ");
        refused(json!({"stop_signal": "NOPE"}), "stop_signal: ");
        refused(json!({"stop_timeout": -1}), "stop_timeout must be");
        refused(json!({"nice": 20}), "nice must be");
        refused(json!({"rlimits": []}), "rlimits must be an object");
        refused(json!({"rlimits": {"nope": 1}}), "rlimits: ");
        refused(json!({"secret": 1}), "secret must be");
        refused(json!({"stream": 1}), "stream must be");
        refused(json!({"user": 0}), "user must be");
        refused(json!({"stdin": true}), "stdin must be \"open\"");
        refused(json!({"stdin": "closed"}), "stdin must be \"open\"");
        refused(json!({"tty": true}), "tty must be an object");
    }

    #[track_caller]
    fn words(line: &str, expected: &[&str]) {
        assert_eq!(split(line).unwrap(), expected, "{line}");
    }

    #[test]
    fn lines_are_split() {
        words("", &[]);
        words("ls", &["ls"]);
        words("  ls   -l\t/ ", &["ls", "-l", "/"]);
        words(r#"a "b c" d"#, &["a", "b c", "d"]);
        words(r#"a "" b"#, &["a", "", "b"]);
        words(r#"a "b\"c""#, &["a", "b\"c"]);
        assert!(split("a \"b").is_err());
    }

    #[test]
    fn a_line_of_windows_stays_whole_after_its_program() {
        for (line, program, rest) in [
            ("ping", "ping", ""),
            (r#" cmd /c  echo "a b" & dir "#, "cmd", r#"/c  echo "a b" & dir"#),
            (r#""C:\Program Files\x.exe"  -v "a b\""#, r"C:\Program Files\x.exe", r#"-v "a b\""#),
            (r#""C:\a b.exe""#, r"C:\a b.exe", ""),
        ] {
            assert_eq!(program_and_rest(line), Ok((program, rest)), "{line}");
        }
        assert!(program_and_rest("\"C:\\a b.exe -v").is_err());
    }

    #[test]
    fn lines_are_split_as_a_shell_would() {
        words(r"sh -c 'echo $HOME; exit 3'", &["sh", "-c", "echo $HOME; exit 3"]);
        words(r"a'b'c\ d", &["abc d"]);
        words(r#""a\$b\nc""#, &[r"a$b\nc"]);
        words("$HOME *.txt | x", &["$HOME", "*.txt", "|", "x"]);
        assert!(split("a 'b").is_err() && split("a \\").is_err());
    }

    #[test]
    fn execute_says_what_is_wrong() {
        let parse = |args: Value| ExecuteArgs::parse(args.as_object().unwrap());
        assert!(parse(json!({})).unwrap_err().contains("cmd is missing"));
        assert!(parse(json!({"cmd": " "})).unwrap_err().contains("cmd is missing"));
        assert!(parse(json!({"cmd": 1})).unwrap_err().contains("cmd must be a string"));
        assert!(parse(json!({"cmd": "a", "args": "b"})).unwrap_err().contains("args must be a list"));
        assert!(parse(json!({"cmd": "a", "args": [[]]})).unwrap_err().contains("args must hold strings"));
        assert!(parse(json!({"cmd": "a", "env": []})).unwrap_err().contains("env must be an object"));
        assert!(parse(json!({"cmd": "a", "env": {"a=": "b"}})).unwrap_err().contains("no name"));
        for env in [json!("PW=geheim"), json!(["geheim"]), json!({"PW": ["geheim"]}), json!({"PW": "geheim\u{0}"})] {
            let error = parse(json!({"cmd": "a", "env": env})).unwrap_err();
            assert!(error.contains("env") && !error.contains("geheim"), "{error}");
        }
        let good = parse(json!({"cmd": "a", "args": ["b", 1], "env": {"N": 1}})).unwrap();
        assert_eq!((good.args.unwrap(), good.env), (vec!["b".into(), "1".into()], vec![("N".into(), "1".into())]));
    }
}
