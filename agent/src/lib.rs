//! The agent, as a library: a program calls [`main`]. Public beside it is only what is fuzzed.
//!
//! | thread | owns | ends when |
//! |---|---|---|
//! | main | signals, the order of shutdown ([`daemon`]) | a signal, or `restart` |
//! | poller, one a controller | the poll ([`uplink::poller`]) | detached: it may sit in a read |
//! | supervisor | every job's state ([`supervisor`]) | its handle is dropped: stop signal, `stop_timeout`, KILL |
//! | pipe readers, one a child (Windows: two) | bytes to messages ([`output`]) | the end of the pipes and (not on Windows) of the child; detached |
//! | logger | SQLite ([`storage::message_log`]) | its channel is closed and all is committed |
//! | aggregator | series ([`stats`]) | its channel is closed and the last flush is in the upload queue |
//! | monitor | one sample of the process trees each interval ([`monitor`]) | the daemon stops |
//! | stdin, one a job | what `input` gave and its process does not read ([`stdin`]) | nothing waits, or the run is over; detached |
//! | stream, one a controller with watches | live output on its way ([`stream`]) | its last watch is over; detached |
//! | paths | one look at what other accounts can change ([`trusted_paths`]) | it has looked; detached |
//! | sender, one a controller | results, events, records, stats on their way ([`uplink::uploader`]) | told to stop, or its deadline |
//!
//! **In scope**: one node: its jobs, their output, its figures, and the way to its controllers.
//!
//! **Out of scope**: Redis, and whatever a controller does with what it is sent.

mod app;
mod commands;
mod config;
mod daemon;
mod diagnostics;
mod enroll;
mod flags;
pub mod job;
mod monitor;
pub mod output;
mod platform;
mod process_tree;
mod script;
pub mod stats;
mod status;
mod stdin;
mod storage;
mod stream;
mod supervisor;
mod trusted_paths;
mod uplink;

pub use app::main;
