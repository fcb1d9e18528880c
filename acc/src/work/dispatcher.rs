//! Takes commands off `cmds_queue` and puts them into the queues of their nodes.
//!
//! Owns: the thread `dispatcher`, the order of steps.
//! Does not own: which nodes are meant (`targets`, of those in the `node_directory`), what a step does in Redis (`model`),
//! what is kept about commands (`history`), handing over to a waiting poll (the proxy). Dead controllers' names come from
//! the periodic tasks by channel.
//!
//! **A command is on this controller's processing list until everything that follows from it is stored**:
//! its hash, its place in each target's queue, the wake-up of another controller, or its answer.
//! When something fails or dies between, the whole is done again (here, or by the controller that reclaims
//! the list), and every step is harmless when repeated. A repetition is marked `again`, for a job
//! that is known already is then no duplicate.

use crate::api::context::Context;
use crate::auth::shared_secrets;
use crate::auth::tickets::{Flags, Tickets};
use crate::bounded_map::Throttle;
use crate::model::answer::{self, Answer};
use crate::model::jobs::{self, Job};
use crate::model::queue::{self, Queued, QueuedCommand};
use crate::model::{DAY, controllers, events, history, inbox, wakeups};
use crate::proxy::Remote;
use crate::redis::errors::{is_away, is_broken, is_interrupted, is_moving, is_partial, is_spoilt};
use crate::redis::{Batch, Conn, describe};
use crate::work::Stop;
use crate::work::cancel;
use crate::work::deferred_jobs::DeferredJobs;
use crate::work::history::{audit, created, expires, rejected, spoilt};
use crate::work::node_directory::NodeDirectory;
use crate::work::targets;
use crossbeam_channel::Receiver;
use jscommon::backoff::Backoff;
use jscommon::command::{BadCommand, TICKET};
use jscommon::{Command, NodeId, death};
use redis::{RedisError, RedisResult};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Most commands taken at once.
const MAX_COMMANDS: usize = 128;
/// Most scripts in one round trip.
const MAX_PIPELINE_CALLS: usize = 512;
/// Most bytes of commands in one round trip.
const MAX_PIPELINE_BYTES: usize = 8 << 20;
/// Longest wait for an answer of Redis: well above the 2 s that a read blocks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between commands, how often it is looked whether one was taken and its answer lost.
const UNANSWERED_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// For how long an error is not logged again, and most errors that are logged in that time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
const MAX_LOGGED_ERRORS: usize = 100;
/// How often at the most it is looked whether what is held can go on.
const DEFERRED_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The dispatcher of one controller.
pub struct Dispatcher {
    context: Arc<Context>,
    proxy: Remote,
    dead: Receiver<String>,
    stop: Stop,
    /// The processing list may hold something that was not passed on.
    again: bool,
    /// Waiting polls are to be asked again, once Redis answers.
    recall: bool,
    /// Redis was told over this connection that this controller lives, and was ever told so.
    announced: bool,
    was_announced: bool,
    /// When it was last looked whether the processing list is as empty as it should be.
    looked: Instant,
    /// How long until that is looked at again.
    look: Duration,
    held: DeferredJobs,
    known: NodeDirectory,
    /// Errors that were logged of late.
    logged: Throttle<String>,
}

/// One taken text and what is to be done with it.
struct Item {
    text: Vec<u8>,
    plan: Plan,
    /// The job is not known yet: it is to be listed and audited.
    new: bool,
    /// Only some of its nodes are left, and all else is done.
    resumed: bool,
    /// All nodes that it is for, where it was written down before and the plan has those that are left.
    targets: Option<Vec<NodeId>>,
    /// It cannot be finished now, and stays on the processing list; with the nodes for which that is so.
    held: Option<Vec<NodeId>>,
    /// Keys that it needs hold something else, as these sentences say: what can be done is done, and they are told.
    spoilt: Vec<String>,
}

enum Plan {
    /// It is no command.
    Reject(BadCommand),
    /// It is for these nodes; none means that nobody fits.
    Run(Command, Vec<NodeId>),
    /// A waiting command is to be taken back.
    Cancel(Command),
    /// Its id is known.
    Duplicate(Command),
    /// Its nodes, or whether it is known, cannot be read now: all of it is done later.
    Wait(Command),
    /// A key that it needs first of all holds something else: it is answered, and that is all.
    Spoilt(Command),
}

/// The reason that one call of several failed.
enum Trouble {
    /// It cannot be done now, and others can: a cluster moves its keys, or the server that has them is away.
    Later,
    /// A key holds something else.
    Spoilt(String),
}

/// Returns the reason that one call failed, or the error when it concerns all calls.
fn trouble(error: RedisError) -> RedisResult<Trouble> {
    match error {
        e if is_moving(&e) || is_away(&e) => Ok(Trouble::Later),
        e if is_spoilt(&e) => Ok(Trouble::Spoilt(describe(&e))),
        e => Err(e),
    }
}

impl Plan {
    /// The command, or as much as was read of it, when it has an id.
    fn command(&self) -> Option<&Command> {
        match self {
            Plan::Reject(bad) => bad.partial.as_deref(),
            Plan::Run(command, _)
            | Plan::Cancel(command)
            | Plan::Duplicate(command)
            | Plan::Wait(command)
            | Plan::Spoilt(command) => Some(command),
        }
    }

    fn targets(&self) -> &[NodeId] {
        match self {
            Plan::Run(_, targets) => targets,
            _ => &[],
        }
    }
}

impl Item {
    /// All nodes that it is for.
    fn targets(&self) -> &[NodeId] {
        self.targets.as_deref().unwrap_or(self.plan.targets())
    }

    /// Notes what is spoilt, once.
    fn note(&mut self, sentence: String) {
        if !self.spoilt.contains(&sentence) {
            self.spoilt.push(sentence);
        }
    }

    /// It cannot be passed on for this reason.
    fn trouble(&mut self, trouble: Trouble) {
        let Some(command) = self.plan.command().cloned() else { return };
        match trouble {
            Trouble::Later => {
                self.held.get_or_insert_default();
                self.plan = Plan::Wait(command);
            }
            Trouble::Spoilt(sentence) => {
                self.spoilt.push(sentence);
                self.plan = Plan::Spoilt(command);
            }
        }
    }
}

impl Dispatcher {
    /// Ready to run.
    pub fn new(context: Arc<Context>, proxy: Remote, dead: Receiver<String>, stop: Stop) -> Dispatcher {
        let (announced, was_announced) = (false, false);
        Dispatcher {
            context,
            proxy,
            dead,
            stop,
            again: false,
            recall: false,
            announced,
            was_announced,
            looked: Instant::now(),
            look: UNANSWERED_CHECK_INTERVAL,
            held: DeferredJobs::new(DEFERRED_CHECK_INTERVAL),
            known: NodeDirectory::default(),
            logged: Throttle::new(LOG_INTERVAL, MAX_LOGGED_ERRORS),
        }
    }

    /// Dispatches until it is told to stop.
    pub fn run(mut self) -> Result<(), String> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut conn: Option<Conn> = None;
        let mut said = String::new();
        while !self.stop.is_set() {
            let outcome = match &mut conn {
                Some(open) => self.turn(open).map(|()| true),
                // Of a cluster that says little: another server than the one that is needed may be there.
                None => self.context.pool.open(RESPONSE_TIMEOUT).map(|open| conn = Some(open)).map(|()| false),
            };
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    if std::mem::take(&mut self.recall) {
                        // An answer of Redis may have been lost in which it handed over commands to a
                        // waiting poll.
                        self.proxy.recheck_all();
                    }
                    if !said.is_empty() {
                        log::info!("commands are passed on again");
                        said.clear();
                    }
                    backoff.succeed();
                }
                // Redis is there; what was taken by the call that was interrupted is on the processing list.
                Err(e) if is_interrupted(&e) => {
                    (conn, self.announced) = (None, false);
                    (self.again, self.recall) = (true, true);
                }
                Err(e) => {
                    let what = describe(&e);
                    if conn.is_some() && what != said {
                        log::error!("commands cannot be passed on: {what}; trying on");
                        said = what;
                    }
                    if is_broken(&e) {
                        conn = None;
                        self.announced = false;
                    }
                    self.context.pool.failed(e);
                    self.again = true;
                    self.recall = true;
                    self.stop.wait(backoff.fail(fastrand::f64()));
                }
            }
        }
        Ok(())
    }

    fn turn(&mut self, conn: &mut Conn) -> RedisResult<()> {
        if !self.announced {
            shared_secrets::compare_ticket_key(&self.context.tickets, &self.context.state_dir, conn)?;
            // Taken commands are found again by the name of this controller: nothing is taken before that
            // name stands among the controllers.
            let beat = controllers::beat(conn, &self.context.me)?;
            self.context.clock.set(beat.now);
            if std::mem::replace(&mut self.was_announced, true) && beat.new {
                self.context.forgotten.store(true, Ordering::Relaxed);
            }
            self.announced = true;
        }
        while let Ok(ac) = self.dead.try_recv() {
            let moved = controllers::reclaim(conn, &self.context.me, &ac)?;
            if let Some(moved) = moved.filter(|moved| *moved > 0) {
                log::warn!("the controller {ac} is gone; {moved} commands that it had taken go on here");
                self.again = true;
            }
        }
        if !self.again && self.looked.elapsed() >= self.look {
            self.looked = Instant::now();
            // An answer that was lost on its way may have been a command: it was taken, and nobody knows.
            self.again = inbox::has_taken(conn, &self.context.me)?;
            if !self.again {
                self.held.end_round(false);
                self.look = UNANSWERED_CHECK_INTERVAL;
            }
        }
        if self.again {
            let texts = inbox::taken(conn, &self.context.me)?;
            self.held.nodes.clear();
            let mut held = false;
            for some in texts.chunks(MAX_COMMANDS) {
                held |= self.pass_on(conn, some.to_vec(), true, 0)?.0;
            }
            self.again = false;
            self.looked = Instant::now();
            let next = self.held.end_round(held);
            self.look = if held { next } else { UNANSWERED_CHECK_INTERVAL };
        }
        let mut texts = Vec::from_iter(inbox::take(conn, &self.context.me)?);
        while !texts.is_empty() {
            death::point("acc.taken");
            // Also where commands come without end, what a dead controller had taken does not wait for that.
            // The same holds for what the processing list has that it should not have.
            let pause = self.stop.is_set() || !self.dead.is_empty() || self.looked.elapsed() >= self.look;
            texts = self.pass_on(conn, texts, false, if pause { 0 } else { MAX_COMMANDS })?.1;
        }
        Ok(())
    }

    /// Everything that follows from some taken texts, then off the processing list; the answer is whether some had to
    /// stay there, and up to `more` others that were taken in the same round trip.
    fn pass_on(
        &mut self,
        conn: &mut Conn,
        texts: Vec<Vec<u8>>,
        again: bool,
        more: usize,
    ) -> RedisResult<(bool, Vec<Vec<u8>>)> {
        let now = self.context.clock.now();
        let mut items = Vec::with_capacity(texts.len());
        for text in texts {
            let (mut resumed, mut against) = (false, None);
            let plan = match Command::received(&text) {
                Err(bad) => Plan::Reject(bad),
                Ok(command) if command.cmd == "cancel" => Plan::Cancel(command),
                Ok(command) if again && self.held.jobs.contains_key(&command.id) => {
                    resumed = true;
                    let left = self.held.jobs[&command.id].clone();
                    Plan::Run(command, left)
                }
                Ok(command) => {
                    let targets = match self.choose(conn, &command, now) {
                        Ok(targets) => targets,
                        Err(e) => {
                            against = Some(trouble(e)?);
                            Vec::new()
                        }
                    };
                    Plan::Run(command, targets)
                }
            };
            let mut item = Item { text, plan, new: !resumed, resumed, targets: None, held: None, spoilt: Vec::new() };
            against.into_iter().for_each(|against| item.trouble(against));
            items.push(item);
        }
        self.write_down(conn, &mut items, now, again)?;
        death::point("acc.hashed");

        let mut forget: Vec<(usize, NodeId, String)> = Vec::new();
        let mut answers = self.enqueue(conn, &mut items, now, &mut forget)?;
        for (i, item) in items.iter_mut().enumerate() {
            match &item.plan {
                Plan::Reject(bad) => {
                    if let Some(partial) = &bad.partial {
                        answers.push((i, Answer::error(partial, None, format!("no command: {}", bad.reason))));
                    }
                }
                // Of a job that was written down before all nodes may have answered by now.
                Plan::Run(command, _) if item.targets().is_empty() => {
                    answers.push((i, Answer::error(command, None, targets::nobody(command))));
                }
                Plan::Cancel(command) => match cancel::take_back(conn, command, now, self.context.config.max_queue) {
                    Ok((given, job)) => {
                        forget.extend(given.iter().filter_map(|answer| Some((i, answer.target?, job.clone()))));
                        answers.extend(given.into_iter().map(|answer| (i, answer)));
                    }
                    Err(e) => match trouble(e)? {
                        Trouble::Later => item.held = Some(Vec::new()),
                        Trouble::Spoilt(sentence) => {
                            answers.push((i, Answer::error(command, None, sentence.clone())));
                            item.spoilt.push(sentence);
                        }
                    },
                },
                Plan::Spoilt(command) => {
                    let sentence = item.spoilt.first().cloned().unwrap_or_default();
                    answers.push((i, Answer::error(command, None, sentence)));
                }
                Plan::Run(..) | Plan::Duplicate(_) | Plan::Wait(_) => {}
            }
        }
        self.give(conn, &mut items, answers)?;

        let mut batch = Batch::new();
        for (_, node, job) in forget.iter().filter(|(i, ..)| items[*i].held.is_none()) {
            queue::forget(&mut batch, *node, job);
        }
        for item in items.iter().filter(|item| item.held.is_none()) {
            for sentence in &item.spoilt {
                self.say(format!("a command cannot be passed on as it should: {sentence}"));
                history::reject(&mut batch, &spoilt(item.plan.command(), sentence, now));
            }
        }
        for item in items.iter().filter(|item| item.held.is_none()) {
            match &item.plan {
                Plan::Reject(bad) => {
                    self.count("rejected");
                    history::reject(&mut batch, &rejected(bad, &item.text, now));
                }
                Plan::Run(..) => self.count(if item.targets().is_empty() { "nobody" } else { "queued" }),
                Plan::Cancel(_) => self.count("cancel"),
                Plan::Spoilt(_) => self.count("rejected"),
                Plan::Wait(_) => {}
                Plan::Duplicate(command) => {
                    self.count("duplicate");
                    let data = json!({"id": command.id, "cmd": command.cmd, "by": command.extra.get("by")});
                    events::add(&mut batch, "duplicate", targets::named(command), now, &data);
                }
            }
        }

        let new = || {
            let new = items.iter().filter(|item| item.new).filter_map(|item| Some((item.plan.command()?, item)));
            new.filter(|(command, item)| !command.quiet && !matches!(item.plan, Plan::Wait(_)))
        };
        jobs::list(&mut batch, &new().map(|(command, _)| command.id.as_str()).collect::<Vec<&str>>());
        let entry = |(command, item): (&Command, &Item)| audit(command, item.targets(), now).to_string();
        history::audit(&mut batch, &new().map(entry).collect::<Vec<String>>());
        // Off the processing list only when the rest is written.
        let mut after = Batch::new();
        let done = items.iter().filter(|item| item.held.is_none());
        done.for_each(|item| inbox::complete(&mut after, &self.context.me, &item.text));
        death::point("acc.answered");
        if more > 0 {
            inbox::take_more(&mut after, &self.context.me, more);
        }
        // A list that is of another type or out of reach keeps nothing from going on.
        let (written, after) = conn.run_in_turn_each(batch, after, is_partial)?;
        let mut last = None;
        for (answer, is_after) in written.into_iter().map(|a| (a, false)).chain(after.into_iter().map(|a| (a, true))) {
            match answer {
                Ok(value) => last = Some(value).filter(|_| is_after),
                Err(e) if !is_after && is_partial(&e) => {
                    self.say(format!("what happens is not kept: {}", describe(&e)))
                }
                Err(e) => return Err(e),
            }
        }
        death::point("acc.untaken");
        let held = self.hold(items);
        Ok((held, if more > 0 { inbox::taken_more(last)? } else { Vec::new() }))
    }

    /// Delivers answers; what cannot be answered now is held. Each goes with the index of its item.
    fn give(&self, conn: &mut Conn, items: &mut [Item], answers: Vec<(usize, Answer)>) -> RedisResult<()> {
        let (owners, answers): (Vec<usize>, Vec<Answer>) = answers.into_iter().unzip();
        match answer::give(&self.context.metrics, conn, &answers) {
            Err(e) => drop(trouble(e)?),
            Ok(()) => return Ok(()),
        }
        for (i, answer) in owners.into_iter().zip(&answers) {
            let Err(e) = answer::give(&self.context.metrics, conn, std::slice::from_ref(answer)) else { continue };
            let mut against = trouble(e)?;
            if let Trouble::Spoilt(sentence) = &against {
                items[i].note(sentence.clone());
                // Perhaps only the job's hash is spoilt, and a waiting client can still get its answer.
                match answer::push_alone(&self.context.metrics, conn, answer) {
                    Ok(()) => continue,
                    Err(e) => against = trouble(e)?,
                }
            }
            match against {
                Trouble::Later => items[i].held.get_or_insert_default().extend(answer.target),
                Trouble::Spoilt(sentence) => items[i].note(sentence),
            }
        }
        Ok(())
    }

    /// Notes what is held, once all else that follows from it is stored; whether there is any.
    fn hold(&mut self, items: Vec<Item>) -> bool {
        let mut any = false;
        for item in items {
            let Plan::Run(command, _) = item.plan else {
                any |= item.held.is_some();
                continue;
            };
            match item.held {
                Some(left) => {
                    any = true;
                    self.held.jobs.insert(command.id, left);
                }
                None if item.resumed => drop(self.held.jobs.remove(&command.id)),
                None => {}
            }
        }
        if any {
            self.held.say();
        }
        any
    }

    /// The job's hash, before anything can come back. A known job keeps the targets that were
    /// chosen then, and goes to those of them that are not known to have it.
    fn write_down(&self, conn: &mut Conn, items: &mut [Item], now: u64, again: bool) -> RedisResult<()> {
        let shown: Vec<String> =
            items.iter().map(|item| item.plan.command().map(answer::redacted).unwrap_or_default()).collect();
        let mut batch = Batch::new();
        let mut opened = Vec::new();
        for (i, item) in items.iter().enumerate().filter(|(_, item)| !item.resumed) {
            if matches!(item.plan, Plan::Wait(_)) {
                continue;
            }
            let Some(command) = item.plan.command() else { continue };
            let job = Job {
                id: &command.id,
                cmd: &shown[i],
                created: created(command, now),
                targets: item.plan.targets(),
                expires: expires(command),
                quiet: command.quiet,
            };
            jobs::open(&mut batch, &job);
            opened.push(i);
        }
        let answers = conn.run_each(&batch)?;
        let mut listed = Vec::new();
        for (i, answer) in opened.into_iter().zip(answers) {
            let item = &mut items[i];
            let has_targets = match answer.and_then(jobs::opened) {
                Ok(Some(has_targets)) => has_targets,
                Ok(None) => continue,
                Err(e) => {
                    item.trouble(trouble(e)?);
                    continue;
                }
            };
            // Neither of these has targets: the id is that of an earlier command, also where this one comes again.
            let is_other = has_targets && matches!(item.plan, Plan::Reject(_) | Plan::Cancel(_));
            if again && !is_other {
                if let Plan::Spoilt(command) = &item.plan
                    && has_targets
                {
                    // Its targets were chosen before the key was spoilt.
                    item.plan = Plan::Run(command.clone(), Vec::new());
                    item.spoilt.clear();
                }
                if let Plan::Run(command, left) = &mut item.plan {
                    match jobs::standing(conn, &command.id) {
                        Ok(standing) => {
                            *left = standing.queued;
                            item.targets = Some(standing.targets);
                        }
                        Err(e) => {
                            item.trouble(trouble(e)?);
                            continue;
                        }
                    }
                }
                listed.push(i);
            } else if let Some(command) = item.plan.command() {
                item.plan = Plan::Duplicate(command.clone());
                item.new = false;
            }
        }
        for i in listed {
            if let Some(command) = items[i].plan.command().filter(|command| !command.quiet) {
                items[i].new = match jobs::is_listed(conn, &command.id) {
                    Ok(listed) => !listed,
                    // There is no list that it could be in, or none that can be asked: twice is better than never.
                    Err(e) if is_partial(&e) => true,
                    Err(e) => return Err(e),
                };
            }
        }
        Ok(())
    }

    /// Into the queues, node by node; a node that waits here is handed its commands at once.
    /// The answers to those that may not wait there, each with the index of its item; these are to be forgotten then.
    fn enqueue(
        &mut self,
        conn: &mut Conn,
        items: &mut [Item],
        now: u64,
        forget: &mut Vec<(usize, NodeId, String)>,
    ) -> RedisResult<Vec<(usize, Answer)>> {
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
                    if self.held.nodes.contains(node) {
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
        let mut answers = Vec::new();
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let (mut waits, mut batch) = (Batch::new(), Batch::new());
            let mut bytes = 0;
            let mut size = 0;
            for (node, indices) in rest.iter().take(MAX_PIPELINE_CALLS) {
                bytes += indices.iter().map(|i| commands[*i].text.len()).sum::<usize>();
                if size > 0 && bytes > MAX_PIPELINE_BYTES {
                    break;
                }
                let some: Vec<QueuedCommand> =
                    indices.iter().map(|i| commands[*i].queued_command(&self.context.tickets, *node, now)).collect();
                for i in indices {
                    let until = now.saturating_add(expires(commands[*i].command).saturating_mul(1000));
                    jobs::expire_at(&mut waits, *node, &commands[*i].command.id, until);
                }
                let keep =
                    indices.iter().map(|i| expires(commands[*i].command)).max().unwrap_or(DAY).saturating_add(2 * DAY);
                let limit = self.context.config.max_queue;
                queue::enqueue(&mut batch, &self.context.me, *node, &some, now, limit, keep);
                size += 1;
            }
            let replies = conn.run_in_order(waits, batch)?;
            death::point("acc.enqueued");
            let (mut wakeups, mut notified) = (Batch::new(), Vec::new());
            for ((node, indices), reply) in rest[..size].iter().zip(replies) {
                let enqueued = match reply.and_then(|reply| queue::enqueued(&self.context.me, reply)) {
                    Ok(enqueued) => enqueued,
                    Err(e) => match trouble(e)? {
                        Trouble::Later => {
                            self.held.nodes.insert(*node);
                            held.extend(indices.iter().map(|i| (owners[*i], *node)));
                            continue;
                        }
                        Trouble::Spoilt(sentence) => {
                            for i in indices {
                                let answer = Answer::error(commands[*i].command, Some(*node), sentence.clone());
                                answers.push((owners[*i], answer));
                                spoilt.push((owners[*i], sentence.clone()));
                            }
                            continue;
                        }
                    },
                };
                if let Some(handover) = enqueued.handover {
                    crate::work::wakeups::hand_over(&self.context, &self.proxy, *node, handover);
                }
                if let Some(ac) = enqueued.holder {
                    wakeups::notify(&mut wakeups, &ac, *node);
                    notified.push((*node, indices));
                }
                for (i, verdict) in indices.iter().zip(enqueued.verdicts) {
                    let limit = self.context.config.max_queue;
                    let sentence = match verdict {
                        Queued::Now | Queued::Before => continue,
                        Queued::Full => format!("{limit} commands wait for node {node} already, and no more may"),
                        Queued::Revoked => format!("node {node} was revoked: enrol it again"),
                    };
                    let command = commands[*i].command;
                    answers.push((owners[*i], Answer::error(command, Some(*node), sentence)));
                    forget.push((owners[*i], *node, command.id.clone()));
                }
            }
            // A wake-up is two calls. Until it is read its node does not come for what waits.
            for (some, (node, indices)) in conn.run_each(&wakeups)?.chunks(2).zip(notified) {
                if let Some(e) = some.iter().find_map(|answer| answer.as_ref().err()) {
                    if let Trouble::Spoilt(sentence) = trouble(e.clone())? {
                        self.say(format!("a controller is not told of a command: {sentence}"));
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
            items[i].held.get_or_insert_default().push(node);
        }
        Ok(answers)
    }

    fn choose(&mut self, conn: &mut Conn, command: &Command, now: u64) -> RedisResult<Vec<NodeId>> {
        if let Some(node) = targets::named(command) {
            return Ok(vec![node]);
        }
        if !command.nodes.is_empty() {
            return Ok(command.nodes.clone());
        }
        if !command.fanout && self.known.is_recent() {
            let chosen = self.known.choose(command);
            if !chosen.is_empty() {
                return Ok(chosen);
            }
        }
        self.known.read(conn, now)?;
        Ok(self.known.choose(command))
    }

    /// Logs an error, the same one once a minute.
    fn say(&mut self, sentence: String) {
        if self.logged.admits(&sentence, Instant::now()) {
            log::error!("{sentence}");
        }
    }

    fn count(&self, outcome: &str) {
        self.context.metrics.commands.with_label_values(&[outcome]).inc();
    }
}

/// The copies of one command, which differ in their node.
struct Copies<'a> {
    command: &'a Command,
    /// The command as its client pushed it, without its last brace, its list of nodes, and what each copy has of its own.
    text: String,
    /// The client named roles or a list of nodes, and each copy names its node.
    is_chosen: bool,
    /// The flags in the tickets of the copies.
    flags: Flags,
}

impl Copies<'_> {
    fn of(command: &Command) -> Copies<'_> {
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
    fn queued_command(&self, tickets: &Tickets, node: NodeId, now: u64) -> QueuedCommand {
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
