//! Threads without which the controller is none.
//!
//! Owns: what becomes of the whole when one of them fails. Does not own: what they do, or the end itself
//! (`daemon` hears of it by channel).
//!
//! A controller that goes on beating while it takes no commands, or reads no wake-ups, is worse than none: its
//! service manager would start it again, and other controllers would reclaim its work.

use crossbeam_channel::Sender;
use jscommon::worker::Worker;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Starts `run` on a thread. When it panics, or gives a reason for its end, that goes to `fatal`.
///
/// The error is the operating system's, when it gives no more threads.
pub(crate) fn spawn(
    name: &str,
    stack: usize,
    fatal: Sender<String>,
    run: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> io::Result<Worker> {
    let told = name.to_owned();
    Worker::spawn(name, stack, move || {
        // Nothing of what it leaves behind is used again: the whole ends.
        let why = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(_) => "it panicked".to_owned(),
        };
        let _ = fatal.send(format!("the thread '{told}' has failed ({why}): the controller ends, to be started anew"));
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_reported_and_an_orderly_end_is_not() {
        let told = |run: fn() -> Result<(), String>| {
            let (fatal, told) = crossbeam_channel::unbounded();
            drop(spawn("x", 64 << 10, fatal, run).unwrap());
            told.try_recv().ok()
        };
        assert_eq!(told(|| Ok(())), None);
        assert!(told(|| Err("no events".into())).unwrap().contains("(no events)"));
        assert!(told(|| panic!("a test")).unwrap().contains("'x'"));
    }
}
