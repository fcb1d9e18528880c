//! The way to the controllers: requests, failover, credentials, and the threads that poll and upload.

pub(crate) mod client;
pub(crate) mod credential_set;
mod credentials;
mod failure;
pub(crate) mod faults;
mod log_once;
pub(crate) mod poller;
mod resolver;
mod stream_post;
#[cfg(test)]
pub(crate) mod test_controller;
mod trust;
pub(crate) mod uploader;

pub(crate) use client::Controller;
pub(crate) use credentials::Credentials;
pub(crate) use credentials::{Enrolled, read_certificates};
pub(crate) use failure::Failure;
pub(crate) use failure::{of_io, of_tls, unresolved};
