//! Linux and its relatives.

mod account;
mod cpu;
mod datagrams;
mod disks;
mod environment;
mod files;
pub(crate) mod inherited;
mod limits;
mod memory;
mod network;
mod owner;
mod replace;
mod service;
mod signals;
mod trust;
mod walk;

pub(crate) use account::{Identity, is_another_user};
pub(crate) use cpu::Processors;
pub(crate) use datagrams::{Datagrams, grow_receive_buffer};
pub(crate) use disks::disks;
pub(crate) use disks::mounts;
pub(crate) use environment::{ROOT, is_inherited_variable, is_path_variable};
pub(crate) use files::{make_private_dir, make_user_dir, open_private, sync_dir, write_private};
pub(crate) use inherited::{leave_start_dir, reset_inherited};
pub(crate) use limits::{Limit, supports};
pub(crate) use memory::evict_text_pages;
pub(crate) use network::interfaces;
pub(crate) use owner::Owner;
pub(crate) use replace::{check_place, replace};
pub(crate) use service::{run_service, service, service_config};
pub(crate) use signals::stop_signals;
pub(crate) use trust::{entry_fault, make_private, path_fault, program_fault, root_fault, secret_fault};

/// Programs write UTF-8 here.
pub(crate) const DECODE: Option<super::Decode> = None;

/// Takes back that a Rust program ignores SIGPIPE: for when this process is an interpreter, whose
/// children expect what every other program's children find.
#[allow(unsafe_code)] // Sets no handler, only the default action, before there is a second thread.
pub(crate) fn default_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Returns a path as a shell of this system reads it back.
pub(crate) fn shell_word(path: &std::path::Path) -> String {
    jscommon::text::posix_word(&path.to_string_lossy()).into_owned()
}

/// Whether another program keeps a file from being replaced: none does here.
pub(crate) fn is_busy(_fault: &std::io::Error, _to: &std::path::Path) -> bool {
    false
}

/// Returns the mode bits of a file as octal text.
pub(crate) fn mode_of(meta: &std::fs::Metadata) -> String {
    use std::os::unix::fs::PermissionsExt;
    format!("{:04o}", meta.permissions().mode() & 0o7777)
}
