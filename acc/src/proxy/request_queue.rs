//! Requests that wait for a connection to tiny_http, in the order in which they go. Pure.
//!
//! Owns: that results go first, and how many of them. Does not own: how many may wait, or where they go.

use std::collections::VecDeque;

/// Results that go ahead of a request that waits longer, before that one has its turn.
const MAX_RESULTS_IN_A_ROW: usize = 8;

/// Requests of one proxy: a result goes first, for a client waits for it and it makes the node free for more.
#[derive(Debug)]
pub(super) struct RequestQueue<T> {
    results: VecDeque<T>,
    others: VecDeque<T>,
    results_in_a_row: usize,
}

impl<T> Default for RequestQueue<T> {
    fn default() -> RequestQueue<T> {
        RequestQueue { results: VecDeque::new(), others: VecDeque::new(), results_in_a_row: 0 }
    }
}

impl<T> RequestQueue<T> {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.results.len() + self.others.len()
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a request behind its like.
    pub(super) fn push(&mut self, is_result: bool, request: T) {
        if is_result { self.results.push_back(request) } else { self.others.push_back(request) }
    }

    /// Takes the next request, where it is one that is wanted: a result, unless `MAX_RESULTS_IN_A_ROW` have passed one
    /// that is none.
    pub(super) fn pop_if(&mut self, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let passes = !self.others.is_empty() && self.results_in_a_row < MAX_RESULTS_IN_A_ROW;
        if (passes || self.others.is_empty())
            && let Some(result) = self.results.front()
        {
            return if wanted(result) {
                self.results_in_a_row += usize::from(passes);
                self.results.pop_front()
            } else {
                None
            };
        }
        if !self.others.front().is_some_and(wanted) {
            return None;
        }
        self.results_in_a_row = 0;
        self.others.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_goes_before_a_poll_that_waits() {
        let mut queue = RequestQueue::default();
        queue.push(false, "poll");
        queue.push(true, "first result");
        queue.push(true, "second result");
        assert_eq!(queue.pop_if(|request| *request == "poll"), None, "a result comes first");
        assert_eq!(queue.len(), 3);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_if(|_| true)).collect();
        assert_eq!(order, ["first result", "second result", "poll"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn polls_are_not_starved_by_results() {
        let mut queue = RequestQueue::default();
        (0..3).for_each(|_| queue.push(false, "poll"));
        (0..1000).for_each(|_| queue.push(true, "result"));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_if(|_| true)).take(30).collect();
        let polls: Vec<usize> = (0..30).filter(|at| order[*at] == "poll").collect();
        assert_eq!(polls, [8, 17, 26]);
        // With no poll that waits, results are not counted against the next one.
        let next: Vec<_> = std::iter::from_fn(|| queue.pop_if(|_| true)).take(100).collect();
        queue.push(false, "poll");
        assert!(next.iter().all(|one| *one == "result") && queue.pop_if(|_| true) == Some("result"));
    }
}
