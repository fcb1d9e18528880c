//! Accepting: what a command is, and what of it is kept in memory.

use super::{Actor, AfterCommit, Detail, Job, MAX_BYTES, MAX_JOBS, Work, group_name};
use crate::commands::{self, JobControl, Kind};
use crate::job::{JobLabel, JobState, Rules, RunArgs};
use crate::platform::{Signal, unix_ms};
use crate::process_tree::{self, Cgroups, JobTag, NotStarted, extension, leftovers, spawn};
use crate::script;
use crate::stdin::Stdin;
use crate::storage::job_store::{JobUpdate, Row};
use crate::supervisor::types::{Event, Outcome, PersistedJob};
use crate::supervisor::{Message, Notice};
use anyhow::{Context, Result};
use crossbeam_channel::Sender;
use jscommon::{Command, JobResult, LevelSet, State, failpoint, level};
use serde_json::json;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

impl Actor {
    pub(super) fn submit(&mut self, controller: &Arc<str>, commands: Vec<Command>, stored: Sender<()>) {
        failpoint::hit("agent.received");
        let is_read_only = !commands.is_empty() && commands.iter().all(commands::is_read_only);
        // Dropping `stored` unanswered tells the poller to acknowledge nothing. What is not stored needs no disk.
        if self.stopping.is_some() || self.retry.is_some() && !is_read_only {
            return;
        }
        // A poll without an acknowledgement is answered with the last batch again, and the first poll of an
        // agent's life has none: what it knows then is no second command.
        let may_repeat = !self.heard.contains(controller);
        let is_empty = commands.is_empty();
        for command in commands {
            let known = match self.jobs.contains_key(command.id.as_str()) || self.fresh.contains(&command.id) {
                true => Ok(true),
                false => self.parts.job_store.knows(&command.id),
            };
            match known {
                Ok(false) => self.accept(controller, command),
                Ok(true) if may_repeat && self.is_repeated(controller, &command.id) => {
                    log::debug!("command {} came again, for its acknowledgement was lost", command.id);
                }
                Ok(true) => {
                    let data = json!({"id": command.id, "cmd": command.cmd});
                    let controller = Some(controller.to_string());
                    self.after_commit.push(AfterCommit::Tell(Notice::Event { controller, name: "duplicate", data }));
                }
                Err(fault) => {
                    log::error!("cannot look a command up in the job store, nothing is accepted: {fault:#}");
                    return;
                }
            }
        }
        if may_repeat && !is_empty {
            self.heard.insert(controller.clone());
        }
        match is_read_only {
            true => drop(stored.send(())),
            false => self.after_commit.push(AfterCommit::Stored(stored)),
        }
    }

    /// Stores the read-only commands of this controller, whose results it has not taken in time, as any other. They are in
    /// memory until that is done, so that their results can still be sent.
    pub(super) fn store_read_only(&mut self, controller: &Arc<str>, stored: Sender<()>) {
        let refuse = |actor: &mut Actor| {
            actor.heard.remove(controller);
        };
        if self.stopping.is_some() || self.retry.is_some() {
            // The batch comes again, and what is known of it is no second command.
            return refuse(self);
        }
        for (id, result) in self.parts.job_store.memory().of(controller) {
            let job = self.jobs.get_mut(id.as_str()).filter(|job| !job.stored && job.controller == *controller);
            let outcome = match (job, result) {
                (_, Some(result)) => self.store_result(controller, &id, result),
                (Some(job), None) => {
                    job.stored = true;
                    let detail = job.detail.as_ref();
                    let command = detail.map_or_else(String::new, |detail| detail.command.to_value().to_string());
                    self.store_row(controller, &id, command).map(drop)
                }
                // Another one has this id.
                (None, None) => Ok(()),
            };
            if let Err(fault) = outcome {
                log::error!("cannot look a command up in the job store, nothing is stored: {fault:#}");
                return refuse(self);
            }
            self.after_commit.push(AfterCommit::Forget { controller: controller.to_string(), id });
        }
        self.after_commit.push(AfterCommit::Stored(stored));
    }

    /// Stores the result of a read-only command together with its row.
    pub(super) fn store_result(&mut self, controller: &Arc<str>, id: &str, result: String) -> Result<()> {
        // A row of this id has a result of its own.
        if !self.store_row(controller, id, String::new())? {
            log::warn!("command {id} of controller {controller} has the id of another one, and is not answered");
            return Ok(());
        }
        self.writes.push(JobUpdate::Finish { id: id.to_owned(), result: Some(result), deferred_sync: false });
        self.after_commit.push(AfterCommit::Tell(Notice::Result { controller: controller.to_string() }));
        Ok(())
    }

    /// Stores a row, unless the job store has one of this id or will with the next commit; whether it does.
    fn store_row(&mut self, controller: &Arc<str>, id: &str, command: String) -> Result<bool> {
        if self.fresh.contains(id) || self.parts.job_store.knows(id)? {
            return Ok(false);
        }
        self.fresh.insert(id.to_owned());
        let (id, controller, now) = (id.to_owned(), controller.to_string(), unix_ms());
        self.writes.push(JobUpdate::Accept { id, controller, command, now });
        Ok(true)
    }

    /// Whether a command that is known can be one that this controller sent in the agent's last life.
    fn is_repeated(&self, controller: &Arc<str>, id: &str) -> bool {
        !self.fresh.contains(id) && self.jobs.get(id).is_none_or(|job| job.controller == *controller)
    }

    pub(super) fn accept(&mut self, controller: &Arc<str>, command: Command) {
        let text = command.to_value().to_string();
        let size = text.len();
        // A startup job is one that the job store knows, whatever its command is.
        if controller.is_empty() || !commands::is_read_only(&command) {
            let (id, controller, now) = (command.id.clone(), controller.to_string(), self.now().wall);
            self.fresh.insert(id.clone());
            self.writes.push(JobUpdate::Accept { id, controller, command: text, now });
        }
        self.register(controller, command, size, None, false);
    }

    /// Why no other job of this size can wait here. Commands that are answered at once always can, so
    /// that somebody can look what waits, and kill it.
    fn no_room(&self, work: Work, size: usize) -> Option<String> {
        if !work.is_process() {
            return None;
        }
        if self.jobs.len() >= MAX_JOBS {
            return Some(format!("{} jobs run or wait on this node, and it takes no more; try later", self.jobs.len()));
        }
        (self.bytes + size > MAX_BYTES).then(|| {
            format!("the jobs that wait on this node hold {} MiB, and it takes no more; try later", self.bytes >> 20)
        })
    }

    /// Finds out what a command of `size` bytes is and hands it to the scheduler, or answers it at once.
    pub(super) fn register(
        &mut self,
        controller: &Arc<str>,
        command: Command,
        size: usize,
        persisted: Option<PersistedJob>,
        held: bool,
    ) {
        let now = self.now();
        let id: Arc<str> = command.id.as_str().into();
        let work = self.work(&command);
        let args = match work {
            Ok(work) if work.is_process() => RunArgs::parse(&command.args),
            _ => Ok(RunArgs::default()),
        };
        let checked = work.map_err(NotStarted::not_found).and_then(|work| {
            let args = args?;
            // A job that the job store remembers had its room before.
            if persisted.is_none()
                && let Some(why) = self.no_room(work, size)
            {
                return Err(why.into());
            }
            if let Work::Execute = work {
                self.process(&command)?;
            } else if args.tty.is_some() {
                let why =
                    "tty: a script gets its source on stdin, which no terminal brings unchanged; run it by execute";
                return Err(why.to_owned().into());
            }
            Ok((work, args))
        });
        let (work, args, fault) = match checked {
            Ok((work, args)) => (work, args, None),
            Err(fault) => (Work::Execute, RunArgs::default(), Some(fault)),
        };
        let rules = Rules { goes_on: commands::goes_on(&command), ..args.rules(work.is_process()) };
        let stdin = args.keeps_stdin().then(|| Arc::new(Stdin::new(args.tty.is_some())));
        let detail = self.detail_of(command, args);
        let command = detail.command.clone();
        let stored = persisted.is_some() || self.fresh.contains(&*id);
        let is_new = persisted.is_none_or(|persisted| persisted.state == JobState::Accepted);
        let opens_watch = is_new && self.wants_watch(controller, &command);
        let job = Job {
            controller: controller.clone(),
            size,
            work,
            stored,
            detail: Some(detail),
            opens_watch,
            spool: None,
            stdin,
            written: [0, 0],
        };
        self.bytes += size;
        self.jobs.insert(id.clone(), job);
        if let Some(NotStarted { code, why }) = fault {
            self.finish(&id, None, Some(Outcome::Unstartable { code, why }.into()));
            return;
        }
        match work {
            Work::Inline(function) => {
                let answer = function(&self.parts.builtins, &command);
                self.answer(&id, answer);
            }
            Work::Control(
                JobControl::ProcessStats | JobControl::ProcessesStats | JobControl::Get | JobControl::Follow,
            )
            | Work::Threaded(_)
            | Work::Execute
            | Work::Prepared => {
                let actions = match persisted {
                    Some(persisted) if held => {
                        self.scheduler.hold(&id, rules, persisted);
                        Vec::new()
                    }
                    Some(persisted) => self.scheduler.restore(&id, rules, persisted, now),
                    None => self.scheduler.accept(&id, rules, now),
                };
                self.actions.extend(actions);
                self.release_memory(&id);
            }
            Work::Control(control) => self.control(control, &id, &command),
        }
    }

    pub(super) fn detail_of(&self, command: Command, args: RunArgs) -> Arc<Detail> {
        let source = Arc::new(self.source(&command, &args));
        Arc::new(Detail { command: Arc::new(command), args, source })
    }

    /// Lets go of what a job that has no run does not need.
    pub(super) fn release_memory(&mut self, id: &Arc<str>) {
        if self.scheduler.run_of(id).is_none()
            && let Some(job) = self.jobs.get_mut(id).filter(|job| job.stored)
        {
            job.detail = None;
        }
    }

    /// The larger part of a job, from memory or from the job store.
    pub(super) fn detail(&self, id: &Arc<str>) -> Option<Arc<Detail>> {
        let job = self.jobs.get(id)?;
        if let Some(detail) = &job.detail {
            return Some(detail.clone());
        }
        let fresh = self.writes.iter().find_map(|write| match write {
            JobUpdate::Accept { id: accepted, command, .. } if *accepted == **id => Some(command.clone()),
            _ => None,
        });
        let text = match fresh {
            Some(text) => Ok(Some(text)),
            None => self.parts.job_store.command(id),
        };
        let read = text.and_then(|text| {
            let command = Command::parse(text.context("it is not there")?.as_bytes())?;
            let args = match job.work.is_process() {
                true => RunArgs::parse(&command.args).map_err(anyhow::Error::msg)?,
                false => RunArgs::default(),
            };
            Ok(self.detail_of(command, args))
        });
        read.inspect_err(|fault| log::error!("job {id} cannot be read from the job store: {fault:#}")).ok()
    }

    /// Returns a substitute for a command that cannot be read any more, so that its client gets an answer.
    pub(super) fn detail_of_lost(&self, id: &str) -> Option<Arc<Detail>> {
        Some(self.detail_of(self.lost(id)?, RunArgs::default()))
    }

    fn lost(&self, id: &str) -> Option<Command> {
        let node = self.parts.config.main.node();
        Command::from_value(json!({"id": id, "gid": node.gid, "nid": node.nid, "cmd": "execute", "args": {}})).ok()
    }

    pub(super) fn work(&self, command: &Command) -> Result<Work, String> {
        match commands::lookup(&command.cmd) {
            Some(Kind::Inline(function)) => Ok(Work::Inline(function)),
            Some(Kind::Threaded(function)) => Ok(Work::Threaded(function)),
            Some(Kind::Supervisor(control)) => Ok(Work::Control(control)),
            None if command.cmd == "execute" => Ok(Work::Execute),
            None if script::is_script(&command.cmd) => Ok(Work::Prepared),
            None if self.parts.config.extensions.contains_key(&command.cmd) => Ok(Work::Execute),
            None => Err(format!("unknown command '{}'", command.cmd)),
        }
    }

    /// Returns the process of a command that needs no preparation: `execute` or an extension.
    pub(super) fn process(&self, command: &Command) -> Result<process_tree::Spec, String> {
        match self.parts.config.extensions.get(&command.cmd) {
            Some(known) if command.cmd != "execute" => extension(known, command, &self.path_vars),
            _ => spawn::execute(&command.args, &command.data, &self.path_vars),
        }
    }

    pub(super) fn source(&self, command: &Command, args: &RunArgs) -> JobLabel {
        let logging = &self.parts.config.logging;
        let levels = args.levels.unwrap_or(LevelSet::ALL);
        JobLabel {
            jobid: command.id.clone(),
            domain: args.domain.clone(),
            name: args.name.clone(),
            db: levels.and(args.levels_db.unwrap_or(logging.db.levels)),
            ac: levels.and(args.levels_ac.unwrap_or(logging.ac.levels)),
            stats_interval: args.stats_interval,
        }
    }

    /// At the agent's start: begins to end what is left of its last life, and takes up what is remembered.
    /// A job of which processes live is held until they have ended.
    pub(super) fn restore(&mut self) -> Result<()> {
        let rows = self.parts.job_store.live().context("cannot read the jobs that are remembered")?;
        let started = |row: &&Row| matches!(row.state, JobState::Started | JobState::Killing | JobState::FinalRun);
        let left: Vec<leftovers::Leftover> = rows.iter().filter(started).map(|row| self.leftover(row)).collect();
        let groups = self.cgroups.as_ref().map(Cgroups::reader);
        let left = leftovers::living(left, groups.as_ref());
        let held: HashSet<String> = left.iter().map(|leftover| leftover.mark.job.clone()).collect();
        if !left.is_empty() {
            let sender = self.remote.sender.clone();
            let cleared = move |leftover: &leftovers::Leftover| {
                let (id, group) = (leftover.mark.job.clone(), leftover.group.clone());
                let _ = sender.send(Message::Cleared { id, group });
            };
            leftovers::end(left, groups, &self.parts.config.main.data_dir, cleared)
                .context("no thread to end what an earlier agent has left")?;
        }
        if let Some(cgroups) = &self.cgroups {
            cgroups.clear();
        }
        if let Some(damage) = self.parts.job_store.damage() {
            log::error!("{damage}");
            let logging = &self.parts.config.logging;
            let source = Arc::new(JobLabel::of_job_store(logging.db.levels, logging.ac.levels));
            self.parts.outlets.write(&source, level::CRITICAL, damage);
            let data = json!({"message": damage});
            self.after_commit.push(AfterCommit::Tell(Notice::Event { controller: None, name: "critical", data }));
        }
        let startup = self.parts.config.startup.clone();
        let killed = |row: &&Row| matches!(row.state, JobState::Killing | JobState::FinalRun);
        self.killed_before = rows.iter().filter(killed).map(|row| row.id.clone()).collect();
        for row in rows {
            if row.controller.is_empty() || startup.contains_key(&row.id) {
                // Taken up anew below, or gone from the configuration; not before its processes have ended.
                if held.contains(&row.id) {
                    self.held_startup.insert(row.id);
                } else if !startup.contains_key(&row.id) {
                    self.writes.push(JobUpdate::Finish { id: row.id, result: None, deferred_sync: false });
                }
                continue;
            }
            let persisted = PersistedJob { state: row.state, started: row.started, reported: row.reported };
            match Command::parse(row.command.as_bytes()) {
                Ok(command) => {
                    self.register(
                        &row.controller.as_str().into(),
                        command,
                        row.command.len(),
                        Some(persisted),
                        held.contains(&row.id),
                    );
                }
                Err(fault) => {
                    log::error!("the job store's job {} cannot be read and ends: {fault}", row.id);
                    let result = self.lost(&row.id).and_then(|command| {
                        let why = "its command cannot be read from the node's job store";
                        serde_json::to_string(&JobResult::unrun(&command, State::Error, why)).ok()
                    });
                    self.writes.push(JobUpdate::Finish { id: row.id, result, deferred_sync: false });
                    self.after_commit.push(AfterCommit::Tell(Notice::Result { controller: row.controller }));
                }
            }
        }
        for name in startup.keys().filter(|name| !held.contains(*name)) {
            self.accept_startup(name);
        }
        self.killed_before = HashSet::new();
        self.event(Event::Tick);
        Ok(())
    }

    fn accept_startup(&mut self, name: &str) {
        let Some(startup) = self.parts.config.startup.get(name) else { return };
        let node = self.parts.config.main.node();
        let command = json!({"id": name, "gid": node.gid, "nid": node.nid, "cmd": startup.cmd,
            "args": startup.args, "data": startup.data});
        match Command::from_value(command) {
            Ok(command) => self.accept(&"".into(), command),
            Err(fault) => log::error!("startup job {name} is not started: {fault}"),
        }
    }

    /// Goes on with a job of which nothing of an earlier agent lives any more.
    pub(super) fn cleared(&mut self, id: String, group: String) {
        self.emptied.push(group);
        match self.held_startup.remove(&id) {
            false => self.event(Event::Cleared { id }),
            true if self.parts.config.startup.contains_key(&id) => self.accept_startup(&id),
            true => self.writes.push(JobUpdate::Finish { id, result: None, deferred_sync: false }),
        }
    }

    pub(super) fn leftover(&self, row: &Row) -> leftovers::Leftover {
        let args = Command::parse(row.command.as_bytes()).ok().and_then(|command| RunArgs::parse(&command.args).ok());
        leftovers::Leftover {
            group: group_name(&row.id, row.started),
            mark: JobTag { home: self.home.clone(), job: row.id.clone(), start: row.started },
            stop_signal: args.as_ref().map_or(Signal::TERM, |args| args.stop_signal),
            stop_timeout: args.map_or(Duration::from_secs(5), |args| args.stop_timeout),
        }
    }
}
