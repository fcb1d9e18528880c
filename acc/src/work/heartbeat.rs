//! The heartbeat: this controller stands in Redis as one that lives, with the right node secret.
//!
//! Owns: what was compared and said so far. Does not own: when it beats (`periodic`), or what follows when Redis has
//! forgotten this controller.

use crate::api::context::Context;
use crate::auth::shared_secrets;
use crate::model::{controllers, nodes};
use crate::redis::errors::is_partial;
use crate::redis::{Batch, Conn, describe};
use redis::{FromRedisValue, RedisResult, Value};
use std::sync::atomic::Ordering;

/// The heartbeat of one controller.
#[derive(Default)]
pub(crate) struct Heartbeat {
    /// Redis belongs to our node secret.
    claimed: bool,
    beaten: bool,
    /// Redis belongs to a newer node secret than ours, and that was logged.
    behind: bool,
}

/// The outcome of a heartbeat.
pub(crate) enum Outcome {
    /// Redis knows this controller.
    Known,
    /// Redis had forgotten this controller: data was lost.
    Forgotten,
    /// Redis belongs to other controllers, for this reason: this one has to end.
    Foreign(String),
}

impl Heartbeat {
    /// Compares the node secret with that of Redis once; the inner error is the reason for this controller to end.
    fn compare_fingerprint(&mut self, context: &Context, conn: &mut Conn) -> RedisResult<Result<(), String>> {
        if !self.claimed {
            let ours = context.authenticator.secrets().current.fingerprint().to_owned();
            let theirs = nodes::claim_fingerprint(conn, &ours)?;
            if let Err(reason) =
                shared_secrets::check_fingerprint(&context.authenticator, &context.config.state_dir, &theirs)
            {
                return Ok(Err(reason));
            }
            if theirs != ours {
                // Rotated, and Redis has not heard of it: it was restored, or the command died.
                nodes::set_fingerprint(conn, &ours)?;
            }
            self.claimed = true;
        }
        Ok(Ok(()))
    }

    /// Tells that the node secret was rotated at another controller, once.
    fn tell_rotation(&mut self, context: &Context, theirs: &str) {
        let checked = shared_secrets::check_fingerprint(&context.authenticator, &context.config.state_dir, theirs);
        if checked.is_err() && !self.behind {
            log::error!(
                "the node secret was rotated at another controller, and nodes that have renewed are refused here: \
                 copy its node.secret into {}",
                context.config.state_dir.display()
            );
        }
        self.behind = checked.is_err();
    }

    /// Says that this controller lives, and learns the time and whether data was lost.
    pub(crate) fn beat(&mut self, context: &Context, conn: &mut Conn) -> RedisResult<Outcome> {
        match self.compare_fingerprint(context, conn) {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => return Ok(Outcome::Foreign(reason)),
            // The key is spoilt or out of reach, and this controller lives all the same.
            Err(e) if is_partial(&e) => log::debug!("fingerprint: {}", describe(&e)),
            Err(e) => return Err(e),
        }
        let mut batch = Batch::new();
        controllers::ask_beat(&mut batch, &context.me);
        batch.call(nodes::ask_fingerprint());
        let mut answers = conn.run_each(&batch)?;
        let theirs =
            answers.pop().unwrap_or(Ok(Value::Nil)).and_then(|value| Ok(Option::<String>::from_redis_value(value)?));
        let beat = controllers::read_beat(answers)?;
        match theirs {
            Ok(theirs) if self.claimed => theirs.iter().for_each(|theirs| self.tell_rotation(context, theirs)),
            Ok(_) => {}
            Err(e) => log::debug!("fingerprint: {}", describe(&e)),
        }
        context.clock.set(beat.now);
        let forgotten = context.forgotten.swap(false, Ordering::Relaxed);
        let forgotten = forgotten || (beat.new && self.beaten);
        if forgotten {
            log::warn!("redis has forgotten this controller; every waiting poll is asked again");
            self.claimed = false;
            context.epoch.fetch_add(1, Ordering::Relaxed);
        }
        self.beaten = true;
        Ok(if forgotten { Outcome::Forgotten } else { Outcome::Known })
    }
}
