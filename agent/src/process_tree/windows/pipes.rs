//! The two pipes of a child, read by a thread each: there is no waiting for either of two pipes here.

use std::io::{self, Read};
use std::process::{ChildStderr, ChildStdout};

/// A pipe that one thread reads.
pub(crate) struct Pipes {
    /// Until it ends.
    open: Option<Box<dyn Read + Send>>,
    /// 0 is stdout, 1 stderr.
    stream: usize,
}

/// Another way to the pipes of a child, which nobody needs here.
pub(crate) struct Ends;

/// Keeps pipes beyond the agent's end: none here, where every process of a job ends with the agent.
#[derive(Default)]
pub(crate) struct Keeper {}

impl Keeper {
    /// Does nothing.
    pub(crate) fn keep(&mut self, _run: u64, _ends: &Ends) {}

    /// Does nothing.
    pub(crate) fn ended(&mut self, _run: u64) {}

    /// Does nothing.
    pub(crate) fn rest(&mut self) {}
}

/// `None`: there is no keeper here.
pub(crate) fn keep_pipes_if_asked() -> Option<std::process::ExitCode> {
    None
}

impl Pipes {
    /// The pipes of a child, apart.
    pub(crate) fn of(stdout: ChildStdout, stderr: ChildStderr, _is_terminal: bool) -> (Vec<Pipes>, Option<Ends>) {
        let both =
            vec![Pipes { open: Some(Box::new(stdout)), stream: 0 }, Pipes { open: Some(Box::new(stderr)), stream: 1 }];
        (both, Some(Ends))
    }

    /// Waits for bytes and puts them into `buffer`, which is not empty. Says which stream they are of, 0
    /// or 1, and how many: none at its end. Nothing after that.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, usize)>> {
        let Some(pipe) = &mut self.open else { return Ok(None) };
        let read = loop {
            match pipe.read(buffer) {
                Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if read == 0 {
            self.open = None;
        }
        Ok(Some((self.stream, read)))
    }
}
