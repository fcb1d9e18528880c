//! The message log's channel: one queue, so that records keep the order of their arrival.
//!
//! The reader of a pipe waits while too many bytes are on their way; that is what makes a slow disk
//! slow the writer. The agent's own records never wait, for the supervisor writes them.

use super::batch::Batch;
use super::store::Store;
use crossbeam_channel::{Receiver, Sender};
use jscommon::lock::lock;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes that may be on their way before readers wait.
const MAX_BYTES: usize = 2 << 20;

/// The same for the last output of a process that has ended: its result waits for that.
pub(super) const MAX_LAST_BYTES: usize = 16 << 20;

/// A message to the message log's thread.
pub(super) enum Message {
    /// Messages to store.
    Batch(Batch),
    /// Store what came before, then do this on the message log's thread.
    Then(Box<dyn FnOnce(&mut Store) + Send>),
    /// Look at this database, which seems damaged, and set it aside where it is.
    Examine { number: u64, error: anyhow::Error, done: Sender<anyhow::Result<()>> },
    /// Give back the memory that a burst of messages has left behind.
    Rest,
    /// Store what came before, and end.
    Stop,
}

/// The way in; cheap to clone.
#[derive(Clone)]
pub(super) struct MessageSender {
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

impl MessageSender {
    /// An empty channel, and the end that the message log reads.
    pub(super) fn new() -> (MessageSender, Receiver<Message>) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        (MessageSender { sender, budget: Arc::default() }, receiver)
    }

    /// Returns the budget that the message log gives bytes back to.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Sends messages. Where too many bytes are on their way, it waits as long as `waits` says so of their
    /// number. A caller calls [`MessageSender::nudge`] when the answer of `waits` changes.
    pub(super) fn push(&self, batch: Batch, waits: impl Fn(usize) -> bool) {
        self.budget.take(batch.weight(), waits);
        let _ = self.sender.send(Message::Batch(batch));
    }

    /// Has everybody who waits look again whether to.
    pub(super) fn nudge(&self) {
        drop(lock(&self.budget.state));
        self.budget.freed.notify_all();
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
    fn take(&self, bytes: usize, waits: impl Fn(usize) -> bool) {
        let mut state = lock(&self.state);
        while state.used > MAX_BYTES && !state.closed && waits(state.used) {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.used += bytes;
    }

    fn try_take(&self, bytes: usize) -> bool {
        let mut state = lock(&self.state);
        let free = state.used <= MAX_BYTES || state.closed;
        if free {
            state.used += bytes;
        }
        free
    }

    /// Bytes have been stored.
    pub(super) fn give(&self, bytes: usize) {
        let mut state = lock(&self.state);
        let before = state.used;
        state.used = state.used.saturating_sub(bytes);
        let passed = |bound| before > bound && state.used <= bound;
        if passed(MAX_BYTES) || passed(MAX_LAST_BYTES) {
            self.freed.notify_all();
        }
    }

    /// Nobody stores any more, so nobody must wait.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.freed.notify_all();
    }
}
