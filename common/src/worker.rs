//! A named thread that is joined when its handle goes.

use std::io;
use std::thread::{Builder, JoinHandle};

/// A thread's name and its handle; dropping it waits for the thread's end.
///
/// The owner must have told the thread to end before (most often by dropping the sender of
/// its inbox in a field declared above this one), else the drop waits for ever.
#[derive(Debug)]
pub struct Worker {
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `run` on a thread named `name` with a stack of `stack` bytes.
    ///
    /// The error is the operating system's, when it gives no more threads.
    pub fn spawn(name: &str, stack: usize, run: impl FnOnce() + Send + 'static) -> io::Result<Worker> {
        // One copy of what starts a thread, and not one for each function that runs on one.
        fn start(name: &str, stack: usize, run: Box<dyn FnOnce() + Send>) -> io::Result<Worker> {
            let thread = Builder::new().name(name.to_owned()).stack_size(stack).spawn(run)?;
            Ok(Worker { thread: Some(thread) })
        }
        start(name, stack, Box::new(run))
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the thread go its own way: it is not waited for.
    pub fn detach(mut self) {
        self.thread = None;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread itself; a second one here would only hide it.
            let _ = thread.join();
        }
    }
}
