//! What must happen now and then: beat, revocations, expiry, new certificates, last_seen, trimming.
//!
//! Owns: the thread `janitor` and the pace of each chore.
//! Does not own: what the chores find out; the dispatcher hears of dead controllers by channel, the
//! authenticator gets secrets and revocations, the proxy its new certificate.
//! A chore that fails is tried again at its next turn; Redis being away stops none of the others.

use crate::api::context::Context;
use crate::auth::authenticator::Refused;
use crate::auth::revocation;
use crate::auth::shared_secrets;
use crate::auth::tls::TlsSource;
use crate::model::answer::{self, Answer};
use crate::model::queue::{self, Reason, Withdrawn};
use crate::model::{jobs, keys, lists, nodes};
use crate::proxy::{Remote, Seen};
use crate::redis::errors::{is_away, is_broken, is_moving, is_spoilt};
use crate::redis::{Batch, Conn, describe};
use crate::work::Stop;
use crate::work::grants;
use crossbeam_channel::{Receiver, Sender, select};
use jscommon::NodeId;
use redis::{FromRedisValue, RedisResult};
use serde_json::json;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// A chore that is due so soon is done with the one for which the thread has woken up.
const TIMER_SLACK: Duration = Duration::from_millis(250);
/// How often waiting polls are ended to tell their nodes of a new secret, while there are any.
const RENEWAL_HINT_INTERVAL: Duration = Duration::from_millis(500);
// The paces below are multiples of the shortest, so that the thread wakes up once for all that is due.
/// How often this controller says that it lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// How often revocations, grants, dead controllers, and commands whose wait has ended are asked for, in one round trip.
const SYNC_INTERVAL: Duration = Duration::from_millis(2500);
/// The longest time for commands whose wait has ended, in one turn.
const MAX_EXPIRY_TIME: Duration = Duration::from_secs(1);
/// How often the taken lists of controllers that are gone are looked at.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(15);
/// How often nodes that wait here are written down as seen.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(5);
/// For how long (ms) the end of a wait is put off while a cluster moves the node's slot: longer than the dispatcher
/// may take to come back to what it holds for the same reason.
const MOVING_SLOT_DELAY_MS: u64 = 20_000;
/// The same where a key holds something else than it should.
const WRONG_TYPE_DELAY_MS: u64 = 60_000;
/// How often the files of the state directory are looked at.
const FILE_CHECK_INTERVAL: Duration = SYNC_INTERVAL;
/// How often old entries are cleared away.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);
/// Milliseconds after which a node that was not seen is forgotten.
const NODE_RETENTION_MS: u64 = 30 * 86_400_000;
/// Most expired commands of one turn.
const MAX_EXPIRED: usize = 200;
/// Waiting polls that are ended in one tick to tell their nodes of a new secret: ten thousand nodes
/// renew within half a minute, and one alone at once.
const MAX_RENEWAL_HINTS: usize = 200;

/// The janitor of one controller.
pub(crate) struct Janitor {
    /// What all rooms share.
    pub(crate) context: Arc<Context>,
    /// The proxy.
    pub(crate) proxy: Remote,
    /// The proxy's certificate, when it has one.
    pub(crate) tls: Option<TlsSource>,
    /// Nodes whose polls wait at the proxy.
    pub(crate) seen: Receiver<Seen>,
    /// Who was refused at the door.
    pub(crate) refused: Receiver<Refused>,
    /// Where the names of dead controllers go.
    pub(crate) dead: Sender<String>,
    /// Where a reason to end the whole controller goes.
    pub(crate) fatal: Sender<String>,
    /// When to end.
    pub(crate) stop: Stop,
}

/// A chore's clock.
struct Every {
    pace: Duration,
    due: Instant,
}

impl Every {
    fn new(pace: Duration) -> Every {
        Every { pace, due: Instant::now() }
    }

    /// Whether it is due, or almost; if so the next turn is a pace from now.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now + TIMER_SLACK >= self.due;
        if due {
            self.due = now + self.pace;
        }
        due
    }
}

impl Janitor {
    /// Does the chores until it is told to stop.
    pub(crate) fn run(self) -> Result<(), String> {
        let (mut beat, mut look, mut gone) =
            (Every::new(HEARTBEAT_INTERVAL), Every::new(SYNC_INTERVAL), Every::new(RECLAIM_INTERVAL));
        let (mut seen, mut files, mut sweep) =
            (Every::new(PRESENCE_INTERVAL), Every::new(FILE_CHECK_INTERVAL), Every::new(CLEANUP_INTERVAL));
        let (mut renewals, mut first) = (Every::new(RENEWAL_HINT_INTERVAL), Every::new(RENEWAL_HINT_INTERVAL));
        let mut nodes: HashMap<NodeId, Instant> = HashMap::new();
        let mut state = State { files: self.stamps(), untold: Some(Vec::new()), ..State::default() };
        // The proxy ends before this thread does.
        let mut heard = self.seen.clone();
        let (mut refusals, mut told): (Vec<Refused>, Told) = (Vec::new(), Told::default());
        loop {
            jscommon::death::point("acc.chores");
            if beat.is_due() {
                self.chore("beat", |conn| self.beat(conn, &mut state));
            }
            // No node is let in before the first look.
            if look.is_due() || (!self.context.authenticator.knows_revoked() && first.is_due()) {
                self.chore("look", |conn| self.look(conn, &mut state));
            }
            if gone.is_due() {
                self.chore("gone", |conn| self.gone(conn));
            }
            if !nodes.is_empty() && seen.is_due() {
                let list: Seen = nodes.drain().collect();
                self.chore("seen", |conn| self.seen(conn, &list));
            }
            if files.is_due() {
                self.files(&mut state);
            }
            let untold = |state: &State| state.untold.as_ref().is_none_or(|untold| !untold.is_empty());
            if untold(&state) && renewals.is_due() {
                self.chore("renewals", |conn| self.renewals(conn, &mut state));
            }
            if sweep.is_due() {
                self.chore("sweep", |conn| self.sweep(conn));
            }
            if !refusals.is_empty() {
                let some = std::mem::take(&mut refusals);
                self.chore("refusals", |conn| self.refusals(conn, &some));
            }
            // Until the next of those that have something to do.
            let mut due = beat.due.min(look.due).min(gone.due).min(files.due).min(sweep.due);
            if !nodes.is_empty() {
                due = due.min(seen.due);
            }
            if !self.context.authenticator.knows_revoked() {
                due = due.min(first.due);
            }
            if untold(&state) {
                due = due.min(renewals.due);
            }
            select! {
                recv(self.refused) -> refused => {
                    if let Ok(refused) = refused
                        && told.is_news(&refused)
                    {
                        refusals.push(refused);
                    }
                }
                recv(heard) -> list => match list {
                    Ok(list) => nodes.extend(list),
                    Err(_) => heard = crossbeam_channel::never(),
                },
                recv(self.stop.channel()) -> _ => break,
                default(due.saturating_duration_since(Instant::now())) => {}
            }
        }
        self.chore("deregister", |conn| self.deregister(conn));
        Ok(())
    }

    fn chore(&self, name: &str, mut work: impl FnMut(&mut Conn) -> RedisResult<()>) {
        if let Err(e) = self.context.pool.with(&mut work) {
            log::debug!("{name}: {}", describe(&e));
        }
    }

    /// Compares the node secret with that of Redis; false where this controller has to end.
    fn fingerprint(&self, conn: &mut Conn, state: &mut State) -> RedisResult<bool> {
        let context = &self.context;
        if !state.claimed {
            let ours = context.authenticator.secrets().current.fingerprint().to_owned();
            let theirs = nodes::claim_fingerprint(conn, &ours)?;
            if let Err(reason) =
                shared_secrets::check_fingerprint(&context.authenticator, &context.config.state_dir, &theirs)
            {
                let _ = self.fatal.send(reason);
                return Ok(false);
            }
            if theirs != ours {
                // Rotated, and Redis has not heard of it: it was restored, or the command died.
                nodes::set_fingerprint(conn, &ours)?;
            }
            state.claimed = true;
        } else if let Some(theirs) = nodes::fingerprint(conn)? {
            let behind =
                shared_secrets::check_fingerprint(&context.authenticator, &context.config.state_dir, &theirs).is_err();
            if behind && !state.behind {
                log::error!(
                    "the node secret was rotated at another controller, and nodes that have renewed are refused here: \
                     copy its node.secret into {}",
                    context.config.state_dir.display()
                );
            }
            state.behind = behind;
        }
        Ok(true)
    }

    /// Says that this controller lives, and learns the time and whether data was lost.
    fn beat(&self, conn: &mut Conn, state: &mut State) -> RedisResult<()> {
        let context = &self.context;
        match self.fingerprint(conn, state) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // The key is spoilt or out of reach, and this controller lives all the same.
            Err(e) if is_away(&e) || is_moving(&e) || is_spoilt(&e) => log::debug!("fingerprint: {}", describe(&e)),
            Err(e) => return Err(e),
        }
        let beat = lists::beat(conn, &context.me)?;
        context.clock.set(beat.now);
        let forgotten = context.forgotten.swap(false, Ordering::Relaxed);
        if forgotten || (beat.new && state.beaten) {
            log::warn!("redis has forgotten this controller; every waiting poll is asked again");
            state.claimed = false;
            state.revoked = None;
            context.epoch.fetch_add(1, Ordering::Relaxed);
            self.proxy.recheck_all();
        }
        state.beaten = true;
        let (pending, queued) = lists::depths(conn)?;
        context.metrics.pending_commands.set(pending);
        context.metrics.queued_commands.set(queued);
        Ok(())
    }

    /// Finds controllers that have died (the dispatcher goes on with what they had taken), new revocations and grants,
    /// and commands whose wait has ended. What one of them meets stops none of the others: of a cluster's servers one
    /// may be away.
    fn look(&self, conn: &mut Conn, state: &mut State) -> RedisResult<()> {
        let now = self.context.clock.now();
        let mut batch = Batch::new();
        nodes::ask_revoked_version(&mut batch);
        jobs::ask_expired(&mut batch, now, 1);
        nodes::ask_ticket_key(&mut batch);
        lists::ask_dead(&mut batch, now);
        let before = batch.len();
        let due = grants::look(&self.context, &mut batch);
        let mut answers = conn.run_each(&batch)?;
        let compared = answers.split_off(before);
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(redis::Value::Nil));
        let version = next().and_then(|value| Ok(Option::<u64>::from_redis_value(value)?.unwrap_or_default()));
        let expired = next().and_then(|value| Ok(Vec::<String>::from_redis_value(value)?));
        let key = next().and_then(|value| Ok(Option::<String>::from_redis_value(value)?));
        let dead = lists::read_dead(answers.collect(), &self.context.me);
        let passed = dead.and_then(|dead| self.pass_on(dead));
        let tickets = &self.context.tickets;
        let agreed = match key {
            Ok(Some(key)) if tickets.is_agreed() && key == tickets.keys().current.text() => Ok(()),
            _ => shared_secrets::agree_on_ticket_key(&self.context.tickets, &self.context.identity, conn),
        };
        let revoked = match version {
            // No node is let in before: it could be handed a ticket that no other controller takes.
            _ if !tickets.is_agreed() => Ok(()),
            Ok(version) if state.revoked == Some(version) => Ok(()),
            Ok(_) => self.revocations(conn, state),
            Err(e) => Err(e),
        };
        let ended = match expired {
            Ok(expired) if expired.is_empty() => Ok(()),
            Ok(_) => self.expiry(conn),
            Err(e) => Err(e),
        };
        let granted = grants::looked(&self.context, conn, &due, compared);
        passed.and(agreed).and(revoked).and(ended).and(granted)
    }

    /// Finds what controllers have taken after they were found dead.
    fn gone(&self, conn: &mut Conn) -> RedisResult<()> {
        self.pass_on(lists::gone_with_something(conn, &self.context.me)?)
    }

    fn pass_on(&self, dead: Vec<String>) -> RedisResult<()> {
        // While the dispatcher cannot take them, each is told once.
        if self.dead.is_empty() {
            dead.into_iter().for_each(|ac| drop(self.dead.send(ac)));
        }
        Ok(())
    }

    fn revocations(&self, conn: &mut Conn, state: &mut State) -> RedisResult<()> {
        let version = nodes::revoked_version(conn)?;
        if state.revoked != Some(version) {
            let fresh = self.context.authenticator.set_revoked(nodes::revoked(conn)?);
            for node in &fresh {
                self.proxy.disconnect(*node);
                self.context.claims.forget(*node);
                self.context.delivered.forget(*node);
            }
            // What it did here until now may have brought it back into the live set.
            for node in queue::closed(conn, &fresh)? {
                revocation::forget(conn, node)?;
            }
            state.revoked = Some(version);
        }
        Ok(())
    }

    /// Answers commands whose node did not come for them in time. When very many end at once, the next
    /// turn goes on: beats and revocations must not wait for them.
    fn expiry(&self, conn: &mut Conn) -> RedisResult<()> {
        let (now, begin) = (self.context.clock.now(), Instant::now());
        loop {
            let due = jobs::expired(conn, now, MAX_EXPIRED)?;
            for member in &due {
                match self.expire(conn, member, now) {
                    // Of a node whose slot is being moved nothing can be taken back now, and where a key holds something
                    // else it must be mended first; the others do not wait.
                    Err(e) if is_moving(&e) || is_away(&e) || is_spoilt(&e) => {
                        if is_spoilt(&e) {
                            log::error!("a command that has expired cannot be answered for: {}", describe(&e));
                        }
                        let Some((node, id)) = keys::parse_expiring(member) else { continue };
                        let wait = if is_spoilt(&e) { WRONG_TYPE_DELAY_MS } else { MOVING_SLOT_DELAY_MS };
                        let mut later = Batch::new();
                        jobs::put_off(&mut later, node, id, now + wait);
                        conn.run(&later)?;
                    }
                    outcome => outcome?,
                }
            }
            if due.len() < MAX_EXPIRED || begin.elapsed() >= MAX_EXPIRY_TIME {
                return Ok(());
            }
        }
    }

    fn expire(&self, conn: &mut Conn, member: &str, now: u64) -> RedisResult<()> {
        let Some((node, id)) = keys::parse_expiring(member) else {
            return conn.one(&redis::Cmd::zrem(keys::EXPIRING, member));
        };
        let mut after = Batch::new();
        match queue::withdraw(conn, node, id, now, Reason::Expired, self.context.config.max_queue)? {
            Withdrawn::Handed(till) => jobs::put_off(&mut after, node, id, till.max(now + 1000)),
            Withdrawn::Gone => {
                // Nobody has it, and no node has ever acknowledged it: Redis has lost it on its way (a failover
                // to a replica that lagged), or a controller died before it had queued what expired soon.
                if let Some(command) = jobs::lost(conn, node, id)? {
                    let sentence =
                        format!("lost: it never reached the queue of node {node}, or redis has forgotten it there");
                    answer::give(&self.context.metrics, conn, &[Answer::error(&command, Some(node), sentence)])?;
                }
                queue::forget(&mut after, node, id);
            }
            Withdrawn::Out(command, reason) => {
                jscommon::death::point("acc.withdrawn");
                if let Some(command) = command
                    && !jobs::has_node(conn, node, id)?
                {
                    answer::give(&self.context.metrics, conn, &[Answer::withdrawn(&command, node, reason)])?;
                    if reason == Reason::Expired {
                        self.context.metrics.commands.with_label_values(&["expired"]).inc();
                    }
                }
                queue::forget(&mut after, node, id);
            }
        }
        conn.run(&after).map(drop)
    }

    /// Nodes that wait here: when they were last there, and whether Redis still has it that they wait here. The
    /// proxy parks a node's next polls without asking, so what came to nothing on the way to it is found here.
    fn seen(&self, conn: &mut Conn, list: &[(NodeId, Instant)]) -> RedisResult<()> {
        let now = self.context.clock.now();
        // Of nodes that were once revoked it is asked whether they still are: those are not there any more.
        let is_of_interest = |(node, _): &&(NodeId, Instant)| self.context.authenticator.revoked_until(*node).is_some();
        let once: Vec<NodeId> = list.iter().filter(is_of_interest).map(|(node, _)| *node).collect();
        let closed = queue::closed(conn, &once)?;
        let list: Seen = list.iter().filter(|(node, _)| !closed.contains(node)).copied().collect();
        for some in list.chunks(500) {
            let mut batch = Batch::new();
            let ago = |at: &Instant| now.saturating_sub(at.elapsed().as_millis() as u64);
            let times: Vec<(NodeId, u64)> = some.iter().map(|(node, at)| (*node, ago(at))).collect();
            nodes::seen(&mut batch, &times, &self.context.me);
            // About once an hour for each node that waits here, its registration is kept alive.
            let turn = now / PRESENCE_INTERVAL.as_millis() as u64 % 720;
            for (node, _) in some.iter().filter(|(node, _)| u64::from(node.nid) % 720 == turn) {
                queue::keep(&mut batch, *node);
            }
            let before = batch.len();
            some.iter().for_each(|(node, _)| queue::holder(&mut batch, *node));
            let mut answers = conn.run_each(&batch)?;
            let holders = answers.split_off(before);
            // What cannot be written down of one node is not held against the others.
            for e in answers.iter().filter_map(|answer| answer.as_ref().err()) {
                if is_broken(e) {
                    return Err(e.clone());
                }
                log::debug!("seen: {}", describe(e));
            }
            for ((node, _), holder) in some.iter().zip(holders) {
                let Ok(holder) = holder.and_then(|holder| Ok(Option::<String>::from_redis_value(holder)?)) else {
                    continue;
                };
                match holder {
                    Some(holder) if holder == self.context.me => {}
                    // It went there in silence: asking for it here would take it away again.
                    Some(_) => self.proxy.release_poll(*node),
                    // It was handed something since, or something was lost on the way to it.
                    None => self.proxy.recheck(*node),
                }
            }
        }
        Ok(())
    }

    /// Who was refused at the door, as events.
    fn refusals(&self, conn: &mut Conn, refused: &[Refused]) -> RedisResult<()> {
        let mut batch = Batch::new();
        for who in refused {
            let data = json!({"addr": who.peer.to_string(), "reason": who.reason});
            lists::event(&mut batch, "refused", Some(who.node), self.context.clock.now(), &data);
        }
        conn.run(&batch).map(drop)
    }

    /// Asks the handler about some of the polls that wait, which tells their nodes to renew.
    fn renewals(&self, conn: &mut Conn, state: &mut State) -> RedisResult<()> {
        let untold = match &mut state.untold {
            Some(untold) => untold,
            None => {
                let since = self.context.clock.now().saturating_sub(nodes::LIVE_TIMEOUT_MS);
                state.untold.insert(nodes::live(conn, since)?)
            }
        };
        for node in untold.drain(untold.len().saturating_sub(MAX_RENEWAL_HINTS)..) {
            self.proxy.recheck(node);
        }
        Ok(())
    }

    /// Certificates and secrets that were changed in the state directory hold from now on.
    fn files(&self, state: &mut State) {
        let context = &self.context;
        let now = crate::clock::local_ms();
        let stamps = self.stamps();
        let day = now / 86_400_000;
        if stamps != state.files || state.day.is_some_and(|last| last != day) {
            match context.identity.secrets() {
                Ok(secrets) => {
                    if secrets.current.fingerprint() != context.authenticator.secrets().current.fingerprint() {
                        log::info!("the node secret was rotated; the old one holds for another day");
                        state.untold = None;
                    }
                    context.authenticator.set_secrets(secrets);
                }
                Err(e) => log::error!("the node secret stays as it was: {e:#}"),
            }
            if let Some(tls) = &self.tls {
                match context.identity.tls(&context.config, now) {
                    Ok(config) => {
                        tls.replace(config);
                        log::info!("new connections take the server certificate as it lies there now");
                    }
                    // Perhaps only one of certificate and key is there yet; the next look finds both.
                    Err(e) => log::warn!("the server certificate stays as it was: {e:#}"),
                }
            }
            state.files = self.stamps();
        }
        state.day = Some(day);
    }

    fn stamps(&self) -> Vec<(PathBuf, Option<SystemTime>)> {
        let context = &self.context;
        let mut files = context.identity.tls_files(&context.config);
        files.push(context.identity.secret_file());
        files
            .into_iter()
            .map(|file| {
                let changed = std::fs::metadata(&file).and_then(|meta| meta.modified()).ok();
                (file, changed)
            })
            .collect()
    }

    /// Nodes that were not seen for a month, and counts of jobs that the audit list has dropped.
    fn sweep(&self, conn: &mut Conn) -> RedisResult<()> {
        let before = self.context.clock.now().saturating_sub(NODE_RETENTION_MS);
        while nodes::prune(conn, before, 500)? == 500 {}
        lists::sweep_audit(conn)
    }

    /// A controller that goes in peace leaves nothing for others to clear away.
    fn deregister(&self, conn: &mut Conn) -> RedisResult<()> {
        if lists::taken(conn, &self.context.me)?.is_empty() {
            lists::leave(conn, &self.context.me, self.context.clock.now())?;
        }
        Ok(())
    }
}

/// Whose refusal was told of late: each node at each address once a minute, and ten in all a second, so
/// that strangers cannot push out other events.
#[derive(Default)]
struct Told {
    at: HashMap<(NodeId, IpAddr), Instant>,
    second: Option<(Instant, u32)>,
}

impl Told {
    fn is_news(&mut self, refused: &Refused) -> bool {
        let now = Instant::now();
        let (since, count) = match self.second {
            Some((since, count)) if now.duration_since(since) < Duration::from_secs(1) => (since, count + 1),
            _ => (now, 1),
        };
        self.second = Some((since, count));
        if count > 10 {
            return false;
        }
        if self.at.len() > 1000 {
            self.at.retain(|_, at| now.duration_since(*at) < CLEANUP_INTERVAL);
        }
        let before = self.at.insert((refused.node, refused.peer), now);
        before.is_none_or(|at| now.duration_since(at) >= CLEANUP_INTERVAL)
    }
}

#[derive(Default)]
struct State {
    claimed: bool,
    beaten: bool,
    revoked: Option<u64>,
    files: Vec<(PathBuf, Option<SystemTime>)>,
    day: Option<u64>,
    /// Redis belongs to a newer node secret than ours, and that was told.
    behind: bool,
    /// Nodes whose waiting polls do not know yet that the secret was rotated; nothing means that they
    /// are still to be looked up.
    untold: Option<Vec<NodeId>>,
}
