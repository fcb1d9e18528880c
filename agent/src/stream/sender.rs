//! The threads that send frames: one for each controller, there only while a watch of it is.
//!
//! **Owns** the watches that are being sent, their order (each in its turn, one request at a time), and the pauses
//! after failures. **Does not own** the rules of one watch (`watch`), its frames (`source`), or HTTP ([`Post`]).
//!
//! An added watch, new bytes of a spool and the stop wake the thread. Without something to do it waits without a timer.

use super::source::Source;
use super::watch::{Next, Reply, Watch};
use crossbeam_channel::{Receiver, Sender, bounded};
use jscommon::backoff::Backoff;
use jscommon::frame::MAX_REQUEST_BYTES;
use jscommon::lock::lock;
use jscommon::{failpoint, worker::Worker};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const STACK: usize = 256 << 10;
/// Bytes of a request where others wait for their turn.
const SHARED_REQUEST_BYTES: usize = 256 << 10;
/// Watches of one controller.
const MAX_WATCHES: usize = 1000;
/// Pauses after failures: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// The pause between two looks for new records, and as much more for each watch.
const RECORDS_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(1));

/// The outcome of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Posted {
    /// The controller has looked at the watch.
    Answered(Reply),
    /// It will take nothing of this watch; the reason.
    Refused(String),
    /// It is a controller that knows no watches.
    Unknown,
    /// Nobody has looked at it; the reason, and how long to wait.
    Failed(String, Option<Duration>),
}

/// The way to one controller.
pub(crate) trait Post: Send + Sync {
    fn post(&self, id: &str, offset: u64, ticket: &str, frames: &[u8]) -> Posted;
}

/// A watch that is being sent.
pub(super) struct Active {
    pub(super) id: Arc<str>,
    pub(super) ticket: String,
    pub(super) watch: Watch,
    pub(super) source: Source,
}

#[derive(Default)]
struct Inbox {
    new: Vec<Active>,
    /// Watches, those in `new` counted in.
    count: usize,
    is_running: bool,
    /// The agent stops: nothing is waited for beyond this.
    deadline: Option<Instant>,
}

/// The watches of one controller.
pub(super) struct Lane {
    name: String,
    post: Arc<dyn Post>,
    inbox: Mutex<Inbox>,
    wake: Sender<()>,
    woken: Receiver<()>,
}

impl Lane {
    pub(super) fn new(name: &str, post: Arc<dyn Post>) -> Arc<Lane> {
        let (wake, woken) = bounded(1);
        Arc::new(Lane { name: name.to_owned(), post, inbox: Mutex::default(), wake, woken })
    }

    /// Returns what wakes the thread.
    pub(super) fn waker(&self) -> Sender<()> {
        self.wake.clone()
    }

    /// Whether there is room for another watch.
    pub(super) fn check_room(&self) -> Result<(), String> {
        match lock(&self.inbox).count < MAX_WATCHES {
            true => Ok(()),
            false => Err(format!("{MAX_WATCHES} watches are open on this node, and it takes no more; close one")),
        }
    }

    /// Begins to send a watch.
    pub(super) fn add(self: &Arc<Lane>, active: Active) {
        let mut inbox = lock(&self.inbox);
        inbox.new.push(active);
        inbox.count += 1;
        if !inbox.is_running {
            let lane = self.clone();
            match Worker::spawn("stream", STACK, move || lane.run()) {
                Ok(worker) => {
                    worker.detach();
                    inbox.is_running = true;
                }
                Err(fault) => {
                    log::error!("no thread to send live output: {fault}");
                    inbox.count -= inbox.new.len();
                    inbox.new.drain(..).for_each(|active| active.source.leave(&active.id));
                }
            }
        }
        let _ = self.wake.try_send(());
    }

    /// Has the thread end once nothing is left to send, or at `deadline`.
    pub(super) fn stop(&self, deadline: Instant) {
        lock(&self.inbox).deadline = Some(deadline);
        let _ = self.wake.try_send(());
    }

    pub(super) fn is_running(&self) -> bool {
        lock(&self.inbox).is_running
    }

    fn run(&self) {
        let begin = Instant::now();
        let mut sender = Sending {
            lane: self,
            watches: Vec::new(),
            turn: 0,
            buffer: Vec::new(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            begin,
        };
        loop {
            let deadline = {
                let mut inbox = lock(&self.inbox);
                sender.watches.append(&mut inbox.new);
                inbox.count = sender.watches.len();
                let is_late = inbox.deadline.is_some_and(|deadline| deadline <= Instant::now());
                if sender.watches.is_empty() || is_late {
                    inbox.is_running = false;
                    return;
                }
                inbox.deadline
            };
            if deadline.is_some() {
                sender.watches.iter_mut().for_each(|active| active.source.stop());
            }
            let Some(until) = sender.step() else { continue };
            sender.buffer = Vec::new();
            if deadline.is_some() && until.is_none() {
                lock(&self.inbox).is_running = false;
                return;
            }
            let until = until.map(|until| begin + until).into_iter().chain(deadline).min();
            match until {
                Some(until) => drop(self.woken.recv_deadline(until)),
                None => drop(self.woken.recv()),
            }
        }
    }
}

/// The thread's own part of a lane.
struct Sending<'a> {
    lane: &'a Lane,
    watches: Vec<Active>,
    turn: usize,
    buffer: Vec<u8>,
    backoff: Backoff,
    begin: Instant,
}

impl Sending<'_> {
    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Makes the request whose turn it is. Where there is none: until when to wait, or without an end.
    fn step(&mut self) -> Option<Option<Duration>> {
        let (now, count) = (self.now(), self.watches.len());
        let mut until: Option<Duration> = None;
        let mut due = Vec::new();
        for step in 0..count {
            let n = (self.turn + step) % count;
            let active = &self.watches[n];
            match active.watch.next(now, active.source.is_pending(active.watch.offset())) {
                Next::Idle => {}
                Next::Wait(at) => until = Some(until.map_or(at, |until| until.min(at))),
                next => due.push((n, next)),
            }
        }
        let Some((n, next)) = due.first().copied() else { return Some(until) };
        self.turn = n + 1;
        self.send(n, next, due.len() > 1);
        None
    }

    /// Has a watch wait a little where it is up to date, so that the next request has more than one record.
    fn pause(&mut self, n: usize) {
        let until = self.now() + RECORDS_PAUSE.0 + RECORDS_PAUSE.1 * self.watches.len() as u32;
        let active = &mut self.watches[n];
        if active.source.is_at_end() {
            active.watch.hold(until);
        }
    }

    fn send(&mut self, n: usize, next: Next, is_shared: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let active = &mut self.watches[n];
        let offset = active.watch.offset();
        if let Next::Send { most, .. } = next {
            let most = most.min(if is_shared { SHARED_REQUEST_BYTES } else { MAX_REQUEST_BYTES });
            active.source.read(offset, most, &mut buffer);
            if buffer.is_empty() && matches!(active.source, Source::Records(_)) {
                self.buffer = buffer;
                return self.pause(n);
            }
        }
        failpoint::hit("agent.stream_posting");
        let posted = self.lane.post.post(&active.id, offset, &active.ticket, &buffer);
        failpoint::hit("agent.stream_posted");
        let sent = buffer.len();
        self.buffer = buffer;
        let now = self.now();
        let active = &mut self.watches[n];
        let (mut is_over, mut is_refused) = (false, false);
        match posted {
            Posted::Answered(reply) => {
                self.backoff.succeed();
                active.watch.answered(now, sent, reply);
                if reply.watch > 0 {
                    active.source.taken(&active.id, reply.have);
                }
                is_over = active.source.is_over(active.watch.offset());
            }
            Posted::Refused(why) => {
                log::info!("controller {}: the watch {} ends: {why}", self.lane.name, active.id);
                (is_over, is_refused) = (true, true);
            }
            Posted::Unknown => {
                log::info!("controller {} knows no live output; it is not sent there", self.lane.name);
                return self.watches.drain(..).for_each(|active| active.source.leave(&active.id));
            }
            Posted::Failed(why, wait) => {
                log::debug!("controller {}: live output waits: {why}", self.lane.name);
                let pause = wait.unwrap_or_default() + self.backoff.fail(fastrand::f64());
                // It is the controller that is away, for each of its watches.
                for active in &mut self.watches {
                    if active.watch.must_ask() || active.source.is_pending(active.watch.offset()) {
                        active.watch.failed(now, now + pause);
                    }
                }
            }
        }
        self.pause(n);
        if is_over {
            let ended = self.watches.remove(n);
            match is_refused {
                true => ended.source.lapse(&ended.id),
                false => ended.source.leave(&ended.id),
            }
        }
        self.watches.retain(|active| {
            if active.watch.has_lapsed() {
                log::info!("the watch {} has lapsed", active.id);
                active.source.lapse(&active.id);
            }
            !active.watch.has_lapsed()
        });
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
pub(super) mod tests;
