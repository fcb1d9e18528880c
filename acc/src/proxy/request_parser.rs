//! One connection as bytes: a pure state machine that yields one whole, bounded request at a time.
//!
//! **In scope**: where a head ends, what it may hold, how long its body is, when a request is whole,
//! and for everything else the status, the sentence and the label of its refusal.
//! **Out of scope**: sockets, TLS, time, credentials. The event loop feeds bytes in, asks `step` what
//! they make, and says what became of each request (`admit`, `finish`).
//!
//! It is stricter than HTTP asks for, so that no two readers of one message can disagree about where
//! it ends: CR LF line ends only, one `Content-Length`, no `Transfer-Encoding` (411), no pipelining.

use crate::http::Refusal;
use crate::route::{Route, route};
use std::net::Ipv6Addr;

/// Most headers in one head.
const MAX_HEADERS: usize = 64;

/// Most empty lines before a request line; some clients send one after a body.
const MAX_EMPTY_LINES: usize = 2;

/// A whole head that keeps every rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    /// The route.
    pub(crate) route: Route,
    /// The text behind the `?`, not decoded: visible ASCII.
    pub(crate) query: String,
    /// The token of `Authorization: Bearer`.
    pub(crate) bearer: Option<String>,
    /// Bytes of the body.
    pub(crate) length: usize,
    /// HEAD: the answer has no body.
    pub(crate) bodiless: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(crate) expects: bool,
}

/// The state that the bytes so far make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing yet: feed more.
    More,
    /// A whole head; say `admit` or drop the connection.
    Head(RequestHead),
    /// The admitted request's whole body; say `finish` once it was answered.
    Whole(Vec<u8>),
    /// This client is to be told off and let go; nothing more is read.
    Refused(Refusal),
}

/// Where in a request a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Between requests: no byte of the next one is there.
    Idle,
    /// Some of a head.
    Head,
    /// A whole head that nobody has admitted yet.
    Verdict,
    /// Some of a body, or all of it.
    Body,
    /// A whole request was handed out.
    Busy,
    /// Refused.
    Closed,
}

/// The state machine of one connection.
#[derive(Debug)]
pub(crate) struct Conn {
    max_head: usize,
    max_body: usize,
    buf: Vec<u8>,
    /// Bytes of `buf` that the search for the head's end has been over.
    scanned: usize,
    /// Where in `buf` the line at `scanned` begins.
    line: usize,
    empty_lines: usize,
    length: usize,
    stage: Stage,
    keep_alive: bool,
    /// Bytes came while a request was being answered.
    excess: bool,
}

fn bad(label: &'static str, reason: impl Into<String>) -> Refusal {
    Refusal::new(400, label, reason)
}

impl Conn {
    /// A new connection; heads up to `max_head` bytes, bodies up to `max_body`.
    pub(crate) fn new(max_head: usize, max_body: usize) -> Conn {
        Conn {
            max_head,
            max_body,
            buf: Vec::new(),
            scanned: 0,
            line: 0,
            empty_lines: 0,
            length: 0,
            stage: Stage::Idle,
            keep_alive: true,
            excess: false,
        }
    }

    /// Takes bytes that came in. While a request is being answered any byte is one too many: it is
    /// dropped, and the connection will not be kept.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.stage {
            Stage::Idle => {
                self.stage = Stage::Head;
                self.buf.extend_from_slice(bytes);
            }
            Stage::Head | Stage::Verdict | Stage::Body => self.buf.extend_from_slice(bytes),
            Stage::Busy => {
                self.excess = true;
                self.keep_alive = false;
            }
            Stage::Closed => {}
        }
    }

    /// The state that the bytes so far make. Asked again after each `feed` and after `admit`.
    pub(crate) fn step(&mut self) -> Step {
        let step = match self.stage {
            Stage::Head => self.head(),
            Stage::Body => Ok(self.body()),
            Stage::Idle | Stage::Verdict | Stage::Busy | Stage::Closed => Ok(Step::More),
        };
        step.unwrap_or_else(|refusal| {
            self.stage = Stage::Closed;
            self.keep_alive = false;
            self.buf = Vec::new();
            Step::Refused(refusal)
        })
    }

    /// Lets the request go on to its body.
    pub(crate) fn admit(&mut self) {
        if self.stage == Stage::Verdict {
            self.stage = Stage::Body;
            self.buf.reserve_exact(self.length.saturating_sub(self.buf.len()));
        }
    }

    /// The request was answered. Says whether another one may follow on this connection.
    pub(crate) fn finish(&mut self) -> bool {
        if self.stage == Stage::Busy && self.keep_alive {
            self.stage = Stage::Idle;
            return true;
        }
        self.stage = Stage::Closed;
        false
    }

    /// The answer that is about to be written says `Connection: close`.
    pub(crate) fn close_after(&mut self) {
        self.keep_alive = false;
    }

    /// Whether the answer may say that the connection stays.
    pub(crate) fn keeps_alive(&self) -> bool {
        self.keep_alive
    }

    /// Where the connection is.
    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// Bytes came while a request was being answered.
    pub(crate) fn has_excess(&self) -> bool {
        self.excess
    }

    /// Bytes of the body that are still to come (a few more may be asked for than are).
    pub(crate) fn missing(&self) -> usize {
        if self.stage == Stage::Body { self.length.saturating_sub(self.buf.len()) } else { 0 }
    }

    fn head(&mut self) -> Result<Step, Refusal> {
        let Some(end) = self.scan()? else {
            return Ok(Step::More);
        };
        let (head, keep_alive) = parse(&self.buf[..end], self.max_body)?;
        self.keep_alive = keep_alive;
        self.length = head.length;
        // The rest is the beginning of the body; the memory of the head is given back.
        self.buf = self.buf[end..].to_vec();
        if self.buf.len() > self.length && self.beyond() {
            return Err(pipelined());
        }
        (self.scanned, self.line, self.empty_lines) = (0, 0, 0);
        self.stage = Stage::Verdict;
        Ok(Step::Head(head))
    }

    fn body(&mut self) -> Step {
        if self.buf.len() < self.length {
            return Step::More;
        }
        if self.buf.len() > self.length && self.beyond() {
            self.stage = Stage::Closed;
            self.keep_alive = false;
            self.buf = Vec::new();
            return Step::Refused(pipelined());
        }
        self.buf.truncate(self.length);
        self.stage = Stage::Busy;
        Step::Whole(std::mem::take(&mut self.buf))
    }

    /// Whether what stands behind the body is more than the line end that some clients add.
    fn beyond(&self) -> bool {
        !b"\r\n".starts_with(&self.buf[self.length..])
    }

    /// Looks for the end of the head in the bytes that were not looked at yet.
    fn scan(&mut self) -> Result<Option<usize>, Refusal> {
        while self.scanned < self.buf.len() {
            let at = self.scanned;
            if at >= self.max_head {
                return Err(Refusal::new(431, "head-too-long", format!("the head is over {} bytes", self.max_head)));
            }
            let byte = self.buf[at];
            let after_cr = at > self.line && self.buf[at - 1] == b'\r';
            match byte {
                b'\n' if after_cr => {
                    let empty = at - self.line == 1;
                    self.scanned = at + 1;
                    if empty && self.line > 0 {
                        return Ok(Some(self.scanned));
                    }
                    if empty {
                        self.skip_empty_line()?;
                    } else {
                        self.line = self.scanned;
                    }
                    continue;
                }
                b'\n' => return Err(bad("line-end", "a line of the head ends without CR")),
                _ if after_cr => return Err(bad("line-end", "a CR stands alone in the head")),
                b'\r' | b'\t' | 0x80.. => {}
                0..0x20 | 0x7f => return Err(bad("garbage", "this is no HTTP: the head holds control characters")),
                _ => {}
            }
            if self.line == 0 && at == 0 && !byte.is_ascii_uppercase() && byte != b'\r' {
                return Err(bad("garbage", "this is no HTTP: a request begins with its method"));
            }
            self.scanned = at + 1;
        }
        Ok(None)
    }

    fn skip_empty_line(&mut self) -> Result<(), Refusal> {
        self.empty_lines += 1;
        if self.empty_lines > MAX_EMPTY_LINES {
            return Err(bad("garbage", "nothing but empty lines"));
        }
        self.buf.drain(..2);
        self.scanned = 0;
        if self.buf.is_empty() {
            self.stage = Stage::Idle;
        }
        Ok(())
    }
}

fn pipelined() -> Refusal {
    bad("pipelined", "one request at a time: bytes follow the request before its answer")
}

/// The request that stands in `head` (whole, up to its empty line), and whether the client wants the
/// connection kept.
fn parse(head: &[u8], max_body: usize) -> Result<(RequestHead, bool), Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(bad("garbage", "the head does not end where it should")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(431, "head-too-long", format!("more than {MAX_HEADERS} headers")));
        }
        Err(httparse::Error::Version) => {
            return Err(Refusal::new(505, "version", "only HTTP/1.0 and HTTP/1.1 are spoken here"));
        }
        Err(e) => return Err(bad("garbage", format!("this is no HTTP: {e}"))),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(bad("garbage", "the request line is not whole"));
    };

    let mut fields = Fields::default();
    for header in request.headers.iter() {
        fields.take(header.name, header.value)?;
    }
    if version == 1 && !fields.host {
        return Err(bad("host", "a request of HTTP/1.1 has a Host header"));
    }
    let length = fields.body_length(version, max_body)?;

    let (path, query) = split_target(target)?;
    let route = route(method, path).map_err(|e| Refusal::new(e.status(), "path", e.to_string()))?;
    let length = match length {
        None if route.takes_body() => {
            return Err(Refusal::new(411, "no-length", "a POST needs a Content-Length"));
        }
        None => 0,
        Some(length) if length > 0 && !route.takes_body() => {
            return Err(bad("body", format!("a {method} has no body here")));
        }
        Some(length) => length,
    };
    let keep_alive = !fields.close && (version == 1 || fields.keep_alive);
    let head = RequestHead {
        route,
        query: query.to_owned(),
        bearer: fields.bearer,
        length,
        bodiless: method == "HEAD",
        expects: fields.expects && length > 0 && version == 1,
    };
    Ok((head, keep_alive))
}

/// Path and query of a request target: origin-form (`/path?query`), or absolute-form (`http://host/path?query`).
fn split_target(target: &str) -> Result<(&str, &str), Refusal> {
    if !target.bytes().all(|b| (0x21..0x7f).contains(&b)) {
        return Err(bad("path", "the path holds characters that must be percent-encoded"));
    }
    let absolute = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let target = match absolute {
        // Another reader would end the host at the ?, so that what follows would be a query to it.
        Some(rest) => {
            let (host, _) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !is_authority(host) {
                return Err(bad(
                    "path",
                    "an absolute address is http://host/path or http://host:port/path: this is none",
                ));
            }
            rest.strip_prefix(host).unwrap_or_default()
        }
        None => target,
    };
    if !target.starts_with('/') || target.contains('#') {
        return Err(bad("path", "a path begins with / and holds no #"));
    }
    Ok(target.split_once('?').unwrap_or((target, "")))
}

/// Whether `text` is a host with or without a port: a name, an IPv4 address, or an IPv6 address in brackets.
fn is_authority(text: &str) -> bool {
    let (is_host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            (!name.is_empty() && name.bytes().all(is_part), port)
        }
    };
    // RFC 3986 3.2.3: the colon may stand without a port.
    let is_port = |digits: &str| {
        digits.bytes().all(|b| b.is_ascii_digit()) && (digits.is_empty() || digits.parse::<u16>().is_ok())
    };
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// The headers that matter here; all others are passed over.
#[derive(Default)]
struct Fields {
    length: Option<Vec<u8>>,
    encoded: bool,
    chunked: bool,
    host: bool,
    authorized: bool,
    bearer: Option<String>,
    close: bool,
    keep_alive: bool,
    expects: bool,
}

impl Fields {
    fn take(&mut self, name: &str, value: &[u8]) -> Result<(), Refusal> {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("content-length") {
            if self.length.replace(value.to_vec()).is_some() {
                return Err(bad("framing", "Content-Length is there more than once"));
            }
        } else if is("transfer-encoding") {
            self.encoded = true;
            self.chunked = value.eq_ignore_ascii_case(b"chunked");
        } else if is("host") {
            if std::mem::replace(&mut self.host, true) {
                return Err(bad("framing", "Host is there more than once"));
            }
        } else if is("authorization") {
            if std::mem::replace(&mut self.authorized, true) {
                return Err(bad("framing", "Authorization is there more than once"));
            }
            self.bearer = bearer(value);
        } else if is("connection") {
            for token in value.split(|b| *b == b',') {
                self.close |= token.trim_ascii().eq_ignore_ascii_case(b"close");
                self.keep_alive |= token.trim_ascii().eq_ignore_ascii_case(b"keep-alive");
            }
        } else if is("expect") {
            if !value.trim_ascii().eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::new(417, "expect", "of Expect only 100-continue is known"));
            }
            self.expects = true;
        }
        Ok(())
    }

    /// How long the body is, or that nothing is said about it.
    fn body_length(&self, version: u8, max: usize) -> Result<Option<usize>, Refusal> {
        if self.encoded {
            if self.length.is_some() {
                return Err(bad("framing", "Content-Length beside Transfer-Encoding"));
            }
            if version == 0 || !self.chunked {
                return Err(bad("framing", "this Transfer-Encoding is not understood"));
            }
            return Err(Refusal::new(411, "chunked", "chunked bodies are not taken: send a Content-Length"));
        }
        let Some(text) = &self.length else {
            return Ok(None);
        };
        if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
            return Err(bad("framing", "Content-Length is no whole number"));
        }
        // More digits than any number that is let in, so it is too long whatever it says.
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<usize>().ok());
        match number {
            Some(length) if length <= max => Ok(Some(length)),
            _ => Err(Refusal::new(413, "body-too-long", format!("the body is over {max} bytes"))),
        }
    }
}

fn bearer(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

#[cfg(test)]
#[path = "request_parser_tests.rs"]
mod tests;
