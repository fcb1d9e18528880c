//! Effects: the scheduler's actions are stored in one commit, and done after it.

use super::{Actor, AfterCommit, RETRY};
use crate::job::JobState;
use crate::storage::job_store::JobUpdate;
use crate::supervisor::Notice;
use crate::supervisor::types::{Action, Place};
use anyhow::Result;
use jscommon::{failpoint, level};
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

impl Actor {
    /// Performs what was ordered until nothing more follows from it.
    pub(super) fn flush(&mut self) {
        let mut replaced = false;
        loop {
            self.perform();
            if self.retry.is_some_and(|retry| retry > Instant::now()) {
                return;
            }
            let committed =
                self.store_lost_rows().and_then(|()| self.parts.job_store.commit_to(self.generation, &self.writes));
            if let Err(fault) = committed {
                // A new file gets the writes again at once, but only once: every new file may be damaged.
                if self.generation != self.parts.job_store.generation() && !std::mem::replace(&mut replaced, true) {
                    continue;
                }
                if self.retry.is_none() {
                    log::error!("the job store takes nothing, so nothing starts until it does: {fault:#}");
                    let data = json!({"message": format!("the job store takes nothing: {fault:#}")});
                    (self.parts.notify)(Notice::Event { controller: None, name: "critical", data });
                }
                self.retry = Some(Instant::now() + RETRY);
                return;
            }
            self.behind = self.parts.job_store.is_behind().then(|| self.behind.unwrap_or_else(Instant::now));
            if self.retry.take().is_some() {
                log::info!("the job store takes changes again");
            }
            let passed = |wanted: fn(&JobUpdate) -> bool| self.writes.iter().any(wanted);
            if passed(|write| matches!(write, JobUpdate::Accept { .. })) {
                failpoint::hit("agent.stored");
            }
            if passed(|write| matches!(write, JobUpdate::Finish { .. } | JobUpdate::Report { .. })) {
                failpoint::hit("agent.done");
            }
            self.writes.clear();
            self.finished.clear();
            self.fresh.clear();
            if self.after_commit.is_empty() && self.actions.is_empty() {
                return self.clear_up();
            }
            self.run_after_commit();
        }
    }

    /// Once a damaged job store was replaced: writes the rows again that could not be carried over, of all jobs
    /// that are not over or whose end is to be written.
    fn store_lost_rows(&mut self) -> Result<()> {
        let generation = self.parts.job_store.generation();
        if self.generation == generation {
            return Ok(());
        }
        let mut lost = Vec::new();
        let now = self.now().wall;
        let runs: HashMap<Arc<str>, i64> = self.runs.values().map(|run| (run.id.clone(), run.at)).collect();
        let stored = self.jobs.iter().filter(|(_, job)| job.stored);
        let open = stored.map(|(id, job)| (id.clone(), job.controller.clone(), runs.get(id).copied()));
        let ended = self.finished.iter().map(|(id, controller, at)| (id.clone(), controller.clone(), Some(*at)));
        for (id, controller, started) in open.chain(ended) {
            if self.fresh.contains(&*id) || self.parts.job_store.knows(&id)? {
                continue;
            }
            // Where the command is gone as well, the client that waits for the job is told so.
            let detail = self.jobs.get(&id).and_then(|job| job.detail.as_ref());
            let command = detail.map_or_else(String::new, |detail| detail.command.to_value().to_string());
            let id = id.to_string();
            let state = match self.scheduler.place_of(&id) {
                Some((Place::Scheduled, _)) => Some(JobState::Scheduled),
                Some((Place::Failed, _)) => Some(JobState::Failed),
                _ => None,
            };
            lost.push(JobUpdate::Accept { id: id.clone(), controller: controller.to_string(), command, now });
            lost.extend(started.map(|started| JobUpdate::Start { id: id.clone(), started }));
            lost.extend(state.map(|state| JobUpdate::SetState { id, state }));
        }
        if !lost.is_empty() {
            log::warn!(
                "{} jobs are stored again",
                lost.iter().filter(|w| matches!(w, JobUpdate::Accept { .. })).count()
            );
        }
        self.writes.splice(0..0, lost);
        self.generation = generation;
        Ok(())
    }

    /// Does what waited for the commit, what somebody waits for first: news of results, a process, the
    /// poller, which has another poll to make, and then whatever else there is to start.
    fn run_after_commit(&mut self) {
        let (mut stored, mut starts) = (Vec::new(), VecDeque::new());
        for held in std::mem::take(&mut self.after_commit) {
            match held {
                AfterCommit::Stored(poller) => stored.push(poller),
                AfterCommit::Start { id, run, at } => starts.push_back((id, run, at)),
                AfterCommit::Tell(notice) => (self.parts.notify)(notice),
                AfterCommit::Forget { controller, id } => self.parts.job_store.memory().forget(&controller, &id),
            }
        }
        self.clear_up();
        if let Some((id, run, at)) = starts.pop_front() {
            self.begin_run(&id, run, at);
        }
        for poller in stored {
            let _ = poller.send(());
        }
        starts.into_iter().for_each(|(id, run, at)| self.begin_run(&id, run, at));
    }

    /// Does the work after the end of a run that delays nobody's result.
    pub(super) fn clear_up(&mut self) {
        for (source, json) in self.records.drain(..) {
            self.parts.outlets.write(&source, level::JOB, &json);
        }
        for group in self.emptied.drain(..) {
            if let Some(cgroups) = &mut self.cgroups {
                cgroups.release(&group);
            }
        }
    }

    /// Brings to the disk what went into the job store without waiting for it, while nothing else is to do.
    /// A failure is tried again each second, for nothing else may come that would.
    pub(super) fn sync(&mut self) {
        if self.parts.job_store.is_behind()
            && let Err(fault) = self.parts.job_store.sync()
        {
            if self.resync.is_none() {
                log::error!("results may not survive a power cut, which is tried again each second: {fault:#}");
            }
            self.resync = Some(Instant::now() + RETRY);
            return;
        }
        self.behind = None;
        if self.resync.take().is_some() {
            log::info!("results survive a power cut again");
        }
    }

    /// Whether the job store is to know of this job.
    fn is_stored(&self, id: &Arc<str>) -> bool {
        self.jobs.get(id).is_none_or(|job| job.stored)
    }

    fn perform(&mut self) {
        while !self.actions.is_empty() {
            // One look at all processes serves every tree that is being ended.
            let mut trees = Vec::new();
            for action in std::mem::take(&mut self.actions) {
                match action {
                    // Nothing is to be on the disk first.
                    Action::Start { id, run, at } if !self.is_stored(&id) => self.begin_run(&id, run, at),
                    Action::SetState { id, .. } if !self.is_stored(&id) => {}
                    Action::Start { id, run, at } => {
                        self.writes.push(JobUpdate::Start { id: id.to_string(), started: at });
                        self.after_commit.push(AfterCommit::Start { id, run, at });
                    }
                    Action::Abort { run, .. } => self.abort_start(run),
                    Action::Term { .. } | Action::Probe { .. } | Action::Kill { .. } => trees.push(action),
                    Action::SetState { id, state } => {
                        self.writes.push(JobUpdate::SetState { id: id.to_string(), state });
                    }
                    Action::RunOver { run, .. } => drop(self.run_over(run)),
                    Action::Report { id, run, conclusion } => self.report(&id, run, conclusion),
                    Action::Finish { id, run, conclusion } => self.finish(&id, run, conclusion),
                }
            }
            if !trees.is_empty() {
                self.signal_and_probe(trees);
            }
        }
    }
}
