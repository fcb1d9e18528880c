//! The logger's thread: takes what is there, stores it in one go, and what to do when that fails.

use super::batch::{Batch, now};
use super::inbox::{Budget, Message};
use super::store::{Fault, Progress, Store, fault};
use crate::outbox::{Dropped, Kind, Outbox};
use crate::output::Source;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use jscommon::{LevelSet, death, level};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of messages that are stored in one go.
const GATHER: usize = 512 << 10;
/// While the disk is full: how long plain output is dropped before it is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a lock of another program, or an error that may pass, is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What goes, step by step, while the disk is full: plain output first, what says how a job ended last.
const SHED: [&[u8]; 4] = [&[1, 2], &[5, 6, 10, 11], &[3, 4, 7], &[8, 20, 21, 22, 23]];

/// What the logger's thread owns.
pub(super) struct Actor {
    inbox: Receiver<Message>,
    budget: Arc<Budget>,
    pub(super) store: Store,
    outbox: Arc<Outbox>,
    /// What is to be stored next.
    pending: Vec<Batch>,
    /// Whose records the logger's own are.
    own: Arc<Source>,
    /// Messages that could not be stored since it was last said, and why.
    lost: u64,
    why: String,
    /// When that is to be said.
    report_at: Option<Instant>,
    /// What the outbox had to drop since it was last said.
    dropped: Dropped,
    /// The disk was full then, and only these levels were stored.
    full: Option<(Instant, LevelSet)>,
}

impl Actor {
    pub(super) fn new(
        inbox: Receiver<Message>,
        budget: Arc<Budget>,
        store: Store,
        outbox: Arc<Outbox>,
        own: Arc<Source>,
    ) -> Actor {
        Actor {
            inbox,
            budget,
            store,
            outbox,
            pending: Vec::new(),
            own,
            lost: 0,
            why: String::new(),
            report_at: None,
            dropped: Dropped::default(),
            full: None,
        }
    }

    /// Stores until it is told to stop.
    pub(super) fn run(mut self) {
        while let Some(message) = self.wait() {
            death::point("agent.logged");
            match self.gather(message) {
                None => self.flush(),
                Some(Message::Then(work)) => {
                    self.flush();
                    work(&mut self);
                }
                Some(_) => break,
            }
        }
        self.flush();
        self.report();
        self.outbox.close_log();
        self.store.write_mark();
    }

    /// The next message; meanwhile batches for the controllers go when their time has come, and what
    /// was lost is said once it can be.
    fn wait(&mut self) -> Option<Message> {
        loop {
            let due = if self.outbox.wanted(Kind::Log) { self.outbox.log_due() } else { None };
            let message = match due.into_iter().chain(self.report_at).min() {
                None => return self.inbox.recv().ok(),
                Some(deadline) => self.inbox.recv_deadline(deadline),
            };
            // A steady stream of messages must not put either off.
            let now = Instant::now();
            if due.is_some_and(|due| due <= now) {
                self.outbox.close_log();
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
            next = if weight < GATHER { self.inbox.try_recv().ok() } else { None };
        }
        None
    }

    /// Gives back the memory that a burst of messages has left behind.
    pub(super) fn rest(&mut self) {
        self.pending = Vec::new();
        self.store.rest();
    }

    /// Stores what is pending.
    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        self.lost += self.store_all(&pending);
        self.note_dropped();
        if self.report_at.is_none() && self.is_to_report() {
            self.report_at = Some(Instant::now() + PAUSE);
        }
        self.budget.give(pending.iter().map(Batch::weight).sum());
        self.pending = pending;
        self.pending.clear();
    }

    /// Stores these messages, or as many of them as can be; says how many could not.
    fn store_all(&mut self, pending: &[Batch]) -> u64 {
        let mut progress = Progress::default();
        let mut allowed = match self.full {
            Some((since, levels)) if since.elapsed() < PAUSE => levels,
            _ => LevelSet::ALL,
        };
        let mut shed = SHED.iter();
        let began = Instant::now();
        loop {
            let error = match self.store.write(pending, &mut progress, allowed) {
                Ok(()) => {
                    if allowed == LevelSet::ALL {
                        self.full = None;
                    }
                    return progress.left_out;
                }
                Err(e) => e,
            };
            match fault(&error) {
                Fault::Full if self.store.drop_oldest() => {
                    log::error!("the disk is full; the oldest database of records was removed");
                    continue;
                }
                Fault::Full => {
                    let next = shed.find(|levels| levels.iter().any(|level| allowed.contains(*level)));
                    if let Some(levels) = next {
                        allowed = allowed.without(levels);
                        self.full = Some((Instant::now(), allowed));
                        self.why = "the disk was full".into();
                        continue;
                    }
                    self.full = Some((Instant::now(), LevelSet::NONE));
                    self.why = "the disk was full".into();
                }
                Fault::Damaged => {
                    let number = self.store.current().1;
                    match self.store.set_aside(number, &error) {
                        Ok(_) if began.elapsed() < PATIENCE => {
                            self.say_damaged();
                            continue;
                        }
                        Ok(_) => {}
                        Err(e) => log::error!("{e:#}"),
                    }
                    self.why = error.to_string();
                }
                Fault::Busy | Fault::Other if began.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(100));
                    continue;
                }
                Fault::Busy | Fault::Other => self.why = error.to_string(),
            }
            log::error!("messages cannot be stored: {error}");
            return progress.lost(pending);
        }
    }

    /// Takes over what the outbox had to drop meanwhile.
    fn note_dropped(&mut self) {
        let Dropped { records, flushes } = self.outbox.take_unsaid();
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
            (self.lost, format!("messages could not be stored: {}", self.why)),
            (records, "records for the controllers were dropped: too many waited, or they were refused".into()),
            (
                flushes,
                "batches of stats were dropped: no controller took them for an hour, or they were refused".into(),
            ),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        let mut batch = Batch::new(&self.own, now(), 0);
        texts.iter().for_each(|text| batch.push(level::OPS_ERROR, text));
        if self.store.write(&[batch], &mut Progress::default(), LevelSet::ALL).is_ok() {
            texts.iter().for_each(|text| log::error!("{text}"));
            (self.lost, self.dropped) = (0, Dropped::default());
        } else {
            self.report_at = Some(Instant::now() + PAUSE);
        }
    }

    /// Says in a record that a damaged database was set aside.
    pub(super) fn say_damaged(&mut self) {
        let text = "a damaged database of records was set aside, see the folder logs";
        let batch = self.own_batch(level::OPS_ERROR, text);
        let _ = self.store.write(&[batch], &mut Progress::default(), LevelSet::ALL);
        self.outbox.push_event(None, "damaged", serde_json::json!({"what": "logs"}));
    }

    fn own_batch(&self, level: u8, text: &str) -> Batch {
        let mut batch = Batch::new(&self.own, now(), text.len());
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
