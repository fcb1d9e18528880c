//! Commands whose node did not come for them in time: they are taken back and answered.
//!
//! Owns: the order of the steps, and how long a command is put off that cannot be answered now.
//! Does not own: when this is due (`periodic`), the steps (`model`).

use crate::api::context::Context;
use crate::model::own_results::OwnResult;
use crate::model::queue::{self, Reason, Withdrawn};
use crate::model::{jobs, keys};
use crate::redis::errors::{is_partial, is_spoilt};
use crate::redis::{Batch, Conn, describe};
use redis::RedisResult;
use std::time::{Duration, Instant};

/// The longest time for one call of `expire_due`.
const MAX_EXPIRY_TIME: Duration = Duration::from_secs(1);
/// Most commands that are read at once.
const MAX_EXPIRED: usize = 200;
/// For how long (ms) the end of a wait is put off while a cluster moves the node's slot: longer than the dispatcher
/// may take to come back to what it holds for the same reason.
const MOVING_SLOT_DELAY_MS: u64 = 20_000;
/// The same where a key holds something else than it should.
const WRONG_TYPE_DELAY_MS: u64 = 60_000;

/// Answers commands whose node did not come for them in time. When very many end at once, the next
/// turn goes on: beats and revocations must not wait for them.
pub(crate) fn expire_due(context: &Context, conn: &mut Conn) -> RedisResult<()> {
    let (now, begin) = (context.clock.now(), Instant::now());
    loop {
        let due: Vec<String> = conn.one(&jobs::expired(now, MAX_EXPIRED))?;
        for member in &due {
            match expire(context, conn, member, now) {
                // Of a node whose slot is being moved nothing can be taken back now, and where a key holds something
                // else it must be mended first; the others do not wait.
                Err(e) if is_partial(&e) => {
                    if is_spoilt(&e) {
                        log::error!("a command that has expired cannot be answered for: {}", describe(&e));
                    }
                    let Some((node, id)) = keys::parse_expiring(member) else { continue };
                    let wait = if is_spoilt(&e) { WRONG_TYPE_DELAY_MS } else { MOVING_SLOT_DELAY_MS };
                    let mut later = Batch::new();
                    jobs::put_off(&mut later, node, id, now + wait);
                    conn.run(&later)?;
                }
                outcome => outcome?,
            }
        }
        if due.len() < MAX_EXPIRED || begin.elapsed() >= MAX_EXPIRY_TIME {
            return Ok(());
        }
    }
}

fn expire(context: &Context, conn: &mut Conn, member: &str, now: u64) -> RedisResult<()> {
    let Some((node, id)) = keys::parse_expiring(member) else {
        return conn.one(&redis::Cmd::zrem(keys::EXPIRING, member));
    };
    let mut after = Batch::new();
    match queue::withdraw(conn, node, id, now, Reason::Expired, context.config.max_queue)? {
        Withdrawn::Handed(till) => jobs::put_off(&mut after, node, id, till.max(now + 1000)),
        Withdrawn::Gone => {
            // Nobody has it, and no node has ever acknowledged it: Redis has lost it on its way (a failover
            // to a replica that lagged), or a controller died before it had queued what expired soon.
            if let Some(command) = jobs::lost(conn, node, id)? {
                let sentence =
                    format!("lost: it never reached the queue of node {node}, or redis has forgotten it there");
                context.deliverer().deliver(conn, &[OwnResult::error(&command, Some(node), sentence)])?;
            }
            queue::forget(&mut after, node, id);
        }
        Withdrawn::Out(command, reason) => {
            jscommon::failpoint::hit("acc.withdrawn");
            if let Some(command) = command
                && !jobs::has_node(conn, node, id)?
            {
                context.deliverer().deliver(conn, &[OwnResult::withdrawn(&command, node, reason)])?;
                if reason == Reason::Expired {
                    context.metrics.commands.with_label_values(&["expired"]).inc();
                }
            }
            queue::forget(&mut after, node, id);
        }
    }
    conn.run(&after).map(drop)
}
