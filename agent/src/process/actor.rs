//! The supervisor's thread: one inbox, one deadline, one commit for whatever lay in the inbox.
//!
//! Each turn takes what is in the inbox, asks the policy, and collects what it orders. Signals go out at
//! once. What must not happen before the disk knows of it (starts, answers to pollers, news of results)
//! is held until the commit; when that fails (a full disk), it stays held, the commit is tried again
//! each second, and nothing more is accepted meanwhile. So nothing runs that a restart would not know.

use super::args::RunArgs;
use super::extension::extension;
use super::policy::{Action, Event, Memory, Now, Outcome, Place, Policy};
use super::{Message, Notice, Parts, ProcessEntry, Remote, View, answer, leftovers, spawn, tree};
use crate::builtin::{self, Answer, JobControl, Kind};
use crate::ledger::{Row, Standing, Write};
use crate::os::{self, Cgroups, Children, Mark, Signal};
use crate::output::{self, Capture, Captured, Source};
use crate::script;
use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jscommon::worker::Worker;
use jscommon::{Command, LevelSet, State, death, level};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Messages of one turn, and so of one commit.
const TURN: usize = 1000;
/// Threads of one kind of work at one time; more of it waits.
const THREADS: usize = 8;
/// Time between two tries of a commit that failed.
const RETRY: Duration = Duration::from_secs(1);
/// When the agent stops and the disk takes nothing, how long it is tried on.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// Everything about a job that the policy does not need.
struct Job {
    /// Empty for a startup job.
    controller: Arc<str>,
    work: Work,
    /// Kept while the job has a run; one that waits is read from the ledger again, so that thousands
    /// of them cost the disk and not the memory.
    detail: Option<Arc<Detail>>,
}

/// The larger part of a job.
struct Detail {
    command: Arc<Command>,
    args: RunArgs,
    source: Arc<Source>,
}

#[derive(Clone, Copy)]
enum Work {
    Execute,
    /// Made ready on a thread, before each run: a script may have to be fetched.
    Prepared,
    Inline(builtin::Function),
    Threaded(builtin::Function),
    Control(JobControl),
}

impl Work {
    fn is_process(self) -> bool {
        matches!(self, Work::Execute | Work::Prepared)
    }
}

/// A run that was started.
struct Run {
    id: Arc<str>,
    /// When, in milliseconds since 1970, as the ledger has it.
    at: i64,
    since: Instant,
    pid: u32,
    reaped: bool,
    capture: Option<Arc<Capture>>,
    mark: Option<Mark>,
    /// Its cgroup, where it has one.
    group: Option<String>,
    known: Vec<(u32, u64)>,
    answer: Option<Answer>,
}

/// A `kill` or `killall` that is answered once these runs are over.
struct Waiting {
    id: String,
    runs: BTreeSet<u64>,
    answer: Value,
}

/// What is done once the ledger has it.
enum Held {
    Stored(Sender<()>),
    Start { id: Arc<str>, run: u64, at: i64 },
    Tell(Notice),
}

/// Work on threads of its own, so many at one time. Commands and the preparation of scripts have one
/// each: a controller that is slow to give a script must not hold up a built-in command.
#[derive(Default)]
struct Threads {
    waiting: VecDeque<Task>,
    running: usize,
}

struct Task {
    /// Does it, or says why it could not be done.
    work: Box<dyn FnOnce() -> Message + Send>,
    /// The answer where no thread can be had or the work panics.
    failed: Message,
}

impl Threads {
    fn add(&mut self, task: Task, sender: &Sender<Message>) {
        self.waiting.push_back(task);
        self.start(sender);
    }

    fn ended(&mut self, sender: &Sender<Message>) {
        self.running -= 1;
        self.start(sender);
    }

    fn start(&mut self, sender: &Sender<Message>) {
        while self.running < THREADS
            && let Some(Task { work, failed }) = self.waiting.pop_front()
        {
            self.running += 1;
            // Whatever becomes of the thread, this is dropped, and one answer is given.
            let mut answer = LastWord { sender: sender.clone(), message: Some(failed) };
            let started = Worker::spawn("builtin", 256 * 1024, move || answer.say(work()));
            match started {
                Ok(worker) => worker.detach(),
                Err(fault) => log::error!("no thread for a command: {fault}"),
            }
        }
    }
}

/// Sends its message when it goes.
struct LastWord {
    sender: Sender<Message>,
    message: Option<Message>,
}

impl LastWord {
    fn say(&mut self, message: Message) {
        self.message = Some(message);
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            let _ = self.sender.send(message);
        }
    }
}

struct Actor {
    parts: Parts,
    remote: Remote,
    policy: Policy,
    children: Children,
    cgroups: Option<Cgroups>,
    places: spawn::Places,
    home: String,
    begin: Instant,
    jobs: HashMap<Arc<str>, Job>,
    runs: HashMap<u64, Run>,
    waiting: Vec<Waiting>,
    commands: Threads,
    preparations: Threads,
    actions: VecDeque<Action>,
    writes: Vec<Write>,
    held: Vec<Held>,
    /// Ids that were accepted and are not committed.
    fresh: HashSet<String>,
    retry: Option<Instant>,
    stopping: Option<Instant>,
}

/// Ends leftovers, restores what is remembered, and starts the thread.
pub(super) fn start(parts: Parts, remote: Remote, inbox: Receiver<Message>) -> Result<Worker> {
    let data_dir = &parts.config.main.data_dir;
    let tmp = data_dir.join("tmp");
    std::fs::create_dir_all(&tmp).with_context(|| format!("cannot make {}", tmp.display()))?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    let exited = remote.sender.clone();
    let children = Children::start(move |run, code| drop(exited.send(Message::Exited { run, code })))
        .context("cannot start the thread that waits for processes")?;
    let mut actor = Actor {
        policy: Policy::new(parts.config.main.max_jobs, seed),
        places: spawn::Places::new(data_dir),
        home: data_dir.to_string_lossy().into_owned(),
        children,
        cgroups: Cgroups::open(&data_dir.to_string_lossy()),
        remote,
        begin: Instant::now(),
        jobs: HashMap::new(),
        runs: HashMap::new(),
        waiting: Vec::new(),
        commands: Threads::default(),
        preparations: Threads::default(),
        actions: VecDeque::new(),
        writes: Vec::new(),
        held: Vec::new(),
        fresh: HashSet::new(),
        retry: None,
        stopping: None,
        parts,
    };
    actor.restore()?;
    Worker::spawn("supervisor", 512 * 1024, move || actor.run(&inbox)).context("cannot start the supervisor's thread")
}

impl Actor {
    fn run(mut self, inbox: &Receiver<Message>) {
        loop {
            self.flush();
            if self.is_over() {
                return;
            }
            let first = match self.deadline() {
                Some(deadline) => match inbox.recv_deadline(deadline) {
                    Ok(message) => Some(message),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                None => match inbox.recv() {
                    Ok(message) => Some(message),
                    Err(_) => return,
                },
            };
            for message in first.into_iter().chain(inbox.try_iter().take(TURN)) {
                self.receive(message);
            }
            let now = self.now();
            if self.policy.deadline().is_some_and(|deadline| deadline <= now.mono) {
                self.event(Event::Tick);
            }
        }
    }

    fn now(&self) -> Now {
        Now { mono: self.begin.elapsed().as_millis() as u64, wall: wall() }
    }

    fn deadline(&self) -> Option<Instant> {
        let policy = self.policy.deadline().map(|deadline| self.begin + Duration::from_millis(deadline));
        [policy, self.retry].into_iter().flatten().min()
    }

    /// Whether it was told to stop and has nothing left to do.
    fn is_over(&self) -> bool {
        self.stopping.is_some_and(|since| {
            let written = self.writes.is_empty() && self.held.is_empty();
            self.policy.is_idle() && (written || since.elapsed() > LAST_TRIES)
        })
    }

    fn event(&mut self, event: Event) {
        let now = self.now();
        self.actions.extend(self.policy.handle(event, now));
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Submit { controller, commands, stored } => self.submit(&controller, commands, stored),
            Message::Exited { run, code } => {
                death::point("agent.exited");
                if let Some(known) = self.runs.get_mut(&run) {
                    known.reaped = true;
                }
                self.event(Event::Exited { run, code });
            }
            Message::Drained { run } => self.event(Event::Drained { run }),
            Message::Prepared { run, spec } => {
                self.preparations.ended(&self.remote.sender);
                if self.policy.is_starting(run) {
                    match spec {
                        Ok(spec) => self.spawn(run, spec),
                        Err(why) => self.event(Event::Unstartable { run, why }),
                    }
                }
            }
            Message::Answered { run, answer } => {
                self.commands.ended(&self.remote.sender);
                if let Some(known) = self.runs.get_mut(&run) {
                    known.answer = Some(answer);
                    self.event(Event::Answered { run });
                }
            }
            Message::View { id, reply } => {
                let _ = reply.send(self.views(id.as_deref()));
            }
            Message::Stop => {
                self.stopping.get_or_insert_with(Instant::now);
                self.event(Event::Stop);
            }
        }
    }

    // Accepting.

    fn submit(&mut self, controller: &Arc<str>, commands: Vec<Command>, stored: Sender<()>) {
        death::point("agent.received");
        // Dropping `stored` unanswered tells the poller to acknowledge nothing.
        if self.stopping.is_some() || self.retry.is_some() {
            return;
        }
        for command in commands {
            let known = match self.jobs.contains_key(command.id.as_str()) || self.fresh.contains(&command.id) {
                true => Ok(true),
                false => self.parts.ledger.knows(&command.id),
            };
            match known {
                Ok(false) => self.accept(controller, command),
                Ok(true) => {
                    let data = json!({"id": command.id, "cmd": command.cmd});
                    let controller = Some(controller.to_string());
                    self.held.push(Held::Tell(Notice::Event { controller, name: "duplicate", data }));
                }
                Err(fault) => {
                    log::error!("cannot look a command up in the ledger, nothing is accepted: {fault:#}");
                    return;
                }
            }
        }
        self.held.push(Held::Stored(stored));
    }

    fn accept(&mut self, controller: &Arc<str>, command: Command) {
        let now = self.now();
        self.fresh.insert(command.id.clone());
        self.writes.push(Write::Accept {
            id: command.id.clone(),
            controller: controller.to_string(),
            command: command.to_value().to_string(),
            now: now.wall,
        });
        self.take_up(controller, command, None);
    }

    /// Finds out what a command is and hands it to the policy, or answers it at once.
    fn take_up(&mut self, controller: &Arc<str>, command: Command, memory: Option<Memory>) {
        let now = self.now();
        let id: Arc<str> = command.id.as_str().into();
        let work = self.work(&command);
        let args = match work {
            Ok(work) if work.is_process() => RunArgs::parse(&command.args),
            _ => RunArgs::parse(&serde_json::Map::new()),
        };
        let checked = work.and_then(|work| {
            let args = args?;
            if let Work::Execute = work {
                self.process(&command)?;
            }
            Ok((work, args))
        });
        let (work, args, fault) = match checked {
            Ok((work, args)) => (work, args, None),
            Err(why) => match RunArgs::parse(&serde_json::Map::new()) {
                Ok(args) => (Work::Execute, args, Some(why)),
                Err(_) => return,
            },
        };
        let rules = args.rules(work.is_process());
        let detail = self.detail_of(command, args);
        let command = detail.command.clone();
        let job = Job { controller: controller.clone(), work, detail: Some(detail) };
        self.jobs.insert(id.clone(), job);
        if let Some(why) = fault {
            self.finish(&id, None, Some(Outcome::Unstartable { why }), false, None);
            return;
        }
        match work {
            Work::Inline(function) => {
                let answer = function(&self.parts.builtins, &command);
                self.answer(&id, answer);
            }
            Work::Control(JobControl::ProcessStats | JobControl::ProcessesStats)
            | Work::Threaded(_)
            | Work::Execute
            | Work::Prepared => {
                let actions = match memory {
                    Some(memory) => self.policy.restore(&id, rules, memory, now),
                    None => self.policy.accept(&id, rules, now),
                };
                self.actions.extend(actions);
                self.let_rest(&id);
            }
            Work::Control(control) => self.control(control, &id, &command),
        }
    }

    fn detail_of(&self, command: Command, args: RunArgs) -> Arc<Detail> {
        let source = Arc::new(self.source(&command, &args));
        Arc::new(Detail { command: Arc::new(command), args, source })
    }

    /// Lets go of what a job that has no run does not need.
    fn let_rest(&mut self, id: &Arc<str>) {
        if self.policy.run_of(id).is_none()
            && let Some(job) = self.jobs.get_mut(id)
        {
            job.detail = None;
        }
    }

    /// The larger part of a job, from memory or from the ledger.
    fn detail(&self, id: &Arc<str>) -> Option<Arc<Detail>> {
        let job = self.jobs.get(id)?;
        if let Some(detail) = &job.detail {
            return Some(detail.clone());
        }
        let fresh = self.writes.iter().find_map(|write| match write {
            Write::Accept { id: accepted, command, .. } if *accepted == **id => Some(command.clone()),
            _ => None,
        });
        let text = match fresh {
            Some(text) => Ok(Some(text)),
            None => self.parts.ledger.command(id),
        };
        let read = text.and_then(|text| {
            let command = Command::parse(text.context("it is not there")?.as_bytes())?;
            let none = serde_json::Map::new();
            let args = RunArgs::parse(if job.work.is_process() { &command.args } else { &none });
            Ok(self.detail_of(command, args.map_err(anyhow::Error::msg)?))
        });
        read.inspect_err(|fault| log::error!("job {id} cannot be read from the ledger: {fault:#}")).ok()
    }

    fn work(&self, command: &Command) -> Result<Work, String> {
        match builtin::lookup(&command.cmd) {
            Some(Kind::Inline(function)) => Ok(Work::Inline(function)),
            Some(Kind::Threaded(function)) => Ok(Work::Threaded(function)),
            Some(Kind::Supervisor(control)) => Ok(Work::Control(control)),
            None if command.cmd == "execute" => Ok(Work::Execute),
            None if script::is_script(&command.cmd) => Ok(Work::Prepared),
            None if self.parts.config.extensions.contains_key(&command.cmd) => Ok(Work::Execute),
            None => Err(format!("unknown command '{}'", command.cmd)),
        }
    }

    /// What to start for a command that needs nothing made ready: `execute` or an extension.
    fn process(&self, command: &Command) -> Result<spawn::Spec, String> {
        match self.parts.config.extensions.get(&command.cmd) {
            Some(known) if command.cmd != "execute" => extension(known, command, &self.places),
            _ => spawn::execute(command, &self.places),
        }
    }

    fn source(&self, command: &Command, args: &RunArgs) -> Source {
        let logging = &self.parts.config.logging;
        let levels = args.levels.unwrap_or(LevelSet::ALL);
        Source {
            jobid: command.id.clone(),
            domain: args.domain.clone(),
            name: args.name.clone(),
            db: levels.and(args.levels_db.unwrap_or(logging.db.levels)),
            ac: levels.and(args.levels_ac.unwrap_or(logging.ac.levels)),
            stats_interval: args.stats_interval,
        }
    }

    /// At the agent's start: ends what is left of its last life and takes up what is remembered.
    fn restore(&mut self) -> Result<()> {
        let rows = self.parts.ledger.live().context("cannot read the jobs that are remembered")?;
        let started = |row: &&Row| matches!(row.standing, Standing::Started | Standing::Ending | Standing::Last);
        let left: Vec<leftovers::Leftover> = rows.iter().filter(started).map(|row| self.leftover(row)).collect();
        leftovers::end(&left, self.cgroups.as_ref());
        if let Some(damage) = self.parts.ledger.damage() {
            log::error!("{damage}");
            let source = Arc::new(self.own_source());
            self.parts.outlets.write(&source, level::CRITICAL, damage);
            let data = json!({"message": damage});
            self.held.push(Held::Tell(Notice::Event { controller: None, name: "critical", data }));
        }
        let startup = self.parts.config.startup.clone();
        for row in rows {
            if row.controller.is_empty() || startup.contains_key(&row.id) {
                // Taken up anew below, or gone from the configuration.
                if !startup.contains_key(&row.id) {
                    self.writes.push(Write::Finish { id: row.id, result: None });
                }
                continue;
            }
            let memory = Memory { standing: row.standing, started: row.started, reported: row.reported };
            match Command::parse(row.command.as_bytes()) {
                Ok(command) => self.take_up(&row.controller.as_str().into(), command, Some(memory)),
                Err(fault) => {
                    log::error!("the ledger's job {} cannot be read and is dropped: {fault}", row.id);
                    self.writes.push(Write::Finish { id: row.id, result: None });
                }
            }
        }
        let node = self.parts.config.main.node();
        for (name, startup) in startup {
            let command = json!({"id": name, "gid": node.gid, "nid": node.nid, "cmd": startup.cmd,
                "args": startup.args, "data": startup.data});
            match Command::from_value(command) {
                Ok(command) => self.accept(&"".into(), command),
                Err(fault) => log::error!("startup job {name} is not started: {fault}"),
            }
        }
        self.event(Event::Tick);
        Ok(())
    }

    fn leftover(&self, row: &Row) -> leftovers::Leftover {
        let args = Command::parse(row.command.as_bytes()).ok().and_then(|command| RunArgs::parse(&command.args).ok());
        leftovers::Leftover {
            group: group_name(&row.id, row.started),
            mark: Mark { home: self.home.clone(), job: row.id.clone(), start: row.started },
            stop_signal: args.as_ref().map_or(Signal::TERM, |args| args.stop_signal),
            stop_timeout: args.map_or(Duration::from_secs(5), |args| args.stop_timeout),
        }
    }

    fn own_source(&self) -> Source {
        let logging = &self.parts.config.logging;
        let (db, ac) = (logging.db.levels, logging.ac.levels);
        Source { jobid: String::new(), domain: "agent".into(), name: "ledger".into(), db, ac, stats_interval: None }
    }

    // Doing.

    /// Performs what was ordered until nothing more follows from it.
    fn flush(&mut self) {
        loop {
            self.perform();
            if self.retry.is_some_and(|retry| retry > Instant::now()) {
                return;
            }
            let committed = self.parts.ledger.commit(&self.writes);
            if let Err(fault) = committed {
                if self.retry.is_none() {
                    log::error!("the ledger takes nothing, so nothing starts until it does: {fault:#}");
                    let data = json!({"message": format!("the ledger takes nothing: {fault:#}")});
                    (self.parts.notify)(Notice::Event { controller: None, name: "critical", data });
                }
                self.retry = Some(Instant::now() + RETRY);
                return;
            }
            if self.retry.take().is_some() {
                log::info!("the ledger takes changes again");
            }
            let passed = |wanted: fn(&Write) -> bool| self.writes.iter().any(wanted);
            if passed(|write| matches!(write, Write::Accept { .. })) {
                death::point("agent.stored");
            }
            if passed(|write| matches!(write, Write::Finish { .. } | Write::Report { .. })) {
                death::point("agent.done");
            }
            self.writes.clear();
            self.fresh.clear();
            if self.held.is_empty() && self.actions.is_empty() {
                return;
            }
            for held in std::mem::take(&mut self.held) {
                self.release(held);
            }
        }
    }

    fn release(&mut self, held: Held) {
        match held {
            Held::Stored(stored) => drop(stored.send(())),
            Held::Start { id, run, at } => self.begin_run(&id, run, at),
            Held::Tell(notice) => (self.parts.notify)(notice),
        }
    }

    fn perform(&mut self) {
        while !self.actions.is_empty() {
            // One look at all processes serves every tree that is being ended.
            let mut trees = Vec::new();
            for action in std::mem::take(&mut self.actions) {
                match action {
                    Action::Start { id, run, at } => {
                        self.writes.push(Write::Start { id: id.to_string(), started: at });
                        self.held.push(Held::Start { id, run, at });
                    }
                    Action::Term { .. } | Action::Probe { .. } | Action::Kill { .. } => trees.push(action),
                    Action::Stand { id, standing } => {
                        self.writes.push(Write::Stand { id: id.to_string(), standing });
                    }
                    Action::RunOver { run, .. } => drop(self.run_over(run)),
                    Action::Report { id, run, outcome, sparing, alert } => {
                        self.report(&id, run, outcome, sparing, alert);
                    }
                    Action::Finish { id, run, outcome, sparing, alert } => {
                        self.finish(&id, run, outcome, sparing, alert);
                    }
                }
            }
            if !trees.is_empty() {
                self.tend_trees(trees);
            }
        }
    }

    fn begin_run(&mut self, id: &Arc<str>, run: u64, at: i64) {
        if !self.policy.is_starting(run) {
            return;
        }
        let detail = self.detail(id);
        let Some(job) = self.jobs.get_mut(id) else { return };
        let (Some(detail), work) = (detail, job.work) else {
            return self.event(Event::Unstartable { run, why: "its command cannot be read from the ledger".into() });
        };
        job.detail = Some(detail.clone());
        let command = detail.command.clone();
        self.runs.insert(
            run,
            Run {
                id: id.clone(),
                at,
                since: Instant::now(),
                pid: 0,
                reaped: true,
                capture: None,
                mark: None,
                group: None,
                known: Vec::new(),
                answer: None,
            },
        );
        let context = self.parts.builtins.clone();
        match work {
            Work::Execute => match self.process(&command) {
                Ok(spec) => self.spawn(run, spec),
                Err(why) => self.event(Event::Unstartable { run, why }),
            },
            Work::Prepared => {
                let failed = Message::Prepared { run, spec: Err("the agent could not prepare it, see its log".into()) };
                let work = Box::new(move || Message::Prepared { run, spec: script::prepare(&context, &command) });
                self.preparations.add(Task { work, failed }, &self.remote.sender);
            }
            Work::Threaded(function) | Work::Inline(function) => {
                self.event(Event::Spawned { run });
                self.answer_later(run, move || function(&context, &command));
            }
            Work::Control(control) => {
                self.event(Event::Spawned { run });
                let remote = self.remote.clone();
                self.answer_later(run, move || match control {
                    JobControl::ProcessStats => builtin::jobs::process_stats(&remote, &command),
                    _ => builtin::jobs::processes_stats(&remote, &command),
                });
            }
        }
    }

    fn spawn(&mut self, run: u64, spec: spawn::Spec) {
        let Some(known) = self.runs.get_mut(&run) else { return };
        let Some((job, detail)) = self.jobs.get(&known.id).and_then(|job| Some((job, job.detail.as_ref()?))) else {
            return;
        };
        let mark = Mark { home: self.home.clone(), job: known.id.to_string(), start: known.at };
        let config = &self.parts.config;
        let spawned = spawn::start(&self.children, run, spec, &detail.args, &mark, &job.controller, config);
        let child = match spawned {
            Ok(child) => child,
            Err(why) => return self.event(Event::Unstartable { run, why }),
        };
        death::point("agent.spawned");
        known.pid = child.pid;
        known.reaped = false;
        known.since = Instant::now();
        if let Some(cgroups) = self.cgroups.as_mut().filter(|_| detail.args.long) {
            let group = group_name(&known.id, known.at);
            cgroups.adopt(&group, child.pid);
            known.group = Some(group);
        }
        known.mark = Some(mark);
        self.parts.outlets.stats.job_started(&detail.source);
        let drained = self.remote.sender.clone();
        let ended = move || drop(drained.send(Message::Drained { run }));
        let attached = match (child.stdout, child.stderr) {
            (Some(out), Some(err)) => output::attach(&detail.source, out, err, &self.parts.outlets, ended),
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
        self.event(Event::Spawned { run });
    }

    /// Gives an answer to a run from a thread of its own.
    fn answer_later(&mut self, run: u64, work: impl FnOnce() -> Answer + Send + 'static) {
        let failed = Message::Answered { run, answer: Err("the agent could not do it, see its log".into()) };
        let work = Box::new(move || Message::Answered { run, answer: work() });
        self.commands.add(Task { work, failed }, &self.remote.sender);
    }

    /// Signals trees and looks whether anything of them lives.
    fn tend_trees(&mut self, actions: Vec<Action>) {
        let roots: Vec<tree::Root> = self.runs.iter().filter_map(|(run, known)| root(*run, known)).collect();
        let processes = os::processes();
        let mut trees = tree::trees(&processes, std::process::id(), &roots, os::mark);
        for action in actions {
            let (Action::Term { run, .. } | Action::Probe { run, .. } | Action::Kill { run, .. }) = &action else {
                continue;
            };
            let run = *run;
            let Some(known) = self.runs.get_mut(&run) else { continue };
            let mut members = trees.remove(&run).unwrap_or_default();
            if let (Some(cgroups), Some(group)) = (&self.cgroups, &known.group) {
                tree::join(&mut members, &processes, &cgroups.members(group));
            }
            known.known = members.iter().map(|member| (member.pid, member.started)).collect();
            let signal = match action {
                Action::Term { .. } => {
                    self.jobs.get(&known.id).and_then(|job| Some(job.detail.as_ref()?.args.stop_signal))
                }
                Action::Kill { .. } => Some(Signal::KILL),
                _ => None,
            };
            if let Some(signal) = signal {
                self.children.signal_tree(run, known.pid, &members, signal);
            }
            if !matches!(action, Action::Term { .. }) {
                self.event(Event::Tree { run, alive: members.len() });
            }
        }
    }

    // Ends.

    fn run_over(&mut self, run: u64) -> Option<Run> {
        let known = self.runs.remove(&run);
        if let Some(known) = &known
            && known.pid != 0
            && let Some(detail) = self.jobs.get(&known.id).and_then(|job| job.detail.as_ref())
        {
            self.parts.outlets.stats.job_ended(&detail.source);
        }
        if let (Some(cgroups), Some(group)) = (&self.cgroups, known.as_ref().and_then(|known| known.group.as_ref())) {
            cgroups.release(group);
        }
        for waiting in &mut self.waiting {
            waiting.runs.remove(&run);
        }
        self.answer_waiting();
        known
    }

    fn report(&mut self, id: &Arc<str>, run: u64, outcome: Outcome, sparing: bool, alert: Option<String>) {
        let Some((json, quiet, started)) = self.conclude(id, Some(run), outcome, sparing, alert) else { return };
        let Some(job) = self.jobs.get(id) else { return };
        if !job.controller.is_empty() {
            self.writes.push(Write::Report { id: id.to_string(), started, result: json, quiet });
            let controller = job.controller.to_string();
            self.held.push(Held::Tell(Notice::Result { controller }));
        }
        self.let_rest(id);
    }

    fn finish(
        &mut self,
        id: &Arc<str>,
        run: Option<u64>,
        outcome: Option<Outcome>,
        sparing: bool,
        alert: Option<String>,
    ) {
        let concluded = outcome.and_then(|outcome| self.conclude(id, run, outcome, sparing, alert));
        let Some(job) = self.jobs.remove(id) else { return };
        let result = concluded.map(|(json, ..)| json).filter(|_| !job.controller.is_empty());
        if result.is_some() {
            let controller = job.controller.to_string();
            self.held.push(Held::Tell(Notice::Result { controller }));
        }
        self.writes.push(Write::Finish { id: id.to_string(), result });
    }

    /// Makes the result of a run that is over, and the records and events that go with it.
    fn conclude(
        &mut self,
        id: &Arc<str>,
        run: Option<u64>,
        outcome: Outcome,
        sparing: bool,
        alert: Option<String>,
    ) -> Option<(String, bool, i64)> {
        let known = run.and_then(|run| self.run_over(run));
        let detail = self.detail(id)?;
        let job = self.jobs.get(id)?;
        let started = match (&known, &outcome) {
            (Some(known), _) => known.at,
            (None, Outcome::Died { at }) => *at,
            (None, _) => wall(),
        };
        let captured =
            known.as_ref().and_then(|known| known.capture.as_ref()).map_or_else(Captured::default, |c| c.snapshot());
        if let Some(alert) = &alert {
            self.parts.outlets.write(&detail.source, level::CRITICAL, alert);
        }
        let ended = answer::Ended {
            outcome,
            captured,
            time: known.as_ref().map_or(0, |known| known.since.elapsed().as_millis() as u64),
            answer: known.and_then(|known| known.answer),
            alert: alert.clone(),
            started,
            sparing,
        };
        let result = answer::result(&detail.command, self.parts.config.main.node(), ended);
        let json = serde_json::to_string(&result).unwrap_or_default();
        if job.work.is_process() {
            self.parts.outlets.write(&detail.source, level::JOB, &json);
        }
        let controller = (!job.controller.is_empty()).then(|| job.controller.to_string());
        if let Some(alert) = alert {
            let data = json!({"id": **id, "message": alert});
            self.held.push(Held::Tell(Notice::Event { controller: controller.clone(), name: "critical", data }));
        } else if controller.is_none() && result.state != State::Ok && self.stopping.is_none() {
            let data = json!({"id": **id, "state": result.state, "code": result.code, "message": result.data});
            self.held.push(Held::Tell(Notice::Event { controller: None, name: "job_failed", data }));
        }
        Some((json, result.quiet, started))
    }

    /// Finishes a command that has its answer.
    fn answer(&mut self, id: &Arc<str>, answer: Answer) {
        // A run that never was a process carries the answer to where results are made.
        let run = u64::MAX;
        self.runs.insert(
            run,
            Run {
                id: id.clone(),
                at: wall(),
                since: Instant::now(),
                pid: 0,
                reaped: true,
                capture: None,
                mark: None,
                group: None,
                known: Vec::new(),
                answer: Some(answer),
            },
        );
        self.finish(id, Some(run), Some(Outcome::Answered), false, None);
    }

    // The commands that concern jobs.

    fn control(&mut self, control: JobControl, id: &Arc<str>, command: &Command) {
        let answer = match control {
            JobControl::Kill => match builtin::jobs::target(command) {
                Ok(target) => match self.policy.has(&target) {
                    true => {
                        let runs = self.policy.run_of(&target).into_iter().collect();
                        self.event(Event::Kill { id: target.clone() });
                        return self.wait_for(id, runs, json!({"killed": [target]}));
                    }
                    false => Err(no_job(&target)),
                },
                Err(why) => Err(why),
            },
            JobControl::KillAll => {
                let runs: BTreeSet<u64> = self.policy.process_runs().into_iter().collect();
                let ids: Vec<Value> =
                    runs.iter().filter_map(|run| self.runs.get(run)).map(|run| json!(*run.id)).collect();
                self.event(Event::KillAll);
                return self.wait_for(id, runs, json!({ "killed": ids }));
            }
            JobControl::Unschedule => {
                builtin::jobs::target(command).and_then(|target| match self.policy.has(&target) {
                    true => {
                        self.event(Event::Unschedule { id: target.clone() });
                        Ok(json!({"unscheduled": target}))
                    }
                    false => Err(no_job(&target)),
                })
            }
            JobControl::Signal => builtin::jobs::signal(command).and_then(|(target, signal)| {
                let run = self.policy.run_of(&target).and_then(|run| Some((run, self.runs.get(&run)?)));
                match run {
                    Some((run, known)) if self.children.signal_group(run, known.pid, signal) => {
                        Ok(json!({"id": target, "signal": signal.to_string()}))
                    }
                    _ if self.policy.has(&target) => Err(format!("job '{target}' has no process now")),
                    _ => Err(no_job(&target)),
                }
            }),
            JobControl::Restart => {
                self.held.push(Held::Tell(Notice::Restart));
                Ok(json!("restarting"))
            }
            JobControl::ProcessStats | JobControl::ProcessesStats => Err("not here".into()),
        };
        self.answer(id, answer);
    }

    fn wait_for(&mut self, id: &Arc<str>, runs: BTreeSet<u64>, answer: Value) {
        // What was ordered is looked through after this, so a run that is over by then is taken off.
        self.waiting.push(Waiting { id: id.to_string(), runs, answer });
        self.answer_waiting();
    }

    fn answer_waiting(&mut self) {
        let (done, waiting): (Vec<Waiting>, _) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.runs.is_empty());
        self.waiting = waiting;
        for waiting in done {
            self.answer(&waiting.id.as_str().into(), Ok(waiting.answer));
        }
    }

    fn views(&self, id: Option<&str>) -> Vec<View> {
        let ids: Vec<Arc<str>> = match id {
            Some(id) => self.jobs.keys().filter(|known| known.as_ref() == id).cloned().collect(),
            None => self.runs.values().filter(|run| run.pid != 0 && !run.reaped).map(|run| run.id.clone()).collect(),
        };
        let mut views: Vec<View> = ids.iter().filter_map(|id| self.view(id)).collect();
        views.sort_by(|a, b| (a.entry.starttime, &a.entry.id).cmp(&(b.entry.starttime, &b.entry.id)));
        views
    }

    fn view(&self, id: &Arc<str>) -> Option<View> {
        let job = self.detail(id)?;
        let (place, restarts) = self.policy.place_of(id)?;
        let number = self.policy.run_of(id);
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
            cpu: 0.0,
            rss: 0,
            vms: 0,
            read: 0,
            written: 0,
            processes: 0,
            starttime: run.map_or(0, |run| run.at),
            restarts,
            stats_interval: job.args.stats_interval.map(|interval| interval.as_secs()),
        };
        let root = number.zip(run).and_then(|(number, run)| root(number, run));
        Some(View { entry, root, since: run.map_or_else(Instant::now, |run| run.since) })
    }
}

fn root(run: u64, known: &Run) -> Option<tree::Root> {
    let mark = known.mark.clone()?;
    Some(tree::Root { run, pid: known.pid, reaped: known.reaped, mark, known: known.known.clone() })
}

/// The cgroup of a run: found again by whoever knows the ledger's row.
fn group_name(id: &str, started: i64) -> String {
    format!("{started}-{id}")
}

fn no_job(id: &str) -> String {
    format!("no job '{id}' runs or waits here")
}

fn wall() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
