//! The threads on which commands are answered and scripts made ready, so that the supervisor never waits.

use super::{COMMAND_THREAD, Message};
use crossbeam_channel::Sender;
use jscommon::worker::Worker;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Threads of one kind of work at one time; more of it waits.
const THREADS: usize = 8;
/// After this time a thread does not count any more: it may wait for a file system that never answers.
const SLOW: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };
/// Threads of one kind of work, slow ones too.
const MAX_THREADS: usize = 64;

/// Work on threads of its own, so many at one time. Commands and the preparation of scripts have one
/// each: a controller that is slow to give a script must not hold up a built-in command.
#[derive(Default)]
pub(super) struct TaskPool {
    waiting: VecDeque<Task>,
    /// By run: when its thread began.
    running: HashMap<u64, Instant>,
}

pub(super) struct Task {
    /// The run that it is for.
    pub(super) run: u64,
    /// Does it, or says why it could not be done.
    pub(super) work: Box<dyn FnOnce() -> Message + Send>,
    /// The answer where no thread can be had or the work panics.
    pub(super) failed: Message,
}

impl TaskPool {
    pub(super) fn add(&mut self, task: Task, sender: &Sender<Message>) {
        self.waiting.push_back(task);
        self.start(sender);
    }

    pub(super) fn ended(&mut self, run: u64, sender: &Sender<Message>) {
        self.running.remove(&run);
        self.start(sender);
    }

    /// Returns when a thread becomes slow for which another one is to be started.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.waiting.is_empty() || self.running.len() >= MAX_THREADS {
            return None;
        }
        self.running.values().map(|began| *began + SLOW).filter(|due| *due > Instant::now()).min()
    }

    /// Starts what may start now.
    pub(super) fn start(&mut self, sender: &Sender<Message>) {
        if self.waiting.is_empty() {
            return;
        }
        let mut quick = self.running.values().filter(|began| began.elapsed() < SLOW).count();
        while quick < THREADS
            && self.running.len() < MAX_THREADS
            && let Some(Task { run, work, failed }) = self.waiting.pop_front()
        {
            quick += 1;
            self.running.insert(run, Instant::now());
            // Whatever becomes of the thread, this is dropped, and one answer is given.
            let mut answer = ReplyOnDrop { sender: sender.clone(), message: Some(failed) };
            let started = Worker::spawn(COMMAND_THREAD, 256 * 1024, move || answer.say(work()));
            match started {
                Ok(worker) => worker.detach(),
                Err(fault) => log::error!("no thread for a command: {fault}"),
            }
        }
    }
}

/// Sends its message when it goes.
struct ReplyOnDrop {
    sender: Sender<Message>,
    message: Option<Message>,
}

impl ReplyOnDrop {
    fn say(&mut self, message: Message) {
        self.message = Some(message);
    }
}

impl Drop for ReplyOnDrop {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            let _ = self.sender.send(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;

    #[test]
    fn slow_threads_make_room_for_others() {
        let (sender, inbox) = unbounded();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let mut threads = TaskPool::default();
        for run in 0..=THREADS as u64 {
            let held = held.clone();
            let work = Box::new(move || {
                if run < THREADS as u64 {
                    let _ = held.recv();
                }
                Message::Answered { run, answer: Ok("done".into()) }
            });
            let failed = Message::Answered { run, answer: Err("failed".into()) };
            threads.add(Task { run, work, failed }, &sender);
        }
        assert!(inbox.is_empty() && threads.due().is_some());
        let begin = Instant::now();
        let run = loop {
            threads.start(&sender);
            match inbox.recv_timeout(Duration::from_millis(5)) {
                Ok(Message::Answered { run, answer: Ok(_) }) => break run,
                _ => assert!(begin.elapsed() < Duration::from_secs(30), "slow threads hold up all others"),
            }
        };
        assert_eq!(run, THREADS as u64);
        threads.ended(run, &sender);
        assert_eq!(threads.due(), None);
        drop(release);
    }
}
