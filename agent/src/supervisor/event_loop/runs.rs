//! Runs: starting them, and ending their trees.

use super::{Actor, Run, Work, group_name};
use crate::commands::{Answer, JobControl, messages};
use crate::platform::Signal;
use crate::process_tree::{self, JobTag, NotStarted, members, spawn};
use crate::script;
use crate::supervisor::launcher::Leave;
use crate::supervisor::task_pool::Task;
use crate::supervisor::types::{Action, Event};
use crate::supervisor::{GroupUse, Message, job_commands};
use jscommon::failpoint;
use std::sync::Arc;

impl Actor {
    pub(super) fn begin_run(&mut self, id: &Arc<str>, run: u64, at: i64) {
        if !self.scheduler.is_starting(run) {
            return;
        }
        let detail = self.detail(id);
        let Some(job) = self.jobs.get_mut(id) else { return };
        let (Some(detail), work) = (detail, job.work) else {
            return self.not_started(run, "its command cannot be read from the job store".to_owned().into());
        };
        job.detail = Some(detail.clone());
        let command = detail.command.clone();
        self.runs.insert(run, Run::new(id.clone(), at, job.stored));
        self.open_watch(id);
        let context = self.parts.builtins.clone();
        match work {
            Work::Execute => match self.process(&command) {
                Ok(spec) => self.spawn(run, spec),
                Err(why) => self.not_started(run, why.into()),
            },
            Work::Prepared => {
                let failed = Message::Prepared {
                    run,
                    spec: Err("the agent could not prepare it, see its log".to_owned().into()),
                };
                let work = Box::new(move || Message::Prepared {
                    run,
                    spec: script::prepare(&context.scripts, &context.config, &command),
                });
                self.preparations.add(Task { run, work, failed }, &self.remote.sender);
            }
            Work::Threaded(function) | Work::Inline(function) => {
                self.event(Event::Spawned { run });
                self.answer_later(run, move || function(&context, &command));
            }
            Work::Control(control) => {
                self.event(Event::Spawned { run });
                let (remote, controller) = (self.remote.clone(), self.controller_of(id));
                self.answer_later(run, move || match control {
                    JobControl::Get => job_commands::get(&context, &controller, &command),
                    JobControl::Follow => messages::follow(&context, &controller, &command),
                    JobControl::ProcessStats => job_commands::process_stats(&remote, &command),
                    _ => job_commands::processes_stats(&remote, &command),
                });
            }
        }
    }

    /// Has a thread start a process; [`Actor::launched`] goes on.
    pub(super) fn spawn(&mut self, run: u64, spec: process_tree::Spec) {
        let Some(known) = self.runs.get(&run) else { return };
        let Some((job, detail)) = self.jobs.get(&known.id).and_then(|job| Some((job, job.detail.clone()?))) else {
            return;
        };
        if self.launcher.hangs(&known.id) {
            let why = "an earlier start of it still waits for a file system that does not answer";
            return self.not_started(run, why.to_owned().into());
        }
        let mark = JobTag { home: self.home.clone(), job: known.id.to_string(), start: known.at };
        let group = self.cgroups.as_ref().and_then(|cgroups| cgroups.make(&group_name(&mark.job, mark.start)));
        let (children, config) = (self.children.clone(), self.parts.config.clone());
        let controller = job.controller.clone();
        let start = move |leave: &Leave| {
            let refusal = || leave.refusal();
            let (group, refusal) = (group.as_ref(), &refusal);
            let owner = spawn::Owner { run, mark: &mark, controller: &controller, group, refusal };
            let child = spawn::start(&children, spec, &detail.args, &owner, &config);
            let group = group.map(|group| if group.is_refused() { GroupUse::Refused } else { GroupUse::Made });
            Message::Launched { run, mark, group, child }
        };
        self.launcher.launch(run, Box::new(start), &self.remote.sender);
        self.event(Event::Launching { run });
    }

    /// Gives up a start that hangs.
    pub(super) fn abort_start(&mut self, run: u64) {
        self.launcher.give_up(run, self.runs.get(&run).map(|known| known.id.clone()));
        self.children.abort_start(run);
    }

    /// Goes on with a process that was started, or was not.
    pub(super) fn launched(
        &mut self,
        run: u64,
        mark: JobTag,
        group: Option<GroupUse>,
        spawned: Result<process_tree::Spawned, NotStarted>,
    ) {
        self.launcher.answered(run);
        let name = group_name(&mark.job, mark.start);
        let Some(known) = self.runs.get_mut(&run) else { return self.end_unwanted(run, mark, name, spawned) };
        let Some(detail) = self.jobs.get(&known.id).and_then(|job| job.detail.clone()) else {
            return self.end_unwanted(run, mark, name, spawned);
        };
        if let Some(cgroups) = &mut self.cgroups {
            match &spawned {
                Ok(child) if child.placed => known.group = Some(name),
                Ok(child) => {
                    if let Some(group) = group {
                        cgroups.release(&name);
                        if let GroupUse::Refused = group {
                            cgroups.not_at_once();
                        }
                    }
                    if detail.args.long {
                        cgroups.attach(&name, child.pid);
                        known.group = Some(name);
                    }
                }
                Err(_) => cgroups.release(&name),
            }
        }
        let child = match spawned {
            Ok(child) => child,
            Err(fault) => return self.not_started(run, fault),
        };
        failpoint::hit("agent.spawned");
        known.pid = child.pid;
        known.reaped = false;
        known.since = child.since;
        known.mark = Some(mark);
        self.parts.outlets.stats.job_started(&detail.source);
        let (sender, pid) = (self.remote.sender.clone(), child.pid);
        let ended = move || {
            let _ = sender.send(match process_tree::wait_child(run, pid) {
                Some(code) => Message::Ended { run, code },
                None => Message::Drained { run },
            });
        };
        let job = self.jobs.get(&known.id);
        let spool = job.and_then(|job| job.spool.clone());
        let is_terminal = child.hangup.is_some();
        if let (Some(stdin), Some(end)) = (job.and_then(|job| job.stdin.as_ref()), child.stdin) {
            match process_tree::StdinEnd::new(end, child.hangup) {
                Ok(end) => stdin.attach(end, &child.first),
                Err(fault) => log::error!("the stdin of job {} is closed: {fault}", known.id),
            }
        }
        let attached = match (child.stdout, child.stderr) {
            (Some(out), Some(err)) => {
                let (pipes, ends) = process_tree::Pipes::of(out, err, is_terminal);
                known.ends = ends;
                self.readers.attach(&detail.source, pipes, &self.parts.outlets, spool, ended)
            }
            _ => Err(std::io::Error::other("it has no pipes")),
        };
        match attached {
            Ok(capture) => known.capture = Some(capture),
            // It runs, and its output meets a closed pipe: no reason to lose the job.
            Err(fault) => {
                log::error!("nothing of what job {} writes is kept: {fault}", known.id);
                let _ = self.remote.sender.send(Message::Drained { run });
            }
        }
        let early = known.early.take();
        self.event(Event::Spawned { run });
        if let Some(code) = early {
            self.exited(run, code);
        }
    }

    /// Ends a process whose job was ended while it was being started.
    fn end_unwanted(
        &mut self,
        run: u64,
        mark: JobTag,
        name: String,
        spawned: Result<process_tree::Spawned, NotStarted>,
    ) {
        if let Ok(child) = spawned {
            log::warn!("ending process {} of job {}, which was ended during its start", child.pid, mark.job);
            let processes = process_tree::processes();
            let (pid, group) = (child.pid, Some(process_tree::group_path(&mark.home, &name)));
            let root = members::Root { run, pid, reaped: false, mark, group, known: Vec::new() };
            let mut members = members::living(&processes, &[root]).remove(&run).unwrap_or_default();
            if let Some(cgroups) = &self.cgroups {
                members::join(&mut members, &processes, &cgroups.members(&name));
            }
            self.children.signal_tree(run, pid, &members, Signal::KILL);
        }
        self.emptied.push(name);
    }

    /// Answers a run of which no process was started.
    pub(super) fn not_started(&mut self, run: u64, NotStarted { code, why }: NotStarted) {
        self.event(Event::Unstartable { run, code, why });
    }

    /// Gives an answer to a run from a thread of its own.
    pub(super) fn answer_later(&mut self, run: u64, work: impl FnOnce() -> Answer + Send + 'static) {
        let failed = Message::Answered { run, answer: Err("the agent could not do it, see its log".into()) };
        let work = Box::new(move || Message::Answered { run, answer: work() });
        self.commands.add(Task { run, work, failed }, &self.remote.sender);
    }

    /// Signals trees and looks whether anything of them lives.
    pub(super) fn signal_and_probe(&mut self, actions: Vec<Action>) {
        let roots: Vec<members::Root> = self.runs.iter().filter_map(|(run, known)| root(*run, known)).collect();
        let processes = process_tree::processes();
        let mut trees = members::living(&processes, &roots);
        for action in actions {
            let (Action::Term { run, .. } | Action::Probe { run, .. } | Action::Kill { run, .. }) = &action else {
                continue;
            };
            let run = *run;
            let Some(known) = self.runs.get_mut(&run) else { continue };
            let mut members = trees.remove(&run).unwrap_or_default();
            if let (Some(cgroups), Some(group)) = (&self.cgroups, &known.group) {
                members::join(&mut members, &processes, &cgroups.members(group));
            }
            known.known = members.iter().map(|member| (member.pid, member.started)).collect();
            let signal = match action {
                Action::Term { .. } => {
                    self.jobs.get(&known.id).and_then(|job| Some(job.detail.as_ref()?.args.stop_signal))
                }
                Action::Kill { .. } => Some(Signal::KILL),
                _ => None,
            };
            match signal {
                Some(Signal::KILL) => self.children.signal_tree(run, known.pid, &members, Signal::KILL),
                Some(signal) => self.children.stop_tree(run, known.pid, &members, signal),
                None => {}
            }
            if !matches!(action, Action::Term { .. }) {
                self.event(Event::Tree { run, alive: members.len() });
            }
        }
    }
}

pub(super) fn root(run: u64, known: &Run) -> Option<members::Root> {
    let mark = known.mark.clone()?;
    Some(members::Root {
        run,
        pid: known.pid,
        reaped: known.reaped,
        group: known.group.as_ref().map(|name| process_tree::group_path(&mark.home, name)),
        mark,
        known: known.known.clone(),
    })
}
