//! Changes by other controllers and operators, read in one round trip: revocations, grants, dead
//! controllers, the ticket key; and commands whose wait has ended.

use super::{expiry, grants};
use crate::api::context::Context;
use crate::auth::{revocation, shared_secrets};
use crate::model::{controllers, inbox, jobs, nodes, queue};
use crate::proxy::Remote;
use crate::redis::{Batch, Conn};
use crossbeam_channel::Sender;
use redis::{FromRedisValue, RedisResult};

/// The way by which the dispatcher is told of dead controllers.
pub(crate) struct DeadControllers(pub(crate) Sender<String>);

impl DeadControllers {
    /// Tells the dispatcher. While it cannot take them, each is told once.
    pub(crate) fn report(&self, dead: Vec<String>) {
        if self.0.is_empty() {
            dead.into_iter().for_each(|ac| drop(self.0.send(ac)));
        }
    }
}

/// Which revocations were read last.
#[derive(Default)]
pub(crate) struct SharedChanges {
    revoked: Option<u64>,
}

impl SharedChanges {
    /// Makes the next `apply` read the revocations, whatever their version.
    pub(crate) fn forget(&mut self) {
        self.revoked = None;
    }

    /// Finds controllers that have died (the dispatcher goes on with what they had taken), new revocations and grants,
    /// and commands whose wait has ended. An error of one of them stops none of the others: of a cluster's servers one
    /// may be away.
    pub(crate) fn apply(
        &mut self,
        context: &Context,
        proxy: &Remote,
        dead: &DeadControllers,
        conn: &mut Conn,
    ) -> RedisResult<()> {
        let now = context.clock.now();
        let mut batch = Batch::new();
        batch.call(nodes::revoked_version()).call(jobs::expired(now, 1)).call(nodes::ticket_key());
        // Figures for /metrics, here so that they cost no round trip.
        inbox::ask_depths(&mut batch);
        controllers::ask_dead(&mut batch, now);
        let before = batch.len();
        let due = grants::ask_due(context, &mut batch);
        let mut answers = conn.run_each(&batch)?;
        let compared = answers.split_off(before);
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(redis::Value::Nil));
        let version = next().and_then(|value| Ok(Option::<u64>::from_redis_value(value)?.unwrap_or_default()));
        let expired = next().and_then(|value| Ok(Vec::<String>::from_redis_value(value)?));
        let key = next().and_then(|value| Ok(Option::<String>::from_redis_value(value)?));
        let counted = inbox::depths(next(), next()).map(|(pending, queued)| {
            context.metrics.pending_commands.set(pending);
            context.metrics.queued_commands.set(queued);
        });
        let passed = controllers::read_dead(answers.collect(), &context.me).map(|found| dead.report(found));
        let tickets = &context.tickets;
        let agreed = match key {
            Ok(Some(key)) if tickets.is_agreed() && key == tickets.keys().current.text() => Ok(()),
            _ => shared_secrets::agree_on_ticket_key(&context.tickets, &context.state_dir, conn),
        };
        let revoked = match version {
            // No node is let in before: it could be handed a ticket that no other controller takes.
            _ if !tickets.is_agreed() => Ok(()),
            Ok(version) if self.revoked == Some(version) => Ok(()),
            Ok(version) => self.read_revocations(version, context, proxy, conn),
            Err(e) => Err(e),
        };
        let ended = match expired {
            Ok(expired) if expired.is_empty() => Ok(()),
            Ok(_) => expiry::expire_due(context, conn),
            Err(e) => Err(e),
        };
        let granted = grants::apply(context, conn, &due, compared);
        passed.and(agreed).and(revoked).and(ended).and(granted).and(counted)
    }

    /// Reads all revocations. `version` was read before them, so one that is added meanwhile is read the next time.
    fn read_revocations(
        &mut self,
        version: u64,
        context: &Context,
        proxy: &Remote,
        conn: &mut Conn,
    ) -> RedisResult<()> {
        let fresh = context.authenticator.set_revoked(nodes::revoked(conn)?);
        for node in &fresh {
            proxy.disconnect(*node);
            context.claims.forget(*node);
            context.delivered.forget(*node);
        }
        // Its requests until now may have brought it back into the live set.
        for node in queue::closed(conn, &fresh)? {
            revocation::forget(conn, node)?;
        }
        self.revoked = Some(version);
        Ok(())
    }
}
