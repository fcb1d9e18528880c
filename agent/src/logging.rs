//! The agent's own log: lines on stderr, as talkative as `--log-level` says for each module.
//!
//! Owns the one logger of the process. What is worth a line is everybody's own business; nothing
//! here knows of jobs' messages, which are [`crate::logger`]'s.

use jscommon::directives::Directives;
use log::{LevelFilter, Log, Metadata, Record};
use simplelog::{ConfigBuilder, WriteLogger};

struct Filtered {
    lines: Box<WriteLogger<std::io::Stderr>>,
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
    let most = LevelFilter::iter().nth(directives.most().into()).unwrap_or(LevelFilter::Trace);
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Debug)
        .set_target_level(LevelFilter::Debug)
        .set_location_level(LevelFilter::Off)
        .build();
    let lines = WriteLogger::new(most, config, std::io::stderr());
    if log::set_boxed_logger(Box::new(Filtered { lines, directives })).is_ok() {
        log::set_max_level(most);
    }
}
