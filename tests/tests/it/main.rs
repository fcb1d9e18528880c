//! The integration tests: one binary, a module a feature.
//!
//! Every test starts the parts that it needs (see the crate `jstests`) and shares nothing.

mod away;
mod bad_input;
mod credentials;
mod dashboard;
mod door;
mod enrolment;
mod install;
mod main_path;
mod messages;
mod polling;
mod programs;
mod redis_kinds;
mod results;
mod scale;
mod scripts;
mod service;
mod stats;
mod supervise;
mod support;
