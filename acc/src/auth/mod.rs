//! Secrets, certificates and tickets, and who is let in.
//!
//! Owns: the state directory, every kind of credential, and every reason to refuse one.
//! Does not own: sockets (`proxy`), or what a request does once it is let in (`api`).

pub mod authenticate;
pub mod authenticator;
pub mod ca;
pub(crate) mod dates;
pub(crate) mod enrolment;
pub(crate) mod revocation;
pub mod secrets;
mod server_certificate;
pub(crate) mod shared_secrets;
pub(crate) mod state_dir;
pub(crate) mod state_files;
pub mod tickets;
pub mod tls;
pub(crate) mod trusted_paths;
