//! The frames of one spool on the disk: segment files that are appended to, read from any frame, and removed in front.
//!
//! **Owns** the segment files of one folder. A file's name has the offset of its first frame in the log and the
//! position of both streams there: `<offset>-<stdout>-<stderr>.seg`. No frame spans two files.
//! **Does not own** bounds, watches, or the meaning of a frame.
//!
//! Nothing is synced: it survives the agent and not the machine.

use jscommon::frame::{self, Frame, HEADER_BYTES, Kind};
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of a segment file, about.
pub(super) const SEGMENT_BYTES: u64 = 1 << 20;

/// Most payload of a frame here: a node of a crowded watch gets little room, and a frame goes whole.
pub(super) const CHUNK_BYTES: usize = 16 << 10;

/// Positions in stdout and stderr.
pub(crate) type Position = [u64; 2];

#[derive(Debug)]
struct Segment {
    start: u64,
    position: Position,
}

/// The log of one spool.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    segments: VecDeque<Segment>,
    end: u64,
    /// The position behind the last frame.
    position: Position,
    file: Option<File>,
}

/// A place at a frame's begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) position: Position,
}

impl Log {
    /// A log without a byte, in a folder that is there; its first bytes are at `position`.
    pub(super) fn new(dir: &Path, position: Position) -> Log {
        Log { dir: dir.to_owned(), segments: VecDeque::new(), end: 0, position, file: None }
    }

    /// Takes up what an earlier agent left in this folder, up to the last whole frame.
    pub(super) fn open(dir: &Path, fallback: Position) -> io::Result<Log> {
        let mut segments: Vec<Segment> =
            fs::read_dir(dir)?.filter_map(|entry| parse_name(entry.ok()?.file_name().to_str()?)).collect();
        segments.sort_by_key(|segment| segment.start);
        let mut log = Log { segments: segments.into(), ..Log::new(dir, fallback) };
        if let Some(last) = log.segments.back() {
            let mut bytes = Vec::new();
            let path = dir.join(file_name(last));
            File::open(&path)?.take(2 * SEGMENT_BYTES).read_to_end(&mut bytes)?;
            let whole = frame::whole_within(&bytes, bytes.len());
            if whole < bytes.len() {
                OpenOptions::new().write(true).open(&path)?.set_len(whole as u64)?;
            }
            log.end = last.start + whole as u64;
            log.position = last.position;
            frame::frames(&bytes[..whole]).flatten().for_each(|frame| pass(&mut log.position, frame));
        }
        Ok(log)
    }

    pub(super) fn start(&self) -> Place {
        match self.segments.front() {
            Some(first) => Place { offset: first.start, position: first.position },
            None => self.end(),
        }
    }

    pub(super) fn end(&self) -> Place {
        Place { offset: self.end, position: self.position }
    }

    /// Returns how many bytes lie on the disk.
    pub(super) fn size(&self) -> u64 {
        self.end - self.start().offset
    }

    /// Adds frames; after a fault nothing of them is there.
    pub(super) fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        let full = self.segments.back().is_none_or(|last| self.end - last.start >= SEGMENT_BYTES);
        if full || self.file.is_none() {
            self.file = None;
            if full {
                let next = Segment { start: self.end, position: self.position };
                let path = self.dir.join(file_name(&next));
                self.file = Some(OpenOptions::new().write(true).create(true).truncate(true).open(path)?);
                self.segments.push_back(next);
            } else if let Some(last) = self.segments.back() {
                self.file = Some(OpenOptions::new().append(true).open(self.dir.join(file_name(last)))?);
            }
        }
        let Some(file) = &mut self.file else { return Err(io::Error::other("there is no segment")) };
        if let Err(fault) = file.write_all(frames) {
            let before = self.end - self.segments.back().map_or(0, |last| last.start);
            let undone = file.set_len(before).and_then(|()| file.seek(SeekFrom::End(0)));
            if undone.is_err() {
                self.file = None;
            }
            return Err(fault);
        }
        self.end += frames.len() as u64;
        frame::frames(frames).flatten().for_each(|frame| pass(&mut self.position, frame));
        Ok(())
    }

    /// Closes the file that is written to; the next frames open it again.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// Returns the files that have the bytes from `offset` on, at most `most` of them: path, place in the file, length.
    pub(super) fn locate(&self, offset: u64, most: usize) -> Vec<(PathBuf, u64, usize)> {
        let (mut at, until) = (offset, self.end.min(offset.saturating_add(most as u64)));
        let mut parts = Vec::new();
        for (n, segment) in self.segments.iter().enumerate() {
            let end = self.segments.get(n + 1).map_or(self.end, |next| next.start);
            if at >= segment.start && at < end.min(until) {
                let length = end.min(until) - at;
                parts.push((self.dir.join(file_name(segment)), at - segment.start, length as usize));
                at += length;
            }
        }
        parts
    }

    /// Removes the files in front of which every byte lies before `floor`; the last one stays.
    pub(super) fn trim(&mut self, floor: u64) {
        while self.segments.get(1).is_some_and(|second| second.start <= floor)
            && let Some(first) = self.segments.pop_front()
        {
            let _ = fs::remove_file(self.dir.join(file_name(&first)));
        }
    }

    /// Returns the last place of which `is_before` holds, which holds up to some place and not behind it.
    pub(super) fn find(&self, is_before: impl Fn(Position) -> bool) -> io::Result<Option<Place>> {
        let Some(segment) = self.segments.iter().rfind(|segment| is_before(segment.position)) else {
            let end = self.end();
            return Ok((self.segments.is_empty() && is_before(end.position)).then_some(end));
        };
        let mut found = Place { offset: segment.start, position: segment.position };
        let mut bytes = Vec::new();
        let length = self.end - segment.start;
        File::open(self.dir.join(file_name(segment)))?.take(length.min(2 * SEGMENT_BYTES)).read_to_end(&mut bytes)?;
        let mut next = found;
        for frame in frame::frames(&bytes).map_while(Result::ok) {
            pass(&mut next.position, frame);
            next.offset += (HEADER_BYTES + frame.payload.len()) as u64;
            if !is_before(next.position) {
                break;
            }
            found = next;
        }
        Ok(Some(found))
    }
}

/// Reads what [`Log::locate`] found.
pub(super) fn read(parts: &[(PathBuf, u64, usize)], out: &mut Vec<u8>) -> io::Result<()> {
    for (path, at, length) in parts {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(*at))?;
        let before = out.len();
        file.take(*length as u64).read_to_end(out)?;
        if out.len() - before < *length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Adds the bytes of one stream to `out` as frames.
pub(super) fn push_chunks(out: &mut Vec<u8>, stream: usize, bytes: &[u8]) {
    let kind = if stream == 0 { Kind::Stdout } else { Kind::Stderr };
    bytes.chunks(CHUNK_BYTES).for_each(|chunk| frame::push(out, kind, chunk));
}

/// Adds a gap to `out`.
pub(super) fn push_gap(out: &mut Vec<u8>, gap: Position) {
    let text = serde_json::json!({"stdout": gap[0], "stderr": gap[1], "records": 0}).to_string();
    frame::push(out, Kind::Gap, text.as_bytes());
}

/// Moves a position over a frame.
fn pass(position: &mut Position, frame: Frame<'_>) {
    match frame.kind {
        Kind::Stdout => position[0] += frame.payload.len() as u64,
        Kind::Stderr => position[1] += frame.payload.len() as u64,
        Kind::Gap => {
            let gap: Value = serde_json::from_slice(frame.payload).unwrap_or_default();
            position[0] += gap["stdout"].as_u64().unwrap_or(0);
            position[1] += gap["stderr"].as_u64().unwrap_or(0);
        }
        Kind::Record | Kind::End => {}
    }
}

fn file_name(segment: &Segment) -> String {
    format!("{}-{}-{}.seg", segment.start, segment.position[0], segment.position[1])
}

fn parse_name(name: &str) -> Option<Segment> {
    let mut numbers = name.strip_suffix(".seg")?.split('-').map(|number| number.parse().ok());
    let segment = Segment { start: numbers.next()??, position: [numbers.next()??, numbers.next()??] };
    numbers.next().is_none().then_some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(stream: usize, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_chunks(&mut out, stream, bytes);
        out
    }

    fn all(log: &Log, from: u64) -> Vec<u8> {
        let mut out = Vec::new();
        read(&log.locate(from, usize::MAX), &mut out).unwrap();
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn log_is_read_as_it_was_written_from_every_frame(
            writes in prop::collection::vec((0..2usize, 1..200_000usize), 1..30), torn in 0..8usize,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut log = Log::new(dir.path(), [5, 7]);
            let (mut whole, mut places) = (Vec::new(), vec![log.end()]);
            for (n, (stream, length)) in writes.iter().enumerate() {
                let bytes = frames(*stream, &vec![n as u8; *length]);
                log.append(&bytes).unwrap();
                whole.extend(bytes);
                places.push(log.end());
            }
            for place in &places {
                prop_assert_eq!(&all(&log, place.offset), &whole[place.offset as usize..]);
                let [out, err] = place.position;
                prop_assert_eq!(log.find(|at| at[0] <= out && at[1] <= err).unwrap(), Some(*place));
            }
            // The last frame of a write that was cut off goes.
            let last = dir.path().join(file_name(log.segments.back().unwrap()));
            OpenOptions::new().append(true).open(last).unwrap().write_all(&[1, 0, 0, 0, 0, 0, 0, 9][..torn]).unwrap();
            let again = Log::open(dir.path(), [0, 0]).unwrap();
            prop_assert_eq!((again.start(), again.end()), (log.start(), log.end()));
            prop_assert_eq!(all(&again, 0), whole);
        }
    }

    #[test]
    fn only_files_of_which_every_byte_lies_before_the_floor_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), [0, 0]);
        for _ in 0..64 {
            log.append(&frames(0, &[1; 64 << 10])).unwrap();
        }
        let count = || fs::read_dir(dir.path()).unwrap().count();
        let before = count();
        log.trim(SEGMENT_BYTES - 1);
        assert_eq!((count(), log.start().offset), (before, 0));
        log.trim(3 << 20);
        assert!(log.start().offset > 1 << 20 && log.start().offset <= 3 << 20 && count() < before);
        log.trim(u64::MAX);
        assert_eq!(count(), 1, "the file that is written to stays");
        assert_eq!(log.find(|at| at == [0, 0]).unwrap(), None);
    }

    #[test]
    fn gaps_move_the_position() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(dir.path(), [0, 0]);
        let mut bytes = frames(1, b"abc");
        push_gap(&mut bytes, [10, 4]);
        log.append(&bytes).unwrap();
        assert_eq!(log.end().position, [10, 7]);
        assert_eq!(Log::open(dir.path(), [9, 9]).unwrap().end().position, [10, 7]);
        assert!(parse_name("1-2.seg").is_none() && parse_name("1-2-3-4.seg").is_none() && parse_name("meta").is_none());
    }
}
