//! The controller: hands commands from Redis to nodes over HTTPS, and their results back.

pub mod gate;
pub mod metrics;
pub mod query;
pub mod route;
pub mod server;
