//! Connections of a hostile node: kept, and made again when they were closed.

use super::Request;
use crate::swarm::http;
use anyhow::{Context, Result};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// How long an answer is waited for.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a controller is, and as whom it is spoken to.
#[derive(Clone)]
pub struct Target {
    /// Its address.
    pub addr: SocketAddr,
    /// The TLS; plain HTTP without.
    pub tls: Option<Arc<ClientConfig>>,
    /// The node's token, where the controller wants one.
    pub token: Option<String>,
}

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// One kept connection that is made again when it was closed.
pub struct Connection {
    target: Target,
    stream: Option<Box<dyn Stream>>,
    input: Vec<u8>,
}

impl Connection {
    /// Nothing is connected yet.
    pub fn new(target: Target) -> Connection {
        Connection { target, stream: None, input: Vec::new() }
    }

    /// The status of the answer; 0 where the connection was cut before one.
    pub fn send(&mut self, request: &Request) -> Result<u16> {
        if self.stream.is_none() {
            self.input.clear();
            self.stream = Some(dial(&self.target)?);
        }
        let answer = self.exchange(request);
        match answer {
            Ok((status, false)) => Ok(status),
            Ok((status, true)) => {
                self.stream = None;
                Ok(status)
            }
            Err(_) => {
                self.stream = None;
                Ok(0)
            }
        }
    }

    fn exchange(&mut self, request: &Request) -> Result<(u16, bool)> {
        let stream = self.stream.as_mut().context("no connection")?;
        let Request { method, path, body } = request;
        let bytes = http::request(method, path, self.target.token.as_deref(), body.as_deref());
        // A refusal may come while the body is still on its way.
        let written = stream.write_all(&bytes).and_then(|()| stream.flush());
        let mut piece = [0; 16 << 10];
        loop {
            let is_head = request.method == "HEAD";
            if let Some(answer) = http::take_as(&mut self.input, is_head) {
                return Ok((answer.status, answer.closes || written.is_err()));
            }
            match stream.read(&mut piece)? {
                0 => anyhow::bail!("the connection was cut"),
                n => self.input.extend_from_slice(&piece[..n]),
            }
        }
    }
}

fn dial(target: &Target) -> Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(target.addr)?;
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    stream.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
    stream.set_nodelay(true)?;
    let Some(tls) = &target.tls else { return Ok(Box::new(stream)) };
    let tls = ClientConnection::new(tls.clone(), ServerName::try_from("localhost")?)?;
    Ok(Box::new(StreamOwned::new(tls, stream)))
}
