//! Why a process was not started, in a sentence and as the status that a shell gives.

use super::{Settings, StartError, Step};
use crate::platform;
use std::fmt::Display;
use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
use std::path::Path;

/// The status of a program that was not found.
const NOT_FOUND: i32 = 127;
/// The status of one that was found and cannot be run.
const CANNOT_RUN: i32 = 126;

/// Why a process was not started.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NotStarted {
    /// The `code` of the result.
    pub(crate) code: i32,
    /// A sentence for the result.
    pub(crate) why: String,
}

impl From<String> for NotStarted {
    fn from(why: String) -> NotStarted {
        NotStarted { code: CANNOT_RUN, why }
    }
}

impl NotStarted {
    /// A program, command or script that is not there.
    pub(crate) fn not_found(why: String) -> NotStarted {
        NotStarted { code: NOT_FOUND, why }
    }

    /// From the step that failed.
    pub(crate) fn at_step(fault: &StartError, program: &str, folder: Option<&Path>, settings: &Settings) -> NotStarted {
        let error = &fault.error;
        let user = settings.identity.as_ref().map_or("the agent", |identity| &identity.name);
        let barred = |path: &Path| {
            let step = settings.identity.as_ref().and_then(|identity| identity.barred_by(path));
            step.map_or(String::new(), |(step, change)| {
                let step = platform::shell_word(&step);
                format!(": user {user} may not enter {step}; name another folder, or run chmod {change} {step}")
            })
        };
        let why_no_entry = folder.map(barred).unwrap_or_default();
        let folder = folder.map(Path::display);
        let folder = folder.as_ref().map_or(&"/" as &dyn Display, |folder| folder);
        let refused = error.kind() == PermissionDenied;
        let why = match fault.step {
            Step::Program => match (&fault.detail, error.kind()) {
                (Some(detail), _) => format!("cannot run {program}: {detail}"),
                (None, NotFound) => return NotStarted::not_found(format!("program not found: {program}")),
                (None, PermissionDenied) => {
                    format!("cannot run {program}: permission denied for {user}{}", barred(program.as_ref()))
                }
                (None, _) => format!("cannot run {program}: {error}"),
            },
            Step::WorkingDir => match error.kind() {
                NotFound => format!("workingdir: there is no folder {folder}"),
                NotADirectory => format!("workingdir: {folder} is no folder"),
                PermissionDenied => format!("workingdir: {user} may not enter {folder}{why_no_entry}"),
                _ => format!("workingdir: cannot enter {folder}: {error}"),
            },
            Step::Limit(index) => {
                let name = settings.limits.get(index).map_or("", |limit| limit.name);
                match refused {
                    true => format!("rlimits: {name} is above the hard limit that the agent has and may not raise"),
                    false => format!("rlimits: {name} cannot be set: {error}"),
                }
            }
            Step::Nice => {
                let nice = settings.nice.unwrap_or(0);
                match refused {
                    true => format!("nice: the agent may not set {nice}; below its own niceness that needs root"),
                    false => format!("nice: {nice} cannot be set: {error}"),
                }
            }
            Step::OomScore => {
                let score = settings.oom_score_adj.unwrap_or(0);
                match refused {
                    true => format!("oom_score_adj: the agent may not set {score}; below its own that needs root"),
                    false => format!("oom_score_adj: {score} cannot be set: {error}"),
                }
            }
            Step::User => format!("user: the agent cannot become {user}: {error}"),
            Step::Session => format!("cannot run {program}: no session for it: {error}"),
            Step::Pipes => format!("cannot run {program}: no pipes for it: {error}"),
            Step::Process => format!("cannot run {program}: no process for it: {error}"),
        };
        NotStarted::from(why)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::platform::Limit;
    use serde_json::json;
    use std::io;

    #[test]
    fn each_step_is_named() {
        let limits = vec![Limit::new("core", &json!(0)).unwrap(), Limit::new("nofile", &json!(9)).unwrap()];
        let settings = Settings { limits, nice: Some(-5), oom_score_adj: Some(-900), ..Settings::default() };
        for (step, errno, code, want) in [
            (Step::Program, 2, 127, "program not found: prog"),
            (Step::Program, 13, 126, "cannot run prog: permission denied for the agent"),
            (Step::Program, 7, 126, "cannot run prog: Argument list too long"),
            (Step::WorkingDir, 2, 126, "workingdir: there is no folder /w"),
            (Step::WorkingDir, 20, 126, "workingdir: /w is no folder"),
            (Step::WorkingDir, 13, 126, "workingdir: the agent may not enter /w"),
            (Step::Limit(1), 1, 126, "rlimits: nofile is above the hard limit"),
            (Step::Nice, 13, 126, "nice: the agent may not set -5"),
            (Step::OomScore, 13, 126, "oom_score_adj: the agent may not set -900"),
            (Step::User, 1, 126, "user: the agent cannot become"),
            (Step::Pipes, 24, 126, "cannot run prog: no pipes for it: Too many open files"),
            (Step::Process, 11, 126, "cannot run prog: no process for it"),
        ] {
            let fault = StartError { step, error: io::Error::from_raw_os_error(errno), detail: None };
            let said = NotStarted::at_step(&fault, "prog", Some("/w".as_ref()), &settings);
            assert!(said.why.starts_with(want), "{} does not begin with {want}", said.why);
            assert_eq!(said.code, code, "{}", said.why);
        }
    }
}
