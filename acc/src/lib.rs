//! The controller: hands commands from Redis to nodes over HTTPS, and their results back.
//!
//! Imports point down this list, never up and never round:
//!
//! | module | what it is |
//! |---|---|
//! | `app` | command line, subcommands, the order of start and stop |
//! | `work` | threads behind the requests: dispatcher, wake-ups, periodic tasks |
//! | `proxy` | the network: sockets, TLS, deadlines, bounds, parked polls |
//! | `api` | tiny_http behind the proxy, and one file for each path |
//! | `auth` | secrets, CA, certificates, tickets, revocation, and who is let in |
//! | `model` | one file for each noun that is kept in Redis, with its Lua |
//! | `redis` | connections, topology, routing |
//! | `config`, `route`, `query`, `http`, `metrics`, `clock`, `critical_thread` | leaves |

pub mod api;
pub mod app;
pub mod auth;
mod bounded_map;
pub(crate) mod clock;
pub mod config;
pub(crate) mod critical_thread;
pub mod http;
pub(crate) mod metrics;
pub mod model;
pub mod proxy;
pub(crate) mod query;
pub mod redis;
pub mod route;
pub mod work;
