//! One connection to tiny_http, which carries requests in groups, one group after the other, and never blocks.
//!
//! Owns: the local socket, the bytes of requests and responses, whose turn the next response is.
//! Does not own: which requests go on it together, or when it is closed.

use super::client::ConnectionId;
use super::request_head::RequestHead;
use super::response::{self, Response};
use crate::api::server::{ISSUED_HEADER, NODE_HEADER, OPENING_HEADER, PEER_HEADER, QUICK_BODY, UNDATED};
use crate::auth::tls::PeerCert;
use jscommon::NodeId;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{MsgFlags, recv};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

/// Most bytes of a response that are left in the socket; others are read at once.
const MAX_UNREAD: usize = 4096;

/// A connection to tiny_http, and the requests that are under way on it.
pub(super) struct BackendConnection {
    stream: UnixStream,
    token: Token,
    /// Which tiny_http it was made to.
    pub(super) generation: u64,
    /// How many connections were opened with it, of all that were.
    pub(super) opening: u64,
    /// The requests whose responses are awaited, which come in this order; the connection is idle without one.
    pub(super) pending: VecDeque<PendingRequest>,
    /// When those requests began, or the last one ended.
    pub(super) since: Instant,
    /// It has answered: a thread of tiny_http serves it.
    pub(super) answered: bool,
    /// The bytes to be written, and how many of the first piece are out.
    out: VecDeque<Vec<u8>>,
    sent: usize,
    /// Some of those requests was written.
    begun: bool,
    /// Events tell when more can be written.
    watches_write: bool,
    /// Bytes of the last response that were looked at and are in the socket still: reading them wakes the thread of
    /// tiny_http that waits for the next request, as if it had come. They are read when that request wakes it.
    unread: usize,
    input: Vec<u8>,
    /// A response once its head is read, and how long its body is.
    response: Option<(Response, usize)>,
}

/// The head of the request as tiny_http gets it: made anew, so that nothing of the client's own
/// headers comes through but its token. `cert` is what its certificate says.
fn request_head(
    head: &RequestHead,
    node: Option<NodeId>,
    peer: IpAddr,
    cert: Option<PeerCert>,
    length: usize,
) -> Vec<u8> {
    let mut text = format!("{} {}", head.route.method(), head.route);
    if !head.query.is_empty() {
        text.push('?');
        text.push_str(&head.query);
    }
    text.push_str(&format!(" HTTP/1.1\r\n{PEER_HEADER}: {peer}\r\n"));
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

/// The bytes of a request: a small body travels with its head, and a large one is not copied.
pub(super) fn request_bytes(
    head: &RequestHead,
    node: Option<NodeId>,
    peer: IpAddr,
    cert: Option<PeerCert>,
    body: Vec<u8>,
) -> VecDeque<Vec<u8>> {
    let mut first = request_head(head, node, peer, cert, body.len());
    if body.len() > QUICK_BODY {
        return VecDeque::from([first, body]);
    }
    first.extend(body);
    VecDeque::from([first])
}

/// A request that waits for tiny_http or is with it: whose it is, and what is counted for it (its node, and
/// the bytes of its body). That counts for as long as the body is held, whether the client stays or not.
pub(super) struct PendingRequest {
    pub(super) owner: ConnectionId,
    pub(super) cost: Option<(Option<NodeId>, usize)>,
    /// It asks little of Redis, so that others may travel behind it.
    pub(super) is_quick: bool,
    /// When it began to wait.
    pub(super) asked: Instant,
}

/// Requests that travel together on one connection, and their bytes.
#[derive(Default)]
pub(super) struct Group {
    pub(super) pending: VecDeque<PendingRequest>,
    pub(super) out: VecDeque<Vec<u8>>,
}

impl Group {
    /// Adds a request behind the others: small ones travel in one piece.
    pub(super) fn push(&mut self, request: PendingRequest, mut bytes: VecDeque<Vec<u8>>) {
        if let (Some(last), 1) = (self.out.back_mut(), bytes.len()) {
            bytes.drain(..).for_each(|piece| last.extend(piece));
        }
        self.out.extend(bytes);
        self.pending.push_back(request);
    }
}

impl BackendConnection {
    /// Connects to tiny_http and registers the socket.
    pub(super) fn open(
        socket: &Path,
        (generation, opening): (u64, u64),
        registry: &Registry,
        token: Token,
    ) -> io::Result<BackendConnection> {
        let mut stream = UnixStream::connect(socket)?;
        // Each read of tiny_http's would be an event if this were for writing too.
        registry.register(&mut stream, token, Interest::READABLE)?;
        Ok(BackendConnection {
            stream,
            token,
            generation,
            opening,
            pending: VecDeque::new(),
            since: Instant::now(),
            answered: false,
            out: VecDeque::new(),
            sent: 0,
            begun: false,
            watches_write: false,
            unread: 0,
            input: Vec::new(),
            response: None,
        })
    }

    /// Adds the number of the connection to the head of its first request.
    pub(super) fn announce(&self, out: &mut VecDeque<Vec<u8>>) {
        let Some(head) = out.front_mut() else { return };
        if let Some(end) = head.windows(2).position(|bytes| bytes == b"\r\n") {
            head.splice(end..end, format!("\r\n{OPENING_HEADER}: {}", self.opening).into_bytes());
        }
    }

    /// Takes a group of requests, whose bytes go out with the next `drive`.
    pub(super) fn begin(&mut self, group: Group) {
        (self.out, self.sent, self.begun) = (group.out, 0, false);
        (self.pending, self.since) = (group.pending, Instant::now());
    }

    /// Takes the request off whose response has come.
    pub(super) fn end(&mut self) -> Option<PendingRequest> {
        (self.answered, self.since) = (true, Instant::now());
        self.pending.pop_front()
    }

    /// Whether the last group is answered and another may follow.
    pub(super) fn is_reusable(&self) -> bool {
        self.pending.is_empty() && self.out.is_empty() && self.input.is_empty()
    }

    /// Closes the connection and returns the requests that it carried; with their bytes where none of them went out on
    /// a connection that had answered before.
    pub(super) fn close(mut self, registry: &Registry) -> (Group, bool) {
        let _ = registry.deregister(&mut self.stream);
        // A socket that is closed with bytes in it resets its connection.
        let _ = self.discard_unread();
        (Group { pending: self.pending, out: self.out }, self.answered && !self.begun)
    }

    /// Writes and reads what can be, and adds the responses that are whole now.
    pub(super) fn drive(
        &mut self,
        scratch: &mut [u8],
        registry: &Registry,
        responses: &mut Vec<Response>,
    ) -> Result<(), String> {
        self.write().map_err(|e| format!("the web server took no request: {e}"))?;
        self.watch(registry).map_err(|e| format!("no events of the web server can be had: {e}"))?;
        loop {
            match self.receive(scratch) {
                Ok(0) => return Err("the web server gave half an answer".into()),
                Ok(_) if self.pending.is_empty() => return Err("the web server answered what nobody asked".into()),
                Ok(n) => {
                    self.take(&scratch[..n], responses)?;
                    if responses.len() >= self.pending.len() {
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("the web server gave no answer: {e}")),
            }
        }
    }

    /// Reads bytes; the first ones of the last response are looked at alone, for it may be whole with them.
    fn receive(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        self.discard_unread()?;
        if self.response.is_some() || !self.input.is_empty() || self.pending.len() > 1 {
            return self.stream.read(scratch);
        }
        self.unread = recv(self.stream.as_raw_fd(), &mut scratch[..MAX_UNREAD], MsgFlags::MSG_PEEK)?;
        Ok(self.unread)
    }

    fn discard_unread(&mut self) -> io::Result<()> {
        let mut seen = [0; MAX_UNREAD];
        let unread = std::mem::take(&mut self.unread);
        self.stream.read_exact(&mut seen[..unread])
    }

    /// Asks for events about writing only while something waits to be written.
    fn watch(&mut self, registry: &Registry) -> io::Result<()> {
        let waits = !self.out.is_empty();
        if waits != self.watches_write {
            let interest = if waits { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            registry.reregister(&mut self.stream, self.token, interest)?;
            self.watches_write = waits;
        }
        Ok(())
    }

    /// Takes bytes of responses, and adds those that are whole now; bytes behind the last one stay in `input`.
    fn take(&mut self, mut bytes: &[u8], responses: &mut Vec<Response>) -> Result<(), String> {
        loop {
            if self.response.is_some() {
                let used = self.fill(bytes);
                bytes = &bytes[used..];
            } else {
                self.input.extend_from_slice(bytes);
                bytes = &[];
                if responses.len() >= self.pending.len() {
                    return Ok(());
                }
                let Some((mut response, end, length)) = response::read(&self.input)? else { return Ok(()) };
                // The only copy of the body: it goes to the client as it is.
                response.body.reserve_exact(length);
                self.response = Some((response, length));
                let mut input = std::mem::take(&mut self.input);
                let used = end + self.fill(&input[end..]);
                input.drain(..used);
                self.input = input;
            }
            match self.response.take_if(|(response, length)| response.body.len() == *length) {
                Some((response, _)) => responses.push(response),
                None => return Ok(()),
            }
        }
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
                Ok(n) => (self.sent, self.begun) = (self.sent + n, true),
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
        let head = RequestHead {
            route: Route::Cmd(node),
            query: "wait=1".into(),
            bearer: Some("t".into()),
            length: 0,
            bodiless: false,
            expects: false,
        };
        let text =
            String::from_utf8(request_head(&head, Some(node), peer, Some(PeerCert { node, issued: Some(7) }), 0))
                .unwrap();
        let want = "GET /1/10/cmd?wait=1 HTTP/1.1\r\nX-JS-Peer: ::1\r\nX-JS-Node: 1:10\r\nX-JS-Cert-Issued: 7\r\nAuthorization: Bearer t\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(text, want);
        let head = RequestHead { route: Route::Enroll, query: String::new(), ..head };
        let text = String::from_utf8(request_head(&head, None, peer, None, 5)).unwrap();
        let want = "POST /enroll HTTP/1.1\r\nX-JS-Peer: ::1\r\nAuthorization: Bearer t\r\nContent-Length: 5\r\n\r\n";
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
        let cert = Some(PeerCert { node, issued: None });
        let text = request_head(&head, Some(node), "::1".parse().unwrap(), cert, 0);
        assert!(String::from_utf8(text).unwrap().contains("\r\nX-JS-Cert-Issued: -\r\n"));
    }

    #[test]
    fn responses_in_pieces_come_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("http");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let poll = mio::Poll::new().unwrap();
        let mut connection = BackendConnection::open(&socket, (0, 1), poll.registry(), Token(0)).unwrap();
        let texts = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none", 200, "one"),
            ("HTTP/1.1 204 No Content\r\nX-JS-Park: 30\r\n\r\n", 204, ""),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""),
            ("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", 503, "busy"),
        ];
        let request =
            || PendingRequest { owner: ConnectionId::new(0, 0), cost: None, is_quick: true, asked: Instant::now() };
        let group = |count: usize| Group { pending: (0..count).map(|_| request()).collect(), ..Group::default() };
        let together: String = texts.iter().map(|(text, ..)| *text).collect();
        let apart: Vec<&str> = texts.iter().map(|(text, ..)| *text).collect();
        for size in 1..=together.len() {
            for (groups, count) in [(apart.as_slice(), 1), (&[together.as_str()], 4)] {
                let mut taken = Vec::new();
                for text in groups {
                    connection.begin(group(count));
                    let mut responses = Vec::new();
                    text.as_bytes().chunks(size).for_each(|piece| connection.take(piece, &mut responses).unwrap());
                    assert_eq!(responses.len(), count, "in pieces of {size}");
                    responses.iter().for_each(|_| assert!(connection.end().is_some()));
                    assert!(connection.is_reusable(), "in pieces of {size}");
                    taken.extend(responses);
                }
                let seen: Vec<(u16, &[u8])> = taken.iter().map(|a| (a.status, a.body.as_slice())).collect();
                let want: Vec<(u16, &[u8])> =
                    texts.iter().map(|(_, status, body)| (*status, body.as_bytes())).collect();
                assert_eq!(seen, want, "in pieces of {size}");
            }
        }
        connection.begin(group(1));
        let mut responses = Vec::new();
        connection.take(b"HTTP/1.1 204 No Content\r\n\r\nmore", &mut responses).unwrap();
        assert!(responses.len() == 1 && connection.end().is_some());
        assert!(!connection.is_reusable(), "no other follows on one that says too much");
        connection.begin(group(1));
        assert!(connection.take(b"nonsense\r\n\r\n", &mut Vec::new()).is_err());
    }
}
