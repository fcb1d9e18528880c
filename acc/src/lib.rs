//! The controller: hands commands from Redis to nodes over HTTPS, and their results back.
//!
//! Threads: `gate` (the only one that meets the network), some of tiny_http that run the handlers,
//! `dispatcher` (takes commands), `doorbell` (hears that a waiting node has something to fetch),
//! `janitor` (beat, expiry, revocations). None of them keeps what another controller would need: all of
//! that is in Redis.

mod allowance;
pub mod answer;
pub mod cancel;
pub mod claims;
pub mod cli;
pub mod config;
pub mod context;
pub mod daemon;
pub mod dispatcher;
pub mod doorbell;
pub mod gate;
pub mod guard;
pub mod handed;
pub mod handlers;
pub mod held;
pub mod history;
pub mod identity;
pub mod janitor;
pub mod known;
pub mod logging;
pub mod metrics;
pub mod process_metrics;
pub mod query;
pub mod revoke;
pub mod route;
pub mod script_cache;
pub mod server;
pub mod store;
pub mod targets;
pub mod tasks;
pub mod tickets;
pub mod trusted_paths;
mod turns;
pub mod watch;
