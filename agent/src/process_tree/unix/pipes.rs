//! The two pipes of a child, read by one thread.
//!
//! Of a child with a terminal the first is the master, and the second is a pipe that has no bytes: its end is the
//! terminal's too.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ChildStderr, ChildStdout};
use std::sync::{Arc, Weak};

/// Pipes that one thread reads; whichever has something is read next.
pub(crate) struct Pipes {
    /// Stdout and stderr, until they end.
    open: [Option<Arc<File>>; 2],
    /// The stream that is read next when both have bytes. Stdout is first, for most programs write there first.
    turn: usize,
    is_terminal: bool,
}

/// The reading ends of a child's pipes, as long as their reader has them open.
pub(crate) struct Ends([Weak<File>; 2]);

impl Ends {
    /// Returns those that are open.
    pub(super) fn open(&self) -> Vec<Arc<File>> {
        self.0.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Pipes {
    /// The pipes of a child, together, and another way to them; none to a terminal, which goes with its run.
    pub(crate) fn of(stdout: ChildStdout, stderr: ChildStderr, is_terminal: bool) -> (Vec<Pipes>, Option<Ends>) {
        let both = [OwnedFd::from(stdout), OwnedFd::from(stderr)].map(|pipe| Arc::new(File::from(pipe)));
        let ends = Ends([Arc::downgrade(&both[0]), Arc::downgrade(&both[1])]);
        (vec![Pipes { open: both.map(Some), turn: 0, is_terminal }], (!is_terminal).then_some(ends))
    }

    /// Waits for bytes and puts them into `buffer`, which is not empty. Says which stream they are of, 0
    /// or 1, and how many: none at the end of that stream. Nothing once both have ended.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, usize)>> {
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
                    let stream = match both[self.turn].any() {
                        Some(true) => self.turn,
                        _ => 1 - self.turn,
                    };
                    self.turn = 1 - stream;
                    stream
                }
            };
            let Some(pipe) = &self.open[stream] else { continue };
            let read = match pipe.as_ref().read(buffer) {
                // Once nobody has a terminal open, its master fails so.
                Err(fault) if self.is_terminal && fault.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
                read => read,
            };
            match read {
                Ok(0) if self.is_terminal => {
                    self.open = [None, None];
                    return Ok(Some((0, 0)));
                }
                Ok(0) => self.open[stream] = None,
                Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => continue,
                Err(fault) if fault.kind() == io::ErrorKind::Interrupted => continue,
                Err(fault) => return Err(fault),
                Ok(read) => return Ok(Some((stream, read))),
            }
            return Ok(Some((stream, 0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn where_both_have_something_stdout_is_first_and_then_they_take_turns() {
        let ((out, mut to_out), (err, mut to_err)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let (mut pipes, ends) = Pipes::of(OwnedFd::from(out).into(), OwnedFd::from(err).into(), false);
        let ends = ends.unwrap();
        assert_eq!(ends.open().len(), 2);
        to_out.write_all(b"abc").unwrap();
        to_err.write_all(b"def").unwrap();
        let mut read = || {
            let mut byte = [0];
            pipes[0].read(&mut byte).unwrap().map(|(stream, read)| (stream, byte[..read].to_vec()))
        };
        for (stream, byte) in [(0, b'a'), (1, b'd'), (0, b'b'), (1, b'e'), (0, b'c'), (1, b'f')] {
            assert_eq!(read(), Some((stream, vec![byte])));
        }
        to_err.write_all(b"g").unwrap();
        assert_eq!(read(), Some((1, vec![b'g'])));
        to_out.write_all(b"h").unwrap();
        drop((to_out, to_err));
        assert_eq!(
            [read(), read(), read(), read()],
            [Some((0, vec![b'h'])), Some((1, vec![])), Some((0, vec![])), None]
        );
        assert!(ends.open().is_empty(), "nothing holds a pipe that has ended");
    }

    #[test]
    fn terminal_ends_with_its_hangup_and_with_its_last_program() {
        let size = crate::platform::TerminalSize { rows: 24, columns: 80 };
        for is_hangup in [true, false] {
            let (master, other) = super::super::terminal::make(size).unwrap();
            let (err, hangup) = io::pipe().unwrap();
            let (mut pipes, ends) = Pipes::of(master.into(), OwnedFd::from(err).into(), true);
            assert!(ends.is_none(), "nobody keeps a terminal");
            let mut buffer = [0; 9];
            File::from(other.try_clone().unwrap()).write_all(b"a\n").unwrap();
            assert_eq!(pipes[0].read(&mut buffer).unwrap(), Some((0, 3)));
            let kept: OwnedFd = match is_hangup {
                true => {
                    drop(hangup);
                    other
                }
                false => {
                    drop(other);
                    hangup.into()
                }
            };
            assert_eq!(pipes[0].read(&mut buffer).unwrap(), Some((0, 0)));
            assert_eq!(pipes[0].read(&mut buffer).unwrap(), None);
            drop(kept);
        }
    }
}
