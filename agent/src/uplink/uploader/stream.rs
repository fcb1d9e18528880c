//! One stream of an uploader: a kind of payload, its pauses, and what it sends next.

use super::body::Load;
use super::deferred::DeferredEntries;
use super::{Actor, BATCH_BYTES, BATCH_ROWS};
use crate::storage::upload_queue::{Kind, UploadQueue};
use crate::uplink::failure::Failure;
use crate::uplink::log_once::LogOnce;
use jscommon::backoff::Backoff;
use std::time::{Duration, Instant};

/// Time until results that were sent are marked so once more.
const MARK_PAUSE: Duration = Duration::from_secs(1);

/// The kinds of payload, in the order of their urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PayloadKind {
    Results,
    Batch(Kind),
}

impl PayloadKind {
    pub(super) fn path(self) -> &'static str {
        match self {
            PayloadKind::Results => "result",
            PayloadKind::Batch(Kind::Event) => "event",
            PayloadKind::Batch(Kind::Log) => "log",
            PayloadKind::Batch(Kind::Stats) => "stats",
        }
    }
}

/// One kind of payload and its own pauses.
pub(super) struct UploadStream {
    pub(super) kind: PayloadKind,
    pub(super) backoff: Backoff,
    pub(super) not_before: Option<Instant>,
    /// Results of the next request; halved when one of them is refused.
    pub(super) rows: usize,
    /// Posts that the controller had taken when this stream last failed.
    pub(super) taken_at_failure: Option<u64>,
    /// Failures since the last success before which the controller took posts of other streams.
    pub(super) streak: u32,
    /// A culprit is looked for, whatever the failures are.
    pub(super) isolating: bool,
    /// The troubles that were told since the last success.
    pub(super) logged: LogOnce,
    pub(super) deferred: DeferredEntries,
    /// A deferred entry that may have been taken at its last try: it goes first, unchanged.
    pub(super) unsure: Option<i64>,
    /// Results that were sent and could not be marked so.
    pub(super) unmarked: Vec<i64>,
}

/// A load, and its key when it was deferred before.
pub(super) struct Next {
    pub(super) load: Load,
    pub(super) retried: Option<i64>,
}

impl UploadStream {
    /// Returns the streams to this controller, with the entries that an earlier start has deferred.
    pub(super) fn all(controller: &str, upload_queue: &UploadQueue, backoff: &Backoff) -> Vec<UploadStream> {
        let kinds = [
            PayloadKind::Results,
            PayloadKind::Batch(Kind::Event),
            PayloadKind::Batch(Kind::Log),
            PayloadKind::Batch(Kind::Stats),
        ];
        let stream = |kind| {
            let stored = match kind {
                PayloadKind::Batch(kind @ (Kind::Log | Kind::Stats)) => upload_queue.deferred(controller, kind),
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
                deferred: DeferredEntries::of(stored.unwrap_or_default(), Instant::now()),
                unsure: None,
                unmarked: Vec::new(),
            }
        };
        kinds.into_iter().map(stream).collect()
    }

    /// When this stream has something to try again; nothing when it is not known to have.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let held = self.not_before.filter(|held| *held > now);
        let deferred = self.deferred.next(now).map(|next| held.map_or(next, |held| held.max(next)));
        let marks = (!self.unmarked.is_empty()).then(|| now + MARK_PAUSE);
        held.into_iter().chain(deferred).chain(marks).min()
    }
}

impl Actor {
    /// Reads what this stream sends next.
    pub(super) fn next(&mut self, stream: usize) -> Result<Option<Next>, Failure> {
        let (what, next) = match self.streams[stream].kind {
            PayloadKind::Results => ("ledger", self.next_results(stream)),
            PayloadKind::Batch(kind) => ("outbox", self.next_batch(stream, kind)),
        };
        match next {
            Ok(next) => {
                self.faults.end(what);
                Ok(next)
            }
            Err(error) => Err(self.unreadable(what, &error)),
        }
    }

    fn next_results(&mut self, stream: usize) -> anyhow::Result<Option<Next>> {
        let (name, now) = (self.controller.name(), Instant::now());
        let UploadStream { rows, deferred, unmarked, .. } = &mut self.streams[stream];
        // Read before the keys, so that it is never newer than they are.
        let generation = self.job_store.generation();
        if self.generation != generation {
            self.generation = generation;
            deferred.clear();
            unmarked.clear();
        }
        if !unmarked.is_empty() && self.job_store.mark_sent(generation, unmarked).is_ok() {
            unmarked.clear();
        }
        // Those that are surely due go first; the others when there is nothing new.
        for surely in [true, false] {
            while let Some(key) = deferred.due(now, surely) {
                match self.job_store.unsent_one(generation, key)? {
                    Some(result) => return Ok(Some(Next { load: Load::Results(vec![result]), retried: Some(key) })),
                    None => deferred.remove(key),
                }
            }
            if surely {
                let without: Vec<i64> = deferred.keys().chain(unmarked.iter().copied()).collect();
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
            match self.upload_queue.read_deferred(name, kind, key)? {
                Some(batch) => return Ok(Some(Next { load: load(batch), retried: Some(key) })),
                None => self.streams[stream].unsure = None,
            }
        }
        let deferred = &mut self.streams[stream].deferred;
        let without: Vec<i64> = deferred.keys().collect();
        // A number is above all that were sent before: what was deferred goes when nothing else waits.
        if let Some(batch) = self.upload_queue.read(name, kind, &without)? {
            return Ok(Some(Next { load: load(batch), retried: None }));
        }
        while let Some(key) = deferred.due(now, false) {
            let batch = match kind {
                Kind::Event => self.upload_queue.event(name, key)?,
                kind => self.upload_queue.read_deferred(name, kind, key)?,
            };
            match batch {
                Some(batch) => return Ok(Some(Next { load: load(batch), retried: Some(key) })),
                None => deferred.remove(key),
            }
        }
        Ok(None)
    }
}
