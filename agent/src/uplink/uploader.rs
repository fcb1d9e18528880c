//! The uploader: results, then events, records and stats, on their way to one controller.
//!
//! One thread a controller. Owns the order and the retries; what waits lies on disk, in the job store
//! and the upload queue, so it holds nothing itself and a stop loses nothing. While one request is under
//! way the results of other jobs gather, and the next request takes them all.
//!
//! A request that the controller or a proxy in between refuses for its content is halved until the
//! culprit is alone. One that is too large, or that the controller finds wrong, is dropped and counted;
//! of a result its end is told. Any other culprit is set aside and tried more rarely (`asides`). Records and
//! series that may have been stored all the same are repeated as they are: their halves would have other
//! numbers, and be stored again. A failure that speaks of the node only holds up its own kind. A fault of
//! this node's own files is no failure of the controller, and is told it at once.

mod asides;
mod body;
mod refused;

use self::asides::Asides;
use self::body::{Load, id_of, list, shortened};
use self::refused::Verdict;
use super::client::Controller;
use super::failure::Failure;
use super::faults::Faults;
use super::log_once::LogOnce;
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
pub struct Handle {
    controller: Arc<Controller>,
    wake: Sender<()>,
    stopping: Arc<AtomicBool>,
    ended: Receiver<()>,
    worker: Option<Worker>,
}

impl Handle {
    /// Starts the uploader of one controller.
    pub fn start(
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
    pub fn waker(&self) -> Sender<()> {
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

/// The kinds of payload, in the order of their urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PayloadKind {
    Results,
    Batch(Kind),
}

impl PayloadKind {
    fn path(self) -> &'static str {
        match self {
            PayloadKind::Results => "result",
            PayloadKind::Batch(Kind::Event) => "event",
            PayloadKind::Batch(Kind::Log) => "log",
            PayloadKind::Batch(Kind::Stats) => "stats",
        }
    }
}

/// How often a request fails, while others of this node are taken, before its content is suspected.
const SUSPECT_AFTER: u32 = 3;
/// Most results that were sent and cannot be marked so.
const MAX_UNMARKED: usize = 100_000;

/// One kind of payload and its own pauses.
struct UploadStream {
    kind: PayloadKind,
    backoff: Backoff,
    not_before: Option<Instant>,
    /// Results of the next request; halved when one of them is refused.
    rows: usize,
    /// Posts that the controller had taken when this stream last failed.
    taken_at_failure: Option<u64>,
    /// Failures since the last success before which the controller took posts of other streams.
    streak: u32,
    /// A culprit is looked for, whatever the failures are.
    isolating: bool,
    /// The troubles that were told since the last success.
    logged: LogOnce,
    asides: Asides,
    /// An entry that was set aside, and may have been taken at its last try: it goes first, unchanged.
    unsure: Option<i64>,
    /// Results that were sent and could not be marked so.
    unmarked: Vec<i64>,
}

/// A load, and its key when it was set aside before.
struct Next {
    load: Load,
    retried: Option<i64>,
}

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
        let cargos = [
            PayloadKind::Results,
            PayloadKind::Batch(Kind::Event),
            PayloadKind::Batch(Kind::Log),
            PayloadKind::Batch(Kind::Stats),
        ];
        let stream = |kind| {
            let stored = match kind {
                PayloadKind::Batch(kind @ (Kind::Log | Kind::Stats)) => upload_queue.asides(controller.name(), kind),
                _ => Ok(Vec::new()),
            };
            UploadStream {
                kind,
                backoff: backoff.clone(),
                not_before: None,
                rows: BATCH_ROWS,
                taken_at_failure: None,
                streak: 0,
                isolating: false,
                logged: LogOnce::default(),
                asides: Asides::of(stored.unwrap_or_default(), Instant::now()),
                unsure: None,
                unmarked: Vec::new(),
            }
        };
        let streams = cargos.into_iter().map(stream).collect();
        let generation = job_store.generation();
        Actor {
            controller,
            job_store,
            upload_queue,
            woken,
            stopping,
            streams,
            backoff: backoff.clone(),
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
            let quiet = self.stirred.then(|| Instant::now() + QUIET);
            let rested = wait(&self.woken, next.into_iter().chain(files).min(), quiet, || self.upload_queue.rest());
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

    /// Reads what this stream sends next.
    fn next(&mut self, stream: usize) -> Result<Option<Next>, Failure> {
        let next = match self.streams[stream].kind {
            PayloadKind::Results => self.next_results(stream),
            PayloadKind::Batch(kind) => self.next_batch(stream, kind),
        };
        let what = if self.streams[stream].kind == PayloadKind::Results { "ledger" } else { "outbox" };
        match next {
            Ok(next) => {
                self.faults.end(what);
                Ok(next)
            }
            Err(error) => Err(self.unreadable(what, &error)),
        }
    }

    /// Notes that the job store or the upload queue cannot be used; events call them `ledger` and `outbox`.
    fn unreadable(&mut self, what: &'static str, error: &anyhow::Error) -> Failure {
        let name = if what == "ledger" { "job store" } else { "upload queue" };
        Failure::Local(self.faults.begin(what, format!("the {name} cannot be read: {error:#}")))
    }

    fn next_results(&mut self, stream: usize) -> anyhow::Result<Option<Next>> {
        let (name, now) = (self.controller.name(), Instant::now());
        let UploadStream { rows, asides, unmarked, .. } = &mut self.streams[stream];
        // Read before the keys, so that it is never newer than they are.
        let generation = self.job_store.generation();
        if self.generation != generation {
            self.generation = generation;
            asides.clear();
            unmarked.clear();
        }
        if !unmarked.is_empty() && self.job_store.mark_sent(generation, unmarked).is_ok() {
            unmarked.clear();
        }
        // Those that are surely due go first; the others when there is nothing new.
        for surely in [true, false] {
            while let Some(key) = asides.due(now, surely) {
                match self.job_store.unsent_one(generation, key)? {
                    Some(result) => return Ok(Some(Next { load: Load::Results(vec![result]), retried: Some(key) })),
                    None => asides.remove(key),
                }
            }
            if surely {
                let without: Vec<i64> = asides.keys().chain(unmarked.iter().copied()).collect();
                let results = self.job_store.unsent_without(name, &without, *rows, BATCH_BYTES)?;
                if self.job_store.generation() != generation {
                    // The file was replaced meanwhile: these may be keys of the new one, which could not be marked.
                    return self.next_results(stream);
                }
                if !results.is_empty() {
                    return Ok(Some(Next { load: Load::Results(results), retried: None }));
                }
            }
        }
        Ok(None)
    }

    fn next_batch(&mut self, stream: usize, kind: Kind) -> anyhow::Result<Option<Next>> {
        let (name, now) = (self.controller.name(), Instant::now());
        let load = |batch| Load::Batch(kind, batch);
        if let Some(key) = self.streams[stream].unsure {
            match self.upload_queue.aside(name, kind, key)? {
                Some(batch) => return Ok(Some(Next { load: load(batch), retried: Some(key) })),
                None => self.streams[stream].unsure = None,
            }
        }
        let asides = &mut self.streams[stream].asides;
        let without: Vec<i64> = asides.keys().collect();
        // A number is above all that were sent before: what was set aside goes when nothing else waits.
        if let Some(batch) = self.upload_queue.read(name, kind, &without)? {
            return Ok(Some(Next { load: load(batch), retried: None }));
        }
        while let Some(key) = asides.due(now, false) {
            let batch = match kind {
                Kind::Event => self.upload_queue.event(name, key)?,
                kind => self.upload_queue.aside(name, kind, key)?,
            };
            match batch {
                Some(batch) => return Ok(Some(Next { load: load(batch), retried: Some(key) })),
                None => asides.remove(key),
            }
        }
        Ok(None)
    }

    /// Posts one request, and settles what became of it.
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
                    Some(key) => self.upload_queue.aside_done(name, *kind, key, false),
                    None => self.upload_queue.taken(name, *kind, batch.number),
                }
            }
        }
        if let Some(key) = next.retried {
            self.streams[stream].asides.remove(key);
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

impl UploadStream {
    /// When this stream has something to try again; nothing when it is not known to have.
    fn due(&self, now: Instant) -> Option<Instant> {
        let held = self.not_before.filter(|held| *held > now);
        let aside = self.asides.next(now).map(|aside| held.map_or(aside, |held| held.max(aside)));
        held.into_iter().chain(aside).min()
    }
}

#[cfg(test)]
mod tests;
