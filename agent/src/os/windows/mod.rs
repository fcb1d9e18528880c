//! Windows.

mod access;
mod cpu;
mod datagrams;
mod disks;
mod network;
mod pipes;
mod process;
mod replace;
mod service;
mod stop;
mod text;

pub use access::{make_private_dir, open_to_others, sync_dir, write_private};
pub use cpu::Processors;
pub use datagrams::{Datagrams, grow_receive_buffer};
pub use disks::disks;
pub use network::interfaces;
pub use pipes::{Ends, Keeper, Pipes, keep_pipes_if_asked};
pub use process::*;
pub use replace::{Owner, is_busy, replace};
pub use service::{run_service, service, service_config};
pub use stop::stop_signals;
pub use text::DECODE;

/// Nothing: Windows trims what is not used by itself.
pub fn let_go_of_code() {}

/// Nothing: a child inherits what it is given alone.
pub fn reset_inherited() {}

/// Leaves the folder that the agent was started in, which nobody could remove meanwhile.
pub fn leave_start_dir() {
    if let Err(fault) = std::env::set_current_dir(ROOT) {
        log::warn!("the working directory stays as it is: {fault}");
    }
}

/// Windows has no SIGPIPE.
pub fn default_sigpipe() {}

/// Returns a path as a shell of this system reads it back.
pub fn shell_word(path: &std::path::Path) -> String {
    jscommon::text::windows_word(&path.to_string_lossy()).into_owned()
}
