//! The writing end of a child's stdin: a pipe, or the master of its terminal.

use super::terminal;
use crate::platform::TerminalSize;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ChildStdin;
use std::time::Duration;

/// The writing end of a child's stdin, which never blocks.
pub(crate) struct StdinEnd {
    file: File,
    /// Of a terminal: once it is closed, the reader lets go of the terminal.
    _hangup: Option<PipeWriter>,
}

impl StdinEnd {
    pub(crate) fn new(stdin: ChildStdin, hangup: Option<PipeWriter>) -> io::Result<StdinEnd> {
        let file = File::from(OwnedFd::from(stdin));
        // Nobody shares this end but the reader of a terminal, which expects it.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(StdinEnd { file, _hangup: hangup })
    }

    /// Writes some bytes, at once or within about `wait`; the error of kind `WouldBlock` says that none could be.
    pub(crate) fn write(&self, bytes: &[u8], wait: Option<Duration>) -> io::Result<usize> {
        if let Some(wait) = wait {
            let timeout = PollTimeout::from(u16::try_from(wait.as_millis()).unwrap_or(u16::MAX));
            poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)], timeout)?;
        }
        (&self.file).write(bytes)
    }

    /// Sets the size of a terminal.
    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        terminal::resize(self.file.as_fd(), size)
    }
}
