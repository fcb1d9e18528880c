//! The threads that start processes, so that the supervisor never waits for a file system.
//!
//! A start waits until the child has found its folder and its program, and both may lie on a file system
//! that does not answer. One thread starts processes in order. When a start takes too long, another thread
//! goes on with those behind it; at most [`MAX_THREADS`] wait.

use super::super::Message;
use crossbeam_channel::{Receiver, Sender, unbounded};
use jscommon::worker::Worker;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long no start ends before another thread helps.
const STALL: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(1) };
/// The same once a thread was added and no start has ended since: those behind it hang too, most likely.
const NEXT_STALL: Duration = Duration::from_millis(50);
/// Threads that may wait for a start.
const MAX_THREADS: usize = 32;
/// How long a thread beside another idle one waits for work.
const LINGER: Duration = Duration::from_secs(1);
const STACK: usize = 256 * 1024;

/// Starts a process and tells what became of it; with `true` nothing is to be started any more.
type Start = Box<dyn FnOnce(bool) -> Message + Send>;

/// Starts that are under way, and the threads for them.
pub(super) struct Launcher {
    queue: Sender<(Arc<AtomicBool>, Start)>,
    inbox: Receiver<(Arc<AtomicBool>, Start)>,
    /// By run: starts without an answer, and whether they are cancelled.
    open: BTreeMap<u64, Arc<AtomicBool>>,
    /// When a start was answered last, or another thread was added.
    progress: Instant,
    /// How long from then on no start ends before another thread helps.
    patience: Duration,
    /// The last run that [`Launcher::tend`] returned.
    told: Option<u64>,
    threads: Arc<AtomicUsize>,
    idle: Arc<AtomicUsize>,
}

impl Default for Launcher {
    fn default() -> Launcher {
        let (queue, inbox) = unbounded();
        let (threads, idle) = Default::default();
        let (open, progress) = (BTreeMap::new(), Instant::now());
        Launcher { queue, inbox, open, progress, patience: STALL, told: None, threads, idle }
    }
}

impl Launcher {
    /// Has a thread do `start`, and sends what that returns to `answers`.
    pub(super) fn launch(&mut self, run: u64, start: Start, answers: &Sender<Message>) {
        if self.open.is_empty() {
            self.progress = Instant::now();
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        self.open.insert(run, cancelled.clone());
        let _ = self.queue.send((cancelled, start));
        if self.threads.load(Ordering::Acquire) == 0 {
            self.add(answers);
        }
    }

    /// Whether the start of this run has no answer yet.
    pub(super) fn is_open(&self, run: u64) -> bool {
        self.open.contains_key(&run)
    }

    /// The start of this run has its answer.
    pub(super) fn answered(&mut self, run: u64) {
        self.open.remove(&run);
        self.progress = Instant::now();
        self.patience = STALL;
    }

    /// Has nothing started for this run, if no thread has begun with it.
    pub(super) fn cancel(&self, run: u64) {
        if let Some(cancelled) = self.open.get(&run) {
            cancelled.store(true, Ordering::Release);
        }
    }

    /// Returns when another thread is needed.
    pub(super) fn due(&self) -> Option<Instant> {
        let may_help = !self.open.is_empty() && self.threads.load(Ordering::Acquire) < MAX_THREADS;
        (may_help && self.idle.load(Ordering::Acquire) == 0).then(|| self.progress + self.patience)
    }

    /// Adds a thread when one is due. Returns the run whose start hangs, each once: starts are begun in the
    /// order of their runs, so it is the oldest one that was not returned yet.
    pub(super) fn tend(&mut self, answers: &Sender<Message>) -> Option<u64> {
        self.due().filter(|due| *due <= Instant::now())?;
        self.progress = Instant::now();
        self.patience = NEXT_STALL;
        self.add(answers);
        let (run, _) = self.open.range(self.told.map_or(0, |told| told + 1)..).next()?;
        self.told = Some(*run);
        self.told
    }

    fn add(&self, answers: &Sender<Message>) {
        let (inbox, answers) = (self.inbox.clone(), answers.clone());
        let (threads, idle) = (self.threads.clone(), self.idle.clone());
        threads.fetch_add(1, Ordering::AcqRel);
        let count = threads.clone();
        let run = move || {
            serve(&inbox, &answers, &idle);
            threads.fetch_sub(1, Ordering::AcqRel);
        };
        match Worker::spawn("launcher", STACK, run) {
            Ok(worker) => worker.detach(),
            Err(fault) => {
                count.fetch_sub(1, Ordering::AcqRel);
                log::error!("no thread to start processes: {fault}");
            }
        }
    }
}

fn serve(inbox: &Receiver<(Arc<AtomicBool>, Start)>, answers: &Sender<Message>, idle: &AtomicUsize) {
    loop {
        // One thread stays; what a stall has added goes.
        let alone = idle.fetch_add(1, Ordering::AcqRel) == 0;
        let next = if alone { inbox.recv().ok() } else { inbox.recv_timeout(LINGER).ok() };
        idle.fetch_sub(1, Ordering::AcqRel);
        let Some((cancelled, start)) = next else { return };
        let _ = answers.send(start(cancelled.load(Ordering::Acquire)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(run: u64, held: Option<Receiver<()>>) -> Start {
        Box::new(move |cancelled| {
            held.map(|held| held.recv());
            Message::Answered { run, answer: Ok(cancelled.into()) }
        })
    }

    #[test]
    fn start_that_hangs_holds_up_the_next_ones_only_for_a_while() {
        let (answers, inbox) = unbounded();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let mut launcher = Launcher::default();
        let hung = 2 * MAX_THREADS as u64;
        for run in 0..4 {
            launcher.launch(run, start(run, (run < 3).then(|| held.clone())), &answers);
        }
        launcher.cancel(2);
        let begin = Instant::now();
        let mut told = Vec::new();
        let run = loop {
            if launcher.threads.load(Ordering::Acquire) == 2 {
                assert_eq!(launcher.patience, NEXT_STALL, "the next one is added sooner");
            }
            told.extend(launcher.tend(&answers));
            match inbox.recv_timeout(Duration::from_millis(5)) {
                Ok(Message::Answered { run, .. }) => break run,
                _ => assert!(begin.elapsed() < Duration::from_secs(30), "a start that hangs holds up all others"),
            }
        };
        assert_eq!(run, 3);
        assert_eq!(told[..3], [0, 1, 2], "each that hangs is told, and once");
        launcher.answered(run);
        assert_eq!(launcher.patience, STALL);
        // No more threads than the bound, however many starts hang.
        for run in 10..hung {
            launcher.launch(run, start(run, Some(held.clone())), &answers);
        }
        while launcher.threads.load(Ordering::Acquire) < MAX_THREADS {
            launcher.progress = begin - STALL;
            launcher.tend(&answers);
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
        launcher.progress = begin - STALL;
        assert_eq!((launcher.due(), launcher.tend(&answers)), (None, None));
        drop(release);
        let mut cancelled = 0;
        for _ in 0..3 + hung - 10 {
            match inbox.recv_timeout(Duration::from_secs(30)) {
                Ok(Message::Answered { run, answer }) => {
                    cancelled += u64::from(answer == Ok(true.into()));
                    launcher.answered(run);
                }
                _ => panic!("a start without an answer"),
            }
        }
        assert!(launcher.open.is_empty() && cancelled <= 1);
        while launcher.threads.load(Ordering::Acquire) > 1 {
            assert!(begin.elapsed() < Duration::from_secs(90), "one thread is enough again");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
