//! The pipe readers: two threads a child, from the pipe through the parser to the outlets.
//!
//! A reader ends with its pipe, and nobody waits for it: a grandchild can hold a pipe for ever.
//! Handing over waits while the logger is behind; then the pipe fills up, and then its writer waits.

use super::codepage::CodePage;
use super::marker::{Message, Parser};
use super::{Capture, Outlets, Source};
use crate::logger::batch::{Batch, now};
use crate::os;
use jscommon::level;
use std::io::{self, ErrorKind, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

/// The buffer of a reader at first: most jobs write little, and many of them run for long.
const FIRST_BUFFER: usize = 512;

/// What a buffer is multiplied with when a read has filled it.
const GROWTH: usize = 8;

/// The largest buffer: as much as a Linux pipe holds.
const FULL_BUFFER: usize = 64 * 1024;

const STACK: usize = 128 * 1024;

/// Runs what it holds once the last reader has let go of it.
struct Ended<F: FnOnce()>(Mutex<Option<F>>);

impl<F: FnOnce()> Drop for Ended<F> {
    fn drop(&mut self) {
        if let Some(run) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            run();
        }
    }
}

/// Reads both pipes of a child on two detached threads.
///
/// `ended` runs once, when both pipes have ended; by then everything that was read has been handed
/// to the outlets. The error is the operating system's, when it gives no more threads; then `ended`
/// never runs.
pub fn attach(
    source: &Arc<Source>,
    stdout: impl Read + Send + 'static,
    stderr: impl Read + Send + 'static,
    outlets: &Outlets,
    ended: impl FnOnce() + Send + 'static,
) -> io::Result<Arc<Capture>> {
    let capture = Arc::new(Capture::default());
    let ended = Arc::new(Ended(Mutex::new(Some(ended))));
    let reader = |stream: usize| Reader {
        stream,
        parser: Parser::new(if stream == 0 { level::STDOUT } else { level::STDERR }),
        source: Arc::clone(source),
        outlets: outlets.clone(),
        capture: Arc::clone(&capture),
        statsd: String::new(),
        page: os::DECODE.map(CodePage::new),
    };
    let (out, err) = (reader(0), reader(1));
    let (out_ended, err_ended) = (Arc::clone(&ended), Arc::clone(&ended));
    let spawned = Builder::new()
        .name("stdout".into())
        .stack_size(STACK)
        .spawn(move || {
            out.run(stdout);
            drop(out_ended);
        })
        .and_then(|_| {
            Builder::new().name("stderr".into()).stack_size(STACK).spawn(move || {
                err.run(stderr);
                drop(err_ended);
            })
        });
    if let Err(e) = spawned {
        ended.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        return Err(e);
    }
    Ok(capture)
}

struct Reader {
    stream: usize,
    parser: Parser,
    source: Arc<Source>,
    outlets: Outlets,
    capture: Arc<Capture>,
    /// The statsd lines of one read.
    statsd: String,
    /// Where programs may write in a code page.
    page: Option<CodePage>,
}

impl Reader {
    fn run(mut self, mut pipe: impl Read) {
        let mut buffer = vec![0; FIRST_BUFFER];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    self.take(Some(&buffer[..read]));
                    if read == buffer.len() && read < FULL_BUFFER {
                        buffer = vec![0; (read * GROWTH).min(FULL_BUFFER)];
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    log::warn!("job {}: its output cannot be read any further: {e}", self.source.jobid);
                    break;
                }
            }
        }
        self.take(None);
    }

    /// Parses the bytes of one read, or the end, and hands over what came of it.
    fn take(&mut self, bytes: Option<&[u8]>) {
        let Reader { stream, parser, source, outlets, capture, statsd, page } = self;
        // One clock reading a read: its messages arrived together.
        let mut batch = Batch::new(source, now(), bytes.map_or(0, <[u8]>::len));
        {
            let mut keeper = capture.keeper();
            let mut sink = |message: Message<'_>| {
                keeper.note(*stream, &message);
                if message.level == level::STATSD {
                    statsd.push_str(message.text);
                    statsd.push('\n');
                }
                if source.wants(message.level) {
                    batch.push(message.level, message.text);
                }
            };
            match (bytes, page) {
                (Some(bytes), None) => parser.feed(bytes, &mut sink),
                (Some(bytes), Some(page)) => parser.feed(&page.feed(bytes), &mut sink),
                (None, page) => {
                    if let Some(page) = page {
                        parser.feed(&page.finish(), &mut sink);
                    }
                    parser.finish(&mut sink);
                }
            }
        }
        if !statsd.is_empty() {
            outlets.stats.lines(source, statsd);
            statsd.clear();
        }
        if !batch.is_empty() {
            outlets.logger.push(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{outlets, source};
    use super::*;
    use std::io::Cursor;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn both_pipes_are_read_to_their_end_and_then_ended_runs() {
        let (done, ended) = mpsc::channel();
        let out = Cursor::new(b"one\n20::{}\n".repeat(10_000));
        let capture =
            attach(&source(), out, Cursor::new("9::alarm\noops"), &outlets(), move || done.send(()).unwrap()).unwrap();
        ended.recv_timeout(Duration::from_secs(20)).unwrap();
        let captured = capture.snapshot();
        assert_eq!((captured.data.as_str(), captured.level, captured.results), ("{}", 20, 10_000));
        assert_eq!((captured.critical.as_str(), captured.streams[1].as_str()), ("alarm", "oops"));
        assert_eq!(captured.streams[0].lines().count(), 1000);
    }
}
