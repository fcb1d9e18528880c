//! Which servers of a cluster, or which Sentinels, are asked first. Pure.
//!
//! Owns: their order, and which are forgotten. The one that answered last is asked first and the one that
//! failed last of all, so that a silent one costs a wait once and not with every connection; a server that
//! the cluster tells nothing of any more goes, unless the user has named it.
//! Does not own: asking (`cluster`, `sentinel`).

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Host and port.
pub(crate) type Place = (String, u16);

/// Most servers that are remembered.
const MAX_SERVERS: usize = 256;

/// Servers in the order in which they are to be asked; shared by all connections of a controller.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// Those that the user has named: they stay, for whoever was told of may be gone one day.
    named: Vec<Place>,
    held: Mutex<Vec<Place>>,
}

impl Roster {
    /// The ones that the user has named.
    pub(crate) fn new(named: Vec<Place>) -> Roster {
        Roster { held: Mutex::new(named.clone()), named }
    }

    /// All of them, in their order.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.held().clone()
    }

    /// This one has answered, and told of these: it goes first, and there are no others but those that were
    /// named. Who is new is asked before whoever was there already: that one may be there no more.
    pub(crate) fn answered(&self, first: &Place, told: impl IntoIterator<Item = Place>) {
        let mut held = self.held();
        let told: Vec<Place> = told.into_iter().collect();
        let known = std::mem::take(&mut *held);
        let fresh = told.iter().filter(|place| !known.contains(place));
        let stays = known.iter().filter(|place| told.contains(place) || self.named.contains(place));
        for place in std::iter::once(first).chain(fresh).chain(stays) {
            if held.len() < MAX_SERVERS && !held.contains(place) {
                held.push(place.clone());
            }
        }
    }

    /// This one did not answer, or has led astray: it is asked last.
    pub(crate) fn failed(&self, place: &Place) {
        let mut held = self.held();
        if let Some(at) = held.iter().position(|known| known == place) {
            let place = held.remove(at);
            held.push(place);
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Place>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        (name.to_owned(), 1)
    }

    fn order(roster: &Roster) -> String {
        roster.places().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn who_answered_is_asked_first_and_who_failed_last() {
        let roster = Roster::new(vec![place("a"), place("b")]);
        roster.answered(&place("b"), [place("a"), place("c")]);
        assert_eq!(order(&roster), "bca");
        roster.failed(&place("b"));
        assert_eq!(order(&roster), "cab");
        roster.failed(&place("x"));
        assert_eq!(order(&roster), "cab");
    }

    #[test]
    fn who_is_told_of_no_more_goes_and_who_was_named_stays() {
        let roster = Roster::new(vec![place("a"), place("b")]);
        roster.answered(&place("a"), [place("c"), place("d")]);
        assert_eq!(order(&roster), "acdb");
        // All have moved: whoever is new does not stand behind those that are gone.
        roster.answered(&place("d"), [place("e"), place("f")]);
        assert_eq!(order(&roster), "defab");
        // A Sentinel tells of none.
        roster.answered(&place("b"), []);
        assert_eq!(order(&roster), "ba");
        roster.answered(&place("x"), (0..2 * MAX_SERVERS as u16).map(|port| ("y".to_owned(), port)));
        assert!(roster.places().len() == MAX_SERVERS && roster.places()[0] == place("x"));
    }
}
