//! The threads that start processes, so that the supervisor never waits for a file system.
//!
//! A start waits until the child has found its folder and its program, and both may lie on a file system
//! that does not answer. One thread starts processes in order. When a start takes too long, another thread
//! goes on with those behind it; at most [`MAX_THREADS`] wait. A start that cannot be ended keeps its thread for
//! good, so a job has one such start at most, and when all threads hang further jobs are refused.

use super::Message;
use crossbeam_channel::{Receiver, Sender, unbounded};
use jscommon::worker::Worker;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long no start ends before another thread helps.
const STALL: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(1) };
/// The same once a thread was added and no start has ended since: those behind it hang too, most likely.
const NEXT_STALL: Duration = Duration::from_millis(50);
/// How long all threads hang before further starts are refused.
const REFUSE_AFTER: Duration = Duration::from_secs(10);
/// Threads that may wait for a start.
const MAX_THREADS: usize = 32;
/// How long a thread beside another idle one waits for work.
const LINGER: Duration = Duration::from_secs(1);
const STACK: usize = 256 * 1024;

/// Whether a start may still be made. Its thread asks before each step that cannot be undone.
#[derive(Debug, Default)]
pub(super) struct Leave(AtomicU8);

impl Leave {
    const ENDED: u8 = 1;
    const NO_THREAD: u8 = 2;

    /// Why nothing is to be started any more.
    pub(super) fn refusal(&self) -> Option<&'static str> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            Leave::ENDED => Some("the job was ended before its start"),
            _ => Some("every thread that starts processes waits for a file system that does not answer"),
        }
    }

    fn withdraw(&self, why: u8) {
        self.0.store(why, Ordering::Release);
    }
}

/// Starts a process and tells what became of it.
type Start = Box<dyn FnOnce(&Leave) -> Message + Send>;

/// A start without an answer.
struct Open {
    leave: Arc<Leave>,
    since: Instant,
    /// Whether [`Launcher::check_threads`] has returned it.
    told: bool,
    /// Its job, once it was given up.
    given_up: Option<Arc<str>>,
}

/// Starts that are under way, and the threads for them.
pub(super) struct Launcher {
    queue: Sender<(Arc<Leave>, Start)>,
    inbox: Receiver<(Arc<Leave>, Start)>,
    /// By run.
    open: BTreeMap<u64, Open>,
    /// When a start was answered last, or another thread was added.
    progress: Instant,
    /// How long from then on no start ends before another thread helps.
    stall_limit: Duration,
    /// Whether it was logged that starts are refused.
    refuses: bool,
    threads: Arc<AtomicUsize>,
    idle: Arc<AtomicUsize>,
}

impl Default for Launcher {
    fn default() -> Launcher {
        let (queue, inbox) = unbounded();
        let (threads, idle) = Default::default();
        let (open, progress) = (BTreeMap::new(), Instant::now());
        Launcher { queue, inbox, open, progress, stall_limit: STALL, refuses: false, threads, idle }
    }
}

impl Launcher {
    /// Has a thread do `start`, and sends what that returns to `answers`.
    pub(super) fn launch(&mut self, run: u64, start: Start, answers: &Sender<Message>) {
        let now = Instant::now();
        let leave = Arc::<Leave>::default();
        if self.threads() >= MAX_THREADS && self.all_busy() && now >= self.progress + REFUSE_AFTER {
            if !std::mem::replace(&mut self.refuses, true) {
                log::error!("{MAX_THREADS} starts of jobs wait for file systems that do not answer; no job can start");
            }
            leave.withdraw(Leave::NO_THREAD);
            let _ = answers.send(start(&leave));
            return;
        }
        if self.inbox.is_empty() && self.threads() < MAX_THREADS {
            self.progress = now;
        }
        self.open.insert(run, Open { leave: leave.clone(), since: now, told: false, given_up: None });
        let _ = self.queue.send((leave, start));
        if self.threads() == 0 {
            self.add(answers);
        }
    }

    /// Returns how many starts wait for a thread that makes one after the other; 0 while a start hangs.
    pub(super) fn backlog(&self) -> usize {
        if self.stall_limit == STALL && self.progress.elapsed() < NEXT_STALL { self.inbox.len() } else { 0 }
    }

    /// Whether the start of this run has no answer yet.
    pub(super) fn is_open(&self, run: u64) -> bool {
        self.open.contains_key(&run)
    }

    /// The start of this run has its answer.
    pub(super) fn answered(&mut self, run: u64) {
        if self.open.remove(&run).is_some() {
            self.progress = Instant::now();
            self.stall_limit = STALL;
            self.refuses = false;
        }
    }

    /// Has nothing started for this run of `job`, if that is not done already.
    pub(super) fn give_up(&mut self, run: u64, job: Option<Arc<str>>) {
        if let Some(open) = self.open.get_mut(&run) {
            open.leave.withdraw(Leave::ENDED);
            open.given_up = job;
        }
    }

    /// Whether a start of this job was given up and still hangs.
    pub(super) fn hangs(&self, job: &str) -> bool {
        self.open.values().any(|open| open.given_up.as_deref() == Some(job))
    }

    /// Returns when [`Launcher::check_threads`] is needed.
    pub(super) fn due(&self) -> Option<Instant> {
        let helped = (self.is_short() && self.threads() < MAX_THREADS).then(|| self.progress + self.stall_limit);
        let told = self.begun().find(|(_, open)| !open.told).map(|(_, open)| open.since + STALL);
        helped.into_iter().chain(told).min()
    }

    /// Adds a thread when one is needed. Returns a run whose start takes long, each once.
    pub(super) fn check_threads(&mut self, answers: &Sender<Message>) -> Option<u64> {
        let now = Instant::now();
        if self.is_short() && self.threads() < MAX_THREADS && now >= self.progress + self.stall_limit {
            self.progress = now;
            self.stall_limit = NEXT_STALL;
            self.add(answers);
        }
        let (run, _) = self.begun().find(|(_, open)| !open.told && now >= open.since + STALL)?;
        self.open.get_mut(&run)?.told = true;
        Some(run)
    }

    /// Whether starts wait for a thread.
    fn is_short(&self) -> bool {
        self.all_busy() && !self.inbox.is_empty()
    }

    /// The starts that threads are at: they take them in the order of their runs.
    fn begun(&self) -> impl Iterator<Item = (u64, &Open)> {
        let busy = self.threads().saturating_sub(self.idle.load(Ordering::Acquire));
        self.open.iter().take(busy).map(|(run, open)| (*run, open))
    }

    fn threads(&self) -> usize {
        self.threads.load(Ordering::Acquire)
    }

    fn all_busy(&self) -> bool {
        self.idle.load(Ordering::Acquire) == 0
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

fn serve(inbox: &Receiver<(Arc<Leave>, Start)>, answers: &Sender<Message>, idle: &AtomicUsize) {
    loop {
        // One thread stays; what a stall has added goes.
        let alone = idle.fetch_add(1, Ordering::AcqRel) == 0;
        let next = if alone { inbox.recv().ok() } else { inbox.recv_timeout(LINGER).ok() };
        idle.fetch_sub(1, Ordering::AcqRel);
        let Some((leave, start)) = next else { return };
        let _ = answers.send(start(&leave));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(run: u64, held: Option<Receiver<()>>) -> Start {
        Box::new(move |leave| {
            held.map(|held| held.recv());
            Message::Answered { run, answer: Ok(leave.refusal().into()) }
        })
    }

    /// Tends until `done`, and says which runs were told.
    #[track_caller]
    fn check_threads(
        launcher: &mut Launcher,
        answers: &Sender<Message>,
        mut done: impl FnMut(&mut Launcher) -> bool,
    ) -> Vec<u64> {
        let begin = Instant::now();
        let mut told = Vec::new();
        while !done(launcher) {
            told.extend(launcher.check_threads(answers));
            std::thread::sleep(Duration::from_millis(2));
            assert!(begin.elapsed() < Duration::from_secs(60), "it takes too long");
        }
        told
    }

    #[test]
    fn start_that_hangs_holds_up_the_next_ones_only_for_a_while() {
        let (answers, inbox) = unbounded();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let mut launcher = Launcher::default();
        for run in 0..4 {
            launcher.launch(run, start(run, (run < 3).then(|| held.clone())), &answers);
        }
        launcher.give_up(2, Some("job".into()));
        assert!(launcher.hangs("job") && !launcher.hangs("other"));
        let mut answered = None;
        let told = check_threads(&mut launcher, &answers, |launcher| {
            // Once one hangs, those behind it get their thread sooner.
            assert!(launcher.threads() < 2 || launcher.stall_limit == NEXT_STALL);
            answered = inbox.try_recv().ok();
            answered.is_some()
        });
        assert!(matches!(answered, Some(Message::Answered { run: 3, .. })), "a start that hangs holds up all others");
        launcher.answered(3);
        assert_eq!(launcher.stall_limit, STALL);
        let more = check_threads(&mut launcher, &answers, |launcher| launcher.due().is_none());
        let mut told = [told, more].concat();
        // On a slow machine the one that is quick may take as long.
        told.retain(|run| *run != 3);
        assert_eq!(told, [0, 1, 2], "each that hangs is told once");
        // One that is quick is not told, and needs no other thread, however long another hangs.
        let threads = launcher.threads();
        launcher.launch(5, start(5, None), &answers);
        assert!(matches!(inbox.recv_timeout(Duration::from_secs(30)), Ok(Message::Answered { run: 5, .. })));
        launcher.answered(5);
        assert_eq!(launcher.check_threads(&answers), None);
        assert!(launcher.threads() <= threads);
        drop(release);
        let mut ended = 0;
        for _ in 0..3 {
            let Ok(Message::Answered { run, answer }) = inbox.recv_timeout(Duration::from_secs(30)) else {
                panic!("a start without an answer");
            };
            ended += u64::from(answer == Ok("the job was ended before its start".into()));
            launcher.answered(run);
        }
        assert!(launcher.open.is_empty() && ended == 1 && !launcher.hangs("job"));
        check_threads(&mut launcher, &answers, |launcher| launcher.threads() == 1);
    }

    #[test]
    fn starts_behind_one_that_hangs_are_no_backlog() {
        let (answers, _inbox) = unbounded();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let mut launcher = Launcher::default();
        for run in 0..20 {
            launcher.launch(run, start(run, Some(held.clone())), &answers);
        }
        launcher.progress = Instant::now() + STALL;
        assert!(launcher.backlog() > 0);
        launcher.progress = Instant::now() - NEXT_STALL;
        assert_eq!(launcher.backlog(), 0, "nothing was answered for a while");
        launcher.answered(0);
        launcher.progress = Instant::now() + STALL;
        assert!(launcher.backlog() > 0);
        launcher.stall_limit = NEXT_STALL;
        assert_eq!(launcher.backlog(), 0, "another thread had to help");
        drop(release);
    }

    #[test]
    fn starts_are_refused_while_as_many_hang_as_there_may_be_threads() {
        let (answers, inbox) = unbounded();
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let mut launcher = Launcher::default();
        let all = MAX_THREADS as u64;
        for run in 0..all + 1 {
            launcher.launch(run, start(run, (run < all).then(|| held.clone())), &answers);
        }
        check_threads(&mut launcher, &answers, |launcher| launcher.threads() == MAX_THREADS && launcher.all_busy());
        check_threads(&mut launcher, &answers, |launcher| launcher.due().is_none());
        assert_eq!(launcher.threads(), MAX_THREADS);
        // For a while it waits for one that ends.
        assert!(inbox.is_empty());
        launcher.progress -= REFUSE_AFTER;
        launcher.launch(100, start(100, None), &answers);
        let Ok(Message::Answered { run: 100, answer: Ok(why) }) = inbox.try_recv() else { panic!("no answer at once") };
        assert!(why.as_str().is_some_and(|why| why.contains("does not answer")), "{why}");
        launcher.answered(100);
        launcher.launch(101, start(101, None), &answers);
        assert!(matches!(inbox.try_recv(), Ok(Message::Answered { run: 101, .. })), "and so is the next");
        drop(release);
        for _ in 0..all + 1 {
            let Ok(Message::Answered { run, .. }) = inbox.recv_timeout(Duration::from_secs(30)) else {
                panic!("a start without an answer");
            };
            launcher.answered(run);
        }
        launcher.launch(102, start(102, None), &answers);
        let answer = inbox.recv_timeout(Duration::from_secs(30));
        assert!(matches!(answer, Ok(Message::Answered { run: 102, answer: Ok(serde_json::Value::Null) })));
    }
}
