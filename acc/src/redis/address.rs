//! Where Redis is, and what all connections of a controller have found out about its servers.

use super::connection;
use super::errors::describe;
use super::known_servers::{KnownServers, ServerAddr};
use super::scripts::Schema;
use crate::config::redis_address::{Kind, Target};
use jscommon::lock::lock;
use redis::RedisError;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// How to reach Redis.
#[derive(Clone, Debug)]
pub struct Address {
    /// Where it is.
    pub(crate) target: Target,
    /// PEM text of the CA that signed its certificate, when that is none of the public ones.
    pub(crate) ca: Option<Vec<u8>>,
    /// Of a cluster its servers, and the Sentinels otherwise.
    pub(crate) known_servers: Arc<KnownServers>,
    /// Of a cluster the servers that do not answer, for the log.
    pub(crate) silent: Arc<Silent>,
    /// It is a cluster, of which one server was named.
    pub(super) cluster: Arc<AtomicBool>,
    pub(crate) schema: &'static Schema,
}

/// Servers of a cluster that do not answer, so that each is told of once.
#[derive(Debug, Default)]
pub(crate) struct Silent(Mutex<HashSet<ServerAddr>>);

impl Silent {
    /// This one does not answer.
    pub(crate) fn failed(&self, addr: &ServerAddr, error: &RedisError) {
        if lock(&self.0).insert(addr.clone()) {
            let what = describe(error);
            log::error!("no answer from redis at {}:{}: {what}; what lies there waits", addr.0, addr.1);
        }
    }

    /// This one answers.
    pub(crate) fn answered(&self, addr: &ServerAddr) {
        if lock(&self.0).remove(addr) {
            log::info!("redis at {}:{} answers again", addr.0, addr.1);
        }
    }
}

impl Address {
    /// An address with the CA for its certificates; `schema` is what is kept there.
    pub fn new(target: Target, ca: Option<Vec<u8>>, schema: &'static Schema) -> Address {
        let named = target.servers.iter().filter_map(connection::server_addr).collect();
        let known_servers = Arc::new(KnownServers::new(named));
        Address { target, ca, known_servers, silent: Arc::default(), cluster: Arc::default(), schema }
    }

    /// Whether it is a cluster, as far as is known.
    pub(crate) fn is_cluster(&self) -> bool {
        self.target.kind == Kind::Cluster || self.cluster.load(Ordering::Relaxed)
    }
}
