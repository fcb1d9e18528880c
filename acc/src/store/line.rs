//! One connection to one server, and calls over it that travel together.
//!
//! Owns: time limits, and that a server which falls silent is waited for once. Does not own: which server it
//! is (`conn`, `cluster`, `sentinel`), or what the answers mean.
//!
//! **After an error of these functions the connection is of no more use**: an answer that still comes would be
//! taken for that to something else. What a server answers as an error is no such error, but a value.

use redis::{Client, Connection, ConnectionAddr, ConnectionInfo, RedisResult, TlsCertificates, Value};
use std::time::Duration;

/// Longest time for a connection to come up, login included.
pub(super) const CONNECT: Duration = Duration::from_secs(3);

/// Opens a connection on which no answer is waited for longer than `patience`; it comes up within `limit`.
/// `ca` is the PEM text of the CA that signed the server's certificate, when that is none of the public ones.
pub(super) fn dial(
    info: ConnectionInfo,
    ca: Option<&[u8]>,
    limit: Duration,
    patience: Duration,
) -> RedisResult<Connection> {
    let client = match ca {
        Some(ca) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(ca.to_vec()) })?,
        None => Client::open(info)?,
    };
    let conn = client.get_connection_with_timeout(limit)?;
    conn.set_read_timeout(Some(patience))?;
    conn.set_write_timeout(Some(patience))?;
    Ok(conn)
}

/// `model` with another host and port; login and TLS stay.
pub(super) fn elsewhere(model: &ConnectionInfo, (host, port): &(String, u16)) -> ConnectionInfo {
    let addr = match model.addr() {
        ConnectionAddr::TcpTls { insecure, .. } => {
            ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: *insecure, tls_params: None }
        }
        _ => ConnectionAddr::Tcp(host.clone(), *port),
    };
    model.clone().set_addr(addr)
}

/// Host and port of an address; a socket of the file system has none.
pub(super) fn place(info: &ConnectionInfo) -> Option<(String, u16)> {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => Some((host.clone(), *port)),
        _ => None,
    }
}

/// Sends what is packed already.
pub(super) fn send(conn: &mut Connection, packed: &[u8]) -> RedisResult<()> {
    conn.send_packed_command(packed)
}

/// Reads `count` answers. A silent server is given up at the first of them: the library goes on to wait for
/// each of the others as long.
pub(super) fn receive(conn: &mut Connection, count: usize) -> RedisResult<Vec<Value>> {
    (0..count).map(|_| conn.recv_response()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::IntoConnectionInfo;

    #[test]
    fn login_and_tls_go_along() {
        for (url, shown) in [("rediss://me:pw@a:1/2", "rediss://::1:7"), ("redis://me:pw@a:1/2", "redis://::1:7")] {
            let model = url.into_connection_info().unwrap();
            let there = elsewhere(&model, &("::1".to_owned(), 7));
            let scheme =
                if matches!(there.addr(), ConnectionAddr::TcpTls { insecure: false, .. }) { "rediss" } else { "redis" };
            let (host, port) = place(&there).unwrap();
            assert_eq!(format!("{scheme}://{host}:{port}"), shown);
            let login = there.redis_settings();
            assert_eq!((login.username(), login.password(), login.db()), (Some("me"), Some("pw"), 2));
        }
        assert_eq!(place(&"unix:///run/r.sock".into_connection_info().unwrap()), None);
    }
}
