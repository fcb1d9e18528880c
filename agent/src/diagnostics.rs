//! The agent's own log: lines on stderr, as talkative as `--log-level` says for each module; in a file
//! where nobody reads stderr.
//!
//! Owns the one logger of the process. Each module decides what is worth a line. Nothing here knows of jobs'
//! messages, which are [`crate::storage::message_log`]'s.

use crate::platform;
use jscommon::directives::Directives;
use log::{LevelFilter, Log, Metadata, Record};
use simplelog::{ConfigBuilder, WriteLogger};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Bytes of a log file at which it is set aside; one of those is kept.
const LARGEST: u64 = 5 * 1024 * 1024;
/// Bytes that are written before a log file which could not be set aside is tried again.
const TRY_AFTER: u64 = LARGEST / 8;

struct Filtered {
    lines: Box<WriteLogger<Box<dyn Write + Send>>>,
    directives: Directives,
}

impl Log for Filtered {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() as u8 <= self.directives.level_of(metadata.target())
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            self.lines.log(record);
        }
    }

    fn flush(&self) {
        self.lines.flush();
    }
}

/// Starts to log to stderr. A second call changes nothing.
pub(crate) fn start(directives: Directives) {
    start_into(directives, Box::new(io::stderr()));
}

/// Starts to log into a file: `jsagent.log` becomes `jsagent.log.old` at 5 MB, or begins anew at 10 MB where
/// another program keeps it from that.
pub(crate) fn start_in(directives: Directives, path: &Path) -> io::Result<()> {
    start_into(directives, Box::new(LogFile::open(path)?));
    Ok(())
}

fn start_into(directives: Directives, to: Box<dyn Write + Send>) {
    let most = LevelFilter::iter().nth(directives.most().into()).unwrap_or(LevelFilter::Trace);
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Debug)
        .set_target_level(LevelFilter::Debug)
        .set_location_level(LevelFilter::Off)
        .build();
    let lines = WriteLogger::new(most, config, to);
    if log::set_boxed_logger(Box::new(Filtered { lines, directives })).is_ok() {
        log::set_max_level(most);
    }
}

/// A file that begins anew when it is full.
struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    /// The size at which it is full.
    full: u64,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<LogFile> {
        let mut log = LogFile { path: path.to_owned(), file: None, size: 0, full: LARGEST };
        log.file()?;
        Ok(log)
    }

    fn file(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let file = File::options().append(true).create(true).open(&self.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn set_aside(&mut self) -> io::Result<()> {
        // Closed first: an open file keeps its name on Windows.
        self.file = None;
        let old = self.path.with_extension("log.old");
        let Err(fault) = platform::rename(&self.path, &old) else {
            (self.size, self.full) = (0, LARGEST);
            return Ok(());
        };
        // It is written on, for a log is no reason to end, but not without end.
        let full = self.size;
        let file = self.file()?;
        if full >= 2 * LARGEST {
            file.set_len(0)?;
        }
        let said = writeln!(file, "jsagent: this file cannot be renamed to {}: {fault}", old.display());
        self.size = file.metadata()?.len();
        self.full = (self.size + TRY_AFTER).max(LARGEST);
        said
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size >= self.full {
            self.full = self.size + TRY_AFTER;
            self.set_aside()?;
        }
        let written = self.file()?.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_full_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jsagent.log");
        fs::write(&path, vec![b'x'; LARGEST as usize]).unwrap();
        let mut file = LogFile::open(&path).unwrap();
        file.write_all(b"one\n").unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        assert_eq!(fs::metadata(dir.path().join("jsagent.log.old")).unwrap().len(), LARGEST);
    }

    // On Windows each of the failures takes two seconds.
    #[cfg(unix)]
    #[test]
    fn a_file_that_cannot_be_set_aside_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("jsagent.log"), dir.path().join("jsagent.log.old"));
        // No file takes the place of a folder that is not empty.
        fs::create_dir_all(old.join("x")).unwrap();
        fs::write(&path, vec![b'x'; LARGEST as usize]).unwrap();
        let mut file = LogFile::open(&path).unwrap();
        let line = vec![b'y'; 64 << 10];
        let mut largest = 0;
        for _ in 0..3 * LARGEST as usize / line.len() {
            file.write_all(&line).unwrap();
            largest = largest.max(fs::metadata(&path).unwrap().len());
        }
        let limit = 2 * LARGEST + TRY_AFTER + line.len() as u64;
        assert!((2 * LARGEST..=limit).contains(&largest), "{largest}");
        let said = fs::read(&path).unwrap();
        let said = said.windows(7).filter(|bytes| bytes == b"jsagent").count();
        assert!((1..=32).contains(&said), "told {said} times, and not at every line");
        fs::remove_dir_all(&old).unwrap();
        for _ in 0..2 * LARGEST as usize / line.len() {
            file.write_all(&line).unwrap();
        }
        assert!(old.is_file() && fs::metadata(&path).unwrap().len() <= LARGEST + line.len() as u64);
    }
}
