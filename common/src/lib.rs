//! Types and tools that the agent and the controller share.
//!
//! **In scope**: the shapes that travel between client, controller and node (commands, results,
//! records, level sets, series names), the node token, and small tools that both programs need in
//! the same form (a named thread, a backoff, the test-only failure points, the service manager's socket).
//!
//! **Out of scope**: I/O of any kind but for `notify`, `file`, which reads small files, `ownership`, which looks at owners
//! and modes, and `hops`, a trace for a bench. Nothing else here opens a socket, a file or a database, or
//! reads the clock: the caller passes the time in.

pub mod backoff;
pub mod base64_text;
pub mod blob;
pub mod command;
pub mod directives;
pub mod failpoint;
pub mod file;
pub mod frame;
pub mod hops;
pub mod json_size;
pub mod level;
pub mod lock;
pub mod node;
pub mod notify;
#[cfg(unix)]
pub mod ownership;
mod partial_json;
mod record;
mod result;
pub mod series;
pub mod text;
pub mod token;
pub mod worker;

pub use command::Command;
pub use level::LevelSet;
pub use node::NodeId;
pub use record::Record;
pub use result::{JobResult, State};
