//! Files of the node that outlive the agent: jobs, uploads and messages, each in an SQLite database.

pub(crate) mod job_store;
pub(crate) mod message_log;
mod sqlite;
pub(crate) mod upload_queue;
