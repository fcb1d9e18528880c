//! Takes commands off `cmds_queue` and puts them into the queues of their nodes.
//!
//! Owns: the thread `dispatcher`, the order of steps.
//! Does not own: which nodes are meant (`targets`, of those that are `known`), what a step does in Redis (`store`), what is kept about
//! commands (`history`), handing over to a waiting poll (the gate). Dead controllers' names come from the janitor by channel.
//!
//! **A command is on this controller's taken list until everything that follows from it is stored**:
//! its hash, its place in each target's queue, the ring of another controller's bell, or its answer.
//! Whatever fails or dies between, the whole is done again (here, or by the controller that inherits
//! the list), and every step is harmless when repeated. What is done again is marked `again`, for a job
//! that is known already is then no duplicate.

use crate::answer::{self, Answer};
use crate::cancel;
use crate::context::{Context, Stop};
use crate::gate::Remote;
use crate::held::Held;
use crate::history::{audit, created, expires, rejected};
use crate::known::Known;
use crate::store::jobs::{self, Job};
use crate::store::pool::{is_broken, is_moving};
use crate::store::queue::{self, Parcel, Queued};
use crate::store::{Batch, Conn, DAY, describe, lists};
use crate::targets;
use crossbeam_channel::Receiver;
use jscommon::backoff::Backoff;
use jscommon::command::BadCommand;
use jscommon::{Command, NodeId, death};
use redis::RedisResult;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Most commands taken at once.
const TOGETHER: usize = 128;
/// Most scripts in one round trip.
const PIPELINE: usize = 512;
/// Most bytes of commands in one round trip.
const PIPELINE_BYTES: usize = 8 << 20;
/// Longest wait for an answer of Redis: well above the 2 s that a read blocks.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between commands, how often it is looked whether one was taken and its answer lost.
const LOOK: Duration = Duration::from_secs(2);
/// The dispatcher of one controller.
pub struct Dispatcher {
    context: Arc<Context>,
    gate: Remote,
    dead: Receiver<String>,
    stop: Stop,
    /// The taken list may hold something that was not passed on.
    again: bool,
    /// Waiting polls are to be asked again, once Redis answers.
    recall: bool,
    /// Redis was told over this connection that this controller lives, and was ever told so.
    announced: bool,
    was_announced: bool,
    /// When it was last looked whether the taken list is as empty as it should be.
    looked: Instant,
    /// How long until that is looked at again.
    look: Duration,
    held: Held,
    known: Known,
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
    /// It cannot be finished now, and stays on the taken list; with the nodes for which that is so.
    held: Option<Vec<NodeId>>,
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
}

impl Plan {
    /// The command, or as much as was read of it, when it has an id.
    fn command(&self) -> Option<&Command> {
        match self {
            Plan::Reject(bad) => bad.partial.as_deref(),
            Plan::Run(command, _) | Plan::Cancel(command) | Plan::Duplicate(command) => Some(command),
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
}

impl Dispatcher {
    /// Ready to run.
    pub fn new(context: Arc<Context>, gate: Remote, dead: Receiver<String>, stop: Stop) -> Dispatcher {
        let (announced, was_announced) = (false, false);
        Dispatcher {
            context,
            gate,
            dead,
            stop,
            again: false,
            recall: false,
            announced,
            was_announced,
            looked: Instant::now(),
            look: LOOK,
            held: Held::new(LOOK),
            known: Known::default(),
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
                None => self.context.pool.open(PATIENCE).map(|open| conn = Some(open)).map(|()| false),
            };
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    if std::mem::take(&mut self.recall) {
                        // An answer of Redis may have been lost in which it handed over commands to a
                        // waiting poll.
                        self.gate.recall_all();
                    }
                    if !said.is_empty() {
                        log::info!("commands are passed on again");
                        said.clear();
                    }
                    backoff.succeed();
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
            // What was taken is found again by the name of who took it: nothing is taken before that
            // name stands among the controllers.
            let beat = lists::beat(conn, &self.context.me)?;
            self.context.clock.set(beat.now);
            if std::mem::replace(&mut self.was_announced, true) && beat.new {
                self.context.forgotten.store(true, Ordering::Relaxed);
            }
            self.announced = true;
        }
        while let Ok(ac) = self.dead.try_recv() {
            let moved = lists::inherit(conn, &self.context.me, &ac)?;
            if let Some(moved) = moved.filter(|moved| *moved > 0) {
                log::warn!("the controller {ac} is gone; {moved} commands that it had taken go on here");
                self.again = true;
            }
        }
        if !self.again && self.looked.elapsed() >= self.look {
            self.looked = Instant::now();
            // An answer that was lost on its way may have been a command: it was taken, and nobody knows.
            self.again = lists::has_taken(conn, &self.context.me)?;
            if !self.again {
                self.look = self.held.settle(false);
            }
        }
        if self.again {
            let texts = lists::taken(conn, &self.context.me)?;
            self.held.nodes.clear();
            let mut held = false;
            for some in texts.chunks(TOGETHER) {
                held |= self.pass_on(conn, some.to_vec(), true, 0)?.0;
            }
            self.again = false;
            self.looked = Instant::now();
            self.look = self.held.settle(held);
        }
        let mut texts = Vec::from_iter(lists::take(conn, &self.context.me)?);
        while !texts.is_empty() {
            death::point("acc.taken");
            // Also where commands come without end, what a dead controller had taken does not wait for that.
            // The same holds for what the taken list has that it should not have.
            let pause = self.stop.is_set() || !self.dead.is_empty() || self.looked.elapsed() >= self.look;
            texts = self.pass_on(conn, texts, false, if pause { 0 } else { TOGETHER })?.1;
        }
        Ok(())
    }

    /// Everything that follows from some taken texts, then off the taken list; the answer is whether some had to
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
            let mut resumed = false;
            let plan = match Command::received(&text) {
                Err(bad) => Plan::Reject(bad),
                Ok(command) if command.cmd == "cancel" => Plan::Cancel(command),
                Ok(command) if again && self.held.jobs.contains_key(&command.id) => {
                    resumed = true;
                    let left = self.held.jobs[&command.id].clone();
                    Plan::Run(command, left)
                }
                Ok(command) => {
                    let targets = self.choose(conn, &command, now)?;
                    Plan::Run(command, targets)
                }
            };
            items.push(Item { text, plan, new: !resumed, resumed, targets: None, held: None });
        }
        self.write_down(conn, &mut items, now, again)?;
        death::point("acc.hashed");

        let mut answers = self.enqueue(conn, &mut items, now)?;
        let mut forget: Vec<(usize, NodeId, String)> = Vec::new();
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
                Plan::Cancel(command) => match cancel::take_back(conn, command, now) {
                    Ok((given, job)) => {
                        forget.extend(given.iter().filter_map(|answer| Some((i, answer.target?, job.clone()))));
                        answers.extend(given.into_iter().map(|answer| (i, answer)));
                    }
                    Err(e) if is_moving(&e) => item.held = Some(Vec::new()),
                    Err(e) => return Err(e),
                },
                Plan::Run(..) | Plan::Duplicate(_) => {}
            }
        }
        self.give(conn, &mut items, answers)?;

        let mut batch = Batch::new();
        for (_, node, job) in forget.iter().filter(|(i, ..)| items[*i].held.is_none()) {
            queue::forget(&mut batch, *node, job);
        }
        for item in items.iter().filter(|item| item.held.is_none()) {
            match &item.plan {
                Plan::Reject(bad) => {
                    self.count("rejected");
                    lists::reject(&mut batch, &rejected(bad, &item.text, now));
                }
                Plan::Run(..) => self.count(if item.targets().is_empty() { "nobody" } else { "queued" }),
                Plan::Cancel(_) => self.count("cancel"),
                Plan::Duplicate(command) => {
                    self.count("duplicate");
                    let data = json!({"id": command.id, "cmd": command.cmd, "by": command.extra.get("by")});
                    lists::event(&mut batch, "duplicate", targets::named(command), now, &data);
                }
            }
        }

        let new = || {
            let new = items.iter().filter(|item| item.new).filter_map(|item| Some((item.plan.command()?, item)));
            new.filter(|(command, _)| !command.quiet)
        };
        jobs::list(&mut batch, &new().map(|(command, _)| command.id.as_str()).collect::<Vec<&str>>());
        let entry = |(command, item): (&Command, &Item)| audit(command, item.targets(), now).to_string();
        lists::audit(&mut batch, &new().map(entry).collect::<Vec<String>>());
        // Off the taken list only when the rest is written.
        let mut after = Batch::new();
        let done = items.iter().filter(|item| item.held.is_none());
        done.for_each(|item| lists::untake(&mut after, &self.context.me, &item.text));
        death::point("acc.answered");
        if more > 0 {
            lists::take_more(&mut after, &self.context.me, more);
        }
        let last = conn.run_in_turn(batch, after)?.pop();
        death::point("acc.untaken");
        let held = self.hold(items);
        Ok((held, if more > 0 { lists::taken_more(last)? } else { Vec::new() }))
    }

    /// Delivers answers; what cannot be answered now is held. Each goes with the index of its item.
    fn give(&self, conn: &mut Conn, items: &mut [Item], answers: Vec<(usize, Answer)>) -> RedisResult<()> {
        let (owners, answers): (Vec<usize>, Vec<Answer>) = answers.into_iter().unzip();
        match answer::give(&self.context, conn, &answers) {
            Err(e) if is_moving(&e) => {}
            outcome => return outcome,
        }
        for (i, answer) in owners.into_iter().zip(&answers) {
            match answer::give(&self.context, conn, std::slice::from_ref(answer)) {
                Err(e) if is_moving(&e) => items[i].held.get_or_insert_default().extend(answer.target),
                outcome => outcome?,
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

    /// The job's hash, before anything can come back. What is known already keeps the targets that were
    /// chosen then, and goes to those of them that are not known to have it.
    fn write_down(&self, conn: &mut Conn, items: &mut [Item], now: u64, again: bool) -> RedisResult<()> {
        let shown: Vec<String> =
            items.iter().map(|item| item.plan.command().map(answer::hide).unwrap_or_default()).collect();
        let mut batch = Batch::new();
        let mut opened = Vec::new();
        for (i, item) in items.iter().enumerate().filter(|(_, item)| !item.resumed) {
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
        let answers = conn.run(&batch)?;
        let mut listed = Vec::new();
        for (i, answer) in opened.into_iter().zip(answers) {
            if !jobs::opened(answer)? {
                continue;
            }
            let item = &mut items[i];
            if again {
                if let Plan::Run(command, left) = &mut item.plan {
                    let standing = jobs::standing(conn, &command.id)?;
                    *left = standing.queued;
                    item.targets = Some(standing.targets);
                }
                listed.push(i);
            } else if let Some(command) = item.plan.command() {
                item.plan = Plan::Duplicate(command.clone());
                item.new = false;
            }
        }
        for i in listed {
            if let Some(command) = items[i].plan.command().filter(|command| !command.quiet) {
                items[i].new = !jobs::is_listed(conn, &command.id)?;
            }
        }
        Ok(())
    }

    /// Into the queues, node by node; a node that waits here is handed its commands at once.
    /// The answers to those that no room is for, each with the index of its item.
    fn enqueue(&mut self, conn: &mut Conn, items: &mut [Item], now: u64) -> RedisResult<Vec<(usize, Answer)>> {
        let mut commands: Vec<Copies> = Vec::new();
        let mut owners: Vec<usize> = Vec::new();
        let mut held: Vec<(usize, NodeId)> = Vec::new();
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
            for (node, indices) in rest.iter().take(PIPELINE) {
                bytes += indices.iter().map(|i| commands[*i].text.len()).sum::<usize>();
                if size > 0 && bytes > PIPELINE_BYTES {
                    break;
                }
                let some: Vec<Parcel> = indices.iter().map(|i| commands[*i].parcel(*node, now)).collect();
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
            let mut bells = Batch::new();
            for ((node, indices), reply) in rest[..size].iter().zip(replies) {
                if reply.as_ref().is_err_and(is_moving) {
                    self.held.nodes.insert(*node);
                    held.extend(indices.iter().map(|i| (owners[*i], *node)));
                    continue;
                }
                let enqueued = queue::enqueued(&self.context.me, reply?)?;
                if let Some(handover) = enqueued.handover {
                    crate::doorbell::hand_over(&self.context, &self.gate, *node, &handover);
                }
                if let Some(ac) = enqueued.holder {
                    lists::ring(&mut bells, &ac, *node);
                }
                for (i, verdict) in indices.iter().zip(enqueued.verdicts) {
                    if verdict == Queued::Full {
                        let limit = self.context.config.max_queue;
                        let sentence = format!("{limit} commands wait for node {node} already, and no more may");
                        answers.push((owners[*i], Answer::error(commands[*i].command, Some(*node), sentence)));
                    }
                }
            }
            conn.run(&bells)?;
            rest = &rest[size..];
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

    fn count(&self, outcome: &str) {
        self.context.metrics.commands.with_label_values(&[outcome]).inc();
    }
}

/// The copies of one command, which differ in their node.
struct Copies<'a> {
    command: &'a Command,
    /// The command as its client pushed it, but for a list of nodes.
    text: String,
    /// The same as a value, where the client named roles or a list of nodes.
    value: Option<Value>,
}

impl Copies<'_> {
    fn of(command: &Command) -> Copies<'_> {
        let mut value = command.to_value();
        if let Value::Object(fields) = &mut value {
            fields.remove("nodes");
        }
        let text = value.to_string();
        let value = targets::named(command).is_none().then_some(value);
        Copies { command, text, value }
    }

    /// The copy for `node`, which names that node alone.
    fn parcel(&mut self, node: NodeId, now: u64) -> Parcel {
        let (id, created) = (self.command.id.clone(), created(self.command, now));
        let Some(value) = &mut self.value else {
            return Parcel { id, created, chosen_from: None, text: self.text.clone() };
        };
        (value["gid"], value["nid"]) = (node.gid.into(), node.nid.into());
        Parcel { id, created, chosen_from: Some(self.command.gid), text: value.to_string() }
    }
}
