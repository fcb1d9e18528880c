//! Grants: the claims of a node that count for targets.
//!
//! Owns: `jsacc:grant:<gid>:<nid>`, what is known of a node's enrolment (in its slot), and the fields `roles`,
//! `label.*`, `hostname` and `claims` of `jsacc:agent:*`.
//! Does not own: the reading of claims, and when they are compared with the grants (`claims`).
//!
//! **None of these keys has an end**: a node that was away for a year finds its grants, and nobody can wait for them
//! to go. There are as many as nodes were ever enrolled.

use crate::model::queue::KEEP_NODE;
use crate::model::{keys, nodes, scripts};
use crate::redis::{Batch, Conn, command};
use jscommon::NodeId;
use redis::{FromRedisValue, RedisResult, Value};
use serde_json::json;

/// Milliseconds for which claims beyond a node's grants are not told again, whatever it claims meanwhile.
const EVENT_INTERVAL_MS: u64 = 60_000;

/// The claims of one message of a node; nothing for a kind that it does not speak of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Roles.
    pub(crate) roles: Option<Vec<String>>,
    /// Labels, as `name=value`.
    pub(crate) labels: Option<Vec<String>>,
    /// The host name.
    pub(crate) host: Option<String>,
}

/// The granted claims of a node; `None` for a kind that the node has not claimed yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Standing {
    /// Roles.
    pub(crate) roles: Option<Vec<String>>,
    /// Labels, as `name=value`.
    pub(crate) labels: Option<Vec<String>>,
    /// The host name, when it is granted.
    pub(crate) host: Option<Option<String>>,
    /// Claims beyond the grants, as `role:web`, `label:name=value`, `host:name`.
    pub(crate) beyond: Vec<String>,
}

/// The comparison of claims with grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// Nothing is known of the node's claims.
    Unknown,
    /// The credentials that it came with were revoked.
    Revoked,
    /// The granted claims, and whether an event about the others is due.
    Known(Standing, bool),
}

impl Standing {
    /// All that is claimed, where nodes need no credentials and nothing is granted to anybody.
    pub(crate) fn all_of(claims: &Claims) -> Standing {
        Standing {
            roles: claims.roles.clone(),
            labels: claims.labels.clone(),
            host: claims.host.clone().map(Some),
            beyond: Vec::new(),
        }
    }
}

fn both(node: NodeId) -> [String; 2] {
    [keys::grant(node), keys::enrolled(node)]
}

/// The value of a grant in Redis.
fn grant(by: &str, at: u64) -> String {
    json!({"by": by, "at": at}).to_string()
}

/// Adds the comparison of what `node` claims at `now` (ms), with credentials that were issued at `issued` (ms), with its
/// grants; its first claims since it was enrolled are granted.
pub(crate) fn claim(batch: &mut Batch, node: NodeId, now: u64, issued: u64, claims: &Claims) {
    let host = claims.host.as_ref().map(std::slice::from_ref);
    let kinds = [("role", claims.roles.as_deref()), ("label", claims.labels.as_deref()), ("host", host)];
    let claimed = kinds.into_iter().filter_map(|(kind, claims)| Some((kind, claims?.len(), claims?)));
    let args = (now, EVENT_INTERVAL_MS, issued, grant("first start", now), claimed.collect::<Vec<_>>());
    batch.script(&scripts::CLAIMS, &both(node), args);
}

/// Adds the comparison of what `node` has claimed before with what is granted at `now` (ms).
pub(crate) fn compare(batch: &mut Batch, node: NodeId, now: u64) {
    batch.script(&scripts::CLAIMS, &both(node), (now, EVENT_INTERVAL_MS));
}

/// Reads the answer to `claim` and `compare`.
pub(crate) fn compared(answer: Value) -> RedisResult<Compared> {
    let mut parts = Vec::<Value>::from_redis_value(answer)?.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    match String::from_redis_value(next())?.as_str() {
        "revoked" => return Ok(Compared::Revoked),
        "unknown" => return Ok(Compared::Unknown),
        _ => {}
    }
    let kinds: Vec<String> = FromRedisValue::from_redis_value(next())?;
    let granted: Vec<String> = FromRedisValue::from_redis_value(next())?;
    let beyond: Vec<String> = FromRedisValue::from_redis_value(next())?;
    let tell = i64::from_redis_value(next())? == 1;
    let of = |kind: &str| -> Option<Vec<String>> {
        let claim = |field: &String| field.strip_prefix(kind)?.strip_prefix(':').map(str::to_owned);
        kinds.iter().any(|known| known == kind).then(|| granted.iter().filter_map(claim).collect())
    };
    let host = of("host").map(|hosts| hosts.into_iter().next());
    Ok(Compared::Known(Standing { roles: of("role"), labels: of("label"), host, beyond }, tell))
}

/// Stores the granted claims, for clients and for the choice of targets.
pub(crate) fn show(batch: &mut Batch, node: NodeId, standing: &Standing) {
    let roles = standing.roles.as_ref().map(|roles| json!(roles).to_string());
    let beyond = if standing.beyond.is_empty() { String::new() } else { json!(standing.beyond).to_string() };
    let host = standing.host.iter().flatten().next().map_or("", String::as_str);
    let labels: Vec<(&str, &str)> =
        standing.labels.iter().flatten().filter_map(|label| label.split_once('=')).collect();
    let (has_host, has_labels) = (standing.host.is_some(), standing.labels.is_some());
    let args = (KEEP_NODE, beyond, roles.as_deref().unwrap_or_default(), has_host, host, has_labels, labels);
    batch.script(&scripts::GRANTED, &[keys::agent(node)], args);
    if let Some(roles) = &roles {
        nodes::set_roles(batch, node, roles);
    }
}

/// New credentials of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Enrolling<'a> {
    /// When they are issued, in milliseconds since 1970.
    pub(crate) issued: u64,
    /// Which use of which enrolment token brings them; empty for `jsacc enroll`.
    pub(crate) token_use: &'a str,
    /// They take the place of others that hold.
    pub(crate) replace: bool,
    /// Further grants: `role:web`, `label:name=value`.
    pub(crate) named: &'a [String],
    /// The controller that grants it.
    pub(crate) by: &'a str,
}

/// Writes down that `node` gets credentials; false, and nothing is written, where it has some that hold and they are
/// not to be replaced. Called again for the same use, it is written once more.
pub(crate) fn enrolled(conn: &mut Conn, node: NodeId, new: &Enrolling<'_>) -> RedisResult<bool> {
    let args = (new.issued, new.token_use, new.replace, grant(new.by, new.issued), new.named);
    conn.script(&scripts::ENROLLED, &both(node), args)
}

/// Forgets what `node` was granted, and that it was enrolled; what it held until `until` (ms) claims nothing any more.
pub(crate) fn revoke(conn: &mut Conn, node: NodeId, until: u64) -> RedisResult<()> {
    conn.script(&scripts::UNENROLLED, &both(node), until)
}

/// The holder of a node's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Nobody: it was never enrolled, or what it had was revoked.
    Nobody,
    /// The one that asks with this use of an enrolment token.
    ThisUse,
    /// Somebody.
    Other,
}

/// Tells who holds the credentials of `node`, seen by `token_use` of an enrolment token, and since when (ms): for nobody
/// that is when it was revoked, or 0. A node of which no enrolment is known was enrolled by an earlier version where it
/// was seen since its last revocation.
pub(crate) fn holder(conn: &mut Conn, node: NodeId, token_use: &str) -> RedisResult<(Holder, u64)> {
    let (issued, brought, stripped): (Option<u64>, Option<String>, Option<u64>) =
        conn.one(&command("HMGET", (keys::enrolled(node), "issued", "use", "revoked")))?;
    let until = nodes::revoked_until(conn, node)?;
    let holds = |since: u64| until.is_none_or(|until| until < since);
    match issued {
        Some(issued) if holds(issued) => {
            let holder = if brought.as_deref() == Some(token_use) { Holder::ThisUse } else { Holder::Other };
            return Ok((holder, issued));
        }
        None if stripped.is_none() && nodes::last_seen(conn, node)?.is_some_and(holds) => {
            return Ok((Holder::Other, until.unwrap_or(0)));
        }
        _ => {}
    }
    Ok((Holder::Nobody, until.or(stripped).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_kind() {
        let text = |text: &str| Value::BulkString(text.into());
        let list = |items: &[&str]| Value::Array(items.iter().map(|item| text(item)).collect());
        assert_eq!(compared(list(&["revoked"])), Ok(Compared::Revoked));
        assert_eq!(compared(list(&["unknown"])), Ok(Compared::Unknown));
        let answer = vec![
            text("known"),
            list(&["role", "host"]),
            list(&["role:web", "role:a:b", "host:h"]),
            list(&["role:vault"]),
            Value::Int(1),
        ];
        let standing = Standing {
            roles: Some(vec!["web".into(), "a:b".into()]),
            labels: None,
            host: Some(Some("h".into())),
            beyond: vec!["role:vault".into()],
        };
        assert_eq!(compared(Value::Array(answer)), Ok(Compared::Known(standing, true)));
        let none = vec![text("known"), list(&["role", "label", "host"]), list(&[]), list(&["host:x"]), Value::Int(0)];
        let standing = Standing {
            roles: Some(Vec::new()),
            labels: Some(Vec::new()),
            host: Some(None),
            beyond: vec!["host:x".into()],
        };
        assert_eq!(compared(Value::Array(none)), Ok(Compared::Known(standing, false)));
    }
}
