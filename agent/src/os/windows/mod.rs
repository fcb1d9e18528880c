//! Windows.

mod datagrams;
mod process;
mod replace;

use super::Interface;
use crossbeam_channel::Receiver;
pub use datagrams::{Datagrams, grow_receive_buffer};
pub use process::*;
pub use replace::{Owner, replace};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Nothing: Windows trims what is not used by itself.
pub fn let_go_of_code() {}

/// None: sysinfo finds every interface here.
pub fn interfaces() -> Vec<Interface> {
    Vec::new()
}

/// Writes a file, and returns once it survives power loss. Who may read it follows from its folder.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a folder, and those above it. Who may enter it follows from the one above.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

/// Whether others may read this file: rights follow from the folder here, so nothing is said.
pub fn open_to_others(_path: &Path) -> bool {
    false
}

/// Windows has no signals: Ctrl-C ends the process, and its job object ends the children.
pub fn stop_signals() -> io::Result<Receiver<&'static str>> {
    Ok(crossbeam_channel::never())
}
/// Windows has no SIGPIPE.
pub fn default_sigpipe() {}
