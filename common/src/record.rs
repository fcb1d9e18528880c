//! A record: one message of a job, as it is stored and forwarded.

use serde::{Deserialize, Serialize};

/// One message. `gid` and `nid` stand on the wire only; in a node's own database they are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts up over the agent's whole life and starts again after 4 bytes.
    pub id: u32,
    /// The job that wrote it.
    pub jobid: String,
    /// The job's `domain` argument.
    pub jobdomain: String,
    /// The job's `name` argument.
    pub jobname: String,
    /// When it arrived, in milliseconds since 1970.
    pub epoch: i64,
    /// Its level, 1-11, 20-23 or 30.
    pub level: u8,
    /// The text, without its marker and its line end.
    pub data: String,
    /// Grid id of the node, on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Node id of the node, on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nid: Option<u32>,
}
