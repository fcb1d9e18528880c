//! The invariants of every state.

use crate::setup::*;
use crate::state::*;

/// The sentence that says which invariant a state breaks.
pub(crate) fn broken(setup: &Setup, state: &State) -> Option<&'static str> {
    for command in 0..setup.commands.len() {
        for node in 0..setup.nodes {
            if state.node[node].starts[command] > 1 {
                return Some("an id was started twice on a node");
            }
            // A Redis that has lost what it had answered has lost that too.
            if !state.lost
                && let Some(what) = broken_list(setup, state, command, node)
            {
                return Some(what);
            }
        }
    }
    None
}

fn broken_list(setup: &Setup, state: &State, command: usize, node: usize) -> Option<&'static str> {
    let (at, listed) = (&state.node[node], state.redis.listed[command][node]);
    // `kill` is answered without a process.
    let has_process = matches!(setup.commands[command], Kind::Job(_));
    if listed.count > 1 {
        return Some("two answers of one target are in the list");
    }
    if listed.count == 0 {
        return None;
    }
    if state.redis.job[command].field[node] != Field::Final(listed.first) {
        return Some("who has popped an answer does not find it in the job's hash");
    }
    match listed.first {
        Answer::Forged => Some("a node has answered for another one"),
        Answer::Ok if has_process && at.starts[command] != 1 => Some("a job is OK and never ran"),
        Answer::Cancelled if at.starts[command] > 0 && !state.given_up => Some("a job was cancelled and ran"),
        Answer::Expired if at.starts[command] > 0 && !state.given_up => Some("a job has expired and ran"),
        Answer::Died | Answer::Killed if at.process[command] => Some("a job has ended and its process lives"),
        _ => None,
    }
}

/// All that was pushed is answered, and nothing is on its way.
pub(crate) fn all_is_answered(setup: &Setup, state: &State) -> bool {
    let commands = 0..setup.commands.len();
    let answered = |command: usize| {
        (0..setup.nodes).all(|node| {
            let settled = matches!(state.node[node].row[command], Row::None | Row::Sent { safe: true, .. });
            let listed = state.redis.listed[command][node].count == 1;
            settled && (state.lost || listed || !setup.wants_answer(command, node))
        })
    };
    let redis = &state.redis;
    let rests = |ac: &Ac| ac.dispatcher.next == Do::Idle && ac.expiry.next == Next::Idle;
    commands.clone().all(|command| state.sent[command] && answered(command))
        && redis.pushed == [0; COMMANDS]
        && redis.taken == [[0; COMMANDS]; ACS]
        && redis.queue.iter().all(|queue| queue.score == [0; COMMANDS] && queue.text == [false; COMMANDS])
        && redis.expiring == [[Wait::None; NODES]; COMMANDS]
        && state.ac.iter().all(rests)
        && state.node.iter().all(|node| node.process == [false; COMMANDS] && node.received.1 == 0)
}
