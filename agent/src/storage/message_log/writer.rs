//! The message log's thread: takes what is there, stores it in one go, and what to do when that fails.

use super::batch::Batch;
use super::channel::{Budget, Message};
use super::progress::{Progress, WriteError};
use super::store::Store;
use crate::job::JobLabel;
use crate::platform::unix_ms;
use crate::storage::sqlite::Fault;
use crate::storage::upload_queue::{Dropped, Kind, UploadQueue};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use jscommon::backoff::Backoff;
use jscommon::{LevelSet, failpoint, level};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of messages that are stored in one go.
const GATHER: usize = 512 << 10;
/// While the disk is full: how long plain output is dropped before it is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest wait for a lock of another program; writers wait meanwhile.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// The same for any other error that may pass.
const ERROR_WAIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// How long there is no room for a file before the oldest database goes.
const ROOM_WAIT: Duration = Duration::from_secs(60);
/// The pauses between two tries after that: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Bytes of messages that wait in memory for the next try.
const MAX_WAITING: usize = 1 << 20;

/// The levels that are left out, step by step, while the disk is full. Plain output is first; records of how a job
/// ended are last.
const SHED: [&[u8]; 4] = [&[1, 2], &[5, 6, 10, 11], &[3, 4, 7], &[8, 20, 21, 22, 23]];

/// The state of the message log's thread.
pub(super) struct Actor {
    messages: Receiver<Message>,
    budget: Arc<Budget>,
    store: Store,
    upload_queue: Arc<UploadQueue>,
    /// The batches that are stored next.
    pending: Vec<Batch>,
    /// The label of the message log's own records.
    own: Arc<JobLabel>,
    /// Messages that could not be stored since it was last said, and why.
    lost: u64,
    why: String,
    /// When that is to be said.
    report_at: Option<Instant>,
    /// Items that the upload queue has dropped since the last notice.
    dropped: Dropped,
    /// The disk was full then, and only these levels were stored.
    full: Option<(Instant, LevelSet)>,
    /// Nothing can be stored or forwarded for now.
    outage: Option<Outage>,
    /// A damaged database was set aside, and that is not said yet.
    damaged: bool,
}

/// A time in which messages cannot be stored, or not be forwarded.
struct Outage {
    /// The batches that wait for the next try, and their bytes.
    waiting: Vec<Batch>,
    bytes: usize,
    /// The levels that still wait; the others are dropped.
    levels: LevelSet,
    began: Instant,
    backoff: Backoff,
    retry_at: Instant,
}

impl Outage {
    fn new() -> Outage {
        Outage {
            waiting: Vec::new(),
            bytes: 0,
            levels: LevelSet::ALL,
            began: Instant::now(),
            backoff: Backoff::new(RETRY.0, RETRY.1),
            retry_at: Instant::now(),
        }
    }

    /// Has these messages wait, and drops levels where they are too many, plain output first. Says how many
    /// messages went.
    fn add(&mut self, batches: impl IntoIterator<Item = Batch>) -> u64 {
        let mut lost = 0;
        for batch in batches {
            let kept = batch.only(self.levels);
            lost += (batch.len() - kept.len()) as u64;
            self.bytes += kept.weight();
            if !kept.is_empty() {
                self.waiting.push(kept);
            }
        }
        for levels in SHED {
            if self.bytes <= MAX_WAITING {
                return lost;
            }
            self.levels = self.levels.without(levels);
            let before: usize = self.waiting.iter().map(Batch::len).sum();
            let kept = self.waiting.iter().map(|batch| batch.only(self.levels)).filter(|batch| !batch.is_empty());
            self.waiting = kept.collect();
            self.bytes = self.waiting.iter().map(Batch::weight).sum();
            lost += (before - self.waiting.iter().map(Batch::len).sum::<usize>()) as u64;
        }
        // Alerts and ends of jobs alone are too much: the oldest go.
        let mut oldest = 0;
        while self.bytes > MAX_WAITING && oldest < self.waiting.len() {
            self.bytes -= self.waiting[oldest].weight();
            lost += self.waiting[oldest].len() as u64;
            oldest += 1;
        }
        self.waiting.drain(..oldest);
        lost
    }
}

impl Actor {
    pub(super) fn new(
        messages: Receiver<Message>,
        budget: Arc<Budget>,
        store: Store,
        upload_queue: Arc<UploadQueue>,
        own: Arc<JobLabel>,
    ) -> Actor {
        Actor {
            messages,
            budget,
            store,
            upload_queue,
            pending: Vec::new(),
            own,
            lost: 0,
            why: String::new(),
            report_at: None,
            dropped: Dropped::default(),
            full: None,
            outage: None,
            damaged: false,
        }
    }

    /// Stores until it is told to stop.
    pub(super) fn run(mut self) {
        while let Some(message) = self.wait() {
            failpoint::hit("agent.logged");
            match self.gather(message) {
                None => self.flush(),
                Some(Message::Then(work)) => {
                    self.flush();
                    work(&mut self.store);
                }
                Some(Message::Examine { number, error, done }) => {
                    self.flush();
                    let damaged = self.store.examine(number, &error);
                    if let Ok(true) = damaged {
                        self.say_damaged();
                    }
                    let _ = done.send(damaged.map(drop));
                }
                Some(Message::Rest) => {
                    self.flush();
                    self.pending = Vec::new();
                    self.store.rest();
                }
                Some(_) => break,
            }
        }
        self.flush();
        if let Some(outage) = &mut self.outage {
            outage.retry_at = Instant::now();
            self.retry();
        }
        let waiting = self.outage.iter().flat_map(|outage| &outage.waiting).map(Batch::len).sum::<usize>();
        if waiting > 0 {
            log::error!("{waiting} messages could not be stored until the end: {}", self.why);
        }
        self.report();
        self.upload_queue.close_log();
        self.store.write_mark();
    }

    /// The next message; meanwhile batches for the controllers go when their time has come, and what
    /// was lost is said once it can be.
    fn wait(&mut self) -> Option<Message> {
        loop {
            let due = if self.upload_queue.wanted(Kind::Log) { self.upload_queue.log_due() } else { None };
            let retry = self.outage.as_ref().filter(|outage| !outage.waiting.is_empty()).map(|outage| outage.retry_at);
            let message = match due.into_iter().chain(self.report_at).chain(retry).min() {
                None => return self.messages.recv().ok(),
                Some(deadline) => self.messages.recv_deadline(deadline),
            };
            // A steady stream of messages must not put either off.
            let now = Instant::now();
            if due.is_some_and(|due| due <= now) {
                self.upload_queue.close_log();
            }
            if retry.is_some_and(|at| at <= now) {
                self.retry();
            }
            if self.report_at.is_some_and(|at| at <= now) {
                self.report();
            }
            match message {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Takes what is there, up to a bound; gives back what is no batch, for it comes after.
    fn gather(&mut self, message: Message) -> Option<Message> {
        let mut weight = 0;
        let mut next = Some(message);
        while let Some(message) = next {
            match message {
                Message::Batch(batch) => {
                    weight += batch.weight();
                    self.pending.push(batch);
                }
                other => return Some(other),
            }
            next = if weight < GATHER { self.messages.try_recv().ok() } else { None };
        }
        None
    }

    /// Stores what is pending.
    fn flush(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        let weight = pending.iter().map(Batch::weight).sum();
        match &mut self.outage {
            None => self.store_all(&pending),
            // Messages are stored in the order of their arrival.
            Some(outage) => {
                self.lost += outage.add(pending.drain(..));
                self.retry();
            }
        }
        self.after_storing();
        self.budget.give(weight);
        self.pending = pending;
        self.pending.clear();
    }

    /// Tries again to store what waits, when it is time.
    fn retry(&mut self) {
        let Some(outage) = self.outage.as_mut().filter(|outage| outage.retry_at <= Instant::now()) else { return };
        let waiting = std::mem::take(&mut outage.waiting);
        outage.bytes = 0;
        self.store_all(&waiting);
        self.after_storing();
    }

    /// Notes what is to be said about what was just done.
    fn after_storing(&mut self) {
        if std::mem::take(&mut self.damaged) {
            self.say_damaged();
        }
        self.note_dropped();
        if self.report_at.is_none() && self.is_to_report() {
            self.report_at = Some(Instant::now() + PAUSE);
        }
    }

    /// Stores these messages, or as many of them as can be. Messages that cannot be stored for now wait, and those
    /// that are left out are counted.
    fn store_all(&mut self, pending: &[Batch]) {
        let mut progress = Progress::default();
        let mut allowed = match self.full {
            Some((since, levels)) if since.elapsed() < PAUSE => levels,
            _ => LevelSet::ALL,
        };
        let mut shed = SHED.iter();
        let mut examined = false;
        let began = Instant::now();
        let trouble = loop {
            match self.store.ensure_open() {
                Ok(damaged) => self.damaged |= damaged,
                Err(e) => log::debug!("{e:#}"),
            }
            let trouble = match self.store.write(pending, &mut progress, allowed, true) {
                Ok(()) => {
                    if allowed == LevelSet::ALL {
                        self.full = None;
                    }
                    self.lost += progress.left_out;
                    if self.outage.take().is_some() {
                        log::info!("messages are stored again");
                    }
                    return;
                }
                Err(trouble) => trouble,
            };
            // While an outage lasts nobody waits for the next try.
            let waits = |limit: Duration| self.outage.is_none() && began.elapsed() < limit;
            // A file that cannot be made may be made in a moment: records that are stored do not go for that.
            let lasts = self.outage.as_ref().is_some_and(|outage| outage.began.elapsed() > ROOM_WAIT);
            match trouble.fault() {
                Fault::Full if (self.store.is_open() || lasts) && self.store.drop_oldest() => {
                    log::error!("{}; the oldest one with records was removed", self.store.why_full());
                }
                Fault::Full if self.store.is_open() => {
                    let next = shed.find(|levels| levels.iter().any(|level| allowed.contains(*level)));
                    let Some(levels) = next else { break trouble };
                    allowed = allowed.without(levels);
                    self.why = self.store.why_full().into();
                    self.full = Some((Instant::now(), allowed));
                }
                Fault::Damaged if !std::mem::replace(&mut examined, true) => {
                    let WriteError::Store(error) = &trouble else { break trouble };
                    match self.store.examine(self.store.current().1, error) {
                        Ok(damaged) => self.damaged |= damaged,
                        Err(e) => log::error!("{e:#}"),
                    }
                }
                Fault::Content => progress.narrow(pending, &trouble),
                Fault::Busy if waits(LOCK_WAIT) => thread::sleep(Duration::from_millis(100)),
                Fault::Full | Fault::Unavailable | Fault::Damaged if waits(ERROR_WAIT) => {
                    thread::sleep(Duration::from_millis(100))
                }
                _ => break trouble,
            }
        };
        self.wait_out(pending, progress, allowed, &trouble);
    }

    /// Does what can be done of storing and forwarding; the rest waits in memory for the next try.
    fn wait_out(&mut self, pending: &[Batch], mut progress: Progress, allowed: LevelSet, trouble: &WriteError) {
        self.why = match trouble.fault() {
            Fault::Full => self.store.why_full().into(),
            _ => trouble.to_string(),
        };
        match trouble {
            WriteError::Store(_) => {
                if let Err(e) = self.store.forward(pending, &mut progress, allowed) {
                    log::debug!("{e:#}");
                }
            }
            WriteError::UploadQueue(_) => {
                if let Err(e) = self.store.write(pending, &mut progress, allowed, false) {
                    log::debug!("{e}");
                }
            }
        }
        self.store.advance_ids(pending, &progress);
        let (rest, lost) = progress.rest(pending, allowed, self.upload_queue.wanted(Kind::Log));
        self.lost += lost + progress.left_out;
        let began = self.outage.is_none();
        let outage = self.outage.get_or_insert_with(Outage::new);
        self.lost += outage.add(rest);
        outage.retry_at = Instant::now() + outage.backoff.fail(0.5 + fastrand::f64() / 2.0);
        if began {
            log::error!("messages cannot be stored, which is tried again until they can: {trouble}");
            let data = serde_json::json!({"message": format!("messages cannot be stored: {trouble}")});
            self.upload_queue.push_event(None, "critical", data);
        }
    }

    /// Takes over what the upload queue had to drop meanwhile.
    fn note_dropped(&mut self) {
        let Dropped { records, flushes } = self.upload_queue.take_unreported();
        self.dropped.records += records;
        self.dropped.flushes += flushes;
    }

    fn is_to_report(&self) -> bool {
        self.lost > 0 || self.dropped != Dropped::default()
    }

    /// Says in records what was lost, once they can be stored.
    fn report(&mut self) {
        self.report_at = None;
        self.note_dropped();
        if !self.is_to_report() {
            return;
        }
        let Dropped { records, flushes } = self.dropped;
        let texts: Vec<String> = [
            (self.lost, format!("messages could not be stored or forwarded: {}", self.why)),
            (records, "records for the controllers were dropped: too many waited, or they were refused".into()),
            (
                flushes,
                "batches of stats were dropped: no controller took them for an hour, they were refused, or they \
                 could not be stored"
                    .into(),
            ),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        let mut batch = Batch::new(&self.own, unix_ms(), 0);
        texts.iter().for_each(|text| batch.push(level::OPS_ERROR, text));
        if self.outage.is_none() && self.write_own(batch) {
            texts.iter().for_each(|text| log::error!("{text}"));
            (self.lost, self.dropped) = (0, Dropped::default());
        } else {
            self.report_at = Some(Instant::now() + PAUSE);
        }
    }

    /// Says in a record that a damaged database was set aside.
    fn say_damaged(&mut self) {
        let text = "a damaged database of records was set aside, see the folder logs";
        let batch = self.own_batch(level::OPS_ERROR, text);
        self.write_own(batch);
        self.upload_queue.push_event(None, "damaged", serde_json::json!({"what": "logs"}));
    }

    /// Stores a record of the message log's own; says whether it did.
    fn write_own(&mut self, batch: Batch) -> bool {
        let (batches, mut progress) = ([batch], Progress::default());
        let done = self.store.write(&batches, &mut progress, LevelSet::ALL, true);
        self.store.advance_ids(&batches, &progress);
        done.is_ok()
    }

    fn own_batch(&self, level: u8, text: &str) -> Batch {
        let mut batch = Batch::new(&self.own, unix_ms(), text.len());
        batch.push(level, text);
        batch
    }
}

impl Drop for Actor {
    /// However the thread ends: nobody may wait for it any longer.
    fn drop(&mut self) {
        self.budget.close();
    }
}
