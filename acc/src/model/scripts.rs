//! All Lua scripts, and the order in which a server gets them.
//!
//! Owns: their sources. Does not own: what they are for; each file beside this one calls its own.

use super::keys;
use crate::redis::scripts::{Schema, Script};

/// The scripts and keys, as connections have to know them.
pub static SCHEMA: Schema = Schema::new(ALL, keys::kind);

/// Declares the scripts, each of one text or of several in a row, and lists them in the order of their declaration.
macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident: $($file:literal),+;)+) => {
        $($(#[$doc])* pub(crate) static $name: Script =
            Script::new(concat!($(include_str!(concat!("scripts/", $file))),+));)+

        static ALL: &[&Script] = &[$(&$name),+];
    };
}

scripts! {
    /// Takes frames of a node.
    STREAM_POST: "stream.lua", "stream_post.lua";
    /// Writes down how much a stream takes.
    STREAM_USE: "stream.lua", "stream_use.lua";
    /// Counts anew how much all streams take.
    STREAM_RECOUNT: "stream_recount.lua";
    /// Writes down that a node has stored a command.
    RUNNING: "job_running.lua";
    /// Writes a result into its job's hash.
    RESULT: "results.lua", "job_result.lua";
    /// Writes down a new job.
    OPEN: "job.lua", "job_open.lua";
    /// Tells where a job stands.
    STANDING: "job_standing.lua";
    /// Tells how often a job recurs.
    PERIOD: "job_period.lua";
    /// Decides on a result.
    DECIDE_RESULT: "results.lua", "decide_result.lua";
    /// Remembers for longer what was delivered of a recurring job.
    REMEMBER_RESULT: "results.lua", "remember_result.lua";
    /// Pushes a result.
    PUSH_RESULT: "bounded.lua", "results.lua", "push_result.lua";
    /// Takes a result in one call.
    DELIVER_RESULT: "bounded.lua", "results.lua", "deliver_result.lua";
    /// Puts commands into a node's queue. The part that enqueueing and polling have in common stands in front of both.
    ENQUEUE: "handover.lua", "queue.lua", "enqueue.lua";
    /// Passes on a command in one call.
    DISPATCH: "handover.lua", "queue.lua", "job.lua", "dispatch.lua";
    /// The ids that an acknowledgement covers.
    ACKED: "acked.lua";
    /// A node asks for its commands.
    POLL: "handover.lua", "poll.lua";
    /// Takes a command out of a node's queue.
    WITHDRAW: "withdraw.lua";
    /// Takes commands off their queue.
    TAKE_COMMANDS: "take_commands.lua";
    /// Takes wake-ups off their list.
    WAKEUPS: "wakeups.lua";
    /// Moves what a dead controller had taken.
    RECLAIM_COMMANDS: "reclaim_commands.lua";
    /// Forgets a dead controller.
    FORGET_CONTROLLER: "forget_controller.lua";
    /// Says that a controller lives.
    BEAT: "beat.lua";
    /// Adds records to a list.
    RECORDS: "bounded.lua", "records.lua";
    /// Adds events to their list.
    EVENT: "event.lua";
    /// Which lists of records a node may write to.
    LISTS: "lists.lua";
    /// Writes down the latest series of a node.
    STATS: "stats.lua";
    /// Writes down a node's roles.
    ROLES: "roles.lua";
    /// Writes down that an agent has stopped.
    AGENT_STOPPED: "agent_stopped.lua";
    /// Ends the registration of an agent's poll.
    END_POLL: "end_poll.lua";
    /// Writes down when a node that waits was there last.
    NODE_SEEN: "node_seen.lua";
    /// Writes down a revocation.
    REVOKE: "revoke.lua";
    /// Counts a use of an enrolment token.
    USE_ENROLMENT: "use_enrolment.lua";
    /// Compares what a node claims with its grants.
    CLAIMS: "claims.lua";
    /// Writes down what is granted of a node's claims.
    GRANTED: "granted.lua";
    /// Writes down that a node gets credentials.
    ENROLLED: "enrolled.lua";
    /// Forgets the enrolment of a node that was revoked.
    UNENROLLED: "unenrolled.lua";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_is_loaded_once() {
        let (packed, count) = SCHEMA.loading();
        let text = String::from_utf8(packed.to_vec()).unwrap();
        assert_eq!(text.matches("\r\nLOAD\r\n").count(), count);
        let mut hashes: Vec<&str> = ALL.iter().map(|script| script.hash()).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }
}
