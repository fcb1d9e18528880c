//! Faults of this node's own files, told to the controller directly: the way through the upload queue may be
//! the one that is broken.

use super::client::Controller;
use serde_json::json;
use std::time::{Duration, Instant};

/// The event about a fault.
pub(crate) const EVENT: &str = "local_fault";

/// The pause after an event that was not taken.
const PAUSE: Duration = Duration::from_secs(5);

struct Fault {
    what: &'static str,
    reason: String,
    told: bool,
    over: bool,
}

/// The faults that last, and those that no controller was told of yet.
#[derive(Default)]
pub(crate) struct Faults {
    faults: Vec<Fault>,
    not_before: Option<Instant>,
}

impl Faults {
    /// Notes a fault of `what` and logs it when it is new; returns the sentence about it.
    pub(crate) fn begin(&mut self, what: &'static str, reason: String) -> String {
        match self.faults.iter_mut().find(|fault| fault.what == what) {
            Some(fault) => fault.over = false,
            None => {
                log::error!("{reason}");
                self.faults.push(Fault { what, reason: reason.clone(), told: false, over: false });
            }
        }
        reason
    }

    /// Notes that the fault of `what`, if there was one, is over.
    pub(crate) fn end(&mut self, what: &'static str) {
        for fault in self.faults.iter_mut().filter(|fault| fault.what == what && !fault.over) {
            log::info!("{what}: the fault is over");
            fault.over = true;
        }
        self.faults.retain(|fault| !fault.told || !fault.over);
    }

    /// Tells the controller what it does not know yet; what it does not take is told again later.
    pub(crate) fn tell(&mut self, controller: &Controller) {
        if self.faults.iter().all(|fault| fault.told) || self.not_before.is_some_and(|until| Instant::now() < until) {
            return;
        }
        for fault in self.faults.iter_mut().filter(|fault| !fault.told) {
            let body = json!({"name": EVENT, "data": {"what": fault.what, "error": fault.reason}}).to_string();
            fault.told = controller.post("event", body.as_bytes()).is_ok();
        }
        self.not_before = self.faults.iter().any(|fault| !fault.told).then(|| Instant::now() + PAUSE);
        self.faults.retain(|fault| !fault.told || !fault.over);
    }
}
