//! Requests that are refused or fail: what is halved, dropped, deferred, or only sent later.

use super::body::{Load, REFUSAL, describe, shortened, whose};
use super::stream::{Next, PayloadKind};
use super::{ANY_LIMIT, Actor, BATCH_ROWS, SUSPECT_AFTER, Sent};
use crate::storage::upload_queue::Kind;
use crate::uplink::failure::Failure;
use crate::uplink::uploader::deferred::DeferredEntry;
use std::time::Instant;

/// Why a request is not sent again as it is.
pub(super) enum Verdict {
    /// It is, later.
    Wait,
    /// Its content is refused; `finally`: it always will be.
    Divide { finally: bool },
}

impl Actor {
    /// Decides whether a failure is due to the content of the request.
    pub(super) fn judge(&mut self, stream: usize, failure: &Failure) -> Verdict {
        let taken = self.controller.posts_taken();
        let stream = &mut self.streams[stream];
        // Where nothing else was sent meanwhile, the failure is no evidence, neither for nor against it.
        let meanwhile = stream.taken_at_failure.replace(taken).is_some_and(|before| before != taken);
        stream.streak += u32::from(meanwhile);
        if self.controller.serves() && (failure.is_permanent() || failure.is_filtered()) {
            return Verdict::Divide { finally: failure.is_permanent() };
        }
        if matches!(failure.status(), 409 | 429) || matches!(failure, Failure::Clock(_)) {
            return Verdict::Wait;
        }
        if matches!(stream.kind, PayloadKind::Batch(Kind::Log | Kind::Stats)) && !failure.is_refusal() {
            return Verdict::Wait;
        }
        // Others are taken, and this one is not: by a proxy that answers with a page, or cuts the
        // connection, or by a controller that fails at it.
        stream.isolating |= stream.streak >= SUSPECT_AFTER;
        if stream.isolating { Verdict::Divide { finally: false } } else { Verdict::Wait }
    }

    /// Divides a refused request; a single entry is dropped or deferred.
    pub(super) fn divide(
        &mut self,
        stream: usize,
        next: Next,
        failure: Failure,
        finally: bool,
    ) -> Result<Sent, Failure> {
        let name = self.controller.name().to_owned();
        match &next.load {
            Load::Results(results) if results.len() > 1 => {
                self.streams[stream].rows = results.len() / 2;
                return Ok(Sent::Divided);
            }
            Load::Batch(kind @ (Kind::Log | Kind::Stats), batch) if next.retried.is_none() => {
                match self.upload_queue.split(&name, *kind, batch.number) {
                    Ok(true) => return Ok(Sent::Divided),
                    Ok(false) => {}
                    Err(error) => return Err(self.unreadable("outbox", &error)),
                }
            }
            _ => {}
        }
        // No limit of a proxy is that low: it refuses everything for now.
        let any_size = matches!(failure, Failure::Foreign { .. }) && next.load.bytes() <= ANY_LIMIT;
        if !finally || any_size {
            return self.defer(stream, &next, failure);
        }
        let mut item = describe(&next.load);
        match &next.load {
            Load::Results(results) => {
                // The client is told at least that it is over, and how.
                let short = if failure.status() == 413 { shortened(&results[0].json) } else { None };
                match short.map(|short| self.controller.post("result", &short)) {
                    Some(Ok(())) => item.push_str(", cut short"),
                    Some(Err(again)) if !again.is_permanent() || again.by() == "proxy" => {
                        return self.defer(stream, &next, again);
                    }
                    _ => {}
                }
                self.mark_sent(stream, vec![results[0].key]);
            }
            Load::Batch(kind, batch) => match next.retried.filter(|_| *kind != Kind::Event) {
                Some(key) => self.upload_queue.remove_deferred(&name, *kind, key, true),
                None => self.upload_queue.refused(&name, *kind, batch.number),
            },
        }
        if let Some(key) = next.retried {
            self.streams[stream].deferred.remove(key);
        }
        log::error!("controller {name}: dropped: {item}: {} refused it: {failure}", whose(&failure));
        self.tell_refusal(stream, &item, &failure, true);
        Ok(Sent::Divided)
    }

    /// Defers a single entry, to be tried more rarely, so that others are sent.
    fn defer(&mut self, stream: usize, next: &Next, failure: Failure) -> Result<Sent, Failure> {
        let key = match (&next.load, next.retried) {
            (_, Some(key)) => key,
            _ if self.streams[stream].deferred.is_full() => return Err(failure),
            (Load::Results(results), None) => results[0].key,
            (Load::Batch(Kind::Event, batch), None) => batch.number as i64,
            (Load::Batch(kind, batch), None) => {
                match self.upload_queue.defer(self.controller.name(), *kind, batch.number) {
                    Ok(key) => key,
                    Err(error) => return Err(self.unreadable("outbox", &error)),
                }
            }
        };
        let (entry, in_row): (&mut DeferredEntry, u32) = self.streams[stream].deferred.refused(key, Instant::now());
        // While all that this stream sends is refused, the first is told for all of them.
        if !entry.told && (entry.proven || (failure.is_filtered() && in_row == 1)) {
            entry.told = true;
            let item = describe(&next.load);
            log::warn!("controller {}: set aside: {item}: {failure}", self.controller.name());
            self.tell_refusal(stream, &item, &failure, false);
        }
        // Several in a row speak of all that this stream sends.
        if in_row > 1 { Err(failure) } else { Ok(Sent::Divided) }
    }

    /// Tells the operators what is not taken, by an event.
    fn tell_refusal(&mut self, stream: usize, item: &str, failure: &Failure, dropped: bool) {
        let kind = self.streams[stream].kind.path();
        if item.contains(REFUSAL) || !self.streams[stream].deferred.may_tell(Instant::now()) {
            return;
        }
        let data = serde_json::json!({
            "kind": kind, "item": item, "by": failure.by(), "status": failure.status(),
            "reason": failure.to_string(), "dropped": dropped,
        });
        self.upload_queue.push_event(Some(self.controller.name()), REFUSAL, data);
    }

    pub(super) fn release(&mut self, stream: usize) {
        (self.not_before, self.failed) = (None, None);
        self.backoff.succeed();
        let stream = &mut self.streams[stream];
        stream.not_before = None;
        stream.backoff.succeed();
        stream.rows = (stream.rows * 2).min(BATCH_ROWS);
        stream.taken_at_failure = None;
        (stream.streak, stream.isolating) = (0, false);
        stream.logged.clear();
        stream.deferred.others_pass(Instant::now());
    }

    /// Waits before the next try: of this stream, or of all when the controller itself is away.
    pub(super) fn hold(&mut self, stream: usize, failure: &Failure) {
        let item = &mut self.streams[stream];
        // A local fault is told by itself.
        if !matches!(failure, Failure::Local(_)) && item.logged.is_news(&failure.to_string()) {
            let (name, url) = (self.controller.name(), self.controller.url());
            log::warn!("controller {name} ({url}): {} waits: {failure}", item.kind.path());
        }
        if failure.is_auth() && self.controller.reload() {
            return;
        }
        // A node that sends too much of one kind sends the others all the same; so does one of which the
        // controller takes others.
        let too_much = failure.status() == 429;
        let alone = item.isolating || item.streak > 0 || item.deferred.in_row() > 0;
        let whole = !alone && (failure.should_fail_over() || (failure.wait().is_some() && !too_much));
        let backoff = if whole { &mut self.backoff } else { &mut item.backoff };
        let until = Some(Instant::now() + self.controller.pause(failure, backoff));
        if whole {
            self.not_before = until;
            self.taken_before = Some(self.controller.requests_taken());
        } else {
            item.not_before = until;
        }
    }
}
