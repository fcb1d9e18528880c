//! The data in Redis: one file for each noun, with its Lua scripts in `scripts/`.
//!
//! Owns: key names (`keys`), the form of every value, and the steps that change them.
//! Does not own: connections (`redis`), or rules about commands, results and nodes; callers bring them, and the time.
//!
//! Two invariants hold in all of them:
//! **each call is atomic on the keys of one hash slot and harmless when it is repeated**, and
//! **nothing is taken away before what follows from it is stored**.

pub(crate) mod claims;
pub mod controllers;
pub(crate) mod dispatch;
pub mod events;
pub(crate) mod grants;
pub(crate) mod handover;
pub(crate) mod history;
pub mod inbox;
pub(crate) mod jobs;
pub(crate) mod keys;
pub mod nodes;
pub(crate) mod own_results;
pub(crate) mod polls;
pub(crate) mod queue;
pub mod records;
pub mod results;
mod scripts;
pub(crate) mod stream;
pub(crate) mod wakeups;

pub use scripts::SCHEMA;

/// Seconds that a job's hash and its results are kept after their last change.
pub(crate) const DAY: u64 = 86_400;
/// Most entries of `jsacc:events`, `jsacc:rejected`, `jsacc:jobs` and the like.
pub(crate) const HISTORY: usize = 10_000;
