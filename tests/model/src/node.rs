//! The steps of a node: poller, supervisor with its `state.db`, sender, and the client.

use crate::controller;
use crate::explore::Steps;
use crate::requests;
use crate::setup::*;
use crate::state::*;

impl Node {
    /// `JobStore::mark_sent`.
    pub(crate) fn sent(&mut self, command: usize) {
        if let Row::Done { answer, safe } = self.row[command] {
            self.row[command] = Row::Sent { answer, safe };
        }
    }

    /// Whether it has something to do still.
    fn is_busy(&self) -> bool {
        let open = |row: &Row| !matches!(row, Row::None | Row::Sent { safe: true, .. });
        self.row.iter().any(open) || self.received.1 != 0 || self.leftover.contains(&true)
    }
}

/// The client and all steps that the nodes may take next.
pub(crate) fn steps(out: &mut Steps<'_>) {
    client(out);
    for node in 0..out.setup.nodes {
        if out.state.node[node].up {
            poller(out, node);
            (0..out.setup.commands.len()).for_each(|command| job(out, node, command));
            sender(out, node);
        } else {
            // `Actor::restore` follows row by row, in `job`.
            out.fair("the agent starts again", |s, _| s.node[node].up = true);
        }
    }
}

/// LPUSH, in the order of the commands.
fn client(out: &mut Steps<'_>) {
    let sent = out.state.sent;
    if let Some(next) = (0..out.setup.commands.len()).find(|command| !sent[*command]) {
        let push = move |s: &mut State| {
            s.redis.pushed[next] += 1;
            s.sent[next] = true;
        };
        out.fair("the client pushes", |s, _| push(s));
        out.fault(fault::PUSH, "the client pushes twice", |s, _| {
            push(s);
            s.redis.pushed[next] += 1;
        });
    }
}

/// The controller that the node asks: another one where this one is dead (`controller::Controller::post`).
fn controller_of(s: &State, node: usize) -> Option<u8> {
    let lives = |ac: u8| s.ac[usize::from(ac)].life == Life::Lives;
    let at = s.node[node].at;
    if lives(at) { Some(at) } else { (0..ACS as u8).find(|ac| lives(*ac)) }
}

/// `Poller::round` and `Poller::hand_over`.
fn poller(out: &mut Steps<'_>, node: usize) {
    let at = out.state.node[node];
    let stores = at.received.1 != 0 && !out.setup.is(Mutation::AcknowledgedBeforeStored);
    if !stores && at.poll[0].at == Polling::None {
        let Some(ac) = controller_of(out.state, node) else { return };
        out.fair("the node polls", |s, setup| {
            let from = &mut s.node[node];
            from.at = ac;
            from.poll[0] = Poll { at: Polling::Sent, ac, ack: from.ack, ..Poll::default() };
            if !setup.has(fault::REQUEST | fault::ANSWER) {
                requests::arrive(s, setup, node, 0);
            }
        });
    }
    if at.received.1 != 0 {
        // `Actor::submit` and `Actor::flush`: looked up, committed, and then the poller hears of it.
        out.fair("the node stores a batch", |s, setup| {
            let (number, commands) = std::mem::take(&mut s.node[node].received);
            for command in (0..COMMANDS).filter(|command| (commands >> command) & 1 == 1) {
                let known = s.node[node].row[command] != Row::None;
                if !known || setup.is(Mutation::KnownIdsForgotten) {
                    s.node[node].row[command] = Row::Accepted;
                    if setup.commands[command] == Kind::Kill {
                        kill(&mut s.node[node], command);
                    }
                }
            }
            if !setup.is(Mutation::AcknowledgedBeforeStored) {
                s.node[node].ack = number;
            }
        });
    }
}

/// `Actor::control` for `kill`: both rows are one commit, which waits for the disk.
fn kill(node: &mut Node, command: usize) {
    node.row[0] = match node.row[0] {
        Row::Accepted => Row::Done { answer: Answer::Killed, safe: true },
        Row::Started => Row::Ending,
        row => row,
    };
    node.row[command] = Row::Done { answer: Answer::Ok, safe: true };
}

/// A job from its acceptance to its result (`Policy::handle`, `Actor::perform`), and after a start of the agent
/// what `Job::restored` makes of its row.
fn job(out: &mut Steps<'_>, node: usize, command: usize) {
    let at = out.state.node[node];
    let slow = out.setup.has(fault::POWER);
    if at.leftover[command] {
        // `leftovers::end`: until then the job is held.
        if !out.setup.is(Mutation::LeftoversLiveOn) {
            out.fair("what an agent has left is ended", |s, _| {
                s.node[node].leftover[command] = false;
                s.node[node].process[command] = false;
            });
            return;
        }
    }
    // Without a failure or a kill of the agent's in between, a run is one step.
    let whole = !out.setup.has(fault::KILL_AGENT | fault::POWER) && !out.setup.commands.contains(&Kind::Kill);
    match at.row[command] {
        Row::Accepted if whole => out.fair("the job runs", |s, _| {
            s.node[node].starts[command] = (s.node[node].starts[command] + 1).min(2);
            s.node[node].row[command] = Row::Done { answer: Answer::Ok, safe: true };
        }),
        Row::Accepted => out.fair("the start is committed", |s, _| {
            s.node[node].row[command] = Row::Started;
            s.node[node].starting[command] = true;
        }),
        Row::Started if at.starting[command] => out.fair("the process starts", |s, _| {
            let node = &mut s.node[node];
            node.starting[command] = false;
            node.process[command] = true;
            node.starts[command] = (node.starts[command] + 1).min(2);
        }),
        Row::Started if at.process[command] && !at.leftover[command] => {
            // Safe from a power cut a moment later: `JobStore::sync`.
            out.fair("the process ends", |s, _| {
                s.node[node].process[command] = false;
                s.node[node].row[command] = Row::Done { answer: Answer::Ok, safe: !slow };
            });
        }
        Row::Started if out.setup.is(Mutation::StartedRowsStartAgain) => {
            out.fair("it starts again", |s, _| s.node[node].starting[command] = true);
        }
        Row::Started => out.fair("the agent died under it", |s, _| {
            s.node[node].row[command] = Row::Done { answer: Answer::Died, safe: true };
        }),
        Row::Ending => out.fair("the process is killed", |s, _| {
            let node = &mut s.node[node];
            node.process[command] = false;
            node.starting[command] = false;
            node.row[command] = Row::Done { answer: Answer::Killed, safe: true };
        }),
        Row::Done { answer, safe: false } => {
            out.fair("the result is synced", |s, _| s.node[node].row[command] = Row::Done { answer, safe: true });
        }
        Row::Sent { answer, safe: false } => {
            out.fair("the result is synced", |s, _| s.node[node].row[command] = Row::Sent { answer, safe: true });
        }
        Row::None | Row::Done { safe: true, .. } | Row::Sent { safe: true, .. } => {}
    }
}

/// `Actor::post` of the sender: the oldest result first.
fn sender(out: &mut Steps<'_>, node: usize) {
    let at = out.state.node[node];
    if at.post[0].at != Posting::None {
        return;
    }
    let waits = |command: &usize| matches!(at.row[*command], Row::Done { .. });
    if let Some(command) = (0..COMMANDS).find(waits)
        && let Row::Done { answer, .. } = at.row[command]
        && let Some(ac) = controller_of(out.state, node)
    {
        out.fair("the node posts a result", |s, setup| {
            let node = &mut s.node[node];
            node.at = ac;
            node.post[0] = Post { at: Posting::Sent, ac, command: command as u8, answer, ..Post::default() };
            if setup.is(Mutation::SentBeforeTaken) {
                node.sent(command);
            }
        });
    }
}

/// The failures of the whole.
pub(crate) fn faults(out: &mut Steps<'_>) {
    for ac in 0..ACS {
        let lives = out.state.ac[ac].life == Life::Lives;
        let other = (0..ACS).any(|other| other != ac && out.state.ac[other].life != Life::Dead);
        if lives && other {
            out.fault(fault::KILL_AC, "a controller is killed", |s, _| controller::die(s, ac));
        }
        // Alive and silent, or dead: 15 s pass.
        if out.state.redis.beat[ac] == Beat::Fresh {
            if lives {
                out.fault(fault::SILENCE, "a controller is silent", |s, _| s.redis.beat[ac] = Beat::Silent);
            } else {
                out.fair("a dead controller is silent", |s, _| s.redis.beat[ac] = Beat::Silent);
            }
        }
    }
    if out.state.ac.iter().all(|ac| ac.life != Life::Lives)
        && let Some(ac) = out.state.ac.iter().position(|ac| ac.life == Life::Unborn)
    {
        out.fair("another controller starts", |s, _| s.ac[ac].life = Life::Lives);
    }
    out.fault(fault::REDIS, "redis starts again", |s, _| connections_break(s));
    match out.state.saved {
        None if !out.state.lost => {
            out.fault(fault::REDIS_LOSES, "what follows does not reach the disk", |s, _| s.saved = Some(s.redis));
        }
        None => {}
        Some(saved) => out.fault(fault::REDIS_LOSES, "redis starts again without it", |s, _| {
            s.redis = saved;
            (s.saved, s.lost) = (None, true);
            connections_break(s);
        }),
    }
    for command in 0..COMMANDS {
        for node in 0..out.setup.nodes {
            if out.state.redis.expiring[command][node] == Wait::Waits {
                out.fault(fault::EXPIRY, "a wait ends", |s, _| s.redis.expiring[command][node] = Wait::Due);
                // Where Redis has lost what it was, nothing else ends it. An entry that was written down anew after
                // its command had reached the node says nothing, and goes with its time (`jobs::lost`).
                let over = out.state.redis.job[command].field[node] != Field::Queued
                    && !out.state.redis.queue[node].text[command];
                if out.state.lost || over {
                    out.fair("a day passes", |s, _| s.redis.expiring[command][node] = Wait::Due);
                }
            }
        }
    }
    (0..out.setup.nodes).for_each(|node| faults_of_node(out, node));
}

fn faults_of_node(out: &mut Steps<'_>, node: usize) {
    let at = out.state.node[node];
    let due = (0..COMMANDS).any(|command| out.state.redis.expiring[command][node] == Wait::Due);
    // A node that is up acknowledges within that time.
    let acknowledges = at.up && (at.received.1 != 0 || at.ack != 0);
    if due && out.state.redis.queue[node].recent && !acknowledges {
        out.fair("90 s pass since the hand-over", |s, _| {
            s.redis.queue[node].recent = false;
            s.given_up = true;
        });
    }
    // A command may be queued once more after its node had it, and nobody sends a wake-up for it. It goes with the
    // next command, or when the registration is too old (`ParkedPolls::arrive`).
    let late = (0..COMMANDS).any(|command| {
        let field = out.state.redis.job[command].field[node];
        out.state.redis.queue[node].score[command] > 0 && field != Field::Queued
    });
    for ac in (0..ACS).filter(|ac| late && out.state.ac[*ac].trust[node] > 0) {
        out.fair("a registration is too old", |s, _| requests::recheck(s, ac, node));
    }
    if at.up && (at.is_busy() || at.ack != 0) {
        out.fault(fault::KILL_AGENT, "the agent is killed", |s, _| agent_dies(&mut s.node[node], false));
    }
    // A node is not back before the handler of its last result has ended, which waits at most 10 s for Redis, and
    // nobody keeps that result for it longer than that.
    let under_way = at.post[1].at != Posting::None || !matches!(at.post[0].at, Posting::None | Posting::Sent);
    if at.up && at.is_busy() && !under_way {
        out.fault(fault::POWER, "the node loses power", |s, _| {
            let node = &mut s.node[node];
            agent_dies(node, true);
            for command in 0..COMMANDS {
                (node.process[command], node.leftover[command]) = (false, false);
                node.row[command] = match node.row[command] {
                    Row::Done { safe: false, .. } | Row::Sent { safe: false, .. } => Row::Started,
                    // The mark waits for no disk.
                    Row::Sent { answer, safe: true } => Row::Done { answer, safe: true },
                    row => row,
                };
            }
        });
    }
    if at.poll[0].at == Polling::Sent {
        out.fault(fault::REQUEST, "a poll is lost", |s, _| {
            s.node[node].poll[0] = Poll::default();
            other_controller(s, node);
        });
    }
    if at.post[0].at == Posting::Sent {
        out.fault(fault::REQUEST, "a result is lost", |s, _| {
            s.node[node].post[0] = Post::default();
            other_controller(s, node);
        });
    }
    // Nobody receives the answer to a poll that goes on.
    // Its answer is lost, or its request was delayed and is sent once more.
    if at.poll[0].at != Polling::None && at.poll[1].at == Polling::None {
        out.fault(fault::ANSWER, "the answer to a poll is lost", |s, _| {
            s.node[node].poll[1] = std::mem::take(&mut s.node[node].poll[0]);
            other_controller(s, node);
        });
    }
    if at.post[0].at != Posting::None && at.post[1].at == Posting::None {
        out.fault(fault::ANSWER, "the answer to a result is lost", |s, _| {
            s.node[node].post[1] = std::mem::take(&mut s.node[node].post[0]);
            other_controller(s, node);
        });
        out.fault(fault::FORGERY, "another node sends that result", |s, _| {
            s.node[node].post[1] = Post { at: Posting::Sent, answer: Answer::Forged, forged: true, ..at.post[0] };
        });
    } else if at.post[1].at == Posting::None && out.state.redis.job[0].known {
        out.fault(fault::FORGERY, "another node sends a result", |s, _| {
            let forged = Post { at: Posting::Sent, ac: at.at, answer: Answer::Forged, forged: true, ..Post::default() };
            s.node[node].post[1] = forged;
        });
    }
}

/// `Controller::next_address`, where the controller has several.
fn other_controller(s: &mut State, node: usize) {
    let at = s.node[node].at;
    let lives = |ac: &u8| *ac != at && s.ac[usize::from(*ac)].life == Life::Lives;
    if let Some(other) = (0..ACS as u8).find(lives) {
        s.node[node].at = other;
    }
}

/// An agent loses its memory; its processes stay. A request that is with its handler goes on.
/// A poll that waits also goes on where nobody closes its connection (`silent`).
fn agent_dies(node: &mut Node, silent: bool) {
    node.up = false;
    (node.received, node.ack) = ((0, 0), 0);
    node.starting = [false; COMMANDS];
    node.leftover = node.process;
    let poll = std::mem::take(&mut node.poll[0]);
    let goes_on = match poll.at {
        Polling::None | Polling::Sent => false,
        Polling::Parked => silent,
        Polling::Asking | Polling::Asked | Polling::Moving | Polling::Empty => true,
    };
    if goes_on && node.poll[1].at == Polling::None {
        node.poll[1] = poll;
    }
    let post = std::mem::take(&mut node.post[0]);
    if !matches!(post.at, Posting::None | Posting::Sent) && node.post[1].at == Posting::None {
        node.post[1] = post;
    }
}

/// Every connection to Redis breaks: handlers answer 503, dispatchers begin anew, waiting polls are asked again.
fn connections_break(s: &mut State) {
    for node in &mut s.node {
        let with_handler = |poll: &&mut Poll| matches!(poll.at, Polling::Asking | Polling::Asked | Polling::Moving);
        node.poll.iter_mut().filter(with_handler).for_each(|poll| *poll = Poll::default());
        let posting = |post: &&mut Post| !matches!(post.at, Posting::None | Posting::Sent);
        node.post.iter_mut().filter(posting).for_each(|post| *post = Post::default());
    }
    for ac in 0..ACS {
        s.ac[ac].dispatcher = Dispatcher::default();
        s.ac[ac].expiry = Expiry::default();
        if s.ac[ac].life == Life::Lives {
            // The dispatcher says that it lives over each new connection.
            s.ac[ac].announced = false;
            requests::recheck_all(s, ac);
        }
    }
}
