//! The common base of every integration test and bench.
//!
//! **In scope**: a private `redis-server` for each test, the real `jsacc` and `jsagent` as processes
//! of their own, a client and a node made of a few lines, and waiting on conditions.
//! Everything lives in temporary folders and on loopback, nothing is shared, so that tests run side
//! by side and two runs of the whole do too. Whatever a test starts ends with it: when its handle is
//! dropped, when the test fails, and when the test process itself is killed.
//!
//! **Out of scope**: what is tested. That is in `tests/it`, a module a feature, and `src/bin/bench`.
//!
//! A test that fails prints what its programs wrote, for the handles know that they are dropped by
//! a panic. The programs are those that stand beside the test executable (`target/debug`), built
//! with the feature `failpoints`; `scripts/test` builds them first.

pub mod acc;
pub mod agent;
pub mod client;
pub mod fake_redis;
pub mod hostile;
pub mod load;
pub mod mounts;
pub mod nginx;
pub mod node;
pub mod proc;
pub mod process;
pub mod proxy;
pub mod redis_cluster;
pub mod redis_server;
pub mod sentinels;
pub mod stage;
pub mod swarm;
pub mod tcp_proxy;
pub mod wait;
pub mod watch;

pub use acc::{Acc, AccOptions, Enrolled};
pub use agent::{Agent, AgentOptions};
pub use client::Client;
pub use fake_redis::FakeRedis;
pub use mounts::Mounts;
pub use nginx::Nginx;
pub use node::{Batch, FakeNode, Reply};
pub use process::{Output, bin, run, run_with};
pub use proxy::{Action, Proxy};
pub use redis_server::Redis;
pub use stage::{Stage, site};
pub use tcp_proxy::TcpProxy;
pub use wait::{LONG, SHORT, wait_for, wait_until};
pub use watch::Watch;

/// The time in milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is before 1970");
    since.as_millis() as i64
}

/// An id that no other test uses.
pub fn fresh_id() -> String {
    format!("t-{:016x}", fastrand::u64(..))
}
