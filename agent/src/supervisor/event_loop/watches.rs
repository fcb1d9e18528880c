//! Watches of jobs: opened with a job or by `attach`, and ended with the job; and what clients give to their stdin.

use super::control::no_job;
use super::{Actor, Job};
use crate::commands::Answer;
use crate::script;
use crate::stdin::Stdin;
use crate::stream::{From, Position, Spool, Streams};
use crate::supervisor::job_commands;
use jscommon::Command;
use serde_json::{Value, json};
use std::sync::Arc;

impl Actor {
    fn streams(&self) -> Option<&Arc<Streams>> {
        self.parts.builtins.streams.as_ref()
    }

    /// Returns the controller of a job; nothing for a startup job.
    pub(super) fn controller_of(&self, id: &str) -> Arc<str> {
        self.jobs.get(id).map_or_else(|| "".into(), |job| job.controller.clone())
    }

    /// Whether a command is a process that asks for a watch, which no earlier agent has opened.
    pub(super) fn wants_watch(&self, controller: &str, command: &Command) -> bool {
        command.args.get("stream") == Some(&Value::Bool(true))
            && (command.cmd == "execute" || script::is_script(&command.cmd))
            && !controller.is_empty()
            && self.streams().is_some_and(|streams| !streams.is_resumed(&command.id))
    }

    /// Opens the watch that a job asked for, with its first run.
    pub(super) fn open_watch(&mut self, id: &Arc<str>) {
        if !self.jobs.get(id).is_some_and(|job| job.opens_watch) {
            return;
        }
        let (Some(detail), Some(streams)) = (self.detail(id), self.streams().cloned()) else { return };
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.opens_watch = false;
        let spool = job.spool.get_or_insert_with(|| new_spool(&streams, id, [0, 0], job.stdin.as_ref()));
        if let Err(why) = streams.watch(spool, &job.controller, &detail.command, From::Position([0, 0])) {
            log::warn!("job {id} runs without a watch: {why}");
            job.spool = None;
        }
    }

    /// Ends the watches of a job that is over.
    pub(super) fn close_watches(&self, job: &Job) {
        if let (Some(spool), Some(streams)) = (&job.spool, self.streams()) {
            streams.end(spool.clone());
        }
    }

    /// `attach`: opens a watch on a job that runs or waits, or on what is left of one that has ended.
    pub(super) fn attach(&mut self, id: &Arc<str>, command: &Command) -> Answer {
        let (target, from) = job_commands::attach(command)?;
        let streams = self.streams().cloned().ok_or("this agent sends no live output")?;
        let spool = match self.jobs.get(target.as_str()) {
            Some(job) if !job.work.is_process() => {
                return Err(format!("job {target} is a built-in command and has no output"));
            }
            Some(_) => self.spool_of(&target, &streams),
            None => streams.ended(&target),
        };
        let spool = spool.ok_or_else(|| {
            format!(
                "job {target} has no spool: nobody watched it, or it ended more than an hour ago, or it never was here"
            )
        })?;
        let position = streams.watch(&spool, &self.controller_of(id), command, from)?;
        Ok(json!({ "from": position }))
    }

    /// Returns the spool of a job, which begins here where it has none.
    fn spool_of(&mut self, target: &str, streams: &Streams) -> Option<Arc<Spool>> {
        let run = self.scheduler.run_of(target).and_then(|run| self.runs.get(&run));
        let capture = run.and_then(|run| run.capture.clone());
        let job = self.jobs.get_mut(target)?;
        if job.spool.is_none() {
            let before = job.written;
            let make = |bytes: [u64; 2]| {
                new_spool(streams, target, [before[0] + bytes[0], before[1] + bytes[1]], job.stdin.as_ref())
            };
            job.spool = Some(match capture {
                Some(capture) => capture.attach_spool(make),
                None => make([0, 0]),
            });
        }
        job.spool.clone()
    }

    /// `input`: gives a piece to the stdin of a job.
    pub(super) fn input(&self, command: &Command) -> Answer {
        let (target, piece) = job_commands::input(command)?;
        let (have, room) = self.stdin_of(&target)?.give(&piece).map_err(|why| format!("job {target} {why}"))?;
        Ok(json!({"have": have, "room": room}))
    }

    /// `resize`: sets the size of a job's terminal.
    pub(super) fn resize(&self, command: &Command) -> Answer {
        let (target, size) = job_commands::resize(command)?;
        self.stdin_of(&target)?.resize(size).map_err(|why| format!("job {target} {why}"))?;
        Ok(json!({"rows": size.rows, "cols": size.columns}))
    }

    fn stdin_of(&self, target: &str) -> Result<&Arc<Stdin>, String> {
        let job = self.jobs.get(target).ok_or_else(|| no_job(target))?;
        job.stdin
            .as_ref()
            .ok_or_else(|| format!("job {target} has no open stdin: its command has neither stdin \"open\" nor tty"))
    }
}

/// Makes the spool of a job. Once its last watch has lapsed, nobody is there to give input either.
fn new_spool(streams: &Streams, job: &str, position: Position, stdin: Option<&Arc<Stdin>>) -> Arc<Spool> {
    let stdin = stdin.map(Arc::downgrade);
    let lapsed = stdin.map(|stdin| -> Box<dyn Fn() + Send + Sync> {
        Box::new(move || {
            if let Some(stdin) = stdin.upgrade() {
                stdin.end();
            }
        })
    });
    streams.spool(job, position, lapsed)
}
