//! The steps of a controller: dispatcher, expiry, wake-up reader, proxy, and the handlers of polls and results.

use crate::explore::Steps;
use crate::redis::Withdrawn;
use crate::requests::{deliver, parked, poll, post, recheck, recheck_all, release_poll};
use crate::setup::*;
use crate::state::*;

/// All steps that the controllers may take next.
pub(crate) fn steps(out: &mut Steps<'_>) {
    for ac in 0..ACS {
        if out.state.ac[ac].life == Life::Lives {
            life(out, ac);
            dispatcher(out, ac);
            expiry(out, ac);
            wakeups(out, ac);
        }
    }
    for node in 0..out.setup.nodes {
        for slot in 0..2 {
            poll(out, node, slot);
            post(out, node, slot);
        }
    }
}

/// Beats, and what others have taken who are gone.
fn life(out: &mut Steps<'_>, ac: usize) {
    let state = out.state;
    // `Dispatcher::turn` says so before it takes anything, `Heartbeat::beat` every 5 s. Redis did not know it (any
    // more): every waiting poll is asked again.
    if !state.ac[ac].announced || state.redis.beat[ac] != Beat::Fresh {
        out.fair("beat", |s, _| {
            let new = s.redis.beat[ac] == Beat::Absent && s.ac[ac].announced;
            s.redis.beat[ac] = Beat::Fresh;
            s.redis.gone[ac] = false;
            s.ac[ac].announced = true;
            if new {
                recheck_all(s, ac);
            }
        });
    }
    // `SharedChanges::apply` and the task `reclaim` find them, `Dispatcher::turn` reclaims between two commands.
    if state.ac[ac].dispatcher.next == Do::Idle && state.ac[ac].announced && !out.setup.is(Mutation::NobodyReclaims) {
        for from in (0..ACS).filter(|from| *from != ac) {
            let found_dead = state.redis.beat[from] == Beat::Silent;
            let found_gone = state.redis.gone[from] && state.redis.taken[from] != [0; COMMANDS];
            if found_dead || (found_gone && state.redis.beat[from] != Beat::Fresh) {
                out.fair("reclaim", |s, _| s.redis.reclaim(from, ac));
            }
        }
    }
}

/// `Dispatcher::run`, one call to Redis a step.
fn dispatcher(out: &mut Steps<'_>, ac: usize) {
    let state = out.state;
    let at = state.ac[ac].dispatcher;
    let command = usize::from(at.command);
    match at.next {
        Do::Idle => {
            // `inbox::take`: BRPOPLPUSH, the oldest first.
            let oldest = (0..COMMANDS).find(|command| state.redis.pushed[*command] > 0);
            let may_take = state.ac[ac].announced || out.setup.is(Mutation::TakesBeforeItsBeat);
            if let Some(command) = oldest.filter(|_| may_take) {
                let take = move |s: &mut State| {
                    s.redis.pushed[command] -= 1;
                    s.redis.taken[ac][command] += 1;
                };
                out.fair("take", |s, _| {
                    take(s);
                    begin(s, ac, command, false);
                });
                out.fault(fault::CUT, "take, and the answer is lost", |s, _| take(s));
            }
            // `inbox::taken`, after an error or every 10 s.
            if state.ac[ac].announced
                && let Some(command) = (0..COMMANDS).find(|command| state.redis.taken[ac][*command] > 0)
            {
                out.fair("find in the taken list", |s, _| begin(s, ac, command, true));
            }
        }
        // `Dispatcher::write_down`.
        Do::Open => {
            at_once(out, ac);
            out.fair("write the job down", |s, setup| {
                let targets = setup.targets(command);
                let known = s.redis.open(command, targets);
                let again = at.again && !setup.is(Mutation::RepetitionIsDuplicate);
                let left = if known { s.redis.queued(command) } else { targets };
                let at = &mut s.ac[ac].dispatcher;
                match setup.commands[command] {
                    _ if known && !again => at.next = Do::Untake,
                    Kind::Cancel => at.next = Do::Withdraw,
                    Kind::Nobody => {
                        at.own.0 = Answer::Nobody;
                        at.next = Do::Decide;
                    }
                    Kind::Job(_) | Kind::Kill => {
                        at.left = left;
                        at.next = after_enqueue(at.left);
                    }
                }
                if setup.is(Mutation::TakenOffBeforeQueued) {
                    complete(s, ac, command);
                }
            });
        }
        // `Dispatcher::enqueue`, node by node; a waiting poll of its own is handed its commands at once.
        Do::Enqueue => {
            let node = at.left.trailing_zeros() as usize;
            out.fair("enqueue", |s, setup| {
                s.redis.expire_at(command, node);
                let blind = setup.is(Mutation::QueuedAfterWithdrawn);
                let (batch, holder) = s.redis.enqueue(ac, command, node, blind);
                if let Some((batch, commands)) = batch {
                    deliver(s, setup, ac, node, Some((batch, commands)));
                }
                let at = &mut s.ac[ac].dispatcher;
                at.left &= !(1 << node);
                if holder > 0 {
                    at.wakeup = (node as u8, holder);
                    at.next = Do::Wakeup;
                    if setup.is(Mutation::TakenOffBeforeWakeup) {
                        complete(s, ac, command);
                    }
                } else {
                    at.next = after_enqueue(at.left);
                }
            });
            // The end of the wait is written down in the call before.
            out.fault(fault::KILL_AC, "the controller dies before it enqueues", |s, _| {
                s.redis.expire_at(command, node);
                die(s, ac);
            });
        }
        // `wakeups::notify`.
        Do::Wakeup => out.fair("send the wake-up", |s, _| {
            let at = &mut s.ac[ac].dispatcher;
            let (node, holder) = at.wakeup;
            at.wakeup = (0, 0);
            at.next = after_enqueue(at.left);
            s.redis.wakeups[usize::from(holder) - 1].fetch[usize::from(node)] = true;
        }),
        // `cancel::take_back`.
        Do::Withdraw => out.fair("take the cancelled job back", |s, setup| {
            let cautious = !setup.is(Mutation::HandedOverIsWithdrawn);
            let why = s.redis.withdraw(0, 0, Reason::Cancelled, cautious);
            let out = match why {
                Withdrawn::Out(Reason::Expired) => setup.is(Mutation::TwoReasons),
                Withdrawn::Out(_) => true,
                Withdrawn::Gone | Withdrawn::Handed => false,
            };
            let at = &mut s.ac[ac].dispatcher;
            at.job.0 = if out { Answer::Cancelled } else { Answer::None };
            at.own.0 = if out { Answer::CancelDone } else { Answer::CancelRefused };
            at.left = u8::from(out);
            at.next = if out { Do::Check } else { Do::Decide };
        }),
        // `jobs::has_node`: its node had it before it was queued once more.
        Do::Check => out.fair("look whether the node has the cancelled job", |s, setup| {
            if s.redis.job[0].field[0] == Field::Running && !setup.is(Mutation::RunningIsWithdrawn) {
                (s.ac[ac].dispatcher.job.0, s.ac[ac].dispatcher.own.0) = (Answer::None, Answer::CancelRefused);
            }
            s.ac[ac].dispatcher.next = Do::Decide;
        }),
        // `own_results::deliver`: decision, hash, list.
        Do::Decide => out.fair("decide on the controller's answer", |s, _| {
            if at.job.0 != Answer::None {
                s.ac[ac].dispatcher.job.1 = s.redis.decide(0, 0, Run::Own);
            }
            s.ac[ac].dispatcher.own.1 = s.redis.decide(command, 0, Run::Own);
            s.ac[ac].dispatcher.next = Do::Write;
        }),
        Do::Write => out.fair("write the controller's answer down", |s, setup| {
            let keeps = !setup.is(Mutation::RepeatedAnswerOverwrites);
            give_hash(s, 0, at.job, keeps);
            give_hash(s, command, at.own, keeps);
            s.ac[ac].dispatcher.next = Do::Push;
        }),
        Do::Push => out.fair("push the controller's answer", |s, _| {
            for (job, (answer, verdict)) in [(0, at.job), (command, at.own)] {
                if verdict == Verdict::First {
                    s.redis.push(job, 0, Run::Own, answer, true);
                }
            }
            s.ac[ac].dispatcher.next = if at.left == 0 { Do::Untake } else { Do::Forget };
        }),
        Do::Forget => out.fair("forget the cancelled job", |s, _| {
            s.redis.forget(0, 0);
            s.ac[ac].dispatcher.next = Do::Untake;
        }),
        // `inbox::complete`, last of all.
        Do::Untake => out.fair("off the taken list", |s, _| {
            complete(s, ac, command);
            s.ac[ac].dispatcher = Dispatcher::default();
        }),
    }
    if at.next != Do::Idle {
        // The connection breaks: all that was taken is gone through again.
        out.fault(fault::CUT, "the dispatcher's connection breaks", |s, _| s.ac[ac].dispatcher = Dispatcher::default());
    }
}

/// `at_once::pass_on`, where one server has all keys: only a job that comes for the first time.
fn at_once(out: &mut Steps<'_>, ac: usize) {
    let Dispatcher { command, again, .. } = out.state.ac[ac].dispatcher;
    let command = usize::from(command);
    if again || !matches!(out.setup.commands[command], Kind::Job(_) | Kind::Kill) {
        return;
    }
    out.fair("pass the job on", |s, setup| {
        for (node, batch) in s.redis.dispatch(ac, command, setup.targets(command)).into_iter().flatten() {
            deliver(s, setup, ac, node, Some(batch));
        }
        s.ac[ac].dispatcher = Dispatcher::default();
    });
    out.fault(fault::CUT, "pass the job on, and the answer is lost", |s, setup| {
        s.redis.dispatch(ac, command, setup.targets(command));
        s.ac[ac].dispatcher = Dispatcher::default();
        // `Dispatcher::run`: something may have been handed over.
        if !setup.is(Mutation::PollsNotAskedAgain) {
            recheck_all(s, ac);
        }
    });
    out.fault(fault::KILL_AC, "the controller dies once it has passed the job on", |s, setup| {
        s.redis.dispatch(ac, command, setup.targets(command));
        die(s, ac);
    });
}

fn begin(s: &mut State, ac: usize, command: usize, again: bool) {
    s.ac[ac].dispatcher = Dispatcher { next: Do::Open, command: command as u8, again, ..Dispatcher::default() };
}

fn after_enqueue(left: u8) -> Do {
    if left == 0 { Do::Untake } else { Do::Enqueue }
}

/// LREM of one copy.
fn complete(s: &mut State, ac: usize, command: usize) {
    let taken = &mut s.redis.taken[ac][command];
    *taken = taken.saturating_sub(1);
}

/// The hash of an answer that a controller gives itself.
fn give_hash(s: &mut State, command: usize, (answer, verdict): (Answer, Verdict), keeps: bool) {
    match verdict {
        Verdict::First => s.redis.result(command, 0, answer, false),
        Verdict::Repeat => s.redis.result(command, 0, answer, keeps),
        Verdict::None | Verdict::Late => {}
    }
}

/// `work::expiry`.
fn expiry(out: &mut Steps<'_>, ac: usize) {
    let state = out.state;
    let at = state.ac[ac].expiry;
    let (command, node) = (usize::from(at.command), usize::from(at.node));
    match at.next {
        Next::Idle => {
            for command in 0..COMMANDS {
                for node in (0..NODES).filter(|node| state.redis.expiring[command][*node] == Wait::Due) {
                    out.fair("withdraw what has expired", |s, setup| {
                        let begun = Expiry { command: command as u8, node: node as u8, ..Expiry::default() };
                        match s.redis.withdraw(command, node, Reason::Expired, true) {
                            Withdrawn::Gone => s.ac[ac].expiry = Expiry { next: Next::LookUp, ..begun },
                            // It is put off until then.
                            Withdrawn::Handed => {}
                            Withdrawn::Out(why) => {
                                let cancelled = why == Reason::Cancelled && !setup.is(Mutation::TwoReasons);
                                let answer = if cancelled { Answer::Cancelled } else { Answer::Expired };
                                s.ac[ac].expiry = Expiry { next: Next::Check, answer, ..begun };
                            }
                        }
                    });
                }
            }
        }
        // `jobs::lost`.
        Next::LookUp => out.fair("look up what is not in its queue", |s, _| {
            let lost = s.redis.job[command].field[node] == Field::Queued;
            let expiry = &mut s.ac[ac].expiry;
            (expiry.answer, expiry.next) =
                if lost { (Answer::Lost, Next::Decide) } else { (Answer::None, Next::Forget) };
        }),
        // `jobs::has_node`.
        Next::Check => out.fair("look whether the node has what has expired", |s, setup| {
            let has = s.redis.job[command].field[node] == Field::Running;
            let forget = has && !setup.is(Mutation::RunningIsWithdrawn);
            s.ac[ac].expiry.next = if forget { Next::Forget } else { Next::Decide };
        }),
        Next::Decide => out.fair("decide on the end of a wait", |s, _| {
            s.ac[ac].expiry.verdict = s.redis.decide(command, node, Run::Own);
            s.ac[ac].expiry.next = Next::Write;
        }),
        Next::Write => out.fair("write the end of a wait down", |s, setup| {
            let keeps = at.verdict == Verdict::Repeat && !setup.is(Mutation::RepeatedAnswerOverwrites);
            if at.verdict != Verdict::Late {
                s.redis.result(command, node, at.answer, keeps);
            }
            s.ac[ac].expiry.next = Next::Push;
        }),
        Next::Push => out.fair("push the end of a wait", |s, _| {
            if at.verdict == Verdict::First {
                s.redis.push(command, node, Run::Own, at.answer, true);
            }
            s.ac[ac].expiry.next = Next::Forget;
        }),
        Next::Forget => out.fair("forget what has expired", |s, _| {
            s.redis.forget(command, node);
            s.ac[ac].expiry = Expiry::default();
        }),
    }
    if at.next != Next::Idle {
        out.fault(fault::CUT, "the connection of the periodic tasks breaks", |s, _| {
            s.ac[ac].expiry = Expiry::default()
        });
    }
}

/// `work::wakeups`, and `work::presence` for what was lost on the way to a waiting poll.
fn wakeups(out: &mut Steps<'_>, ac: usize) {
    for node in 0..out.setup.nodes {
        let wakeups = out.state.redis.wakeups[ac];
        if wakeups.moved[node] {
            out.fair("hear that a node polls elsewhere", |s, setup| {
                s.redis.wakeups[ac].moved[node] = false;
                release_poll(s, setup, ac, node);
            });
        }
        if wakeups.fetch[node] {
            out.fair("receive the wake-up", |s, setup| {
                s.redis.wakeups[ac].fetch[node] = false;
                let queue = &mut s.redis.queue[node];
                match usize::from(queue.holder) {
                    holder if holder == ac + 1 => {
                        if let Some(batch) = queue.hand_over() {
                            deliver(s, setup, ac, node, Some(batch));
                        }
                    }
                    0 => recheck(s, ac, node),
                    _ => release_poll(s, setup, ac, node),
                }
            });
            out.fault(fault::CUT, "a wake-up is lost with its connection", |s, setup| {
                s.redis.wakeups[ac].fetch[node] = false;
                if !setup.is(Mutation::PollsNotAskedAgain) {
                    recheck_all(s, ac);
                }
            });
        }
        if parked(out.state, ac, node).is_some() {
            match usize::from(out.state.redis.queue[node].holder) {
                holder if holder == ac + 1 => {}
                0 => out.fair("ask a waiting poll again", |s, _| recheck(s, ac, node)),
                _ => out.fair("end a poll that moved in silence", |s, setup| release_poll(s, setup, ac, node)),
            }
        }
    }
}

/// kill -9 of a controller: what it held goes, and so do all requests and polls that are with it.
pub(crate) fn die(s: &mut State, ac: usize) {
    s.ac[ac] = Ac { life: Life::Dead, ..Ac::default() };
    for node in &mut s.node {
        node.poll.iter_mut().filter(|poll| usize::from(poll.ac) == ac).for_each(|poll| *poll = Poll::default());
        node.post.iter_mut().filter(|post| usize::from(post.ac) == ac).for_each(|post| *post = Post::default());
    }
}
