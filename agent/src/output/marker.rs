//! From bytes to messages: the marker parser. Pure: no I/O, no clock.
//!
//! A line that begins with `N::` is a message of level N; `N:::` begins one of several lines that ends
//! at a line beginning with `:::`. Everything else is text, one message a line.
//!
//! **In scope**: any bytes in any pieces. The messages depend on the bytes alone, never on how reads
//! split them. Bytes that are no UTF-8 become U+FFFD, one for each maximal bad sequence, so that the
//! text around them stays readable. Long text comes in pieces, in order and without loss. Long is a line of more
//! than [`MAX_LINE`], or a block of more than [`MAX_BLOCK`].
//!
//! **Out of scope**: what becomes of a message. The reader decides that.

use jscommon::level;

/// Longest text of a message that is one line, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// Longest text of a message that is a block, in bytes.
pub const MAX_BLOCK: usize = 1024 * 1024;

/// Longest marker: two digits and three colons.
const MAX_MARKER: usize = 5;

/// One message, or one piece of a message that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its level.
    pub level: u8,
    /// Whether a marker said the level; ordinary text has none.
    pub marked: bool,
    /// Whether it goes on where the message before it was cut.
    pub continued: bool,
    /// Its text, without marker and line end.
    pub text: &'a str,
}

/// The parser of one stream.
#[derive(Debug)]
pub struct Parser {
    /// The level of ordinary text.
    plain: u8,
    /// The first bytes of a character that a read cut off.
    carry: [u8; 4],
    carried: usize,
    /// The part of the current line that is not decided yet.
    held: String,
    /// The text of the current block.
    block: String,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// In a line; `held` is all of it.
    Line,
    /// In a line whose first pieces are out; `held` is the rest, without the marker.
    Rest { level: u8, marked: bool },
    /// In a block, at the start of a line; `held` is the line so far.
    Block { level: u8, continued: bool, empty: bool },
    /// In a block, in a line that does not close it; `held` is at most one CR.
    BlockLine { level: u8, continued: bool },
    /// After a closing `:::`, whose line says nothing more.
    Skip,
}

/// The marker at the start of a line.
struct Marker {
    level: u8,
    block: bool,
    len: usize,
}

impl Parser {
    /// A parser whose ordinary text is of level `plain`: 1 on stdout, 2 on stderr.
    pub fn new(plain: u8) -> Parser {
        Parser { plain, carry: [0; 4], carried: 0, held: String::new(), block: String::new(), state: State::Line }
    }

    /// Takes the next bytes and hands every message that they complete to `sink`.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Message<'_>)) {
        while self.carried > 0 && !bytes.is_empty() {
            let mut character = self.carry;
            character[self.carried] = bytes[0];
            let len = self.carried + 1;
            match std::str::from_utf8(&character[..len]) {
                Ok(text) => {
                    self.carried = 0;
                    self.text(text, sink);
                    bytes = &bytes[1..];
                }
                Err(e) if e.error_len().is_none() => {
                    self.carry = character;
                    self.carried = len;
                    bytes = &bytes[1..];
                }
                Err(_) => {
                    // The new byte does not belong to the sequence; it is looked at again by itself.
                    self.carried = 0;
                    self.text("\u{fffd}", sink);
                }
            }
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => self.text(text, sink),
            Err(_) => self.lossy(bytes, sink),
        }
    }

    /// Takes bytes that are not all UTF-8, decoded as a whole: binary output has a bad byte at every second place.
    fn lossy(&mut self, bytes: &[u8], sink: &mut impl FnMut(Message<'_>)) {
        let mut decoded = Vec::with_capacity(2 * bytes.len());
        let mut left = bytes.len();
        for chunk in bytes.utf8_chunks() {
            let (good, bad) = (chunk.valid().as_bytes(), chunk.invalid());
            left -= good.len() + bad.len();
            match good.len() {
                // A call that copies so few takes longer than they do.
                0..16 => good.iter().for_each(|byte| decoded.push(*byte)),
                _ => decoded.extend_from_slice(good),
            }
            if left == 0 && std::str::from_utf8(bad).is_err_and(|fault| fault.error_len().is_none()) {
                self.carried = bad.len();
                self.carry[..self.carried].copy_from_slice(bad);
            } else if !bad.is_empty() {
                "\u{fffd}".bytes().for_each(|byte| decoded.push(byte));
            }
        }
        if let Ok(text) = std::str::from_utf8(&decoded) {
            self.text(text, sink);
        }
    }

    /// The stream has ended: hands over what has no end of its own.
    pub fn finish(&mut self, sink: &mut impl FnMut(Message<'_>)) {
        if self.carried > 0 {
            self.carried = 0;
            self.text("\u{fffd}", sink);
        }
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Line if held.is_empty() => {}
            // The last line of all may open a block.
            State::Line => {
                if let State::Block { .. } = self.line(&held, sink) {
                    self.end_block(sink);
                }
            }
            State::Rest { level, marked } => pieces(level, marked, true, &held, MAX_LINE, sink),
            State::Block { level, continued, empty } => {
                // An LF that ended the line before is no line of its own.
                if !held.is_empty() {
                    if !empty {
                        self.block.push('\n');
                    }
                    self.block.push_str(&held);
                }
                self.state = State::Block { level, continued, empty: false };
                self.end_block(sink);
            }
            State::BlockLine { level, continued } => {
                self.block.push_str(&held);
                self.state = State::Block { level, continued, empty: false };
                self.end_block(sink);
            }
            State::Skip => {}
        }
    }

    fn text(&mut self, mut text: &str, sink: &mut impl FnMut(Message<'_>)) {
        while !text.is_empty() {
            match memchr::memchr(b'\n', text.as_bytes()) {
                Some(end) => {
                    let line = &text[..end];
                    text = &text[end + 1..];
                    if self.held.is_empty() {
                        self.end_line(line, sink);
                    } else {
                        let mut held = std::mem::take(&mut self.held);
                        held.push_str(line);
                        self.end_line(&held, sink);
                        held.clear();
                        // One long line must not hold its memory for the rest of the job.
                        held.shrink_to(MAX_LINE / 16);
                        self.held = held;
                    }
                }
                None => {
                    self.held.push_str(text);
                    self.decide(sink);
                    return;
                }
            }
        }
    }

    /// The line is complete: `line` is what was held of it and what came since, without its LF.
    fn end_line(&mut self, line: &str, sink: &mut impl FnMut(Message<'_>)) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        self.state = match self.state {
            State::Line => self.line(line, sink),
            State::Rest { level, marked } => {
                pieces(level, marked, true, line, MAX_LINE, sink);
                State::Line
            }
            State::Block { .. } if line.starts_with(":::") => {
                self.end_block(sink);
                State::Line
            }
            State::Block { level, continued, empty } => {
                if !empty {
                    self.block.push('\n');
                }
                self.block.push_str(line);
                State::Block { level, continued: self.cut_block(level, continued, sink), empty: false }
            }
            State::BlockLine { level, continued } => {
                self.block.push_str(line);
                State::Block { level, continued: self.cut_block(level, continued, sink), empty: false }
            }
            State::Skip => State::Line,
        };
    }

    /// A whole line outside a block; says what comes after it.
    fn line(&mut self, line: &str, sink: &mut impl FnMut(Message<'_>)) -> State {
        match marker(line) {
            None => pieces(self.plain, false, false, line, MAX_LINE, sink),
            Some(Marker { level, block: false, len }) => pieces(level, true, false, &line[len..], MAX_LINE, sink),
            Some(Marker { level, block: true, len }) => {
                self.block.push_str(&line[len..]);
                self.state = State::Block { level, continued: false, empty: self.block.is_empty() };
                let continued = self.cut_block(level, false, sink);
                return State::Block { level, continued, empty: self.block.is_empty() };
            }
        }
        State::Line
    }

    /// The read ended within a line: takes out of `held` what is decided already, so that it stays small.
    fn decide(&mut self, sink: &mut impl FnMut(Message<'_>)) {
        match self.state {
            State::Line if self.held.len() >= MAX_LINE + MAX_MARKER + 2 => {
                let held = std::mem::take(&mut self.held);
                match marker(&held) {
                    Some(Marker { level, block: true, len }) => {
                        self.state = State::BlockLine { level, continued: false };
                        self.held.push_str(&held[len..]);
                    }
                    found => {
                        let (level, marked, len) = found.map_or((self.plain, false, 0), |m| (m.level, true, m.len));
                        let rest = full_pieces(level, marked, false, &held[len..], MAX_LINE, 1, sink);
                        self.held.push_str(rest);
                        self.state = State::Rest { level, marked };
                        return;
                    }
                }
                self.decide(sink);
            }
            State::Rest { level, marked } if self.held.len() >= MAX_LINE + 2 => {
                let held = std::mem::take(&mut self.held);
                self.held.push_str(full_pieces(level, marked, true, &held, MAX_LINE, 1, sink));
            }
            State::Block { level, continued, empty } if self.held.len() >= 3 => {
                if self.held.starts_with(":::") {
                    self.end_block(sink);
                    self.held.clear();
                    self.state = State::Skip;
                } else {
                    if !empty {
                        self.block.push('\n');
                    }
                    self.state = State::BlockLine { level, continued };
                    self.decide(sink);
                }
            }
            State::BlockLine { level, continued } => {
                // A CR at the end may belong to the line end.
                let cr = self.held.ends_with('\r');
                self.block.push_str(&self.held[..self.held.len() - usize::from(cr)]);
                self.held.clear();
                if cr {
                    self.held.push('\r');
                }
                let continued = self.cut_block(level, continued, sink);
                self.state = State::BlockLine { level, continued };
            }
            State::Skip => self.held.clear(),
            _ => {}
        }
    }

    /// Hands over whole pieces of a block that is too long; says whether the next piece continues one.
    fn cut_block(&mut self, level: u8, continued: bool, sink: &mut impl FnMut(Message<'_>)) -> bool {
        if self.block.len() <= MAX_BLOCK {
            return continued;
        }
        let block = std::mem::take(&mut self.block);
        let rest = full_pieces(level, true, continued, &block, MAX_BLOCK, 0, sink);
        self.block.push_str(rest);
        true
    }

    /// Hands over what the block holds and forgets it.
    fn end_block(&mut self, sink: &mut impl FnMut(Message<'_>)) {
        let block = std::mem::take(&mut self.block);
        if let State::Block { level, continued, .. } = self.state {
            pieces(level, true, continued, &block, MAX_BLOCK, sink);
        }
        if block.capacity() <= MAX_LINE {
            self.block = block;
            self.block.clear();
        }
    }
}

/// The marker at the start of `line`, when there is one that a process may use.
fn marker(line: &str) -> Option<Marker> {
    let bytes = line.as_bytes();
    let first = bytes.first()?;
    if !(b'1'..=b'9').contains(first) {
        return None;
    }
    let (level, digits) = match bytes.get(1)? {
        second @ b'0'..=b'9' => ((first - b'0') * 10 + (second - b'0'), 2),
        _ => (first - b'0', 1),
    };
    let colons = bytes[digits..].iter().take(3).take_while(|b| **b == b':').count();
    (colons >= 2 && level::may_be_marked(level)).then_some(Marker { level, block: colons == 3, len: digits + colons })
}

/// Hands over `text` in pieces of at most `max` bytes; an empty text is one empty message.
#[inline]
fn pieces(level: u8, marked: bool, continued: bool, text: &str, max: usize, sink: &mut impl FnMut(Message<'_>)) {
    if text.len() <= max {
        return sink(Message { level, marked, continued, text });
    }
    let rest = full_pieces(level, marked, continued, text, max, 0, sink);
    sink(Message { level, marked, continued: true, text: rest });
}

/// Hands over pieces as long as more than `max + spare` bytes are left, and gives back what is left.
///
/// `spare` is 1 where the last byte may turn out to belong to the line end: something must be left then.
fn full_pieces<'a>(
    level: u8,
    marked: bool,
    mut continued: bool,
    mut text: &'a str,
    max: usize,
    spare: usize,
    sink: &mut impl FnMut(Message<'_>),
) -> &'a str {
    while text.len() > max + spare {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        sink(Message { level, marked, continued, text: &text[..end] });
        continued = true;
        text = &text[end..];
    }
    text
}

#[cfg(test)]
mod tests;
