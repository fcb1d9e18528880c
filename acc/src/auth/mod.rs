//! Secrets, certificates and tickets, and who is let in.
//!
//! Owns: the state directory, every kind of credential, and every reason to refuse one.
//! Does not own: sockets (`proxy`), or what a request does once it is let in (`api`).

pub mod authenticator;
pub mod ca;
mod certificate;
pub mod dates;
pub mod enrolment;
pub mod revocation;
pub mod secrets;
pub mod shared_secrets;
pub mod state_dir;
pub mod state_files;
pub mod tickets;
pub mod tls;
pub mod trusted_paths;
