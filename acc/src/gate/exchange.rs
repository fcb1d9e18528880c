//! One request on its way through tiny_http, on a connection of its own, never blocking.
//!
//! Owns: the local socket, the request's bytes, the answer's bytes.
//! Does not own: whose request it is, beyond a name to give the answer back to.

use super::answer::{self, Answer};
use super::conn::RequestHead;
use crate::server::{ISSUED_HEADER, NODE_HEADER, PEER_HEADER};
use jscommon::NodeId;
use mio::net::UnixStream;
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::path::Path;

/// A request that is with tiny_http.
pub(crate) struct Exchange {
    stream: UnixStream,
    head: Vec<u8>,
    body: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// The answer once its head is read, and how much of its body is still to come.
    answer: Option<(Answer, usize)>,
}

/// The head of the request as tiny_http gets it: made anew, so that nothing of the client's own
/// headers comes through but its token. `issued` is its certificate's.
pub(crate) fn request_head(
    head: &RequestHead,
    node: Option<NodeId>,
    peer: IpAddr,
    issued: Option<u64>,
    length: usize,
) -> Vec<u8> {
    let mut text = format!("{} {}", head.route.method(), head.route);
    if !head.query.is_empty() {
        text.push('?');
        text.push_str(&head.query);
    }
    text.push_str(&format!(" HTTP/1.1\r\nConnection: close\r\n{PEER_HEADER}: {peer}\r\n"));
    if let Some(node) = node {
        text.push_str(&format!("{NODE_HEADER}: {node}\r\n"));
    }
    if let Some(issued) = issued {
        text.push_str(&format!("{ISSUED_HEADER}: {issued}\r\n"));
    }
    if let Some(bearer) = head.bearer.as_ref().filter(|bearer| bearer.is_ascii()) {
        text.push_str(&format!("Authorization: Bearer {bearer}\r\n"));
    }
    text.push_str(&format!("Content-Length: {length}\r\n\r\n"));
    text.into_bytes()
}

impl Exchange {
    /// Connects to tiny_http; the request goes out with the first `drive`.
    pub(crate) fn new(socket: &Path, head: Vec<u8>, body: Vec<u8>) -> io::Result<Exchange> {
        let stream = UnixStream::connect(socket)?;
        Ok(Exchange { stream, head, body, sent: 0, input: Vec::new(), answer: None })
    }

    /// The socket, to be registered.
    pub(crate) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Writes and reads what can be; the answer once it is whole.
    pub(crate) fn drive(&mut self, scratch: &mut [u8]) -> Result<Option<Answer>, String> {
        self.write().map_err(|e| format!("the web server took no request: {e}"))?;
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Err("the web server gave half an answer".into()),
                Ok(n) => {
                    if let Some(answer) = self.take(&scratch[..n])? {
                        return Ok(Some(answer));
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("the web server gave no answer: {e}")),
            }
        }
    }

    /// Takes bytes of the answer; all of it once it is whole.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<Answer>, String> {
        if self.answer.is_some() {
            return Ok(self.fill(bytes));
        }
        self.input.extend_from_slice(bytes);
        let Some((mut answer, end, length)) = answer::read(&self.input)? else {
            return Ok(None);
        };
        // The only copy of the body: it goes to the client as it is.
        answer.body.reserve_exact(length);
        self.answer = Some((answer, length));
        let input = std::mem::take(&mut self.input);
        Ok(self.fill(&input[end..]))
    }

    /// Takes bytes of the body; what is too much is dropped.
    fn fill(&mut self, bytes: &[u8]) -> Option<Answer> {
        let (answer, length) = self.answer.as_mut()?;
        let missing = *length - answer.body.len();
        answer.body.extend_from_slice(&bytes[..missing.min(bytes.len())]);
        if answer.body.len() < *length {
            return None;
        }
        self.answer.take().map(|(answer, _)| answer)
    }

    fn write(&mut self) -> io::Result<()> {
        loop {
            let all = self.head.len() + self.body.len();
            let rest = match self.sent.checked_sub(self.head.len()) {
                None => &self.head[self.sent..],
                Some(at) => &self.body[at..],
            };
            if self.sent == all {
                return Ok(());
            }
            match self.stream.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::NotConnected => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // It may have answered before it had read everything: the read will tell.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Route;

    #[test]
    fn only_what_the_gate_knows_goes_on() {
        let node = NodeId { gid: 1, nid: 10 };
        let peer = "::1".parse().unwrap();
        let head = RequestHead {
            route: Route::Cmd(node),
            query: "wait=1".into(),
            bearer: Some("t".into()),
            length: 0,
            bodiless: false,
            expects: false,
        };
        let text = String::from_utf8(request_head(&head, Some(node), peer, Some(7), 0)).unwrap();
        let want = "GET /1/10/cmd?wait=1 HTTP/1.1\r\nConnection: close\r\nX-JS-Peer: ::1\r\nX-JS-Node: 1:10\r\nX-JS-Cert-Issued: 7\r\nAuthorization: Bearer t\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(text, want);
        let head = RequestHead { route: Route::Enroll, query: String::new(), ..head };
        let text = String::from_utf8(request_head(&head, None, peer, None, 5)).unwrap();
        let want = "POST /enroll HTTP/1.1\r\nConnection: close\r\nX-JS-Peer: ::1\r\nAuthorization: Bearer t\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(text, want);
    }
}
