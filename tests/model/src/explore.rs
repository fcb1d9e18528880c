//! Breadth-first search through all states, and the way back from a bad one.

use crate::setup::*;
use crate::state::*;
use crate::{controller, invariants, node};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// The steps that may follow a state.
pub(crate) struct Steps<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) state: &'a State,
    next: Vec<Step>,
}

pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// It happens sooner or later when nothing fails.
    pub(crate) fair: bool,
    pub(crate) state: State,
}

impl Steps<'_> {
    /// A step that somebody takes.
    pub(crate) fn fair(&mut self, name: &'static str, change: impl FnOnce(&mut State, &Setup)) {
        let mut state = *self.state;
        change(&mut state, self.setup);
        self.next.push(Step { name, fair: true, state });
    }

    /// A failure, where it may happen.
    pub(crate) fn fault(&mut self, kind: u32, name: &'static str, change: impl FnOnce(&mut State, &Setup)) {
        if self.setup.faults & kind != 0 && self.state.failures > 0 {
            let mut state = *self.state;
            state.failures -= 1;
            change(&mut state, self.setup);
            self.next.push(Step { name, fair: false, state });
        }
    }
}

/// All steps that may follow `state`, always in the same order.
pub(crate) fn steps(setup: &Setup, state: &State) -> Vec<Step> {
    let mut out = Steps { setup, state, next: Vec::new() };
    controller::steps(&mut out);
    node::steps(&mut out);
    node::faults(&mut out);
    out.next
}

/// A quick hash; the keys are not an adversary's.
#[derive(Default)]
pub(crate) struct Fold(u64);

impl Fold {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.chunks(8).for_each(|some| self.add(some.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte))));
    }
    fn write_u8(&mut self, byte: u8) {
        self.add(byte.into());
    }
    fn write_isize(&mut self, word: isize) {
        self.add(word as u64);
    }
    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }
}

/// The result of a search.
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// The first violation, with the steps that lead there.
    pub(crate) violation: Option<String>,
}

/// Visits every state that can be reached, and checks the invariants in each; then that from each of them steps
/// that are no failures lead to one where all is answered.
pub(crate) fn explore(setup: &Setup) -> Found {
    let mut known: HashMap<State, u32, BuildHasherDefault<Fold>> = HashMap::default();
    // From where each state was first reached, and by which of the steps there.
    let mut came: Vec<(u32, u8)> = vec![(0, 0)];
    let mut queue = VecDeque::from([(0u32, setup.start())]);
    let mut fair: Vec<(u32, u32)> = Vec::new();
    let mut good: Vec<bool> = Vec::new();
    let mut count = 0;
    known.insert(setup.start(), 0);
    while let Some((from, state)) = queue.pop_front() {
        if let Some(what) = invariants::broken(setup, &state) {
            let violation = Some(format!("{what}\n{}", way(setup, &came, from)));
            return Found { states: known.len(), steps: count, violation };
        }
        good.push(invariants::all_is_answered(setup, &state));
        for (i, step) in steps(setup, &state).into_iter().enumerate() {
            count += 1;
            let fresh = came.len() as u32;
            let to = match known.entry(step.state) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    entry.insert(fresh);
                    came.push((from, i as u8));
                    queue.push_back((fresh, step.state));
                    fresh
                }
            };
            if step.fair && to != from {
                fair.push((to, from));
            }
        }
    }
    let stuck = stuck(&fair, good);
    let violation = stuck.map(|at| format!("nothing leads to an answer from here\n{}", way(setup, &came, at)));
    Found { states: known.len(), steps: count, violation }
}

/// The first state from which fair steps (given backwards) lead to no good one.
fn stuck(fair: &[(u32, u32)], mut good: Vec<bool>) -> Option<u32> {
    let mut first = vec![0u32; good.len() + 1];
    fair.iter().for_each(|(to, _)| first[*to as usize + 1] += 1);
    for i in 1..first.len() {
        first[i] += first[i - 1];
    }
    let mut before = vec![0u32; fair.len()];
    let mut place = first.clone();
    for (to, from) in fair {
        before[place[*to as usize] as usize] = *from;
        place[*to as usize] += 1;
    }
    let mut open: Vec<u32> = (0..good.len() as u32).filter(|state| good[*state as usize]).collect();
    while let Some(state) = open.pop() {
        for from in &before[first[state as usize] as usize..first[state as usize + 1] as usize] {
            if !std::mem::replace(&mut good[*from as usize], true) {
                open.push(*from);
            }
        }
    }
    good.iter().position(|good| !good).map(|state| state as u32)
}

/// The steps to a state, and the state.
fn way(setup: &Setup, came: &[(u32, u8)], to: u32) -> String {
    let mut choices = Vec::new();
    let mut at = to;
    while at != 0 {
        let (from, choice) = came[at as usize];
        choices.push(choice);
        at = from;
    }
    let (mut state, mut text) = (setup.start(), String::new());
    for choice in choices.into_iter().rev() {
        let step = steps(setup, &state).swap_remove(choice.into());
        text.push_str(&format!("  {}{}\n", if step.fair { "" } else { "! " }, step.name));
        state = step.state;
    }
    format!("{text}{state:#?}")
}
