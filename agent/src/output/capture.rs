//! The output that a job's result keeps: the tails of both streams, the last result, the last alert.
//!
//! Bounded whatever a job writes: 64 KiB a stream, 1 MiB a message. Filled by the reader threads,
//! asked by the supervisor.

use super::marker::{MAX_BLOCK, Message};
use jscommon::level;
use std::collections::VecDeque;

/// Most bytes of a stream's tail.
const MAX_TAIL: usize = 64 * 1024;

/// Most lines of a stream's tail.
const MAX_LINES: usize = 1000;

/// The output that a job's result keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Captured {
    /// The level of `data`, 0 when there is none.
    pub(crate) level: u8,
    /// The last message of levels 20-23, at most 1 MiB of it.
    pub(crate) data: String,
    /// The last 1000 lines, at most 64 KiB each, of unmarked stdout and stderr.
    pub(crate) streams: [String; 2],
    /// The last message of level 9, at most 1 MiB of it.
    pub(crate) critical: String,
    /// Messages of levels 20-23 seen.
    pub(crate) results: u64,
    /// Bytes that were read of stdout and of stderr.
    pub(crate) bytes: [u64; 2],
    /// Whether `streams` or `data` is not all of it.
    pub(crate) truncated: bool,
}

/// The output that is kept while the pipes are read.
#[derive(Debug, Default)]
pub(super) struct CaptureBuffer {
    level: u8,
    data: String,
    critical: String,
    results: u64,
    bytes: [u64; 2],
    /// `data` was longer than what is kept of it.
    data_cut: bool,
    tails: [Tail; 2],
}

impl CaptureBuffer {
    /// Takes a message of stdout (0) or stderr (1).
    pub(super) fn note(&mut self, stream: usize, message: &Message<'_>) {
        if !message.marked {
            self.tails[stream].push(message);
        } else if level::is_result(message.level) {
            self.results += u64::from(!message.continued);
            self.level = message.level;
            self.data_cut = !keep(&mut self.data, message) || (message.continued && self.data_cut);
        } else if message.level == level::CRITICAL {
            let _ = keep(&mut self.critical, message);
        }
    }

    /// Counts bytes that were read of stdout (0) or stderr (1).
    pub(super) fn count(&mut self, stream: usize, bytes: usize) {
        self.bytes[stream] += bytes as u64;
    }

    /// Returns how many bytes were counted.
    pub(super) fn bytes(&self) -> [u64; 2] {
        self.bytes
    }

    /// Returns what has been captured by now.
    pub(super) fn snapshot(&self) -> Captured {
        let [(out, out_cut), (err, err_cut)] = [self.tails[0].text(), self.tails[1].text()];
        Captured {
            level: self.level,
            data: self.data.clone(),
            streams: [out, err],
            critical: self.critical.clone(),
            results: self.results,
            bytes: self.bytes,
            truncated: out_cut || err_cut || self.data_cut,
        }
    }
}

/// Replaces `kept` by the message, or adds to it what continues it, up to the bound. Says whether all of
/// the message was kept.
fn keep(kept: &mut String, message: &Message<'_>) -> bool {
    if !message.continued {
        kept.clear();
        kept.shrink_to(4096);
    }
    let room = message.text.floor_char_boundary(MAX_BLOCK.saturating_sub(kept.len()));
    kept.push_str(&message.text[..room]);
    room == message.text.len()
}

/// The last lines of a stream's ordinary text, with an LF between each two.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    /// There was a line, be it a blank one.
    begun: bool,
    /// Bytes were dropped at the front.
    cut: bool,
}

impl Tail {
    fn push(&mut self, message: &Message<'_>) {
        if self.begun && !message.continued {
            self.append(b"\n");
        }
        self.begun = true;
        self.append(message.text.as_bytes());
    }

    fn append(&mut self, text: &[u8]) {
        let whole = text.len();
        let text = &text[whole.saturating_sub(MAX_TAIL)..];
        self.cut |= text.len() < whole;
        let over = (self.bytes.len() + text.len()).saturating_sub(MAX_TAIL);
        if over > 0 {
            self.bytes.drain(..over);
            self.cut = true;
        }
        self.bytes.extend(text);
    }

    /// The last lines as they are kept, and whether there were more; what is left of a line whose start
    /// is gone, only when it is the only one.
    fn text(&self) -> (String, bool) {
        let mut ends = self.bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
        let mut start = ends.nth(MAX_LINES - 1).map_or(0, |at| at + 1);
        if start == 0 && self.cut {
            start = self.bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        }
        let bytes: Vec<u8> = self.bytes.range(start..).copied().collect();
        // The cut may have gone through a character.
        let whole = bytes.iter().position(|byte| byte & 0xc0 != 0x80).unwrap_or(bytes.len());
        (String::from_utf8_lossy(&bytes[whole..]).into_owned(), self.cut || start > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: u8, marked: bool, continued: bool, text: &str) -> Message<'_> {
        Message { level, marked, continued, text }
    }

    #[test]
    fn the_last_thousand_lines_of_each_stream() {
        let mut keeper = CaptureBuffer::default();
        for n in 0..1500 {
            keeper.note(0, &message(1, false, false, &n.to_string()));
        }
        for text in ["", "a", ""] {
            keeper.note(1, &message(2, false, false, text));
        }
        let captured = keeper.snapshot();
        let lines: Vec<&str> = captured.streams[0].split('\n').collect();
        assert_eq!((lines.len(), lines[0], lines[999]), (1000, "500", "1499"));
        assert_eq!(captured.streams[1], "\na\n");
        assert!(captured.truncated);
    }

    #[test]
    fn at_most_64_kib_of_them_and_no_half_line() {
        let mut keeper = CaptureBuffer::default();
        let line = "é".repeat(400);
        for _ in 0..500 {
            keeper.note(0, &message(1, false, false, &line));
        }
        let text = &keeper.snapshot().streams[0];
        assert!(text.len() <= MAX_TAIL && text.len() > MAX_TAIL - 1000);
        assert!(text.split('\n').all(|found| found == line));
        // A single line that is too long keeps its end.
        let mut keeper = CaptureBuffer::default();
        keeper.note(0, &message(1, false, false, &"é".repeat(40_000)));
        keeper.note(0, &message(1, false, true, "xend"));
        let text = &keeper.snapshot().streams[0];
        assert!(text.len() <= MAX_TAIL && text.starts_with('é') && text.ends_with("éxend"));
    }

    #[test]
    fn the_last_result_and_the_last_alert() {
        let mut keeper = CaptureBuffer::default();
        keeper.note(0, &message(20, true, false, "old"));
        keeper.note(1, &message(9, true, false, "alarm"));
        keeper.note(0, &message(1, true, false, "marked text is in no tail"));
        keeper.note(0, &message(22, true, false, &"x".repeat(MAX_BLOCK)));
        keeper.note(0, &message(22, true, true, "beyond the bound"));
        let captured = keeper.snapshot();
        assert_eq!((captured.level, captured.data.len(), captured.results), (22, MAX_BLOCK, 2));
        assert_eq!(captured.critical, "alarm");
        assert_eq!(captured.streams, [String::new(), String::new()]);
        // A long line comes in pieces and is put together again.
        keeper.note(0, &message(20, true, false, "{\"a\":"));
        keeper.note(0, &message(20, true, true, "1}"));
        let captured = keeper.snapshot();
        assert_eq!((captured.data.as_str(), captured.truncated), ("{\"a\":1}", false));
    }

    #[test]
    fn cut_output_is_reported_as_truncated() {
        let truncated = |count: usize, line: &str| {
            let mut keeper = CaptureBuffer::default();
            (0..count).for_each(|_| keeper.note(0, &message(1, false, false, line)));
            keeper.snapshot().truncated
        };
        assert!(!truncated(0, "") && !truncated(1000, "x") && truncated(1001, "x"));
        assert!(!truncated(1, &"x".repeat(MAX_TAIL)) && truncated(1, &"x".repeat(MAX_TAIL + 1)));
        // A line feed stands between each two lines.
        assert!(!truncated(2, &"x".repeat(MAX_TAIL / 2 - 1)) && truncated(2, &"x".repeat(MAX_TAIL / 2)));
        let mut keeper = CaptureBuffer::default();
        let mut data = |continued, text: &str| {
            keeper.note(0, &message(20, true, continued, text));
            keeper.snapshot().truncated
        };
        assert!(!data(false, &"x".repeat(MAX_BLOCK)));
        assert!(data(true, "y") && data(true, "") && !data(false, "short"));
        // Alerts and messages of other levels are in the records, and in no stream.
        keeper.note(0, &message(9, true, false, &"x".repeat(MAX_BLOCK)));
        keeper.note(0, &message(9, true, true, "y"));
        keeper.note(0, &message(3, true, false, "warning"));
        assert!(!keeper.snapshot().truncated);
    }

    #[test]
    fn bytes_are_counted_for_each_stream() {
        let mut keeper = CaptureBuffer::default();
        for (stream, bytes) in [(0, 5), (1, 2), (0, 7)] {
            keeper.count(stream, bytes);
        }
        assert_eq!(keeper.snapshot().bytes, [12, 2]);
    }
}
