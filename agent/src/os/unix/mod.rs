//! Linux and its relatives.

mod network;

pub use network::interfaces;
