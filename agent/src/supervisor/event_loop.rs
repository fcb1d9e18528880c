//! The supervisor's thread: one inbox, one deadline, one commit for whatever lay in the inbox.
//!
//! Each turn takes what is in the inbox, asks the scheduler, and collects what it orders. Signals go out at
//! once. Actions that the disk must know of first (starts, answers to pollers, news of results) wait for the
//! commit. When that fails (a full disk), they go on waiting and nothing more is accepted. The commit is tried
//! again each second. So nothing runs that a restart would not
//! know, but for commands that only look.

mod admit;
mod complete;
mod control;
mod effects;
mod runs;
mod watches;

use super::job_table::{Detail, Job, Run, Work, group_name};
use super::launcher::Launcher;
use super::scheduler::Scheduler;
use super::task_pool::TaskPool;
use super::types::{Action, Event, Now};
use super::{Message, Notice, Parts, Remote};
use crate::job::JobLabel;
use crate::output::Readers;
use crate::platform::{self, unix_ms};
use crate::process_tree::{self, Cgroups, Children};
use crate::storage::job_store::JobUpdate;
use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jscommon::failpoint;
use jscommon::worker::Worker;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Messages of one turn, and so of one commit.
const TURN: usize = 1000;
/// Time between two tries of a commit that failed, or of a sync.
const RETRY: Duration = Duration::from_secs(1);
/// Starts that must wait for a thread, for a turn to gather messages before it takes them.
const GATHER_FROM: usize = 16;
/// How long it gathers for each start that waits: about what a start takes at the least.
const GATHER: Duration = Duration::from_micros(100);
/// How long it gathers at the most.
const MAX_GATHER: Duration = Duration::from_millis(20);
/// How long a result may be in the job store and not on the disk. A commit that waits for the disk takes it along: most
/// often that of the next command, which would have to wait for a sync of its own otherwise.
const LATEST: Duration = Duration::from_millis(10);
/// How long nothing happens before memory that only work needs is given back.
const QUIET: Duration = Duration::from_secs(2);
/// When the agent stops and the disk takes nothing, how long it is tried on.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// Jobs that may be on this node and not over, so that they stay bounded in memory: as many as the ids
/// that it remembers.
const MAX_JOBS: usize = if cfg!(test) { 300 } else { 100_000 };
/// Bytes of their commands together, so that they stay bounded on the disk.
const MAX_BYTES: usize = 256 << 20;

/// A `kill` or `killall` that is answered once these runs are over.
struct Waiting {
    id: String,
    runs: BTreeSet<u64>,
    answer: Value,
}

/// An effect that waits for the commit of its cause.
enum AfterCommit {
    Stored(Sender<()>),
    Start {
        id: Arc<str>,
        run: u64,
        at: i64,
    },
    Tell(Notice),
    /// The result of a read-only command is stored, and not in memory alone any more.
    Forget {
        controller: String,
        id: String,
    },
}

struct Actor {
    parts: Parts,
    remote: Remote,
    scheduler: Scheduler,
    children: Arc<Children>,
    launcher: Launcher,
    cgroups: Option<Cgroups>,
    path_vars: process_tree::PathVars,
    home: String,
    begin: Instant,
    jobs: HashMap<Arc<str>, Job>,
    runs: HashMap<u64, Run>,
    waiting: Vec<Waiting>,
    keeper: process_tree::Keeper,
    readers: Readers,
    commands: TaskPool,
    preparations: TaskPool,
    actions: VecDeque<Action>,
    writes: Vec<JobUpdate>,
    after_commit: Vec<AfterCommit>,
    /// Records of jobs that have ended, for the message log once the uploaders know of the results.
    records: Vec<(Arc<JobLabel>, String)>,
    /// Groups whose runs are over, to be removed at the same time.
    emptied: Vec<String>,
    /// Since when the disk is behind the job store.
    behind: Option<Instant>,
    /// When a sync that failed is tried again.
    resync: Option<Instant>,
    /// Ids that were accepted and are not committed.
    fresh: HashSet<String>,
    /// Controllers that have given commands in this life of the agent.
    heard: HashSet<Arc<str>>,
    /// Jobs whose kill was under way when the agent ended, until what it remembers is taken up.
    killed_before: HashSet<String>,
    /// Startup jobs of which processes of an earlier agent live.
    held_startup: HashSet<String>,
    /// Jobs whose end is among `writes`: controller, and the start of the last run.
    finished: Vec<(Arc<str>, Arc<str>, i64)>,
    /// The file that `jobs` stand in, as the job store counts them.
    generation: u64,
    /// Bytes of the commands of all jobs that are not over.
    bytes: usize,
    retry: Option<Instant>,
    /// When it has been quiet for long enough to rest; nothing while it rests.
    rest_at: Option<Instant>,
    stopping: Option<Instant>,
}

/// Returns how long messages are gathered while so many starts wait for a thread and so many messages for their turn.
fn gathering(starts: usize, messages: usize) -> Option<Duration> {
    (starts >= GATHER_FROM && messages < TURN).then(|| (GATHER * starts.min(1000) as u32).min(MAX_GATHER))
}

/// Begins to end leftovers, restores what is remembered, and starts the thread.
pub(super) fn start(parts: Parts, remote: Remote, inbox: Receiver<Message>) -> Result<Worker> {
    let data_dir = &parts.config.main.data_dir;
    let tmp = data_dir.join("tmp");
    platform::make_private_dir(&tmp).with_context(|| format!("cannot make {}", tmp.display()))?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    let exited = remote.sender.clone();
    let children = Children::start(move |run, code| drop(exited.send(Message::Exited { run, code })))
        .context("cannot start the thread that waits for processes")?;
    let mut actor = Actor {
        scheduler: Scheduler::new(parts.config.main.max_jobs, seed),
        path_vars: process_tree::PathVars::new(data_dir),
        home: data_dir.to_string_lossy().into_owned(),
        children: Arc::new(children),
        launcher: Launcher::default(),
        cgroups: Cgroups::open(&data_dir.to_string_lossy()),
        remote,
        begin: Instant::now(),
        jobs: HashMap::new(),
        runs: HashMap::new(),
        waiting: Vec::new(),
        keeper: process_tree::Keeper::default(),
        readers: Readers::default(),
        commands: TaskPool::default(),
        preparations: TaskPool::default(),
        actions: VecDeque::new(),
        writes: Vec::new(),
        after_commit: Vec::new(),
        records: Vec::new(),
        emptied: Vec::new(),
        behind: None,
        resync: None,
        fresh: HashSet::new(),
        heard: HashSet::new(),
        killed_before: HashSet::new(),
        held_startup: HashSet::new(),
        finished: Vec::new(),
        generation: parts.job_store.generation(),
        bytes: 0,
        retry: None,
        rest_at: Some(Instant::now() + QUIET),
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
            let over = self.is_over();
            if over || self.sync_at().is_some_and(|at| at <= Instant::now()) {
                self.sync();
            }
            if over {
                return self.clear_up();
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
            if first.is_none() && self.rest_at.is_some_and(|at| at <= Instant::now()) {
                self.rest();
            }
            if first.is_some() && self.stopping.is_none() {
                self.gather(inbox);
            }
            for message in first.into_iter().chain(inbox.try_iter().take(TURN)) {
                if message.is_work() {
                    self.rest_at = Some(Instant::now() + QUIET);
                }
                self.receive(message);
            }
            if let Some(id) =
                self.launcher.check_threads(&self.remote.sender).and_then(|run| Some(&self.runs.get(&run)?.id))
            {
                log::warn!("the start of job {id} takes long: does a file system not answer?");
            }
            self.commands.start(&self.remote.sender);
            self.preparations.start(&self.remote.sender);
            let now = self.now();
            if self.scheduler.deadline().is_some_and(|deadline| deadline <= now.mono) {
                self.event(Event::Tick);
            }
        }
    }

    /// While a thread has many starts to make, lets messages come together, so that one commit serves many: nothing that
    /// they bring could start any sooner.
    fn gather(&mut self, inbox: &Receiver<Message>) {
        let Some(time) = gathering(self.launcher.backlog(), inbox.len()) else { return };
        if self.behind.is_some() && self.resync.is_none() {
            self.sync();
        }
        std::thread::sleep(time);
    }

    fn now(&self) -> Now {
        Now { mono: self.begin.elapsed().as_millis() as u64, wall: unix_ms() }
    }

    fn deadline(&self) -> Option<Instant> {
        let scheduler = self.scheduler.deadline().map(|deadline| self.begin + Duration::from_millis(deadline));
        let threads = [self.commands.due(), self.preparations.due(), self.launcher.due()].into_iter().flatten().min();
        [scheduler, self.retry, self.sync_at(), self.rest_at, threads].into_iter().flatten().min()
    }

    /// When the disk is to have what is in the job store.
    fn sync_at(&self) -> Option<Instant> {
        self.resync.or(self.behind.map(|since| since + LATEST))
    }

    /// Gives back what a burst of work has left behind, here and (by the notice) elsewhere.
    fn rest(&mut self) {
        self.rest_at = None;
        if let Some(cgroups) = &mut self.cgroups {
            cgroups.sweep();
        }
        self.keeper.rest();
        self.scheduler.shrink();
        self.jobs.shrink_to_fit();
        self.runs.shrink_to_fit();
        self.waiting.shrink_to_fit();
        self.actions.shrink_to_fit();
        self.writes.shrink_to_fit();
        self.after_commit.shrink_to_fit();
        self.records.shrink_to_fit();
        self.emptied.shrink_to_fit();
        self.fresh.shrink_to_fit();
        self.parts.job_store.rest();
        if let Some(streams) = &self.parts.builtins.streams {
            streams.prune();
        }
        (self.parts.notify)(Notice::Idle);
    }

    /// Whether it was told to stop and has nothing left to do.
    fn is_over(&self) -> bool {
        self.stopping.is_some_and(|since| {
            let written = self.writes.is_empty() && self.after_commit.is_empty();
            self.scheduler.is_idle() && (written || since.elapsed() > LAST_TRIES)
        })
    }

    fn event(&mut self, event: Event) {
        let now = self.now();
        self.extend_drains(now);
        self.actions.extend(self.scheduler.handle(event, now));
    }

    /// The time that a run's output is waited for does not pass while its readers wait for the message log: what
    /// the process wrote last may still be in its pipes.
    fn extend_drains(&mut self, now: Now) {
        for run in self.scheduler.drain_ends(now) {
            let Some(known) = self.runs.get_mut(&run) else { continue };
            let Some(stalled) = known.capture.as_ref().map(|capture| capture.stalled()) else { continue };
            let more = stalled.saturating_sub(known.stalled);
            known.stalled = stalled;
            if !more.is_zero() {
                let millis = more.as_millis() as u64 + 1;
                self.actions.extend(self.scheduler.handle(Event::Stalled { run, millis }, now));
            }
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Submit { controller, commands, stored } => self.submit(&controller, commands, stored),
            Message::StoreReadOnly { controller, stored } => self.store_read_only(&controller, stored),
            Message::Exited { run, code } => self.exited(run, code),
            Message::Cleared { id, group } => self.cleared(id, group),
            Message::Drained { run } => self.drained(run),
            Message::Ended { run, code } => {
                self.exited(run, code);
                self.drained(run);
            }
            Message::Launched { run, mark, group, child } => self.launched(run, mark, group, child),
            Message::Prepared { run, spec } => {
                self.preparations.ended(run, &self.remote.sender);
                if self.scheduler.is_starting(run) {
                    match spec {
                        Ok(spec) => self.spawn(run, spec),
                        Err(fault) => self.not_started(run, fault),
                    }
                }
            }
            Message::Answered { run, answer } => {
                self.commands.ended(run, &self.remote.sender);
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

    pub(super) fn exited(&mut self, run: u64, code: i32) {
        if self.launcher.is_open(run) {
            if let Some(known) = self.runs.get_mut(&run) {
                known.early = Some(code);
            }
            return;
        }
        failpoint::hit("agent.exited");
        if let Some(known) = self.runs.get_mut(&run) {
            known.reaped = true;
            known.ended = Some(Instant::now());
            if let Some(capture) = &known.capture {
                known.stalled = capture.stalled();
                if capture.process_ended() {
                    self.parts.outlets.message_log.nudge();
                }
            }
        }
        self.event(Event::Exited { run, code });
    }

    fn drained(&mut self, run: u64) {
        self.keeper.ended(run);
        self.event(Event::Drained { run });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_gathered_while_many_starts_wait_and_not_for_long() {
        assert_eq!([(0, 0), (GATHER_FROM - 1, 0), (100, TURN)].map(|(n, m)| gathering(n, m)), [None; 3]);
        assert_eq!(gathering(GATHER_FROM, 0), Some(GATHER * GATHER_FROM as u32));
        assert_eq!([gathering(1000, 0), gathering(usize::MAX, TURN - 1)], [Some(MAX_GATHER); 2]);
    }
}
