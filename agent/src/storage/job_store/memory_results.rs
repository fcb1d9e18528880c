//! Results of read-only commands, in memory until their controller has taken them.
//!
//! A command that only looks (`ping`, `get_*`) changes nothing, so it may be answered twice, and nothing of it is
//! stored: its batch is acknowledged once its result is taken. Where that takes longer than a second the supervisor
//! takes what is here out, and stores it as any other.
//!
//! **Owns** the results, and the news to the poller: it holds the other end of a channel that each of its commands
//! keeps open.
//!
//! **Does not** decide which commands are read-only (`commands`), or for how long they may be here (the poller).

use super::Unsent;
use crossbeam_channel::Sender;
use jscommon::lock::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Bytes of results that are held; what is beyond is stored.
const MAX_BYTES: usize = 4 << 20;

/// A read-only command that is not stored.
#[derive(Debug)]
struct Entry {
    controller: String,
    id: String,
    /// `None` until it is answered.
    result: Option<String>,
    /// Closed with the last entry of a batch.
    _open: Sender<()>,
}

/// The table of them, by their keys. These are negative, and count down: those of rows are positive.
#[derive(Default)]
pub(crate) struct MemoryResults(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    last: i64,
    by_key: BTreeMap<i64, Entry>,
}

impl Entries {
    fn find(&mut self, controller: &str, id: &str) -> Option<(i64, &mut Entry)> {
        let mut entries = self.by_key.iter_mut().map(|(key, entry)| (*key, entry));
        entries.find(|(_, entry)| entry.id == id && entry.controller == controller)
    }

    fn bytes(&self) -> usize {
        self.by_key.values().filter_map(|entry| entry.result.as_ref()).map(String::len).sum()
    }
}

impl MemoryResults {
    /// Waits for the results of these commands, a batch of this controller, and keeps `open` until each is taken. Those of
    /// the batch before, which it has not acknowledged, are forgotten: they come again where they matter.
    pub(crate) fn expect<'a>(&self, controller: &str, ids: impl Iterator<Item = &'a str>, open: &Sender<()>) {
        let mut entries = lock(&self.0);
        entries.by_key.retain(|_, entry| entry.controller != controller);
        for id in ids {
            entries.last -= 1;
            let key = entries.last;
            let (controller, id) = (controller.to_owned(), id.to_owned());
            entries.by_key.insert(key, Entry { controller, id, result: None, _open: open.clone() });
        }
    }

    /// Takes the result of a command that is expected; gives it back where it is not, or where there is no room.
    pub(crate) fn answer(&self, controller: &str, id: &str, result: String) -> Result<(), String> {
        let mut entries = lock(&self.0);
        let has_room = entries.bytes() + result.len() <= MAX_BYTES;
        match entries.find(controller, id) {
            Some((_, entry)) if has_room => {
                entry.result = Some(result);
                Ok(())
            }
            _ => Err(result),
        }
    }

    /// The results for this controller but those of these keys: at most `max_rows` and `max_bytes`, or one.
    pub(super) fn unsent(&self, controller: &str, without: &[i64], max_rows: usize, max_bytes: usize) -> Vec<Unsent> {
        let entries = lock(&self.0);
        let mut bytes = 0;
        let waiting =
            entries.by_key.iter().rev().filter(|(key, entry)| entry.controller == controller && !without.contains(key));
        let results = waiting.filter_map(|(key, entry)| Some((*key, entry.result.as_ref()?)));
        let fitting = results.take(max_rows).take_while(|(_, json)| {
            let is_first = bytes == 0;
            bytes += json.len();
            is_first || bytes <= max_bytes
        });
        fitting.map(|(key, json)| Unsent { key, json: json.clone() }).collect()
    }

    /// The result of this key.
    pub(super) fn unsent_one(&self, key: i64) -> Option<Unsent> {
        let json = lock(&self.0).by_key.get(&key)?.result.clone()?;
        Some(Unsent { key, json })
    }

    /// Lets go of those that were sent.
    pub(super) fn remove(&self, keys: &[i64]) {
        let mut entries = lock(&self.0);
        keys.iter().for_each(|key| drop(entries.by_key.remove(key)));
    }

    /// Lets go of one command.
    pub(crate) fn forget(&self, controller: &str, id: &str) {
        let mut entries = lock(&self.0);
        if let Some((key, _)) = entries.find(controller, id) {
            entries.by_key.remove(&key);
        }
    }

    /// All commands of this controller: the id, and the result where there is one.
    pub(crate) fn of(&self, controller: &str) -> Vec<(String, Option<String>)> {
        let entries = lock(&self.0);
        let of = entries.by_key.values().rev().filter(|entry| entry.controller == controller);
        of.map(|entry| (entry.id.clone(), entry.result.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, TryRecvError, bounded};

    fn expected(ids: &[&str]) -> (MemoryResults, Receiver<()>) {
        let (open, taken) = bounded(0);
        let results = MemoryResults::default();
        results.expect("main", ids.iter().copied(), &open);
        (results, taken)
    }

    fn texts(unsent: &[Unsent]) -> Vec<&str> {
        unsent.iter().map(|result| result.json.as_str()).collect()
    }

    #[test]
    fn poller_hears_when_the_last_result_is_taken() {
        let (results, taken) = expected(&["a", "b"]);
        assert!(results.unsent("main", &[], 10, 10).is_empty(), "nothing is answered");
        for id in ["a", "b"] {
            results.answer("main", id, id.to_owned()).unwrap();
            assert_eq!(taken.try_recv(), Err(TryRecvError::Empty));
            let unsent = results.unsent("main", &[], 10, 10);
            assert_eq!(texts(&unsent), [id]);
            assert_eq!(results.unsent_one(unsent[0].key), Some(unsent[0].clone()));
            results.remove(&[unsent[0].key]);
            assert_eq!(results.unsent_one(unsent[0].key), None);
        }
        assert_eq!(taken.try_recv(), Err(TryRecvError::Disconnected));
    }

    #[test]
    fn results_go_in_their_order_and_bounded() {
        let (results, _taken) = expected(&["a", "b", "c", "d"]);
        for id in ["a", "b", "c", "d"] {
            results.answer("main", id, id.repeat(10)).unwrap();
        }
        let all = results.unsent("main", &[], 10, 100);
        assert_eq!(texts(&all), ["a".repeat(10), "b".repeat(10), "c".repeat(10), "d".repeat(10)]);
        assert_eq!(results.unsent("main", &[], 3, 100), all[..3]);
        assert_eq!(results.unsent("main", &[], 10, 20), all[..2]);
        assert_eq!(results.unsent("main", &[], 10, 1), all[..1], "one that is too large goes alone");
        assert_eq!(results.unsent("main", &[all[0].key], 10, 10), all[1..2]);
        assert_eq!(results.unsent("other", &[], 10, 100), []);
    }

    #[test]
    fn result_without_room_is_given_back() {
        let (results, _taken) = expected(&["a", "b"]);
        results.answer("main", "a", "x".repeat(MAX_BYTES - 1)).unwrap();
        assert_eq!(results.answer("main", "b", "xx".into()), Err("xx".into()));
        assert_eq!(results.answer("main", "c", "x".into()), Err("x".into()), "it is not expected");
        assert_eq!(results.answer("main", "b", "x".into()), Ok(()));
    }

    #[test]
    fn commands_of_a_controller_are_told_with_or_without_their_results() {
        let (results, taken) = expected(&["a", "b"]);
        let (open, _other) = bounded(0);
        results.expect("other", ["a"].into_iter(), &open);
        results.answer("main", "b", "done".into()).unwrap();
        assert_eq!(results.of("main"), [("a".to_owned(), None), ("b".to_owned(), Some("done".to_owned()))]);
        assert_eq!(results.of("other"), [("a".to_owned(), None)]);
        results.forget("main", "a");
        assert_eq!(taken.try_recv(), Err(TryRecvError::Empty));
        results.forget("main", "b");
        assert_eq!((taken.try_recv(), results.of("other").len()), (Err(TryRecvError::Disconnected), 1));
    }

    #[test]
    fn next_batch_forgets_the_one_before() {
        let (results, first) = expected(&["a", "gone"]);
        results.answer("main", "a", "1".into()).unwrap();
        let (open, second) = bounded(0);
        results.expect("main", ["a"].into_iter(), &open);
        drop(open);
        assert_eq!(first.try_recv(), Err(TryRecvError::Disconnected));
        assert!(results.unsent("main", &[], 10, 10).is_empty());
        results.answer("main", "a", "2".into()).unwrap();
        assert_eq!(texts(&results.unsent("main", &[], 10, 10)), ["2"]);
        results.forget("main", "a");
        assert_eq!(second.try_recv(), Err(TryRecvError::Disconnected));
    }
}
