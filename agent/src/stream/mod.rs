//! Live output: what a watched job writes, files that are asked for, and records, on their way to a controller.
//!
//! **Owns** the watches of this node, the spools of its jobs (`data_dir/spool`), and the threads that send.
//! **Does not own** HTTP (a [`Post`] is handed in), processes, or the pipes: a reader hands bytes to a [`Spool`].
//!
//! A watch is asked, sends, waits for room, and ends with its end frame, a refusal, or when it has lapsed.
//! Without a watch there is no thread and no open file.

mod record_source;
mod segments;
mod sender;
mod source;
mod spool;
mod suffix;
mod watch;

use self::record_source::RecordSource;
use self::sender::{Active, Lane};
use self::source::{FileSource, JobSource, Source};
use self::spool::Shared;
use self::watch::Watch;
use crate::storage::message_log::{LogReader, Query};
use jscommon::{Command, NodeId};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) use self::segments::Position;
pub(crate) use self::sender::{Post, Posted};
pub(crate) use self::spool::{Lapsed, Spool};
pub(crate) use self::watch::Reply;

/// How long a stop waits for what is still to be sent.
const LAST_REQUESTS: Duration = Duration::from_secs(3);

/// The place at which a watch of a job begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// With so many bytes of what is there, about: at a frame's begin.
    Tail(u64),
    /// At these positions.
    Position(Position),
}

/// All watches of this node.
pub(crate) struct Streams {
    shared: Arc<Shared>,
    lanes: HashMap<String, Arc<Lane>>,
    /// Watches that an earlier agent had opened.
    resumed: Mutex<HashSet<String>>,
}

impl Streams {
    /// Takes up what an earlier agent left, and sends the rest of its watches to the controllers of these names.
    pub(crate) fn start(data_dir: &Path, posts: impl IntoIterator<Item = (String, Arc<dyn Post>)>) -> Arc<Streams> {
        let lanes = posts.into_iter().map(|(name, post)| (name.clone(), Lane::new(&name, post))).collect();
        let shared = Arc::new(Shared::new(data_dir.join("spool")));
        let streams = Arc::new(Streams { shared, lanes, resumed: Mutex::default() });
        for entry in fs::read_dir(&streams.shared.root).into_iter().flatten().flatten() {
            streams.recover(&entry.path());
        }
        streams
    }

    fn recover(&self, dir: &Path) {
        let error = "the agent ended while the job ran: what it wrote after this is not known";
        let (spool, open) = match Spool::recover(&self.shared, dir, error) {
            Ok((spool, open)) => (Arc::new(spool), open),
            Err(fault) => {
                log::warn!("the spool {} cannot be read and is removed: {fault}", dir.display());
                let _ = fs::remove_dir_all(dir);
                return;
            }
        };
        for meta in open {
            let text = |name: &str| meta[name].as_str().unwrap_or_default().to_owned();
            let (id, Some(lane)) = (text("watch"), self.lanes.get(&text("controller"))) else { continue };
            let base = meta["base"].as_u64().unwrap_or(0);
            let gap = [0, 1].map(|n| meta["gap"][n].as_u64().unwrap_or(0));
            jscommon::lock::lock(&self.resumed).insert(id.clone());
            let id: Arc<str> = id.into();
            if spool.open(&id, base, lane.waker(), None).is_ok() {
                let source = Source::Job(Box::new(JobSource::new(spool.clone(), base, gap, true)));
                lane.add(Active { id, ticket: text("ticket"), watch: Watch::resumed(), source });
            }
        }
        self.shared.keep(spool);
    }

    /// Whether an earlier agent had opened this watch.
    pub(crate) fn is_resumed(&self, id: &str) -> bool {
        jscommon::lock::lock(&self.resumed).contains(id)
    }

    /// Makes the spool of a job whose output is at `position`. It has no file until it has a watch or a byte.
    /// `lapsed` is called when its last watch has lapsed.
    pub(crate) fn spool(&self, job: &str, position: Position, lapsed: Option<Lapsed>) -> Arc<Spool> {
        Arc::new(Spool::new(&self.shared, job, position).on_lapse(lapsed))
    }

    /// Opens a watch on a job for this command; returns the positions at which its frames begin.
    pub(crate) fn watch(
        &self,
        spool: &Arc<Spool>,
        controller: &str,
        command: &Command,
        from: From,
    ) -> Result<Position, String> {
        let lane = self.lane(controller)?;
        let unreadable = |fault: std::io::Error| format!("the spool of job {} cannot be read: {fault}", spool.job);
        let (place, gap, position) = match from {
            From::Tail(bytes) => {
                let place = spool.find_tail(bytes).map_err(unreadable)?;
                (place.offset, [0, 0], place.position)
            }
            From::Position(wanted) => {
                let (start, end, found) = spool.find(wanted).map_err(unreadable)?;
                let is_ahead = |n: usize| wanted[n] > end.position[n];
                if is_ahead(0) || is_ahead(1) {
                    let [out, err] = end.position;
                    return Err(format!("job {} has written {out} and {err} bytes: from is beyond that", spool.job));
                }
                match found {
                    Some(found) => (found.offset, [0, 0], found.position),
                    None => {
                        let missing = [0, 1].map(|n| start.position[n].saturating_sub(wanted[n]));
                        (start.offset, missing, [0, 1].map(|n| wanted[n].min(start.position[n])))
                    }
                }
            }
        };
        let id: Arc<str> = command.id.as_str().into();
        let ticket = command.ticket().unwrap_or_default().to_owned();
        let meta = json!({"watch": &*id, "controller": controller, "ticket": ticket, "base": place, "gap": gap});
        spool.open(&id, place, lane.waker(), Some(&meta))?;
        let source = Source::Job(Box::new(JobSource::new(spool.clone(), place, gap, false)));
        let watch = Watch::new().asking_when_idle(spool.tells_lapse());
        lane.add(Active { id, ticket, watch, source });
        Ok(position)
    }

    /// Sends a part of a regular file as the watch of this command; returns the file's facts.
    pub(crate) fn send_file(
        &self,
        controller: &str,
        command: &Command,
        path: &Path,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Value, String> {
        let lane = self.lane(controller)?;
        let wrong = |why: &str| format!("{}: {why}", path.display());
        // A device or a pipe may hang or change something when it is opened.
        let meta = fs::metadata(path).map_err(|fault| wrong(&fault.to_string()))?;
        if !meta.is_file() {
            return Err(wrong("it is no regular file, and only those are sent"));
        }
        // A file there has another size than it has bytes, and to read one may wait or change something.
        let real = path.canonicalize().map_err(|fault| wrong(&fault.to_string()))?;
        if real.starts_with("/proc") || real.starts_with("/sys") {
            return Err(wrong("files of /proc and /sys have no size of their own: run a program that reads it"));
        }
        let file = File::open(path).map_err(|fault| wrong(&fault.to_string()))?;
        let meta = file.metadata().map_err(|fault| wrong(&fault.to_string()))?;
        if offset > meta.len() {
            return Err(wrong(&format!("it has {} bytes: offset is beyond that", meta.len())));
        }
        let left = meta.len() - offset;
        let length = length.map_or(left, |length| length.min(left));
        let facts = source::file_facts(&meta);
        let source = Source::File(Box::new(FileSource::new(file, offset, length, facts.clone())));
        let ticket = command.ticket().unwrap_or_default().to_owned();
        lane.add(Active { id: command.id.as_str().into(), ticket, watch: Watch::new(), source });
        Ok(facts)
    }

    /// Sends the records that a query finds, now and later, as the watch of this command; returns the id after which
    /// they begin.
    pub(crate) fn follow(
        &self,
        controller: &str,
        command: &Command,
        records: &LogReader,
        query: Query,
        node: NodeId,
    ) -> Result<u32, String> {
        let lane = self.lane(controller)?;
        let follower = records.follow(query, node, lane.waker()).map_err(|fault| format!("{fault:#}"))?;
        let from = follower.start().id();
        let source = Source::Records(Box::new(RecordSource::new(follower)));
        let ticket = command.ticket().unwrap_or_default().to_owned();
        lane.add(Active { id: command.id.as_str().into(), ticket, watch: Watch::new().asking_when_idle(true), source });
        Ok(from)
    }

    fn lane(&self, controller: &str) -> Result<&Arc<Lane>, String> {
        let lane = self.lanes.get(controller).ok_or("only a command of a controller opens a watch")?;
        lane.check_room().map(|()| lane)
    }

    /// The job of this spool has ended.
    pub(crate) fn end(&self, spool: Arc<Spool>) {
        spool.close();
        self.shared.keep(spool);
    }

    /// Returns the spool of a job that has ended, while it is there.
    pub(crate) fn ended(&self, job: &str) -> Option<Arc<Spool>> {
        self.shared.prune();
        self.shared.ended(job)
    }

    /// Removes the spools of which the time is over.
    pub(crate) fn prune(&self) {
        self.shared.prune();
    }

    /// Sends what there is to send for a short while, and ends the threads.
    pub(crate) fn stop(&self) {
        let deadline = Instant::now() + LAST_REQUESTS;
        self.lanes.values().for_each(|lane| lane.stop(deadline));
        while Instant::now() < deadline && self.lanes.values().any(|lane| lane.is_running()) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
