//! Tasks that are due from time to time: a table of name, period and function, and the thread that runs it.
//!
//! Owns: the thread `periodic`, and when each task is due. Does not own: what the tasks do (the files beside this one).
//! A task that fails is tried again when it is next due; while Redis is away the others go on.

use super::heartbeat::{Heartbeat, Outcome};
use super::presence::PRESENCE_INTERVAL;
use super::refusals::RefusalThrottle;
use super::reload::StateFiles;
use super::shared_changes::{DeadControllers, SharedChanges};
use super::{Stop, presence, refusals};
use crate::api::context::Context;
use crate::auth::authenticator::Refused;
use crate::auth::tls::TlsSource;
use crate::model::{controllers, history, inbox, nodes, stream};
use crate::proxy::{Remote, Seen};
use crate::redis::{Conn, Pool, describe};
use crossbeam_channel::{Receiver, Sender, select};
use jscommon::NodeId;
use redis::RedisResult;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A task that is due so soon is run with the one for which the thread has woken up.
const TIMER_SLACK: Duration = Duration::from_millis(250);
/// The period of what is tried more often than all else, while there is any of it.
const RENEWAL_HINT_INTERVAL: Duration = Duration::from_millis(500);
// The periods below are multiples of the shortest, so that the thread wakes up once for all that is due.
/// How often this controller says that it lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// How often Redis is asked for changes, and the files of the state directory are looked at.
const SHARED_CHANGES_INTERVAL: Duration = Duration::from_millis(2500);
/// How often the processing lists of controllers that are gone are looked at.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(15);
/// How often old entries are removed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);
/// Milliseconds after which a node that was not seen is forgotten.
const NODE_RETENTION_MS: u64 = 30 * 86_400_000;
/// Waiting polls that are ended at once to tell their nodes of a new secret: ten thousand nodes renew within half a
/// minute, and one alone at once.
const MAX_RENEWAL_HINTS: usize = 200;

/// One task of the table.
struct Task {
    name: &'static str,
    period: Duration,
    /// Whether there is anything to do.
    has_work: fn(&State) -> bool,
    run: fn(&PeriodicTasks, &mut State) -> RedisResult<()>,
}

/// In the order in which they run when several are due.
static TASKS: [Task; 10] = [
    Task { name: "heartbeat", period: HEARTBEAT_INTERVAL, has_work: |_| true, run: PeriodicTasks::heartbeat },
    Task {
        name: "shared changes",
        period: SHARED_CHANGES_INTERVAL,
        has_work: |_| true,
        run: PeriodicTasks::shared_changes,
    },
    // No node is let in before the first one has succeeded.
    Task {
        name: "first shared changes",
        period: RENEWAL_HINT_INTERVAL,
        has_work: |state| !state.knows_revoked,
        run: PeriodicTasks::shared_changes,
    },
    Task { name: "reclaim", period: RECLAIM_INTERVAL, has_work: |_| true, run: PeriodicTasks::reclaim },
    Task {
        name: "presence",
        period: PRESENCE_INTERVAL,
        has_work: |state| !state.waiting.is_empty(),
        run: PeriodicTasks::presence,
    },
    Task { name: "reload", period: SHARED_CHANGES_INTERVAL, has_work: |_| true, run: PeriodicTasks::reload },
    Task {
        name: "renewal hints",
        period: RENEWAL_HINT_INTERVAL,
        has_work: |state| state.unhinted.as_ref().is_none_or(|nodes| !nodes.is_empty()),
        run: PeriodicTasks::renewal_hints,
    },
    Task { name: "streams", period: RECLAIM_INTERVAL, has_work: |_| true, run: PeriodicTasks::streams },
    Task { name: "cleanup", period: CLEANUP_INTERVAL, has_work: |_| true, run: PeriodicTasks::cleanup },
    Task {
        name: "refusals",
        period: Duration::ZERO,
        has_work: |state| !state.refused.is_empty(),
        run: PeriodicTasks::refusals,
    },
];

/// The periodic tasks of one controller.
pub(crate) struct PeriodicTasks {
    /// Shared by all threads.
    pub(crate) context: Arc<Context>,
    /// The proxy.
    pub(crate) proxy: Remote,
    /// The proxy's certificate, when it has one.
    pub(crate) tls: Option<TlsSource>,
    /// Nodes whose polls wait at the proxy.
    pub(crate) seen: Receiver<Seen>,
    /// Requests that were refused for their credentials.
    pub(crate) refused: Receiver<Refused>,
    /// Where the names of dead controllers go.
    pub(crate) dead: DeadControllers,
    /// Where a reason to end the whole controller goes.
    pub(crate) fatal: Sender<String>,
    /// When to end.
    pub(crate) stop: Stop,
}

/// The state of the tasks between two runs.
struct State {
    heartbeat: Heartbeat,
    shared_changes: SharedChanges,
    files: StateFiles,
    /// Which nodes were revoked was read at least once.
    knows_revoked: bool,
    /// Nodes whose polls wait, and when each came.
    waiting: HashMap<NodeId, Instant>,
    /// Nodes whose waiting polls do not know yet that the secret was rotated; `None` when they are still to be looked
    /// up.
    unhinted: Option<Vec<NodeId>>,
    refused: Vec<Refused>,
}

impl PeriodicTasks {
    /// Runs the tasks until it is told to stop.
    pub(crate) fn run(self) -> Result<(), String> {
        let mut state = State {
            heartbeat: Heartbeat::default(),
            shared_changes: SharedChanges::default(),
            files: StateFiles::new(&self.context),
            knows_revoked: false,
            waiting: HashMap::new(),
            unhinted: Some(Vec::new()),
            refused: Vec::new(),
        };
        let mut throttle = RefusalThrottle::new();
        let mut due = [Instant::now(); TASKS.len()];
        // The proxy ends before this thread does.
        let mut seen = self.seen.clone();
        loop {
            jscommon::failpoint::hit("acc.periodic");
            for (task, due) in TASKS.iter().zip(&mut due) {
                state.knows_revoked = self.context.authenticator.knows_revoked();
                let now = Instant::now();
                if (task.has_work)(&state) && now + TIMER_SLACK >= *due {
                    *due = now + task.period;
                    if let Err(e) = (task.run)(&self, &mut state) {
                        log::debug!("{}: {}", task.name, describe(&e));
                    }
                }
            }
            state.knows_revoked = self.context.authenticator.knows_revoked();
            let with_work = TASKS.iter().zip(&due).filter(|(task, _)| (task.has_work)(&state));
            let next = with_work.map(|(_, due)| *due).min().unwrap_or_else(Instant::now);
            select! {
                recv(self.refused) -> refused => {
                    state.refused.extend(refused.ok().filter(|one| throttle.admits(one, Instant::now())));
                }
                recv(seen) -> list => match list {
                    Ok(list) => state.waiting.extend(list),
                    Err(_) => seen = crossbeam_channel::never(),
                },
                recv(self.stop.channel()) -> _ => break,
                default(next.saturating_duration_since(Instant::now())) => {}
            }
        }
        if let Err(e) = self.redis(|conn| self.deregister(conn)) {
            log::debug!("deregister: {}", describe(&e));
        }
        Ok(())
    }

    fn redis<T>(&self, calls: impl FnMut(&mut Conn) -> RedisResult<T>) -> RedisResult<T> {
        self.context.pool.with(calls)
    }

    fn heartbeat(&self, state: &mut State) -> RedisResult<()> {
        match self.redis(|conn| state.heartbeat.beat(&self.context, conn))? {
            Outcome::Known => {}
            Outcome::Forgotten => {
                state.shared_changes.forget();
                self.proxy.recheck_all();
            }
            Outcome::Foreign(reason) => {
                let _ = self.fatal.send(reason);
            }
        }
        Ok(())
    }

    fn shared_changes(&self, state: &mut State) -> RedisResult<()> {
        self.redis(|conn| state.shared_changes.apply(&self.context, &self.proxy, &self.dead, conn))
    }

    /// Finds what controllers have taken after they were found dead.
    fn reclaim(&self, _: &mut State) -> RedisResult<()> {
        self.redis(|conn| controllers::gone_with_something(conn, &self.context.me)).map(|dead| self.dead.report(dead))
    }

    fn presence(&self, state: &mut State) -> RedisResult<()> {
        let list: Seen = state.waiting.drain().collect();
        self.redis(|conn| presence::note(&self.context, &self.proxy, conn, &list))
    }

    fn reload(&self, state: &mut State) -> RedisResult<()> {
        if state.files.reload(&self.context, self.tls.as_ref()) {
            state.unhinted = None;
        }
        Ok(())
    }

    /// Asks the handler about some of the polls that wait, which tells their nodes to renew.
    fn renewal_hints(&self, state: &mut State) -> RedisResult<()> {
        let since = self.context.clock.now().saturating_sub(nodes::LIVE_TIMEOUT_MS);
        let nodes = take_unhinted(&self.context.pool, since, &mut state.unhinted)?;
        nodes.into_iter().for_each(|node| self.proxy.recheck(node));
        Ok(())
    }

    /// Removes nodes that were not seen for a month, and counts of jobs that the audit list has dropped.
    fn cleanup(&self, _: &mut State) -> RedisResult<()> {
        let before = self.context.clock.now().saturating_sub(NODE_RETENTION_MS);
        self.redis(|conn| {
            while nodes::prune(conn, before, 500)? == 500 {}
            history::sweep_audit(conn)
        })
    }

    /// Looks after the streams of live output.
    fn streams(&self, _: &mut State) -> RedisResult<()> {
        let limits = stream::Limits::of_mib(self.context.config.stream_memory);
        let now = self.context.clock.now();
        let (count, bytes) = self.redis(|conn| stream::sweep(conn, limits, now))?;
        self.context.metrics.streams.set(count);
        self.context.metrics.stream_memory.set(bytes);
        Ok(())
    }

    fn refusals(&self, state: &mut State) -> RedisResult<()> {
        let refused = std::mem::take(&mut state.refused);
        self.redis(|conn| refusals::add_events(&self.context, conn, &refused))
    }

    /// Leaves nothing for others to clear away.
    fn deregister(&self, conn: &mut Conn) -> RedisResult<()> {
        if inbox::taken(conn, &self.context.me)?.is_empty() {
            controllers::leave(conn, &self.context.me, self.context.clock.now())?;
        }
        Ok(())
    }
}

/// Takes the next nodes that get a renewal hint; where they are not known, they are those that were seen after `since`.
fn take_unhinted(pool: &Pool, since: u64, unhinted: &mut Option<Vec<NodeId>>) -> RedisResult<Vec<NodeId>> {
    // With a connection alone: without Redis a poll that is asked again ends.
    pool.with(|conn| {
        let nodes = match unhinted {
            Some(nodes) => nodes,
            None => unhinted.insert(nodes::live(conn, since)?),
        };
        Ok(nodes.split_off(nodes.len().saturating_sub(MAX_RENEWAL_HINTS)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::redis_address::Target;
    use crate::redis::Address;

    #[test]
    fn renewal_hints_wait_while_redis_is_away() {
        let address =
            Address::new(Target::parse("unix:///nonexistent/redis.sock").unwrap(), None, &crate::model::SCHEMA);
        let pool = Pool::new(address, Arc::default());
        let nodes = Some(vec![NodeId { gid: 1, nid: 10 }]);
        let mut unhinted = nodes.clone();
        assert!(take_unhinted(&pool, 0, &mut unhinted).is_err());
        assert_eq!(unhinted, nodes);
    }
}
