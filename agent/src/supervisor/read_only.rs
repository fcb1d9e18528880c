//! Read-only commands: those that only look are not stored, and some are answered on the thread that brings them.
//!
//! **Owns** the answers that wait for nobody (`ping`): no other thread than the poller's and the sender's is woken for
//! them. **Does not** own the results (`job_store::memory_results`), or how long they may be unstored (the poller).

use super::results::{self, Ended};
use super::types::Outcome;
use super::{Notice, Parts};
use crate::commands::{self, Kind};
use crate::output::Captured;
use crate::platform::unix_ms;
use crate::storage::job_store::JobStore;
use crossbeam_channel::Sender;
use jscommon::{Command, NodeId};
use std::sync::Arc;

pub(super) struct ReadOnly {
    node: NodeId,
    job_store: Arc<JobStore>,
    builtins: Arc<commands::Context>,
    notify: Arc<dyn Fn(Notice) + Send + Sync>,
}

impl ReadOnly {
    /// Read-only commands of this agent.
    pub(super) fn new(parts: &Parts) -> ReadOnly {
        ReadOnly {
            node: parts.config.main.node(),
            job_store: parts.job_store.clone(),
            builtins: parts.builtins.clone(),
            notify: parts.notify.clone(),
        }
    }

    /// Waits for the results of those of `commands` that are read-only; each keeps `open` until its result is taken.
    pub(super) fn expect(&self, controller: &str, commands: &[Command], open: &Sender<()>) {
        let read_only = commands.iter().filter(|command| commands::is_read_only(command));
        self.job_store.memory().expect(controller, read_only.map(|command| command.id.as_str()), open);
    }

    /// Answers commands that can be answered at once; returns those that the supervisor is to have. Where one of them is
    /// to be stored the supervisor has all of them: while it takes none, the batch comes again and again.
    pub(super) fn answer(&self, controller: &str, mut commands: Vec<Command>) -> Option<Vec<Command>> {
        if commands.is_empty() || !commands.iter().all(commands::is_read_only) {
            return Some(commands);
        }
        let all = commands.len();
        commands.retain(|command| !self.answer_one(controller, command));
        if commands.len() < all {
            (self.notify)(Notice::Result { controller: controller.to_owned() });
        }
        (!commands.is_empty()).then_some(commands)
    }

    /// Whether the command was one that can be answered at once, and was.
    fn answer_one(&self, controller: &str, command: &Command) -> bool {
        let Some(Kind::Inline(function)) = commands::lookup(&command.cmd) else { return false };
        let ended = Ended {
            conclusion: Outcome::Answered.into(),
            captured: Captured::default(),
            answer: Some(function(&self.builtins, command)),
            started: unix_ms(),
            time: 0,
        };
        let mut result = results::result(command, self.node, ended);
        let ticket = std::mem::take(&mut result.ticket);
        let mut json = serde_json::to_string(&result).unwrap_or_default();
        results::add_ticket(&mut json, &ticket);
        self.job_store.memory().answer(controller, &command.id, json).is_ok()
    }
}
