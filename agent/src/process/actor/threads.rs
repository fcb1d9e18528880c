//! The threads on which commands are answered and scripts made ready, so that the supervisor never waits.

use super::super::Message;
use crossbeam_channel::Sender;
use jscommon::worker::Worker;
use std::collections::VecDeque;

/// Threads of one kind of work at one time; more of it waits.
const THREADS: usize = 8;

/// Work on threads of its own, so many at one time. Commands and the preparation of scripts have one
/// each: a controller that is slow to give a script must not hold up a built-in command.
#[derive(Default)]
pub(super) struct Threads {
    waiting: VecDeque<Task>,
    running: usize,
}

pub(super) struct Task {
    /// Does it, or says why it could not be done.
    pub(super) work: Box<dyn FnOnce() -> Message + Send>,
    /// The answer where no thread can be had or the work panics.
    pub(super) failed: Message,
}

impl Threads {
    pub(super) fn add(&mut self, task: Task, sender: &Sender<Message>) {
        self.waiting.push_back(task);
        self.start(sender);
    }

    pub(super) fn ended(&mut self, sender: &Sender<Message>) {
        self.running -= 1;
        self.start(sender);
    }

    pub(super) fn start(&mut self, sender: &Sender<Message>) {
        while self.running < THREADS
            && let Some(Task { work, failed }) = self.waiting.pop_front()
        {
            self.running += 1;
            // Whatever becomes of the thread, this is dropped, and one answer is given.
            let mut answer = LastWord { sender: sender.clone(), message: Some(failed) };
            let started = Worker::spawn("builtin", 256 * 1024, move || answer.say(work()));
            match started {
                Ok(worker) => worker.detach(),
                Err(fault) => log::error!("no thread for a command: {fault}"),
            }
        }
    }
}

/// Sends its message when it goes.
struct LastWord {
    sender: Sender<Message>,
    message: Option<Message>,
}

impl LastWord {
    fn say(&mut self, message: Message) {
        self.message = Some(message);
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            let _ = self.sender.send(message);
        }
    }
}
