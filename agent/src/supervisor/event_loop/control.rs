//! The commands that concern other jobs, and what is told of them.

use super::runs::root;
use super::{Actor, AfterCommit, Waiting};
use crate::commands::JobControl;
use crate::process_tree::members;
use crate::supervisor::types::{Event, Place, Recurrence};
use crate::supervisor::{Notice, ProcessEntry, View, job_commands};
use jscommon::Command;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Most recurring jobs of one answer: each of them is read from the disk.
const MAX_SCHEDULES: usize = 1000;

impl Actor {
    pub(super) fn control(&mut self, control: JobControl, id: &Arc<str>, command: &Command) {
        let answer = match control {
            JobControl::Kill => match job_commands::target(command) {
                Ok(target) => match self.scheduler.has(&target) && !self.killed_before.contains(&target) {
                    true => {
                        let runs = self.scheduler.run_of(&target).into_iter().collect();
                        self.parts.builtins.scripts.cancel_fetch(&target);
                        self.event(Event::Kill { id: target.clone() });
                        return self.wait_for(id, runs, json!({"killed": [target]}));
                    }
                    false if self.killed_before.contains(&target) => Ok(json!({"killed": [target]})),
                    false => Err(no_job(&target)),
                },
                Err(why) => Err(why),
            },
            JobControl::KillAll => {
                let runs: BTreeSet<u64> = self.scheduler.process_runs().into_iter().collect();
                let ids: Vec<Value> =
                    runs.iter().filter_map(|run| self.runs.get(run)).map(|run| json!(*run.id)).collect();
                self.event(Event::KillAll);
                return self.wait_for(id, runs, json!({ "killed": ids }));
            }
            JobControl::Unschedule => {
                job_commands::target(command).and_then(|target| match self.scheduler.has(&target) {
                    true => {
                        self.event(Event::Unschedule { id: target.clone() });
                        Ok(json!({"unscheduled": target}))
                    }
                    false => Err(no_job(&target)),
                })
            }
            JobControl::Signal => job_commands::signal(command).and_then(|(target, signal)| {
                let run = self.scheduler.run_of(&target).and_then(|run| Some((run, self.runs.get(&run)?)));
                match run {
                    Some((run, known)) if self.children.signal_group(run, known.pid, signal) => {
                        Ok(json!({"id": target, "signal": signal.to_string()}))
                    }
                    _ if self.scheduler.has(&target) => Err(format!("job '{target}' has no process now")),
                    _ => Err(no_job(&target)),
                }
            }),
            JobControl::Restart => {
                self.after_commit.push(AfterCommit::Tell(Notice::Restart));
                Ok(json!("restarting"))
            }
            JobControl::Schedules => Ok(self.schedules()),
            JobControl::Attach => self.attach(id, command),
            JobControl::Input => self.input(command),
            JobControl::Resize => self.resize(command),
            JobControl::ProcessStats | JobControl::ProcessesStats | JobControl::Get | JobControl::Follow => {
                Err("not here".into())
            }
        };
        self.answer(id, answer);
    }

    pub(super) fn wait_for(&mut self, id: &Arc<str>, runs: BTreeSet<u64>, answer: Value) {
        // The orders are looked through after this, so a run that is over by then is taken off.
        self.waiting.push(Waiting { id: id.to_string(), runs, answer });
        self.answer_waiting();
    }

    pub(super) fn answer_waiting(&mut self) {
        let (done, waiting): (Vec<Waiting>, _) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.runs.is_empty());
        self.waiting = waiting;
        for waiting in done {
            self.answer(&waiting.id.as_str().into(), Ok(waiting.answer));
        }
    }

    /// The recurring jobs, first those that were accepted first.
    fn schedules(&self) -> Value {
        let found = self.scheduler.recurring(self.now()).into_iter().take(MAX_SCHEDULES);
        let entry = |it: Recurrence| {
            let job = self.detail(&it.id)?;
            Some(json!({
                "id": &*it.id, "domain": job.args.domain, "name": job.args.name, "schedule": null,
                "period": it.period / 1000, "next": it.next, "last_start": it.last_start,
                "last_state": it.last_state, "paused": false,
            }))
        };
        found.filter_map(entry).collect()
    }

    pub(super) fn views(&self, id: Option<&str>) -> Vec<View> {
        let ids: Vec<Arc<str>> = match id {
            Some(id) => self.jobs.keys().filter(|known| known.as_ref() == id).cloned().collect(),
            None => self.runs.values().filter(|run| run.pid != 0 && !run.reaped).map(|run| run.id.clone()).collect(),
        };
        let mut views: Vec<View> = ids.iter().filter_map(|id| self.view(id)).collect();
        views.sort_by(|a, b| (a.entry.starttime, &a.entry.id).cmp(&(b.entry.starttime, &b.entry.id)));
        views
    }

    pub(super) fn view(&self, id: &Arc<str>) -> Option<View> {
        let job = self.detail(id)?;
        let (place, restarts) = self.scheduler.place_of(id)?;
        let number = self.scheduler.run_of(id);
        let run = number.and_then(|number| self.runs.get(&number)).filter(|run| run.pid != 0);
        let entry = ProcessEntry {
            id: id.to_string(),
            cmd: job.command.cmd.clone(),
            domain: job.args.domain.clone(),
            name: job.args.name.clone(),
            pid: run.map_or(0, |run| run.pid),
            state: match place {
                Place::Queued => "QUEUED",
                Place::Scheduled => "SCHEDULED",
                Place::Running => "RUNNING",
                Place::Stopping => "STOPPING",
                Place::Failed => "FAILED",
            },
            figures: members::Figures::default(),
            starttime: run.map_or(0, |run| run.at),
            restarts,
            stats_interval: job.args.stats_interval.map(|interval| interval.as_secs()),
        };
        let root = number.zip(run).and_then(|(number, run)| root(number, run));
        Some(View { entry, root, since: run.map_or_else(Instant::now, |run| run.since) })
    }
}

pub(super) fn no_job(id: &str) -> String {
    format!("no job '{id}' runs or waits here")
}
