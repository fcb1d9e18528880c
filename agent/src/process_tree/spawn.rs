//! Describes processes to start, and is the only place that starts one.
//!
//! **Owns** the way from a command to a running child: the placeholders, what every child sees in its
//! environment, the sentence that says why something could not be started, and the feeding of stdin.
//!
//! **Does not** watch the child: the supervisor does, and `os` waits for it.

use super::{Children, Group, JobTag, NotStarted, Spawned};
use crate::config::Config;
use crate::job::args::{program_and_rest, split};
use crate::job::{ExecuteArgs, RunArgs};
use crate::{platform, process_tree};
use jscommon::worker::Worker;
use serde_json::{Map, Value};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;

/// The bytes that a new pipe takes on every system without blocking the writer.
const PIPE: usize = 4096;

/// A process to start. The supervisor adds the settings of the common arguments (user, limits, nice).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Spec {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub(crate) program: String,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// `args` is one text, the rest of a command line as it stands: only Windows has such lines.
    pub(crate) whole_line: bool,
    /// Added to what a child inherits of the agent's environment.
    pub(crate) env: Vec<(String, String)>,
    /// Where it runs, and where a program with a separator in it is looked for; nothing is the root.
    pub(crate) cwd: Option<PathBuf>,
    /// Given to it on stdin, which is then closed.
    pub(crate) stdin: Vec<u8>,
    /// The configuration names the program, and not a command alone: no other account may be able to exchange it.
    pub(crate) is_configured: bool,
}

impl Spec {
    /// Whether this path stands anywhere in what the command says.
    fn mentions(&self, path: &Path) -> bool {
        let path = path.to_string_lossy();
        let cwd = self.cwd.as_ref().map(|cwd| cwd.to_string_lossy());
        let texts = self.args.iter().chain([&self.program]).map(String::as_str);
        texts.chain(cwd.as_deref()).any(|text| text.contains(path.as_ref()))
    }
}

/// Replaces `$agentroot`, `$root` and `$tmp` in the texts of a command.
#[derive(Clone, Debug)]
pub(crate) struct PathVars {
    agentroot: String,
    tmp: String,
}

impl PathVars {
    /// The places of the agent whose data folder this is.
    pub(crate) fn new(data_dir: &Path) -> PathVars {
        PathVars {
            agentroot: data_dir.to_string_lossy().into_owned(),
            tmp: data_dir.join("tmp").to_string_lossy().into_owned(),
        }
    }

    /// The places of a job with these common arguments: with `user`, `$tmp` is that user's own.
    pub(crate) fn of_job(&self, args: &Map<String, Value>) -> PathVars {
        let mut path_vars = self.clone();
        let user = args.get("user").and_then(Value::as_str).unwrap_or_default();
        if let Some((base, name)) = user_tmp(Path::new(&self.agentroot), user) {
            path_vars.tmp = base.join(name).to_string_lossy().into_owned();
        }
        path_vars
    }

    /// `text` with every placeholder replaced. A longer name that merely begins like one is none.
    pub(crate) fn expand(&self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            filled.push_str(&rest[..at]);
            rest = &rest[at..];
            let end = rest[1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(rest.len(), |i| i + 1);
            let (name, after) = rest.split_at(end);
            match name {
                "$agentroot" => filled.push_str(&self.agentroot),
                "$tmp" => filled.push_str(&self.tmp),
                // The root ends in a slash already.
                "$root" if after.starts_with(['/', '\\']) => {
                    filled.push_str(platform::ROOT.trim_end_matches(['/', '\\']))
                }
                "$root" => filled.push_str(platform::ROOT),
                other => filled.push_str(other),
            }
            rest = after;
        }
        filled.push_str(rest);
        filled
    }
}

/// Where the `$tmp` of a job with this `user` lies: a folder and a name in it. `None` where the job has
/// the agent's own.
///
/// It lies beside the data folder and not in it: nobody else may pass through that one.
fn user_tmp(data_dir: &Path, user: &str) -> Option<(PathBuf, String)> {
    if !platform::is_another_user(user) || user.contains('/') || matches!(user, "." | "..") {
        return None;
    }
    let mut base = data_dir.file_name()?.to_owned();
    base.push("-tmp");
    Some((data_dir.with_file_name(base), user.to_owned()))
}

/// The value that `PATH` has in the child, where the command sets it.
fn path_of(env: &[(String, String)]) -> Option<&str> {
    env.iter().rev().find(|(name, _)| platform::is_path_variable(name)).map(|(_, value)| value.as_str())
}

/// The process of an `execute` command.
pub(crate) fn execute(args: &Map<String, Value>, data: &str, path_vars: &PathVars) -> Result<Spec, String> {
    let path_vars = &path_vars.of_job(args);
    let args = ExecuteArgs::parse(args)?;
    let whole_line = cfg!(windows) && args.args.is_none();
    let (program, list) = match args.args {
        Some(list) => (args.cmd, list),
        None if whole_line => {
            let (program, rest) = program_and_rest(&args.cmd)?;
            (program.to_owned(), vec![rest.to_owned()])
        }
        None => {
            let mut words = split(&args.cmd)?.into_iter();
            (words.next().unwrap_or_default(), words.collect())
        }
    };
    let program = path_vars.expand(&program);
    if program.is_empty() {
        return Err("cmd is empty: it names the program to run".into());
    }
    Ok(Spec {
        program,
        args: list.iter().map(|arg| path_vars.expand(arg)).collect(),
        whole_line,
        env: args.env,
        cwd: args.workingdir.map(|dir| PathBuf::from(path_vars.expand(&dir))),
        stdin: data.as_bytes().to_vec(),
        is_configured: false,
    })
}

/// The run that a process belongs to.
pub(crate) struct Owner<'a> {
    /// The run.
    pub(crate) run: u64,
    /// The job that the process names in its environment.
    pub(crate) mark: &'a JobTag,
    /// The controller that its command came from; empty for a startup job.
    pub(crate) controller: &'a str,
    /// The group that it is to start in.
    pub(crate) group: Option<&'a Group>,
    /// Why it is not to be started any more; asked at first, and again before the child is made or runs.
    pub(crate) refusal: &'a dyn Fn() -> Option<&'static str>,
}

/// Starts a process, or says why not.
pub(crate) fn start(
    children: &Children,
    spec: Spec,
    args: &RunArgs,
    owner: &Owner,
    config: &Config,
) -> Result<Spawned, NotStarted> {
    if let Some(why) = (owner.refusal)() {
        return Err(why.to_owned().into());
    }
    let identity = args.user.as_deref().map(platform::Identity::find).transpose()?;
    // Only a startup job comes from no controller.
    if (spec.is_configured || owner.controller.is_empty())
        && !config.main.insecure_paths
        && let Some(fault) = platform::program_fault(&spec.program, spec.cwd.as_deref(), identity.as_ref())
    {
        return Err(format!("cannot run {}: {fault}", spec.program).into());
    }
    if let (Some(user), Some(identity)) = (&args.user, &identity) {
        let tmp = user_tmp(&config.main.data_dir, user);
        if let Some((base, name)) = tmp.filter(|(base, name)| spec.mentions(&base.join(name))) {
            platform::make_user_dir(&base, &name, identity)
                .map_err(|fault| format!("user: {user} cannot have a $tmp in {}: {fault}", base.display()))?;
        }
    }
    let mut command = process_tree::command(&spec.program, spec.cwd.as_deref(), path_of(&spec.env));
    process_tree::add_args(&mut command, &spec.args, spec.whole_line)?;
    command.envs(inherited(&config.main.env));
    if let Some(identity) = &identity {
        command.envs([("USER", &identity.name), ("LOGNAME", &identity.name), ("HOME", &identity.home)]);
    }
    if let Some(tty) = &args.tty {
        command.env("TERM", &tty.term);
    }
    command.envs(spec.env.iter().map(|(name, value)| (name, value)));
    command.envs(environment(owner.mark, owner.controller, config));
    let (limits, nice, umask, oom_score_adj) = (args.limits.clone(), args.nice, args.umask, args.oom_score_adj);
    let terminal = args.tty.as_ref().map(|tty| tty.size);
    let settings = process_tree::Settings { identity, limits, nice, umask, oom_score_adj, terminal };
    let is_wanted = || (owner.refusal)().is_none();
    let stdin = args.keeps_stdin() || !spec.stdin.is_empty();
    let spawned = children.spawn(owner.run, &mut command, stdin, &settings, owner.group, &is_wanted);
    let mut spawned =
        spawned.map_err(|fault| NotStarted::at_step(&fault, &spec.program, spec.cwd.as_deref(), &settings))?;
    if args.keeps_stdin() {
        spawned.first = spec.stdin;
    } else if let Some(stdin) = spawned.stdin.take() {
        feed(stdin, spec.stdin);
    }
    Ok(spawned)
}

/// The variables of the agent's environment that a child inherits: the small set of the system, and
/// those that the configuration names.
fn inherited(more: &[String]) -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let known = name.to_str().filter(|name| platform::is_inherited_variable(name, more))?;
        let value = if platform::is_path_variable(known) { absolute_only(&value)? } else { value };
        Some((name, value))
    })
}

/// Returns a search path without its relative folders, which would be those of a job's working directory.
/// `None` when no folder is left.
fn absolute_only(path: &OsStr) -> Option<OsString> {
    let kept: Vec<PathBuf> = std::env::split_paths(path).filter(|folder| folder.is_absolute()).collect();
    std::env::join_paths(&kept).ok().filter(|_| !kept.is_empty())
}

/// Returns the variables that every child sees. None of them lets a child act in the node's name.
fn environment(mark: &JobTag, controller: &str, config: &Config) -> Vec<(&'static str, String)> {
    // A startup job answers to nobody; it still may want to know a controller.
    let known = config.controllers.get_key_value(controller).or_else(|| config.controllers.first_key_value());
    let (name, url, ca) = known.map_or_else(Default::default, |(name, controller)| {
        let ca = controller.ca.as_ref().map(|ca| ca.to_string_lossy().into_owned());
        (name.clone(), controller.urls.first().cloned().unwrap_or_default(), ca.unwrap_or_default())
    });
    vec![
        ("AGENT_GID", config.main.gid.to_string()),
        ("AGENT_NID", config.main.nid.to_string()),
        ("AGENT_HOME", mark.home.clone()),
        ("AGENT_JOB_ID", mark.job.clone()),
        ("AGENT_JOB_START", mark.start.to_string()),
        ("AGENT_CONTROLLER_NAME", name),
        ("AGENT_CONTROLLER_URL", url),
        ("AGENT_CONTROLLER_CA", ca),
    ]
}

/// Writes a child's stdin and closes it. A child that does not read blocks nobody: what does not fit
/// into its pipe has a thread of its own, which ends with the pipe's last reader.
fn feed(mut stdin: ChildStdin, data: Vec<u8>) {
    if data.len() <= PIPE {
        // It may have ended already, or closed its stdin: its own affair.
        let _ = stdin.write_all(&data);
        return;
    }
    let writer = move || drop(stdin.write_all(&data));
    match Worker::spawn("stdin", 64 * 1024, writer) {
        Ok(worker) => worker.detach(),
        Err(fault) => log::error!("no thread for a job's stdin, which is closed unread: {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jscommon::Command;
    use serde_json::json;

    fn path_vars() -> PathVars {
        PathVars { agentroot: "/data".into(), tmp: "/data/tmp".into() }
    }

    #[cfg(unix)]
    #[test]
    fn placeholders() {
        for (text, filled) in [
            ("$agentroot/x", "/data/x"),
            ("a$tmp", "a/data/tmp"),
            ("$root", "/"),
            ("$root/etc:$root", "/etc:/"),
            ("$roots $HOME $", "$roots $HOME $"),
            ("$$tmp", "$/data/tmp"),
        ] {
            assert_eq!(path_vars().expand(text), filled, "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn search_path_keeps_absolute_folders() {
        for (path, kept) in [
            ("/usr/bin:/bin", Some("/usr/bin:/bin")),
            (".:/bin::x/y:~/bin:/usr/bin:", Some("/bin:/usr/bin")),
            (".", None),
            ("", None),
        ] {
            assert_eq!(absolute_only(path.as_ref()).as_deref(), kept.map(OsStr::new), "{path}");
        }
    }

    #[test]
    fn execute_becomes_a_process() {
        let make = |args| {
            let command = json!({"id": "a", "gid": 1, "nid": 1, "cmd": "execute", "args": args, "data": "in"});
            let command = Command::from_value(command).unwrap();
            execute(&command.args, &command.data, &path_vars())
        };
        let spec = make(json!({"cmd": "$agentroot/run -v \"a b\"", "workingdir": "$tmp"})).unwrap();
        assert_eq!((spec.program.as_str(), spec.stdin.as_slice()), ("/data/run", b"in".as_slice()));
        assert_eq!((spec.args, spec.cwd), (vec!["-v".into(), "a b".into()], Some("/data/tmp".into())));
        let spec = make(json!({"cmd": "my program", "args": ["$tmp", 1], "env": {"A": "b"}})).unwrap();
        assert_eq!((spec.program.as_str(), spec.args), ("my program", vec!["/data/tmp".to_owned(), "1".into()]));
        assert!(make(json!({"cmd": "\"\""})).is_err());
    }
}
