//! Grants of nodes that poll here: read again from time to time, for they are changed in Redis by others.

use crate::api::context::Context;
use crate::model::claims::write_down;
use crate::model::grants::{self, Compared};
use crate::redis::errors::is_broken;
use crate::redis::{Batch, Conn, describe};
use jscommon::NodeId;
use redis::{RedisResult, Value};

/// Asks for the grants of nodes that are due, of which there may be none. The answers are read by `apply`.
pub(crate) fn ask_due(context: &Context, batch: &mut Batch) -> Vec<NodeId> {
    if context.config.insecure_no_auth {
        return Vec::new();
    }
    let (due, now) = (context.claims.due(), context.clock.now());
    due.iter().for_each(|node| grants::compare(batch, *node, now));
    due
}

/// Applies the changes in the grants of these nodes.
pub(crate) fn apply(
    context: &Context,
    conn: &mut Conn,
    due: &[NodeId],
    answers: Vec<RedisResult<Value>>,
) -> RedisResult<()> {
    let now = context.clock.now();
    for (node, answer) in due.iter().zip(answers) {
        let mut batch = Batch::new();
        match answer.and_then(grants::compared) {
            Ok(Compared::Known(standing, tell)) => {
                let changed = context.claims.changed(*node, &standing);
                if changed.is_some() || tell {
                    write_down(&mut batch, *node, now, &standing, tell);
                    conn.run(&batch)?;
                }
                if let Some(says) = changed {
                    context.claims.note(*node, says, &standing);
                }
            }
            Ok(Compared::Unknown | Compared::Revoked) => context.claims.forget(*node),
            Err(e) if is_broken(&e) => return Err(e),
            // An error about one node does not fail the others.
            Err(e) => log::debug!("the grants of node {node} cannot be read: {}", describe(&e)),
        }
    }
    Ok(())
}
