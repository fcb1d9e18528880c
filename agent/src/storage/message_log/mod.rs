//! The message log: every message that is kept, stored, found again and forwarded.
//!
//! **Owns** the databases in `data_dir/logs` and the ids of records. Messages come from the pipe
//! readers in [`batch`]es, and from the threads that write the agent's own records. One thread stores them:
//! it takes what is there, writes it in one go and takes what came meanwhile, so that a slow trickle is
//! committed at once and a flood in large transactions. Records for the controllers go into the upload queue first,
//! in the same go.
//!
//! **Does not** parse, and does not send.
//!
//! Invariants: the order of rows is the order of arrival; a database with its WAL never grows past its
//! limit; what waits in memory is bounded, and readers wait when the bound is reached; a commit
//! survives kill -9.

use super::upload_queue::UploadQueue;
use crate::config::Config;
use crate::job::JobLabel;
use crate::platform::unix_ms;
use anyhow::{Context, Result};
use jscommon::LevelSet;
use jscommon::worker::Worker;
use std::sync::Arc;

pub(crate) mod batch;
mod channel;
mod follow;
mod followers;
mod log_files;
mod progress;
mod query;
mod reader;
mod rows;
mod scan;
mod store;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use follow::{Follower, Next, Place};
pub(crate) use query::Query;
pub(crate) use reader::LogReader;

use batch::Batch;
use channel::{Message, MessageSender};
use log_files::LogFiles;
use store::{Rules, Store};
use writer::Actor;

const STACK: usize = 256 * 1024;

/// The running logger; dropping it waits until all is committed.
pub(crate) struct Handle {
    sender: MessageSender,
    remote: LogReader,
    _worker: Worker,
}

impl Handle {
    /// Opens the databases below the data folder and starts the thread.
    pub(crate) fn start(config: &Config, upload_queue: Arc<UploadQueue>) -> Result<Handle> {
        let logging = &config.logging;
        let log_files = Arc::new(LogFiles::open(&config.main.data_dir.join("logs"))?);
        // Megabytes of ten to the six, so that the limit holds however it is meant.
        let limit = logging.db.max_size_mb.max(1).saturating_mul(1_000_000);
        let rules = Rules { limit, keep: logging.db.keep, node: config.main.node() };
        let store = Store::open(Arc::clone(&log_files), Arc::clone(&upload_queue), rules)?;
        let own = Arc::new(JobLabel {
            jobid: "jsagent".into(),
            domain: "jsagent".into(),
            name: "logger".into(),
            db: LevelSet::ALL,
            ac: logging.ac.levels,
            stats_interval: None,
        });
        let (sender, messages) = MessageSender::new();
        let actor = Actor::new(messages, Arc::clone(sender.budget()), store, upload_queue, own);
        let worker =
            Worker::spawn("logger", STACK, move || actor.run()).context("the message log cannot be started")?;
        Ok(Handle { remote: LogReader::new(sender.clone(), log_files), sender, _worker: worker })
    }

    /// Where messages go in.
    pub(crate) fn inlet(&self) -> Inlet {
        Inlet { sender: self.sender.clone() }
    }

    /// Where records are found and deleted.
    pub(crate) fn remote(&self) -> LogReader {
        self.remote.clone()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Readers may hold an inlet for as long as a grandchild holds their pipe, so the queue is not
        // closed by its last sender.
        self.sender.send(Message::Stop);
    }
}

/// Where messages go in.
#[derive(Clone)]
pub(crate) struct Inlet {
    sender: MessageSender,
}

impl Inlet {
    /// An inlet of a message log that has stopped: whatever is handed over is dropped. For tests.
    #[cfg(test)]
    pub(crate) fn closed() -> Inlet {
        let (sender, _) = MessageSender::new();
        sender.budget().close();
        Inlet { sender }
    }

    /// Hands over the messages of one read, or gives them back while the message log is too far behind.
    pub(crate) fn try_push(&self, batch: Batch) -> std::result::Result<(), Batch> {
        self.sender.try_push(batch)
    }

    /// Hands over messages as [`Inlet::push_last`] does, which are never the last.
    #[cfg(test)]
    pub(crate) fn push(&self, batch: Batch) {
        self.sender.push(batch, |_| true);
    }

    /// Hands over the messages of one read; waits while the message log is too far behind, but no longer once
    /// `is_last` says that these are among the last messages of a process that has ended. Then [`Inlet::nudge`]
    /// is to be called.
    pub(crate) fn push_last(&self, batch: Batch, is_last: impl Fn() -> bool) {
        self.sender.push(batch, |used| used > channel::MAX_LAST_BYTES || !is_last());
    }

    /// Has those who wait look again; never waits itself.
    pub(crate) fn nudge(&self) {
        self.sender.nudge();
    }

    /// Has `work` done on the message log's thread, once what came before is stored; never waits.
    pub(crate) fn then(&self, work: impl FnOnce() + Send + 'static) {
        self.sender.send(Message::Then(Box::new(move |_| work())));
    }

    /// Gives back the memory that a burst of messages has left behind, then does `work`; never waits.
    pub(crate) fn rest(&self, work: impl FnOnce() + Send + 'static) {
        self.sender.send(Message::Rest);
        self.then(work);
    }

    /// Hands over one record of the agent's own; never waits.
    pub(crate) fn write(&self, source: &Arc<JobLabel>, level: u8, text: &str) {
        if source.wants(level) {
            let mut batch = Batch::new(source, unix_ms(), text.len());
            batch.push(level, text);
            self.sender.push(batch, |_| false);
        }
    }
}
