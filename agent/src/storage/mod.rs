//! Files of the node that outlive the agent: jobs, uploads and messages, each in an SQLite database.

pub mod job_store;
pub mod message_log;
mod sqlite;
pub mod upload_queue;
