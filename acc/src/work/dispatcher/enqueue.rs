//! Commands on their way into the queues of their nodes, many nodes in one round trip.

use super::item::{Failure, Item, Plan, failure};
use crate::api::context::Context;
use crate::auth::tickets::{Flags, Tickets};
use crate::model::handover::QueuedCommand;
use crate::model::own_results::OwnResult;
use crate::model::queue::{self, Queued};
use crate::model::{DAY, jobs, wakeups};
use crate::proxy::Remote;
use crate::redis::{Batch, Conn};
use crate::work::deferred_jobs::DeferredJobs;
use crate::work::handover::hand_over;
use crate::work::history::{created, expires};
use crate::work::targets;
use jscommon::command::TICKET;
use jscommon::{Command, NodeId, failpoint};
use redis::RedisResult;
use serde_json::Value;
use std::collections::BTreeMap;

/// Most scripts in one round trip.
const MAX_PIPELINE_CALLS: usize = 512;
/// Most bytes of commands in one round trip.
const MAX_PIPELINE_BYTES: usize = 8 << 20;

/// The outcome of `enqueue`. Items are named by their index.
#[derive(Default)]
pub(super) struct Enqueued {
    /// Answers for nodes in whose queue the command may not wait.
    pub(super) answers: Vec<(usize, OwnResult)>,
    /// Commands that are to be forgotten once they are answered.
    pub(super) forget: Vec<(usize, NodeId, String)>,
    /// Sentences for the log.
    pub(super) errors: Vec<String>,
}

/// Puts commands into the queues, node by node; a node that waits here is handed its commands at once.
pub(super) fn enqueue(
    context: &Context,
    proxy: &Remote,
    deferred: &mut DeferredJobs,
    conn: &mut Conn,
    items: &mut [Item],
    now: u64,
) -> RedisResult<Enqueued> {
    let mut commands: Vec<Copies> = Vec::new();
    let mut owners: Vec<usize> = Vec::new();
    let mut held: Vec<(usize, NodeId)> = Vec::new();
    let mut spoilt: Vec<(usize, String)> = Vec::new();
    let mut by_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        if let Plan::Run(command, targets) = &item.plan
            && !targets.is_empty()
        {
            for node in targets {
                if deferred.nodes.contains(node) {
                    held.push((at, *node));
                } else {
                    by_node.entry(*node).or_default().push(commands.len());
                }
            }
            owners.push(at);
            commands.push(Copies::of(command));
        }
    }
    let all: Vec<(NodeId, Vec<usize>)> = by_node.into_iter().collect();
    let mut outcome = Enqueued::default();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let (waits, batch, size) = round_trip(context, &commands, rest, now);
        let replies = conn.run_in_order(waits, batch)?;
        failpoint::hit("acc.enqueued");
        let (mut wakeups, mut notified) = (Batch::new(), Vec::new());
        for ((node, indices), reply) in rest[..size].iter().zip(replies) {
            let enqueued = match reply.and_then(|reply| queue::enqueued(&context.me, reply)) {
                Ok(enqueued) => enqueued,
                Err(e) => match failure(e)? {
                    Failure::Later => {
                        deferred.nodes.insert(*node);
                        held.extend(indices.iter().map(|i| (owners[*i], *node)));
                        continue;
                    }
                    Failure::Spoilt(sentence) => {
                        for i in indices {
                            let answer = OwnResult::error(commands[*i].command, Some(*node), sentence.clone());
                            outcome.answers.push((owners[*i], answer));
                            spoilt.push((owners[*i], sentence.clone()));
                        }
                        continue;
                    }
                },
            };
            if let Some(handover) = enqueued.handover {
                hand_over(context, proxy, *node, handover);
            }
            if let Some(ac) = enqueued.holder {
                wakeups::notify(&mut wakeups, &ac, *node);
                notified.push((*node, indices));
            }
            for (i, verdict) in indices.iter().zip(enqueued.verdicts) {
                let limit = context.config.max_queue;
                let sentence = match verdict {
                    Queued::Now | Queued::Before => continue,
                    Queued::Full => format!("{limit} commands wait for node {node} already, and no more may"),
                    Queued::Revoked => format!("node {node} was revoked: enrol it again"),
                };
                let command = commands[*i].command;
                outcome.answers.push((owners[*i], OwnResult::error(command, Some(*node), sentence)));
                outcome.forget.push((owners[*i], *node, command.id.clone()));
            }
        }
        // A wake-up is two calls. Until it is read its node does not come for what waits.
        for (some, (node, indices)) in conn.run_each(&wakeups)?.chunks(2).zip(notified) {
            if let Some(e) = some.iter().find_map(|answer| answer.as_ref().err()) {
                if let Failure::Spoilt(sentence) = failure(e.clone())? {
                    outcome.errors.push(format!("a controller is not told of a command: {sentence}"));
                }
                held.extend(indices.iter().map(|i| (owners[*i], node)));
            }
        }
        rest = &rest[size..];
    }
    for (i, sentence) in spoilt {
        items[i].note(sentence);
    }
    for (i, node) in held {
        items[i].deferred.get_or_insert_default().push(node);
    }
    Ok(outcome)
}

/// The calls for the first of `rest`, as many as fit into one round trip: those that note how long commands may wait,
/// those that queue them, and for how many nodes they are.
fn round_trip(
    context: &Context,
    commands: &[Copies<'_>],
    rest: &[(NodeId, Vec<usize>)],
    now: u64,
) -> (Batch, Batch, usize) {
    let (mut waits, mut batch) = (Batch::new(), Batch::new());
    let (mut bytes, mut size) = (0, 0);
    for (node, indices) in rest.iter().take(MAX_PIPELINE_CALLS) {
        bytes += indices.iter().map(|i| commands[*i].text.len()).sum::<usize>();
        if size > 0 && bytes > MAX_PIPELINE_BYTES {
            break;
        }
        let some: Vec<QueuedCommand> =
            indices.iter().map(|i| commands[*i].queued_command(&context.tickets, *node, now)).collect();
        for i in indices {
            let until = now.saturating_add(expires(commands[*i].command).saturating_mul(1000));
            jobs::expire_at(&mut waits, *node, &commands[*i].command.id, until);
        }
        let longest = indices.iter().map(|i| expires(commands[*i].command)).max().unwrap_or(DAY);
        queue::enqueue(&mut batch, &context.me, *node, &some, now, context.config.max_queue, kept(longest));
        size += 1;
    }
    (waits, batch, size)
}

/// Seconds that the queue of a node is kept in which a command may wait for so many.
pub(super) fn kept(longest: u64) -> u64 {
    longest.saturating_add(2 * DAY)
}

/// The copies of one command, which differ in their node.
pub(super) struct Copies<'a> {
    command: &'a Command,
    /// The command as its client pushed it, without its last brace, its list of nodes, and what each copy has of its own.
    text: String,
    /// The client named roles or a list of nodes, and each copy names its node.
    is_chosen: bool,
    /// The flags in the tickets of the copies.
    flags: Flags,
}

impl Copies<'_> {
    pub(super) fn of(command: &Command) -> Copies<'_> {
        let mut value = command.to_value();
        let is_chosen = targets::named(command).is_none();
        if let Value::Object(fields) = &mut value {
            fields.remove("nodes");
            if is_chosen {
                fields.remove("gid");
                fields.remove("nid");
            }
        }
        let mut text = value.to_string();
        // It has an id at least, so a comma is right behind what is left.
        text.pop();
        Copies { command, text, is_chosen, flags: Flags::of(&command.args) }
    }

    /// The copy for `node`, which names that node alone and has its ticket.
    pub(super) fn queued_command(&self, tickets: &Tickets, node: NodeId, now: u64) -> QueuedCommand {
        let (id, created) = (self.command.id.clone(), created(self.command, now));
        // A ticket needs no escapes.
        let ticket = tickets.issue(node, &id, self.flags);
        let marked_expired = jobs::keep(self.command.quiet);
        // For as long as the job's hash may be there: then its id is new.
        let marked = if self.command.quiet { expires(self.command).saturating_add(marked_expired) } else { DAY };
        let (start, NodeId { gid, nid }) = (&self.text, node);
        let text = if self.is_chosen {
            format!("{start},\"gid\":{gid},\"nid\":{nid},\"{TICKET}\":\"{ticket}\"}}")
        } else {
            format!("{start},\"{TICKET}\":\"{ticket}\"}}")
        };
        let chosen_from = self.is_chosen.then_some(self.command.gid);
        QueuedCommand { id, created, chosen_from, text, marked, marked_expired }
    }
}
