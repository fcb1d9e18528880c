//! The only rooms that speak Redis.
//!
//! Owns: key names (`keys`), addresses (`target`), connections (`conn` and `pool`, on `redis_connection`,
//! `cluster` with `slots`, and `sentinel`), and one file for each noun that is kept there, with its Lua scripts in `scripts/`.
//! Does not own: rules about commands, results and nodes; callers bring them, and the time.
//!
//! Two invariants hold in all of them:
//! **each call is atomic on the keys of one hash slot and harmless when it is repeated**, and
//! **nothing is taken away before what follows from it is stored**.

mod cluster;
pub mod conn;
pub mod events;
pub mod grants;
pub mod jobs;
pub mod keys;
pub mod lists;
pub mod nodes;
pub mod pool;
pub mod queue;
mod redis_connection;
pub mod results;
mod roster;
mod scripts;
mod sentinel;
mod slots;
pub mod target;

pub use conn::{Address, Batch, Conn};
pub use pool::{Pool, describe};

/// Seconds that a job's hash and its results are kept after their last change.
pub const DAY: u64 = 86_400;
/// Most entries of `jsacc:events`, `jsacc:rejected`, `jsacc:jobs` and the like.
pub const HISTORY: usize = 10_000;
