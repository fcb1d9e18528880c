//! Answers to requests of one connection, in the order of the requests, with no thread that waits for its turn.
//!
//! tiny_http keeps an answer back until those before it on its connection are out, and the thread that gives it
//! as well: one slow request would stop a thread for each that travels behind it, and two such all of them. So
//! the proxy says on each request where it stands, and an answer that comes too early is left here for the thread
//! that gives the one before it.
//!
//! Owns: what is early, and whose turn it is. Does not own: what an answer is, or how it is given.

use jscommon::lock::lock;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

/// Where a request stands among those that travel together; its text is that of the proxy's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PipelineSlot {
    /// The connection's number among those that may be open at once.
    pub(crate) slot: usize,
    /// How many there were before it: of two in the same slot the later one has more.
    pub(crate) group: u64,
    /// How many requests it carries before this one.
    pub(crate) at: usize,
    /// How many it carries.
    pub(crate) of: usize,
}

impl PipelineSlot {
    /// Whether nothing comes behind it.
    pub(crate) fn is_last(&self) -> bool {
        self.at + 1 >= self.of
    }
}

impl fmt::Display for PipelineSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.slot, self.group, self.at, self.of)
    }
}

impl FromStr for PipelineSlot {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<PipelineSlot> {
        let mut parts = text.split(' ');
        let mut next = || parts.next().ok_or_else(|| anyhow::anyhow!("'{text}' is no position of a request"));
        let (slot, group) = (next()?.parse()?, next()?.parse()?);
        Ok(PipelineSlot { slot, group, at: next()?.parse()?, of: next()?.parse()? })
    }
}

/// One connection whose answers are not all out.
struct Group<T> {
    number: u64,
    /// The request that is answered next. It stays so while its answer is being given.
    next: usize,
    early: BTreeMap<usize, T>,
}

/// Early answers of each connection. A slot holds the latest of its connections alone, so what a broken one
/// leaves behind is bounded.
pub(crate) struct ResponseOrder<T>(Mutex<HashMap<usize, Group<T>>>);

impl<T> Default for ResponseOrder<T> {
    fn default() -> ResponseOrder<T> {
        ResponseOrder(Mutex::default())
    }
}

impl<T> ResponseOrder<T> {
    /// Gives `answer` by `give`, and those behind it that are here already; or leaves it to the thread that
    /// gives the one before it. `give` is called with nothing locked, and never by two threads for one
    /// connection at once.
    pub(crate) fn give(&self, position: PipelineSlot, answer: T, give: impl Fn(T)) {
        let Some(mut answer) = self.arrive(position, answer) else { return };
        loop {
            give(answer);
            match self.advance(position) {
                Some(next) => answer = next,
                None => return,
            }
        }
    }

    /// The answer itself if it is its turn.
    fn arrive(&self, position: PipelineSlot, answer: T) -> Option<T> {
        // Dropped with nothing locked: an answer that is dropped may have something to say.
        let mut _stale = None;
        let mut groups = lock(&self.0);
        if groups.get(&position.slot).is_none_or(|group| group.number < position.group) {
            let group = Group { number: position.group, next: 0, early: BTreeMap::new() };
            _stale = groups.insert(position.slot, group);
        }
        let group =
            groups.get_mut(&position.slot).filter(|group| group.number == position.group && group.next < position.at);
        let given = match group {
            Some(group) => group.early.insert(position.at, answer),
            None => Some(answer),
        };
        drop(groups);
        given
    }

    /// The one whose turn it was is out: the next one, if it is here.
    fn advance(&self, position: PipelineSlot) -> Option<T> {
        let mut groups = lock(&self.0);
        let group = groups.get_mut(&position.slot).filter(|group| group.number == position.group)?;
        group.next += 1;
        let next = group.early.remove(&group.next);
        if group.next >= position.of {
            groups.remove(&position.slot);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(group: u64, at: usize) -> PipelineSlot {
        PipelineSlot { slot: 3, group, at, of: 3 }
    }

    #[test]
    fn every_order_of_arrival_gives_the_order_of_the_requests() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let (responses, out) = (ResponseOrder::default(), Mutex::new(Vec::new()));
            order.into_iter().for_each(|at| responses.give(position(7, at), at, |at| out.lock().unwrap().push(at)));
            assert_eq!(*out.lock().unwrap(), [0, 1, 2], "{order:?}");
            assert!(lock(&responses.0).is_empty(), "{order:?}");
        }
    }

    #[test]
    fn an_answer_that_comes_while_the_one_before_is_given_waits_for_nobody() {
        let (responses, out) = (ResponseOrder::default(), Mutex::new(Vec::new()));
        responses.give(position(7, 0), 0, |at| {
            if at == 0 {
                responses.give(position(7, 1), 1, |_| panic!("it is not its turn"));
            }
            out.lock().unwrap().push(at);
        });
        assert_eq!(*out.lock().unwrap(), [0, 1]);
    }

    #[test]
    fn a_broken_connection_leaves_nothing_to_the_next_in_its_slot() {
        let (responses, out) = (ResponseOrder::default(), Mutex::new(Vec::new()));
        let push = |answer| out.lock().unwrap().push(answer);
        responses.give(position(7, 1), "early", push);
        responses.give(position(8, 0), "new", push);
        responses.give(position(7, 0), "late", push);
        assert_eq!(*out.lock().unwrap(), ["new", "late"]);
        responses.give(position(8, 2), "third", push);
        responses.give(position(8, 1), "second", push);
        assert_eq!(*out.lock().unwrap(), ["new", "late", "second", "third"]);
        assert!(lock(&responses.0).is_empty());
    }

    #[test]
    fn pipeline_slot_is_read_back_from_its_text() {
        let position = position(1 << 40, 2);
        assert_eq!(position.to_string().parse::<PipelineSlot>().unwrap(), position);
        assert!(position.is_last() && !PipelineSlot { of: 4, ..position }.is_last());
        for text in ["", "1 2 3", "a 1 2 3", "-1 1 2 3"] {
            assert!(text.parse::<PipelineSlot>().is_err(), "{text}");
        }
    }
}
