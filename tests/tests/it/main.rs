//! The integration tests: one binary, a module a feature.
//!
//! Every test starts the parts that it needs (see the crate `jstests`) and shares nothing.

mod away;
mod bad_input;
mod controller;
mod credentials;
mod daemons;
mod dashboard;
mod delivery;
mod disks;
mod dispatch;
mod docs;
mod enrolment;
mod events;
mod floods;
mod grants;
mod identity;
mod inherited;
mod init;
mod install;
mod leftovers;
mod long_load;
mod main_path;
mod messages;
mod polling;
mod programs;
mod proxies;
mod re_enrolment;
mod redis_away;
mod redis_full;
mod redis_kinds;
mod renewal;
mod results;
mod revocation;
mod roaming;
mod scale;
mod scripts;
mod secrets;
mod service;
mod stats;
mod supervise;
mod support;
mod ticket_key;
mod tickets;
mod trusted_paths;
mod unauthenticated;
