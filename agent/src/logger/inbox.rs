//! The logger's inbox: one queue, so that records keep the order of their arrival.
//!
//! Whoever reads a pipe waits while too many bytes are on their way; that is what makes a slow disk
//! slow the writer. The agent's own records never wait, for the supervisor writes them.

use super::batch::Batch;
use crossbeam_channel::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that may be on their way before readers wait.
const MAX_BYTES: usize = 2 << 20;

/// What the logger is told.
pub(super) enum Message {
    /// Messages to store.
    Batch(Batch),
    /// Store what came before, then do this on the logger's thread.
    Then(Box<dyn FnOnce(&mut super::actor::Actor) + Send>),
    /// Store what came before, and end.
    Stop,
}

/// The way in; cheap to clone.
#[derive(Clone)]
pub(super) struct Inbox {
    sender: Sender<Message>,
    budget: Arc<Budget>,
}

/// Bytes on their way.
#[derive(Default)]
pub(super) struct Budget {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    used: usize,
    closed: bool,
}

impl Inbox {
    /// An empty inbox, and the end that the logger reads.
    pub(super) fn new() -> (Inbox, Receiver<Message>) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        (Inbox { sender, budget: Arc::default() }, receiver)
    }

    /// What the logger gives bytes back to.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Sends messages, and waits for room before when told so.
    pub(super) fn push(&self, batch: Batch, wait: bool) {
        self.budget.take(batch.weight(), wait);
        let _ = self.sender.send(Message::Batch(batch));
    }

    /// Sends messages, or gives them back where there is no room.
    pub(super) fn try_push(&self, batch: Batch) -> Result<(), Batch> {
        if !self.budget.try_take(batch.weight()) {
            return Err(batch);
        }
        let _ = self.sender.send(Message::Batch(batch));
        Ok(())
    }

    /// Sends what is no message of a job.
    pub(super) fn send(&self, message: Message) {
        let _ = self.sender.send(message);
    }
}

impl Budget {
    fn take(&self, bytes: usize, wait: bool) {
        let mut state = self.lock();
        while wait && state.used > MAX_BYTES && !state.closed {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.used += bytes;
    }

    fn try_take(&self, bytes: usize) -> bool {
        let mut state = self.lock();
        let free = state.used <= MAX_BYTES || state.closed;
        if free {
            state.used += bytes;
        }
        free
    }

    /// Bytes have been stored.
    pub(super) fn give(&self, bytes: usize) {
        let mut state = self.lock();
        let before = state.used;
        state.used = state.used.saturating_sub(bytes);
        if before > MAX_BYTES && state.used <= MAX_BYTES {
            self.freed.notify_all();
        }
    }

    /// Nobody stores any more, so nobody must wait.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
