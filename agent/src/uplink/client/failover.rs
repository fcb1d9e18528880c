//! The turn of a controller's addresses: which one is next after a failure.

use super::Controller;
use super::connection::Link;
use super::response::{Answered, read};
use crate::uplink::failure::Failure;
use jscommon::backoff::Backoff;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use ureq::http;

/// Whether requests of one kind differ in what they carry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// They are all alike, so that none is refused for its content.
    Fixed,
    /// One may be refused where others are taken.
    Varies,
}

impl Controller {
    /// Whether the address whose turn it is has taken the latest of the requests that were not filtered.
    pub(crate) fn serves(&self) -> bool {
        self.is_good(self.link().endpoint)
    }

    fn is_good(&self, endpoint: usize) -> bool {
        self.good_endpoint.load(Ordering::Relaxed) == endpoint
    }

    /// Whether an address that has taken nothing yet answers as no controller does.
    fn is_no_controller(&self, endpoint: usize, failure: &Failure) -> bool {
        let spoke_of_the_node = matches!(failure, Failure::Clock(_) | Failure::Busy { .. }) || failure.is_auth();
        !spoke_of_the_node && !self.is_good(endpoint)
    }

    /// Gives the turn to the next address, so that a request is tried there.
    pub(crate) fn next_address(&self) {
        self.fail_over(self.link().endpoint, false);
    }

    /// Returns the pause after a failure, which `backoff` counts. The next address of the list is tried at once, and only
    /// after all of them a pause begins.
    pub(crate) fn pause(&self, failure: &Failure, backoff: &mut Backoff) -> Duration {
        let failures = backoff.failures() as usize + 1;
        let pause = backoff.fail(fastrand::f64());
        match failure.wait() {
            None if failure.should_fail_over() && !failures.is_multiple_of(self.addresses()) => Duration::ZERO,
            asked => asked.unwrap_or_default() + pause,
        }
    }

    /// Runs one request over `link` at its address; when that address is no use, the next has its turn.
    pub(super) fn at_turn<T>(
        &self,
        link: &Link,
        content: Content,
        call: impl FnOnce(&str) -> Result<http::Response<ureq::Body>, ureq::Error>,
        accept: impl FnOnce(Answered) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let answer = call(self.url_of(link.endpoint)).map_err(|error| Failure::of(&error)).and_then(|response| {
            let answer = read(response)?;
            let renew = answer.head.renew;
            let accepted = accept(answer)?;
            if renew {
                self.renew.store(true, Ordering::Relaxed);
            }
            Ok(accepted)
        });
        let answer = answer.map_err(Failure::with_advice);
        match &answer {
            Ok(_) => {
                self.good_endpoint.store(link.endpoint, Ordering::Relaxed);
                self.taken.fetch_add(1, Ordering::Relaxed);
            }
            // A filter in between refuses what others would pass: no reason to leave the address.
            Err(failure) if content == Content::Varies && failure.is_filtered() && self.is_good(link.endpoint) => {}
            Err(failure) if failure.should_fail_over() || self.is_no_controller(link.endpoint, failure) => {
                self.fail_over(link.endpoint, matches!(failure, Failure::Away(_)));
            }
            Err(_) => {}
        }
        answer
    }

    /// Gives the turn to the next address, unless somebody else has moved on since `endpoint` had it: two threads
    /// that fail together move once.
    ///
    /// From an address that is away all requests but the polls are called back, to be made anew at the
    /// next one. A path that swallows everything would hold up each thread for its own timeout
    /// otherwise, and a job that the poller gets from the next address waits for the uploader.
    fn fail_over(&self, endpoint: usize, away: bool) {
        let mut current = self.link.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if current.endpoint != endpoint {
            return;
        }
        // With one address the next is the same, and what is under way there may well come through.
        let anew = away && self.urls.len() > 1 && !self.stopped.load(Ordering::SeqCst);
        let next = Arc::new(current.next(anew));
        let left = std::mem::replace(&mut *current, next);
        drop(current);
        if away {
            left.names.invalidate();
        }
        if anew {
            left.posts.clone().shutdown();
        }
    }
}
