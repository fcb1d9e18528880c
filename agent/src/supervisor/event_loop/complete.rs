//! Ends: from a run that is over to its result, its records, its events, and news for the uploaders.

use super::{Actor, AfterCommit, Run};
use crate::commands::{self, Answer};
use crate::output::Captured;
use crate::platform::unix_ms;
use crate::storage::job_store::JobUpdate;
use crate::supervisor::types::{Conclusion, Outcome};
use crate::supervisor::{Notice, results};
use jscommon::{State, level};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

impl Actor {
    pub(super) fn run_over(&mut self, run: u64) -> Option<Run> {
        let known = self.runs.remove(&run);
        if let Some(known) = &known
            && let Some(capture) = &known.capture
            && let Some(job) = self.jobs.get_mut(&known.id)
        {
            let bytes = capture.bytes();
            job.written = [job.written[0] + bytes[0], job.written[1] + bytes[1]];
        }
        if let Some(stdin) = known.as_ref().and_then(|known| self.jobs.get(&known.id)?.stdin.as_ref()) {
            stdin.detach();
        }
        // Pipes that are open now are held by a daemon, which is to outlive the agent.
        if let Some(ends) = known.as_ref().filter(|known| known.reaped).and_then(|known| known.ends.as_ref()) {
            self.keeper.keep(run, ends);
        }
        if let Some(known) = &known
            && known.pid != 0
            && let Some(detail) = self.jobs.get(&known.id).and_then(|job| job.detail.as_ref())
        {
            self.parts.outlets.stats.job_ended(&detail.source);
        }
        // Removing it takes the kernel a while, and the result does not wait for that.
        self.emptied.extend(known.as_ref().and_then(|known| known.group.clone()));
        for waiting in &mut self.waiting {
            waiting.runs.remove(&run);
        }
        self.answer_waiting();
        known
    }

    pub(super) fn report(&mut self, id: &Arc<str>, run: u64, conclusion: Conclusion) {
        let Some((json, quiet, started)) = self.conclude(id, Some(run), conclusion) else { return };
        let Some(job) = self.jobs.get(id) else { return };
        if !job.controller.is_empty() {
            self.writes.push(JobUpdate::Report { id: id.to_string(), started, result: json, quiet });
            let controller = job.controller.to_string();
            self.after_commit.push(AfterCommit::Tell(Notice::Result { controller }));
        }
        self.release_memory(id);
    }

    pub(super) fn finish(&mut self, id: &Arc<str>, run: Option<u64>, conclusion: Option<Conclusion>) {
        let started = run.and_then(|run| self.runs.get(&run)).is_some_and(|run| run.stored);
        let detail = self.jobs.get(id).and_then(|job| job.detail.as_ref());
        let remembered = detail.is_none_or(|detail| detail.args.rules(true).remembered());
        let may_be_late = |told: &Conclusion| told.alert.is_none() && results::may_be_late(&told.outcome);
        // The next life of the agent gets a read-only command again, and answers it.
        let is_interrupted = self.stopping.is_some() && !conclusion.as_ref().is_some_and(may_be_late);
        let deferred_sync = started && !remembered && conclusion.as_ref().is_some_and(may_be_late);
        let concluded = conclusion.and_then(|conclusion| self.conclude(id, run, conclusion));
        let at = concluded.as_ref().map_or_else(unix_ms, |(.., started)| *started);
        // A job that never ran has a watch that only ends.
        self.open_watch(id);
        let Some(job) = self.jobs.remove(id) else { return };
        self.close_watches(&job);
        self.bytes = self.bytes.saturating_sub(job.size);
        let result = concluded.map(|(json, ..)| json).filter(|_| !job.controller.is_empty());
        if !job.stored {
            let result = result.filter(|_| !is_interrupted);
            return result.into_iter().for_each(|result| self.hold_in_memory(&job.controller, id, result));
        }
        self.finished.push((id.clone(), job.controller.clone(), at));
        if result.is_some() {
            let controller = job.controller.to_string();
            self.after_commit.push(AfterCommit::Tell(Notice::Result { controller }));
        }
        let deferred_sync = deferred_sync && result.is_some();
        self.writes.push(JobUpdate::Finish { id: id.to_string(), result, deferred_sync });
    }

    /// Has the result of a read-only command sent from memory; stores it where there is no room.
    fn hold_in_memory(&mut self, controller: &Arc<str>, id: &str, result: String) {
        match self.parts.job_store.memory().answer(controller, id, result) {
            Ok(()) => (self.parts.notify)(Notice::Result { controller: controller.to_string() }),
            Err(result) => match self.store_result(controller, id, result) {
                Ok(()) => {
                    let (controller, id) = (controller.to_string(), id.to_owned());
                    self.after_commit.push(AfterCommit::Forget { controller, id });
                }
                // Its batch is not acknowledged, and comes again.
                Err(fault) => log::error!("the result of {id} can neither be held nor stored: {fault:#}"),
            },
        }
    }

    /// Makes the result of a run that is over, and the records and events that go with it.
    pub(super) fn conclude(
        &mut self,
        id: &Arc<str>,
        run: Option<u64>,
        conclusion: Conclusion,
    ) -> Option<(String, bool, i64)> {
        let known = run.and_then(|run| self.run_over(run));
        let detail = self.detail(id).or_else(|| self.detail_of_lost(id))?;
        let job = self.jobs.get(id)?;
        let started = match (&known, &conclusion.outcome) {
            (Some(known), _) => known.at,
            (None, Outcome::Died { at }) => *at,
            (None, _) => unix_ms(),
        };
        let captured =
            known.as_ref().and_then(|known| known.capture.as_ref()).map_or_else(Captured::default, |c| c.snapshot());
        let alert = conclusion.alert.clone();
        if let Some(alert) = &alert {
            self.parts.outlets.write(&detail.source, level::CRITICAL, alert);
        }
        let ended = results::Ended {
            conclusion,
            captured,
            time: known.as_ref().map_or(0, |known| {
                let ended = known.ended.unwrap_or_else(Instant::now);
                ended.saturating_duration_since(known.since).as_millis() as u64
            }),
            answer: known.and_then(|known| known.answer),
            started,
        };
        let mut result = results::result(&detail.command, self.parts.config.main.node(), ended);
        // Clients read records, and no client gets a ticket.
        let ticket = std::mem::take(&mut result.ticket);
        let mut json = serde_json::to_string(&result).unwrap_or_default();
        if job.work.is_process() || commands::leaves_record(&detail.command.cmd) {
            self.records.push((detail.source.clone(), json.clone()));
        }
        results::add_ticket(&mut json, &ticket);
        let controller = (!job.controller.is_empty()).then(|| job.controller.to_string());
        if let Some(alert) = alert {
            let data = json!({"id": **id, "message": alert});
            self.after_commit.push(AfterCommit::Tell(Notice::Event {
                controller: controller.clone(),
                name: "critical",
                data,
            }));
        } else if controller.is_none() && result.state != State::Ok && self.stopping.is_none() {
            let data = json!({"id": **id, "state": result.state, "code": result.code, "message": result.data});
            self.after_commit.push(AfterCommit::Tell(Notice::Event { controller: None, name: "job_failed", data }));
        }
        Some((json, result.quiet, started))
    }

    /// Finishes a command that has its answer.
    pub(super) fn answer(&mut self, id: &Arc<str>, answer: Answer) {
        // A run that never was a process carries the answer to where results are made.
        let run = u64::MAX;
        self.runs.insert(run, Run { answer: Some(answer), ..Run::new(id.clone(), unix_ms(), false) });
        self.finish(id, Some(run), Some(Outcome::Answered.into()));
    }
}
