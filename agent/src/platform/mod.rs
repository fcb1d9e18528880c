//! Where operating systems differ: one interface, and the folder of this system behind it.
//!
//! Nothing else in the agent asks which system it runs on.

pub(crate) mod cmdline;
mod content;
mod rename;
mod signal;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use content::Content;
pub(crate) use rename::rename;
pub(crate) use signal::Signal;
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

/// Returns the time, in milliseconds since 1970.
pub(crate) fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// The umask of a child that asks for none.
pub(crate) const UMASK: u32 = 0o022;

/// Turns bytes that are no UTF-8 into text, as this system's old programs mean them.
pub(crate) type Decode = fn(&[u8]) -> std::borrow::Cow<'_, str>;

/// An action on the agent as a service of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServiceOrder {
    /// Install it, or bring it up to date.
    Install { config: std::path::PathBuf, data_dir: std::path::PathBuf },
    /// Start it and wait until it runs.
    Start,
    /// Stop it and wait until it has ended.
    Stop,
    /// Stop it and remove it.
    Uninstall,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// How much a file system holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// Its size in bytes.
    pub(crate) total: u64,
    /// The free space for ordinary users, in bytes.
    pub(crate) free: u64,
}

/// A file system that is mounted, or has a letter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The device on Unix; the volume's name on Windows.
    pub(crate) device: String,
    /// Where it is found.
    pub(crate) mount: String,
    /// Its kind.
    pub(crate) fstype: String,
    /// Its space; `None` when it does not answer.
    pub(crate) space: Option<Space>,
    /// Whether nothing can be written there.
    pub(crate) readonly: bool,
    /// Whether its medium can be taken out.
    pub(crate) removable: bool,
}

/// A network interface.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    /// Its hardware address, `00:00:00:00:00:00` where it has none.
    pub(crate) mac: String,
    /// The largest packet in bytes, 0 where it is not known.
    pub(crate) mtu: u64,
    /// Its addresses as `ip/prefix`.
    pub(crate) addrs: Vec<String>,
    /// Bytes received and sent, errors on receiving and on sending, since the start of the system.
    pub(crate) counters: [u64; 4],
}
