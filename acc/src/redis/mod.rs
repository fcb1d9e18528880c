//! The way to Redis: connections, topology, routing. Only this module opens sockets to it.
//!
//! | file | what |
//! |---|---|
//! | `pool` | idle connections for many threads, and whether Redis answers |
//! | `conn` | one connection to Redis, whatever kind of service it is |
//! | `router` | calls on their way to the servers that have their keys; a server that stands alone has all |
//! | `server`, `sentinel` | one server; the master that Sentinels name |
//! | `topology`, `known_servers` | which server has which key, and whom to ask for that (pure) |
//! | `connection` | one socket: login, time limits, calls that travel together |
//! | `batch`, `scripts`, `errors`, `address` | leaves |
//!
//! Does not own: the form of an address (`config::redis_address`), keys and scripts (`model`).

mod address;
mod batch;
mod conn;
mod connection;
pub(crate) mod errors;
mod known_servers;
mod pool;
mod router;
pub(crate) mod scripts;
mod sentinel;
mod server;
mod topology;

pub use address::Address;
pub use batch::Batch;
pub(crate) use batch::command;
pub use conn::Conn;
pub(crate) use errors::describe;
pub use pool::Pool;
