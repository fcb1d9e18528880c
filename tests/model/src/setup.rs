//! The setup of an exploration: the nodes and commands, the faults that may come, and the mistakes that are built in.

use crate::state::*;

/// The kind of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A job for these nodes, as bits.
    Job(u8),
    /// A job for a role that no node has.
    Nobody,
    /// Takes back the first command.
    Cancel,
    /// Kills the first command on the first node.
    Kill,
}

/// Failures, as bits.
pub(crate) mod fault {
    pub(crate) const KILL_AC: u32 = 1;
    pub(crate) const KILL_AGENT: u32 = 1 << 1;
    /// The node loses power.
    pub(crate) const POWER: u32 = 1 << 2;
    /// Redis is killed, and starts again with all that it has answered.
    pub(crate) const REDIS: u32 = 1 << 3;
    /// Redis is killed, and starts again without its last second.
    pub(crate) const REDIS_LOSES: u32 = 1 << 4;
    /// A request does not reach its controller.
    pub(crate) const REQUEST: u32 = 1 << 5;
    /// A node gives up a request that goes on; its answer is lost.
    pub(crate) const ANSWER: u32 = 1 << 6;
    /// A controller loses a connection to Redis, and an answer with it.
    pub(crate) const CUT: u32 = 1 << 7;
    /// The answer to a push is lost: the client pushes once more.
    pub(crate) const PUSH: u32 = 1 << 8;
    /// A controller is silent for 15 s and lives.
    pub(crate) const SILENCE: u32 = 1 << 9;
    /// A command has waited as long as it may.
    pub(crate) const EXPIRY: u32 = 1 << 10;
    /// A node answers for another one.
    pub(crate) const FORGERY: u32 = 1 << 11;
    /// All of them but those that lose data of Redis.
    pub(crate) const ALL: u32 = (1 << 12) - 1 - REDIS_LOSES;

    /// The kinds in words.
    pub(crate) fn names(faults: u32) -> String {
        const NAMES: [&str; 12] = [
            "controller killed",
            "agent killed",
            "power cut",
            "redis restarted",
            "redis loses a second",
            "request lost",
            "answer lost",
            "connection to redis cut",
            "push repeated",
            "controller silent",
            "wait ended",
            "result forged",
        ];
        let some = NAMES.iter().enumerate().filter(|(bit, _)| (faults >> bit) & 1 == 1).map(|(_, name)| *name);
        let some: Vec<&str> = some.collect();
        if some.is_empty() { "none".to_owned() } else { some.join(", ") }
    }
}

/// A fault of the protocol itself, to see that the model finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    AcknowledgedBeforeStored,
    KnownIdsForgotten,
    TakenOffBeforeQueued,
    TakenOffBeforeWakeup,
    HandedOverIsGone,
    RepetitionIsDuplicate,
    NobodyReclaims,
    TakesBeforeItsBeat,
    PushedWithoutMark,
    LateAnswersPushed,
    PushedBeforeWritten,
    SentBeforeTaken,
    StartedRowsStartAgain,
    LeftoversLiveOn,
    HandedOverIsWithdrawn,
    TicketsUnchecked,
    PollsNotAskedAgain,
    RepeatedAnswerOverwrites,
    QueuedAfterWithdrawn,
    /// A withdrawal answers for a job that the node had before it was queued once more.
    RunningIsWithdrawn,
    /// A `cancel` and the end of a wait do not know of each other.
    TwoReasons,
}

/// The commands, the failures that may happen, and how many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) commands: &'static [Kind],
    pub(crate) nodes: usize,
    /// Controllers at the start.
    pub(crate) controllers: usize,
    pub(crate) faults: u32,
    pub(crate) failures: u8,
    pub(crate) mutation: Option<Mutation>,
}

impl Setup {
    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Whether one of these failures may happen.
    pub(crate) fn has(&self, faults: u32) -> bool {
        self.faults & faults != 0
    }

    /// The targets of a command, as bits; a controller's own answer stands in place of the first node.
    pub(crate) fn targets(&self, command: usize) -> u8 {
        match self.commands[command] {
            Kind::Job(nodes) => nodes,
            Kind::Kill => 1,
            Kind::Nobody | Kind::Cancel => 0,
        }
    }

    /// Whether the target (a node, or the place of the controller's own answer) is to be answered.
    pub(crate) fn wants_answer(&self, command: usize, node: usize) -> bool {
        (self.targets(command).max(1) >> node) & 1 == 1
    }

    pub(crate) fn start(&self) -> State {
        let mut state = State { failures: self.failures, ..State::default() };
        for ac in 0..self.controllers {
            state.ac[ac].life = Life::Lives;
            state.ac[ac].announced = !self.is(Mutation::TakesBeforeItsBeat);
            state.redis.beat[ac] = if state.ac[ac].announced { Beat::Fresh } else { Beat::Absent };
        }
        if !self.has(fault::PUSH) {
            // How they come makes no difference: they are there.
            for command in 0..self.commands.len() {
                (state.sent[command], state.redis.pushed[command]) = (true, 1);
            }
        }
        state.node.iter_mut().take(self.nodes).for_each(|node| node.up = true);
        state
    }
}
