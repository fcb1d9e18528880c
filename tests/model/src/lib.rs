//! The delivery protocol as a small state model, explored breadth-first.
//!
//! The model is pure: time is a value (an age that grows by a step of its own), nothing waits, nothing is random.
//! Its steps are those of the programs, and each names the function that takes it. Every order of steps is tried,
//! with a bounded number of failures between any two of them. `docs/explanation/delivery.md` has the states in words.
//!
//! Checked are, in each state, the invariants of `invariants`, and that from each state steps without a further
//! failure lead to one in which everything is answered and nothing is on its way.
//!
//! That it finds faults is a test too: each `Mutation` breaks one rule of the protocol, and must be found.

#![cfg(test)]

mod controller;
mod explore;
mod invariants;
mod node;
mod redis;
mod requests;
mod setup;
mod state;

use explore::explore;
use setup::{Kind, Mutation, Setup, fault};

const JOB: &[Kind] = &[Kind::Job(1)];
const NOBODY: &[Kind] = &[Kind::Nobody];
const FANOUT: &[Kind] = &[Kind::Job(3)];
const TWO_JOBS: &[Kind] = &[Kind::Job(1), Kind::Job(1)];
const CANCELLED: &[Kind] = &[Kind::Job(1), Kind::Cancel];
const KILLED: &[Kind] = &[Kind::Job(1), Kind::Kill];

fn setup(commands: &'static [Kind], faults: u32, failures: u8) -> Setup {
    let nodes = if commands.iter().any(|kind| matches!(kind, Kind::Job(2..))) { 2 } else { 1 };
    Setup { commands, nodes, controllers: 2, faults, failures, mutation: None }
}

#[track_caller]
fn holds(setup: &Setup) {
    let begin = std::time::Instant::now();
    let found = explore(setup);
    let Setup { commands, faults, failures, .. } = setup;
    say(&format!(
        "{commands:?}, {failures} failures of these: {}: {} states, {} steps, {:.1} s",
        fault::names(*faults),
        found.states,
        found.steps,
        begin.elapsed().as_secs_f64()
    ));
    if let Some(violation) = found.violation {
        panic!("{commands:?}: {violation}");
    }
}

/// The mutation breaks this invariant.
#[track_caller]
fn found(mutation: Mutation, commands: &'static [Kind], faults: u32, failures: u8, invariant: &str) {
    let found = explore(&Setup { mutation: Some(mutation), ..setup(commands, faults, failures) });
    let violation = found.violation.unwrap_or_else(|| panic!("{mutation:?} breaks nothing in {} states", found.states));
    say(&format!("{mutation:?}: {} ({} states)", violation.lines().next().unwrap_or_default(), found.states));
    assert!(violation.starts_with(invariant), "{mutation:?}: {violation}");
}

#[allow(clippy::print_stdout)] // The number of states is what somebody who runs this wants to see.
fn say(line: &str) {
    println!("{line}");
}

#[test]
fn one_job_and_any_failure() {
    holds(&setup(JOB, fault::ALL, 1));
}

#[test]
fn one_job_and_two_failures_of_controllers() {
    holds(&setup(JOB, fault::KILL_AC | fault::CUT, 2));
}

#[test]
fn one_job_and_two_failures_of_its_node() {
    holds(&setup(JOB, fault::KILL_AGENT | fault::POWER, 2));
}

#[test]
fn one_job_whose_wait_ends_beside_a_failure() {
    holds(&setup(JOB, fault::EXPIRY | fault::CUT, 2));
}

#[test]
fn one_job_for_two_nodes() {
    holds(&setup(FANOUT, fault::PUSH, 1));
}

#[test]
fn two_jobs_of_one_node() {
    holds(&setup(TWO_JOBS, fault::CUT, 1));
}

#[test]
fn job_that_no_node_fits() {
    holds(&setup(NOBODY, fault::ALL, 1));
}

#[test]
fn job_that_is_cancelled() {
    holds(&setup(CANCELLED, fault::CUT | fault::EXPIRY, 2));
    holds(&setup(CANCELLED, fault::KILL_AC, 1));
}

#[test]
fn job_that_is_killed() {
    holds(&Setup { controllers: 1, ..setup(KILLED, fault::KILL_AGENT, 1) });
}

#[test]
fn redis_that_loses_its_last_second_has_nothing_started_twice() {
    holds(&Setup { controllers: 1, ..setup(JOB, fault::REDIS_LOSES, 2) });
}

#[test]
fn faults_of_the_protocol_are_found() {
    use Mutation::*;
    let (twice, two) = ("an id was started twice", "two answers of one target");
    let (stuck, hash) = ("nothing leads to an answer", "who has popped an answer does not find it");
    found(AcknowledgedBeforeStored, JOB, fault::KILL_AGENT, 1, stuck);
    found(KnownIdsForgotten, JOB, fault::KILL_AGENT, 1, twice);
    found(TakenOffBeforeQueued, JOB, fault::KILL_AC, 1, stuck);
    found(TakenOffBeforeWakeup, JOB, fault::KILL_AC, 1, stuck);
    found(HandedOverIsGone, JOB, fault::KILL_AGENT, 1, stuck);
    found(RepetitionIsDuplicate, JOB, fault::CUT, 1, stuck);
    found(NobodyReclaims, JOB, fault::KILL_AC, 1, stuck);
    found(TakesBeforeItsBeat, JOB, fault::KILL_AC, 1, stuck);
    found(PushedWithoutMark, JOB, fault::ANSWER, 1, two);
    found(LateAnswersPushed, JOB, fault::EXPIRY | fault::KILL_AGENT, 2, hash);
    found(PushedBeforeWritten, JOB, 0, 0, hash);
    found(SentBeforeTaken, JOB, fault::REQUEST, 1, stuck);
    found(StartedRowsStartAgain, JOB, fault::KILL_AGENT, 1, twice);
    found(LeftoversLiveOn, JOB, fault::KILL_AGENT, 1, "a job has ended and its process lives");
    found(HandedOverIsWithdrawn, CANCELLED, 0, 0, "a job was cancelled and ran");
    found(TicketsUnchecked, JOB, fault::FORGERY, 1, "a node has answered for another one");
    found(PollsNotAskedAgain, JOB, fault::CUT, 1, stuck);
    found(RepeatedAnswerOverwrites, CANCELLED, fault::CUT, 1, hash);
    found(QueuedAfterWithdrawn, CANCELLED, fault::CUT, 1, "a job was cancelled and ran");
    found(RunningIsWithdrawn, JOB, fault::CUT | fault::EXPIRY, 2, "a job has expired and ran");
    found(TwoReasons, CANCELLED, fault::EXPIRY, 1, hash);
}
