//! The two pipes of a child, read by one thread.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ChildStderr, ChildStdout};

/// Pipes that one thread reads; whichever has something is read next.
pub struct Pipes {
    /// Stdout and stderr, until they end.
    open: [Option<File>; 2],
    /// Whose turn it is when both have something.
    turn: usize,
}

impl Pipes {
    /// The pipes of a child, together.
    pub fn of(stdout: ChildStdout, stderr: ChildStderr) -> Vec<Pipes> {
        vec![Pipes { open: [Some(OwnedFd::from(stdout).into()), Some(OwnedFd::from(stderr).into())], turn: 0 }]
    }

    /// Waits for bytes and puts them into `buffer`, which is not empty. Says which stream they are of, 0
    /// or 1, and how many: none at the end of that stream. Nothing once both have ended.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, usize)>> {
        loop {
            let stream = match &self.open {
                [None, None] => return Ok(None),
                [Some(_), None] => 0,
                [None, Some(_)] => 1,
                [Some(out), Some(err)] => {
                    let mut both = [out, err].map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
                    match poll(&mut both, PollTimeout::NONE) {
                        Ok(_) => {}
                        Err(Errno::EINTR) => continue,
                        Err(fault) => return Err(fault.into()),
                    }
                    self.turn = 1 - self.turn;
                    match both[self.turn].any() {
                        Some(true) => self.turn,
                        _ => 1 - self.turn,
                    }
                }
            };
            let Some(pipe) = &mut self.open[stream] else { continue };
            match pipe.read(buffer) {
                Ok(0) => self.open[stream] = None,
                Err(fault) if fault.kind() == io::ErrorKind::Interrupted => continue,
                Err(fault) => return Err(fault),
                Ok(read) => return Ok(Some((stream, read))),
            }
            return Ok(Some((stream, 0)));
        }
    }
}
