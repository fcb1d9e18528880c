//! Answers as bytes: what the proxy says itself, and what it reads from tiny_http. Pure.
//!
//! Owns: the form of every head that goes out, and the reading of tiny_http's heads.
//! Does not own: sockets, or when what is answered.

use crate::api::server::PARK_HEADER;
use crate::http::Refusal;
use crate::http::error_body;
use std::time::SystemTime;

/// A response of tiny_http.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// HTTP status.
    pub(crate) status: u16,
    /// Headers beside those that the proxy writes itself.
    pub(crate) headers: Vec<(String, String)>,
    /// Seconds to park the poll for.
    pub(crate) park: Option<u32>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// 200 with JSON text.
    pub(crate) fn json(body: Vec<u8>) -> Response {
        let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        Response { status: 200, headers, park: None, body }
    }

    /// 204.
    pub(crate) fn empty() -> Response {
        Response { status: 204, ..Response::json(Vec::new()) }
    }

    /// A refusal; one that will pass names the seconds after which to try again, spread over some so
    /// that those who were refused together do not come back together.
    pub(crate) fn refusal(refusal: &Refusal) -> Response {
        let mut response = Response { status: refusal.status, ..Response::json(error_body(&refusal.reason)) };
        let mut add = |name: &str, value: String| response.headers.push((name.to_owned(), value));
        match refusal.status {
            401 => add("WWW-Authenticate", "Bearer".into()),
            // The sentence of a 405 names the method; the header repeats it for programs.
            405 => add("Allow", if refusal.reason.contains("POST") { "POST" } else { "GET" }.into()),
            429 | 503 => add("Retry-After", fastrand::u32(1..=5).to_string()),
            _ => {}
        }
        response
    }

    /// Returns the bytes for the client at the time of `now`: the head, with a small body behind it, and a large
    /// body by itself, so that it need not be copied.
    pub(crate) fn bytes(self, keep_alive: bool, bodiless: bool, now: SystemTime) -> [Vec<u8>; 2] {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason_phrase(self.status));
        head.push_str(&format!("Date: {}\r\n", httpdate::HttpDate::from(now)));
        if self.status == 204 {
            // There is no body by which an agent could tell this response from a proxy's or a captive portal's.
            let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            head.push_str(&format!("X-JS-Time: {}\r\n", since.as_millis()));
        }
        for (name, value) in &self.headers {
            if self.status != 204 || !name.eq_ignore_ascii_case("Content-Type") {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        if self.status != 204 {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str(if keep_alive { "Connection: keep-alive\r\n\r\n" } else { "Connection: close\r\n\r\n" });
        let mut head = head.into_bytes();
        let body = if bodiless || self.status == 204 { Vec::new() } else { self.body };
        if body.len() > SMALL {
            return [head, body];
        }
        head.extend_from_slice(&body);
        [head, Vec::new()]
    }
}

/// A body up to here travels together with its head.
const SMALL: usize = 16 * 1024;

/// Headers of tiny_http's responses that the proxy writes itself or keeps for itself.
const OWN_HEADERS: [&str; 7] =
    ["Connection", "Content-Length", "Date", "Keep-Alive", "Server", "Transfer-Encoding", PARK_HEADER];

/// Most bytes of tiny_http's heads; it is our own server, so more is a mistake.
const MAX_HEAD: usize = 8 * 1024;

/// The head of the response that begins in `bytes`: the response without its body, where the head ends, and
/// how long the body is; nothing while some of the head is missing.
///
/// The error says what is wrong with it: a mistake of ours, never of a client.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<(Response, usize, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut headers);
    let end = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD => return Err("its head is too long".into()),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(e) => return Err(format!("its head is no HTTP: {e}")),
    };
    let status = parsed.code.unwrap_or(0);
    let value = |name: &str| {
        let header = parsed.headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let number = |name: &str| value(name).and_then(|text| text.parse::<u32>().ok());
    let length = match status {
        204 => 0,
        _ => number("Content-Length").ok_or("it does not say how long it is")? as usize,
    };
    let ours = |name: &str| OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let others = parsed.headers.iter().filter(|h| !ours(h.name));
    let headers = others.map(|h| (h.name.to_owned(), text(h.value))).collect();
    Ok(Some((Response { status, headers, park: number(PARK_HEADER), body: Vec::new() }, end, length)))
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

    fn text(response: &Response, keep_alive: bool, bodiless: bool) -> String {
        String::from_utf8(response.clone().bytes(keep_alive, bodiless, SystemTime::UNIX_EPOCH).concat()).unwrap()
    }

    #[test]
    fn answers_are_written_with_their_headers() {
        let empty = text(&Response::empty(), true, false);
        assert_eq!(empty, format!("HTTP/1.1 204 No Content\r\n{DATE}X-JS-Time: 0\r\nConnection: keep-alive\r\n\r\n"));
        let response = Response::json(b"{}".to_vec());
        let head = format!(
            "HTTP/1.1 200 OK\r\n{DATE}Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(text(&response, false, false), format!("{head}{{}}"));
        assert_eq!(text(&response, false, true), head);
    }

    #[test]
    fn refusals_have_the_headers_of_their_status() {
        let refusal = |status, reason: &str| {
            text(&Response::refusal(&Refusal { status, reason: reason.into(), label: "x" }), false, false)
        };
        assert!(refusal(400, "a \"b\"").contains(r#"{"error":"a \"b\"","time":"#));
        assert!(refusal(503, "full").contains("\r\nRetry-After: "));
        assert!(refusal(429, "full").contains("\r\nRetry-After: "));
        assert!(refusal(401, "who").contains("\r\nWWW-Authenticate: Bearer\r\n"));
        assert!(refusal(405, "this path takes POST only").contains("\r\nAllow: POST\r\n"));
    }

    #[test]
    fn responses_of_tiny_http_are_read() {
        let text = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nX-JS-Park: 30\r\nRetry-After: 2\r\nContent-Length: 3\r\n\r\nabc";
        let head = text.len() - 3;
        for end in 0..head {
            assert_eq!(read(&text[..end]), Ok(None), "{end}");
        }
        let want = Response {
            status: 200,
            headers: vec![("Content-Type".into(), "text/plain".into()), ("Retry-After".into(), "2".into())],
            park: Some(30),
            body: Vec::new(),
        };
        assert_eq!(read(text), Ok(Some((want, head, 3))));
        assert!(read(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(read(b"nonsense\r\n\r\n").is_err());
        let (empty, _, length) = read(b"HTTP/1.1 204 No Content\r\nX-JS-Park: 1\r\n\r\n").unwrap().unwrap();
        assert_eq!((empty.status, empty.park, length), (204, Some(1), 0));
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let body = vec![b'x'; SMALL + 1];
        let place = body.as_ptr();
        let [head, rest] = Response::json(body).bytes(true, false, SystemTime::UNIX_EPOCH);
        assert!(head.ends_with(b"\r\n\r\n") && std::ptr::eq(rest.as_ptr(), place));
        let [_, rest] = Response::json(vec![b'x'; SMALL]).bytes(true, false, SystemTime::UNIX_EPOCH);
        assert!(rest.is_empty());
    }
}
