//! One connection to Redis, whatever kind of service it is, and batches of calls over it.
//!
//! Owns: connecting with time limits, running a batch in one round trip, loading each script before its
//! first use on a connection, and again when the server has forgotten it.
//! Does not own: when to connect again (`pool`), what is asked (the rooms beside it).

use super::target::{Kind, Target};
use redis::cluster::{ClusterClientBuilder, ClusterConnection, ClusterPipeline};
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{Client, Cmd, Connection, ConnectionLike, FromRedisValue, RedisResult, Script, TlsCertificates, Value};
use std::collections::HashSet;
use std::time::Duration;

/// Longest time for a connection to come up, login included.
const CONNECT: Duration = Duration::from_secs(3);

/// How to reach Redis.
#[derive(Clone, Debug)]
pub struct Address {
    /// Where it is.
    pub target: Target,
    /// PEM text of the CA that signed its certificate, when that is none of the public ones.
    pub ca: Option<Vec<u8>>,
}

/// An open connection.
pub struct Conn {
    inner: Inner,
    /// The hashes of the scripts that were loaded over it.
    loaded: HashSet<String>,
}

enum Inner {
    Single(Box<Connection>),
    Cluster(Box<ClusterConnection>),
}

impl Address {
    /// Opens a connection on which no answer is waited for longer than `patience`.
    ///
    /// With blocking reads `patience` must be well above their own wait: a read that is given up
    /// leaves its BRPOP behind, which then swallows a later push.
    pub fn connect(&self, patience: Duration) -> RedisResult<Conn> {
        let certs = self.ca.clone().map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca) });
        let inner = match &self.target.kind {
            Kind::Single => {
                let info = self.target.servers[0].clone();
                let client = match certs {
                    Some(certs) => Client::build_with_tls(info, certs)?,
                    None => Client::open(info)?,
                };
                single(&client, patience)?
            }
            Kind::Sentinel(group) => {
                let settings = self.target.servers[0].redis_settings().clone();
                let node = SentinelNodeConnectionInfo::default().set_redis_connection_info(settings);
                let sentinels: Vec<_> = self
                    .target
                    .servers
                    .iter()
                    .map(|server| server.clone().set_redis_settings(Default::default()))
                    .collect();
                let mut client =
                    SentinelClient::build(sentinels, group.as_str(), Some(node), SentinelServerType::Master)?;
                single(&client.get_client()?, patience)?
            }
            Kind::Cluster => {
                let mut builder = ClusterClientBuilder::new(self.target.servers.clone())
                    .connection_timeout(CONNECT)
                    .response_timeout(patience)
                    .retries(3);
                if let Some(certs) = certs {
                    builder = builder.certs(certs);
                }
                let conn = builder.build()?.get_connection()?;
                conn.set_read_timeout(Some(patience))?;
                conn.set_write_timeout(Some(patience))?;
                Inner::Cluster(Box::new(conn))
            }
        };
        Ok(Conn { inner, loaded: HashSet::new() })
    }
}

fn single(client: &Client, patience: Duration) -> RedisResult<Inner> {
    let conn = client.get_connection_with_timeout(CONNECT)?;
    conn.set_read_timeout(Some(patience))?;
    conn.set_write_timeout(Some(patience))?;
    Ok(Inner::Single(Box::new(conn)))
}

/// Calls that travel together, in order, in one round trip; each is atomic, all of them are not.
#[derive(Default)]
pub struct Batch<'a> {
    calls: Vec<Cmd>,
    scripts: Vec<&'a Script>,
}

impl<'a> Batch<'a> {
    /// None yet.
    pub fn new() -> Batch<'a> {
        Batch::default()
    }

    /// Adds a command.
    pub fn call(&mut self, cmd: Cmd) -> &mut Batch<'a> {
        self.calls.push(cmd);
        self
    }

    /// Adds a call of `script`; `fill` adds its arguments behind the keys.
    pub fn script(&mut self, script: &'a Script, keys: &[String], fill: impl FnOnce(&mut Cmd)) -> &mut Batch<'a> {
        if !self.scripts.iter().any(|known| known.get_hash() == script.get_hash()) {
            self.scripts.push(script);
        }
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(script.get_hash()).arg(keys.len());
        for key in keys {
            cmd.arg(key);
        }
        fill(&mut cmd);
        self.calls.push(cmd);
        self
    }

    /// Adds all calls of `other` behind its own.
    pub fn append(&mut self, other: Batch<'a>) -> &mut Batch<'a> {
        for script in other.scripts {
            if !self.scripts.iter().any(|known| known.get_hash() == script.get_hash()) {
                self.scripts.push(script);
            }
        }
        self.calls.extend(other.calls);
        self
    }

    /// How many calls are in it.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is no call in it.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

impl Conn {
    /// Runs one command.
    pub fn one<T: FromRedisValue>(&mut self, cmd: &Cmd) -> RedisResult<T> {
        let value = match &mut self.inner {
            Inner::Single(conn) => conn.req_command(cmd)?,
            Inner::Cluster(conn) => conn.req_command(cmd)?,
        };
        Ok(T::from_redis_value(value.extract_error()?)?)
    }

    /// Runs one script.
    pub fn script<T: FromRedisValue>(
        &mut self,
        script: &Script,
        keys: &[String],
        fill: impl FnOnce(&mut Cmd),
    ) -> RedisResult<T> {
        let mut batch = Batch::new();
        batch.script(script, keys, fill);
        let value = self.run(&batch)?.pop().unwrap_or(Value::Nil);
        Ok(T::from_redis_value(value)?)
    }

    /// Runs all calls and gives their answers, or the first error; the others have run all the same.
    ///
    /// A script that the server does not have would be made up for late: alone and behind calls that
    /// came after it, or on a cluster by sending all calls again. So it is there beforehand, and only a
    /// server that has forgotten it since (SCRIPT FLUSH, a failover) makes it come to that.
    pub fn run(&mut self, batch: &Batch<'_>) -> RedisResult<Vec<Value>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let missing: Vec<&Script> =
            batch.scripts.iter().filter(|script| !self.loaded.contains(script.get_hash())).copied().collect();
        self.load(&missing)?;
        let mut answers = match self.send(&batch.calls) {
            // A cluster's pipeline tells one error for all of its calls.
            Err(e) if matches!(self.inner, Inner::Cluster(_)) && e.to_string().to_uppercase().contains("NOSCRIPT") => {
                self.load(&batch.scripts)?;
                self.send(&batch.calls)?
            }
            answers => answers?,
        };
        let forgotten: Vec<usize> = (0..answers.len()).filter(|i| is_forgotten(&answers[*i])).collect();
        if !forgotten.is_empty() {
            self.load(&batch.scripts)?;
            let again: Vec<Cmd> = forgotten.iter().map(|i| batch.calls[*i].clone()).collect();
            for (i, answer) in forgotten.into_iter().zip(self.send(&again)?) {
                answers[i] = answer;
            }
        }
        answers.into_iter().map(Value::extract_error).collect()
    }

    /// Runs `first` and then `second`, and gives the answers to the second: who sees anything of that
    /// sees all of the first. One server does both in one round trip; the servers of a cluster do not
    /// wait for each other.
    pub fn run_in_turn<'a>(&mut self, mut first: Batch<'a>, second: Batch<'a>) -> RedisResult<Vec<Value>> {
        if matches!(self.inner, Inner::Cluster(_)) {
            self.run(&first)?;
            return self.run(&second);
        }
        let ahead = first.len();
        first.append(second);
        Ok(self.run(&first)?.split_off(ahead))
    }

    fn send(&mut self, calls: &[Cmd]) -> RedisResult<Vec<Value>> {
        match &mut self.inner {
            Inner::Single(conn) => {
                let packed: Vec<u8> = calls.iter().flat_map(Cmd::get_packed_command).collect();
                conn.req_packed_commands(&packed, 0, calls.len())
            }
            Inner::Cluster(conn) => {
                if let [call] = calls {
                    return Ok(vec![conn.req_command(call)?]);
                }
                let mut pipe = ClusterPipeline::with_capacity(calls.len());
                for call in calls {
                    pipe.add_command(call.clone());
                }
                pipe.query(conn)
            }
        }
    }

    fn load(&mut self, scripts: &[&Script]) -> RedisResult<()> {
        for script in scripts {
            match &mut self.inner {
                Inner::Single(conn) => {
                    script.load(conn.as_mut())?;
                }
                Inner::Cluster(conn) => {
                    // On all of its masters.
                    script.load(conn.as_mut())?;
                }
            }
            self.loaded.insert(script.get_hash().to_owned());
        }
        Ok(())
    }
}

fn is_forgotten(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(e) if e.code() == "NOSCRIPT")
}
