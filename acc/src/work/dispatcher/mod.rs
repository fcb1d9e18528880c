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

mod at_once;
mod enqueue;
mod item;
mod job_hash;
mod own_results;

use crate::api::context::Context;
use crate::auth::shared_secrets;
use crate::bounded_map::Throttle;
use crate::model::jobs;
use crate::model::own_results::OwnResult;
use crate::model::queue;
use crate::model::{controllers, events, history, inbox};
use crate::proxy::Remote;
use crate::redis::errors::{is_broken, is_interrupted, is_partial};
use crate::redis::{Batch, Conn, describe};
use crate::work::Stop;
use crate::work::cancel;
use crate::work::deferred_jobs::DeferredJobs;
use crate::work::history::{audit, rejected, spoilt};
use crate::work::node_directory::NodeDirectory;
use crate::work::targets;
use crossbeam_channel::Receiver;
use enqueue::{Enqueued, enqueue};
use item::{Failure, Item, Plan, failure};
use jscommon::backoff::Backoff;
use jscommon::command::BadCommand;
use jscommon::{Command, NodeId, failpoint};
use redis::RedisResult;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Most commands taken at once.
const MAX_COMMANDS: usize = 128;
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
    recheck_polls: bool,
    /// Redis was told over this connection that this controller lives, and was ever told so.
    announced: bool,
    was_announced: bool,
    /// Other controllers that hold polls of nodes, as far as is known.
    controllers: Vec<String>,
    /// When it was last looked whether the processing list is as empty as it should be.
    checked: Instant,
    /// How long until that is looked at again.
    check_interval: Duration,
    deferred: DeferredJobs,
    nodes: NodeDirectory,
    /// Errors that were logged of late.
    logged: Throttle<String>,
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
            recheck_polls: false,
            announced,
            was_announced,
            controllers: Vec::new(),
            checked: Instant::now(),
            check_interval: UNANSWERED_CHECK_INTERVAL,
            deferred: DeferredJobs::new(DEFERRED_CHECK_INTERVAL),
            nodes: NodeDirectory::default(),
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
                    if std::mem::take(&mut self.recheck_polls) {
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
                    (self.again, self.recheck_polls) = (true, true);
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
                    self.recheck_polls = true;
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
        if !self.again && self.checked.elapsed() >= self.check_interval {
            self.checked = Instant::now();
            // An answer that was lost on its way may have been a command: it was taken, and nobody knows.
            self.again = inbox::has_taken(conn, &self.context.me)?;
            if !self.again {
                self.deferred.end_round(false);
                self.check_interval = UNANSWERED_CHECK_INTERVAL;
            }
        }
        if self.again {
            let texts = inbox::taken(conn, &self.context.me)?;
            self.deferred.nodes.clear();
            let mut held = false;
            for some in texts.chunks(MAX_COMMANDS) {
                held |= self.pass_on(conn, some.to_vec(), true, 0)?.0;
            }
            self.again = false;
            self.checked = Instant::now();
            let next = self.deferred.end_round(held);
            self.check_interval = if held { next } else { UNANSWERED_CHECK_INTERVAL };
        }
        let mut texts = Vec::from_iter(inbox::take(conn, &self.context.me)?);
        while !texts.is_empty() {
            failpoint::hit("acc.taken");
            // Also where commands come without end, what a dead controller had taken does not wait for that.
            // The same holds for what the processing list has that it should not have.
            let pause = self.stop.is_set() || !self.dead.is_empty() || self.checked.elapsed() >= self.check_interval;
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
            items.push(self.item(conn, text, now, again)?);
        }
        if again || !at_once::fits(conn, &items, &self.deferred) {
            return self.pass_on_in_steps(conn, items, again, now, more);
        }
        let controllers = &mut self.controllers;
        let passed_on = at_once::pass_on(&self.context, &self.proxy, controllers, conn, items, now, more)?;
        self.context.metrics.commands.with_label_values(&["queued"]).inc_by(passed_on.done as u64);
        let held = !passed_on.left.is_empty() && self.pass_on_in_steps(conn, passed_on.left, true, now, 0)?.0;
        Ok((held, passed_on.taken))
    }

    /// The same, one step after the other, each for all of the items.
    fn pass_on_in_steps(
        &mut self,
        conn: &mut Conn,
        mut items: Vec<Item>,
        again: bool,
        now: u64,
        more: usize,
    ) -> RedisResult<(bool, Vec<Vec<u8>>)> {
        job_hash::write_down(conn, &mut items, now, again)?;
        failpoint::hit("acc.hashed");

        let enqueued = enqueue(&self.context, &self.proxy, &mut self.deferred, conn, &mut items, now)?;
        let Enqueued { mut answers, mut forget, errors } = enqueued;
        errors.into_iter().for_each(|sentence| self.say(sentence));
        for (i, item) in items.iter_mut().enumerate() {
            let (given, job) = self.own_results(conn, item, now)?;
            forget.extend(given.iter().filter_map(|answer| Some((i, answer.target?, job.clone()))));
            answers.extend(given.into_iter().map(|answer| (i, answer)));
        }
        own_results::deliver_or_defer(self.context.deliverer(), conn, &mut items, answers)?;

        let mut batch = Batch::new();
        for (_, node, job) in forget.iter().filter(|(i, ..)| items[*i].deferred.is_none()) {
            queue::forget(&mut batch, *node, job);
        }
        self.record(&mut batch, &items, now);
        // Off the processing list only when the rest is written.
        let mut after = Batch::new();
        let done = items.iter().filter(|item| item.deferred.is_none());
        done.for_each(|item| inbox::complete(&mut after, &self.context.me, &item.text));
        failpoint::hit("acc.answered");
        if more > 0 {
            inbox::take_more(&mut after, &self.context.me, more);
        }
        // A list that is of another type or out of reach keeps nothing from going on.
        let (written, after) = conn.run_in_turn_each(batch, after, is_partial)?;
        for error in written.into_iter().filter_map(Result::err) {
            if !is_partial(&error) {
                return Err(error);
            }
            self.say(format!("what happens is not kept: {}", describe(&error)));
        }
        let last = after.into_iter().collect::<RedisResult<Vec<_>>>()?.pop();
        failpoint::hit("acc.untaken");
        let held = self.hold(items);
        Ok((held, if more > 0 { inbox::taken_more(last)? } else { Vec::new() }))
    }

    /// Reads a taken text and chooses the nodes of its command.
    fn item(&mut self, conn: &mut Conn, text: Vec<u8>, now: u64, again: bool) -> RedisResult<Item> {
        let mut against = None;
        let plan = match Command::received(&text) {
            Err(bad) => Plan::Reject(bad),
            Ok(command) if command.cmd == "cancel" => Plan::Cancel(command),
            Ok(command) => {
                if let Some(left) = self.deferred.jobs.get(&command.id).filter(|_| again) {
                    return Ok(Item::new(text, Plan::Run(command, left.clone()), true));
                }
                let targets = match self.choose(conn, &command, now) {
                    Ok(targets) => targets,
                    Err(e) => {
                        against = Some(failure(e)?);
                        Vec::new()
                    }
                };
                Plan::Run(command, targets)
            }
        };
        let mut item = Item::new(text, plan, false);
        against.into_iter().for_each(|against| item.fail(against));
        Ok(item)
    }

    /// The results of the controller itself for one item, and the job that it has cancelled.
    fn own_results(&self, conn: &mut Conn, item: &mut Item, now: u64) -> RedisResult<(Vec<OwnResult>, String)> {
        let error = |command, sentence: String| Ok((vec![OwnResult::error(command, None, sentence)], String::new()));
        match &item.plan {
            Plan::Reject(BadCommand { partial: Some(partial), reason, .. }) => {
                error(partial, format!("no command: {reason}"))
            }
            // Of a job that was written down before all nodes may have answered by now.
            Plan::Run(command, _) if item.targets().is_empty() => error(command, targets::nobody(command)),
            Plan::Cancel(command) => match cancel::take_back(conn, command, now, self.context.config.max_queue) {
                Ok(taken) => Ok(taken),
                Err(e) => match failure(e)? {
                    Failure::Later => {
                        item.deferred = Some(Vec::new());
                        Ok(Default::default())
                    }
                    Failure::Spoilt(sentence) => {
                        item.spoilt.push(sentence.clone());
                        error(command, sentence)
                    }
                },
            },
            Plan::Spoilt(command) => error(command, item.spoilt.first().cloned().unwrap_or_default()),
            Plan::Reject(_) | Plan::Run(..) | Plan::Duplicate(_) | Plan::Wait(_) => Ok(Default::default()),
        }
    }

    /// Counts the items, and adds what is kept about them.
    fn record(&mut self, batch: &mut Batch, items: &[Item], now: u64) {
        for item in items.iter().filter(|item| item.deferred.is_none()) {
            for sentence in &item.spoilt {
                self.say(format!("a command cannot be passed on as it should: {sentence}"));
                history::reject(batch, &spoilt(item.plan.command(), sentence, now));
            }
            match &item.plan {
                Plan::Reject(bad) => {
                    self.count("rejected");
                    history::reject(batch, &rejected(bad, &item.text, now));
                }
                Plan::Run(..) => self.count(if item.targets().is_empty() { "nobody" } else { "queued" }),
                Plan::Cancel(_) => self.count("cancel"),
                Plan::Spoilt(_) => self.count("rejected"),
                Plan::Wait(_) => {}
                Plan::Duplicate(command) => {
                    self.count("duplicate");
                    let data = json!({"id": command.id, "cmd": command.cmd, "by": command.extra.get("by")});
                    events::add(batch, "duplicate", targets::named(command), now, &data);
                }
            }
        }
        let new = || {
            let new = items.iter().filter(|item| item.new).filter_map(|item| Some((item.plan.command()?, item)));
            new.filter(|(command, item)| !command.quiet && !matches!(item.plan, Plan::Wait(_)))
        };
        jobs::list(batch, &new().map(|(command, _)| command.id.as_str()).collect::<Vec<&str>>());
        let entry = |(command, item): (&Command, &Item)| audit(command, item.targets(), now).to_string();
        history::audit(batch, &new().map(entry).collect::<Vec<String>>());
    }

    /// Notes what is held, once all else that follows from it is stored; whether there is any.
    fn hold(&mut self, items: Vec<Item>) -> bool {
        let mut any = false;
        for item in items {
            let Plan::Run(command, _) = item.plan else {
                any |= item.deferred.is_some();
                continue;
            };
            match item.deferred {
                Some(left) => {
                    any = true;
                    self.deferred.jobs.insert(command.id, left);
                }
                None if item.resumed => drop(self.deferred.jobs.remove(&command.id)),
                None => {}
            }
        }
        if any {
            self.deferred.say();
        }
        any
    }

    fn choose(&mut self, conn: &mut Conn, command: &Command, now: u64) -> RedisResult<Vec<NodeId>> {
        if let Some(node) = targets::named(command) {
            return Ok(vec![node]);
        }
        if !command.nodes.is_empty() {
            return Ok(command.nodes.clone());
        }
        if !command.fanout && self.nodes.is_recent() {
            let chosen = self.nodes.choose(command);
            if !chosen.is_empty() {
                return Ok(chosen);
            }
        }
        self.nodes.read(conn, now)?;
        Ok(self.nodes.choose(command))
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
