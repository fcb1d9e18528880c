//! Which servers of a cluster, or which Sentinels, are asked first. Pure.
//!
//! Owns: their order. The one that answered last is asked first, so that a silent one costs a wait once
//! and not with every connection. Does not own: asking (`cluster`, `sentinel`).

use std::sync::{Mutex, PoisonError};

/// Host and port.
pub(super) type Place = (String, u16);

/// Most servers that are remembered.
const MOST: usize = 256;

/// Servers in the order in which they are to be asked; shared by all connections of a controller.
#[derive(Debug, Default)]
pub(super) struct Roster(Mutex<Vec<Place>>);

impl Roster {
    /// The ones that the user has named.
    pub(super) fn new(named: Vec<Place>) -> Roster {
        Roster(Mutex::new(named))
    }

    /// All of them, in their order.
    pub(super) fn places(&self) -> Vec<Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This one has answered, and told of these: it goes first, and they are remembered behind all others,
    /// for those that were named may all be gone one day.
    pub(super) fn answered(&self, first: &Place, told: impl IntoIterator<Item = Place>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for place in told {
            if held.len() < MOST && !held.contains(&place) {
                held.push(place);
            }
        }
        if held.first() != Some(first) {
            held.retain(|place| place != first);
            held.insert(0, first.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answered_is_asked_first() {
        let place = |name: &str| (name.to_owned(), 1);
        let roster = Roster::new(vec![place("a"), place("b")]);
        roster.answered(&place("b"), [place("a"), place("c")]);
        assert_eq!(roster.places(), [place("b"), place("a"), place("c")]);
        roster.answered(&place("b"), []);
        assert_eq!(roster.places(), [place("b"), place("a"), place("c")]);
        roster.answered(&place("x"), (0..MOST as u16).map(|port| ("y".to_owned(), port)));
        assert!(roster.places().len() <= MOST + 1 && roster.places()[0] == place("x"));
    }
}
