//! Commands on their way to a node: their tickets, the note of what was handed over, and how long it took.

use super::context::Context;
use crate::auth::tickets::Flags;
use crate::model::handover::Handover;
use jscommon::NodeId;

/// The body with what `node` is handed now. It is noted, and how long the commands took to get there.
pub(crate) fn command_body(context: &Context, node: NodeId, mut handover: Handover) -> Vec<u8> {
    handover.give_tickets(|command| context.tickets.issue(node, &command.id, Flags::of(&command.args)));
    context.delivered.note(node, &handover.batch, &handover.ids);
    let now = context.clock.now();
    for created in handover.created.iter().filter(|created| **created > 0) {
        context.metrics.handover_seconds.observe(now.saturating_sub(*created) as f64 / 1000.0);
    }
    handover.body()
}
