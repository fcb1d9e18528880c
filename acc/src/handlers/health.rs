//! `GET /health`: 200 while Redis answers.

use super::Outcome;
use crate::context::Context;
use crate::server::Reply;

pub(super) fn get(context: &Context) -> Outcome {
    context.pool.with(|conn| conn.one::<String>(&redis::cmd("PING")))?;
    Ok(Reply::json(r#"{"status":"ok"}"#))
}
