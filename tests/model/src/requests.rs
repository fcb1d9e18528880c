//! The steps of requests at a controller: the proxy with its waiting polls, the handlers of polls and results.

use crate::explore::Steps;
use crate::redis::Asked;
use crate::setup::*;
use crate::state::*;

/// The poll of `node` that counts at `ac`, as `ParkedPolls` has it.
fn held(s: &State, ac: usize, node: usize) -> Option<usize> {
    let counts = |poll: &Poll| {
        usize::from(poll.ac) == ac && !poll.displaced && !matches!(poll.at, Polling::None | Polling::Sent)
    };
    s.node[node].poll.iter().position(counts)
}

pub(crate) fn parked(s: &State, ac: usize, node: usize) -> Option<usize> {
    held(s, ac, node).filter(|slot| s.node[node].poll[*slot].at == Polling::Parked)
}

/// `ParkedPolls::deliver`: the parked poll is answered (nothing: 204); one whose handler is asked comes to it again.
pub(crate) fn deliver(s: &mut State, setup: &Setup, ac: usize, node: usize, batch: Option<(u8, u8)>) {
    s.ac[ac].trust[node] = 0;
    match held(s, ac, node) {
        Some(slot) if s.node[node].poll[slot].at == Polling::Parked => answer(s, setup, node, slot, batch),
        Some(slot) => s.node[node].poll[slot].woken = true,
        None => {}
    }
}

/// `EventLoop::release_poll`.
pub(crate) fn release_poll(s: &mut State, setup: &Setup, ac: usize, node: usize) {
    deliver(s, setup, ac, node, None);
}

/// `ParkedPolls::recheck`: the handler of the waiting poll is asked again.
pub(crate) fn recheck(s: &mut State, ac: usize, node: usize) {
    s.ac[ac].trust[node] = 0;
    match held(s, ac, node) {
        Some(slot) if s.node[node].poll[slot].at == Polling::Parked => {
            let poll = &mut s.node[node].poll[slot];
            (poll.at, poll.told) = (Polling::Asking, 0);
        }
        Some(slot) => s.node[node].poll[slot].woken = true,
        None => {}
    }
}

pub(crate) fn recheck_all(s: &mut State, ac: usize) {
    (0..NODES).for_each(|node| recheck(s, ac, node));
}

/// The answer to a poll: a batch, or 204. The node hears it where it still waits for it.
fn answer(s: &mut State, setup: &Setup, node: usize, slot: usize, batch: Option<(u8, u8)>) {
    s.node[node].poll[slot] = Poll::default();
    if slot == 0 {
        // `Poller::round`: an acknowledgement that was answered is done.
        s.node[node].ack = 0;
        if let Some((number, commands)) = batch {
            s.node[node].received = (number, commands);
            if setup.is(Mutation::AcknowledgedBeforeStored) {
                s.node[node].ack = number;
            }
        }
    }
}

/// `ParkedPolls::arrive`: the poll is parked at once where the registration is trusted, else its handler is asked.
pub(crate) fn arrive(s: &mut State, setup: &Setup, node: usize, slot: usize) {
    let at = s.node[node].poll[slot];
    let ac = usize::from(at.ac);
    if let Some(before) = held(s, ac, node) {
        if s.node[node].poll[before].at == Polling::Parked {
            answer(s, setup, node, before, None);
        } else {
            s.node[node].poll[before].displaced = true;
        }
    }
    let trust = s.ac[ac].trust[node];
    let parks = trust > 0 && (at.ack == 0 || at.ack + 1 == trust);
    if !parks {
        s.ac[ac].trust[node] = 0;
    }
    s.node[node].poll[slot].at = if parks { Polling::Parked } else { Polling::Asking };
}

/// One poll at its controller: proxy, then `api::cmd`, then proxy.
pub(crate) fn poll(out: &mut Steps<'_>, node: usize, slot: usize) {
    let at = out.state.node[node].poll[slot];
    let ac = usize::from(at.ac);
    if at.at == Polling::None || out.state.ac[ac].life != Life::Lives {
        return;
    }
    match at.at {
        Polling::None => {}
        Polling::Sent => out.fair("a poll arrives", |s, setup| arrive(s, setup, node, slot)),
        // `jobs::running` of what is acknowledged, before it leaves the queue.
        Polling::Asking if !out.state.redis.acked(node, at.ack).is_empty() => {
            out.fair("RUNNING is written down", |s, _| {
                for command in s.redis.acked(node, at.ack) {
                    s.redis.running(command, node);
                }
                s.node[node].poll[slot].at = Polling::Asked;
            });
        }
        Polling::Asking | Polling::Asked => {
            out.fair("a poll asks", |s, setup| match s.redis.poll(ac, node, at.ack, at.told) {
                Asked::Batch(batch, commands) => {
                    if setup.is(Mutation::HandedOverIsGone) {
                        (0..COMMANDS).for_each(|command| s.redis.queue[node].score[command] = 0);
                        s.redis.queue[node].text = Default::default();
                    }
                    if !at.displaced {
                        s.ac[ac].trust[node] = 0;
                    }
                    answer(s, setup, node, slot, Some((batch, commands)));
                }
                Asked::Empty => s.node[node].poll[slot].at = Polling::Empty,
                Asked::Moved(holder) => {
                    s.node[node].poll[slot].told = holder;
                    s.node[node].poll[slot].at = Polling::Moving;
                }
            })
        }
        // `wakeups::notify_moved`, and then it is asked again.
        Polling::Moving => out.fair("tell the controller that the node has left", |s, _| {
            s.redis.wakeups[usize::from(at.told) - 1].moved[node] = true;
            s.node[node].poll[slot].at = Polling::Asked;
        }),
        // `ParkedPolls::park`.
        Polling::Empty => out.fair("a poll is parked", |s, setup| {
            let poll = &mut s.node[node].poll[slot];
            if poll.displaced {
                answer(s, setup, node, slot, None);
            } else if std::mem::take(&mut poll.woken) {
                (poll.at, poll.told) = (Polling::Asking, 0);
            } else {
                (poll.at, poll.told) = (Polling::Parked, 0);
                s.ac[ac].trust[node] = at.ack + 1;
            }
        }),
        // Its time is up: 204.
        Polling::Parked => out.fair("a poll has waited long enough", |s, setup| answer(s, setup, node, slot, None)),
    }
    if !matches!(at.at, Polling::Sent | Polling::Parked) {
        // 503: the node tries again, with the same acknowledgement.
        out.fault(fault::CUT, "a poll fails at redis", |s, _| {
            if !at.displaced {
                s.ac[ac].trust[node] = 0;
            }
            s.node[node].poll[slot] = Poll::default();
        });
    }
}

/// One result at its controller: `api::result`.
pub(crate) fn post(out: &mut Steps<'_>, node: usize, slot: usize) {
    let at = out.state.node[node].post[slot];
    let ac = usize::from(at.ac);
    if at.at == Posting::None || out.state.ac[ac].life != Life::Lives {
        return;
    }
    let command = usize::from(at.command);
    match at.at {
        Posting::None => {}
        // `entry` checks the ticket, `decide` asks Redis. A refused result is 403, and changes nothing.
        Posting::Sent if at.forged && !out.setup.is(Mutation::TicketsUnchecked) => {
            out.fair("a result is refused", |s, _| s.node[node].post[slot] = Post::default());
        }
        Posting::Sent => {
            out.fair("decide on a result", |s, setup| {
                let verdict = s.redis.decide(command, node, Run::Node);
                let taken = verdict != Verdict::Late || setup.is(Mutation::LateAnswersPushed);
                let post = &mut s.node[node].post[slot];
                post.verdict = verdict;
                post.at = match taken {
                    true if setup.is(Mutation::PushedBeforeWritten) => Posting::Push,
                    true => Posting::Write,
                    false => Posting::Reply,
                };
            });
            // `results::deliver`, where one server has all keys.
            out.fair("deliver a result", |s, _| {
                s.redis.deliver(command, node, at.answer);
                s.node[node].post[slot].at = Posting::Reply;
            });
        }
        // `jobs::result`, in the same round trip as the push (a cluster: in one before it).
        Posting::Write => out.fair("write a result down", |s, setup| {
            s.redis.result(command, node, at.answer, at.verdict == Verdict::Repeat);
            let last = at.verdict == Verdict::Repeat || setup.is(Mutation::PushedBeforeWritten);
            s.node[node].post[slot].at = if last { Posting::Reply } else { Posting::Push };
        }),
        // `results::push_all`.
        Posting::Push => out.fair("push a result", |s, setup| {
            let late = at.verdict == Verdict::Late;
            s.redis.push(command, node, Run::Node, at.answer, !late && !setup.is(Mutation::PushedWithoutMark));
            let next = if setup.is(Mutation::PushedBeforeWritten) { Posting::Write } else { Posting::Reply };
            s.node[node].post[slot].at = next;
        }),
        // 200: `Actor::taken` of the agent's sender marks it.
        Posting::Reply => out.fair("a result is taken", |s, _| {
            s.node[node].post[slot] = Post::default();
            if slot == 0 {
                s.node[node].sent(command);
            }
        }),
    }
    if at.at != Posting::Sent {
        out.fault(fault::CUT, "a result fails at redis", |s, _| s.node[node].post[slot] = Post::default());
    }
}
