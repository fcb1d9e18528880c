//! The revocation of a node: what it held, what it was granted, and what waits for it.
//!
//! Owns: the order of the steps, and what is answered for commands that wait. Does not own: the steps (`model`), the
//! refusal of the node's credentials (`authenticator`).
//!
//! **Its queue is closed before it is emptied**, and stays so until the node is enrolled again: no command can come in
//! between, so the next agent enrolled as that node finds nothing. Every step may be repeated, and a revocation that
//! was interrupted after its first step is finished by the next one, or by the enrolment.

use crate::model::grants::Holder;
use crate::model::own_results::{Deliverer, OwnResult};
use crate::model::queue::{self, Reason, Withdrawn};
use crate::model::{events, grants, jobs, nodes};
use crate::redis::{Batch, Conn};
use jscommon::NodeId;
use redis::RedisResult;
use serde_json::json;

/// Most commands that are answered in one step.
const MAX_ANSWERS: usize = 100;

/// Revokes nodes for one controller.
pub(crate) struct Revoker<'a> {
    /// Delivers the answers.
    pub(crate) deliverer: Deliverer<'a>,
    /// Most commands that wait for one node.
    pub(crate) max_queue: usize,
}

/// The outcome of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revoked {
    /// Until when (ms) the credentials were issued that do not hold any more.
    pub(crate) until: u64,
    /// Commands that waited for the node, and were answered.
    pub(crate) waited: usize,
}

impl Revoker<'_> {
    /// Revokes what `node` holds and is granted, takes it out of the live set and its roles, and answers what waits for it.
    pub(crate) fn revoke(&self, conn: &mut Conn, node: NodeId, local: u64) -> RedisResult<Revoked> {
        let until = nodes::revoke(conn, node, local)?;
        jscommon::failpoint::hit("acc.revoked");
        let waited = self.strip(conn, node, until)?;
        let now = nodes::time(conn)?;
        events::tell(conn, "revoked", Some(node), now, &json!({"waited": waited}))?;
        Ok(Revoked { until, waited })
    }

    /// Tells who holds the credentials of `node`, seen by `token_use` of an enrolment token, and since when (ms). Where it
    /// was revoked, what is left of that is done first: it may have been interrupted, or an earlier version has made it.
    pub(crate) fn finish(&self, conn: &mut Conn, node: NodeId, token_use: &str) -> RedisResult<(Holder, u64)> {
        let (holder, since) = grants::holder(conn, node, token_use)?;
        if holder == Holder::Nobody && since > 0 {
            self.strip(conn, node, since)?;
        }
        Ok((holder, since))
    }

    /// All but the refusal of the credentials; answers how many commands waited.
    fn strip(&self, conn: &mut Conn, node: NodeId, until: u64) -> RedisResult<usize> {
        queue::close(conn, node, until)?;
        grants::revoke(conn, node, until)?;
        forget(conn, node)?;
        self.empty(conn, node)
    }

    /// Answers all that waits for `node`, and forgets it; answers how many commands that were.
    fn empty(&self, conn: &mut Conn, node: NodeId) -> RedisResult<usize> {
        // Of the command line's machine the clock may be wrong.
        let (now, max_queue) = (nodes::time(conn)?, self.max_queue);
        let ids = queue::ids(conn, node)?;
        for some in ids.chunks(MAX_ANSWERS) {
            let (mut answers, mut done) = (Vec::new(), Batch::new());
            for id in some {
                let (command, reason) = match queue::withdraw(conn, node, id, now, Reason::Revoked, max_queue)? {
                    Withdrawn::Out(Some(command), reason) => (Some(*command), reason),
                    // Its text is damaged, or gone.
                    _ => (jobs::lost(conn, node, id)?, Reason::Revoked),
                };
                answers.extend(command.map(|command| OwnResult::withdrawn(&command, node, reason)));
                queue::forget(&mut done, node, id);
            }
            self.deliverer.deliver(conn, &answers)?;
            conn.run(&done)?;
        }
        Ok(ids.len())
    }
}

/// Takes `node` out of the live set and its roles.
pub(crate) fn forget(conn: &mut Conn, node: NodeId) -> RedisResult<()> {
    let mut batch = Batch::new();
    nodes::forget(&mut batch, node);
    conn.run(&batch).map(drop)
}
