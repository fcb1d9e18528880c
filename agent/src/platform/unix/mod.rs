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

pub use account::{Identity, is_another_user};
pub use cpu::Processors;
pub use datagrams::{Datagrams, grow_receive_buffer};
pub use disks::disks;
pub(crate) use disks::mounts;
pub use environment::{ROOT, is_inherited_variable, is_path_variable};
pub use files::{make_private_dir, make_user_dir, sync_dir, write_private};
pub use inherited::{leave_start_dir, reset_inherited};
pub use limits::{Limit, supports};
pub use memory::evict_text_pages;
pub use network::interfaces;
pub use owner::Owner;
pub use replace::{check_place, replace};
pub use service::{run_service, service, service_config};
pub use signals::stop_signals;
pub use trust::{entry_fault, make_private, path_fault, program_fault, root_fault, secret_fault};

/// Programs write UTF-8 here.
pub const DECODE: Option<super::Decode> = None;

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
