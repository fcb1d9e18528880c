//! The writing end of a child's stdin: a pipe.

use crate::platform::TerminalSize;
use std::io::{self, PipeWriter, Write};
use std::process::ChildStdin;
use std::sync::Mutex;
use std::time::Duration;

/// The writing end of a child's stdin.
pub(crate) struct StdinEnd(Mutex<ChildStdin>);

impl StdinEnd {
    pub(crate) fn new(stdin: ChildStdin, _hangup: Option<PipeWriter>) -> io::Result<StdinEnd> {
        Ok(StdinEnd(Mutex::new(stdin)))
    }

    /// Writes some bytes, and waits for as long as that takes; without `wait` the error of kind `WouldBlock` says that
    /// it cannot be done so.
    pub(crate) fn write(&self, bytes: &[u8], wait: Option<Duration>) -> io::Result<usize> {
        match wait {
            Some(_) => jscommon::lock::lock(&self.0).write(bytes),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// There are no terminals here.
    pub(crate) fn resize(&self, _size: TerminalSize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
