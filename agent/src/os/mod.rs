//! Where operating systems differ: one interface, and the folder of this system behind it.
//!
//! Nothing else in the agent asks which system it runs on.

mod process;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

pub use process::{Mark, Proc, Signal, Spawned};
#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

/// Turns bytes that are no UTF-8 into text, as this system's old programs mean them.
pub type Decode = fn(&[u8]) -> std::borrow::Cow<'_, str>;

/// What is to be done with the agent as a service of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceOrder {
    /// Install it, or bring it up to date.
    Install {
        /// The configuration that it runs with.
        config: std::path::PathBuf,
        /// The data folder in that configuration.
        data_dir: std::path::PathBuf,
    },
    /// Start it and wait until it runs.
    Start,
    /// Stop it and wait until it has ended.
    Stop,
    /// Stop it and remove it.
    Uninstall,
}

/// A network interface that sysinfo did not find.
#[derive(Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, `00:00:00:00:00:00` where it has none.
    pub mac: String,
    /// The largest packet in bytes, 0 where it is not known.
    pub mtu: u64,
    /// Its addresses as `ip/prefix`.
    pub addrs: Vec<String>,
    /// Bytes received and sent, errors on receiving and on sending, since the start of the system.
    pub counters: [u64; 4],
}
