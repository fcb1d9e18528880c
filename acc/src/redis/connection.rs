//! One connection to one server, and calls over it that travel together.
//!
//! Owns: time limits, the login, the oldest version that will do, what a server says when it takes no connection, and
//! that a server which falls silent is waited for once. Does not own: which server it is (`router`,
//! `sentinel`), or what the answers mean.
//!
//! **After an error of these functions the connection is of no more use**: an answer that still comes would be
//! taken for that to something else. An error that a server answers is no such error, but a value.

use super::errors::{INTERRUPTED, TOO_OLD};
use redis::{
    Arg, Client, Cmd, Connection, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, RedisConnectionInfo,
    RedisError, RedisResult, TlsCertificates, Value,
};
use std::error::Error;
use std::io::{self, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Longest time for a connection to come up, login included.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time in which a server that takes no connection says why.
const REFUSAL_READ_TIMEOUT: Duration = Duration::from_millis(500);
/// The oldest version of Redis that has every command which is used: `LPOS` is of 6.0.6.
pub(crate) const MIN_VERSION: [u32; 3] = [6, 0, 6];

/// Bytes of an argument that goes out as it is, and of smaller ones that go out together.
const MAX_PACKED_BYTES: usize = 64 << 10;

/// How a server says that it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By itself or in a group, or it may not be asked.
    Alone,
    /// As one of a cluster.
    Cluster,
    /// As a Sentinel, which keeps no data.
    Sentinel,
}

/// Opens a connection to a server of Redis that is recent enough, and asks how it works.
/// `limit`, `ca` and `response_timeout` are as for `connect`.
pub(crate) fn server(
    info: ConnectionInfo,
    ca: Option<&[u8]>,
    limit: Duration,
    response_timeout: Duration,
) -> RedisResult<(Connection, Mode)> {
    let addr = info.addr().clone();
    let mut conn = connect(info, ca, limit, limit)?;
    let mode = greet(&mut conn).map_err(|e| words(&addr, e))?;
    conn.set_read_timeout(Some(response_timeout))?;
    conn.set_write_timeout(Some(response_timeout))?;
    Ok((conn, mode))
}

/// Opens a connection on which no answer is waited for longer than `response_timeout`; it comes up within `limit`.
/// `ca` is the PEM text of the CA that signed the server's certificate, when that is none of the public ones.
pub(crate) fn connect(
    info: ConnectionInfo,
    ca: Option<&[u8]>,
    limit: Duration,
    response_timeout: Duration,
) -> RedisResult<Connection> {
    // The library's own login keeps nothing of what the server says about it.
    let (addr, login) = (info.addr().clone(), info.redis_settings().clone());
    let bare = info.set_redis_settings(RedisConnectionInfo::default().set_skip_set_lib_name());
    let client = match ca {
        Some(ca) => Client::build_with_tls(bare, TlsCertificates { client_tls: None, root_cert: Some(ca.to_vec()) })?,
        None => Client::open(bare)?,
    };
    let open = || {
        let mut conn = client.get_connection_with_timeout(limit)?;
        conn.set_read_timeout(Some(limit))?;
        conn.set_write_timeout(Some(limit))?;
        log_in(&mut conn, &login)?;
        Ok(conn)
    };
    let conn = open().map_err(|e| words(&addr, e))?;
    conn.set_read_timeout(Some(response_timeout))?;
    conn.set_write_timeout(Some(response_timeout))?;
    Ok(conn)
}

/// Logs in and chooses the database, where the address names them.
fn log_in(conn: &mut Connection, login: &RedisConnectionInfo) -> RedisResult<()> {
    let mut calls: Vec<Cmd> = Vec::new();
    if let Some(password) = login.password() {
        let mut cmd = redis::cmd("AUTH");
        if let Some(user) = login.username() {
            cmd.arg(user);
        }
        cmd.arg(password);
        calls.push(cmd);
    }
    if login.db() != 0 {
        let mut cmd = redis::cmd("SELECT");
        cmd.arg(login.db());
        calls.push(cmd);
    }
    let mut packed = Vec::new();
    calls.iter().for_each(|call| call.write_packed_command(&mut packed));
    if !packed.is_empty() {
        send(conn, &packed)?;
    }
    // One by one: a server that refuses the first may say nothing about the others.
    calls.iter().try_for_each(|_| receive(conn, 1)?.into_iter().try_for_each(|answer| answer.extract_error().map(drop)))
}

/// Asks for the version and for how the server works. A server that does not let this user ask is taken as it is.
fn greet(conn: &mut Connection) -> RedisResult<Mode> {
    let answer = single(conn, &redis::cmd("HELLO"));
    let (version, mode) = match answer {
        Ok(told) => {
            let told: Vec<Value> = FromRedisValue::from_redis_value(told)?;
            let field = |name: &str| {
                let at = told.chunks(2).find(|pair| String::from_redis_value_ref(&pair[0]).is_ok_and(|k| k == name))?;
                String::from_redis_value_ref(at.get(1)?).ok()
            };
            (field("version"), field("mode"))
        }
        Err(e) if e.code() == Some("NOPERM") => (None, None),
        // Servers before 6.0 do not know it, and neither do some that are compatible.
        Err(e) if e.detail().is_some_and(|detail| detail.to_lowercase().contains("unknown command")) => {
            let told: Option<String> = match single(conn, redis::cmd("INFO").arg("server")) {
                Ok(told) => FromRedisValue::from_redis_value(told).ok(),
                Err(e) if e.code().is_some() => None,
                Err(e) => return Err(e),
            };
            let field = |name: &str| {
                let line = told.as_deref()?.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.trim().to_owned())
            };
            (field("redis_version:"), field("redis_mode:"))
        }
        Err(e) => return Err(e),
    };
    if let Some(version) = version.filter(|version| is_too_old(version)) {
        let [major, minor, patch] = MIN_VERSION;
        let what = format!("it is version {version}, and at least {major}.{minor}.{patch} is needed: upgrade it");
        return Err(redis::make_extension_error(TOO_OLD.into(), Some(what)));
    }
    Ok(match mode.as_deref() {
        Some("cluster") => Mode::Cluster,
        Some("sentinel") => Mode::Sentinel,
        _ => Mode::Alone,
    })
}

/// Whether a version is before `MIN_VERSION`; one that cannot be read is not.
fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>());
    let Some(Ok(major)) = parts.next() else { return false };
    let mut next = || parts.next().and_then(Result::ok).unwrap_or(0);
    [major, next(), next()] < MIN_VERSION
}

/// The words of a server that takes no connection, instead of `error`, when it has any. It says them unasked
/// and closes; who has sent something by then may find the connection reset, and the words gone.
pub(crate) fn words(addr: &ConnectionAddr, error: RedisError) -> RedisError {
    if error.code().is_some() || error.is_timeout() || error.is_connection_refusal() {
        return error;
    }
    let mut said = Vec::new();
    let heard = match addr {
        ConnectionAddr::Tcp(host, port) => (host.as_str(), *port)
            .to_socket_addrs()
            .and_then(|mut addrs| addrs.next().ok_or_else(|| std::io::ErrorKind::NotFound.into()))
            .and_then(|addr| TcpStream::connect_timeout(&addr, REFUSAL_READ_TIMEOUT))
            .and_then(|stream| stream.set_read_timeout(Some(REFUSAL_READ_TIMEOUT)).map(|()| stream))
            .map(|stream| stream.take(4096).read_to_end(&mut said)),
        ConnectionAddr::Unix(path) => UnixStream::connect(path)
            .and_then(|stream| stream.set_read_timeout(Some(REFUSAL_READ_TIMEOUT)).map(|()| stream))
            .map(|stream| stream.take(4096).read_to_end(&mut said)),
        // Before the handshake a server says nothing that could be read.
        _ => return error,
    };
    let line = heard.is_ok().then_some(said).filter(|said| said.starts_with(b"-"));
    let value = line.and_then(|line| redis::parse_redis_value(&line).ok());
    value.and_then(|value| value.extract_error().err()).unwrap_or(error)
}

/// Runs one call.
pub(crate) fn single(conn: &mut Connection, call: &Cmd) -> RedisResult<Value> {
    send(conn, &call.get_packed_command())?;
    receive(conn, 1)?.pop().unwrap_or(Value::Nil).extract_error()
}

/// `model` with another host and port; login and TLS stay.
pub(crate) fn with_host(model: &ConnectionInfo, (host, port): &(String, u16)) -> ConnectionInfo {
    let addr = match model.addr() {
        ConnectionAddr::TcpTls { insecure, .. } => {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: *insecure, tls_params: None }
        }
        _ => ConnectionAddr::Tcp(host.clone(), *port),
    };
    model.clone().set_addr(addr)
}

/// Host and port of an address; a socket of the file system has none.
pub(crate) fn server_addr(info: &ConnectionInfo) -> Option<(String, u16)> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host.clone(), *port)),
        _ => None,
    }
}

/// Sends what is packed already.
fn send(conn: &mut Connection, packed: &[u8]) -> RedisResult<()> {
    if packed.is_empty() { Ok(()) } else { conn.send_packed_command(packed) }
}

/// Calls on their way to a server: small ones go together, and no large text is copied once more.
pub(crate) struct Sending<'a> {
    conn: &'a mut Connection,
    packed: Vec<u8>,
}

impl<'a> Sending<'a> {
    /// Begins to send, what is packed already first.
    pub(crate) fn new(conn: &'a mut Connection, packed: &[u8]) -> Sending<'a> {
        Sending { conn, packed: packed.to_vec() }
    }

    /// Adds bytes that are packed already.
    pub(crate) fn packed(&mut self, bytes: &[u8]) {
        self.packed.extend_from_slice(bytes);
    }

    /// Adds a call; a cursor in it is sent as 0. It goes out when enough came together, or with `end`.
    pub(crate) fn call(&mut self, call: &Cmd) -> RedisResult<()> {
        let arguments = call.args_iter();
        put_length(&mut self.packed, b'*', arguments.len());
        for argument in arguments {
            let bytes = if let Arg::Simple(bytes) = argument { bytes } else { b"0" };
            put_length(&mut self.packed, b'$', bytes.len());
            if bytes.len() >= MAX_PACKED_BYTES {
                self.flush()?;
                send(self.conn, bytes)?;
            } else {
                self.packed.extend_from_slice(bytes);
            }
            self.packed.extend_from_slice(b"\r\n");
            if self.packed.len() >= MAX_PACKED_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Sends the rest.
    pub(crate) fn end(mut self) -> RedisResult<()> {
        self.flush()
    }

    fn flush(&mut self) -> RedisResult<()> {
        send(self.conn, &self.packed)?;
        self.packed.clear();
        Ok(())
    }
}

/// Adds the line that begins an array (`*`) or a string (`$`) of RESP. It is written for each argument of each call,
/// and `write!` would take a fifth of the time of sending.
fn put_length(packed: &mut Vec<u8>, kind: u8, mut length: usize) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (length % 10) as u8;
        length /= 10;
        if length == 0 {
            break;
        }
    }
    packed.push(kind);
    packed.extend_from_slice(&digits[first..]);
    packed.extend_from_slice(b"\r\n");
}

/// Reads `count` answers. A silent server is given up at the first of them: the library goes on to wait for
/// each of the others as long.
pub(crate) fn receive(conn: &mut Connection, count: usize) -> RedisResult<Vec<Value>> {
    (0..count).map(|_| receive_one(conn)).collect()
}

/// Reads one answer.
pub(crate) fn receive_one(conn: &mut Connection) -> RedisResult<Value> {
    conn.recv_response().map_err(unreadable)
}

/// The error for an answer that breaks the protocol: one of the connection, unlike that for a value of another form.
fn unreadable(error: RedisError) -> RedisError {
    match error.kind() {
        // Not read again here: the library counts the answer as one to skip.
        _ if is_interrupted(&error) => {
            redis::make_extension_error(INTERRUPTED.into(), Some("a read was interrupted by a signal".into()))
        }
        ErrorKind::Parse => RedisError::from((ErrorKind::Io, "an answer cannot be read", error.to_string())),
        _ => error,
    }
}

/// Whether a signal has interrupted the call: the kernel restarts none of a socket with a time limit when a process is
/// continued after a stop, or when a tracer leaves it.
fn is_interrupted(error: &RedisError) -> bool {
    let shared = |source: &(dyn Error + 'static)| {
        let shared = source.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
        Some(shared.downcast_ref::<io::Error>()?.kind())
    };
    let kind = error.source().and_then(|source| source.downcast_ref().map(io::Error::kind).or_else(|| shared(source)));
    kind == Some(io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::IntoConnectionInfo;
    use std::net::TcpListener;

    #[test]
    fn calls_are_packed_as_the_library_packs_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let taken = std::thread::spawn(move || {
            let mut taken = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut taken).unwrap();
            taken
        });
        let info = url.into_connection_info().unwrap();
        let silent = RedisConnectionInfo::default().set_skip_set_lib_name();
        let mut conn = Client::open(info.set_redis_settings(silent)).unwrap().get_connection().unwrap();
        let (mut want, mut sending) = (b"first".to_vec(), Sending::new(&mut conn, b"first"));
        for length in [0, 1, MAX_PACKED_BYTES - 1, MAX_PACKED_BYTES, MAX_PACKED_BYTES + 1, 3 * MAX_PACKED_BYTES] {
            let mut call = redis::cmd("SET");
            call.arg(length).arg("x".repeat(length)).cursor_arg(0).arg("");
            for n in 0..length / 100 {
                call.arg(n);
            }
            call.write_packed_command(&mut want);
            sending.call(&call).unwrap();
            sending.packed(b"between");
            want.extend_from_slice(b"between");
        }
        sending.end().unwrap();
        drop(conn);
        assert_eq!(taken.join().unwrap(), want);
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for old in ["5.0.14", "2.8", "6.0.5", "6", "6.0", "6.0.x"] {
            assert!(is_too_old(old), "{old}");
        }
        for good in ["6.0.6", "6.0.16", "6.2", "7.0.15", "7.2.4-rc1", "10.0.0", "255.255.255", "unstable", ""] {
            assert!(!is_too_old(good), "{good}");
        }
    }

    #[test]
    fn interrupted_read_is_told_from_other_errors() {
        let of = |kind: io::ErrorKind| unreadable(RedisError::from(io::Error::from(kind)));
        assert_eq!(of(io::ErrorKind::Interrupted).code(), Some(INTERRUPTED));
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset] {
            assert_eq!((of(kind).code(), of(kind).kind()), (None, ErrorKind::Io), "{kind}");
        }
    }

    #[test]
    fn login_and_tls_stay_with_another_host() {
        for (url, shown) in [("rediss://me:pw@a:1/2", "rediss://::1:7"), ("redis://me:pw@a:1/2", "redis://::1:7")] {
            let model = url.into_connection_info().unwrap();
            let there = with_host(&model, &("::1".to_owned(), 7));
            let scheme =
                if matches!(there.addr(), ConnectionAddr::TcpTls { insecure: false, .. }) { "rediss" } else { "redis" };
            let (host, port) = server_addr(&there).unwrap();
            assert_eq!(format!("{scheme}://{host}:{port}"), shown);
            let login = there.redis_settings();
            assert_eq!((login.username(), login.password(), login.db()), (Some("me"), Some("pw"), 2));
        }
        assert_eq!(server_addr(&"unix:///run/r.sock".into_connection_info().unwrap()), None);
    }
}
