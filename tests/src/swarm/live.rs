//! The live output of one node: lines at a steady rate, sent as an agent does, with one request at a time. Pure.

use jscommon::frame::{self, Kind};
use jscommon::token::sha256_hex;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Lines a second.
const RATE: f64 = 10.0;
/// How long a node waits that has nothing to send, or no room.
const PAUSE: Duration = Duration::from_millis(20);

/// A job that writes lines, and its result, which follows the end of the output.
pub(crate) struct Live {
    /// The id of its watch.
    pub(crate) id: String,
    pub(crate) ticket: String,
    pub(crate) result: Value,
    nid: u32,
    begun: Instant,
    lines: u32,
    written: Vec<u8>,
    sent: u32,
    /// Frame bytes that the controller has.
    pub(crate) offset: u64,
    /// The lines and bytes of the request that is out; the end has no lines.
    out: Option<(u32, u64)>,
    ended: bool,
    wait_until: Option<Instant>,
}

impl Live {
    /// Returns the output for a command `lines COUNT` with a watch; nothing for any other.
    pub(crate) fn of(nid: u32, command: &Value, result: Value, now: Instant) -> Option<Live> {
        let args = &command["args"];
        if command["cmd"] != "execute" || args["stream"] != true || args["cmd"] != "lines" {
            return None;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(Live {
            id: text(&command["id"]),
            ticket: text(&command["ticket"]),
            result,
            nid,
            begun: now,
            lines: args["args"][0].as_str().and_then(|count| count.parse().ok()).unwrap_or(0),
            written: Vec::new(),
            sent: 0,
            offset: 0,
            out: None,
            ended: false,
            wait_until: None,
        })
    }

    /// Whether all was sent, the end too.
    pub(crate) fn is_over(&self) -> bool {
        self.ended
    }

    /// Returns how long to wait before the next request.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        if let Some(until) = self.wait_until.filter(|until| *until > now) {
            return Some(until - now);
        }
        let next = self.begun + Duration::from_secs_f64(f64::from(self.sent + 1) / RATE);
        (self.sent < self.lines && next > now).then(|| next - now)
    }

    /// Returns the frames of the next request.
    pub(crate) fn body(&mut self, now: Instant) -> Vec<u8> {
        let due = (now.saturating_duration_since(self.begun).as_secs_f64() * RATE) as u32;
        let due = due.clamp(self.sent, self.lines);
        let (kind, payload) = if self.sent < self.lines {
            let lines: String = (self.sent..due).map(|n| format!("{}:{n} a line of output\n", self.nid)).collect();
            (Kind::Stdout, lines.into_bytes())
        } else {
            let bytes = self.written.len();
            let end = json!({"stdout": {"bytes": bytes, "sha256": sha256_hex(&self.written)},
                "stderr": {"bytes": 0, "sha256": sha256_hex(b"")}});
            (Kind::End, end.to_string().into_bytes())
        };
        let body = [&frame::header(kind, payload.len())[..], &payload].concat();
        self.out = Some((due - self.sent, body.len() as u64));
        if self.sent == self.lines {
            return body;
        }
        self.written.truncate(self.written_before());
        self.written.extend(&payload);
        body
    }

    /// The answer to the last request.
    pub(crate) fn answered(&mut self, status: u16, body: &[u8], now: Instant) {
        let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let Some((lines, bytes)) = self.out.take() else { return };
        if status == 200 && answer["watch"] == 0 || !matches!(status, 200 | 409) {
            self.ended = true;
            return;
        }
        if answer["have"] == self.offset + bytes {
            self.offset += bytes;
            self.ended = self.sent == self.lines;
            self.sent += lines;
        } else {
            self.wait_until = Some(now + PAUSE);
        }
    }

    /// Bytes of the lines that the controller has.
    fn written_before(&self) -> usize {
        let mut ends = self.written.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        if self.sent == 0 { 0 } else { ends.nth(self.sent as usize - 1).unwrap_or(self.written.len()) }
    }
}
