//! Linux and its relatives.

mod datagrams;
mod files;
mod network;
mod process;
mod signals;

pub use datagrams::{Datagrams, grow_receive_buffer};
pub use files::{make_private_dir, open_to_others, write_private};
pub use network::interfaces;
pub use process::*;
pub use signals::stop_signals;
