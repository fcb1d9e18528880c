//! Linux and its relatives.

mod files;
mod network;
mod process;
mod signals;

pub use files::{make_private_dir, open_to_others, write_private};
pub use network::interfaces;
pub use process::*;
pub use signals::stop_signals;
