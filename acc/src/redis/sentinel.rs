//! The master of a group that Sentinels watch.
//!
//! Owns: asking one Sentinel after the other, each with a time limit, and that what they name is a master.
//! Does not own: which Sentinels there are and how they are logged in to (`target`), when to ask again (`pool`).

use super::address::Address;
use super::batch::command;
use super::connection::{self, CONNECT_TIMEOUT};
use super::known_servers::ServerAddr;
use redis::{Connection, ErrorKind, FromRedisValue, RedisError, RedisResult, Value};
use std::time::{Duration, Instant};

/// Longest time in which a Sentinel answers; then the next one is asked.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest time for asking all of them and connecting to what they name, but for the last one that is asked.
const ALL: Duration = Duration::from_secs(6);

/// A connection to the master of `group`.
pub(crate) fn master(address: &Address, group: &str, response_timeout: Duration) -> RedisResult<Connection> {
    let mut why: Option<RedisError> = None;
    let mut tried: Vec<ServerAddr> = Vec::new();
    let begin = Instant::now();
    for sentinel in address.known_servers.addrs() {
        if begin.elapsed() >= ALL {
            break;
        }
        let master = match ask(address, &sentinel, group) {
            Ok(Some(master)) => master,
            Ok(None) => {
                let what = format!("{}:{} watches no group '{group}'", sentinel.0, sentinel.1);
                let unknown = RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "a sentinel says", what));
                why.get_or_insert(unknown);
                continue;
            }
            Err(e) => {
                log::debug!("the sentinel {}:{} does not answer: {e}", sentinel.0, sentinel.1);
                // The next try goes on behind it.
                address.known_servers.failed(&sentinel);
                why.get_or_insert(e);
                continue;
            }
        };
        if tried.contains(&master) {
            continue;
        }
        match connect(address, &master, response_timeout) {
            Ok(conn) => {
                address.known_servers.answered(&sentinel, []);
                return Ok(conn);
            }
            // The error of a master says more than that of a Sentinel.
            Err(e) => why = Some(e),
        }
        tried.push(master);
    }
    Err(why.unwrap_or_else(|| RedisError::from((ErrorKind::Io, "no sentinel is known"))))
}

/// The master as one Sentinel knows it; nothing when it does not know the group.
fn ask(address: &Address, sentinel: &ServerAddr, group: &str) -> RedisResult<Option<ServerAddr>> {
    let info = connection::with_host(&address.target.servers[0], sentinel);
    let info = info.set_redis_settings(address.target.sentinel.clone());
    let addr = info.addr().clone();
    let mut conn = connection::connect(info, address.ca.as_deref(), QUERY_TIMEOUT, QUERY_TIMEOUT)?;
    let question = command("SENTINEL", ("get-master-addr-by-name", group));
    let answer = connection::single(&mut conn, &question).map_err(|e| connection::words(&addr, e))?;
    Ok(Option::<ServerAddr>::from_redis_value(answer)?)
}

/// Connects to what was named, which may be a replica by now, or still.
fn connect(address: &Address, master: &ServerAddr, response_timeout: Duration) -> RedisResult<Connection> {
    let info = connection::with_host(&address.target.servers[0], master);
    let (mut conn, _) =
        connection::server(info, address.ca.as_deref(), CONNECT_TIMEOUT, response_timeout.min(CONNECT_TIMEOUT))?;
    let role = connection::single(&mut conn, &redis::cmd("ROLE"))?;
    let is_master = match &role {
        Value::Array(parts) => matches!(parts.first(), Some(Value::BulkString(role)) if role == b"master"),
        _ => false,
    };
    if !is_master {
        let what = format!("{}:{}", master.0, master.1);
        return Err(RedisError::from((ErrorKind::Io, "the sentinels name a server that is no master", what)));
    }
    conn.set_read_timeout(Some(response_timeout))?;
    conn.set_write_timeout(Some(response_timeout))?;
    Ok(conn)
}
