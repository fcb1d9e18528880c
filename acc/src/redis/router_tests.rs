//! The router against servers that say nothing, or what a cluster says.

use super::super::errors::is_broken;
use super::*;
use crate::config::redis_address::Target;
use std::io::Write;
use std::net::TcpListener;

/// A server that accepts and never says a word.
fn silent() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn many_silent_servers_are_asked_for_a_while_and_the_next_try_goes_on_behind_them() {
    let servers: Vec<TcpListener> = (0..6).map(|_| silent()).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.local_addr().unwrap().port()).collect();
    let named: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let address = Address::new(Target::parse(&named.join(",")).unwrap(), None, &crate::model::SCHEMA);
    assert!(Router::cluster(&address, Duration::from_secs(5)).is_err());
    let order: Vec<u16> = address.known_servers.addrs().into_iter().map(|(_, port)| port).collect();
    let asked = ports.len() - order.iter().position(|port| *port == ports[0]).unwrap();
    assert!(asked < ports.len(), "all were asked");
    assert_eq!(order, [&ports[asked..], &ports[..asked]].concat());
}

#[test]
fn redirection_in_the_answer_of_exec_tells_that_the_server_is_one_of_a_cluster() {
    for answer in ["MOVED 3999 127.0.0.1:6381", "ASK 3999 127.0.0.1:6381", "CROSSSLOT Keys don't hash to the same slot"]
    {
        for exec in [format!("-{answer}\r\n"), format!("*1\r\n-{answer}\r\n")] {
            let listener = silent();
            let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
            let address = Address::new(target, None, &crate::model::SCHEMA);
            let info = address.target.servers[0].clone();
            let conn = connection::connect(info, None, CONNECT_TIMEOUT, CONNECT_TIMEOUT).unwrap();
            let mut server = listener.accept().unwrap().0;
            server.write_all(format!("+OK\r\n+QUEUED\r\n{exec}").as_bytes()).unwrap();
            let mut batch = Batch::new();
            batch.call(redis::cmd("PING"));
            let error = Router::alone(&address, conn, CONNECT_TIMEOUT).transact(&batch).unwrap_err();
            assert!(is_broken(&error) && address.is_cluster(), "{exec}: {error}");
        }
    }
}
