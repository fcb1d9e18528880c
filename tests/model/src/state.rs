//! The states: what lies in Redis, what each program holds, and what is on its way.

/// Names of controllers: two that are there from the start, and one for a controller that starts anew.
pub(crate) const ACS: usize = 3;
pub(crate) const NODES: usize = 2;
pub(crate) const COMMANDS: usize = 2;

/// The answer of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    #[default]
    None,
    /// The job ran and ended.
    Ok,
    /// The agent died while it ran.
    Died,
    /// It was killed.
    Killed,
    /// The controller: no live node fits.
    Nobody,
    /// The controller: its node did not come for it.
    Expired,
    /// The controller: Redis has forgotten it in its node's queue.
    Lost,
    /// The controller: it was cancelled before its node took it.
    Cancelled,
    /// The controller, to a `cancel`: something was cancelled.
    CancelDone,
    /// The controller, to a `cancel`: it was too late.
    CancelRefused,
    /// A node that the job was not for.
    Forged,
}

/// A target's field in the hash of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    #[default]
    Absent,
    Queued,
    Running,
    Final(Answer),
}

/// The author of an answer: a node's run (one `starttime`), or the controller itself (`ac`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Run {
    Node,
    Own,
}

/// `jsacc:done` of one target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Done {
    #[default]
    None,
    /// Decided and not pushed: the `+`.
    Decided(Run),
    Pushed(Run),
}

/// The verdict of `decide_result.lua`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    #[default]
    None,
    First,
    Repeat,
    Late,
}

/// The last beat of a controller, as Redis has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Beat {
    #[default]
    Absent,
    Fresh,
    /// 15 s ago or more.
    Silent,
}

/// An entry of `jsacc:expiring`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Wait {
    #[default]
    None,
    Waits,
    Due,
}

/// The mark of a command that was withdrawn from its node's queue, which stays after its text is forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    #[default]
    None,
    /// By a `cancel`.
    Cancelled,
    /// Because its wait has ended.
    Expired,
}

/// The queue of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Queue {
    /// The last number given.
    pub(crate) seq: u8,
    /// The number of each command that waits; 0: it does not.
    pub(crate) score: [u8; COMMANDS],
    /// Its text is there, to be handed over or, when it is withdrawn, to be answered.
    pub(crate) text: [bool; COMMANDS],
    pub(crate) withdrawn: [Reason; COMMANDS],
    /// The highest number handed over.
    pub(crate) handed: u8,
    /// That was less than 90 s ago.
    pub(crate) recent: bool,
    /// The controller that holds the poll, plus one.
    pub(crate) holder: u8,
}

/// The wake-ups of a controller: nodes to fetch for, and nodes that poll elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wakeups {
    pub(crate) fetch: [bool; NODES],
    pub(crate) moved: [bool; NODES],
}

/// The hash of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) known: bool,
    pub(crate) field: [Field; NODES],
}

/// The list of results of one target: how many were pushed, and the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Listed {
    pub(crate) count: u8,
    pub(crate) first: Answer,
}

/// Everything that Redis has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Redis {
    /// Copies of each command in `cmds_queue`.
    pub(crate) pushed: [u8; COMMANDS],
    /// Copies in the taken list of each controller.
    pub(crate) taken: [[u8; COMMANDS]; ACS],
    pub(crate) beat: [Beat; ACS],
    /// Controllers that were found dead, or have left.
    pub(crate) gone: [bool; ACS],
    pub(crate) wakeups: [Wakeups; ACS],
    pub(crate) job: [Job; COMMANDS],
    pub(crate) queue: [Queue; NODES],
    pub(crate) expiring: [[Wait; NODES]; COMMANDS],
    pub(crate) done: [[Done; NODES]; COMMANDS],
    pub(crate) listed: [[Listed; NODES]; COMMANDS],
}

/// A step of the dispatcher that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Do {
    #[default]
    Idle,
    Open,
    Enqueue,
    Wakeup,
    Withdraw,
    Check,
    Decide,
    Write,
    Push,
    Forget,
    Untake,
}

/// The dispatcher of a controller, with the command that it is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Dispatcher {
    pub(crate) next: Do,
    pub(crate) command: u8,
    /// It was found in the taken list.
    pub(crate) again: bool,
    /// Nodes that it has still to be queued for, as bits; of a `cancel`, that something is to be forgotten.
    pub(crate) left: u8,
    /// The node and the controller (plus one) that is to get a wake-up.
    pub(crate) wakeup: (u8, u8),
    /// The answer for the job that is cancelled, and its verdict.
    pub(crate) job: (Answer, Verdict),
    /// The own answer, and its verdict.
    pub(crate) own: (Answer, Verdict),
}

/// The thread that answers commands whose wait has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Expiry {
    pub(crate) next: Next,
    pub(crate) command: u8,
    pub(crate) node: u8,
    pub(crate) answer: Answer,
    pub(crate) verdict: Verdict,
}

/// A step of it that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Next {
    #[default]
    Idle,
    LookUp,
    Check,
    Decide,
    Write,
    Push,
    Forget,
}

/// A controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    #[default]
    Unborn,
    Lives,
    Dead,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ac {
    pub(crate) life: Life,
    /// It has said that it lives, and may take commands.
    pub(crate) announced: bool,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) expiry: Expiry,
    /// For each node: the acknowledgement of the poll for which the proxy trusts its registration, plus one.
    pub(crate) trust: [u8; NODES],
}

/// The progress of a poll at its controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Polling {
    #[default]
    None,
    /// On its way.
    Sent,
    /// With its handler: `RUNNING` comes next.
    Asking,
    /// `poll.lua` comes next.
    Asked,
    /// Another controller has to be told first that the node has moved.
    Moving,
    /// Nothing waits, and this controller is the holder; the proxy has not heard of it yet.
    Empty,
    Parked,
}

/// A poll; of each node there may be the one that it waits for, and an older one that it has given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Poll {
    pub(crate) at: Polling,
    pub(crate) ac: u8,
    /// The batch that is acknowledged; 0: none.
    pub(crate) ack: u8,
    /// The controller that was told that the node has moved, plus one.
    pub(crate) told: u8,
    /// A wake-up came while its handler was asked.
    pub(crate) woken: bool,
    /// A newer poll has come to the same controller.
    pub(crate) displaced: bool,
}

/// The progress of a result at its controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Posting {
    #[default]
    None,
    Sent,
    Write,
    Push,
    Reply,
}

/// A result on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Post {
    pub(crate) at: Posting,
    pub(crate) ac: u8,
    pub(crate) command: u8,
    pub(crate) answer: Answer,
    pub(crate) verdict: Verdict,
    /// It comes from a node without a ticket for it.
    pub(crate) forged: bool,
}

/// A row of `state.db`. `safe`: a power cut does not take it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    #[default]
    None,
    Accepted,
    Started,
    /// Being killed.
    Ending,
    Done {
        answer: Answer,
        safe: bool,
    },
    Sent {
        answer: Answer,
        safe: bool,
    },
}

/// A node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) up: bool,
    /// The controller that it asks.
    pub(crate) at: u8,
    /// On its disk.
    pub(crate) row: [Row; COMMANDS],
    /// The job's process lives.
    pub(crate) process: [bool; COMMANDS],
    /// Its process is to be started, for its start is committed.
    pub(crate) starting: [bool; COMMANDS],
    /// It was left by an agent that died.
    pub(crate) leftover: [bool; COMMANDS],
    /// How often it was started, over all lives of the agent.
    pub(crate) starts: [u8; COMMANDS],
    /// Received and not stored, as bits, and the batch's number.
    pub(crate) received: (u8, u8),
    /// Stored and to be acknowledged; 0: nothing.
    pub(crate) ack: u8,
    /// The poll that it waits for, and one that it has given up.
    pub(crate) poll: [Poll; 2],
    /// The same of results.
    pub(crate) post: [Post; 2],
}

/// The whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) redis: Redis,
    /// The state of Redis on disk, where Redis loses the last second; `None` until then.
    pub(crate) saved: Option<Redis>,
    pub(crate) ac: [Ac; ACS],
    pub(crate) node: [Node; NODES],
    /// Commands that the client has pushed.
    pub(crate) sent: [bool; COMMANDS],
    /// Failures that may still happen.
    pub(crate) failures: u8,
    /// Redis has lost what it had answered.
    pub(crate) lost: bool,
    /// A node was silent for 90 s after a hand-over: nobody knows what it has.
    pub(crate) given_up: bool,
}
