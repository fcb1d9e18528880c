//! The monitor: a sample of every job's process tree and of the node, each interval.
//!
//! Jobs of one domain and name are summed. A job with a `stats_interval` is sampled at its own pace;
//! between two samples its last one stands. Asks the supervisor for the trees, and gives what it
//! finds to the aggregator. Keeps nothing else.

use crate::config::Config;
use crate::platform;
use crate::process_tree::members::Figures;
use crate::stats::Inlet;
use crate::supervisor::{self, ProcessEntry};
use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, at, bounded, select};
use jscommon::failpoint;
use jscommon::worker::Worker;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use sysinfo::{MemoryRefreshKind, Networks, RefreshKind, System};

const STACK: usize = 256 * 1024;

/// How long after a job's start it is first looked at, when it has a pace of its own.
const GATHER_TIME: Duration = Duration::from_millis(200);

/// The running monitor; dropping it ends its thread.
pub(crate) struct Handle {
    /// Closed to end the thread, which is joined after.
    _stop: Sender<()>,
    _worker: Worker,
}

/// Starts to sample.
pub(crate) fn start(config: &Config, processes: supervisor::Remote, inlet: Inlet) -> Result<Handle> {
    let (stop, stopped) = bounded::<()>(0);
    let interval = config.monitor.interval.max(Duration::from_secs(1));
    let (wake, woken) = bounded(1);
    inlet.wake_monitor(wake);
    let worker = Worker::spawn("monitor", STACK, move || {
        let mut samples = Samples::new(interval);
        let mut node = Node::new();
        loop {
            let now = Instant::now();
            failpoint::hit("agent.sampled");
            if samples.node_is_due(now) {
                inlet.node(node.figures(&stopped));
            }
            if samples.are_due(now) {
                inlet.figures(samples.take(now, processes.processes()));
            }
            select! {
                recv(stopped) -> _ => return,
                recv(woken) -> _ => {
                    // Many jobs that begin together are looked at together.
                    if stopped.recv_timeout(GATHER_TIME) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                    samples.look();
                }
                recv(at(samples.next(now))) -> _ => {}
            }
        }
    })
    .context("the monitor cannot be started")?;
    Ok(Handle { _stop: stop, _worker: worker })
}

/// The last sample of every job. Pure: time is handed in.
struct Samples {
    interval: Duration,
    /// When the node itself is due; nothing is now.
    node: Option<Instant>,
    /// When all jobs without an interval of their own are due.
    all: Option<Instant>,
    jobs: HashMap<String, Sample>,
    /// There are jobs that have not been seen yet.
    news: bool,
}

struct Sample {
    group: (String, String),
    figures: Figures,
    /// When the job itself is due, where it has an interval of its own.
    due: Option<Instant>,
}

impl Samples {
    fn new(interval: Duration) -> Samples {
        Samples { interval, node: None, all: None, jobs: HashMap::new(), news: false }
    }

    /// A job has begun: there is something to be seen now.
    fn look(&mut self) {
        self.news = true;
    }

    /// When the next sample is to be taken; nothing is now.
    fn due(&self) -> Option<Instant> {
        let all = self.all.filter(|_| !self.news)?;
        Some(self.jobs.values().filter_map(|job| job.due).fold(all, Instant::min))
    }

    /// Whether the node itself is due; then it was looked at.
    fn node_is_due(&mut self, now: Instant) -> bool {
        let due = self.node.is_none_or(|due| due <= now);
        if due {
            self.node = Some(now + self.interval);
        }
        due
    }

    /// Whether any job is due.
    fn are_due(&self, now: Instant) -> bool {
        self.due().is_none_or(|due| due <= now)
    }

    /// When anything is due next, after what was due at `now` was looked at.
    fn next(&self, now: Instant) -> Instant {
        self.due().into_iter().chain(self.node).min().unwrap_or(now)
    }

    /// Takes what is due of `entries`, and sums it up by domain and name.
    fn take(&mut self, now: Instant, entries: Vec<ProcessEntry>) -> HashMap<(String, String), Figures> {
        self.news = false;
        let all = self.all.is_none_or(|due| due <= now);
        if all {
            self.all = Some(now + self.interval);
        }
        let living: HashSet<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
        self.jobs.retain(|id, _| living.contains(id.as_str()));
        for entry in entries {
            let own = entry.stats_interval.filter(|seconds| *seconds > 0).map(Duration::from_secs);
            let due = match self.jobs.get(&entry.id) {
                Some(job) => job.due.map_or(all, |due| due <= now),
                None => true,
            };
            if due {
                let sample =
                    Sample { group: (entry.domain, entry.name), figures: entry.figures, due: own.map(|own| now + own) };
                self.jobs.insert(entry.id, sample);
            }
        }
        let mut sums: HashMap<(String, String), Figures> = HashMap::new();
        for Sample { group, figures, .. } in self.jobs.values() {
            *sums.entry(group.clone()).or_default() += *figures;
        }
        sums
    }
}

/// The sources of the node's own figures; one that the system lacks is `None`.
struct Node {
    system: Option<System>,
    processors: Option<platform::Processors>,
    networks: Option<Networks>,
}

impl Node {
    fn new() -> Node {
        let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
        Node {
            system: System::new_with_specifics(refresh).ok(),
            processors: platform::Processors::new(),
            networks: Networks::new_with_refreshed_list().ok(),
        }
    }

    /// Returns the figures of now; they come at once when `stop` is closed.
    fn figures(&mut self, stop: &Receiver<()>) -> Vec<(String, f64)> {
        let mut figures = Vec::new();
        let mut add = |key: String, value: f64| figures.push((key, value));
        if let Ok(load) = System::load_average() {
            for (key, value) in [("load.1", load.one), ("load.5", load.five), ("load.15", load.fifteen)] {
                add(key.into(), value);
            }
        }
        if let Some(processors) = &mut self.processors {
            add("cpu.usage".into(), processors.usage());
        }
        if let Some(system) = &mut self.system {
            system.refresh_memory();
            for (key, value) in [
                ("mem.total", system.total_memory()),
                ("mem.used", system.used_memory()),
                ("mem.available", system.available_memory()),
                ("swap.total", system.total_swap()),
                ("swap.used", system.used_swap()),
            ] {
                add(key.into(), value as f64);
            }
        }
        for disk in platform::disks(stop) {
            // Nothing is told of a file system that does not answer: its last figures are no figures of now.
            let Some(platform::Space { total, free }) = disk.space else { continue };
            let name = part(&disk.mount);
            for (key, value) in [("total", total), ("used", total.saturating_sub(free)), ("free", free)] {
                add(format!("disk.{name}.{key}"), value as f64);
            }
        }
        if let Some(networks) = &mut self.networks {
            networks.refresh(true);
            for (name, network) in networks.iter() {
                let name = part(&name.to_string_lossy());
                for (key, value) in [
                    ("rx_bytes", network.total_received()),
                    ("tx_bytes", network.total_transmitted()),
                    ("rx_errors", network.total_errors_on_received()),
                    ("tx_errors", network.total_errors_on_transmitted()),
                ] {
                    add(format!("nic.{name}.{key}"), value as f64);
                }
            }
        }
        figures
    }
}

/// A mount point or an interface as a part of a key; `/` is `root`.
fn part(name: &str) -> String {
    match name.trim_matches(['/', '\\']) {
        "" => "root".to_owned(),
        name => jscommon::series::part(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, name: &str, rss: u64, stats_interval: Option<u64>) -> ProcessEntry {
        ProcessEntry {
            id: id.into(),
            cmd: "execute".into(),
            domain: "d".into(),
            name: name.into(),
            pid: 1,
            state: "RUNNING",
            figures: Figures { cpu: 1.5, rss, vms: 2, read: 3, written: 4, processes: 1 },
            starttime: 0,
            restarts: 0,
            stats_interval,
        }
    }

    #[test]
    fn jobs_of_one_name_are_summed() {
        let mut samples = Samples::new(Duration::from_secs(30));
        let now = Instant::now();
        let sums =
            samples.take(now, vec![entry("a", "n", 10, None), entry("b", "n", 5, None), entry("c", "m", 1, None)]);
        let sum = sums[&("d".into(), "n".into())];
        assert_eq!((sum.rss, sum.cpu, sum.vms, sum.read, sum.written, sum.processes), (15, 3.0, 4, 6, 8, 2));
        assert_eq!(sums.len(), 2);
        assert_eq!(samples.due(), Some(now + Duration::from_secs(30)));
        assert!(samples.take(now, vec![]).is_empty());
    }

    #[test]
    fn a_job_with_its_own_interval_is_sampled_at_its_own_pace() {
        let mut samples = Samples::new(Duration::from_secs(30));
        let start = Instant::now();
        assert_eq!(samples.due(), None);
        samples.take(start, vec![entry("a", "n", 10, None), entry("b", "m", 10, Some(5))]);
        let later = start + Duration::from_secs(5);
        assert_eq!(samples.due(), Some(later));
        let sums = samples.take(later, vec![entry("a", "n", 20, None), entry("b", "m", 20, Some(5))]);
        assert_eq!((sums[&("d".into(), "n".into())].rss, sums[&("d".into(), "m".into())].rss), (10, 20));
        let sums = samples.take(start + Duration::from_secs(31), vec![entry("a", "n", 30, None)]);
        assert_eq!(sums[&("d".into(), "n".into())].rss, 30);
        // A job that has just begun is looked at now.
        samples.look();
        assert_eq!(samples.due(), None);
    }

    /// Once a moment that had come was due again at once, and the monitor took a whole core.
    #[test]
    fn taken_sample_is_not_due_again_at_once() {
        let mut samples = Samples::new(Duration::from_secs(30));
        let entries = || vec![entry("a", "n", 1, None), entry("b", "m", 1, Some(7)), entry("c", "m", 1, Some(0))];
        let start = Instant::now();
        let (mut now, mut looks, mut turns) = (start, 0, 0);
        while now < start + Duration::from_secs(3600) {
            turns += 1;
            samples.node_is_due(now);
            if samples.are_due(now) {
                samples.take(now, entries());
                looks += 1;
            }
            let next = samples.next(now);
            assert!(next > now, "turn {turns}");
            // Timers are late, never early.
            now = next + Duration::from_millis(1);
            if turns == 5 {
                samples.look();
                now = next - Duration::from_secs(1);
            }
        }
        // One each 30 s, one each 7 s, one for what was new.
        let most = 3600 / 30 + 3600 / 7 + 3;
        assert!(turns <= most && looks <= most && turns > most / 2, "{turns} turns, {looks} looks in an hour");
    }

    #[test]
    fn the_node_says_what_it_has() {
        let figures: HashMap<String, f64> = Node::new().figures(&crossbeam_channel::never()).into_iter().collect();
        assert!(figures["mem.total"] > 0.0 && figures.contains_key("load.1"));
    }
}
