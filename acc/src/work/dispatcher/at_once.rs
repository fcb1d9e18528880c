//! Commands that are passed on in one call each, where one server has all keys.
//!
//! Owns: which commands go so. The steps take over where a call could not do all of it, and go on as with a command
//! that comes again.

use super::enqueue::{Copies, kept};
use super::item::{Item, Plan, failure};
use super::job_hash::job;
use crate::api::context::Context;
use crate::model::dispatch::{self, Dispatch, Dispatched, MAX_CONTROLLERS, MAX_TARGETS};
use crate::model::own_results::redacted;
use crate::model::{inbox, queue::Enqueued};
use crate::proxy::Remote;
use crate::redis::{Batch, Conn};
use crate::work::deferred_jobs::DeferredJobs;
use crate::work::handover::hand_over;
use crate::work::history::{audit, expires};
use jscommon::{Command, NodeId, failpoint};
use redis::RedisResult;
use std::collections::HashSet;

/// Most bytes of the copies of a command in one call.
const MAX_COPIED_BYTES: usize = 256 << 10;

/// Failure points between two steps. A test that asks for one of them has commands passed on in steps.
const STEP_POINTS: &[&str] = &["acc.hashed", "acc.enqueued", "acc.answered", "acc.untaken"];

/// Whether all of `items`, which come for the first time, can be passed on in one call each: few targets, and no node has
/// two of them, which go into its queue together.
pub(super) fn fits(conn: &Conn, items: &[Item], deferred: &DeferredJobs) -> bool {
    let mut nodes = HashSet::new();
    let mut fits = |item: &Item| {
        let Plan::Run(_, targets) = &item.plan else { return false };
        (1..=MAX_TARGETS).contains(&targets.len())
            && item.text.len() * targets.len() <= MAX_COPIED_BYTES
            && targets.iter().all(|node| !deferred.nodes.contains(node) && nodes.insert(*node))
    };
    !conn.is_cluster() && items.iter().all(&mut fits) && !failpoint::is_aimed_at(STEP_POINTS)
}

/// The outcome of `pass_on`.
pub(super) struct PassedOn {
    /// Items that the steps have to go on with.
    pub(super) left: Vec<Item>,
    /// How many are done.
    pub(super) done: usize,
    /// Commands that were taken in the same round trip.
    pub(super) taken: Vec<Vec<u8>>,
}

/// Passes on `items`, and takes up to `more` others. `controllers` are those that hold polls, as far as is known.
pub(super) fn pass_on(
    context: &Context,
    proxy: &Remote,
    controllers: &mut Vec<String>,
    conn: &mut Conn,
    items: Vec<Item>,
    now: u64,
    more: usize,
) -> RedisResult<PassedOn> {
    let mut batch = Batch::new();
    for item in &items {
        if let Plan::Run(command, targets) = &item.plan {
            add(&mut batch, context, controllers, (command, targets), &item.text, now);
        }
    }
    if more > 0 {
        inbox::take_more(&mut batch, &context.me, more);
    }
    failpoint::hit("acc.dispatching");
    let mut answers = conn.run_each(&batch)?;
    failpoint::hit("acc.dispatched");
    let taken = if more > 0 { inbox::taken_more(answers.pop().transpose()?)? } else { Vec::new() };
    let mut passed_on = PassedOn { left: Vec::new(), done: 0, taken };
    let mut error = None;
    for (mut item, answer) in items.into_iter().zip(answers) {
        match answer.and_then(|answer| dispatch::dispatched(&context.me, answer)) {
            Ok(Dispatched::Queued { is_done, queued }) => {
                for (node, queued) in item.plan.targets().iter().zip(queued) {
                    queued.into_iter().for_each(|queued| note(context, proxy, controllers, *node, queued));
                }
                if is_done {
                    passed_on.done += 1;
                    continue;
                }
            }
            Ok(Dispatched::Known) => item.repeats(),
            // The steps say what is against it.
            Err(e) => error = error.or(failure(e).err()),
        }
        passed_on.left.push(item);
    }
    // Only now: what the others have handed over is on its way.
    error.map_or(Ok(passed_on), Err)
}

/// Adds the call for one command.
fn add(
    batch: &mut Batch,
    context: &Context,
    controllers: &[String],
    (command, targets): (&Command, &[NodeId]),
    text: &[u8],
    now: u64,
) {
    let (copies, shown) = (Copies::of(command), redacted(command));
    let call = Dispatch {
        me: &context.me,
        now,
        job: job(command, &shown, targets, now),
        text,
        audit: if command.quiet { String::new() } else { audit(command, targets, now).to_string() },
        copies: targets.iter().map(|node| copies.queued_command(&context.tickets, *node, now)).collect(),
        limit: context.config.max_queue,
        keep: kept(expires(command)),
        controllers,
    };
    dispatch::dispatch(batch, &call);
}

/// Hands over what a poll waits for here, and keeps the name of another controller that holds it.
fn note(context: &Context, proxy: &Remote, controllers: &mut Vec<String>, node: NodeId, queued: Enqueued) {
    if let Some(handover) = queued.handover {
        hand_over(context, proxy, node, handover);
    }
    if let Some(holder) = queued.holder.filter(|holder| !controllers.contains(holder)) {
        controllers.truncate(MAX_CONTROLLERS - 1);
        controllers.insert(0, holder);
    }
}
