//! The poller: asks one controller for commands, for ever.
//!
//! Owns the poll and its acknowledgement, one thread a controller. The supervisor interprets the commands: the
//! poller hands them over and acknowledges a batch only once it is stored durably, and what is not stored is answered and
//! its result taken.
//! Its thread is detached, for it may sit in a read; [`crate::uplink::Controller::stop_polls`]
//! ends that read.

use super::client::{Controller, LONGEST_POLL, Taken};
use super::failure::Failure;
use super::faults::Faults;
use super::log_once::LogOnce;
use crate::storage::job_store::JobStore;
use crate::storage::upload_queue::UploadQueue;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jscommon::backoff::Backoff;
use jscommon::{Command, NodeId, failpoint};
use serde_json::{Value, json};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Unsent results past this many bytes stop the taking of commands.
pub(crate) const MAX_UNSENT: u64 = 64 << 20;
/// How soon it looks again whether results have gone out.
const FULL_PAUSE: Duration = Duration::from_millis(500);
/// The name of a fault of the storing of commands.
const COMMANDS: &str = "commands";
/// How long the results of read-only commands are waited for, which are then stored.
const READ_ONLY_WAIT: Duration = Duration::from_secs(1);
/// How long commands are waited for until the controller is told that they are not stored.
const LATE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Takes commands. The answer on the first channel comes once all that are to be stored are so; it is closed when they
/// cannot be. The second is closed once the results of the others, which only look, are taken by the controller.
pub(crate) type Submit = Box<dyn Fn(Vec<Command>) -> (Receiver<()>, Receiver<()>) + Send>;
/// Stores the commands whose results were not taken; the answer comes as that of `Submit`.
pub(crate) type StoreReadOnly = Box<dyn Fn() -> Receiver<()> + Send>;

/// The parts of the agent that one poller uses.
pub(crate) struct Parts {
    /// The controller that it asks.
    pub(crate) controller: Arc<Controller>,
    /// The function that takes the commands.
    pub(crate) submit: Submit,
    /// The function that stores those that only look.
    pub(crate) store_read_only: StoreReadOnly,
    /// Knows how much waits to be sent.
    pub(crate) job_store: Arc<JobStore>,
    /// Takes the events.
    pub(crate) upload_queue: Arc<UploadQueue>,
    /// The data of the event `startup`.
    pub(crate) startup: Value,
    /// Wakes this controller's sender, which renews credentials.
    pub(crate) sender: Sender<()>,
    /// Closed when the agent stops.
    pub(crate) stop: Receiver<()>,
}

/// Starts the poller of one controller; it ends soon after its `stop` is closed.
pub(crate) fn start(parts: Parts) -> io::Result<()> {
    let name = format!("poll {}", parts.controller.name());
    // The stack holds a TLS handshake.
    thread::Builder::new().name(name).stack_size(256 * 1024).spawn(move || Poller::new(parts).run())?;
    Ok(())
}

struct Poller {
    parts: Parts,
    /// Stored and not yet acknowledged.
    ack: Option<String>,
    backoff: Backoff,
    logged: LogOnce,
    faults: Faults,
}

impl Poller {
    fn new(parts: Parts) -> Poller {
        Poller {
            parts,
            ack: None,
            backoff: Backoff::new(FIRST_RETRY, LAST_RETRY),
            logged: LogOnce::default(),
            faults: Faults::default(),
        }
    }

    fn run(mut self) {
        while !self.stopped() {
            let pause = if self.parts.job_store.unsent_bytes() > MAX_UNSENT {
                self.say(&format!("no commands are taken while more than {} MiB of results wait", MAX_UNSENT >> 20));
                FULL_PAUSE
            } else {
                self.round()
            };
            if !pause.is_zero() && self.parts.stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// One poll; the answer is how long to wait before the next.
    fn round(&mut self) -> Duration {
        if self.parts.controller.take_enrolled_again() {
            self.introduce();
        }
        let polled = self.parts.controller.poll(LONGEST_POLL, self.ack.as_deref());
        if self.parts.controller.wants_renewal() {
            let _ = self.parts.sender.try_send(());
        }
        match polled {
            Ok(taken) => {
                if self.ack.take().is_some() {
                    failpoint::hit("agent.acked");
                }
                if self.logged.clear() {
                    log::info!(
                        "controller {} answers at {}",
                        self.parts.controller.name(),
                        self.parts.controller.url()
                    );
                }
                self.backoff.succeed();
                match taken {
                    Some(taken) => self.hand_over(taken),
                    None => Duration::ZERO,
                }
            }
            Err(_) if self.stopped() => Duration::ZERO,
            Err(failure) => self.after(failure),
        }
    }

    /// Tells the controller once more who this node is: with a revocation it has forgotten that.
    fn introduce(&self) {
        let mut data = self.parts.startup.clone();
        data["again"] = json!("the node was enrolled again");
        self.parts.upload_queue.push_event(Some(self.parts.controller.name()), "startup", data);
        let _ = self.parts.sender.try_send(());
    }

    fn hand_over(&mut self, taken: Taken) -> Duration {
        failpoint::hit("agent.received");
        let mut commands = Vec::with_capacity(taken.cmds.len());
        for value in taken.cmds {
            match Command::from_value(addressed(value, self.parts.controller.node())) {
                Ok(command) => commands.push(command),
                // The controller lets none of these through; one that came all the same must not block the rest.
                Err(bad) => {
                    log::error!("controller {} sent what is no command: {bad}", self.parts.controller.name());
                    let data = json!({"id": bad.id, "reason": bad.reason});
                    self.parts.upload_queue.push_event(Some(self.parts.controller.name()), "bad_command", data);
                }
            }
        }
        let (stored, taken_results) = (self.parts.submit)(commands);
        let mut is_stored = self.wait_stored(&stored);
        if is_stored && taken_results.recv_timeout(READ_ONLY_WAIT) == Err(RecvTimeoutError::Timeout) {
            is_stored = self.wait_stored(&(self.parts.store_read_only)());
        }
        if is_stored {
            failpoint::hit("agent.stored");
            self.faults.end(COMMANDS);
            self.faults.tell(&self.parts.controller);
            self.ack = Some(taken.batch);
            return Duration::ZERO;
        }
        if !self.stopped() {
            self.tell_unstored();
        }
        self.backoff.fail(fastrand::f64())
    }

    /// Waits until commands are stored; false when they cannot be.
    fn wait_stored(&mut self, stored: &Receiver<()>) -> bool {
        loop {
            match stored.recv_timeout(LATE) {
                Ok(()) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
                // They are stored as soon as that can be done; meanwhile this node takes no others.
                Err(RecvTimeoutError::Timeout) => self.tell_unstored(),
            }
        }
    }

    fn tell_unstored(&mut self) {
        let reason = "commands cannot be stored, so none are taken; is the disk full?";
        self.faults.begin(COMMANDS, reason.to_owned());
        self.faults.tell(&self.parts.controller);
    }

    fn after(&mut self, failure: Failure) -> Duration {
        self.say(&failure.to_string());
        if failure.is_auth() && self.parts.controller.reload() {
            log::info!("controller {}: new credentials were found in their files", self.parts.controller.name());
            return Duration::ZERO;
        }
        self.parts.controller.pause(&failure, &mut self.backoff)
    }

    /// Logs a trouble once, and again only after a success.
    fn say(&mut self, trouble: &str) {
        if self.logged.is_news(trouble) {
            log::warn!("controller {} ({}): {trouble}", self.parts.controller.name(), self.parts.controller.url());
        }
    }

    fn stopped(&self) -> bool {
        self.parts.stop.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected)
    }
}

/// The command as one for `node` where it names none: whose poll it answers it is for.
fn addressed(mut command: Value, node: NodeId) -> Value {
    let names_none = |value: Option<&Value>| value.is_none_or(|n| n.is_null() || n.as_u64() == Some(0));
    if let Some(fields) = command.as_object_mut()
        && (names_none(fields.get("gid")) || names_none(fields.get("nid")))
    {
        fields.insert("gid".into(), node.gid.into());
        fields.insert("nid".into(), node.nid.into());
    }
    command
}

#[cfg(test)]
mod tests;
