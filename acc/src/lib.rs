//! The controller: hands commands from Redis to nodes over HTTPS, and their results back.
//!
//! Threads: `proxy` (the only one that meets the network), some of tiny_http that run the handlers,
//! `dispatcher` (takes commands), `wakeups` (hears that a waiting node has something to fetch),
//! `janitor` (beat, expiry, revocations). None of them keeps what another controller would need: all of
//! that is in Redis.

mod allowance;
pub mod answer;
pub mod authenticator;
pub mod cancel;
pub mod claims;
pub mod cli;
pub mod config;
pub mod context;
pub mod critical_thread;
pub mod daemon;
pub mod deferred_jobs;
pub mod delivered;
pub mod dispatcher;
pub mod handlers;
pub mod history;
pub mod identity;
pub mod janitor;
pub mod logging;
pub mod metrics;
pub mod node_directory;
pub mod process_metrics;
pub mod proxy;
pub mod query;
mod response_order;
pub mod revoke;
pub mod route;
pub mod script_cache;
pub mod server;
pub mod store;
pub mod subcommands;
pub mod targets;
pub mod tickets;
pub mod trusted_paths;
pub mod wakeups;
