//! The way to Redis: connections, topology, routing. Only this module opens sockets to it.
//!
//! Owns: connections (`connection` and `pool`, on `redis_connection`), and finding the right server (`cluster` with
//! `slots`, and `sentinel`). Does not own: addresses (`config::redis_address`), keys and scripts (`model`).

mod cluster;
pub(crate) mod connection;
pub(crate) mod pool;
mod redis_connection;
mod roster;
pub(crate) mod scripts;
mod sentinel;
mod slots;

pub use connection::{Address, Batch, Conn};
pub(crate) use pool::{Pool, describe};
