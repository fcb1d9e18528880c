//! The supervisor's rules, pure: events and the time in, actions out. No process, no clock, no disk.
//!
//! **Owns** the set of jobs that are not over: who may start (`max_jobs`, queues, order), and, by
//! `transitions`, what each one does next.
//!
//! **Does not** do anything: the supervisor performs the [`Action`]s, commits what they write before
//! the ones that start something, and feeds back what happened. Tests need neither time nor processes.
//!
//! Invariants, tested by random orders of events: one job never has two runs; after `kill` it never
//! starts again; every accepted job ends in exactly one result; never more processes than `max_jobs`;
//! never two of one queue; a queue keeps its order.

#[cfg(test)]
mod tests;

use super::types::*;
use crate::job::Rules;

use super::transitions::{Context, Job, Phase};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The jobs that are not over.
pub(crate) struct Scheduler {
    jobs: HashMap<u64, Entry>,
    ids: HashMap<Arc<str>, u64>,
    runs: HashMap<u64, u64>,
    /// Jobs that may start as soon as there is a slot, in order.
    ready: BTreeSet<(u64, u64)>,
    queues: HashMap<Arc<str>, Queue>,
    timers: BTreeSet<(u64, u64)>,
    max_jobs: usize,
    slots_taken: usize,
    next: u64,
    stopping: bool,
    random: fastrand::Rng,
}

struct Entry {
    job: Job,
    /// Its place in the order; `None` while it does not wait.
    order: Option<u64>,
    timer: Option<u64>,
    takes_slot: bool,
}

#[derive(Default)]
struct Queue {
    /// The job whose turn it is: it may start, runs, or waits for a restart.
    turn: Option<u64>,
    /// The others, in order.
    line: BTreeSet<(u64, u64)>,
}

impl Scheduler {
    /// No job yet; at most `max_jobs` processes at one time. `seed` drives the jitter.
    pub(crate) fn new(max_jobs: usize, seed: u64) -> Scheduler {
        Scheduler {
            jobs: HashMap::new(),
            ids: HashMap::new(),
            runs: HashMap::new(),
            ready: BTreeSet::new(),
            queues: HashMap::new(),
            timers: BTreeSet::new(),
            max_jobs: max_jobs.max(1),
            slots_taken: 0,
            next: 1,
            stopping: false,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Takes up a new job. Its id must not be that of another job here.
    pub(crate) fn accept(&mut self, id: &str, rules: Rules, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        let id: Arc<str> = id.into();
        self.insert(Job::new(id, rules));
        self.start_ready(now, &mut out);
        out
    }

    /// Takes up a job that the job store remembers. Nothing starts before the next event.
    pub(crate) fn restore(&mut self, id: &str, rules: Rules, persisted: PersistedJob, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        let mut cx = Context { now, stopping: self.stopping, random: 0.0, out: &mut out };
        let job = Job::restored(id.into(), rules, persisted, &mut cx);
        if job.phase != Phase::Over {
            self.insert(job);
        }
        out
    }

    /// Takes up a job of which processes of an earlier run still live. It keeps its place in its queue, and
    /// goes on as a restored one with [`Event::Cleared`].
    pub(crate) fn hold(&mut self, id: &str, rules: Rules, persisted: PersistedJob) {
        let mut job = Job::new(id.into(), rules);
        job.phase = Phase::Held(persisted);
        self.insert(job);
    }

    /// Returns the actions that follow from `event`.
    pub(crate) fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        let keys: Vec<u64> = match &event {
            Event::Kill { id } | Event::Unschedule { id } | Event::Cleared { id } => {
                self.ids.get(id.as_str()).copied().into_iter().collect()
            }
            Event::Launching { run }
            | Event::Spawned { run }
            | Event::Unstartable { run, .. }
            | Event::Answered { run }
            | Event::Exited { run, .. }
            | Event::Drained { run }
            | Event::Stalled { run, .. }
            | Event::Tree { run, .. } => self.runs.get(run).copied().into_iter().collect(),
            Event::KillAll => self.in_order(),
            Event::Stop => {
                self.stopping = true;
                self.in_order()
            }
            Event::Tick => {
                self.timers.iter().take_while(|(until, _)| *until <= now.mono).map(|(_, key)| *key).collect()
            }
        };
        for key in keys {
            let random = self.random.f64();
            if let Some(entry) = self.jobs.get_mut(&key) {
                let run = entry.job.run();
                let mut cx = Context { now, stopping: self.stopping, random, out: &mut out };
                entry.job.handle(&event, &mut cx);
                if let Some(run) = run
                    && entry.job.run() != Some(run)
                {
                    self.runs.remove(&run);
                }
                self.reindex(key);
            }
        }
        self.start_ready(now, &mut out);
        out
    }

    /// When the next [`Event::Tick`] is due, on the monotonic clock.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.timers.first().map(|(until, _)| *until)
    }

    /// The runs that have ended and whose output is waited for no longer than until now.
    pub(crate) fn drain_ends(&self, now: Now) -> Vec<u64> {
        let due = self.timers.iter().take_while(|(until, _)| *until <= now.mono);
        due.filter_map(|(_, key)| self.jobs.get(key)?.job.draining()).collect()
    }

    /// Whether a job of this id is not over.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    /// Whether the order to start this run still holds.
    pub(crate) fn is_starting(&self, run: u64) -> bool {
        let entry = self.runs.get(&run).and_then(|key| self.jobs.get(key));
        entry.is_some_and(|entry| matches!(entry.job.phase, Phase::Starting { .. }))
    }

    /// The run under way of this job.
    pub(crate) fn run_of(&self, id: &str) -> Option<u64> {
        self.ids.get(id).and_then(|key| self.jobs.get(key)).and_then(|entry| entry.job.run())
    }

    /// The runs of processes that are under way.
    pub(crate) fn process_runs(&self) -> Vec<u64> {
        self.jobs.values().filter(|entry| entry.job.rules.process).filter_map(|entry| entry.job.run()).collect()
    }

    /// Whether no run is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    /// Where a job is, and how often it was restarted.
    pub(crate) fn place_of(&self, id: &str) -> Option<(Place, u64)> {
        let job = &self.jobs.get(self.ids.get(id)?)?.job;
        let place = match &job.phase {
            Phase::Waiting => Place::Queued,
            Phase::Sleeping { .. } => Place::Scheduled,
            Phase::Held(_) => Place::Stopping,
            Phase::Running(_) if job.is_ending() => Place::Stopping,
            Phase::Starting { .. } | Phase::Running(_) => Place::Running,
            Phase::Failed | Phase::Over => Place::Failed,
        };
        Some((place, job.restarts))
    }

    /// The recurring jobs, as they were accepted.
    pub(crate) fn recurring(&self, now: Now) -> Vec<Recurrence> {
        self.in_order().iter().filter_map(|key| self.jobs.get(key)?.job.recurrence(now)).collect()
    }

    /// Gives back the memory that a burst of jobs has left behind.
    pub(crate) fn shrink(&mut self) {
        self.jobs.shrink_to_fit();
        self.ids.shrink_to_fit();
        self.runs.shrink_to_fit();
        self.queues.shrink_to_fit();
    }

    fn in_order(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = self.jobs.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn insert(&mut self, job: Job) {
        let key = self.number();
        self.ids.insert(job.id.clone(), key);
        self.jobs.insert(key, Entry { job, order: None, timer: None, takes_slot: false });
        self.reindex(key);
    }

    /// Brings order, queue, slot and timer of a job in line with its phase.
    fn reindex(&mut self, key: u64) {
        let number = self.number();
        let Some(entry) = self.jobs.get_mut(&key) else { return };
        let job = &entry.job;
        let over = job.phase == Phase::Over;

        let timer = job.deadline().filter(|until| *until != u64::MAX);
        if timer != entry.timer {
            if let Some(old) = entry.timer {
                self.timers.remove(&(old, key));
            }
            if let Some(new) = timer {
                self.timers.insert((new, key));
            }
            entry.timer = timer;
        }

        let takes_slot = job.rules.process && job.run().is_some();
        self.slots_taken = self.slots_taken + usize::from(takes_slot) - usize::from(entry.takes_slot);
        entry.takes_slot = takes_slot;

        let waits = job.phase == Phase::Waiting;
        let held = matches!(job.phase, Phase::Held(_));
        let keeps_turn =
            waits || held || job.run().is_some() || matches!(job.phase, Phase::Sleeping { restart: true, .. });
        let queue_name = job.rules.queue.clone();
        if held && let Some(name) = &queue_name {
            self.queues.entry(name.clone()).or_default().turn.get_or_insert(key);
        }
        if waits && entry.order.is_none() {
            // Tasks need no slot and go first of all, then what is to be repeated, then as they came.
            let number = match (job.rules.process, job.again) {
                (false, _) => 0,
                (true, true) => 1,
                (true, false) => number,
            };
            entry.order = Some(number);
            let queue = queue_name.as_ref().map(|name| self.queues.entry(name.clone()).or_default());
            match queue {
                Some(queue) if queue.turn != Some(key) => queue.line.insert((number, key)),
                _ => self.ready.insert((number, key)),
            };
        } else if !waits && let Some(order) = entry.order.take() {
            self.ready.remove(&(order, key));
            if let Some(queue) = queue_name.as_ref().and_then(|name| self.queues.get_mut(name)) {
                queue.line.remove(&(order, key));
            }
        }

        if let Some(name) = queue_name
            && let Some(queue) = self.queues.get_mut(&name)
        {
            if queue.turn == Some(key) && !keeps_turn {
                queue.turn = None;
            }
            if queue.turn.is_none() {
                match queue.line.pop_first() {
                    Some((order, next)) => {
                        queue.turn = Some(next);
                        self.ready.insert((order, next));
                    }
                    None => {
                        self.queues.remove(&name);
                    }
                }
            }
        }

        if over && let Some(entry) = self.jobs.remove(&key) {
            self.ids.remove(&entry.job.id);
        }
    }

    fn start_ready(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        while let Some((_, key)) = self.ready.first().copied() {
            let run = self.number();
            let Some(entry) = self.jobs.get_mut(&key) else { break };
            if entry.job.rules.process && self.slots_taken >= self.max_jobs {
                break;
            }
            entry.job.start(run, now, out);
            self.runs.insert(run, key);
            self.reindex(key);
        }
    }
}
