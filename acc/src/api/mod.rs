//! Answers requests that the proxy has authenticated: one file for each path.
//!
//! Owns: reading bodies and queries, the answers' form, 503 while Redis is away.
//! Does not own: credentials (`auth`), rules of what is stored (`model`).
//! Called on tiny_http's threads; each call blocks on Redis for seconds at most.

mod blob;
mod body;
mod cmd;
pub(crate) mod command_body;
pub mod context;
pub(crate) mod delivered_batches;
mod enroll;
mod event;
mod health;
mod log;
mod metrics;
mod node_series;
mod process_metrics;
pub(crate) mod rate_limiter;
mod result;
mod result_delivery;
mod script;
pub(crate) mod script_cache;
pub mod server;
mod stats;
mod stream;

use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Exceeded, RESERVED_FOR_RESULTS, Resource};
use crate::bounded_map::Throttle;
use crate::http::{Handler, Reply, Request};
use crate::redis::describe;
use crate::route::Route;
pub(crate) use body::HeldValues;
use body::json;
use jscommon::NodeId;
use jscommon::lock::lock;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Seconds after which a client that was told 503 may try again.
const RETRY: u32 = 2;

/// Time between two polls of one node that are answered only to tell that its credentials grow old.
const RENEWAL_HINT_INTERVAL: Duration = Duration::from_secs(600);

/// Most requests that one thread handles together. In a fanout to 10,000 nodes this costs Redis 127 us a node, and one
/// by one 133; `jsacc` the same (medians of three runs).
const MAX_BATCH: usize = 16;

/// The handlers of one controller.
pub struct Handlers {
    context: Arc<Context>,
    notices: log::Notices,
    written: cmd::LastWrites,
    /// Nodes whose waiting polls were answered only to tell that their credentials grow old.
    renewal_hints: Mutex<Throttle<NodeId>>,
}

/// Why a request was not answered as it wished.
enum Fault {
    /// Redis gave an error.
    Redis(redis::RedisError),
    /// The answer says it.
    Reply(Reply),
}

type Outcome = Result<Reply, Fault>;

impl From<redis::RedisError> for Fault {
    fn from(error: redis::RedisError) -> Fault {
        Fault::Redis(error)
    }
}

/// A status with a sentence.
fn refuse(status: u16, reason: impl Into<String>) -> Fault {
    Fault::Reply(Reply::error(status, reason))
}

/// 400 with a sentence.
fn bad(reason: impl Into<String>) -> Fault {
    refuse(400, reason)
}

impl Handlers {
    /// Handlers on this context.
    pub fn new(context: Arc<Context>) -> Handlers {
        Handlers {
            context,
            notices: log::no_notices(),
            written: cmd::LastWrites::new(),
            renewal_hints: Mutex::new(Throttle::new(RENEWAL_HINT_INTERVAL, usize::MAX)),
        }
    }

    fn route(&self, request: &mut Request) -> Outcome {
        let context = self.context.as_ref();
        let body = |request: &mut Request| std::mem::take(&mut request.body);
        match request.route {
            Route::Cmd(node) => one(cmd::poll_all(context, &self.written, &[(node, request)])),
            Route::Result(node) => one(result::post_all(context, vec![(node, body(request))])),
            Route::Log(node) => log::post(context, &self.notices, node, body(request)),
            Route::Stats(node) => stats::post(context, node, body(request)),
            Route::Event(node) => event::post(context, node, request),
            Route::Stream(node) => stream::post(context, node, request),
            Route::Script(node) => script::get(context, node, request),
            Route::Blob(node) => blob::get(context, node, request),
            Route::Renew(node) => enroll::renew(context, node, request),
            Route::Enroll => enroll::post(context, request),
            Route::Health => health::get(context),
            Route::Metrics => Ok(metrics::own(context)),
            Route::NodeMetrics => metrics::nodes(context),
        }
    }

    /// Says on an answer that the node's credentials are to be renewed. A poll that would be parked is
    /// answered for that, though not more than once in ten minutes.
    fn hint(&self, request: &Request, reply: &mut Reply) {
        let Some(why) = self.context.authenticator.renewal(request.bearer.as_deref(), request.cert_issued) else {
            return;
        };
        let Some(node) = request.node else { return };
        if matches!(request.route, Route::Renew(_)) {
            return;
        }
        if reply.park.is_some() {
            let mut hints = lock(&self.renewal_hints);
            if !hints.admits(&node, Instant::now()) {
                return;
            }
            reply.park = None;
        }
        reply.headers.push(("X-JS-Renew", why.to_owned()));
    }
}

/// The outcome of the one request that was asked about.
fn one(outcomes: Vec<Outcome>) -> Outcome {
    outcomes.into_iter().next().unwrap_or_else(|| Ok(Reply::empty()))
}

impl Handler for Handlers {
    fn handle(&self, request: &mut Request) -> Reply {
        let outcome = self.recheck_revocation(request).and_then(|()| self.route(request));
        self.reply(request, outcome)
    }

    /// One server does the calls of many as it does those of one. Of a cluster's servers one may be away, and what
    /// asks nothing of it shall not wait for it. That Redis is a cluster may be found out late: when one server was
    /// named, or when Redis was away at the start.
    fn max_batch(&self) -> usize {
        if self.context.pool.is_cluster() { 1 } else { MAX_BATCH }
    }

    /// Polls and results that came together go to Redis together.
    fn handle_all(&self, requests: &mut [Request]) -> Vec<Reply> {
        let mut outcomes: Vec<Option<Outcome>> =
            requests.iter().map(|request| self.recheck_revocation(request).err().map(Err)).collect();
        let (mut indices, mut results) = (Vec::new(), Vec::new());
        for (i, request) in requests.iter_mut().enumerate().filter(|(i, _)| outcomes[*i].is_none()) {
            if let Route::Result(node) = request.route {
                indices.push(i);
                results.push((node, std::mem::take(&mut request.body)));
            }
        }
        let of_results = indices.into_iter().zip(result::post_all(&self.context, results));
        let mut polls = Vec::new();
        for (i, request) in requests.iter().enumerate().filter(|(i, _)| outcomes[*i].is_none()) {
            if let Route::Cmd(node) = request.route {
                polls.push((i, (node, request)));
            }
        }
        let (indices, polls): (Vec<usize>, Vec<_>) = polls.into_iter().unzip();
        let of_polls = indices.into_iter().zip(cmd::poll_all(&self.context, &self.written, &polls));
        for (i, outcome) in of_results.chain(of_polls) {
            outcomes[i] = Some(outcome);
        }
        let reply = |(request, outcome): (&mut Request, Option<Outcome>)| {
            let outcome = outcome.unwrap_or_else(|| self.route(request));
            self.reply(request, outcome)
        };
        requests.iter_mut().zip(outcomes).map(reply).collect()
    }
}

impl Handlers {
    /// Refuses credentials that were revoked while the request was on its way here.
    fn recheck_revocation(&self, request: &Request) -> Result<(), Fault> {
        let Some(node) = request.node else { return Ok(()) };
        let good = self.context.authenticator.recheck_revocation(node, request.bearer.as_deref(), request.cert_dated());
        good.map_err(|refusal| refuse(refusal.status, refusal.reason))
    }

    fn reply(&self, request: &Request, outcome: Outcome) -> Reply {
        match outcome {
            Ok(mut reply) => {
                self.hint(request, &mut reply);
                reply
            }
            Err(Fault::Reply(reply)) => reply,
            Err(Fault::Redis(error)) => {
                ::log::debug!("{} answered 503: {error}", request.route.label());
                Reply::busy(503, format!("redis: {}", describe(&error)), RETRY)
            }
        }
    }
}

/// 401 for credentials that were revoked, which this controller has not heard of yet.
fn revoked(node: NodeId) -> Reply {
    Reply::error(401, format!("the credentials of node {node} were revoked: enrol it again"))
}

/// 413: the body is to be sent in parts.
fn too_many(reason: String) -> Fault {
    refuse(413, format!("{reason}: send fewer at once"))
}

/// Spends what a request of `node` costs, or refuses it with 429.
fn spend(context: &Context, node: NodeId, charges: &[Charge]) -> Result<(), Fault> {
    let spent = context.rate_limiter.take(node, charges, context.clock.now());
    spent.map_err(|exceeded| too_much(context, node, &exceeded))
}

/// Refuses with 429 what could not be spent now, whatever it turns out to be: a look before the work.
fn expect_room(context: &Context, node: NodeId, charges: &[Charge]) -> Result<(), Fault> {
    let spent = context.rate_limiter.check(node, charges, context.clock.now());
    spent.map_err(|exceeded| too_much(context, node, &exceeded))
}

fn too_much(context: &Context, node: NodeId, exceeded: &Exceeded) -> Fault {
    context.metrics.refused(exceeded.resource.label());
    Fault::Reply(Reply::busy(429, exceeded.sentence(node), exceeded.seconds))
}

/// Most bytes of a batch of records or series. A record of an agent has 1 MiB of text at the most, which JSON may make
/// six times as long; and each byte of a batch is held several times on its way.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// Refuses a batch that is too large with 413.
fn within_batch(body: &[u8]) -> Result<(), Fault> {
    if body.len() <= MAX_BATCH_BYTES {
        return Ok(());
    }
    Err(too_many(format!("a batch has at most {MAX_BATCH_BYTES} bytes, and this one {}", body.len())))
}

/// The bytes that an entry takes in Redis beside its text, at the least.
const ENTRY_BYTES: usize = 64;

/// Bytes that records, series and events write into Redis.
fn bytes(amount: usize) -> Charge {
    Charge::new(Resource::Bytes, amount).leaving(RESERVED_FOR_RESULTS)
}

/// The number of a batch in a body.
fn batch_number(body: &serde_json::Value) -> Result<u64, Fault> {
    body.get("batch")
        .and_then(serde_json::Value::as_u64)
        .filter(|number| *number < 1 << 53)
        .ok_or_else(|| bad("'batch' must be a whole number below 2^53"))
}

/// The answer to a batch that is none after `last`: it is dropped, for it was taken before. A node that
/// knows it to be new learns from `last` that its numbers are too low.
fn taken_before(last: u64) -> Reply {
    Reply::json(format!("{{\"last\":{last}}}"))
}
