//! The way to the controllers: requests, failover, credentials, and the threads that poll and upload.

pub(crate) mod client;
pub(crate) mod credential_set;
mod credentials;
mod failure;
pub(crate) mod faults;
mod log_once;
pub mod poller;
mod resolver;
#[cfg(test)]
pub(crate) mod test_controller;
mod trust;
pub mod uploader;

pub use client::Controller;
pub use credentials::Credentials;
pub(crate) use credentials::{Enrolled, read_certificates};
pub use failure::Failure;
pub(crate) use failure::{of_io, of_tls, unresolved};
