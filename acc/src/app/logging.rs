//! The log: lines on stderr, as talkative as `--log-level` says for each module.
//!
//! Owns: the one logger of the process. Does not own: what is worth a line.

use jscommon::directives::Directives;
use log::{LevelFilter, Log, Metadata, Record};
use simplelog::{ConfigBuilder, SharedLogger, WriteLogger};

struct Filtered {
    inner: Box<dyn SharedLogger>,
    directives: Directives,
}

impl Log for Filtered {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() as u8 <= self.directives.level_of(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.inner.log(record);
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

/// Starts logging to stderr. A second call changes nothing.
pub fn start(directives: &Directives) {
    let most = match directives.most() {
        0 => LevelFilter::Off,
        1 => LevelFilter::Error,
        2 => LevelFilter::Warn,
        3 => LevelFilter::Info,
        4 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let config = ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Debug)
        .set_target_level(LevelFilter::Debug)
        .set_location_level(LevelFilter::Off)
        .build();
    let inner: Box<dyn SharedLogger> = WriteLogger::new(most, config, std::io::stderr());
    if log::set_boxed_logger(Box::new(Filtered { inner, directives: directives.clone() })).is_ok() {
        log::set_max_level(most);
    }
}
