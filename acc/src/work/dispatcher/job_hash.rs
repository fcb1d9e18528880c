//! The hash of each job, which is written before anything can come back.

use super::item::{Item, Plan, failure};
use crate::model::jobs::{self, Job};
use crate::model::own_results;
use crate::redis::errors::is_partial;
use crate::redis::{Batch, Conn};
use crate::work::history::{created, expires};
use jscommon::{Command, NodeId};
use redis::RedisResult;

/// The job of a command, which is `shown` without its secrets.
pub(super) fn job<'a>(command: &'a Command, shown: &'a str, targets: &'a [NodeId], now: u64) -> Job<'a> {
    let (created, expires) = (created(command, now), expires(command));
    Job { id: &command.id, cmd: shown, created, targets, expires, quiet: command.quiet }
}

/// The job's hash, before anything can come back. A known job keeps the targets that were
/// chosen then, and goes to those of them that are not known to have it.
pub(super) fn write_down(conn: &mut Conn, items: &mut [Item], now: u64, again: bool) -> RedisResult<()> {
    let shown: Vec<String> =
        items.iter().map(|item| item.plan.command().map(own_results::redacted).unwrap_or_default()).collect();
    let mut batch = Batch::new();
    let mut opened = Vec::new();
    for (i, item) in items.iter().enumerate().filter(|(_, item)| !item.resumed) {
        if matches!(item.plan, Plan::Wait(_) | Plan::Duplicate(_)) {
            continue;
        }
        let Some(command) = item.plan.command() else { continue };
        jobs::open(&mut batch, &job(command, &shown[i], item.plan.targets(), now));
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
                item.fail(failure(e)?);
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
                        item.fail(failure(e)?);
                        continue;
                    }
                }
            }
            listed.push(i);
        } else {
            item.repeats();
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
