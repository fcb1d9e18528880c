//! `GET /health`: 200 while Redis answers.

use super::Outcome;
use crate::api::context::Context;
use crate::auth::shared_secrets;
use crate::http::Reply;

pub(super) fn get(context: &Context) -> Outcome {
    if context.authenticator.knows_revoked() {
        context.pool.with(|conn| conn.one::<String>(&redis::cmd("PING")))?;
    } else {
        // Nodes are admitted from now on: a load balancer that gets this answer may send them here.
        context.pool.with(|conn| {
            shared_secrets::admit_nodes(&context.tickets, &context.state_dir, &context.authenticator, conn)
        })?;
    }
    Ok(Reply::json(r#"{"status":"ok"}"#))
}
