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
