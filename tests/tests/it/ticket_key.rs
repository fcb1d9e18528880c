//! The ticket key of a controller that starts while Redis is away: no ticket is issued, and no node admitted, before the
//! key is agreed on. The threads run here one by one, so that none of them is quicker than another by chance.

use jsacc::api::Handlers;
use jsacc::api::context::Context;
use jsacc::api::server::Backend;
use jsacc::auth::tickets::{TicketKey, TicketKeys, Tickets};
use jsacc::config::Config;
use jsacc::config::redis_address::Target;
use jsacc::http::{Handler, Request};
use jsacc::proxy::{Handle, Limits, ProxyConfig};
use jsacc::route::Route;
use jsacc::work::Stop;
use jsacc::work::dispatcher::Dispatcher;
use jscommon::NodeId;
use jstests::{Client, LONG, Redis, wait_for};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

const NODE: NodeId = NodeId { gid: 1, nid: 10 };

/// A Redis with the ticket key of other controllers, and a controller with a new state directory that has not
/// spoken to it yet.
fn fresh(dir: &Path) -> (Redis, Client, Arc<Context>, Tickets) {
    let redis = Redis::start();
    let mut client = Client::new(&redis);
    let key = "0123456789abcdef".repeat(4);
    client.redis::<()>(&["SET", "jsacc:ticket_key", &key]);
    let target = Target::parse(&redis.url()).expect("the address of the private redis-server");
    let config = Config { redis: target, state_dir: dir.to_owned(), insecure_no_auth: true, ..Config::default() };
    let context = jsacc::app::daemon::prepare(config, false).expect("a controller that is ready to start");
    assert!(!context.tickets.is_agreed());
    let theirs = TicketKeys { current: TicketKey::parse(&key).expect("a key"), previous: None };
    (redis, client, Arc::new(context), Tickets::new(theirs))
}

#[test]
fn dispatcher_agrees_on_the_ticket_key_before_it_takes_a_command() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_redis, mut client, context, theirs) = fresh(dir.path());
    let id = client.send("ping", json!({}));
    let (seen, _seen) = crossbeam_channel::unbounded();
    let (fatal, _fatal) = crossbeam_channel::unbounded();
    let config = ProxyConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        tls: None,
        backend: Backend::at(dir.path().join("http")),
        limits: Limits::default(),
    };
    let proxy =
        Handle::start(config, context.authenticator.clone(), context.metrics.clone(), seen, fatal).expect("a proxy");
    let (_dead, dead) = crossbeam_channel::unbounded();
    let (end, stop) = crossbeam_channel::bounded(0);
    let dispatcher = Dispatcher::new(context.clone(), proxy.remote(), dead, Stop::new(stop));
    let thread = std::thread::spawn(move || dispatcher.run());
    let queued: String =
        wait_for("the command is queued", LONG, || client.redis::<Option<String>>(&["HGET", "jsacc:{1:10}:cmds", &id]));
    drop(end);
    thread.join().expect("the dispatcher's thread").expect("the dispatcher ends well");
    let (_, text) = queued.split_once(':').expect("the time and the command");
    let command: Value = serde_json::from_str(text).expect("the command");
    let ticket = command["ticket"].as_str().expect("a ticket");
    assert!(theirs.check(NODE, &id, ticket).is_ok(), "other controllers refuse the ticket {ticket}");
    assert!(context.tickets.is_agreed() && context.tickets.keys() == theirs.keys());
}

#[test]
fn health_admits_no_node_before_the_ticket_key_is_agreed_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_redis, mut client, context, theirs) = fresh(dir.path());
    let handlers = Handlers::new(context.clone());
    let health = || {
        let mut request = Request {
            route: Route::Health,
            node: None,
            peer: None,
            query: Default::default(),
            bearer: None,
            cert_issued: None,
            cert_undated: false,
            body: Vec::new(),
        };
        handlers.handle(&mut request).status
    };
    let key: String = client.redis(&["GETSET", "jsacc:ticket_key", "no key"]);
    assert_eq!((health(), context.authenticator.knows_revoked()), (503, false), "there is no key to agree on");
    client.redis::<()>(&["SET", "jsacc:ticket_key", &key]);
    assert_eq!((health(), context.authenticator.knows_revoked()), (200, true));
    assert!(context.tickets.is_agreed() && context.tickets.keys() == theirs.keys());
}

#[test]
fn revocations_that_were_read_earlier_do_not_replace_newer_ones() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_redis, _client, context, _) = fresh(dir.path());
    // The health check has read none; then the node is revoked, and the periodic sync is the first to say so.
    context.authenticator.set_revoked(HashMap::from([(NODE, 5)]));
    context.authenticator.set_first_revoked(HashMap::new());
    assert_eq!(context.authenticator.revoked_until(NODE), Some(5));
}
