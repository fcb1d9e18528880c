//! Keys that all controllers of one Redis share: the ticket key, and the fingerprint of the node secret.
//!
//! Owns: making this controller and Redis agree on them. Does not own: the files (`state_dir`), the keys of Redis
//! (`model::nodes`).

use super::authenticator::Authenticator;
use super::state_dir::StateDir;
use super::tickets::{TicketKey, TicketKeys, Tickets};
use crate::model::nodes;
use crate::redis::errors::is_broken;
use crate::redis::{Conn, describe};
use redis::RedisResult;
use std::path::Path;

/// Makes this controller and Redis have one ticket key: that of Redis, or this controller's where Redis has none.
/// It is kept in the state directory. A controller that has one from before does not wait for Redis: it is the one
/// that all agreed on.
pub(crate) fn agree_on_ticket_key(tickets: &Tickets, state_dir: &StateDir, conn: &mut Conn) -> RedisResult<()> {
    // One thread at a time: a key that another thread has just taken over is no previous one.
    let _agreeing = tickets.agreeing();
    let ours = tickets.keys();
    let kept = state_dir.ticket_keys().ok().flatten();
    let theirs = match nodes::claim_ticket_key(conn, ours.current.text()) {
        Ok(text) => TicketKey::parse(&text),
        Err(e) => {
            if kept.is_some() {
                tickets.agree(ours);
            }
            return Err(e);
        }
    };
    let keys = match theirs {
        Some(theirs) if theirs == ours.current => ours,
        Some(theirs) => {
            // One that was only made at this start has made no ticket.
            let used = kept.is_some() || tickets.is_agreed();
            TicketKeys { current: theirs, previous: used.then_some(ours.current) }
        }
        None => {
            if kept.is_some() {
                tickets.agree(ours);
            }
            let what = "the value of jsacc:ticket_key is no key of 64 hex digits; delete it, and it is written anew";
            return Err((redis::ErrorKind::UnexpectedReturnType, what).into());
        }
    };
    if kept.as_ref() != Some(&keys)
        && let Err(e) = state_dir.keep_ticket_keys(&keys)
    {
        log::error!("the ticket key is not kept in the state directory, so it is lost when redis loses it: {e:#}");
    }
    tickets.agree(keys);
    Ok(())
}

/// Compares the ticket key with that of Redis. Over a new connection this comes before any ticket: one that is made
/// with another key is accepted nowhere.
pub(crate) fn compare_ticket_key(tickets: &Tickets, state_dir: &StateDir, conn: &mut Conn) -> RedisResult<()> {
    match agree_on_ticket_key(tickets, state_dir, conn) {
        // The key in Redis is spoilt or out of reach, and all controllers use the one of the state directory.
        Err(e) if tickets.is_agreed() && !is_broken(&e) => {
            log::debug!("the ticket key is not compared with the one in redis: {}", describe(&e));
            Ok(())
        }
        outcome => outcome,
    }
}

/// Admits nodes, where they are not admitted yet: once the ticket key is agreed on and the revocations are read.
pub(crate) fn admit_nodes(
    tickets: &Tickets,
    state_dir: &StateDir,
    authenticator: &Authenticator,
    conn: &mut Conn,
) -> RedisResult<()> {
    compare_ticket_key(tickets, state_dir, conn)?;
    // Revocations that were read meanwhile are newer, and stay.
    authenticator.set_first_revoked(nodes::revoked(conn)?);
    Ok(())
}

/// Whether this controller's secret belongs to the Redis whose fingerprint this is. The error says what
/// to do.
pub(crate) fn check_fingerprint(authenticator: &Authenticator, state_dir: &Path, theirs: &str) -> Result<(), String> {
    let secrets = authenticator.secrets();
    let previous = secrets.previous.as_ref().is_some_and(|(secret, _)| secret.fingerprint() == theirs);
    if secrets.current.fingerprint() == theirs || previous {
        return Ok(());
    }
    Err(format!(
        "redis belongs to controllers with another node secret than the one in {}: copy their state directory here, \
         or give this controller a Redis of its own (database) with -r",
        state_dir.display()
    ))
}
