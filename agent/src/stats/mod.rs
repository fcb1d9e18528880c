//! Figures: what jobs and the node report, gathered for an interval and sent in one batch.
//!
//! **Owns** the series of the interval that runs and the flush, aligned to the clock. Lines come from
//! the pipe readers (level 10 messages) and from UDP ([`udp`]), figures from the [`crate::monitor`]. The
//! thread that brings lines parses them, under one lock: nothing is copied and nothing queues up, and a
//! flood slows its own source. Series are named `gid.nid.domain.name.key`; the node's own
//! `gid.nid.node.key`.
//!
//! **Does not** send: batches go into the upload queue.

use crate::config::Config;
use crate::job::JobLabel;
use crate::platform::unix_ms;
use crate::process_tree::members::Figures;
use crate::storage::upload_queue::{Kind, UploadQueue};
use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use jscommon::worker::Worker;
use jscommon::{NodeId, failpoint, series};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

mod aggregate;
mod pace;
mod statsd;
mod udp;

use aggregate::{Aggregate, Faults, Origin};
use jscommon::lock::lock;
use pace::Pace;

const STACK: usize = 256 * 1024;

/// Series of one batch: far below the 16 MiB that a controller takes.
const BATCH: usize = 20_000;

/// How long the monitor may take for a sample.
const SAMPLE_TIME: Duration = Duration::from_secs(30);

/// The group of what comes over UDP, for which there is neither domain nor name.
const NOBODY: &str = "unknown.unknown";

/// The running aggregator; dropping it flushes a last time.
pub(crate) struct Handle {
    inlet: Inlet,
    _udp: Option<udp::Handle>,
    /// Closed to end the thread, which is joined after.
    _stop: Sender<()>,
    _worker: Worker,
}

impl Handle {
    /// Starts the aggregator, and the UDP listener where one is configured.
    pub(crate) fn start(config: &Config, upload_queue: Arc<UploadQueue>) -> Result<Handle> {
        let inlet = Inlet::default();
        let (stop, stopped) = bounded(0);
        let udp = match config.stats.listen {
            Some(address) => Some(udp::Handle::start(address, inlet.clone())?),
            None => None,
        };
        let flusher = Flusher {
            node: config.main.node(),
            seconds: config.stats.interval.as_secs().max(1),
            max_age: config.monitor.interval * 2 + SAMPLE_TIME,
            shared: Arc::clone(&inlet.shared),
            upload_queue,
            stopped,
        };
        let worker =
            Worker::spawn("aggregator", STACK, move || flusher.run()).context("the aggregator cannot be started")?;
        Ok(Handle { inlet, _udp: udp, _stop: stop, _worker: worker })
    }

    /// Where figures go in.
    pub(crate) fn inlet(&self) -> Inlet {
        self.inlet.clone()
    }
}

/// Where figures go in.
#[derive(Clone, Default)]
pub struct Inlet {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    aggregate: Mutex<Aggregate>,
    /// A lock of its own, so that the supervisor never waits for a flood of lines.
    jobs: Mutex<Jobs>,
}

#[derive(Default)]
struct Jobs {
    /// Jobs that run, by group; a group that has none left stays until the flush after.
    running: HashMap<String, u64>,
    figures: HashMap<String, Figures>,
    /// When `figures` were taken.
    figures_at: Option<Instant>,
    node: Vec<(String, f64)>,
    /// When `node` was taken.
    node_at: Option<Instant>,
    /// Told when a job begins that is to be sampled at its own pace.
    monitor: Option<Sender<()>>,
}

impl Inlet {
    /// Takes the statsd lines of a job.
    pub fn lines(&self, source: &Arc<JobLabel>, lines: &str) {
        let group = group(&source.domain, &source.name);
        lock(&self.shared.aggregate).lines(Origin::Job, &group, lines.as_bytes());
    }

    /// A job began: its gauges live until it has ended. A job that starts again counts again.
    pub(crate) fn job_started(&self, source: &Arc<JobLabel>) {
        let mut jobs = lock(&self.shared.jobs);
        *jobs.running.entry(group(&source.domain, &source.name)).or_default() += 1;
        if let Some(monitor) = jobs.monitor.as_ref().filter(|_| source.stats_interval.is_some()) {
            let _ = monitor.try_send(());
        }
    }

    /// Has `wake` told when a job begins that is to be sampled at its own pace.
    pub(crate) fn wake_monitor(&self, wake: Sender<()>) {
        lock(&self.shared.jobs).monitor = Some(wake);
    }

    /// A job ended, once for each time that it began.
    pub(crate) fn job_ended(&self, source: &Arc<JobLabel>) {
        if let Some(running) = lock(&self.shared.jobs).running.get_mut(&group(&source.domain, &source.name)) {
            *running = running.saturating_sub(1);
        }
    }

    /// The newest figures of all domains and names that have processes.
    pub(crate) fn figures(&self, figures: HashMap<(String, String), Figures>) {
        let figures = figures.into_iter().map(|((domain, name), figures)| (group(&domain, &name), figures));
        let mut jobs = lock(&self.shared.jobs);
        jobs.figures = figures.collect();
        jobs.figures_at = Some(Instant::now());
    }

    /// The newest figures of the node itself, by key.
    pub(crate) fn node(&self, figures: Vec<(String, f64)>) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.node = figures;
        jobs.node_at = Some(Instant::now());
    }

    /// Takes datagrams.
    fn datagrams<'a>(&self, datagrams: impl Iterator<Item = &'a [u8]>) {
        let mut aggregate = lock(&self.shared.aggregate);
        datagrams.for_each(|datagram| aggregate.lines(Origin::Datagram, NOBODY, datagram));
    }
}

/// `domain.name` as in the names of series.
fn group(domain: &str, name: &str) -> String {
    format!("{}.{}", series::part(domain), series::part(name))
}

/// The thread that ends intervals.
struct Flusher {
    node: NodeId,
    /// Length of an interval.
    seconds: u64,
    /// Samples of the monitor that are older than this are not sent: it hangs.
    max_age: Duration,
    shared: Arc<Shared>,
    upload_queue: Arc<UploadQueue>,
    stopped: Receiver<()>,
}

impl Flusher {
    fn run(self) {
        let mut pace = Pace::new(self.seconds, unix_ms() as u64);
        while self.stopped.recv_timeout(pace.wait(unix_ms() as u64)) == Err(RecvTimeoutError::Timeout) {
            if let Some(timestamp) = pace.woke(unix_ms() as u64) {
                self.flush(timestamp);
            }
        }
        self.flush(pace.close(unix_ms() as u64));
    }

    /// Ends the interval and puts its series into the upload queue; `timestamp` is in seconds since 1970.
    fn flush(&self, timestamp: u64) {
        failpoint::hit("agent.flushed");
        let jobs = {
            let mut jobs = lock(&self.shared.jobs);
            let is_stale = |taken: Option<Instant>| taken.is_some_and(|taken| taken.elapsed() > self.max_age);
            if is_stale(jobs.figures_at) {
                jobs.figures.clear();
            }
            if is_stale(jobs.node_at) {
                jobs.node.clear();
            }
            let running = jobs.running.clone();
            // Jobs that have ended are in this flush for the last time.
            jobs.running.retain(|_, running| *running > 0);
            let Jobs { running: left, figures, .. } = &mut *jobs;
            let now = figures.clone();
            figures.retain(|group, _| left.contains_key(group));
            Jobs { running, figures: now, node: jobs.node.clone(), ..Jobs::default() }
        };
        // A job that is not known to run can only be one that has ended.
        let lives = |group: &str| jobs.running.get(group).is_some_and(|running| *running > 0);
        let interval = lock(&self.shared.aggregate).flush(self.seconds, lives);
        if !self.upload_queue.wanted(Kind::Stats) {
            return;
        }
        let prefix = format!("{}.{}", self.node.gid, self.node.nid);
        let mut batch =
            Sink { prefix, timestamp: timestamp as i64, upload_queue: &self.upload_queue, series: Vec::new() };
        for (group, figures) in &jobs.figures {
            let Figures { cpu, rss, vms, read, written, processes } = *figures;
            batch.add(group, "process", ".cpu", cpu);
            for (key, value) in
                [(".rss", rss), (".vms", vms), (".read", read), (".written", written), (".count", processes)]
            {
                batch.add(group, "process", key, value as f64);
            }
        }
        for (key, value) in &jobs.node {
            batch.add("node", key, "", *value);
        }
        let faults = interval.series(self.seconds, &mut |group, key, end, value| batch.add(group, key, end, value));
        batch.faults(faults);
        batch.send();
    }
}

/// Gathers series into batches.
struct Sink<'a> {
    prefix: String,
    /// The moment that the interval ended at, for all of its batches.
    timestamp: i64,
    upload_queue: &'a UploadQueue,
    series: Vec<(String, f64)>,
}

impl Sink<'_> {
    fn add(&mut self, group: &str, key: &str, end: &str, value: f64) {
        // A sum can overflow; JSON has no word for that.
        if value.is_finite() {
            self.series.push((format!("{}.{group}.{key}{end}", self.prefix), value));
            if self.series.len() >= BATCH {
                self.send();
            }
        }
    }

    /// Adds each kind of fault as a series, and logs it.
    fn faults(&mut self, faults: Faults) {
        let Faults { bad_lines, dropped, full_sets } = faults;
        for (key, count, what) in [
            ("stats.bad_lines", bad_lines, "lines were not understood, or their keys have none of A-Z a-z 0-9 _ - ."),
            ("stats.dropped", dropped, "samples were dropped, for there are too many series"),
            ("stats.full_sets", full_sets, "sets have reached their bound"),
        ] {
            if count > 0 {
                log::warn!("stats: {count} {what}");
                self.add("node", key, "", count as f64);
            }
        }
    }

    fn send(&mut self) {
        self.upload_queue.push_stats(self.timestamp, &self.series);
        self.series.clear();
    }
}

#[cfg(test)]
mod tests;
