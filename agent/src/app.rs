//! The start of the program: flags, log and exit code.
//!
//! Exit codes: 0 after a polite stop or a `restart`, 1 when it cannot run, 2 for bad usage or a bad
//! configuration.

use crate::config::{Config, Overrides};
use crate::flags::{self, Task, Verb};
use crate::platform::{self, ServiceOrder};
use crate::uplink::Credentials;
use crate::{daemon, diagnostics, enroll, process_tree, script, status, trusted_paths};
use jscommon::directives::Directives;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const BAD_USAGE: u8 = 2;

/// Runs the program; the answer is its exit code.
pub fn main() -> ExitCode {
    // Before anything else: as the interpreter of a Lua script it has nothing to do with an agent.
    if let Some(status) = script::run_if_asked() {
        return status;
    }
    if let Some(status) = process_tree::keep_pipes_if_asked() {
        return status;
    }
    platform::reset_inherited();
    let task = match flags::parse(std::env::args_os().skip(1)) {
        Ok(task) => task,
        Err(reason) => return bad_usage(&[reason]),
    };
    match task {
        Task::Help => print(flags::HELP),
        Task::Version => print(concat!("jsagent ", env!("CARGO_PKG_VERSION"), "\n")),
        Task::Run { config, overrides, check, log } => {
            let read = match read_own_config(config.as_deref(), &overrides) {
                Ok(read) => read,
                Err(faults) => return bad_usage(&faults),
            };
            if check {
                let (passing, mut faults) = credential_faults(&read);
                let entries = trusted_paths::refused_entries(&read);
                let refused = entries.into_iter().chain(trusted_paths::refused(&read));
                faults.splice(0..0, daemon::data_dir_fault(&read.main.data_dir).into_iter().chain(refused));
                if !faults.is_empty() {
                    return bad_usage(&faults);
                }
                // A configuration may be written before its node is enrolled, and a certificate be renewed.
                passing.iter().chain(&trusted_paths::warned(&read)).for_each(|fault| complain(fault));
                let name = config.unwrap_or_else(|| PathBuf::from("the configuration"));
                let and = if passing.is_empty() { "" } else { ", but for what is said of its credentials" };
                return print(&format!("{} is good{and}\n", name.display()));
            }
            diagnostics::start(log);
            platform::leave_start_dir();
            finish(daemon::run(read, &|| ()))
        }
        Task::Status { config, overrides } => {
            let data_dir = match (&overrides.data_dir, &config) {
                (Some(data_dir), _) => Ok(data_dir.clone()),
                (None, None) => Ok(Config::default().main.data_dir),
                (None, Some(_)) => read_config(config.as_deref(), &overrides).map(|config| config.main.data_dir),
            };
            match data_dir {
                Ok(data_dir) => match status::status(&data_dir) {
                    Ok(text) => print(&text),
                    Err(error) => finish(Err(error)),
                },
                Err(faults) => bad_usage(&faults),
            }
        }
        Task::Enroll(what) => match enroll::run(&what) {
            Ok(said) => print(&said),
            Err(error) => finish(Err(error)),
        },
        Task::Service { verb, config } => service(verb, &config.unwrap_or_else(platform::service_config)),
    }
}

/// The agent as a service of the system, where the system has such orders.
fn service(verb: Verb, path: &Path) -> ExitCode {
    let order = match verb {
        Verb::Start => ServiceOrder::Start,
        Verb::Stop => ServiceOrder::Stop,
        Verb::Uninstall => ServiceOrder::Uninstall,
        Verb::Install => match read_config(Some(path), &Overrides::default()) {
            Ok(config) => ServiceOrder::Install { config: path.to_owned(), data_dir: config.main.data_dir },
            Err(faults) => return bad_usage(&faults),
        },
        Verb::Run => {
            let path = path.to_owned();
            return finish(platform::run_service(move |ready| serve(&path, ready)));
        }
    };
    match platform::service(order) {
        Ok(said) => print(&said),
        Err(error) => finish(Err(error)),
    }
}

/// Runs the agent where nobody reads what it prints: its log lies beside its configuration.
fn serve(path: &Path, ready: &dyn Fn()) -> bool {
    let info = Directives::parse("info").expect("a level that there is");
    if diagnostics::start_in(info, &path.with_file_name("jsagent.log")).is_err() {
        return false;
    }
    let ended = match read_own_config(Some(path), &Overrides::default()) {
        Ok(config) => {
            platform::leave_start_dir();
            daemon::run(config, ready)
        }
        Err(faults) => Err(anyhow::anyhow!(faults.join("; "))),
    };
    if let Err(error) = &ended {
        log::error!("{error:#}");
    }
    ended.is_ok()
}

/// As [`read_config`], to run with it: nobody else may be able to change that file.
fn read_own_config(path: Option<&Path>, overrides: &Overrides) -> Result<Config, Vec<String>> {
    let config = read_config(path, overrides)?;
    match path.filter(|_| !overrides.insecure_paths).and_then(trusted_paths::config_fault) {
        None => Ok(config),
        Some(fault) => Err(vec![fault]),
    }
}

/// The configuration of a file and the flags, or every fault in a line of its own.
fn read_config(path: Option<&Path>, overrides: &Overrides) -> Result<Config, Vec<String>> {
    let Some(path) = path else {
        return Config::parse("", overrides).map_err(|faults| {
            let faults: Vec<String> = faults.into_iter().map(|fault| fault.message).collect();
            vec![format!("without -c FILE: {}", faults.join("; "))]
        });
    };
    let bytes =
        jscommon::file::read_any(path).map_err(|error| vec![format!("cannot read {}: {error}", path.display())])?;
    let text = jscommon::text::decode(bytes).map_err(|fault| vec![format!("{}: {fault}", path.display())])?;
    Config::parse(&text, overrides)
        .map_err(|faults| faults.iter().map(|fault| format!("{}: {fault}", path.display())).collect())
}

/// Returns two lists of faults in the files of the controllers' credentials: those that may pass or that the agent can
/// do without, and those that it cannot start with.
fn credential_faults(config: &Config) -> (Vec<String>, Vec<String>) {
    let not_found = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let is_absent = |fault: &anyhow::Error| fault.chain().any(|cause| cause.downcast_ref().is_some_and(not_found));
    let (mut passing, mut bad) = (Vec::new(), Vec::new());
    for (name, settings) in &config.controllers {
        let (list, fault) = match Credentials::load(settings) {
            Ok(found) => match (found.fault_for(config.main.node(), settings), found.fault) {
                (Some(fault), _) => (&mut bad, fault),
                (None, Some(fault)) => (&mut passing, fault),
                (None, None) if settings.token_file.is_none() && settings.client_cert.is_none() => {
                    (&mut passing, Credentials::NONE.to_owned())
                }
                (None, None) => continue,
            },
            Err(fault) if is_absent(&fault) => {
                let enrol = "the agent does not start without it: enrol the node, with jsagent enroll or jsacc enroll";
                (&mut passing, format!("{fault:#}; {enrol}"))
            }
            Err(fault) => (&mut bad, format!("{fault:#}")),
        };
        list.push(format!("controllers.{name}: {fault}"));
    }
    (passing, bad)
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn bad_usage(faults: &[String]) -> ExitCode {
    faults.iter().for_each(|fault| complain(fault));
    ExitCode::from(BAD_USAGE)
}

#[allow(clippy::print_stdout, reason = "what was asked for on the command line goes to stdout")]
fn print(text: &str) -> ExitCode {
    use std::io::Write;
    // A reader that is gone (`| head`) is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

#[allow(clippy::print_stderr, reason = "the one place that says on a terminal why the agent ends")]
fn complain(text: &str) {
    eprintln!("jsagent: {text}");
}
