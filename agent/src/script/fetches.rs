//! The large files that are being fetched.
//!
//! **Owns** how many there are at one time, that those of one file go one after the other, and their cancellation.
//! **Does not own** the fetch itself.

use jscommon::lock::lock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Large files that are fetched at one time.
const MAX_FETCHES: usize = 8;

/// All fetches under way.
#[derive(Default)]
pub(super) struct Fetches(Mutex<Vec<Arc<Fetch>>>);

/// The fetch for one command.
pub(super) struct Fetch {
    id: String,
    pub(super) hash: String,
    /// Held by one of those that fetch the same file.
    pub(super) turn: Arc<Mutex<()>>,
    is_cancelled: AtomicBool,
}

impl Fetch {
    /// Fails once it was cancelled.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.is_cancelled.load(Ordering::Relaxed) {
            true => Err("it was killed".into()),
            false => Ok(()),
        }
    }
}

/// A fetch that is on the list for as long as this is there.
pub(super) struct Listed<'a>(&'a Fetches, pub(super) Arc<Fetch>);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).retain(|other| !Arc::ptr_eq(other, &self.1));
    }
}

impl Fetches {
    /// Adds a fetch, where there is room for it.
    pub(super) fn begin(&self, id: &str, hash: &str) -> Result<Listed<'_>, String> {
        let mut all = lock(&self.0);
        if all.len() >= MAX_FETCHES {
            return Err(format!("{MAX_FETCHES} large files are being fetched on this node; put it again later"));
        }
        let turn = all.iter().find(|fetch| fetch.hash == hash).map(|fetch| fetch.turn.clone()).unwrap_or_default();
        let (id, hash) = (id.to_owned(), hash.to_owned());
        let fetch = Arc::new(Fetch { id, hash, turn, is_cancelled: AtomicBool::new(false) });
        all.push(fetch.clone());
        Ok(Listed(self, fetch))
    }

    /// Ends the fetch of this command, where there is one: its file is not put in place.
    pub(super) fn cancel(&self, id: &str) {
        lock(&self.0).iter().filter(|fetch| fetch.id == id).for_each(|fetch| {
            fetch.is_cancelled.store(true, Ordering::Relaxed);
        });
    }

    /// Whether a file of this hash is being fetched.
    pub(super) fn has(&self, hash: &str) -> bool {
        lock(&self.0).iter().any(|fetch| fetch.hash == hash)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        lock(&self.0).len()
    }
}
