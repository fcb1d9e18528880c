//! The head of a request: method, path and the few headers that matter here. Pure.
//!
//! Owns: which heads are refused, and with which sentence. Does not own: where a head ends (`request_parser`).

use crate::http::Refusal;
use crate::route::{Route, route};
use jscommon::frame::MAX_REQUEST_BYTES;
use std::net::Ipv6Addr;

/// Most headers in one head.
const MAX_HEADERS: usize = 64;

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

/// The request that stands in `head` (whole, up to its empty line), and whether the client wants the
/// connection kept.
pub(super) fn parse(head: &[u8], max_body: usize) -> Result<(RequestHead, bool), Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Refusal::bad_request("garbage", "the head does not end where it should")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(431, "head-too-long", format!("more than {MAX_HEADERS} headers")));
        }
        Err(httparse::Error::Version) => {
            return Err(Refusal::new(505, "version", "only HTTP/1.0 and HTTP/1.1 are spoken here"));
        }
        Err(e) => return Err(Refusal::bad_request("garbage", format!("this is no HTTP: {e}"))),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refusal::bad_request("garbage", "the request line is not whole"));
    };

    let mut fields = Fields::default();
    for header in request.headers.iter() {
        fields.take(header.name, header.value)?;
    }
    if version == 1 && !fields.host {
        return Err(Refusal::bad_request("host", "a request of HTTP/1.1 has a Host header"));
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
            return Err(Refusal::bad_request("body", format!("a {method} has no body here")));
        }
        Some(length) if length > MAX_REQUEST_BYTES && matches!(route, Route::Stream(_)) => {
            let reason = format!("a request with live output has at most {MAX_REQUEST_BYTES} bytes");
            return Err(Refusal::bad_request("body-too-long", reason));
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
        return Err(Refusal::bad_request("path", "the path holds characters that must be percent-encoded"));
    }
    let absolute = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let target = match absolute {
        // Another reader would end the host at the ?, so that what follows would be a query to it.
        Some(rest) => {
            let (host, _) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !is_authority(host) {
                return Err(Refusal::bad_request(
                    "path",
                    "an absolute address is http://host/path or http://host:port/path: this is none",
                ));
            }
            rest.strip_prefix(host).unwrap_or_default()
        }
        None => target,
    };
    if !target.starts_with('/') || target.contains('#') {
        return Err(Refusal::bad_request("path", "a path begins with / and holds no #"));
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
                return Err(Refusal::bad_request("framing", "Content-Length is there more than once"));
            }
        } else if is("transfer-encoding") {
            self.encoded = true;
            self.chunked = value.eq_ignore_ascii_case(b"chunked");
        } else if is("host") {
            if std::mem::replace(&mut self.host, true) {
                return Err(Refusal::bad_request("framing", "Host is there more than once"));
            }
        } else if is("authorization") {
            if std::mem::replace(&mut self.authorized, true) {
                return Err(Refusal::bad_request("framing", "Authorization is there more than once"));
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
                return Err(Refusal::bad_request("framing", "Content-Length beside Transfer-Encoding"));
            }
            if version == 0 || !self.chunked {
                return Err(Refusal::bad_request("framing", "this Transfer-Encoding is not understood"));
            }
            return Err(Refusal::new(411, "chunked", "chunked bodies are not taken: send a Content-Length"));
        }
        let Some(text) = &self.length else {
            return Ok(None);
        };
        if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
            return Err(Refusal::bad_request("framing", "Content-Length is no whole number"));
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
