//! Windows.

mod access;
mod account;
mod cpu;
mod datagrams;
mod disks;
mod environment;
mod limits;
mod network;
mod replace;
mod service;
mod stop;
mod text;

pub(crate) use access::{
    make_private_dir, open_private, path_fault, program_fault, secret_fault, sync_dir, write_private,
};
pub(crate) use account::{Identity, is_another_user, make_user_dir};
pub(crate) use cpu::Processors;
pub(crate) use datagrams::{Datagrams, grow_receive_buffer};
pub(crate) use disks::disks;
pub(crate) use environment::{ROOT, is_inherited_variable, is_path_variable};
pub(crate) use limits::{Limit, supports};
pub(crate) use network::interfaces;
pub(crate) use replace::{Owner, check_place, is_busy, replace};
pub(crate) use service::{run_service, service, service_config};
pub(crate) use stop::stop_signals;
pub(crate) use text::DECODE;

/// Nothing: Windows trims what is not used by itself.
pub(crate) fn evict_text_pages() {}

/// Nothing: a child inherits what it is given alone.
pub(crate) fn reset_inherited() {}

/// Leaves the folder that the agent was started in, which nobody could remove meanwhile.
pub(crate) fn leave_start_dir() {
    if let Err(fault) = std::env::set_current_dir(ROOT) {
        log::warn!("the working directory stays as it is: {fault}");
    }
}

/// Of nothing here: the list of rights of the folder above holds for what lies in it.
pub(crate) fn entry_fault(_path: &std::path::Path) -> Option<String> {
    None
}

/// Of nothing: a drive's root belongs to the system.
pub(crate) fn root_fault() -> Option<String> {
    None
}

/// Does nothing: [`make_private_dir`] sets the rights of a folder when it makes it.
pub(crate) fn make_private(_path: &std::path::Path) -> std::io::Result<bool> {
    Ok(false)
}

/// Windows has no SIGPIPE.
pub(crate) fn default_sigpipe() {}

/// Returns a path as a shell of this system reads it back.
pub(crate) fn shell_word(path: &std::path::Path) -> String {
    jscommon::text::windows_word(&path.to_string_lossy()).into_owned()
}

/// Returns mode bits as octal text, by whether the file is read-only: Windows has no others.
pub(crate) fn mode_of(meta: &std::fs::Metadata) -> String {
    (if meta.permissions().readonly() { "0444" } else { "0644" }).to_owned()
}
