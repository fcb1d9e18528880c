//! The address of Redis: one server, a cluster, or a group that Sentinels watch. Pure.
//!
//! Owns: the reading of `host:port` and of URLs, and what may be logged of them (never a password).
//! Does not own: connecting (`redis`).

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use std::fmt;

/// Where Redis is.
#[derive(Clone, Debug)]
pub struct Target {
    /// The kind of service.
    pub(crate) kind: Kind,
    /// The servers that are named: the one, some of the cluster's, or the Sentinels.
    pub(crate) servers: Vec<ConnectionInfo>,
    /// How the Sentinels themselves are logged in to; the login of `servers` is that of the group.
    pub(crate) sentinel: RedisConnectionInfo,
}

/// The kinds of Redis service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One server.
    Single,
    /// A Redis Cluster, known by some of its servers.
    Cluster,
    /// The group of this name, found through Sentinels.
    Sentinel(String),
}

impl Target {
    /// Reads `host:port`, a URL, or several of either split by commas (a cluster);
    /// `sentinel://[user:pw@]host:port,…/group[/db][?sentinel_user=…&sentinel_password=…]` names Sentinels;
    /// with `sentinels://` they and the group are reached over TLS.
    pub fn parse(text: &str) -> Result<Target, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("no Redis address".into());
        }
        for (scheme, server) in [("sentinel://", "redis://"), ("sentinels://", "rediss://")] {
            if let Some(rest) = text.strip_prefix(scheme) {
                return sentinel(rest, server);
            }
        }
        let parts = split(text)?;
        let (first, others) = parts.split_first().ok_or("no Redis address")?;
        let mut servers = vec![server(first)?];
        for part in others {
            let mut info = server(part)?;
            if !part.contains("://") {
                // `redis://user:pw@a:1,b:2`: scheme, user and password hold for all that follow.
                let addr = match (servers[0].addr(), info.addr()) {
                    (ConnectionAddr::TcpTls { .. }, ConnectionAddr::Tcp(host, port)) => {
                        ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }
                    }
                    (_, addr) => addr.clone(),
                };
                info = info.set_addr(addr).set_redis_settings(servers[0].redis_settings().clone());
            }
            servers.push(info);
        }
        let kind = if servers.len() > 1 { Kind::Cluster } else { Kind::Single };
        if kind == Kind::Cluster && servers.iter().any(|s| matches!(s.addr(), ConnectionAddr::Unix(_))) {
            return Err("several Redis addresses are a cluster, and a cluster has no Unix sockets".into());
        }
        Ok(Target { kind, servers, sentinel: RedisConnectionInfo::default() })
    }

    /// Whether a password stands in it.
    pub(crate) fn has_password(&self) -> bool {
        let mut logins = self.servers.iter().map(ConnectionInfo::redis_settings).chain([&self.sentinel]);
        logins.any(|login| login.password().is_some())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Single => {}
            Kind::Cluster => f.write_str("cluster ")?,
            Kind::Sentinel(group) => write!(f, "group {group} of sentinels ")?,
        }
        for (i, server) in self.servers.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            match server.addr() {
                ConnectionAddr::Unix(path) => write!(f, "unix://{}", path.display())?,
                ConnectionAddr::TcpTls { host, port, .. } => write!(f, "rediss://{host}:{port}")?,
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

/// The error for an ambiguous address: a guess could show a part of the password as the name of a host.
const UNREADABLE: &str = "the Redis address cannot be read; write , / # ? @ in the password as %2C %2F %23 %3F %40";

/// The scheme, without `://`, that a text begins with.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.trim_start().split_once("://")?;
    (!scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_lowercase())).then_some(scheme)
}

/// Splits at the commas, but for those that can only be a password's.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut groups: Vec<String> = Vec::new();
    for piece in text.split(',') {
        match groups.last_mut() {
            Some(group) if scheme(piece).is_none() => {
                group.push(',');
                group.push_str(piece);
            }
            _ => groups.push(piece.trim().to_owned()),
        }
    }
    let mut out = Vec::new();
    for group in groups {
        let start = scheme(&group).map_or(0, |scheme| scheme.len() + "://".len());
        let (scheme, rest) = group.split_at(start);
        let mut parts: Vec<String> = rest.split(',').map(|part| part.trim().to_owned()).collect();
        if scheme == "unix://" {
            parts = vec![rest.to_owned()];
        } else if let Some((login, hosts)) = rest.rsplit_once('@').filter(|(login, _)| login.contains(',')) {
            let own = parts[0].rsplit_once('@').map(|(own, _)| format!("{own}@"));
            match own {
                // Each server with the same login.
                Some(own) if parts[1..].iter().all(|part| part.starts_with(&own) || is_host(part)) => {}
                None if !is_host(&parts[0]) => {
                    parts = hosts.split(',').map(|part| part.trim().to_owned()).collect();
                    parts[0] = format!("{login}@{}", parts[0]);
                }
                // Where the login ends is anybody's guess.
                _ => return Err(UNREADABLE.into()),
            }
        }
        parts[0].insert_str(0, scheme);
        out.extend(parts.into_iter().filter(|part| !part.is_empty()));
    }
    Ok(out)
}

/// Whether it may be a host, with or without a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, "0"),
    };
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .map_or_else(|| (!host.contains(':')).then_some(host), Some);
    host.is_some_and(|host| {
        !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':'))
    }) && !port.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
}

/// Whether more than one `@` stands before the path, and so nobody can tell where the login ends.
fn has_two_logins(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.matches('@').count() > 1
}

/// Whether an `@` stands behind the host, which comes of a password that was not escaped.
fn is_torn(url: &str) -> bool {
    let (url, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (url, query) = url.split_once('?').unwrap_or((url, ""));
    let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    let setting = |pair: &str| {
        pair.split_once('=').is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    path.contains('@') || fragment.contains('@') || (query.contains('@') && !query.split('&').all(setting))
}

fn server(text: &str) -> Result<ConnectionInfo, String> {
    let hint = || "give host:port, redis://user:pw@host:port/db, rediss://... or unix:///path".to_owned();
    let url = if text.contains("://") { text.to_owned() } else { format!("redis://{text}") };
    if has_two_logins(&url) || (!url.starts_with("unix:") && is_torn(&url)) {
        return Err(UNREADABLE.into());
    }
    let url = match url.split_once('?') {
        // The Python client's spelling of the same two settings.
        Some((path, query)) if url.starts_with("unix:") => {
            let query: Vec<String> = query
                .split('&')
                .map(|pair| pair.replacen("password=", "pass=", 1).replacen("username=", "user=", 1))
                // The query is read as a form, where + is a blank.
                .map(|pair| pair.replace('+', "%2B"))
                .collect();
            format!("{path}?{}", query.join("&"))
        }
        _ => url,
    };
    // The library's error may quote the URL, and with it a password: it is not passed on.
    let info = url.as_str().into_connection_info().map_err(|_| format!("this is no Redis address: {}", hint()))?;
    match info.addr() {
        ConnectionAddr::Tcp(_, 0) | ConnectionAddr::TcpTls { port: 0, .. } => {
            Err(format!("a port of Redis is a number from 1 to 65535: {}", hint()))
        }
        _ => Ok(quiet(info)),
    }
}

/// Without the greeting that names the library: a user with few rights may not send it.
fn quiet(info: ConnectionInfo) -> ConnectionInfo {
    let redis = info.redis_settings().clone().set_skip_set_lib_name();
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    info.set_redis_settings(redis).set_tcp_settings(tcp)
}

/// User and password, as they stand in a URL before its `@`, added to `settings`.
fn logged_in(mut settings: RedisConnectionInfo, login: &str) -> Result<RedisConnectionInfo, String> {
    // Read by the URL parser, for its percent decoding.
    let parsed = server(&format!("redis://{login}@localhost"))?;
    if let Some(user) = parsed.redis_settings().username() {
        settings = settings.set_username(user);
    }
    if let Some(password) = parsed.redis_settings().password() {
        settings = settings.set_password(password);
    }
    Ok(settings)
}

/// The login of the Sentinels themselves, from what stands behind the `?`.
fn sentinel_login(query: &str) -> Result<RedisConnectionInfo, String> {
    let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
    let (mut user, mut password) = ("", "");
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sentinel_user", value)) => user = value,
            Some(("sentinel_password", value)) => password = value,
            _ => {
                return Err("behind its ? a sentinel address takes sentinel_user=… and sentinel_password=…, \
                    with & in them as %26"
                    .into());
            }
        }
    }
    if user.is_empty() && password.is_empty() {
        return Ok(settings);
    }
    if [user, password].iter().any(|text| text.contains(['/', '#', '?', '@'])) || user.contains(':') {
        return Err(UNREADABLE.into());
    }
    logged_in(settings, &format!("{user}:{password}"))
}

fn sentinel(rest: &str, scheme: &str) -> Result<Target, String> {
    let (login, rest) = match rest.rsplit_once('@') {
        Some((login, rest)) => (Some(login), rest),
        None => (None, rest),
    };
    if login.is_some_and(|login| login.contains(['/', '?', '#', '@'])) {
        return Err(UNREADABLE.into());
    }
    let (hosts, path) =
        rest.split_once('/').ok_or("a sentinel address names its group: sentinel://host:26379,host:26379/mymaster")?;
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let sentinel = sentinel_login(query)?;
    let (group, db) = path.split_once('/').unwrap_or((path, ""));
    if group.is_empty() {
        return Err("a sentinel address names its group: sentinel://host:26379,host:26379/mymaster".into());
    }
    let db = if db.is_empty() { 0 } else { db.parse().map_err(|_| format!("'{db}' is no database number"))? };
    let mut settings = RedisConnectionInfo::default().set_db(db).set_skip_set_lib_name();
    if let Some(login) = login {
        settings = logged_in(settings, login)?;
    }
    let mut servers = Vec::new();
    for host in hosts.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        let bare = host.ends_with(']') || !host.contains(':');
        let host = if bare { format!("{scheme}{host}:26379") } else { format!("{scheme}{host}") };
        servers.push(server(&host)?.set_redis_settings(settings.clone()));
    }
    if servers.is_empty() {
        return Err("a sentinel address names at least one host".into());
    }
    Ok(Target { kind: Kind::Sentinel(group.to_owned()), servers, sentinel })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, kind: Kind, shown: &str) -> Target {
        let target = Target::parse(text).unwrap();
        assert_eq!((&target.kind, target.to_string().as_str()), (&kind, shown), "{text}");
        target
    }

    #[test]
    fn a_port_out_of_range_is_no_address() {
        for port in ["0", "65536", "40000000", "-1", "x"] {
            for text in [
                "h:P",
                "redis://h:P",
                "rediss://:pw@[::1]:P/1",
                "a:1,b:P",
                "sentinel://s:P/main",
                "sentinels://s,t:P/main",
            ] {
                let text = text.replace('P', port);
                assert!(Target::parse(&text).is_err(), "{text}");
            }
        }
        let unix = Target::parse("unix:///r.sock?password=a+b%2Bc").unwrap();
        assert_eq!(unix.servers[0].redis_settings().password(), Some("a+b+c"));
    }

    #[test]
    fn every_form_of_an_address_is_read() {
        check("localhost:6379", Kind::Single, "localhost:6379");
        check("db.example", Kind::Single, "db.example:6379");
        check("rediss://u:p@h:1/2", Kind::Single, "rediss://h:1");
        check("[::1]:7", Kind::Single, "::1:7");
        let one = check("redis://me:se%3Acret@h:1/3", Kind::Single, "h:1");
        let settings = one.servers[0].redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("me"), Some("se:cret"), 3));
        let unix = check("unix:///run/r.sock?db=1&password=x&username=y", Kind::Single, "unix:///run/r.sock");
        let settings = unix.servers[0].redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("y"), Some("x"), 1));
        let cluster = check("rediss://:pw@a:1,b:2", Kind::Cluster, "cluster rediss://a:1, rediss://b:2");
        assert_eq!(cluster.servers[1].redis_settings().password(), Some("pw"));
        let comma = check("redis://:ge,heim@h:1", Kind::Single, "h:1");
        assert_eq!(comma.servers[0].redis_settings().password(), Some("ge,heim"));
        let commas = check("redis://me:p,w@a:1,b:2", Kind::Cluster, "cluster a:1, b:2");
        assert_eq!(commas.servers[1].redis_settings().password(), Some("p,w"));
        check("redis://me:pw@a:1,me:pw@b:2", Kind::Cluster, "cluster a:1, b:2");
        check("redis://a:1, redis://:p,w@b:2", Kind::Cluster, "cluster a:1, b:2");
        check("redis://:pw@[::1]:1,[::2]:2", Kind::Cluster, "cluster ::1:1, ::2:2");
        let unix = check("unix:///r.sock?password=ge,heim", Kind::Single, "unix:///r.sock");
        assert_eq!(unix.servers[0].redis_settings().password(), Some("ge,heim"));
        let group = check(
            "sentinel://:pw@s1,s2:5/main/4",
            Kind::Sentinel("main".into()),
            "group main of sentinels s1:26379, s2:5",
        );
        assert_eq!(group.servers[0].redis_settings().password(), Some("pw"));
        assert_eq!(group.servers[0].redis_settings().db(), 4);
        assert!(group.sentinel.password().is_none());
        let group = check(
            "sentinels://me:pw@s1,[::1]/main?sentinel_user=you&sentinel_password=g%26h",
            Kind::Sentinel("main".into()),
            "group main of sentinels rediss://s1:26379, rediss://::1:26379",
        );
        assert_eq!(group.servers[1].redis_settings().password(), Some("pw"));
        assert_eq!((group.sentinel.username(), group.sentinel.password()), (Some("you"), Some("g&h")));
        let group = check(
            "sentinel://s1/main/2?sentinel_password=x",
            Kind::Sentinel("main".into()),
            "group main of sentinels s1:26379",
        );
        assert!(
            group.has_password() && group.sentinel.username().is_none() && group.servers[0].redis_settings().db() == 2
        );
    }

    #[test]
    fn bad_addresses_are_refused_without_their_passwords() {
        for bad in [
            "",
            ",",
            "http://x",
            "redis://",
            "host:port",
            "redis://:geheim@h:x",
            "sentinel://h",
            "a:1,unix:///x",
            "sentinel://h/g?geheim",
            "sentinel://h/g?sentinel_password=a/geheim",
            "sentinel://h/g?sentinel_password=a@geheim",
            "sentinel://h/g?sentinel_password=a&geheim",
            "sentinels://h",
        ] {
            let error = Target::parse(bad).unwrap_err();
            assert!(!error.contains("geheim"), "{error}");
            assert!(!error.is_empty());
        }
    }

    #[test]
    fn unescaped_at_in_a_password_is_refused_with_advice() {
        for text in [
            "redis://user:ge@heim@localhost",
            "rediss://:ge@heim@h:1/2",
            "user:ge@heim@h:1",
            "redis://me:ge@heim@a:1,b:2",
            "redis://me:ge@heim@a:1,me:ge@heim@b:2",
            "unix://me:ge@heim@/run/r.sock",
            "sentinel://me:ge@heim@s1,s2/main",
        ] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains("%40") && !error.contains("heim"), "{text}: {error}");
        }
        let escaped = Target::parse("redis://user:ge%40heim@localhost").unwrap();
        assert_eq!(escaped.servers[0].redis_settings().password(), Some("ge@heim"));
    }

    #[test]
    fn no_part_of_a_password_is_shown() {
        for scheme in ["redis://", "rediss://", "", "unix://", "sentinel://", "sentinels://"] {
            for mark in [",", "/", "#", "?", "@", "@,", "/@", "#,", ":", "[", "]"] {
                for (one, two) in [(":qge", "qhe"), (":4711", "8150"), ("wwu:qge", "qhe"), ("wwu:4711", "8150")] {
                    for host in ["host:6379", "host", "host,h2", "host,h2:1/g", "host:x", "host:1,h2:x"] {
                        let text = format!("{scheme}{one}{mark}{two}@{host}");
                        let shown = Target::parse(&text).map_or_else(|error| error, |target| target.to_string());
                        for part in ["qge", "qhe", "4711", "8150", "wwu"] {
                            assert!(!shown.contains(part), "{text}: {shown}");
                        }
                    }
                }
            }
        }
    }
}
