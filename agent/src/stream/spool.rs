//! The spool of one job: its output on the disk, until the watches have it and for a while after.
//!
//! **Owns** the bounds (a job, all jobs), who has taken how much, the folder of one job and its `meta` file.
//! **Does not own** requests and their order (`sender`), or the frames' way into a watch (`source`).
//!
//! While a watch lives and the spool is full, a write waits. Without a watch it never does: the oldest bytes go.
//! A disk that takes nothing makes a gap, never a failed job.

use super::segments::{self, Log, Place, Position};
use crate::platform;
use crossbeam_channel::Sender;
use jscommon::failpoint;
use jscommon::lock::lock;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Bytes of a job's spool that no watch may leave untaken; with what is kept and a file's rest, 64 MiB.
pub(super) const MAX_UNTAKEN_BYTES: u64 = 54 << 20;
/// Bytes of what was taken that are kept, while there is room for half of all.
pub(super) const KEPT_BYTES: u64 = 8 << 20;
/// Bytes of all spools.
const MAX_TOTAL_BYTES: u64 = 256 << 20;
/// How long a spool stays after the job's end.
const KEPT_AFTER_END: Duration = Duration::from_secs(3600);
/// Spools of jobs that have ended.
const MAX_ENDED: usize = 1000;
/// How often a write that waits looks whether another spool has made room.
const LOOK: Duration = Duration::from_millis(200);

/// The file beside the segments: a line of JSON for the job, each watch and each watch's end.
const META: &str = "meta";

/// The parts that all spools share.
pub(super) struct Shared {
    pub(super) root: PathBuf,
    total: AtomicU64,
    ended: Mutex<VecDeque<(Arc<Spool>, Instant)>>,
}

impl Shared {
    pub(super) fn new(root: PathBuf) -> Shared {
        Shared { root, total: AtomicU64::new(0), ended: Mutex::default() }
    }

    /// Keeps the spool of a job that has ended.
    pub(super) fn keep(&self, spool: Arc<Spool>) {
        lock(&self.ended).push_back((spool, Instant::now() + KEPT_AFTER_END));
        self.prune();
    }

    /// Removes the spools of which the time is over, and those beyond the bound.
    pub(super) fn prune(&self) {
        let (now, mut ended) = (Instant::now(), lock(&self.ended));
        let mut over = ended.len().saturating_sub(MAX_ENDED);
        ended.retain(|(spool, until)| {
            let goes = (over > 0 || *until <= now) && spool.remove();
            over = over.saturating_sub(goes.into());
            !goes
        });
    }

    /// Returns the spool of a job that has ended.
    pub(super) fn ended(&self, job: &str) -> Option<Arc<Spool>> {
        lock(&self.ended).iter().rev().find(|(spool, _)| spool.job == job).map(|(spool, _)| spool.clone())
    }

    /// Whether there is room for so many bytes, if need be after the removal of spools that nobody waits for.
    fn has_room(&self, bytes: u64) -> bool {
        let full = || self.total.load(Ordering::Relaxed) + bytes > MAX_TOTAL_BYTES;
        if full() {
            lock(&self.ended).retain(|(spool, _)| !full() || !spool.remove());
        }
        !full()
    }
}

/// A watch that takes from a spool.
struct Taker {
    id: Arc<str>,
    taken: u64,
    wake: Sender<()>,
}

struct State {
    /// `None` until the first byte or watch, and where the folder cannot be made.
    log: Option<Log>,
    /// The position of the job's output, missing bytes counted in.
    position: Position,
    /// Missing bytes that no frame of the log tells of yet.
    gap: Position,
    takers: Vec<Taker>,
    /// The job has ended; with a sentence where its output is not whole.
    closed: Option<Option<String>>,
    is_removed: bool,
    /// Bytes of the log that [`Shared::total`] counts.
    counted: u64,
    buffer: Vec<u8>,
}

/// A part of the log, and what is known of its end.
pub(super) struct Located {
    pub(super) parts: Vec<(PathBuf, u64, usize)>,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) position: Position,
    pub(super) gap: Position,
    pub(super) closed: Option<Option<String>>,
}

/// A write found the spool full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The spool of one job.
pub(crate) struct Spool {
    pub(super) job: String,
    dir: PathBuf,
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
    /// Called when the last watch has lapsed.
    lapsed: Option<Lapsed>,
}

/// Told of a lapse.
pub(crate) type Lapsed = Box<dyn Fn() + Send + Sync>;

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spool({})", self.job)
    }
}

impl Spool {
    /// Makes a spool without a file, for a job whose output is at `position`.
    pub(super) fn new(shared: &Arc<Shared>, job: &str, position: Position) -> Spool {
        let dir = shared.root.join(format!("{:016x}", fastrand::u64(..)));
        Spool::with(shared, job, dir, None, position)
    }

    /// Has `lapsed` called when the last watch has lapsed.
    pub(super) fn on_lapse(self, lapsed: Option<Lapsed>) -> Spool {
        Spool { lapsed, ..self }
    }

    /// Whether somebody is told of a lapse.
    pub(super) fn tells_lapse(&self) -> bool {
        self.lapsed.is_some()
    }

    fn with(shared: &Arc<Shared>, job: &str, dir: PathBuf, log: Option<Log>, position: Position) -> Spool {
        let mut state = State {
            log,
            position,
            gap: [0, 0],
            takers: Vec::new(),
            closed: None,
            is_removed: false,
            counted: 0,
            buffer: Vec::new(),
        };
        state.count(shared);
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Spool { job: job.to_owned(), dir, shared: shared.clone(), state, changed, lapsed: None }
    }

    /// Takes up the folder that an earlier agent left, closed with `error`; and its watches that had not ended.
    pub(super) fn recover(shared: &Arc<Shared>, dir: &Path, error: &str) -> io::Result<(Spool, Vec<Value>)> {
        let text = fs::read_to_string(dir.join(META))?;
        // The last line may be torn.
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let first = lines.first().filter(|first| first["job"].is_string()).ok_or(io::ErrorKind::InvalidData)?;
        let position = [0, 1].map(|n| first["position"][n].as_u64().unwrap_or(0));
        let log = Log::open(dir, position)?;
        let position = log.end().position;
        let over: Vec<&Value> = lines.iter().filter_map(|line| line.get("over")).collect();
        let open = lines.iter().filter(|line| line["watch"].is_string() && !over.contains(&&line["watch"]));
        let open = open.cloned().collect();
        let job = first["job"].as_str().unwrap_or_default();
        let spool = Spool::with(shared, job, dir.to_owned(), Some(log), position);
        let is_whole = lines.iter().any(|line| line["closed"] == true);
        lock(&spool.state).closed = Some((!is_whole).then(|| error.to_owned()));
        Ok((spool, open))
    }

    /// Adds bytes of stdout (0) or stderr (1). [`Full`]: a watch lives, there is no room, and nothing was done.
    pub(crate) fn write(&self, stream: usize, bytes: &[u8]) -> Result<(), Full> {
        let mut state = lock(&self.state);
        if state.closed.is_none() && !state.takers.is_empty() && self.is_full(&state, bytes.len()) {
            return Err(Full);
        }
        self.put(&mut state, stream, bytes);
        Ok(())
    }

    /// As [`Spool::write`], and waits for room for as long as a watch lives and `gives_up` is false.
    pub(crate) fn write_waiting(&self, stream: usize, bytes: &[u8], gives_up: impl Fn() -> bool) {
        let mut state = lock(&self.state);
        while state.closed.is_none() && !state.takers.is_empty() && self.is_full(&state, bytes.len()) && !gives_up() {
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        self.put(&mut state, stream, bytes);
    }

    /// Has a write that waits look at its condition.
    pub(crate) fn nudge(&self) {
        let _state = lock(&self.state);
        self.changed.notify_all();
    }

    fn is_full(&self, state: &State, bytes: usize) -> bool {
        let untaken = state.log.as_ref().map_or(0, |log| log.end().offset - state.floor());
        untaken + bytes as u64 > MAX_UNTAKEN_BYTES || !self.shared.has_room(bytes as u64)
    }

    fn put(&self, state: &mut MutexGuard<State>, stream: usize, bytes: &[u8]) {
        if state.closed.is_some() {
            return;
        }
        state.position[stream] += bytes.len() as u64;
        if let Err(fault) = self.append(state, stream, bytes) {
            if state.gap == [0, 0] {
                log::warn!("job {}: output for its watches is lost: {fault}", self.job);
            }
            state.gap[stream] += bytes.len() as u64;
        }
        failpoint::hit("agent.spooled");
        state.wake();
    }

    fn append(&self, state: &mut MutexGuard<State>, stream: usize, bytes: &[u8]) -> io::Result<()> {
        // A run that has ended writes beyond the bounds what its pipes hold; nothing else does.
        if state.takers.is_empty() && !self.shared.has_room(bytes.len() as u64) {
            return Err(io::Error::other("the spools of all jobs are full"));
        }
        let mut position = state.position;
        position[stream] -= bytes.len() as u64;
        let before = [position[0] - state.gap[0], position[1] - state.gap[1]];
        self.prepare(state, before)?;
        let mut buffer = std::mem::take(&mut state.buffer);
        buffer.clear();
        if state.gap != [0, 0] {
            segments::push_gap(&mut buffer, state.gap);
        }
        segments::push_chunks(&mut buffer, stream, bytes);
        let added = state.log.as_mut().map_or(Ok(()), |log| log.append(&buffer));
        state.buffer = buffer;
        added?;
        state.gap = [0, 0];
        state.trim(&self.shared);
        Ok(())
    }

    /// Makes the folder and its `meta`.
    fn prepare(&self, state: &mut MutexGuard<State>, position: Position) -> io::Result<()> {
        if state.log.is_none() {
            platform::make_private_dir(&self.dir)?;
            self.note(&json!({"job": self.job, "position": position}))?;
            state.log = Some(Log::new(&self.dir, position));
        }
        Ok(())
    }

    fn note(&self, line: &Value) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.dir.join(META))?;
        file.write_all(format!("{line}\n").as_bytes())
    }

    /// Lets a watch take from `place` on; `meta` is what the agent's next life needs to know of it.
    pub(super) fn open(&self, id: &Arc<str>, place: u64, wake: Sender<()>, meta: Option<&Value>) -> Result<(), String> {
        let mut state = lock(&self.state);
        if state.is_removed {
            return Err(format!("job {} has no spool: it was removed a moment ago", self.job));
        }
        if let Some(meta) = meta {
            let position = [state.position[0] - state.gap[0], state.position[1] - state.gap[1]];
            if let Err(fault) = self.prepare(&mut state, position).and_then(|()| self.note(meta)) {
                log::warn!("the watch {id} of job {} does not survive the agent: {fault}", self.job);
            }
        }
        state.takers.push(Taker { id: id.clone(), taken: place, wake });
        Ok(())
    }

    /// Returns the first and the last place, and the last one at which both streams are at most at `wanted`.
    pub(super) fn find(&self, wanted: Position) -> io::Result<(Place, Place, Option<Place>)> {
        let state = lock(&self.state);
        let Some(log) = &state.log else {
            let here = Place { offset: 0, position: state.position };
            let is_behind = wanted[0] >= here.position[0] && wanted[1] >= here.position[1];
            return Ok((here, here, is_behind.then_some(here)));
        };
        let found = log.find(|at| at[0] <= wanted[0] && at[1] <= wanted[1])?;
        Ok((log.start(), log.end(), found))
    }

    /// Returns the last place with at least `bytes` of output behind it, or the first one.
    pub(super) fn find_tail(&self, bytes: u64) -> io::Result<Place> {
        let state = lock(&self.state);
        let Some(log) = &state.log else { return Ok(Place { offset: 0, position: state.position }) };
        let end: u64 = log.end().position.iter().sum();
        let found = log.find(|at| end - at.iter().sum::<u64>() >= bytes)?;
        Ok(found.unwrap_or(log.start()))
    }

    /// Returns where the bytes from `offset` on lie.
    pub(super) fn locate(&self, offset: u64, most: usize) -> Located {
        let state = lock(&self.state);
        let (parts, start, end) = match &state.log {
            Some(log) => (log.locate(offset, most), log.start().offset, log.end().offset),
            None => (Vec::new(), 0, 0),
        };
        let (position, gap, closed) = (state.position, state.gap, state.closed.clone());
        Located { parts, start, end, position, gap, closed }
    }

    /// The controller has what lies before `offset`.
    pub(super) fn taken(&self, id: &str, offset: u64) {
        let mut state = lock(&self.state);
        if let Some(taker) = state.takers.iter_mut().find(|taker| *taker.id == *id) {
            taker.taken = taker.taken.max(offset);
        }
        state.trim(&self.shared);
        self.changed.notify_all();
    }

    /// Ends a watch: nobody waits for it any more.
    pub(super) fn leave(&self, id: &str) {
        let mut state = lock(&self.state);
        state.takers.retain(|taker| *taker.id != *id);
        if state.log.is_some() && !state.is_removed {
            let _ = self.note(&json!({"over": id}));
        }
        state.trim(&self.shared);
        self.changed.notify_all();
    }

    /// This watch has lapsed.
    pub(super) fn lapse(&self, id: &str) {
        self.leave(id);
        let is_last = lock(&self.state).takers.is_empty();
        if let Some(lapsed) = self.lapsed.as_ref().filter(|_| is_last) {
            lapsed();
        }
    }

    /// The job has ended: nothing is written any more.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        if state.closed.is_none() {
            state.closed = Some(None);
            if state.log.is_some() && state.gap == [0, 0] {
                let _ = self.note(&json!({"closed": true}));
            }
        }
        if let Some(log) = &mut state.log {
            log.close();
        }
        state.buffer = Vec::new();
        state.wake();
        self.changed.notify_all();
    }

    /// Removes the folder, unless a watch takes from it; whether it is gone.
    fn remove(&self) -> bool {
        let mut state = lock(&self.state);
        if !state.takers.is_empty() {
            return false;
        }
        state.is_removed = true;
        if state.log.take().is_some() {
            let _ = fs::remove_dir_all(&self.dir);
        }
        state.count(&self.shared);
        true
    }
}

impl State {
    /// The offset up to which every watch has taken the log.
    fn floor(&self) -> u64 {
        let end = self.log.as_ref().map_or(0, |log| log.end().offset);
        self.takers.iter().map(|taker| taker.taken).min().unwrap_or(end).min(end)
    }

    fn trim(&mut self, shared: &Shared) {
        // What many jobs keep must not fill the spools, for writes would wait for bytes that nobody takes any more.
        let is_crowded = shared.total.load(Ordering::Relaxed) > MAX_TOTAL_BYTES / 2;
        let floor = self.floor().saturating_sub(if is_crowded { 0 } else { KEPT_BYTES });
        if let Some(log) = &mut self.log {
            log.trim(floor);
        }
        self.count(shared);
    }

    fn wake(&self) {
        for taker in &self.takers {
            let _ = taker.wake.try_send(());
        }
    }

    /// Has the total know what this spool holds.
    fn count(&mut self, shared: &Shared) {
        let size = self.log.as_ref().map_or(0, Log::size);
        shared.total.fetch_add(size, Ordering::Relaxed);
        shared.total.fetch_sub(std::mem::replace(&mut self.counted, size), Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
