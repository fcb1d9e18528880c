//! One taken text, what is to be done with it, and why that may not be possible now.

use crate::redis::describe;
use crate::redis::errors::{is_away, is_moving, is_spoilt};
use jscommon::command::BadCommand;
use jscommon::{Command, NodeId};
use redis::{RedisError, RedisResult};

/// One taken text and what is to be done with it.
pub(super) struct Item {
    pub(super) text: Vec<u8>,
    pub(super) plan: Plan,
    /// The job is not known yet: it is to be listed and audited.
    pub(super) new: bool,
    /// Only some of its nodes are left, and all else is done.
    pub(super) resumed: bool,
    /// All nodes that it is for, where it was written down before and the plan has those that are left.
    pub(super) targets: Option<Vec<NodeId>>,
    /// It cannot be finished now, and stays on the processing list; with the nodes for which that is so.
    pub(super) deferred: Option<Vec<NodeId>>,
    /// Keys that it needs hold something else, as these sentences say: what can be done is done, and they are told.
    pub(super) spoilt: Vec<String>,
}

pub(super) enum Plan {
    /// It is no command.
    Reject(BadCommand),
    /// It is for these nodes; none means that nobody fits.
    Run(Command, Vec<NodeId>),
    /// A waiting command is to be taken back.
    Cancel(Command),
    /// Its id is known.
    Duplicate(Command),
    /// Its nodes, or whether it is known, cannot be read now: all of it is done later.
    Wait(Command),
    /// A key that it needs first of all holds something else: it is answered, and that is all.
    Spoilt(Command),
}

/// The reason that one call of several failed.
pub(super) enum Failure {
    /// It cannot be done now, and others can: a cluster moves its keys, or the server that has them is away.
    Later,
    /// A key holds something else.
    Spoilt(String),
}

/// Returns the reason that one call failed, or the error when it concerns all calls.
pub(super) fn failure(error: RedisError) -> RedisResult<Failure> {
    match error {
        e if is_moving(&e) || is_away(&e) => Ok(Failure::Later),
        e if is_spoilt(&e) => Ok(Failure::Spoilt(describe(&e))),
        e => Err(e),
    }
}

impl Plan {
    /// The command, or as much as was read of it, when it has an id.
    pub(super) fn command(&self) -> Option<&Command> {
        match self {
            Plan::Reject(bad) => bad.partial.as_deref(),
            Plan::Run(command, _)
            | Plan::Cancel(command)
            | Plan::Duplicate(command)
            | Plan::Wait(command)
            | Plan::Spoilt(command) => Some(command),
        }
    }

    pub(super) fn targets(&self) -> &[NodeId] {
        match self {
            Plan::Run(_, targets) => targets,
            _ => &[],
        }
    }
}

impl Item {
    /// A taken text; where it is `resumed`, all but some of its nodes is done.
    pub(super) fn new(text: Vec<u8>, plan: Plan, resumed: bool) -> Item {
        Item { text, plan, new: !resumed, resumed, targets: None, deferred: None, spoilt: Vec::new() }
    }

    /// All nodes that it is for.
    pub(super) fn targets(&self) -> &[NodeId] {
        self.targets.as_deref().unwrap_or(self.plan.targets())
    }

    /// Notes what is spoilt, once.
    pub(super) fn note(&mut self, sentence: String) {
        if !self.spoilt.contains(&sentence) {
            self.spoilt.push(sentence);
        }
    }

    /// Its id is that of an earlier command.
    pub(super) fn repeats(&mut self) {
        if let Some(command) = self.plan.command() {
            self.plan = Plan::Duplicate(command.clone());
            self.new = false;
        }
    }

    /// It cannot be passed on for this reason.
    pub(super) fn fail(&mut self, failure: Failure) {
        let Some(command) = self.plan.command().cloned() else { return };
        match failure {
            Failure::Later => {
                self.deferred.get_or_insert_default();
                self.plan = Plan::Wait(command);
            }
            Failure::Spoilt(sentence) => {
                self.spoilt.push(sentence);
                self.plan = Plan::Spoilt(command);
            }
        }
    }
}
