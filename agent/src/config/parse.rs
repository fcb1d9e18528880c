//! Which keys a configuration has, and what each may hold.
//!
//! PURE but for making paths absolute. Flags of the command line override the text, and supply what it leaves out.
//! So both are read here together.

use super::read::{Fault, Reader, Section, Spot};
use super::{Config, Controller, Extension, Startup};
use crate::job::{ExecuteArgs, RunArgs, command_names};
use jscommon::LevelSet;
use jscommon::command::is_job_id;
use jscommon::node::{MAX_ROLE, is_role};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The values of the command line's flags; they override the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    /// `--gid`.
    pub(crate) gid: Option<u32>,
    /// `--nid`.
    pub(crate) nid: Option<u32>,
    /// `--controller`: the address of the one controller.
    pub(crate) controller: Option<String>,
    /// `--data-dir`.
    pub(crate) data_dir: Option<PathBuf>,
    /// `--insecure-paths`, which holds for the file too.
    pub(crate) insecure_paths: bool,
}

impl Config {
    /// Reads a configuration, or says everything that is wrong with it at once.
    pub(crate) fn parse(text: &str, overrides: &Overrides) -> Result<Config, Vec<Fault>> {
        let (mut reader, mut root) = Reader::open(text);
        let r = &mut reader;
        let mut config = Config::default();
        let section = root.table(r, "main");
        main(r, section, &mut config, overrides);
        for (name, section) in root.table(r, "controllers").tables(r) {
            let controller = controller(r, section);
            config.controllers.insert(name, controller);
        }
        override_controller(r, &mut config, overrides);
        let section = root.table(r, "logging");
        logging(r, section, &mut config);
        let section = root.table(r, "stats");
        stats(r, section, &mut config);
        let mut monitor = root.table(r, "monitor");
        set(&mut config.monitor.interval, monitor.seconds(r, "interval", 0.1));
        monitor.end(r);
        let section = root.table(r, "scripts");
        scripts(r, section, &mut config);
        for (name, section) in root.table(r, "extensions").tables(r) {
            let extension = extension(r, &name, section);
            config.extensions.insert(name, extension);
        }
        for (name, section) in root.table(r, "startup").tables(r) {
            let startup = startup(r, &name, section, &config.extensions);
            config.startup.insert(name, startup);
        }
        root.end(r);
        let faults = reader.faults();
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn main(r: &mut Reader, mut section: Section, config: &mut Config, overrides: &Overrides) {
    let main = &mut config.main;
    let most = u64::from(u32::MAX);
    for (key, place, flag) in [("gid", &mut main.gid, overrides.gid), ("nid", &mut main.nid, overrides.nid)] {
        let number = section.number(r, key, 1, most).map(|n| n as u32);
        match flag {
            Some(0) => r.fault_of_flag(format!("--{key} must be 1 or more")),
            Some(number) => *place = number,
            None => set(place, number),
        }
        if !section.had(key) && flag.is_none() {
            r.missing(section.at, format!("main.{key} is missing: set it, or give --{key}"));
        }
    }
    if let Some(roles) = section.strings(r, "roles") {
        for role in roles.value.iter().filter(|role| !is_role(role)) {
            let shown: String = role.escape_debug().take(MAX_ROLE).collect();
            r.fault(roles.at, format!("main.roles: \"{shown}\": a role is 1 to {MAX_ROLE} of A-Z a-z 0-9 . _ : / -"));
        }
        if roles.value.len() > 64 {
            r.fault(roles.at, "main.roles: a node has at most 64 roles");
        }
        main.roles = roles.value;
    }
    set(&mut main.data_dir, section.path_value(r, "data_dir"));
    if let Some(data_dir) = &overrides.data_dir {
        match std::path::absolute(data_dir) {
            Ok(path) => main.data_dir = path,
            Err(error) => r.fault_of_flag(format!("--data-dir is no path: {error}")),
        }
    }
    set(&mut main.max_jobs, section.number(r, "max_jobs", 1, 100_000).map(|n| n as usize));
    if let Some(names) = section.strings(r, "env") {
        for fault in names.value.iter().filter_map(|name| variable_fault(name)) {
            r.fault(names.at, format!("main.env: {fault}"));
        }
        main.env = names.value;
    }
    set(&mut main.insecure_paths, section.truth(r, "insecure_paths"));
    main.insecure_paths |= overrides.insecure_paths;
    section.end(r);
}

/// Why the agent's variable of this name cannot be handed on to processes; nothing when it can.
fn variable_fault(name: &str) -> Option<String> {
    const MANAGER: [&str; 6] =
        ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];
    let shown = name.escape_debug();
    if name.contains('=') {
        return Some(format!("\"{shown}\" holds a value: list names alone, for example \"HTTPS_PROXY\""));
    }
    if name.is_empty() || name.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '*' | '?' | '$')) {
        return Some(format!("\"{shown}\" is no name of a variable: write each name in full, without blanks, * or $"));
    }
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("AGENT_") || MANAGER.contains(&upper.as_str()) {
        return Some(format!("\"{shown}\" is not for processes: the agent sets AGENT_* itself, remove it here"));
    }
    None
}

fn controller(r: &mut Reader, mut section: Section) -> Controller {
    let mut controller = Controller::default();
    match section.one_or_more(r, "url") {
        Some(Spot { value: urls, at }) => {
            if urls.is_empty() {
                r.fault(at, format!("{}.url is an empty list: name at least one address", section.name));
            }
            for url in urls {
                match address(&url) {
                    Ok(url) => controller.urls.push(url),
                    Err(reason) => r.fault(at, format!("{}.url: {reason}", section.name)),
                }
            }
        }
        None if section.had("url") => {}
        None => r.missing(section.at, format!("{}.url is missing", section.name)),
    }
    controller.token_file = section.path_value(r, "token_file");
    controller.ca = section.path_value(r, "ca");
    controller.client_cert = section.path_value(r, "client_cert");
    controller.client_key = section.path_value(r, "client_key");
    if controller.client_cert.is_some() != controller.client_key.is_some() {
        r.missing(section.at, format!("{}: client_cert and client_key belong together", section.name));
    }
    section.end(r);
    controller
}

fn override_controller(r: &mut Reader, config: &mut Config, overrides: &Overrides) {
    let Some(url) = &overrides.controller else {
        if config.controllers.is_empty() {
            r.missing(0, "no controller: add [controllers.main] with its url, or give --controller");
        }
        return;
    };
    let url = match address(url) {
        Ok(url) => url,
        Err(reason) => return r.fault_of_flag(format!("--controller: {reason}")),
    };
    let name = match config.controllers.len() {
        0 => "main".to_owned(),
        1 => config.controllers.keys().next().cloned().unwrap_or_default(),
        _ if config.controllers.contains_key("main") => "main".to_owned(),
        _ => return r.fault_of_flag("--controller: the file names several controllers, and none of them is \"main\""),
    };
    config.controllers.entry(name).or_default().urls = vec![url];
}

/// The address of a controller without the slash at its end, or why it is none.
pub(crate) fn address(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest.map(|rest| rest.trim_end_matches('/')) else {
        return Err(format!("\"{url}\" must begin with https:// (or http://)"));
    };
    let uri: Result<ureq::http::Uri, _> = url.parse();
    let host = uri.as_ref().ok().and_then(|uri| uri.host()).unwrap_or_default();
    if host.is_empty() || rest.contains(['?', '#', '@', ' ']) {
        return Err(format!("\"{url}\" must be https://host:port"));
    }
    // The library takes a port that it cannot read for none, and connects to the default one.
    let authority = rest.split('/').next().unwrap_or_default();
    let port = authority.strip_prefix(host).and_then(|port| port.strip_prefix(':'));
    if port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..)) || !port.bytes().all(|b| b.is_ascii_digit())) {
        return Err(format!("\"{url}\" has a port that is no number from 1 to 65535"));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn logging(r: &mut Reader, mut section: Section, config: &mut Config) {
    let mut db = section.table(r, "db");
    levels(r, &mut db, &mut config.logging.db.levels);
    set(&mut config.logging.db.max_size_mb, db.number(r, "max_size_mb", 1, 1 << 20));
    set(&mut config.logging.db.keep, db.number(r, "keep", 0, 100_000).map(|n| n as usize));
    db.end(r);
    let mut ac = section.table(r, "ac");
    levels(r, &mut ac, &mut config.logging.ac.levels);
    set(&mut config.logging.ac.flush_interval, ac.seconds(r, "flush_interval", 0.01));
    set(&mut config.logging.ac.batch_size, ac.number(r, "batch_size", 1, 10_000).map(|n| n as usize));
    config.logging.ac.controllers = chosen(r, &mut ac, &config.controllers);
    ac.end(r);
    section.end(r);
}

fn levels(r: &mut Reader, section: &mut Section, place: &mut LevelSet) {
    let Some(given) = section.value(r, "levels") else { return };
    match LevelSet::from_json(&given.value) {
        Ok(set) => *place = set,
        Err(reason) => r.fault(given.at, format!("{}.levels: {reason}", section.name)),
    }
}

fn chosen(r: &mut Reader, section: &mut Section, known: &BTreeMap<String, Controller>) -> Vec<String> {
    let Some(names) = section.strings(r, "controllers") else { return Vec::new() };
    for name in names.value.iter().filter(|name| !known.contains_key(*name)) {
        r.fault(names.at, format!("{}.controllers: there is no [controllers.{name}]", section.name));
    }
    names.value
}

fn stats(r: &mut Reader, mut section: Section, config: &mut Config) {
    set(&mut config.stats.interval, section.seconds(r, "interval", 1.0));
    if let Some(listen) = section.string(r, "listen").filter(|listen| !listen.value.is_empty()) {
        match listen.value.parse() {
            Ok(address) => config.stats.listen = Some(address),
            Err(_) => r.fault(listen.at, "stats.listen must be an address and a port, 127.0.0.1:8125 say"),
        }
    }
    config.stats.controllers = chosen(r, &mut section, &config.controllers);
    section.end(r);
}

fn scripts(r: &mut Reader, mut section: Section, config: &mut Config) {
    if let Some(python) = section.string(r, "python") {
        if python.value.is_empty() {
            r.fault(python.at, "scripts.python must name the interpreter");
        }
        r.check_path(python.at, "scripts.python", &python.value);
        config.scripts.python = program(python.value);
    }
    if let Some(lua) = section.string(r, "lua") {
        r.check_path(lua.at, "scripts.lua", &lua.value);
        config.scripts.lua = program(lua.value);
    }
    set(&mut config.scripts.path, section.path_value(r, "path"));
    section.end(r);
}

/// A program that is no name for `PATH` belongs to the folder that the agent was started in, which it
/// leaves. One of a placeholder is absolute already.
fn program(text: String) -> String {
    let is_name = !text.contains(['/', '\\']) || text.starts_with('$');
    match std::path::absolute(&text) {
        Ok(path) if !is_name => path.to_string_lossy().into_owned(),
        _ => text,
    }
}

fn extension(r: &mut Reader, name: &str, mut section: Section) -> Extension {
    if name.is_empty() || is_builtin(name) {
        r.fault(section.at, format!("{}: that is a built-in command; give it another name", section.name));
    }
    let mut extension = Extension::default();
    match section.string(r, "binary") {
        Some(binary) if !binary.value.is_empty() => {
            r.check_path(binary.at, &format!("{}.binary", section.name), &binary.value);
            extension.binary = binary.value;
        }
        Some(binary) => r.fault(binary.at, format!("{}.binary must name a program", section.name)),
        None if section.had("binary") => {}
        None => r.missing(section.at, format!("{}.binary is missing", section.name)),
    }
    extension.args = section.strings(r, "args").map(|args| args.value).unwrap_or_default();
    extension.cwd = section.path_value(r, "cwd");
    if extension.cwd.is_none() {
        extension.binary = program(extension.binary);
    }
    extension.env = section.string_map(r, "env");
    if let Some(keys) = section.strings(r, "allow_options") {
        let is_used = |key: &String| key == "*" || extension.args.iter().any(|arg| arg.contains(&format!("{{{key}}}")));
        for key in keys.value.iter().filter(|key| !is_used(key)) {
            r.fault(keys.at, format!("{}.allow_options: no argument in args has {{{key}}}", section.name));
        }
        extension.allow_options = keys.value;
    }
    section.end(r);
    extension
}

fn startup(r: &mut Reader, name: &str, mut section: Section, extensions: &BTreeMap<String, Extension>) -> Startup {
    if !is_job_id(name) {
        r.fault(section.at, format!("{}: the name is the job's id, 1 to 128 of A-Z a-z 0-9 . _ : -", section.name));
    }
    let mut startup = Startup::default();
    match section.string(r, "cmd") {
        Some(cmd) if is_builtin(&cmd.value) || extensions.contains_key(&cmd.value) => startup.cmd = cmd.value,
        Some(cmd) => r.fault(
            cmd.at,
            format!("{}.cmd: there is no command \"{}\"; execute runs a program", section.name, cmd.value),
        ),
        None if section.had("cmd") => {}
        None => r.missing(section.at, format!("{}.cmd is missing; execute runs a program", section.name)),
    }
    let args = section.json(r, "args");
    if let Err(reason) = process_args(&startup.cmd, &args.value) {
        r.fault(args.at, format!("{}.args: {reason}", section.name));
    }
    // A `cmd` with `args` is a path, without them a line that may have several lines.
    let has_list = args.value.get("args").is_some_and(Value::is_array);
    for key in ["workingdir", "cmd"].iter().take(if has_list { 2 } else { 1 }) {
        if let Some(path) = args.value.get(*key).and_then(Value::as_str) {
            r.check_path(args.at, &format!("{}.args.{key}", section.name), path);
        }
    }
    startup.args = args.value;
    set(&mut startup.data, section.string(r, "data").map(|data| data.value));
    section.end(r);
    startup
}

/// Whether a process can be started with these arguments; of a built-in command it is not asked.
fn process_args(cmd: &str, args: &Map<String, Value>) -> Result<(), String> {
    if cmd.is_empty() || command_names::is_builtin(cmd) {
        return Ok(());
    }
    if cmd == "execute" {
        ExecuteArgs::parse(args)?;
    }
    RunArgs::parse(args).map(drop)
}

/// Whether the agent knows this command without any configuration.
fn is_builtin(name: &str) -> bool {
    matches!(name, "execute" | "execute_js_py" | "execute_js_lua") || command_names::is_builtin(name)
}

#[cfg(test)]
mod tests;
