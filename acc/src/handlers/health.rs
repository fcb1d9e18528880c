//! `GET /health`: 200 while Redis answers.

use super::Outcome;
use crate::context::Context;
use crate::janitor;
use crate::server::Reply;

pub(super) fn get(context: &Context) -> Outcome {
    if context.authenticator.knows_revoked() {
        context.pool.with(|conn| conn.one::<String>(&redis::cmd("PING")))?;
    } else {
        // Nodes are admitted from now on: a load balancer that gets this answer may send them here.
        context.pool.with(|conn| janitor::admit_nodes(context, conn))?;
    }
    Ok(Reply::json(r#"{"status":"ok"}"#))
}
