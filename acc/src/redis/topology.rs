//! Which server of a cluster has which key. Pure.
//!
//! Owns: the slot of a key, the reading of `CLUSTER SLOTS` and of redirections. Does not own: asking
//! (`router`).

use super::known_servers::ServerAddr;
use redis::{Cmd, Value};

/// How many slots there are.
const SLOTS: u16 = 16_384;

/// Slots that are with one master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    first: u16,
    last: u16,
    master: ServerAddr,
}

/// The slots of each master.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    ranges: Vec<Range>,
}

impl Topology {
    /// Reads the answer to `CLUSTER SLOTS`, which `asked` gave; also all servers that stand in it.
    /// Nothing when it is no such answer, or names no slot.
    pub(crate) fn read(answer: &Value, asked: &ServerAddr) -> Option<(Topology, Vec<ServerAddr>)> {
        let Value::Array(list) = answer else { return None };
        let (mut ranges, mut addrs) = (Vec::new(), Vec::new());
        for entry in list {
            let Value::Array(entry) = entry else { return None };
            let [Value::Int(first), Value::Int(last), servers @ ..] = entry.as_slice() else { return None };
            let servers: Vec<ServerAddr> = servers.iter().filter_map(|server| server_of(server, asked)).collect();
            let (Some(master), Ok(first), Ok(last)) = (servers.first(), u16::try_from(*first), u16::try_from(*last))
            else {
                return None;
            };
            ranges.push(Range { first, last, master: master.clone() });
            addrs.extend(servers);
        }
        ranges.sort_unstable_by_key(|range| range.first);
        (!ranges.is_empty()).then_some((Topology { ranges }, addrs))
    }

    /// The master of a slot.
    pub(crate) fn master(&self, slot: u16) -> Option<&ServerAddr> {
        let after = self.ranges.partition_point(|range| range.first <= slot);
        self.ranges[..after].last().filter(|range| slot <= range.last).map(|range| &range.master)
    }

    /// Whether this is one of the masters.
    pub(crate) fn has(&self, addr: &ServerAddr) -> bool {
        self.ranges.iter().any(|range| range.master == *addr)
    }

    /// Any master.
    pub(crate) fn any(&self) -> Option<&ServerAddr> {
        self.ranges.first().map(|range| &range.master)
    }
}

/// `[host, port, …]`; a server that does not know its own name means the one that was asked.
fn server_of(server: &Value, asked: &ServerAddr) -> Option<ServerAddr> {
    let Value::Array(parts) = server else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        Value::Nil => "",
        _ => return None,
    };
    let host = if host.is_empty() || host == "?" { asked.0.as_str() } else { host };
    Some((host.to_owned(), u16::try_from(*port).ok()?))
}

/// Where `MOVED` and `ASK` send to: of `3999 127.0.0.1:6381` the part behind the slot.
pub(crate) fn redirection(details: &str, asked: &ServerAddr) -> Option<ServerAddr> {
    let (host, port) = details.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    let host = if host.is_empty() || host == "?" { asked.0.as_str() } else { host };
    Some((host.to_owned(), port.parse().ok()?))
}

/// The slot of a call's first key; nothing for a call without one.
pub(crate) fn slot_of(call: &Cmd) -> Option<u16> {
    let mut args = call.args_iter().map(|arg| match arg {
        redis::Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let name = args.next()?;
    let key = if name == b"EVALSHA" {
        // Its second word says how many keys there are.
        let mut rest = args.skip(1);
        if rest.next()? == b"0" { None } else { rest.next() }
    } else {
        args.next()
    };
    key.map(slot)
}

/// The keys of a call.
pub(crate) fn keys_of(call: &Cmd) -> Vec<String> {
    let words: Vec<String> = call
        .args_iter()
        .map(|arg| match arg {
            redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        })
        .take(32)
        .collect();
    match words.first().map(String::as_str) {
        Some("EVALSHA") => {
            let count: usize = words.get(2).and_then(|count| count.parse().ok()).unwrap_or(0);
            words.into_iter().skip(3).take(count).collect()
        }
        Some("BRPOPLPUSH") => words.into_iter().skip(1).take(2).collect(),
        _ => words.into_iter().skip(1).take(1).collect(),
    }
}

/// The slot of a key: CRC16 of it, or of what stands in its first braces.
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|b| *b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|b| *b == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC16 as the cluster's specification has it (XMODEM).
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        for (key, same) in [("{user1000}.following", "user1000"), ("foo{{bar}}zap", "{bar"), ("foo{bar}{zap}", "bar")] {
            assert_eq!(slot(key.as_bytes()), slot(same.as_bytes()), "{key}");
        }
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
    }

    #[test]
    fn calls_have_the_slot_of_their_key() {
        let mut script = redis::cmd("EVALSHA");
        script.arg("abc").arg(2).arg("foo").arg("x").arg("bar");
        assert_eq!(slot_of(&script), Some(12182));
        assert_eq!(slot_of(redis::cmd("GET").arg("foo")), Some(12182));
        assert_eq!(slot_of(redis::cmd("EVALSHA").arg("abc").arg(0)), None);
        // All others that are sent name their one key, or the first of several in one slot, right behind.
        for name in [
            "BRPOP BRPOPLPUSH RPOP LPUSH LTRIM LPOS LREM LRANGE LLEN GET SETEX INCR DEL EXISTS EXPIRE",
            "ZADD ZREM ZCARD ZSCORE ZRANGEBYSCORE HSET HSETNX HGET HMGET HGETALL HEXISTS HDEL HLEN HKEYS HINCRBY",
        ]
        .join(" ")
        .split(' ')
        {
            assert_eq!(slot_of(redis::cmd(name).arg("a{foo}").arg("b{foo}").arg(1)), Some(12182), "{name}");
        }
        for name in ["TIME", "PING"] {
            assert_eq!(slot_of(&redis::cmd(name)), None, "{name}");
        }
    }

    #[test]
    fn a_layout_is_read_whatever_servers_call_themselves() {
        let asked = ("here".to_owned(), 7);
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let server = |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id")]);
        let range = |first, last, servers: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], servers].concat())
        };
        let answer = Value::Array(vec![
            range(8192, 16383, vec![server(text(""), 2), server(text("r"), 3)]),
            range(0, 8190, vec![server(text("a"), 1), server(Value::Nil, 4), server(text("?"), 5)]),
        ]);
        let (layout, addrs) = Topology::read(&answer, &asked).unwrap();
        assert_eq!(layout.master(0).unwrap().0, "a");
        assert_eq!(layout.master(8190).unwrap().0, "a");
        assert_eq!(layout.master(8191), None);
        assert_eq!(layout.master(16383), Some(&("here".to_owned(), 2)));
        assert_eq!(addrs.len(), 5);
        // A server that does not say its name is the one that was asked.
        assert_eq!(addrs.iter().filter(|addr| addr.0 == "here").count(), 3);
        assert!(Topology::read(&Value::Array(vec![]), &asked).is_none());
        assert!(Topology::read(&Value::Nil, &asked).is_none());
        assert!(Topology::read(&Value::Array(vec![Value::Int(1)]), &asked).is_none());
    }

    #[test]
    fn redirections_are_read() {
        let asked = ("here".to_owned(), 7);
        assert_eq!(redirection("3999 127.0.0.1:6381", &asked), Some(("127.0.0.1".to_owned(), 6381)));
        assert_eq!(redirection("3999 ::1:6381", &asked), Some(("::1".to_owned(), 6381)));
        assert_eq!(redirection("3999 :6381", &asked), Some(("here".to_owned(), 6381)));
        for bad in ["", "3999", "3999 x", "3999 x:y"] {
            assert_eq!(redirection(bad, &asked), None, "{bad}");
        }
    }
}
