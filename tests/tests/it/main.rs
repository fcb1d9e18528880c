//! The integration tests: one binary, a module a feature.
//!
//! Every test starts the parts that it needs (see the crate `jstests`) and shares nothing.

mod door;
mod supervise;
mod support;
