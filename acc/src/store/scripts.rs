//! All Lua scripts, and the order in which a server gets them.
//!
//! Owns: their sources. Does not own: what they are for; each room beside this one calls its own.
//!
//! **A script stands before those that must not run without it**, and every connection loads all of them in
//! this order: a server that was made to forget them (SCRIPT FLUSH, a failover) therefore never has
//! the second without the first.

use std::sync::{LazyLock, OnceLock};

/// One script.
pub(super) struct Script {
    source: &'static str,
    hash: OnceLock<String>,
}

impl Script {
    const fn new(source: &'static str) -> Script {
        Script { source, hash: OnceLock::new() }
    }

    /// The SHA-1 by which a server that has it knows it.
    pub(super) fn hash(&self) -> &str {
        self.hash.get_or_init(|| redis::Script::new(self.source).get_hash().to_owned())
    }
}

/// Writes down that a node has stored a command.
pub(super) static RUNNING: Script = Script::new(include_str!("scripts/job_running.lua"));
/// Writes a result into its job's hash.
pub(super) static RESULT: Script = Script::new(include_str!("scripts/job_result.lua"));
/// Writes down a new job.
pub(super) static OPEN: Script = Script::new(include_str!("scripts/job_open.lua"));
/// Tells where a job stands.
pub(super) static STANDING: Script = Script::new(include_str!("scripts/job_standing.lua"));
/// Tells how often a job recurs.
pub(super) static PERIOD: Script = Script::new(include_str!("scripts/job_period.lua"));
/// Decides on a result.
pub(super) static DECIDE: Script = Script::new(include_str!("scripts/result.lua"));
/// Remembers for longer what was delivered of a recurring job.
pub(super) static REMEMBER: Script = Script::new(include_str!("scripts/remember.lua"));
/// Pushes a result.
pub(super) static PUSH: Script =
    Script::new(concat!(include_str!("scripts/bounded.lua"), include_str!("scripts/push.lua")));
/// Puts commands into a node's queue. What enqueueing and polling have in common stands in front of both.
pub(super) static ENQUEUE: Script =
    Script::new(concat!(include_str!("scripts/handover.lua"), include_str!("scripts/enqueue.lua")));
/// The ids that an acknowledgement covers.
pub(super) static ACKED: Script = Script::new(include_str!("scripts/acked.lua"));
/// A node asks for its commands.
pub(super) static POLL: Script =
    Script::new(concat!(include_str!("scripts/handover.lua"), include_str!("scripts/poll.lua")));
/// Takes a command out of a node's queue.
pub(super) static WITHDRAW: Script = Script::new(include_str!("scripts/withdraw.lua"));
/// Takes commands off their queue.
pub(super) static TAKE: Script = Script::new(include_str!("scripts/take.lua"));
/// Takes rings off a bell.
pub(super) static RINGS: Script = Script::new(include_str!("scripts/rings.lua"));
/// Moves what a dead controller had taken.
pub(super) static RECLAIM: Script = Script::new(include_str!("scripts/reclaim.lua"));
/// Forgets a dead controller.
pub(super) static FORGET: Script = Script::new(include_str!("scripts/forget.lua"));
/// Says that a controller lives.
pub(super) static BEAT: Script = Script::new(include_str!("scripts/beat.lua"));
/// Adds records to a list.
pub(super) static RECORDS: Script =
    Script::new(concat!(include_str!("scripts/bounded.lua"), include_str!("scripts/records.lua")));
/// Adds events to their list.
pub(super) static EVENT: Script = Script::new(include_str!("scripts/event.lua"));
/// Which lists of records a node may write to.
pub(super) static LISTS: Script = Script::new(include_str!("scripts/lists.lua"));
/// Writes down the latest series of a node.
pub(super) static STATS: Script = Script::new(include_str!("scripts/stats.lua"));
/// Compares what a node claims with its grants.
pub(super) static CLAIMS: Script = Script::new(include_str!("scripts/claims.lua"));
/// Writes down what is granted of a node's claims.
pub(super) static GRANTED: Script = Script::new(include_str!("scripts/granted.lua"));
/// Writes down that a node gets credentials.
pub(super) static ENROLLED: Script = Script::new(include_str!("scripts/enrolled.lua"));
/// Forgets the enrolment of a node that was revoked.
pub(super) static UNENROLLED: Script = Script::new(include_str!("scripts/unenrolled.lua"));
/// Writes down a node's roles.
pub(super) static ROLES: Script = Script::new(include_str!("scripts/roles.lua"));
/// Writes down that an agent has stopped.
pub(super) static STOPPED: Script = Script::new(include_str!("scripts/stopped.lua"));
/// Ends the registration of an agent's poll.
pub(super) static LEFT: Script = Script::new(include_str!("scripts/left.lua"));
/// Writes down when a node that waits was there last.
pub(super) static SEEN: Script = Script::new(include_str!("scripts/seen.lua"));
/// Writes down a revocation.
pub(super) static REVOKE: Script = Script::new(include_str!("scripts/revoke.lua"));
/// Counts a use of an enrolment token.
pub(super) static USE: Script = Script::new(include_str!("scripts/use.lua"));

static ALL: [&Script; 31] = [
    &RUNNING,
    &RESULT,
    &OPEN,
    &STANDING,
    &PERIOD,
    &DECIDE,
    &REMEMBER,
    &PUSH,
    &ENQUEUE,
    &ACKED,
    &POLL,
    &WITHDRAW,
    &TAKE,
    &RINGS,
    &RECLAIM,
    &FORGET,
    &BEAT,
    &RECORDS,
    &EVENT,
    &LISTS,
    &STATS,
    &ROLES,
    &STOPPED,
    &LEFT,
    &SEEN,
    &REVOKE,
    &USE,
    &CLAIMS,
    &GRANTED,
    &ENROLLED,
    &UNENROLLED,
];

/// How many there are, and with that how many answers `loading` has.
pub(super) const COUNT: usize = ALL.len();

/// The calls that make a server know all of them, as they travel.
pub(super) fn loading() -> &'static [u8] {
    static LOADING: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut out = Vec::new();
        for script in ALL {
            let mut cmd = redis::cmd("SCRIPT");
            cmd.arg("LOAD").arg(script.source);
            cmd.write_packed_command(&mut out);
        }
        out
    });
    &LOADING
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_loaded_once() {
        let text = String::from_utf8(loading().to_vec()).unwrap();
        assert_eq!(text.matches("\r\nLOAD\r\n").count(), COUNT);
        let mut hashes: Vec<&str> = ALL.iter().map(|script| script.hash()).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), COUNT);
    }
}
