//! Linux and its relatives.

mod cgroup;
mod clone;
mod cpu;
mod datagrams;
mod disks;
mod files;
mod inherited;
mod keeper;
mod memory;
mod network;
mod pipes;
mod proc;
mod process;
mod program;
mod replace;
mod service;
mod signals;
mod trust;
mod walk;

use super::Spawned;
pub use cgroup::{Cgroups, Group, GroupMembers, group_of, group_path};
pub use cpu::Processors;
pub use datagrams::{Datagrams, grow_receive_buffer};
pub use disks::disks;
pub use files::{make_private_dir, make_user_dir, sync_dir, write_private};
pub use inherited::{leave_start_dir, reset_inherited};
pub use keeper::{Keeper, keep_pipes_if_asked};
pub use memory::evict_text_pages;
pub use network::interfaces;
pub use pipes::{Ends, Pipes};
pub use proc::{mark, processes, storage};
pub use process::*;
pub use replace::{Owner, check_place, replace};
pub use service::{run_service, service, service_config};
pub use signals::stop_signals;
pub use trust::{entry_fault, make_private, path_fault, program_fault, root_fault, secret_fault};

/// Programs write UTF-8 here.
pub const DECODE: Option<super::Decode> = None;

/// Adds the arguments of a program. A whole command line as one argument is Windows' own.
pub fn add_args(command: &mut std::process::Command, args: &[String], _whole_line: bool) -> Result<(), String> {
    command.args(args);
    Ok(())
}

/// Takes back that a Rust program ignores SIGPIPE: for when this process is an interpreter, whose
/// children expect what every other program's children find.
#[allow(unsafe_code)] // Sets no handler, only the default action, before there is a second thread.
pub fn default_sigpipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

/// Returns a path as a shell of this system reads it back.
pub fn shell_word(path: &std::path::Path) -> String {
    jscommon::text::posix_word(&path.to_string_lossy()).into_owned()
}

/// Whether another program keeps a file from being replaced: none does here.
pub fn is_busy(_fault: &std::io::Error, _to: &std::path::Path) -> bool {
    false
}
