//! The uploader: results, then events, records and stats, on their way to one controller.
//!
//! One thread a controller. Owns the order and the retries; what waits lies in the job store
//! and the upload queue, so it holds nothing itself and a stop loses nothing. While one request is under
//! way the results of other jobs gather, and the next request takes them all.
//!
//! A request that the controller or a proxy in between refuses for its content is halved until the
//! culprit is alone. One that is too large, or that the controller finds wrong, is dropped and counted;
//! of a result its end is told. Any other culprit is deferred and tried more rarely (`deferred`). Records and
//! series that may have been stored all the same are repeated as they are: their halves would have other
//! numbers, and be stored again. A failure that speaks of the node only holds up its own kind. A fault of
//! this node's own files is no failure of the controller, and is told it at once.

mod body;
mod deferred;
mod refused;
mod stream;

use self::body::{Load, id_of, list, shortened};
use self::refused::Verdict;
use self::stream::{Next, UploadStream};
use super::client::Controller;
use super::failure::Failure;
use super::faults::Faults;
use crate::storage::job_store::JobStore;
use crate::storage::upload_queue::{Kind, UploadQueue};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use jscommon::backoff::Backoff;
use jscommon::failpoint;
use jscommon::worker::Worker;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Most results of one request.
const BATCH_ROWS: usize = 500;
/// About as many bytes; a single result may have more.
const BATCH_BYTES: usize = 4 << 20;
/// Most bytes of a body that a controller takes.
const MAX_BODY: usize = 16 << 20;
/// The size that every proxy accepts. A proxy that calls a smaller body too large refuses everything.
const ANY_LIMIT: usize = 1 << 10;
/// An agent that stops gives its sender this long.
const LAST_ROUND: Duration = Duration::from_secs(3);
/// The pause between two tries for new credentials.
const RENEW_PAUSE: Duration = Duration::from_secs(30);
/// How long nothing is sent before the memory that sending needs is given back.
const QUIET: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// The running sender; dropping it sends what is there, until its deadline.
pub(crate) struct Handle {
    controller: Arc<Controller>,
    wake: Sender<()>,
    stopping: Arc<AtomicBool>,
    ended: Receiver<()>,
    worker: Option<Worker>,
}

impl Handle {
    /// Starts the uploader of one controller.
    pub(crate) fn start(
        controller: Arc<Controller>,
        job_store: Arc<JobStore>,
        upload_queue: Arc<UploadQueue>,
    ) -> io::Result<Handle> {
        let (wake, woken) = bounded(1);
        let (tell_end, ended) = bounded::<()>(0);
        let stopping = Arc::new(AtomicBool::new(false));
        upload_queue.waker(controller.name(), wake.clone());
        let mut actor = Actor::new(controller.clone(), job_store, upload_queue, woken, stopping.clone());
        let worker = Worker::spawn(&format!("send {}", controller.name()), 256 * 1024, move || {
            actor.run();
            drop(tell_end);
        })?;
        Ok(Handle { controller, wake, stopping, ended, worker: Some(worker) })
    }

    /// Wakes it: something new is there. One that finds it full was told already.
    pub(crate) fn waker(&self) -> Sender<()> {
        self.wake.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = self.wake.try_send(());
        // It ends by itself in time, but for a request that hangs.
        if self.ended.recv_timeout(LAST_ROUND) == Err(RecvTimeoutError::Timeout) {
            self.controller.stop_posts();
        }
        drop(self.worker.take());
    }
}

/// How often a request fails, while others of this node are taken, before its content is suspected.
const SUSPECT_AFTER: u32 = 3;
/// Most results that were sent and cannot be marked so.
const MAX_UNMARKED: usize = 100_000;

/// The outcome of one request.
enum Sent {
    /// It was taken.
    Taken,
    /// It was refused, and what comes next is another one.
    Divided,
}

struct Actor {
    controller: Arc<Controller>,
    job_store: Arc<JobStore>,
    upload_queue: Arc<UploadQueue>,
    woken: Receiver<()>,
    stopping: Arc<AtomicBool>,
    streams: Vec<UploadStream>,
    /// Of the whole controller: nothing is tried before then.
    backoff: Backoff,
    not_before: Option<Instant>,
    /// Requests that the controller had taken when that wait began: one more, of the poller, ends it.
    taken_before: Option<u64>,
    /// The stream that failed last, until a post is taken: the others are tried before it.
    failed: Option<usize>,
    renew_after: Option<Instant>,
    /// The generation of the job store that the keys of results are of.
    generation: u64,
    faults: Faults,
    /// Something was sent since the last rest.
    stirred: bool,
}

impl Actor {
    fn new(
        controller: Arc<Controller>,
        job_store: Arc<JobStore>,
        upload_queue: Arc<UploadQueue>,
        woken: Receiver<()>,
        stopping: Arc<AtomicBool>,
    ) -> Actor {
        let backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        let streams = UploadStream::all(controller.name(), &upload_queue, &backoff);
        let generation = job_store.generation();
        Actor {
            controller,
            job_store,
            upload_queue,
            woken,
            stopping,
            streams,
            backoff,
            not_before: None,
            taken_before: None,
            failed: None,
            renew_after: None,
            generation,
            faults: Faults::default(),
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
            let files = self.controller.is_unfinished().then(|| Instant::now() + RENEW_PAUSE);
            // The answer to a post may have asked for it.
            let renewal = self.controller.wants_renewal().then(|| self.renew_after.unwrap_or_else(Instant::now));
            let due = next.into_iter().chain(files).chain(renewal).min();
            let quiet = self.stirred.then(|| Instant::now() + QUIET);
            let rested = wait(&self.woken, due, quiet, || self.upload_queue.rest());
            self.stirred &= !rested;
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
            self.faults.tell(&self.controller);
            let due = |stream: &UploadStream| last || stream.not_before.is_none_or(|not_before| not_before <= now);
            let streams = self.streams.len();
            // The one that failed last comes last: whether the others are taken tells what failed, the content
            // of that stream or the controller.
            let first = self.failed.filter(|_| !last).map_or(0, |failed| failed + 1);
            let due: Vec<usize> =
                (first..first + streams).map(|i| i % streams).filter(|i| due(&self.streams[*i])).collect();
            let sent = due.into_iter().find_map(|stream| self.send(stream));
            match sent {
                Some(Ok(())) => self.stirred = true,
                Some(Err(())) if last => return None,
                Some(Err(())) => {}
                None => return self.streams.iter().filter_map(|stream| stream.due(now)).min(),
            }
        }
    }

    /// Sends one request of this stream; nothing when it has nothing to send.
    fn send(&mut self, stream: usize) -> Option<Result<(), ()>> {
        let outcome = match self.next(stream) {
            Ok(None) => return None,
            Ok(Some(next)) => self.post(stream, next),
            Err(failure) => Err(failure),
        };
        Some(match outcome {
            Ok(Sent::Taken) => {
                self.release(stream);
                Ok(())
            }
            Ok(Sent::Divided) => Ok(()),
            Err(failure) => {
                self.failed = Some(stream);
                self.hold(stream, &failure);
                Err(())
            }
        })
    }

    /// Notes that the job store or the upload queue cannot be used; events call them `ledger` and `outbox`.
    fn unreadable(&mut self, what: &'static str, error: &anyhow::Error) -> Failure {
        let name = if what == "ledger" { "job store" } else { "upload queue" };
        Failure::Local(self.faults.begin(what, format!("the {name} cannot be read: {error:#}")))
    }

    /// Posts one request, and marks, divides or keeps what it carried.
    fn post(&mut self, stream: usize, next: Next) -> Result<Sent, Failure> {
        let path = self.streams[stream].kind.path();
        if next.retried.is_some() && self.controller.addresses() > 1 {
            // Another address may have nobody in between, or somebody else.
            self.controller.next_address();
        }
        let outcome = match &next.load {
            Load::Results(results) => {
                let mut body = list(results);
                if body.len() > MAX_BODY {
                    // Nothing larger is taken, and on a slow line that is not even heard.
                    let (name, id) = (self.controller.name(), id_of(&results[0].json));
                    log::error!("controller {name}: the result of {id} is cut short");
                    body = shortened(&results[0].json).unwrap_or(body);
                }
                self.controller.post(path, &body).map(|()| None)
            }
            Load::Batch(_, batch) => self.controller.post_batch(path, &batch.body),
        };
        self.streams[stream].unsure = match (&next.load, &outcome) {
            (Load::Batch(Kind::Log | Kind::Stats, _), Err(failure)) if !failure.is_refusal() => next.retried,
            _ => None,
        };
        match outcome {
            Ok(last) => {
                self.taken(stream, &next, last);
                Ok(Sent::Taken)
            }
            // The list was taken but for these, and these will never be.
            Err(Failure::Refused { reason, refused, .. }) if !refused.is_empty() => {
                log::error!(
                    "controller {} refuses the results of {}: {reason}",
                    self.controller.name(),
                    refused.join(", ")
                );
                self.taken(stream, &next, None);
                Ok(Sent::Taken)
            }
            Err(failure) => match self.judge(stream, &failure) {
                Verdict::Wait => Err(failure),
                Verdict::Divide { finally } => self.divide(stream, next, failure, finally),
            },
        }
    }

    /// Marks what was taken.
    fn taken(&mut self, stream: usize, next: &Next, last: Option<u64>) {
        let name = self.controller.name();
        match &next.load {
            Load::Results(results) => {
                failpoint::hit("agent.posted");
                self.mark_sent(stream, results.iter().map(|result| result.key).collect());
                failpoint::hit("agent.sent");
            }
            Load::Batch(kind, batch) => {
                // A batch whose number was too low is not taken; it goes again under another.
                let ahead = last.filter(|last| *last > batch.number);
                if ahead.is_some_and(|last| self.upload_queue.jump(name, *kind, batch.number, last)) {
                    return;
                }
                match next.retried.filter(|_| *kind != Kind::Event) {
                    Some(key) => self.upload_queue.remove_deferred(name, *kind, key, false),
                    None => self.upload_queue.taken(name, *kind, batch.number),
                }
            }
        }
        if let Some(key) = next.retried {
            self.streams[stream].deferred.remove(key);
        }
    }

    /// Marks results as sent. Those that cannot be marked are not sent again by this start of the agent.
    fn mark_sent(&mut self, stream: usize, keys: Vec<i64>) {
        match self.job_store.mark_sent(self.generation, &keys) {
            Ok(()) => self.faults.end("sent results"),
            Err(error) => {
                self.faults.begin("sent results", format!("sent results cannot be marked: {error:#}"));
                let unmarked = &mut self.streams[stream].unmarked;
                unmarked.extend(keys);
                unmarked.truncate(MAX_UNMARKED);
            }
        }
    }

    fn renew(&mut self) {
        let now = Instant::now();
        if !(self.controller.wants_renewal() || self.controller.is_unfinished())
            || self.renew_after.is_some_and(|after| now < after)
        {
            return;
        }
        self.renew_after = Some(now + RENEW_PAUSE);
        if self.controller.is_unfinished() {
            self.controller.finish_files();
        }
        if !self.controller.wants_renewal() {
            return;
        }
        match self.controller.renew() {
            Ok(true) => log::info!("controller {}: the credentials were renewed", self.controller.name()),
            Ok(false) => {}
            Err(failure) => log::warn!("controller {}: no new credentials: {failure}", self.controller.name()),
        }
    }
}

/// Waits until it is woken or something is due. Gives memory back at `quiet` when that comes first, and waits on
/// without a look at what there is to send: the look would load again what was given back. Returns whether it did.
fn wait(woken: &Receiver<()>, due: Option<Instant>, quiet: Option<Instant>, rest: impl FnOnce()) -> bool {
    let wait_until = |time: Option<Instant>| match time {
        Some(time) => woken.recv_deadline(time),
        None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    let quiet = quiet.filter(|quiet| due.is_none_or(|due| *quiet < due));
    if wait_until(quiet.or(due)) != Err(RecvTimeoutError::Timeout) || quiet.is_none() {
        return false;
    }
    rest();
    let _ = wait_until(due);
    true
}

#[cfg(test)]
mod tests;
