//! The delivery of results that their nodes have sent.
//!
//! Owns: which nodes may answer for which jobs as far as Redis has to be asked, and what is counted and told of it.
//! Does not own: the form of a request and of its answer (`result`), what a step does in Redis (`model`).
//!
//! Where one server has all keys, a result with a ticket takes one call of a script. Otherwise it takes steps: decide,
//! write into the job's hash, push; the script is made of the same functions.

use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::auth::tickets;
use crate::model::jobs::{self, JobEligibility, Meant, Writing};
use crate::model::results::{self, Bounds, Delivery, Push, Recurring, Verdict};
use crate::model::{events, history, nodes};
use crate::redis::{Batch, Conn, describe};
use jscommon::{NodeId, State, failpoint};
use redis::{FromRedisValue, RedisResult, Value};
use serde_json::json;
use std::sync::atomic::Ordering;

/// Most calls of one transaction, for Redis does nothing else meanwhile.
const MAX_TRANSACTION_CALLS: usize = 256;

/// Failure points between two steps. A test that asks for one of them has the results delivered in steps.
const STEP_POINTS: &[&str] = &["acc.result.guarded"];

/// Why a result is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    OtherNode,
    WrongTicket,
    NoTicket,
    NotMeant,
    Unknown,
    /// There is room for it after so many seconds.
    TooMany(u32),
}

impl Refusal {
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Refusal::OtherNode => "it names another node",
            Refusal::WrongTicket => "its ticket is not that of this node and job",
            Refusal::NoTicket => "it has no ticket, and this node has returned tickets before",
            Refusal::NotMeant => "its job was for other nodes",
            Refusal::Unknown => "it has no ticket, and redis knows no such job of this node",
            Refusal::TooMany(_) => "the node brings more of its runs than its recurring_period allows",
        }
    }
}

/// A result that its node may deliver, as far as that is known without Redis.
pub(super) struct Entry {
    pub(super) node: NodeId,
    pub(super) id: String,
    pub(super) state: State,
    pub(super) target: String,
    pub(super) run: String,
    pub(super) text: String,
    /// A ticket of this node and job came with it.
    pub(super) has_ticket: bool,
    /// The run, where the ticket says that the job recurs; without a ticket, where the result itself does.
    pub(super) recurring: Option<Recurring>,
}

impl Entry {
    fn delivery(&self, recurring: Option<Recurring>) -> Delivery<'_> {
        Delivery { id: &self.id, target: &self.target, run: &self.run, text: &self.text, recurring }
    }
}

/// The state of an entry according to Redis.
struct Standing {
    known: JobEligibility,
    verdict: Verdict,
    recurring: Option<Recurring>,
    refusal: Option<Refusal>,
}

/// Asks Redis about the entries, and decides what is to become of them.
fn decide(context: &Context, conn: &mut Conn, entries: &[&Entry]) -> RedisResult<Vec<Standing>> {
    // Both questions in one round trip, so it is decided before it is known whether the node may answer.
    // By that a node may at most leave its own name among those that have answered,
    // which no other node's answer is measured by, for a day. Without a ticket that name is what lets it in
    // later, so then it is asked first.
    let mut batch = Batch::new();
    for entry in entries {
        jobs::ask(&mut batch, entry.node, &entry.id);
        if entry.has_ticket {
            results::decide(&mut batch, &entry.delivery(entry.recurring), true);
        } else {
            nodes::ask_returns_tickets(&mut batch, entry.node);
            results::ask_remembered(&mut batch, entry.node, &entry.id);
            if entry.recurring.is_some() {
                jobs::ask_period(&mut batch, &entry.id);
            }
        }
    }
    let answers = run_and_note_tickets(context, conn, entries, batch)?;
    let mut answers = answers.into_iter().collect::<RedisResult<Vec<_>>>()?.into_iter();
    let mut next = || answers.next().unwrap_or(redis::Value::Nil);
    let mut standings = Vec::with_capacity(entries.len());
    let (mut later, mut undecided) = (Batch::new(), Vec::new());
    for (i, entry) in entries.iter().enumerate() {
        let known = jobs::known(next(), next(), next())?;
        if entry.has_ticket {
            let verdict = results::verdict(next())?;
            let refusal = (known == JobEligibility::NotMeant).then_some(Refusal::NotMeant).or(too_many(verdict));
            standings.push(Standing { known, verdict, recurring: entry.recurring, refusal });
            continue;
        }
        let returns_tickets = bool::from_redis_value(next())?;
        let remembered = results::remembered(next(), next())?;
        let period = if entry.recurring.is_some() { jobs::period(next())? } else { None };
        let refusal = match known {
            JobEligibility::NotMeant => Some(Refusal::NotMeant),
            _ if returns_tickets => Some(Refusal::NoTicket),
            JobEligibility::Nothing if !remembered.answered => Some(Refusal::Unknown),
            JobEligibility::Nothing | JobEligibility::Meant(_) => None,
        };
        let recurring = match (entry.recurring, known) {
            (Some(run), JobEligibility::Meant(_)) if period.is_some() => {
                period.map(|period| Recurring { period: period.min(tickets::MAX_PERIOD), ..run })
            }
            (run, _) => run.filter(|_| remembered.recurs),
        };
        if refusal.is_none() {
            results::decide(&mut later, &entry.delivery(recurring), false);
            undecided.push(i);
        }
        standings.push(Standing { known, verdict: Verdict::Late, recurring, refusal });
    }
    if !undecided.is_empty() {
        for (i, answer) in undecided.into_iter().zip(conn.run(&later)?) {
            standings[i].verdict = results::verdict(answer)?;
            standings[i].refusal = too_many(standings[i].verdict);
        }
    }
    Ok(standings)
}

/// The refusal of a run that is one too many.
fn too_many(verdict: Verdict) -> Option<Refusal> {
    if let Verdict::TooMany(seconds) = verdict { Some(Refusal::TooMany(seconds)) } else { None }
}

/// Runs `batch`, and writes down in the same round trip which nodes return tickets.
fn run_and_note_tickets(
    context: &Context,
    conn: &mut Conn,
    entries: &[&Entry],
    mut batch: Batch,
) -> RedisResult<Vec<RedisResult<Value>>> {
    let epoch = context.epoch.load(Ordering::Relaxed);
    let mut returning: Vec<NodeId> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.has_ticket) {
        if !returning.contains(&entry.node) && context.tickets.is_news(entry.node, epoch) {
            returning.push(entry.node);
        }
    }
    let before = batch.len();
    returning.iter().for_each(|node| nodes::returns_tickets(&mut batch, *node));
    let mut answers = conn.run_each(&batch)?;
    // The node's data may be spoilt, and its results are taken all the same.
    match answers.split_off(before).into_iter().find_map(Result::err) {
        None => context.tickets.note(&returning, epoch),
        Some(e) => ::log::debug!("that nodes return tickets is not written down: {}", describe(&e)),
    }
    Ok(answers)
}

/// Delivers; answers for each entry whether it was refused.
pub(super) fn deliver(context: &Context, conn: &mut Conn, entries: &[&Entry]) -> RedisResult<Vec<Option<Refusal>>> {
    let at_once = !conn.is_cluster() && entries.iter().all(|entry| entry.has_ticket);
    let mut events = Batch::new();
    let refusals = if at_once && !failpoint::is_aimed_at(STEP_POINTS) {
        deliver_at_once(context, conn, entries, &mut events)?
    } else {
        deliver_in_steps(context, conn, entries, &mut events)?
    };
    failpoint::hit("acc.result.pushed");
    history::unkept(conn.run_each(&events)?)?;
    Ok(refusals)
}

/// Delivers entries that have tickets, each by one script.
fn deliver_at_once(
    context: &Context,
    conn: &mut Conn,
    entries: &[&Entry],
    events: &mut Batch,
) -> RedisResult<Vec<Option<Refusal>>> {
    let mut batch = Batch::new();
    entries.iter().for_each(|entry| {
        results::deliver(&mut batch, &entry.delivery(entry.recurring), entry.state, context.config.keep);
    });
    failpoint::hit("acc.result.delivering");
    let answers = run_and_note_tickets(context, conn, entries, batch)?;
    let now = context.clock.now();
    let note = |(entry, answer): (&&Entry, RedisResult<Value>)| {
        let (verdict, created) = results::delivered(answer?)?;
        let refusal = verdict.map_or(Some(Refusal::NotMeant), too_many);
        note(context, entry, verdict.filter(|_| refusal.is_none()), created, now, events);
        Ok(refusal)
    };
    // Each that was delivered is counted, also where another one has failed.
    let noted: Vec<RedisResult<Option<Refusal>>> = entries.iter().zip(answers).map(note).collect();
    noted.into_iter().collect()
}

fn deliver_in_steps(
    context: &Context,
    conn: &mut Conn,
    entries: &[&Entry],
    events: &mut Batch,
) -> RedisResult<Vec<Option<Refusal>>> {
    let standings = decide(context, conn, entries)?;
    failpoint::hit("acc.result.guarded");

    let (now, keep) = (context.clock.now(), context.config.keep);
    let (mut hashes, mut pushes) = (Batch::new(), Vec::new());
    for (entry, standing) in entries.iter().zip(&standings) {
        let Standing { known, verdict, recurring, refusal } = standing;
        let meant = if let JobEligibility::Meant(meant) = known { Some(meant) } else { None };
        let verdict = Some(*verdict).filter(|_| refusal.is_none());
        note(context, entry, verdict, meant.map(|meant| meant.created), now, events);
        let Some(verdict) = verdict.filter(|verdict| *verdict != Verdict::Late) else { continue };
        if hashes.len() + pushes.len() >= MAX_TRANSACTION_CALLS {
            results::push_all(conn, std::mem::take(&mut hashes), &std::mem::take(&mut pushes))?;
        }
        let writing = if verdict == Verdict::Repeat { Writing::Repeated } else { Writing::Counts };
        jobs::result(
            &mut hashes,
            &entry.target,
            &entry.id,
            &entry.text,
            writing,
            jobs::hash_kept(keep, recurring.is_some()),
        );
        let delivery = entry.delivery(*recurring);
        results::remember(&mut hashes, &delivery, entry.has_ticket || meant.is_some());
        if verdict == Verdict::First {
            pushes.push(push(entry, delivery, meant, keep));
        }
    }
    results::push_all(conn, hashes, &pushes)?;
    Ok(standings.into_iter().map(|standing| standing.refusal).collect())
}

fn push<'a>(entry: &Entry, delivery: Delivery<'a>, meant: Option<&Meant>, keep: u64) -> Push<'a> {
    let quiet = meant.is_some_and(|meant| meant.quiet);
    let bounds = match meant {
        Some(meant) => Bounds::of(meant.targets, quiet, keep),
        // Nobody can make up an id with a ticket.
        None if entry.has_ticket => Bounds::of(0, false, keep),
        None => Bounds::unknown(keep),
    };
    Push { delivery, bounds, counted: (!quiet).then_some(entry.state) }
}

/// Counts an entry; `verdict` is `None` for one that was refused. An answer that comes too late is told.
fn note(
    context: &Context,
    entry: &Entry,
    verdict: Option<Verdict>,
    created: Option<u64>,
    now: u64,
    events: &mut Batch,
) {
    let outcome = match verdict {
        None => "refused",
        Some(Verdict::First) => "first",
        Some(Verdict::Quiet) => "quiet",
        Some(Verdict::Late) => "late",
        Some(Verdict::Repeat | Verdict::TooMany(_)) => "repeat",
    };
    context.metrics.results.with_label_values(&[outcome]).inc();
    if let Some(created) = created.filter(|_| verdict == Some(Verdict::First)) {
        context.metrics.result_seconds.observe(now.saturating_sub(created) as f64 / 1000.0);
    }
    // A node may bring a second result of its job without end.
    let late = [Charge::new(Resource::LateEvents, 1)];
    if verdict == Some(Verdict::Late) && context.rate_limiter.take(entry.node, &late, now).is_ok() {
        let data = json!({"id": entry.id, "state": entry.state});
        events::add(events, "late_result", Some(entry.node), now, &data);
    }
}
