//! The process of a Lua script: the agent itself, which has Lua built in, or a configured interpreter.
//!
//! The built-in Lua runs in a process of its own, as every job does: the agent's program, started
//! with [`FLAG`], is then nothing but an interpreter.

use super::Script;
use crate::platform;
use crate::process_tree::Spec;
use mlua::{Lua, LuaOptions, StdLib};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

/// The Lua source that defines the interface of scripts.
const RUNNER: &str = include_str!("runner.lua");

/// The module `json` of scripts.
const JSON: &str = include_str!("json.lua");

/// The first argument that makes the agent's program an interpreter. No user's business, so no help names it.
const FLAG: &str = "--run-lua";

/// The agent itself runs the script; on stdin lie its source and then its data.
pub(super) fn spec(script: Script, words: &[String], data: &str) -> Result<Spec, String> {
    let program = own_program().map_err(|error| format!("the agent's own program cannot be found: {error}"))?;
    let mut args = vec![FLAG.to_owned(), script.source.len().to_string(), chunk(&script), script.path];
    args.extend_from_slice(words);
    let stdin = [script.source.as_slice(), data.as_bytes()].concat();
    Ok(Spec { program: program.to_string_lossy().into_owned(), args, stdin, ..Spec::default() })
}

/// The program of this process. Where an upgrade has replaced the file, what runs is still there for
/// Linux, and only that one is sure to understand [`FLAG`] as it is meant here.
fn own_program() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    match program.exists() || !cfg!(target_os = "linux") {
        true => Ok(program),
        false => Ok("/proc/self/exe".into()),
    }
}

/// The configured interpreter runs the script; on stdin lie JSON, runner, source and data.
pub(super) fn spec_of(interpreter: &str, script: Script, words: &[String], data: &str) -> Spec {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    let first = format!(
        "local load=loadstring or load \
         local json=io.read({}) \
         local run=assert(load(io.read({}),'=jsagent')) \
         if not run({},{},{},{{{}}},json) then os.exit(1) end",
        JSON.len(),
        RUNNER.len(),
        // Reading nothing at the end of the input gives nil.
        if script.source.is_empty() { "''".to_owned() } else { format!("io.read({})", script.source.len()) },
        quote(&script.path),
        quote(&chunk(&script)),
        words.join(",")
    );
    let stdin = [JSON.as_bytes(), RUNNER.as_bytes(), &script.source, data.as_bytes()].concat();
    let args = vec!["-e".to_owned(), first];
    Spec { program: interpreter.to_owned(), args, stdin, is_configured: true, ..Spec::default() }
}

/// Returns the script's name in Lua's messages: a file's path after an @, else a name after an =.
fn chunk(script: &Script) -> String {
    match script.folder.is_empty() {
        true => format!("={}", script.label),
        false => format!("@{}", script.path),
    }
}

/// A text as a literal of every Lua.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() && c.is_ascii() => out.push_str(&format!("\\{:03}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Runs a script, when this process was started for that: `main` asks before it does anything else.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != FLAG {
        return None;
    }
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    platform::default_sigpipe();
    Some(match run(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    })
}

fn run(args: Vec<String>) -> anyhow::Result<bool> {
    let mut args = args.into_iter();
    let (Some(size), Some(chunk), Some(path)) = (args.next(), args.next(), args.next()) else {
        anyhow::bail!("{FLAG} is for the agent itself");
    };
    let source = source(size.parse()?)?;
    interpret(&source, path, chunk, args).map_err(|error| anyhow::anyhow!("{error}"))
}

/// Whether the script came to its end without an uncaught error.
fn interpret(source: &[u8], path: String, chunk: String, words: impl Iterator<Item = String>) -> mlua::Result<bool> {
    let lua = open();
    let words = lua.create_sequence_from(words)?;
    let runner = lua.load(RUNNER).set_name("=jsagent").into_function()?;
    runner.call((lua.create_string(source)?, path, chunk, words, JSON))
}

/// A Lua with everything that belongs to it, `debug` too.
#[allow(unsafe_code)] // `debug` and C modules can break Lua's own state: here a process that has nothing else.
fn open() -> Lua {
    unsafe { Lua::unsafe_new_with(StdLib::ALL, LuaOptions::new()) }
}

/// The first bytes of stdin, and none beyond them: what follows is the script's.
fn source(size: usize) -> io::Result<Vec<u8>> {
    let mut source = vec![0; size];
    unbuffered_stdin()?.read_exact(&mut source)?;
    Ok(source)
}

#[cfg(unix)]
fn unbuffered_stdin() -> io::Result<File> {
    use std::os::fd::AsFd;
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

#[cfg(windows)]
fn unbuffered_stdin() -> io::Result<File> {
    use std::os::windows::io::AsHandle;
    Ok(io::stdin().as_handle().try_clone_to_owned()?.into())
}
