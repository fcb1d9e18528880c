//! All Lua scripts, and the order in which a server gets them.
//!
//! Owns: their sources. Does not own: what they are for; each file beside this one calls its own.

use super::keys;
use crate::redis::scripts::{Schema, Script};

/// The scripts and keys, as connections have to know them.
pub static SCHEMA: Schema = Schema::new(&ALL, keys::kind);

/// Writes down that a node has stored a command.
pub(crate) static RUNNING: Script = Script::new(include_str!("scripts/job_running.lua"));
/// Writes a result into its job's hash.
pub(crate) static RESULT: Script = Script::new(include_str!("scripts/job_result.lua"));
/// Writes down a new job.
pub(crate) static OPEN: Script = Script::new(include_str!("scripts/job_open.lua"));
/// Tells where a job stands.
pub(crate) static STANDING: Script = Script::new(include_str!("scripts/job_standing.lua"));
/// Tells how often a job recurs.
pub(crate) static PERIOD: Script = Script::new(include_str!("scripts/job_period.lua"));
/// Decides on a result.
pub(crate) static DECIDE: Script = Script::new(include_str!("scripts/result.lua"));
/// Remembers for longer what was delivered of a recurring job.
pub(crate) static REMEMBER: Script = Script::new(include_str!("scripts/remember.lua"));
/// Pushes a result.
pub(crate) static PUSH: Script =
    Script::new(concat!(include_str!("scripts/bounded.lua"), include_str!("scripts/push.lua")));
/// Puts commands into a node's queue. The part that enqueueing and polling have in common stands in front of both.
pub(crate) static ENQUEUE: Script =
    Script::new(concat!(include_str!("scripts/handover.lua"), include_str!("scripts/enqueue.lua")));
/// The ids that an acknowledgement covers.
pub(crate) static ACKED: Script = Script::new(include_str!("scripts/acked.lua"));
/// A node asks for its commands.
pub(crate) static POLL: Script =
    Script::new(concat!(include_str!("scripts/handover.lua"), include_str!("scripts/poll.lua")));
/// Takes a command out of a node's queue.
pub(crate) static WITHDRAW: Script = Script::new(include_str!("scripts/withdraw.lua"));
/// Takes commands off their queue.
pub(crate) static TAKE: Script = Script::new(include_str!("scripts/take.lua"));
/// Takes wake-ups off their list.
pub(crate) static WAKEUPS: Script = Script::new(include_str!("scripts/wakeups.lua"));
/// Moves what a dead controller had taken.
pub(crate) static RECLAIM: Script = Script::new(include_str!("scripts/reclaim.lua"));
/// Forgets a dead controller.
pub(crate) static FORGET: Script = Script::new(include_str!("scripts/forget.lua"));
/// Says that a controller lives.
pub(crate) static BEAT: Script = Script::new(include_str!("scripts/beat.lua"));
/// Adds records to a list.
pub(crate) static RECORDS: Script =
    Script::new(concat!(include_str!("scripts/bounded.lua"), include_str!("scripts/records.lua")));
/// Adds events to their list.
pub(crate) static EVENT: Script = Script::new(include_str!("scripts/event.lua"));
/// Which lists of records a node may write to.
pub(crate) static LISTS: Script = Script::new(include_str!("scripts/lists.lua"));
/// Writes down the latest series of a node.
pub(crate) static STATS: Script = Script::new(include_str!("scripts/stats.lua"));
/// Compares what a node claims with its grants.
pub(crate) static CLAIMS: Script = Script::new(include_str!("scripts/claims.lua"));
/// Writes down what is granted of a node's claims.
pub(crate) static GRANTED: Script = Script::new(include_str!("scripts/granted.lua"));
/// Writes down that a node gets credentials.
pub(crate) static ENROLLED: Script = Script::new(include_str!("scripts/enrolled.lua"));
/// Forgets the enrolment of a node that was revoked.
pub(crate) static UNENROLLED: Script = Script::new(include_str!("scripts/unenrolled.lua"));
/// Writes down a node's roles.
pub(crate) static ROLES: Script = Script::new(include_str!("scripts/roles.lua"));
/// Writes down that an agent has stopped.
pub(crate) static STOPPED: Script = Script::new(include_str!("scripts/stopped.lua"));
/// Ends the registration of an agent's poll.
pub(crate) static LEFT: Script = Script::new(include_str!("scripts/left.lua"));
/// Writes down when a node that waits was there last.
pub(crate) static SEEN: Script = Script::new(include_str!("scripts/seen.lua"));
/// Writes down a revocation.
pub(crate) static REVOKE: Script = Script::new(include_str!("scripts/revoke.lua"));
/// Counts a use of an enrolment token.
pub(crate) static USE: Script = Script::new(include_str!("scripts/use.lua"));

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
    &WAKEUPS,
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
