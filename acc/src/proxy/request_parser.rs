//! One connection as bytes: a pure state machine that yields one whole, bounded request at a time.
//!
//! **In scope**: where a head ends, what it may hold, how long its body is, when a request is whole,
//! and for everything else the status, the sentence and the label of its refusal.
//! **Out of scope**: sockets, TLS, time, credentials. The event loop feeds bytes in, asks `step` what
//! they make, and says what became of each request (`admit`, `finish`).
//!
//! It is stricter than HTTP asks for, so that no two readers of one message can disagree about where
//! it ends: CR LF line ends only, one `Content-Length`, no `Transfer-Encoding` (411), no pipelining.

use super::request_head::{RequestHead, parse};
use crate::http::Refusal;

/// Most empty lines before a request line; some clients send one after a body.
const MAX_EMPTY_LINES: u8 = 2;

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
    // Numbers of four bytes, for there may be very many connections.
    max_head: u32,
    max_body: u32,
    buf: Vec<u8>,
    /// Bytes of `buf` that the search for the head's end has been over.
    scanned: u32,
    /// Where in `buf` the line at `scanned` begins.
    line: u32,
    /// Bytes of the body.
    length: u32,
    empty_lines: u8,
    stage: Stage,
    keep_alive: bool,
    /// Bytes came while a request was being answered.
    excess: bool,
}

impl Conn {
    /// A new connection; heads up to `max_head` bytes, bodies up to `max_body`, each 4 GiB at most.
    pub(crate) fn new(max_head: usize, max_body: usize) -> Conn {
        let four_bytes = |max: usize| u32::try_from(max).unwrap_or(u32::MAX);
        Conn {
            max_head: four_bytes(max_head),
            max_body: four_bytes(max_body),
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
            self.buf.reserve_exact(self.body_length().saturating_sub(self.buf.len()));
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
        if self.stage == Stage::Body { self.body_length().saturating_sub(self.buf.len()) } else { 0 }
    }

    fn body_length(&self) -> usize {
        self.length as usize
    }

    fn head(&mut self) -> Result<Step, Refusal> {
        let Some(end) = self.scan()? else {
            return Ok(Step::More);
        };
        let (head, keep_alive) = parse(&self.buf[..end], self.max_body as usize)?;
        self.keep_alive = keep_alive;
        self.length = head.length as u32; // at most `max_body`
        // The rest is the beginning of the body; the memory of the head is given back.
        self.buf = self.buf[end..].to_vec();
        if self.buf.len() > self.body_length() && self.beyond() {
            return Err(pipelined());
        }
        (self.scanned, self.line, self.empty_lines) = (0, 0, 0);
        self.stage = Stage::Verdict;
        Ok(Step::Head(head))
    }

    fn body(&mut self) -> Step {
        if self.buf.len() < self.body_length() {
            return Step::More;
        }
        if self.buf.len() > self.body_length() && self.beyond() {
            self.stage = Stage::Closed;
            self.keep_alive = false;
            self.buf = Vec::new();
            return Step::Refused(pipelined());
        }
        self.buf.truncate(self.body_length());
        self.stage = Stage::Busy;
        Step::Whole(std::mem::take(&mut self.buf))
    }

    /// Whether what stands behind the body is more than the line end that some clients add.
    fn beyond(&self) -> bool {
        !b"\r\n".starts_with(&self.buf[self.body_length()..])
    }

    /// Looks for the end of the head in the bytes that were not looked at yet.
    fn scan(&mut self) -> Result<Option<usize>, Refusal> {
        while (self.scanned as usize) < self.buf.len() {
            let (at, line) = (self.scanned as usize, self.line as usize);
            if self.scanned >= self.max_head {
                return Err(Refusal::new(431, "head-too-long", format!("the head is over {} bytes", self.max_head)));
            }
            let byte = self.buf[at];
            let after_cr = at > line && self.buf[at - 1] == b'\r';
            match byte {
                b'\n' if after_cr => {
                    let empty = at - line == 1;
                    self.scanned += 1;
                    if empty && line > 0 {
                        return Ok(Some(at + 1));
                    }
                    if empty {
                        self.skip_empty_line()?;
                    } else {
                        self.line = self.scanned;
                    }
                    continue;
                }
                b'\n' => return Err(Refusal::bad_request("line-end", "a line of the head ends without CR")),
                _ if after_cr => return Err(Refusal::bad_request("line-end", "a CR stands alone in the head")),
                b'\r' | b'\t' | 0x80.. => {}
                0..0x20 | 0x7f => {
                    return Err(Refusal::bad_request("garbage", "this is no HTTP: the head holds control characters"));
                }
                _ => {}
            }
            if line == 0 && at == 0 && !byte.is_ascii_uppercase() && byte != b'\r' {
                return Err(Refusal::bad_request("garbage", "this is no HTTP: a request begins with its method"));
            }
            self.scanned += 1;
        }
        Ok(None)
    }

    fn skip_empty_line(&mut self) -> Result<(), Refusal> {
        self.empty_lines += 1;
        if self.empty_lines > MAX_EMPTY_LINES {
            return Err(Refusal::bad_request("garbage", "nothing but empty lines"));
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
    Refusal::bad_request("pipelined", "one request at a time: bytes follow the request before its answer")
}

#[cfg(test)]
#[path = "request_parser_tests.rs"]
mod tests;
