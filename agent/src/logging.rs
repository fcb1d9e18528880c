//! The agent's own log: lines on stderr, as talkative as `--log-level` says for each module; in a file
//! where nobody reads stderr.
//!
//! Owns the one logger of the process. What is worth a line is everybody's own business; nothing
//! here knows of jobs' messages, which are [`crate::logger`]'s.

use jscommon::directives::Directives;
use log::{LevelFilter, Log, Metadata, Record};
use simplelog::{ConfigBuilder, WriteLogger};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Most bytes of a log file; what went before it is kept once.
const LARGEST: u64 = 5 * 1024 * 1024;

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
pub fn start(directives: Directives) {
    start_into(directives, Box::new(io::stderr()));
}

/// Starts to log into a file, at most twice 5 MB: `jsagent.log` becomes `jsagent.log.old` when it is full.
pub fn start_in(directives: Directives, path: &Path) -> io::Result<()> {
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
}

impl LogFile {
    fn open(path: &Path) -> io::Result<LogFile> {
        let file = File::options().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file: Some(file), size })
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size >= LARGEST || self.file.is_none() {
            // Closed first: an open file keeps its name on Windows.
            self.file = None;
            // One that cannot be set aside is written on; a log is no reason to end.
            let _ = fs::rename(&self.path, self.path.with_extension("log.old"));
            *self = LogFile::open(&self.path)?;
        }
        let Some(file) = &mut self.file else { return Ok(0) };
        let written = file.write(bytes)?;
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
}
