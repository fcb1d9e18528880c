//! Hands commands to the poll of a node that waits at this controller.

use crate::api::command_body::command_body;
use crate::api::context::Context;
use crate::model::handover::Handover;
use crate::proxy::Remote;
use jscommon::{NodeId, failpoint};

/// Gives a node's waiting poll its commands.
pub(crate) fn hand_over(context: &Context, proxy: &Remote, node: NodeId, handover: Handover) {
    // Noted first, for the acknowledgement may be here at once.
    proxy.deliver(node, command_body(context, node, handover));
    failpoint::hit("acc.handed");
}
