//! The sender: results, then events, records and stats, on their way to one controller.
//!
//! One thread a controller. Owns the order and the retries; what waits lies on disk, in the ledger
//! and the outbox, so it holds nothing itself and a stop loses nothing. While one request is under
//! way the results of other jobs gather, and the next request takes them all.
//!
//! What a controller will never take (400, 413…) is halved until the culprit is alone, logged and
//! dropped; of a result that is too large its end is told. What speaks of the node and not of the content (401, 403) only holds up its own kind.

use crate::controller::{Controller, Failure};
use crate::ledger::{Ledger, Unsent};
use crate::outbox::{Kind, Outbox};
use crate::poller::without_digits;
use crossbeam_channel::{Receiver, Sender, bounded};
use jscommon::backoff::Backoff;
use jscommon::death;
use jscommon::worker::Worker;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Most results of one request.
const BATCH_ROWS: usize = 500;
/// About as many bytes; a single result may have more.
const BATCH_BYTES: usize = 4 << 20;
/// What a controller takes at the most.
const MAX_BODY: usize = 16 << 20;
/// An agent that stops gives its sender this long.
const LAST_ROUND: Duration = Duration::from_secs(3);
/// The pause between two tries for new credentials.
const RENEW_PAUSE: Duration = Duration::from_secs(30);
/// How long nothing is sent before the memory that sending needs is given back.
const QUIET: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// The running sender; dropping it sends what is there, until its deadline.
pub struct Handle {
    controller: Arc<Controller>,
    wake: Sender<()>,
    stopping: Arc<AtomicBool>,
    ended: Receiver<()>,
    worker: Option<Worker>,
}

impl Handle {
    /// Starts the sender of one controller.
    pub fn start(controller: Arc<Controller>, ledger: Arc<Ledger>, outbox: Arc<Outbox>) -> io::Result<Handle> {
        let (wake, woken) = bounded(1);
        let (tell_end, ended) = bounded::<()>(0);
        let stopping = Arc::new(AtomicBool::new(false));
        outbox.waker(controller.name(), wake.clone());
        let mut actor = Actor::new(controller.clone(), ledger, outbox, woken, stopping.clone());
        let worker = Worker::spawn(&format!("send {}", controller.name()), 256 * 1024, move || {
            actor.run();
            drop(tell_end);
        })?;
        Ok(Handle { controller, wake, stopping, ended, worker: Some(worker) })
    }

    /// Wakes it: something new is there. One that finds it full was told already.
    pub fn waker(&self) -> Sender<()> {
        self.wake.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = self.wake.try_send(());
        // It ends by itself in time, but for a request that hangs.
        if self.ended.recv_timeout(LAST_ROUND) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            self.controller.stop_posts();
        }
        drop(self.worker.take());
    }
}

/// What is sent, in the order of its urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cargo {
    Results,
    Batch(Kind),
}

impl Cargo {
    fn path(self) -> &'static str {
        match self {
            Cargo::Results => "result",
            Cargo::Batch(Kind::Event) => "event",
            Cargo::Batch(Kind::Log) => "log",
            Cargo::Batch(Kind::Stats) => "stats",
        }
    }
}

/// One kind of cargo and its own patience.
struct Lane {
    cargo: Cargo,
    backoff: Backoff,
    not_before: Option<Instant>,
    /// Results of the next request; halved when one of them is refused.
    rows: usize,
}

struct Actor {
    controller: Arc<Controller>,
    ledger: Arc<Ledger>,
    outbox: Arc<Outbox>,
    woken: Receiver<()>,
    stopping: Arc<AtomicBool>,
    lanes: Vec<Lane>,
    /// Of the whole controller: nothing is tried before then.
    backoff: Backoff,
    not_before: Option<Instant>,
    /// Requests that the controller had taken when that wait began: one more, of the poller, ends it.
    taken_before: Option<u64>,
    renew_after: Option<Instant>,
    trouble: Option<String>,
    /// Something was sent since the last rest.
    stirred: bool,
}

impl Actor {
    fn new(
        controller: Arc<Controller>,
        ledger: Arc<Ledger>,
        outbox: Arc<Outbox>,
        woken: Receiver<()>,
        stopping: Arc<AtomicBool>,
    ) -> Actor {
        let backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let cargos = [Cargo::Results, Cargo::Batch(Kind::Event), Cargo::Batch(Kind::Log), Cargo::Batch(Kind::Stats)];
        let lane = |cargo| Lane { cargo, backoff: backoff.clone(), not_before: None, rows: BATCH_ROWS };
        Actor {
            controller,
            ledger,
            outbox,
            woken,
            stopping,
            lanes: cargos.into_iter().map(lane).collect(),
            backoff: backoff.clone(),
            not_before: None,
            taken_before: None,
            renew_after: None,
            trouble: None,
            stirred: false,
        }
    }

    fn run(&mut self) {
        loop {
            // Before the look at what is there, so that a stop in between is met with one more round.
            let last = self.stopping.load(Ordering::Relaxed);
            self.renew();
            let next = self.drain(last);
            if last {
                return;
            }
            let quiet = self.stirred.then(|| Instant::now() + QUIET);
            match next.into_iter().chain(quiet).min() {
                Some(until) => drop(self.woken.recv_deadline(until)),
                None => drop(self.woken.recv()),
            }
            if quiet.is_some_and(|quiet| quiet <= Instant::now()) {
                self.stirred = false;
                self.outbox.rest();
            }
        }
    }

    /// Sends all that is due; the answer is when something held up is due again. The last round of a
    /// stopping agent waits for nothing and ends at the first failure.
    fn drain(&mut self, last: bool) -> Option<Instant> {
        loop {
            let now = Instant::now();
            if !last
                && let Some(not_before) = self.not_before
                && now < not_before
                && self.taken_before.is_none_or(|taken| self.controller.requests_taken() == taken)
            {
                return Some(not_before);
            }
            let due = |lane: &Lane| last || lane.not_before.is_none_or(|not_before| not_before <= now);
            let due: Vec<usize> = (0..self.lanes.len()).filter(|i| due(&self.lanes[*i])).collect();
            let sent = due.into_iter().find_map(|lane| self.send(lane));
            match sent {
                Some(Ok(())) => self.stirred = true,
                Some(Err(())) if last => return None,
                Some(Err(())) => {}
                None => return self.lanes.iter().filter_map(|lane| lane.not_before).filter(|t| *t > now).min(),
            }
        }
    }

    /// Sends one request of this lane; nothing when it has nothing to send.
    fn send(&mut self, lane: usize) -> Option<Result<(), ()>> {
        let name = self.controller.name();
        let cargo = self.lanes[lane].cargo;
        let outcome = match cargo {
            Cargo::Results => {
                let results = match self.ledger.unsent(name, self.lanes[lane].rows, BATCH_BYTES) {
                    Ok(results) if results.is_empty() => return None,
                    Ok(results) => results,
                    Err(error) => {
                        self.hold(lane, &Failure::Unusable(format!("results cannot be read: {error:#}")));
                        return Some(Err(()));
                    }
                };
                let mut body = list(&results);
                if body.len() > MAX_BODY {
                    // Nothing larger is taken, and on a slow line that is not even heard.
                    log::error!("controller {name}: the result of {} is cut short", id_of(&results[0].json));
                    body = shortened(&results[0].json).unwrap_or(body);
                }
                let outcome = self.controller.post(cargo.path(), &body);
                self.settle_results(lane, &results, outcome)
            }
            Cargo::Batch(kind) => {
                let batch = self.outbox.next(name, kind)?;
                let outcome = self.controller.post_batch(cargo.path(), &batch.body);
                match outcome {
                    Ok(last) => {
                        // A batch whose number was too low is not taken; it goes again under another.
                        let ahead = last.filter(|last| *last > batch.number);
                        if !ahead.is_some_and(|last| self.outbox.jump(name, kind, batch.number, last)) {
                            self.outbox.taken(name, kind, batch.number);
                        }
                        Ok(())
                    }
                    Err(failure) if self.controller.refuses_content(&failure) => {
                        log::error!("controller {name}: a batch of {} is dropped: {failure}", cargo.path());
                        self.outbox.refused(name, kind, batch.number);
                        Ok(())
                    }
                    Err(failure) => Err(failure),
                }
            }
        };
        Some(match outcome {
            Ok(()) => {
                self.release(lane);
                Ok(())
            }
            Err(failure) => {
                self.hold(lane, &failure);
                Err(())
            }
        })
    }

    /// What became of a request with results: marks what is over.
    fn settle_results(&mut self, lane: usize, results: &[Unsent], outcome: Result<(), Failure>) -> Result<(), Failure> {
        let name = self.controller.name().to_owned();
        match outcome {
            Ok(()) => {
                death::point("agent.posted");
                self.lanes[lane].rows = BATCH_ROWS;
            }
            // The list was taken but for these, and these will never be.
            Err(Failure::Refused { reason, refused, .. }) if !refused.is_empty() => {
                log::error!("controller {name} refuses the results of {}: {reason}", refused.join(", "));
                self.lanes[lane].rows = BATCH_ROWS;
            }
            Err(failure) if self.controller.refuses_content(&failure) && results.len() > 1 => {
                self.lanes[lane].rows = results.len() / 2;
                return Ok(());
            }
            Err(failure) if self.controller.refuses_content(&failure) => {
                let id = id_of(&results[0].json);
                // Whoever waits for it is told at least that it is over, and how.
                let too_large = matches!(failure, Failure::Refused { status: 413, .. });
                let short = if too_large { shortened(&results[0].json) } else { None };
                match short.map(|short| self.controller.post("result", &short)) {
                    Some(Ok(())) => log::error!("controller {name}: the result of {id} is cut short: {failure}"),
                    Some(Err(again)) if !again.is_final() => return Err(again),
                    _ => log::error!("controller {name}: the result of {id} is dropped: {failure}"),
                }
                self.lanes[lane].rows = BATCH_ROWS;
            }
            Err(failure) => return Err(failure),
        }
        let keys: Vec<i64> = results.iter().map(|result| result.key).collect();
        if let Err(error) = self.ledger.mark_sent(&keys) {
            return Err(Failure::Unusable(format!("sent results cannot be marked: {error:#}")));
        }
        death::point("agent.sent");
        Ok(())
    }

    fn release(&mut self, lane: usize) {
        self.not_before = None;
        self.backoff.succeed();
        self.lanes[lane].not_before = None;
        self.lanes[lane].backoff.succeed();
        self.trouble = None;
    }

    /// Waits before the next try: of this lane, or of all when the controller itself is away.
    fn hold(&mut self, lane: usize, failure: &Failure) {
        // Told once, and again only when another trouble or a success came in between.
        let trouble = without_digits(&failure.to_string());
        if self.trouble.as_deref() != Some(&trouble) {
            log::warn!("controller {}: {} waits: {failure}", self.controller.name(), self.lanes[lane].cargo.path());
            self.trouble = Some(trouble);
        }
        if failure.is_of_the_node() && self.controller.reload() {
            return;
        }
        // A node that sends too much of one kind sends the others all the same.
        let too_much = matches!(failure, Failure::Busy { status: 429, .. });
        let whole = failure.is_of_the_address() || (failure.wait().is_some() && !too_much);
        let backoff = if whole { &mut self.backoff } else { &mut self.lanes[lane].backoff };
        let failures = backoff.failures() as usize + 1;
        let mut wait = backoff.fail(fastrand::f64()) + failure.wait().unwrap_or_default();
        if failure.is_of_the_address()
            && failure.wait().is_none()
            && !failures.is_multiple_of(self.controller.addresses())
        {
            wait = Duration::ZERO;
        }
        let until = Some(Instant::now() + wait);
        if whole {
            self.not_before = until;
            self.taken_before = Some(self.controller.requests_taken());
        } else {
            self.lanes[lane].not_before = until;
        }
    }

    fn renew(&mut self) {
        let now = Instant::now();
        if !self.controller.wants_renewal() || self.renew_after.is_some_and(|after| now < after) {
            return;
        }
        self.renew_after = Some(now + RENEW_PAUSE);
        match self.controller.renew() {
            Ok(true) => log::info!("controller {}: the credentials were renewed", self.controller.name()),
            Ok(false) => {}
            Err(failure) => log::warn!("controller {}: no new credentials: {failure}", self.controller.name()),
        }
    }
}

fn id_of(result: &str) -> String {
    let result: serde_json::Value = serde_json::from_str(result).unwrap_or_default();
    result["id"].as_str().unwrap_or("?").to_owned()
}

/// The body of a request with a result that is too large, less what makes it large.
fn shortened(result: &str) -> Option<Vec<u8>> {
    let mut value: serde_json::Value = serde_json::from_str(result).ok()?;
    let fields = value.as_object_mut()?;
    let period = fields.get("args").and_then(|args| args.get("recurring_period")).cloned();
    let was = fields.get("state").and_then(|state| state.as_str()).unwrap_or("?");
    let why = format!("the job ended {was}, and its result of {} bytes is too large for the controller", result.len());
    fields.retain(|name, _| {
        ["id", "gid", "nid", "cmd", "state", "code", "time", "starttime", "bytes"].contains(&name.as_str())
    });
    // A failure stays what it was; a success without its data is none.
    if fields.get("state").is_some_and(|state| state == "OK") {
        fields.insert("state".into(), "ERROR".into());
    }
    fields.insert("data".into(), why.into());
    fields.insert("truncated".into(), true.into());
    // Without it the controller would take the run of a recurring job for its last.
    if let Some(period) = period {
        fields.insert("args".into(), serde_json::json!({"recurring_period": period}));
    }
    serde_json::to_vec(&[value]).ok()
}

/// The body of a request with results.
fn list(results: &[Unsent]) -> Vec<u8> {
    let mut body = Vec::with_capacity(results.iter().map(|result| result.json.len() + 1).sum::<usize>() + 2);
    body.push(b'[');
    for (i, result) in results.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(result.json.as_bytes());
    }
    body.push(b']');
    body
}

#[cfg(test)]
mod tests;
