//! Jumpscripts: Python and Lua sources that run as jobs.
//!
//! **Owns** where a script comes from (a folder of the node by domain and name, or the controller by
//! hash) and how it is handed to its interpreter. The supervisor asks [`prepare`] for what to start
//! and runs it as any other process, so that limits, restarts, markers and trees are the same.
//!
//! The interpreter is given everything on stdin: the runner, the source, and then the job's data. So
//! the script's user need not be able to read the agent's folder, nothing is left behind,
//! and it does not matter what becomes of the file meanwhile.

mod blob;
mod cache;
mod fetches;
mod find;
mod lua;
mod python;
mod store;

pub(crate) use lua::run_if_asked;
#[cfg(test)]
pub(crate) use store::FetchError;
pub(crate) use store::{ScriptSource, Store};

use crate::config::Config;
use crate::job::args;
use crate::job::fields::Fields;
use crate::process_tree::{NotStarted, PathVars, Spec};
use jscommon::Command;

/// Largest source, in bytes; the controller keeps none that is larger. A larger file travels in pieces.
pub(crate) const MAX_SOURCE: u64 = 16 * 1024 * 1024;

/// The language of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Python,
    Lua,
}

impl Language {
    fn of(command: &str) -> Option<Language> {
        match command {
            "execute_js_py" => Some(Language::Python),
            "execute_js_lua" => Some(Language::Lua),
            _ => None,
        }
    }

    /// How its files end, without the dot.
    fn ending(self) -> &'static str {
        match self {
            Language::Python => "py",
            Language::Lua => "lua",
        }
    }
}

/// A script that was found.
#[derive(Debug, PartialEq)]
struct Script {
    /// Its file.
    path: String,
    /// The folder whose modules it can load; empty is none.
    folder: String,
    /// Its name in messages.
    label: String,
    /// Its text.
    source: Vec<u8>,
}

/// Whether a command of this name runs a script.
pub(crate) fn is_script(name: &str) -> bool {
    Language::of(name).is_some()
}

/// Returns the process of a command that runs a script. The error is one sentence for the job's result.
///
/// It reads files and may ask the controllers, for some seconds: not for the supervisor's own thread.
/// Asked again before each run it finds a script that was changed meanwhile.
pub(crate) fn prepare(store: &Store, config: &Config, command: &Command) -> Result<Spec, NotStarted> {
    let language = Language::of(&command.cmd).ok_or_else(|| format!("{} runs no script", command.cmd))?;
    let mut args = Fields::new(&command.args);
    let (words, env) = (args.words("args").unwrap_or_default(), args::environment(&mut args));
    let cwd = args.text("workingdir").unwrap_or_default();
    let (hash, domain, name) = (args.text("hash"), args.text("domain"), args.text("name"));
    args.finish(())?;
    let wanted = wanted(hash.unwrap_or_default(), domain.unwrap_or_default(), name.unwrap_or_default())?;
    let mut script = store.find(&wanted, language)?;
    if language == Language::Lua {
        // Lua's own reader of files skips it, its `load` does not. Python does so by itself.
        script.source = jscommon::text::without_bom(&script.source).to_vec();
    }
    let scripts = &config.scripts;
    let spec = match language {
        Language::Python => python::spec(&scripts.python, script, &words, &command.data),
        Language::Lua if scripts.lua.is_empty() => lua::spec(script, &words, &command.data)?,
        Language::Lua => lua::spec_of(&scripts.lua, script, &words, &command.data),
    };
    let path_vars = PathVars::new(&config.main.data_dir).of_job(&command.args);
    let cwd = (!cwd.is_empty()).then(|| path_vars.expand(cwd).into());
    Ok(Spec { env, cwd, ..spec })
}

/// Which script a command asks for.
#[derive(Debug, PartialEq)]
enum Wanted {
    /// The one with this SHA-256, in lower-case hex; and what to call it.
    Hash(String, String),
    /// The one of this domain and name.
    Named(String, String),
}

fn wanted(hash: &str, domain: &str, name: &str) -> Result<Wanted, String> {
    if !hash.is_empty() {
        return match hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            true => Ok(Wanted::Hash(hash.to_ascii_lowercase(), name.to_owned())),
            false => Err("hash must be a script's SHA-256: 64 hexadecimal digits".into()),
        };
    }
    match (domain, name) {
        ("", "") => Err("which script? give domain and name, or hash".into()),
        ("", _) => Err("domain is missing: a script is found by domain and name, or by hash".into()),
        (_, "") => Err("name is missing: a script is found by domain and name, or by hash".into()),
        _ => Ok(Wanted::Named(domain.to_owned(), name.to_owned())),
    }
}

#[cfg(test)]
mod tests;
