//! Commands without end, pushed by a client that goes on until each is accepted.

use crate::fresh_id;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A client that pushes all the time.
pub struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<String>>,
}

impl Load {
    /// Pushes `ping` for a random one of the nodes 1 to `nodes` of grid 1, one a `pace`. `push` answers whether
    /// Redis has said that it has it; what it has not is pushed again under the same id, for its answer may
    /// have been lost.
    pub fn start(nodes: u32, pace: Duration, mut push: impl FnMut(&str) -> bool + Send + 'static) -> Load {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&accepted));
        let thread = std::thread::spawn(move || {
            let mut ids = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                let id = fresh_id();
                let text = json!({"id": id, "gid": 1, "nid": fastrand::u32(1..=nodes), "cmd": "ping"}).to_string();
                while !push(&text) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                ids.push(id);
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(pace);
            }
            ids
        });
        Load { stop, accepted, thread }
    }

    /// How many commands were accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Ends it; the ids of all commands that were accepted.
    pub fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client of the load")
    }
}
