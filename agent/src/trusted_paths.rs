//! Which paths the agent trusts, and what becomes of one that other accounts can change.
//!
//! **The agent's own files** (its configuration, data folder and credentials): an unsafe path keeps it from
//! starting. **A command's files** (scripts, interpreters, extensions, programs of startup jobs): an unsafe path
//! fails that command alone. An agent that does not start cannot be repaired remotely, so it only warns of these at
//! its start. `jscommon::ownership` judges paths. The configuration's `insecure_paths` switches all of it off but
//! for the configuration's own file.

use crate::config::{Config, Startup};
use crate::platform;
use crate::process_tree::PathVars;
use crate::process_tree::spawn::execute;
use std::path::{Path, PathBuf};

/// Entries of the data folder that the agent reads at its start. Files in `scripts` are checked by their hash.
const ENTRIES: &[&str] = &[
    "lock",
    "state.db",
    "state.db-wal",
    "state.db-shm",
    "outbox.db",
    "outbox.db-wal",
    "outbox.db-shm",
    "logs",
    "scripts",
    "jumpscripts",
    "tmp",
];

/// Returns why a configuration file is not taken.
pub(crate) fn config_fault(file: &Path) -> Option<String> {
    platform::path_fault(file)
}

/// Returns why the agent does not start with what lies in its data folder: another account may have changed it. To be
/// asked before [`tighten`] closes that folder.
pub(crate) fn refused_entries(config: &Config) -> Option<String> {
    let data_dir = &config.main.data_dir;
    if config.main.insecure_paths || platform::path_fault(data_dir).is_some() {
        return None;
    }
    entries(data_dir).find_map(|entry| platform::entry_fault(&entry))
}

/// Returns the paths that the agent reads in its data folder.
fn entries(data_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let databases = std::fs::read_dir(data_dir.join("logs")).into_iter().flatten().flatten();
    let own = ENTRIES.iter().map(|name| data_dir.join(name)).collect::<Vec<_>>();
    own.into_iter().chain(databases.take(10_000).map(|entry| entry.path()))
}

/// Returns why the agent does not start with the data folder and the credentials of this configuration.
pub(crate) fn refused(config: &Config) -> Vec<String> {
    if config.main.insecure_paths {
        return Vec::new();
    }
    let mut faults: Vec<String> = platform::path_fault(&config.main.data_dir).into_iter().collect();
    for controller in config.controllers.values() {
        faults.extend(
            [&controller.token_file, &controller.client_key]
                .into_iter()
                .flatten()
                .filter_map(|f| platform::secret_fault(f)),
        );
        faults.extend(
            [&controller.ca, &controller.client_cert].into_iter().flatten().filter_map(|f| platform::path_fault(f)),
        );
    }
    faults
}

/// Takes the rights to read the data folder and the credentials from all others, where these are the agent's own and
/// only that is wrong. Returns what was done, for whatever could be read may have been.
pub(crate) fn tighten(config: &Config) -> Vec<String> {
    let data_dir = [config.main.data_dir.as_path()];
    let secrets = config.controllers.values().flat_map(|controller| [&controller.token_file, &controller.client_key]);
    let open = secrets.flatten().map(|path| path.as_path()).filter(|path| platform::secret_fault(path).is_some());
    let own = data_dir.into_iter().chain(open).filter(|path| platform::path_fault(path).is_none());
    // Nobody could reach these; now nobody could where the folder is opened again.
    entries(&config.main.data_dir).for_each(|entry| drop(platform::make_private(&entry)));
    own.filter(|path| platform::make_private(path).unwrap_or(false))
        .map(|path| format!("{} could be read by other accounts of this machine, and cannot any more", path.display()))
        .collect()
}

/// Returns what the agent starts with all the same, and commands that use it are refused.
pub(crate) fn warned(config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    if config.main.insecure_paths {
        return faults;
    }
    faults.extend(platform::root_fault());
    faults.extend(platform::path_fault(&config.script_path()).map(|fault| format!("scripts.path: {fault}")));
    for (key, program) in [("python", &config.scripts.python), ("lua", &config.scripts.lua)] {
        faults.extend(platform::program_fault(program, None, None).map(|fault| format!("scripts.{key}: {fault}")));
    }
    let path_vars = PathVars::new(&config.main.data_dir);
    for (name, extension) in &config.extensions {
        let fault = platform::program_fault(&path_vars.expand(&extension.binary), extension.cwd.as_deref(), None);
        faults.extend(fault.map(|fault| format!("extensions.{name}.binary: {fault}")));
    }
    for (name, startup) in &config.startup {
        faults.extend(program(startup, &path_vars).map(|fault| format!("startup.{name}: {fault}")));
    }
    faults
}

/// The fault of the program of a startup job; of one that is an extension it stands there.
fn program(startup: &Startup, path_vars: &PathVars) -> Option<String> {
    let user = startup.args.get("user").and_then(|user| platform::Identity::find(user.as_str()?).ok());
    let spec = execute(&startup.args, "", path_vars).ok().filter(|_| startup.cmd == "execute")?;
    platform::program_fault(&spec.program, spec.cwd.as_deref(), user.as_ref())
}
