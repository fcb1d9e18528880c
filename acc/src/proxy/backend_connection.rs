//! One request on its way through tiny_http, on a connection of its own, never blocking; or a few that are
//! answered in their order.
//!
//! Owns: the local socket, the requests' bytes, the responses' bytes.
//! Does not own: whose requests they are, or which travel together.

use super::client::ConnectionId;
use super::request_head::RequestHead;
use super::response::{self, Response};
use crate::api::response_order::PipelineSlot;
use crate::api::server::{ISSUED_HEADER, NODE_HEADER, PEER_HEADER, SLOT_HEADER, UNDATED};
use crate::auth::tls::PeerCert;
use jscommon::NodeId;
use mio::net::UnixStream;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::path::Path;

/// Requests that are with tiny_http.
pub(crate) struct BackendConnection {
    stream: UnixStream,
    /// The bytes to be written, and how many of the first piece are out.
    out: VecDeque<Vec<u8>>,
    sent: usize,
    input: Vec<u8>,
    /// A response once its head is read, and how long its body is.
    response: Option<(Response, usize)>,
    /// Answers that are still to come, that one too.
    missing: usize,
}

/// The head of the request as tiny_http gets it: made anew, so that nothing of the client's own
/// headers comes through but its token. `cert` is what its certificate says; the last one of a connection says so, and
/// each of several where it stands.
pub(crate) fn request_head(
    head: &RequestHead,
    node: Option<NodeId>,
    peer: IpAddr,
    cert: Option<PeerCert>,
    length: usize,
    position: PipelineSlot,
) -> Vec<u8> {
    let mut text = format!("{} {}", head.route.method(), head.route);
    if !head.query.is_empty() {
        text.push('?');
        text.push_str(&head.query);
    }
    let close = if position.is_last() { "Connection: close\r\n" } else { "" };
    text.push_str(&format!(" HTTP/1.1\r\n{close}{PEER_HEADER}: {peer}\r\n"));
    if position.of > 1 {
        text.push_str(&format!("{SLOT_HEADER}: {position}\r\n"));
    }
    if let Some(node) = node {
        text.push_str(&format!("{NODE_HEADER}: {node}\r\n"));
    }
    if let Some(cert) = cert {
        let issued = cert.issued.map_or(UNDATED.to_owned(), |issued| issued.to_string());
        text.push_str(&format!("{ISSUED_HEADER}: {issued}\r\n"));
    }
    if let Some(bearer) = head.bearer.as_ref().filter(|bearer| bearer.is_ascii()) {
        text.push_str(&format!("Authorization: Bearer {bearer}\r\n"));
    }
    text.push_str(&format!("Content-Length: {length}\r\n\r\n"));
    text.into_bytes()
}

/// A request that waits for tiny_http or is with it: whose it is, and what is counted for it (its node, and
/// the bytes of its body). That counts for as long as the body is held, whether the client stays or not.
pub(super) struct PendingRequest {
    pub(super) owner: ConnectionId,
    pub(super) cost: Option<(Option<NodeId>, usize)>,
}

/// A connection to tiny_http, and the requests that wait for its responses.
pub(super) struct InFlight {
    pub(super) connection: BackendConnection,
    /// The requests that the connection carries, in their order.
    pub(super) pending: VecDeque<PendingRequest>,
}

impl BackendConnection {
    /// Connects to tiny_http; `out` holds the bytes of so many requests, and goes out with the first `drive`.
    pub(crate) fn new(socket: &Path, out: VecDeque<Vec<u8>>, requests: usize) -> io::Result<BackendConnection> {
        let stream = UnixStream::connect(socket)?;
        Ok(BackendConnection { stream, out, sent: 0, input: Vec::new(), response: None, missing: requests })
    }

    /// The socket, to be registered.
    pub(crate) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Writes and reads what can be. Adds the responses that are whole now, in the order of their requests, and
    /// tells whether that were all; after an error no other comes.
    pub(crate) fn drive(&mut self, scratch: &mut [u8], responses: &mut Vec<Response>) -> Result<bool, String> {
        self.write().map_err(|e| format!("the web server took no request: {e}"))?;
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Err("the web server gave half an answer".into()),
                Ok(n) => {
                    self.take(&scratch[..n], responses)?;
                    if self.missing == 0 {
                        return Ok(true);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("the web server gave no answer: {e}")),
            }
        }
    }

    /// Takes bytes of responses.
    fn take(&mut self, mut bytes: &[u8], responses: &mut Vec<Response>) -> Result<(), String> {
        while self.missing > 0 {
            if self.response.is_none() {
                self.input.extend_from_slice(bytes);
                bytes = &[];
                let Some((mut response, end, length)) = response::read(&self.input)? else { break };
                // The only copy of the body: it goes to the client as it is.
                response.body.reserve_exact(length);
                self.response = Some((response, length));
                let mut input = std::mem::take(&mut self.input);
                let used = end + self.fill(&input[end..]);
                input.drain(..used);
                self.input = input;
            } else {
                let used = self.fill(bytes);
                bytes = &bytes[used..];
            }
            match self.response.take_if(|(response, length)| response.body.len() == *length) {
                Some((response, _)) => responses.push(response),
                None => break,
            }
            self.missing -= 1;
        }
        Ok(())
    }

    /// Takes bytes of the body; how many of them.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let Some((response, length)) = self.response.as_mut() else { return 0 };
        let used = bytes.len().min(*length - response.body.len());
        response.body.extend_from_slice(&bytes[..used]);
        used
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(piece) = self.out.front() {
            if self.sent == piece.len() {
                self.out.pop_front();
                self.sent = 0;
                continue;
            }
            match self.stream.write(&piece[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::NotConnected => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // It may have answered before it had read everything: the read will tell.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Route;

    #[test]
    fn headers_of_clients_are_not_passed_on() {
        let node = NodeId { gid: 1, nid: 10 };
        let peer = "::1".parse().unwrap();
        let alone = PipelineSlot { slot: 3, group: 8, at: 0, of: 1 };
        let first = PipelineSlot { slot: 3, group: 9, at: 0, of: 2 };
        let head = RequestHead {
            route: Route::Cmd(node),
            query: "wait=1".into(),
            bearer: Some("t".into()),
            length: 0,
            bodiless: false,
            expects: false,
        };
        let text = String::from_utf8(request_head(
            &head,
            Some(node),
            peer,
            Some(PeerCert { node, issued: Some(7) }),
            0,
            alone,
        ))
        .unwrap();
        let want = "GET /1/10/cmd?wait=1 HTTP/1.1\r\nConnection: close\r\nX-JS-Peer: ::1\r\nX-JS-Node: 1:10\r\nX-JS-Cert-Issued: 7\r\nAuthorization: Bearer t\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(text, want);
        let head = RequestHead { route: Route::Enroll, query: String::new(), ..head };
        let text = String::from_utf8(request_head(&head, None, peer, None, 5, first)).unwrap();
        let want = "POST /enroll HTTP/1.1\r\nX-JS-Peer: ::1\r\nX-JS-Slot: 3 9 0 2\r\nAuthorization: Bearer t\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(text, want);
    }

    #[test]
    fn certificate_without_a_date_is_marked() {
        let node = NodeId { gid: 1, nid: 10 };
        let head = RequestHead {
            route: Route::Cmd(node),
            query: String::new(),
            bearer: None,
            length: 0,
            bodiless: false,
            expects: false,
        };
        let position = PipelineSlot { slot: 3, group: 8, at: 0, of: 1 };
        let cert = Some(PeerCert { node, issued: None });
        let text = request_head(&head, Some(node), "::1".parse().unwrap(), cert, 0, position);
        assert!(String::from_utf8(text).unwrap().contains("\r\nX-JS-Cert-Issued: -\r\n"));
    }

    #[test]
    fn responses_in_pieces_come_in_their_order() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let text = [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none",
            "HTTP/1.1 204 No Content\r\nX-JS-Park: 30\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy",
        ]
        .concat();
        let out = VecDeque::new();
        let mut exchange =
            BackendConnection { stream: ours, out, sent: 0, input: Vec::new(), response: None, missing: 0 };
        for size in 1..=text.len() {
            let mut responses = Vec::new();
            exchange.missing = 4;
            text.as_bytes().chunks(size).for_each(|piece| exchange.take(piece, &mut responses).unwrap());
            let seen: Vec<(u16, &[u8])> = responses.iter().map(|a| (a.status, a.body.as_slice())).collect();
            assert_eq!(seen, [(200, &b"one"[..]), (204, b""), (200, b""), (503, b"busy")], "in pieces of {size}");
            assert_eq!((exchange.missing, exchange.input.len()), (0, 0));
        }
        exchange.missing = 1;
        assert!(exchange.take(b"nonsense\r\n\r\n", &mut Vec::new()).is_err());
    }
}
