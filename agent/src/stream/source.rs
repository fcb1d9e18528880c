//! The frames of one watch, from any offset: a job's output from its spool, the bytes of a file, or records.
//!
//! **Owns** which frame stands at which offset, the hash of what was sent, and the end frame.
//! **Does not own** when something is sent, or how long bytes are kept.
//!
//! A job's watch is a gap (where it begins behind what is asked for), then its part of the log as it is, then a gap
//! that no frame tells of, then the end. Thus an offset in the watch is one in the log, moved.

use super::record_source::RecordSource;
use super::segments::{self, CHUNK_BYTES, Position};
use super::spool::Spool;
use super::suffix::{Suffix, push_end};
use jscommon::frame::{self, HEADER_BYTES, Kind};
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

/// Bytes of a whole frame.
const FRAME_BYTES: usize = CHUNK_BYTES + HEADER_BYTES;

/// The frames of one watch.
pub(super) enum Source {
    Job(Box<JobSource>),
    File(Box<FileSource>),
    Records(Box<RecordSource>),
}

impl Source {
    /// Whether there are bytes past `offset`.
    pub(super) fn is_pending(&self, offset: u64) -> bool {
        match self {
            Source::Job(job) => job.is_pending(offset),
            Source::File(file) => file.suffix.as_ref().is_none_or(|suffix| offset < suffix.end()),
            Source::Records(records) => records.is_pending(offset),
        }
    }

    /// Whether everything up to the end frame lies before `offset`.
    pub(super) fn is_over(&self, offset: u64) -> bool {
        self.suffix().is_some_and(|suffix| offset >= suffix.end())
    }

    fn suffix(&self) -> Option<&Suffix> {
        match self {
            Source::Job(job) => job.suffix.as_ref(),
            Source::File(file) => file.suffix.as_ref(),
            Source::Records(records) => records.suffix.as_ref(),
        }
    }

    /// Puts whole frames from `offset` on into `out`: at most `most` bytes, or one frame. What cannot be read makes an
    /// end frame with the error.
    pub(super) fn read(&mut self, offset: u64, most: usize, out: &mut Vec<u8>) {
        out.clear();
        if let Some(suffix) = self.suffix().filter(|suffix| offset >= suffix.at) {
            let from = (offset - suffix.at).min(suffix.frames.len() as u64) as usize;
            return out.extend_from_slice(&suffix.frames[from..]);
        }
        let read = match self {
            Source::Job(job) => job.read(offset, most, out),
            Source::File(file) => file.read(offset, most, out),
            Source::Records(records) => records.read(offset, most, out),
        };
        if let Err(fault) = read {
            out.clear();
            let error = format!("it cannot be read any further: {fault}");
            match self {
                Source::Job(job) => {
                    let position = job.spool.locate(0, 0).position;
                    job.end(offset, position, [0, 0], Some(&error));
                }
                Source::File(file) => file.end(offset, Some(&error)),
                Source::Records(records) => records.end(offset, &error),
            }
        }
        if let Some(suffix) = self.suffix().filter(|suffix| suffix.at == offset + out.len() as u64)
            && (out.is_empty() || out.len() + suffix.frames.len() <= most)
        {
            out.extend_from_slice(&suffix.frames);
        }
    }

    /// Whether all that there is was read, and a little later there may be more.
    pub(super) fn is_at_end(&self) -> bool {
        matches!(self, Source::Records(records) if records.is_at_end())
    }

    /// The agent stops: what has no end of its own ends.
    pub(super) fn stop(&mut self) {
        if let Source::Records(records) = self {
            records.stop();
        }
    }

    /// The controller has what lies before `offset`.
    pub(super) fn taken(&self, id: &str, offset: u64) {
        if let Source::Job(job) = self {
            job.spool.taken(id, job.in_log(offset));
        }
    }

    /// The watch has lapsed, or nobody wants it.
    pub(super) fn lapse(&self, id: &str) {
        if let Source::Job(job) = self {
            job.spool.lapse(id);
        }
    }

    /// The watch is over.
    pub(super) fn leave(&self, id: &str) {
        if let Source::Job(job) = self {
            job.spool.leave(id);
        }
    }
}

/// The output of a job.
pub(super) struct JobSource {
    spool: Arc<Spool>,
    prefix: Vec<u8>,
    /// The place in the log that follows the prefix.
    base: u64,
    /// Of the bytes of both streams before `hashed`; `None` where an earlier agent has sent some of them.
    hashes: Option<[Context; 2]>,
    hashed: u64,
    suffix: Option<Suffix>,
}

impl JobSource {
    pub(super) fn new(spool: Arc<Spool>, base: u64, gap: Position, is_resumed: bool) -> JobSource {
        let mut prefix = Vec::new();
        if gap != [0, 0] {
            segments::push_gap(&mut prefix, gap);
        }
        let hashes = (!is_resumed).then(|| [Context::new(&SHA256), Context::new(&SHA256)]);
        JobSource { spool, prefix, base, hashes, hashed: 0, suffix: None }
    }

    fn in_log(&self, offset: u64) -> u64 {
        self.base + offset.saturating_sub(self.prefix.len() as u64)
    }

    fn is_pending(&self, offset: u64) -> bool {
        if let Some(suffix) = &self.suffix {
            return offset < suffix.end();
        }
        let found = self.spool.locate(u64::MAX, 0);
        offset < self.prefix.len() as u64 || self.in_log(offset) < found.end || found.closed.is_some()
    }

    fn read(&mut self, offset: u64, most: usize, out: &mut Vec<u8>) -> io::Result<()> {
        if offset < self.prefix.len() as u64 {
            out.extend_from_slice(&self.prefix[offset as usize..]);
            return Ok(());
        }
        let at = self.in_log(offset);
        let found = self.spool.locate(at, most.max(FRAME_BYTES));
        if at < found.start || at > found.end {
            return Err(io::Error::other("the controller has another part of it than this node"));
        }
        segments::read(&found.parts, out)?;
        let whole = frame::whole_within(out, most);
        // Room for less than a frame takes one all the same.
        let whole = if whole == 0 { frame::whole_within(out, out.len().min(FRAME_BYTES)) } else { whole };
        if whole == 0 && !out.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        out.truncate(whole);
        self.hash(offset, out);
        if let Some(error) = found.closed
            && at + whole as u64 == found.end
        {
            self.end(offset + whole as u64, found.position, found.gap, error.as_deref());
        }
        Ok(())
    }

    /// Hashes the frames that are sent for the first time.
    fn hash(&mut self, offset: u64, frames: &[u8]) {
        let (mut at, hashed) = (offset, &mut self.hashed);
        for frame in frame::frames(frames).map_while(Result::ok) {
            if at >= *hashed
                && let Some(hashes) = &mut self.hashes
            {
                match frame.kind {
                    Kind::Stdout => hashes[0].update(frame.payload),
                    Kind::Stderr => hashes[1].update(frame.payload),
                    _ => {}
                }
            }
            at += (HEADER_BYTES + frame.payload.len()) as u64;
        }
        *hashed = (*hashed).max(at);
    }

    fn end(&mut self, at: u64, position: Position, gap: Position, error: Option<&str>) {
        let mut frames = Vec::new();
        if gap != [0, 0] {
            segments::push_gap(&mut frames, gap);
        }
        let stream = |n: usize| {
            let mut said = json!({"bytes": position[n]});
            if let Some(hashes) = &self.hashes {
                said["sha256"] = hex(hashes[n].clone()).into();
            }
            said
        };
        push_end(&mut frames, json!({"stdout": stream(0), "stderr": stream(1)}), error);
        self.suffix = Some(Suffix { at, frames });
    }
}

/// A part of a regular file.
pub(super) struct FileSource {
    file: File,
    start: u64,
    length: u64,
    /// `size`, `mode` and `mtime` for the end frame.
    facts: Value,
    hash: Context,
    hashed: u64,
    suffix: Option<Suffix>,
}

impl FileSource {
    pub(super) fn new(file: File, start: u64, length: u64, facts: Value) -> FileSource {
        FileSource { file, start, length, facts, hash: Context::new(&SHA256), hashed: 0, suffix: None }
    }

    fn read(&mut self, offset: u64, most: usize, out: &mut Vec<u8>) -> io::Result<()> {
        // Every frame but the last is full.
        let full = FRAME_BYTES as u64;
        let mut at = offset / full * CHUNK_BYTES as u64 + (offset % full).saturating_sub(HEADER_BYTES as u64);
        self.file.seek(SeekFrom::Start(self.start.saturating_add(at)))?;
        while at < self.length && (out.is_empty() || out.len() + FRAME_BYTES <= most) {
            let length = (self.length - at).min(CHUNK_BYTES as u64) as usize;
            let head = out.len();
            out.extend_from_slice(&frame::header(Kind::Stdout, length));
            (&self.file).take(length as u64).read_to_end(out)?;
            let bytes = &out[head + HEADER_BYTES..];
            if bytes.len() < length {
                return Err(io::Error::other("the file became shorter while it was read"));
            }
            if at >= self.hashed {
                self.hash.update(bytes);
                self.hashed = at + length as u64;
            }
            at += length as u64;
        }
        if at >= self.length {
            let changed = self.file.metadata().map(|now| file_facts(&now) != self.facts)?;
            self.end(offset + out.len() as u64, changed.then_some("the file changed while it was read"));
        }
        Ok(())
    }

    fn end(&mut self, at: u64, error: Option<&str>) {
        let mut said = self.facts.clone();
        said["sha256"] = hex(self.hash.clone()).into();
        let mut frames = Vec::new();
        push_end(&mut frames, said, error);
        self.suffix = Some(Suffix { at, frames });
    }
}

/// Returns `size`, `mode` and `mtime` of a file.
pub(super) fn file_facts(meta: &std::fs::Metadata) -> Value {
    let since = meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let mtime = since.map_or(0, |since| since.as_millis() as u64);
    json!({"size": meta.len(), "mode": crate::platform::mode_of(meta), "mtime": mtime})
}

fn hex(context: Context) -> String {
    jscommon::token::hex(context.finish().as_ref())
}
