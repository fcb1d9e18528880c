//! `GET /{gid}/{nid}/cmd`: the long poll.

use super::command_body::command_body;
use super::{Fault, Outcome, bad, expect_room, revoked};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::bounded_map::BoundedMap;
use crate::http::{Reply, Request};
use crate::model::claims;
use crate::model::grants::{self, Claims, Compared, Standing};
use crate::model::nodes::{self, Poller};
use crate::model::polls::{self, Mode, PollAnswer, Question};
use crate::model::{events, history, jobs, wakeups};
use crate::redis::errors::{describe, is_away, is_broken, is_partial, is_spoilt};
use crate::redis::{Batch, Conn};
use jscommon::NodeId;
use jscommon::lock::lock;
use jscommon::node::is_role;
use redis::RedisResult;
use serde_json::json;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

/// Longest wait, in seconds.
const MAX_WAIT_SECONDS: u32 = 60;
/// For how long (ms) a poll that says nothing new, and is answered, is not written down again.
const WRITE_INTERVAL_MS: u64 = 5_000;
/// The same for one that waits: the proxy tells that its node is there.
const PARKED_WRITE_INTERVAL_MS: u64 = 60_000;

/// The nodes whose last write is kept, at least.
const MAX_NODES: usize = 50_000;

/// The last write about each node that polls here, so that a busy node is not written down with every poll: when it
/// was (ms), and a hash of the facts, which may be long.
pub(super) struct LastWrites {
    held: Mutex<BoundedMap<NodeId, (u64, u64)>>,
    hasher: RandomState,
}

impl LastWrites {
    pub(super) fn new() -> LastWrites {
        LastWrites { held: Mutex::new(BoundedMap::new(MAX_NODES)), hasher: RandomState::new() }
    }

    /// Whether something else was written down last, or nothing for `keeps` ms.
    fn is_news(&self, node: NodeId, now: u64, facts: &str, keeps: u64) -> bool {
        let hash = self.hasher.hash_one(facts);
        let last = lock(&self.held).get(&node).copied();
        last.is_none_or(|(at, last)| now.saturating_sub(at) > keeps || last != hash)
    }

    fn note(&self, node: NodeId, now: u64, facts: &str) {
        let hash = self.hasher.hash_one(facts);
        lock(&self.held).insert(node, (now, hash));
    }
}

struct Poll {
    wait: u32,
    ack: Option<u64>,
    /// Its roles; nothing where the poll does not speak of them.
    roles: Option<Vec<String>>,
    /// When its credentials were issued (ms).
    issued: u64,
    instance: String,
    peer: String,
}

fn read(request: &Request) -> Result<Poll, Fault> {
    let query = &request.query;
    let wait =
        match query.first("wait") {
            None | Some("") => 0,
            Some(text) => text.parse().ok().filter(|wait| *wait <= MAX_WAIT_SECONDS).ok_or_else(|| {
                bad(format!("wait is a number of seconds from 0 to {MAX_WAIT_SECONDS}, not '{text}'"))
            })?,
        };
    let ack = match query.first("ack") {
        None | Some("") => None,
        Some(text) => {
            let number: Option<u64> = text.parse().ok().filter(|number| *number < 1 << 53);
            Some(number.ok_or_else(|| bad("ack is the batch of an earlier answer"))?)
        }
    };
    // Any other is passed over, for an older agent has commands to fetch all the same; its `startup` event tells it.
    let mut roles: Vec<String> = query.all("role").filter(|role| is_role(role)).map(str::to_owned).collect();
    if roles.len() > claims::MAX_CLAIMS {
        return Err(bad(format!("a node has at most {} roles", claims::MAX_CLAIMS)));
    }
    roles.sort_unstable();
    roles.dedup();
    let instance = query.first("instance").unwrap_or("");
    if instance.len() > 64 || !instance.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(bad("instance is at most 64 of A-Z a-z 0-9 - _ ."));
    }
    Ok(Poll {
        wait,
        ack,
        // An agent always says which start of it asks; a poll that says neither that nor a role is no word about its
        // roles.
        roles: (!roles.is_empty() || !instance.is_empty()).then_some(roles),
        issued: request.issued(),
        instance: instance.to_owned(),
        peer: request.peer.map(|peer| peer.to_canonical().to_string()).unwrap_or_default(),
    })
}

fn admit(context: &Context, node: NodeId, request: &Request) -> Result<(NodeId, Poll), Fault> {
    expect_room(context, node, &[Charge::new(Resource::Polls, 1)])?;
    Ok((node, read(request)?))
}

/// Polls of nodes, in as few round trips as one alone would take.
pub(super) fn poll_all(context: &Context, written: &LastWrites, requests: &[(NodeId, &Request)]) -> Vec<Outcome> {
    let polls: Vec<Result<(NodeId, Poll), Fault>> =
        requests.iter().map(|(node, request)| admit(context, *node, request)).collect();
    let good: Vec<&(NodeId, Poll)> = polls.iter().flatten().collect();
    if good.is_empty() {
        return polls.into_iter().filter_map(|poll| poll.err().map(Err)).collect();
    }
    let mut replies = match context.pool.with(|conn| answer(context, written, conn, &good)) {
        Ok(replies) => replies.into_iter(),
        // An error about one of them does not fail the others.
        Err(e) if requests.len() > 1 && !is_broken(&e) => {
            return requests.iter().flat_map(|request| poll_all(context, written, &[*request])).collect();
        }
        Err(e) => return polls.into_iter().map(|poll| Err(poll.err().unwrap_or(Fault::Redis(e.clone())))).collect(),
    };
    polls.into_iter().map(|poll| poll.map(|_| replies.next().unwrap_or_else(Reply::empty))).collect()
}

fn question<'a>(context: &'a Context, node: NodeId, poll: &'a Poll, now: u64) -> Question<'a> {
    let mode = if poll.wait > 0 { Mode::Poll } else { Mode::Ask };
    let (instance, peer) = (poll.instance.as_str(), poll.peer.as_str());
    Question { ack: poll.ack, instance, peer, ..Question::new(&context.me, node, now, mode) }
}

fn answer(
    context: &Context,
    written: &LastWrites,
    conn: &mut Conn,
    polls: &[&(NodeId, Poll)],
) -> RedisResult<Vec<Reply>> {
    let now = context.clock.now();
    // RUNNING stands in the hash before the command leaves the queue: a death between the two only
    // means that the node says again what it has stored.
    let (mut running, mut asked) = (Batch::new(), Batch::new());
    let mut acked = Vec::with_capacity(polls.len());
    for (node, poll) in polls {
        let mut has_acked = false;
        if let Some(ack) = poll.ack {
            let before = running.len();
            match context.delivered.take(*node, ack) {
                Some(ids) => ids.iter().for_each(|id| jobs::running(&mut running, *node, id)),
                None => polls::acked(conn, *node, ack)?.iter().for_each(|id| jobs::running(&mut running, *node, id)),
            }
            has_acked = running.len() > before;
            jscommon::failpoint::hit("acc.running");
        }
        acked.push(has_acked);
        polls::ask(&mut asked, &question(context, *node, poll, now));
    }
    let mut resolved = Vec::with_capacity(polls.len());
    // A job whose hash is spoilt runs on its node all the same, and the next commands do not wait for that hash.
    let (running, asked) = conn.run_in_turn_each(running, asked, is_spoilt)?;
    for error in running.into_iter().filter_map(Result::err) {
        if !is_spoilt(&error) {
            return Err(error);
        }
        ::log::error!("that a node has stored a command is not written down: {}", describe(&error));
    }
    for ((node, poll), answer) in polls.iter().zip(asked) {
        resolved.push(resolve(context, conn, *node, poll, now, polls::answered(answer?)?)?);
    }
    jscommon::failpoint::hit("acc.polled");
    for (((node, _), answer), has_acked) in polls.iter().zip(&resolved).zip(acked) {
        if !has_acked && !matches!(answer, Ok(PollAnswer::Batch(_))) {
            context.rate_limiter.owe(*node, Charge::new(Resource::Polls, 1), now);
        }
    }

    // After data loss in Redis all is written again.
    let epoch = context.epoch.load(Ordering::Relaxed);
    let claimed = compare(context, conn, polls, &mut resolved, now, epoch)?;
    let (mut batch, mut news) = (Batch::new(), Vec::new());
    for (node, _, standing, tell) in &claimed {
        claims::write_down(&mut batch, *node, now, standing, *tell);
    }
    for ((node, poll), answer) in polls.iter().zip(&resolved) {
        let Ok(answer) = answer else { continue };
        let facts = format!("{} {} {epoch}", poll.peer, poll.instance);
        let parks = poll.wait > 0 && matches!(answer, PollAnswer::Empty);
        if written.is_news(*node, now, &facts, if parks { PARKED_WRITE_INTERVAL_MS } else { WRITE_INTERVAL_MS }) {
            let poller = Poller { node: *node, addr: &poll.peer, instance: &poll.instance, ac: &context.me, now };
            nodes::polled(&mut batch, &poller);
            news.push((*node, facts));
        }
    }
    // The node's data may lie with a server of a cluster that is away, or be spoilt: it polls all the same.
    match conn.run(&batch) {
        Ok(_) => {
            news.iter().for_each(|(node, facts)| written.note(*node, now, facts));
            claimed.iter().for_each(|(node, says, standing, _)| context.claims.note(*node, Some(*says), standing));
        }
        Err(e) if is_away(&e) || is_spoilt(&e) => ::log::debug!("a poll is not written down: {}", describe(&e)),
        Err(e) => return Err(e),
    }
    let reply = |((node, poll), resolved): (&&(NodeId, Poll), Result<PollAnswer, Reply>)| match resolved {
        Err(reply) => reply,
        Ok(PollAnswer::Batch(handover)) => Reply::json(command_body(context, *node, handover)),
        Ok(PollAnswer::Moved(_)) => Reply::busy(503, "the node polls at two controllers at once; try again", 1),
        Ok(_) if poll.wait == 0 => Reply::empty(),
        Ok(_) => Reply::park(poll.wait),
    };
    Ok(polls.iter().zip(resolved).map(reply).collect())
}

/// Compares what polls claim with what their nodes are granted, where that is not known here: for each its node, a hash
/// of what it claims, what is granted, and whether claims beyond are to be told. A poll with credentials that were
/// revoked gets another answer.
fn compare(
    context: &Context,
    conn: &mut Conn,
    polls: &[&(NodeId, Poll)],
    resolved: &mut [Result<PollAnswer, Reply>],
    now: u64,
    epoch: u64,
) -> RedisResult<Vec<(NodeId, NonZeroU64, Standing, bool)>> {
    let (mut asked, mut owners, mut compared) = (Batch::new(), Vec::new(), Vec::new());
    for (i, (node, poll)) in polls.iter().enumerate().filter(|(i, _)| resolved[*i].is_ok()) {
        let Some(roles) = &poll.roles else { continue };
        let says = context.claims.hash(roles, poll.issued, epoch);
        if !context.claims.is_news(*node, says) {
            continue;
        }
        let claims = Claims { roles: Some(roles.clone()), ..Claims::default() };
        if context.config.insecure_no_auth {
            compared.push((*node, says, Standing::all_of(&claims), false));
        } else {
            grants::claim(&mut asked, *node, now, poll.issued, &claims);
            owners.push((i, *node, says));
        }
    }
    for ((i, node, says), answer) in owners.into_iter().zip(conn.run_each(&asked)?) {
        match answer.and_then(grants::compared) {
            Ok(Compared::Known(standing, tell)) => compared.push((node, says, standing, tell)),
            Ok(Compared::Revoked) => resolved[i] = Err(revoked(node)),
            Ok(Compared::Unknown) => {}
            Err(e) if is_away(&e) || is_spoilt(&e) => ::log::debug!("claims are not compared: {}", describe(&e)),
            Err(e) => return Err(e),
        }
    }
    Ok(compared)
}

/// Asks again where the first answer was none yet; the reply to an agent whose identity another one has.
fn resolve(
    context: &Context,
    conn: &mut Conn,
    node: NodeId,
    poll: &Poll,
    now: u64,
    mut answer: PollAnswer,
) -> RedisResult<Result<PollAnswer, Reply>> {
    let mut question = question(context, node, poll, now);
    if let PollAnswer::Displaced(peer, news) = &answer {
        let seen = nodes::last_seen(conn, node)?.unwrap_or(0);
        // The newer one may have been a copy that ran for a moment.
        if now.saturating_sub(seen) <= nodes::LIVE_TIMEOUT_MS && !nodes::has_stopped(conn, node)? {
            return displaced(context, conn, node, poll, peer, news.as_deref()).map(Err);
        }
        question.takeover = true;
        answer = ask(conn, Batch::new(), &question)?;
    }
    // Once is enough, unless the node changes its controller at this very moment again.
    for _ in 0..3 {
        let PollAnswer::Moved(holder) = answer else { break };
        let mut word = Batch::new();
        wakeups::notify_moved(&mut word, &holder, node);
        answer = ask(conn, word, &Question { told: &holder, ..question })?;
    }
    Ok(Ok(answer))
}

/// Asks once `before` is done.
fn ask(conn: &mut Conn, before: Batch, question: &Question<'_>) -> RedisResult<PollAnswer> {
    let mut batch = Batch::new();
    polls::ask(&mut batch, question);
    let answer = conn.run_in_turn(before, batch)?.pop().unwrap_or(redis::Value::Nil);
    polls::answered(answer)
}

/// Another agent with this identity came later: that one is served, this one is told so.
fn displaced(
    context: &Context,
    conn: &mut Conn,
    node: NodeId,
    poll: &Poll,
    peer: &str,
    news: Option<&str>,
) -> RedisResult<Reply> {
    if let Some(word) = news {
        let data = json!({"older": poll.peer, "newer": peer, "instance": poll.instance});
        let (mut event, mut told) = (Batch::new(), Batch::new());
        events::add(&mut event, "two_agents", Some(node), context.clock.now(), &data);
        polls::told(&mut told, node, word);
        let (event, told) = conn.run_in_turn_each(event, told, is_partial)?;
        history::unkept(event)?;
        told.into_iter().try_for_each(|answer| answer.map(drop))?;
        ::log::warn!(
            "two live agents are node {node}: the one at {peer} is served, the older one at {} is not",
            poll.peer
        );
    }
    let sentence = format!("another agent is node {node} since: it polls from {peer}, and the newer one is served");
    Ok(Reply::busy(409, sentence, 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_facts_are_no_news_for_a_while() {
        let written = LastWrites::new();
        let node = NodeId { gid: 1, nid: 1 };
        written.note(node, 0, "web");
        assert!(!written.is_news(node, PARKED_WRITE_INTERVAL_MS, "web", PARKED_WRITE_INTERVAL_MS));
        assert!(written.is_news(node, PARKED_WRITE_INTERVAL_MS + 1, "web", PARKED_WRITE_INTERVAL_MS));
        assert!(written.is_news(node, PARKED_WRITE_INTERVAL_MS, "db", PARKED_WRITE_INTERVAL_MS));
    }
}
