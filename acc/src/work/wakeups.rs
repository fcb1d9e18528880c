//! Reads the wake-ups of this controller: a node whose poll waits here has something to fetch.
//!
//! Owns: the thread `wakeups`. Does not own: sending them (any controller's dispatcher, or a poll that
//! moved to another controller), or the waiting polls (the proxy).
//!
//! After each connect every waiting poll is asked again, for a wake-up may be lost with the old connection.

use crate::api::context::Context;
use crate::auth::shared_secrets;
use crate::model::polls::{self, Mode, PollAnswer, Question};
use crate::model::wakeups::{self, Wakeup};
use crate::proxy::Remote;
use crate::redis::errors::{describe, is_broken, is_interrupted};
use crate::redis::{Batch, Conn};
use crate::work::Stop;
use crate::work::handover::hand_over;
use jscommon::backoff::Backoff;
use jscommon::failpoint;
use redis::RedisResult;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longest wait for an answer of Redis: well above the 5 s that a read blocks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens until it is told to stop.
pub(crate) fn run(context: &Arc<Context>, proxy: &Remote, stop: &Stop) -> Result<(), String> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut conn: Option<Conn> = None;
    while !stop.is_set() {
        let outcome = match &mut conn {
            Some(open) => receive(context, proxy, open).map(|()| backoff.succeed()),
            None => context.pool.open(RESPONSE_TIMEOUT).and_then(|mut open| {
                shared_secrets::compare_ticket_key(&context.tickets, &context.state_dir, &mut open)?;
                // Of a cluster another server may be there than the one that has the wake-ups, and then the polls
                // can wait as they do.
                wakeups::has_wakeups(&mut open, &context.me)?;
                conn = Some(open);
                context.epoch.fetch_add(1, Ordering::Relaxed);
                proxy.recheck_all();
                Ok(())
            }),
        };
        match outcome {
            Ok(()) => {}
            Err(e) if is_interrupted(&e) => conn = None,
            Err(e) => {
                context.pool.failed(e);
                conn = None;
                stop.wait(backoff.fail(fastrand::f64()));
            }
        }
    }
    Ok(())
}

fn receive(context: &Context, proxy: &Remote, conn: &mut Conn) -> RedisResult<()> {
    let wakeups = wakeups::read_wakeups(conn, &context.me)?;
    if wakeups.is_empty() {
        return Ok(());
    }
    failpoint::hit("acc.heard");
    let mut batch = Batch::new();
    let mut nodes = Vec::new();
    for wakeup in wakeups {
        match wakeup {
            // The other controller registers only once this was said, so nothing has to be looked up.
            Wakeup::Moved(node) => {
                context.delivered.forget(node);
                proxy.release_poll(node);
            }
            Wakeup::Fetch(node) => nodes.push(node),
        }
    }
    for node in &nodes {
        polls::ask(&mut batch, &Question::new(&context.me, *node, context.clock.now(), Mode::Fetch));
    }
    for (node, answer) in nodes.iter().zip(conn.run_each(&batch)?) {
        let answer = match answer.and_then(polls::answered) {
            Ok(answer) => answer,
            // An error about one node does not fail the others; its poll asks again, and is told.
            Err(e) if !is_broken(&e) => {
                log::debug!("the queue of {node} cannot be read: {}", describe(&e));
                proxy.recheck(*node);
                continue;
            }
            Err(e) => return Err(e),
        };
        match answer {
            PollAnswer::Batch(handover) => hand_over(context, proxy, *node, handover),
            PollAnswer::Elsewhere(true) => proxy.release_poll(*node),
            PollAnswer::Elsewhere(false) => proxy.recheck(*node),
            PollAnswer::Empty | PollAnswer::Moved(_) | PollAnswer::Displaced(..) => {}
        }
    }
    Ok(())
}
