//! The sources of scripts that nodes asked for lately, so that a fleet that asks for a new one at
//! once costs Redis one read.
//!
//! Owns: what is kept (bounded, the longest unused goes first) and that one thread reads for all who
//! wait. Does not own: Redis, which it is handed as two closures; the handler of scripts brings them.
//! A source never changes under its hash, so what is kept is never stale; that it is in use is told
//! to Redis once a minute, for its expiry there.

use jscommon::lock::lock;
use jscommon::token::sha256_hex;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most bytes of all sources.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Most sources.
const MAX_SOURCES: usize = 4096;
/// Time between two renewals of a source's expiry.
const EXPIRY_RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

/// Sources by their hash, for any thread.
#[derive(Debug)]
pub(crate) struct ScriptCache {
    shelf: Mutex<Shelf>,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct Shelf {
    slots: HashMap<String, Kept>,
    bytes: usize,
    /// Counts uses, so that the slot with the smallest number is the one unused for the longest time.
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    slot: Arc<Mutex<Slot>>,
    len: usize,
    used: u64,
}

/// Locked while its source is read, so that another request for the same one waits for that reading.
#[derive(Debug, Default)]
struct Slot {
    source: Option<Arc<[u8]>>,
    renewed: Option<Instant>,
}

impl Default for ScriptCache {
    fn default() -> ScriptCache {
        ScriptCache::new(MAX_BYTES)
    }
}

impl ScriptCache {
    /// Keeps at most so many bytes.
    pub(crate) fn new(max_bytes: usize) -> ScriptCache {
        ScriptCache { shelf: Mutex::default(), max_bytes }
    }

    /// The source of this hash. `read` asks Redis for it; `renew` puts off its expiry there, and answers
    /// whether it is still there. Nothing: Redis has none, which is not remembered.
    pub(crate) fn get<E>(
        &self,
        hash: &str,
        now: Instant,
        read: impl FnOnce() -> Result<Option<Vec<u8>>, E>,
        renew: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Option<Arc<[u8]>>, E> {
        let shared = self.slot(hash);
        let mut slot = lock(&shared);
        if let Some(source) = slot.source.clone() {
            let due = slot.renewed.is_none_or(|at| now.saturating_duration_since(at) >= EXPIRY_RENEWAL_INTERVAL);
            slot.renewed = if due { Some(now) } else { slot.renewed };
            drop(slot);
            // The source is good whatever Redis says now.
            if due && !matches!(renew(), Ok(true)) {
                self.forget(hash, &shared);
            }
            return Ok(Some(source));
        }
        let source: Option<Arc<[u8]>> = match read() {
            Ok(source) => source.map(Arc::from),
            Err(error) => {
                drop(slot);
                self.forget(hash, &shared);
                return Err(error);
            }
        };
        // A source with another hash is refused by the node and not kept, for it may be corrected.
        match &source {
            Some(good) if sha256_hex(good) == hash => {
                *slot = Slot { source: source.clone(), renewed: Some(now) };
                let len = good.len();
                drop(slot);
                self.keep(hash, &shared, len);
            }
            _ => {
                drop(slot);
                self.forget(hash, &shared);
            }
        }
        Ok(source)
    }

    fn slot(&self, hash: &str) -> Arc<Mutex<Slot>> {
        let mut shelf = lock(&self.shelf);
        shelf.uses += 1;
        let used = shelf.uses;
        let kept = shelf.slots.entry(hash.to_owned()).or_insert_with(|| Kept { slot: Arc::default(), len: 0, used });
        kept.used = used;
        Arc::clone(&kept.slot)
    }

    /// Counts a source that has come, and lets go what is too much.
    fn keep(&self, hash: &str, slot: &Arc<Mutex<Slot>>, len: usize) {
        let mut shelf = lock(&self.shelf);
        let Some(kept) = shelf.slots.get_mut(hash).filter(|kept| Arc::ptr_eq(&kept.slot, slot)) else { return };
        kept.len = len;
        shelf.bytes += len;
        while shelf.bytes > self.max_bytes || shelf.slots.len() > MAX_SOURCES {
            // A slot without a length is being read just now.
            let full = shelf.slots.iter().filter(|(_, kept)| kept.len > 0);
            let Some(oldest) = full.min_by_key(|(_, kept)| kept.used).map(|(hash, _)| hash.clone()) else { return };
            shelf.remove(&oldest);
        }
    }

    fn forget(&self, hash: &str, slot: &Arc<Mutex<Slot>>) {
        let mut shelf = lock(&self.shelf);
        if shelf.slots.get(hash).is_some_and(|kept| Arc::ptr_eq(&kept.slot, slot)) {
            shelf.remove(hash);
        }
    }
}

impl Shelf {
    fn remove(&mut self, hash: &str) {
        if let Some(kept) = self.slots.remove(hash) {
            self.bytes -= kept.len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Asks for `text`; answers whether Redis was read and whether the expiry was renewed.
    fn ask(cache: &ScriptCache, text: &str, now: Instant) -> (bool, bool) {
        let (read, renewed) = (Cell::new(false), Cell::new(false));
        let fetch = || {
            read.set(true);
            Ok::<_, ()>(Some(text.as_bytes().to_vec()))
        };
        let renew = || {
            renewed.set(true);
            Ok(true)
        };
        let got = cache.get(&sha256_hex(text.as_bytes()), now, fetch, renew).unwrap().unwrap();
        assert_eq!(&got[..], text.as_bytes());
        (read.get(), renewed.get())
    }

    #[test]
    fn source_is_read_once_and_renewed_once_a_minute() {
        let (cache, start) = (ScriptCache::default(), Instant::now());
        assert_eq!(ask(&cache, "a", start), (true, false));
        assert_eq!(ask(&cache, "a", start + Duration::from_secs(59)), (false, false));
        assert_eq!(ask(&cache, "a", start + Duration::from_secs(60)), (false, true));
        assert_eq!(ask(&cache, "a", start + Duration::from_secs(61)), (false, false));
        // Redis has lost it: served once more, and then asked for again.
        let late = start + Duration::from_secs(121);
        let got = cache.get(&sha256_hex(b"a"), late, || Err(()), || Ok(false)).unwrap();
        assert_eq!(got.as_deref(), Some(b"a".as_slice()));
        assert_eq!(ask(&cache, "a", late), (true, false));
    }

    #[test]
    fn thousand_requests_at_once_read_it_once() {
        let cache = ScriptCache::default();
        let (reads, hash) = (AtomicUsize::new(0), sha256_hex(b"new"));
        std::thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let read = || {
                            reads.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            Ok::<_, ()>(Some(b"new".to_vec()))
                        };
                        assert!(cache.get(&hash, Instant::now(), read, || Ok(true)).unwrap().is_some());
                    }
                });
            }
        });
        assert_eq!(reads.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn missing_source_is_not_remembered() {
        let (cache, now) = (ScriptCache::default(), Instant::now());
        let hash = sha256_hex(b"later");
        assert_eq!(cache.get(&hash, now, || Ok::<_, ()>(None), || Ok(true)), Ok(None));
        assert_eq!(cache.get(&hash, now, || Err("away"), || Ok(true)), Err("away"));
        let forged = cache.get(&hash, now, || Ok::<_, ()>(Some(b"other".to_vec())), || Ok(true));
        assert_eq!(forged.unwrap().as_deref(), Some(b"other".as_slice()));
        assert!(lock(&cache.shelf).slots.is_empty());
        assert_eq!(ask(&cache, "later", now), (true, false));
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let (cache, now) = (ScriptCache::new(10), Instant::now());
        for text in ["aaaa", "bbbb", "aaaa", "cccc"] {
            ask(&cache, text, now);
        }
        assert_eq!(ask(&cache, "aaaa", now), (false, false));
        assert_eq!(ask(&cache, "cccc", now), (false, false));
        assert_eq!(ask(&cache, "bbbb", now), (true, false));
        assert!(lock(&cache.shelf).bytes <= 10);
        // One that is larger than everything is served, and not kept.
        assert_eq!(ask(&cache, "eleven bytes", now), (true, false));
        assert_eq!(lock(&cache.shelf).bytes, 0);
    }
}
