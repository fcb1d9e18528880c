//! The stdin of jobs that keep it open: bytes on their way from `input` to a process.
//!
//! **Owns** what was taken and not yet written, its bounds (a job, all jobs), and the thread that writes what a process
//! does not read at once. **Does not own** pipes and terminals ([`StdinEnd`]), or the commands.
//!
//! The thread is there while bytes wait for one job's process, and looks each second whether its run is over.

mod rule;

use self::rule::{Refusal, Rule, Step};
use crate::platform::TerminalSize;
use crate::process_tree::StdinEnd;
use jscommon::lock::lock;
use jscommon::worker::Worker;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes of a job that may wait for its process.
const MAX_BYTES: usize = 1 << 20;
/// Bytes of all jobs that may wait.
const MAX_TOTAL_BYTES: usize = 64 << 20;
/// Bytes that the thread writes at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// How often the thread looks whether the run is over.
const LOOK: Duration = Duration::from_secs(1);
const STACK: usize = 64 << 10;
/// The character by which a terminal's reader gets its end (Ctrl-D).
const END_OF_INPUT: u8 = 4;

/// Bytes of all jobs that wait.
static TOTAL: AtomicUsize = AtomicUsize::new(0);

/// The open stdin of one job, over all its runs.
#[derive(Default)]
pub(crate) struct Stdin {
    state: Mutex<State>,
    is_terminal: bool,
}

#[derive(Default)]
struct State {
    rule: Rule,
    /// Taken, or to be given first, and not written.
    waiting: VecDeque<u8>,
    /// Bytes that [`TOTAL`] counts.
    counted: usize,
    end: Option<Arc<StdinEnd>>,
    /// The size that a terminal was given later.
    size: Option<TerminalSize>,
    has_writer: bool,
}

/// A piece of a job's stdin.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    /// Where it stands; nothing appends.
    pub(crate) offset: Option<u64>,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// Nothing follows it.
    pub(crate) eof: bool,
}

impl Stdin {
    /// The stdin of a job that has no run yet.
    pub(crate) fn new(is_terminal: bool) -> Stdin {
        Stdin { is_terminal, ..Stdin::default() }
    }

    /// Takes a piece; returns how much was taken by now, and how much more can be. The error follows "job ID".
    pub(crate) fn give(self: &Arc<Stdin>, piece: &Piece) -> Result<(u64, usize), &'static str> {
        let mut state = lock(&self.state);
        let room = state.room();
        let step = state.rule.take(piece.offset, piece.bytes.len(), piece.eof, room, self.is_terminal);
        let is_new = match step {
            Ok(Step::Take { eof }) => {
                state.waiting.extend(&piece.bytes);
                if eof && self.is_terminal {
                    state.waiting.push_back(END_OF_INPUT);
                }
                true
            }
            Ok(Step::Nothing) => false,
            Err(Refusal::Closed) => return Err("has closed its stdin"),
            Err(Refusal::Ended) => return Err("has had the end of its stdin"),
        };
        if is_new {
            self.pump(&mut state);
        }
        Ok((state.rule.have, state.room()))
    }

    /// A run has started: `first` goes before all that was given.
    pub(crate) fn attach(self: &Arc<Stdin>, end: StdinEnd, first: &[u8]) {
        let mut state = lock(&self.state);
        if let Some(size) = state.size {
            let _ = end.resize(size);
        }
        if state.rule.is_closed() {
            return;
        }
        first.iter().rev().for_each(|byte| state.waiting.push_front(*byte));
        state.end = Some(Arc::new(end));
        self.pump(&mut state);
    }

    /// The run is over: its stdin is closed, and what it did not read is dropped.
    pub(crate) fn detach(&self) {
        let mut state = lock(&self.state);
        state.close();
        state.rule.begin_anew();
    }

    /// Nobody will give any more: a pipe gets its end after what was given, a terminal is hung up.
    pub(crate) fn end(self: &Arc<Stdin>) {
        let mut state = lock(&self.state);
        if self.is_terminal {
            state.close();
            state.rule.close();
        } else {
            state.rule.end();
            self.pump(&mut state);
        }
    }

    /// Sets the size of the terminal of this run and the next. The error follows "job ID".
    pub(crate) fn resize(&self, size: TerminalSize) -> Result<(), String> {
        if !self.is_terminal {
            return Err("has no terminal: its command has no tty".into());
        }
        let mut state = lock(&self.state);
        state.size = Some(size);
        match &state.end {
            Some(end) => end.resize(size).map_err(|fault| format!("keeps the size of its terminal: {fault}")),
            None => Ok(()),
        }
    }

    /// Writes what can be written at once, and has a thread write the rest.
    fn pump(self: &Arc<Stdin>, state: &mut State) {
        while !state.has_writer
            && let Some(end) = state.end.clone().filter(|_| !state.waiting.is_empty())
        {
            match end.write(state.waiting.as_slices().0, None) {
                Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => {
                    let stdin = self.clone();
                    match Worker::spawn("stdin", STACK, move || stdin.write()) {
                        Ok(worker) => {
                            worker.detach();
                            state.has_writer = true;
                        }
                        Err(fault) => {
                            log::error!("no thread for a job's stdin, which is closed: {fault}");
                            state.close();
                            state.rule.close();
                        }
                    }
                }
                written => state.written(written),
            }
        }
        self.settle(state);
    }

    /// The thread: writes until nothing waits.
    fn write(&self) {
        loop {
            let (end, chunk) = {
                let mut state = lock(&self.state);
                let Some(end) = state.end.clone().filter(|_| !state.waiting.is_empty()) else {
                    state.has_writer = false;
                    return self.settle(&mut state);
                };
                let first = state.waiting.as_slices().0;
                (end, first[..first.len().min(CHUNK_BYTES)].to_vec())
            };
            let written = end.write(&chunk, Some(LOOK));
            let mut state = lock(&self.state);
            if state.end.as_ref().is_some_and(|now| Arc::ptr_eq(now, &end)) {
                state.written(written);
            }
            state.count();
        }
    }

    /// Closes a pipe that has had everything, and counts.
    fn settle(&self, state: &mut State) {
        if state.waiting.is_empty() {
            state.waiting = VecDeque::new();
            if state.rule.has_ended() && !self.is_terminal {
                state.end = None;
            }
        }
        state.count();
    }
}

impl State {
    fn room(&self) -> usize {
        let total = MAX_TOTAL_BYTES.saturating_sub(TOTAL.load(Ordering::Relaxed));
        MAX_BYTES.saturating_sub(self.waiting.len()).min(total)
    }

    fn written(&mut self, written: io::Result<usize>) {
        match written {
            Ok(bytes) => drop(self.waiting.drain(..bytes)),
            Err(fault) if matches!(fault.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => {
                self.close();
                self.rule.close();
            }
        }
    }

    /// Lets go of the pipe or terminal, and of what waits for it.
    fn close(&mut self) {
        self.end = None;
        self.waiting = VecDeque::new();
        self.count();
    }

    fn count(&mut self) {
        TOTAL.fetch_add(self.waiting.len(), Ordering::Relaxed);
        TOTAL.fetch_sub(self.counted, Ordering::Relaxed);
        self.counted = self.waiting.len();
    }
}

impl Drop for State {
    fn drop(&mut self) {
        TOTAL.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

#[cfg(all(test, unix))]
mod tests;
