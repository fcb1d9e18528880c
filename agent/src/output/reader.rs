//! The pipe readers: a thread for a child's two pipes (Windows: one each), from the bytes through the
//! parser to the outlets.
//!
//! A reader ends with its pipes, and nobody waits for it: a grandchild can hold a pipe for ever. Then its
//! thread does what follows, which for a job is to wait for the child's end too (not on Windows): a service
//! that has closed or redirected its output has a thread for as long as it lives.
//! Handing over waits while the message log is behind; then the pipe fills up, and then its writer waits.
//! A thread that has come to an end takes the next child's pipes, where one comes soon: to make one and
//! take it down costs more than all that a short job writes.

use super::codepage::CodePage;
use super::encoding::{Decoded, Encoding};
use super::marker::{Message, Parser};
use super::{Capture, Outlets};
use crate::job::JobLabel;
use crate::platform::unix_ms;
use crate::storage::message_log::batch::Batch;
use crate::stream::Spool;
use crate::{platform, process_tree};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use jscommon::lock::lock;
use jscommon::worker::Worker;
use jscommon::{failpoint, level};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The buffer of a reader at first: most jobs write little, and many of them run for long.
const FIRST_BUFFER: usize = 512;

/// A read that fills a buffer multiplies the buffer's size by this.
const GROWTH: usize = 8;

/// The largest buffer: as much as a Linux pipe holds.
const FULL_BUFFER: usize = 64 * 1024;

const STACK: usize = 128 * 1024;

/// How long a thread waits for the next child's pipes.
const LINGER: Duration = Duration::from_secs(1);

/// Runs what it holds once the last of so many readers has come to its end, and on that one's thread:
/// what it holds may wait, and nobody else has the time for that.
struct Ended<F: FnOnce()> {
    left: AtomicUsize,
    run: Mutex<Option<F>>,
}

impl<F: FnOnce()> Ended<F> {
    fn one_more(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(run) = lock(&self.run).take()
        {
            run();
        }
    }
}

/// The source of one reader: one or both streams of a child.
pub(crate) trait Feed: Send + 'static {
    /// Waits for bytes and puts them into `buffer`. Says which stream they are of, 0 for stdout and 1 for
    /// stderr, and how many: none at the end of that stream. Nothing once all have ended.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, usize)>>;
}

impl Feed for process_tree::Pipes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, usize)>> {
        process_tree::Pipes::read(self, buffer)
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// The threads that read, as many as there is something to read from and a few that wait for more.
pub(crate) struct Readers {
    /// Holds nothing: who sends finds a thread that waits, or none.
    next: Sender<Task>,
    waiting: Receiver<Task>,
}

impl Default for Readers {
    fn default() -> Readers {
        let (next, waiting) = bounded(0);
        Readers { next, waiting }
    }
}

impl Readers {
    /// Reads the pipes of a child; where there is a `spool`, it gets every byte.
    ///
    /// `ended` runs once, on a reader's thread and never here, when all of them have ended; by then
    /// everything that was read has been handed to the outlets. The error is the operating system's, when
    /// it gives no more threads; then `ended` never runs.
    pub(crate) fn attach(
        &self,
        source: &Arc<JobLabel>,
        feeds: Vec<impl Feed>,
        outlets: &Outlets,
        spool: Option<Arc<Spool>>,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Arc<Capture>> {
        let capture = Arc::new(Capture::default());
        if let Some(spool) = spool {
            capture.attach_spool(|_| spool);
        }
        let ended = Arc::new(Ended { left: AtomicUsize::new(feeds.len()), run: Mutex::new(Some(ended)) });
        for feed in feeds {
            let reader = Reader {
                parsers: [Parser::new(level::STDOUT), Parser::new(level::STDERR)],
                encodings: Default::default(),
                pages: [platform::DECODE.map(CodePage::new), platform::DECODE.map(CodePage::new)],
                source: Arc::clone(source),
                outlets: outlets.clone(),
                capture: Arc::clone(&capture),
                statsd: String::new(),
            };
            let ended = Arc::clone(&ended);
            self.start(Box::new(move || {
                reader.run(feed);
                ended.one_more();
            }))?;
        }
        Ok(capture)
    }

    /// Has a thread that waits do it, or a new one.
    fn start(&self, task: Task) -> io::Result<()> {
        let task = match self.next.try_send(task) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) => task,
        };
        let waiting = self.waiting.clone();
        let run = move || {
            let mut task = Some(task);
            while let Some(work) = task {
                work();
                task = waiting.recv_timeout(LINGER).ok();
            }
        };
        Worker::spawn("output", STACK, run).map(Worker::detach)
    }
}

struct Reader {
    /// Of both streams, also where it reads only one.
    parsers: [Parser; 2],
    /// The encoding of each stream.
    encodings: [Encoding; 2],
    /// Where programs may write in a code page.
    pages: [Option<CodePage>; 2],
    source: Arc<JobLabel>,
    outlets: Outlets,
    capture: Arc<Capture>,
    /// The statsd lines of one read.
    statsd: String,
}

impl Reader {
    fn run(mut self, mut feed: impl Feed) {
        let mut buffer = vec![0; FIRST_BUFFER];
        loop {
            match feed.read(&mut buffer) {
                Ok(None) => return,
                Ok(Some((stream, 0))) => self.take(stream, None),
                Ok(Some((stream, read))) => {
                    failpoint::hit("agent.read");
                    self.take(stream, Some(&buffer[..read]));
                    if read == buffer.len() && read < FULL_BUFFER {
                        buffer = vec![0; (read * GROWTH).min(FULL_BUFFER)];
                    }
                }
                Err(e) => {
                    log::warn!("job {}: its output cannot be read any further: {e}", self.source.jobid);
                    return [0, 1].into_iter().for_each(|stream| self.take(stream, None));
                }
            }
        }
    }

    /// Parses the bytes of one read, or the end, of a stream and hands over what came of it.
    fn take(&mut self, stream: usize, bytes: Option<&[u8]>) {
        let Reader { parsers, encodings, pages, source, outlets, capture, statsd } = self;
        let (parser, page, encoding) = (&mut parsers[stream], &mut pages[stream], &mut encodings[stream]);
        // One clock reading a read: its messages arrived together.
        let mut batch = Batch::new(source, unix_ms(), bytes.map_or(0, <[u8]>::len));
        {
            let mut buffer = lock(&capture.buffer);
            buffer.count(stream, bytes.map_or(0, <[u8]>::len));
            if let Some(spool) = capture.spool.get() {
                // It may wait, and others ask for what was captured meanwhile.
                drop(buffer);
                capture.keep(spool, stream, bytes.unwrap_or_default());
                buffer = lock(&capture.buffer);
            }
            let mut sink = |message: Message<'_>| {
                buffer.note(stream, &message);
                if message.level == level::STATSD {
                    statsd.push_str(message.text);
                    statsd.push('\n');
                }
                if source.wants(message.level) {
                    batch.push(message.level, message.text);
                }
            };
            match bytes {
                Some(bytes) if encoding.is_plain() => feed(parser, page, bytes, &mut sink),
                Some(bytes) => decoded(parser, page, encoding.feed(bytes), &mut sink),
                None => {
                    decoded(parser, page, encoding.finish(), &mut sink);
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
            capture.push(&outlets.message_log, batch, bytes.map_or(0, <[u8]>::len));
        }
    }
}

/// Parses bytes as the program wrote them.
#[inline]
fn feed(parser: &mut Parser, page: &mut Option<CodePage>, bytes: &[u8], sink: &mut impl FnMut(Message<'_>)) {
    match page {
        None => parser.feed(bytes, sink),
        Some(page) => parser.feed(&page.feed(bytes), sink),
    }
}

/// Parses the first bytes of a stream, or one that was UTF-16.
fn decoded(parser: &mut Parser, page: &mut Option<CodePage>, bytes: Decoded<'_>, sink: &mut impl FnMut(Message<'_>)) {
    match bytes {
        Decoded::Plain(bytes) => feed(parser, page, &bytes, sink),
        Decoded::Text(text) => parser.feed(text.as_bytes(), sink),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::{outlets, source};
    use std::io::{Cursor, Read};
    use std::sync::mpsc;

    /// Streams that are there from the start, read in turn.
    struct Texts(Vec<(usize, Cursor<Vec<u8>>)>);

    impl Feed for Texts {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, usize)>> {
            if self.0.is_empty() {
                return Ok(None);
            }
            let (stream, mut text) = self.0.remove(0);
            let read = text.read(buffer)?;
            if read > 0 {
                self.0.push((stream, text));
            }
            Ok(Some((stream, read)))
        }
    }

    fn text(stream: usize, bytes: &[u8]) -> (usize, Cursor<Vec<u8>>) {
        (stream, Cursor::new(bytes.to_vec()))
    }

    #[test]
    fn both_streams_are_read_to_their_end_and_then_ended_runs() {
        let out = text(0, &b"one\n20::{}\n".repeat(10_000));
        let err = text(1, b"9::alarm\noops");
        for feeds in [vec![Texts(vec![out.clone(), err.clone()])], vec![Texts(vec![out]), Texts(vec![err])]] {
            let (done, ended) = mpsc::channel();
            let readers = Readers::default();
            let capture = readers.attach(&source(), feeds, &outlets(), None, move || done.send(()).unwrap()).unwrap();
            ended.recv_timeout(Duration::from_secs(20)).unwrap();
            let captured = capture.snapshot();
            assert_eq!((captured.data.as_str(), captured.level, captured.results), ("{}", 20, 10_000));
            assert_eq!((captured.critical.as_str(), captured.streams[1].as_str()), ("alarm", "oops"));
            assert_eq!(captured.streams[0].lines().count(), 1000);
        }
    }

    fn captured(streams: Vec<(usize, Cursor<Vec<u8>>)>) -> crate::output::Captured {
        let (done, ended) = mpsc::channel();
        let readers = Readers::default();
        let capture =
            readers.attach(&source(), vec![Texts(streams)], &outlets(), None, move || done.send(()).unwrap()).unwrap();
        ended.recv_timeout(Duration::from_secs(20)).unwrap();
        capture.snapshot()
    }

    #[test]
    fn marker_behind_a_byte_order_mark_is_seen() {
        let utf16: Vec<u8> = "20::{\"ü\": 1}\r\nplain\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for stdout in [b"\xef\xbb\xbf20::{\"\xc3\xbc\": 1}\nplain\n".to_vec(), [&b"\xff\xfe"[..], &utf16].concat()] {
            let count = stdout.len() as u64;
            let captured = captured(vec![text(0, &stdout), text(1, b"\xef\xbb\xbf9::alarm\n")]);
            assert_eq!((captured.level, captured.data.as_str()), (20, "{\"ü\": 1}"));
            assert_eq!((captured.streams[0].as_str(), captured.critical.as_str()), ("plain", "alarm"));
            assert_eq!(captured.bytes, [count, 12], "as they were written");
        }
    }

    #[test]
    fn bytes_of_each_stream_are_counted() {
        let captured = captured(vec![text(0, &b"20::1\n".repeat(20_000)), text(1, b"no line feed")]);
        assert_eq!((captured.bytes, captured.truncated), ([120_000, 12], false));
    }

    #[test]
    fn attaching_thread_never_runs_the_end() {
        let (own, readers) = (std::thread::current().id(), Readers::default());
        for _ in 0..200 {
            let (done, ended) = mpsc::channel();
            let tell = move || done.send(std::thread::current().id()).unwrap();
            // It has ended before it is known to be read.
            readers.attach(&source(), vec![Texts(vec![])], &outlets(), None, tell).unwrap();
            assert_ne!(ended.recv_timeout(Duration::from_secs(20)).unwrap(), own);
        }
    }

    #[test]
    fn a_thread_that_has_come_to_an_end_reads_on() {
        let readers = Readers::default();
        let mut threads = std::collections::HashSet::new();
        for _ in 0..50 {
            let (done, ended) = mpsc::channel();
            let tell = move || done.send(std::thread::current().id()).unwrap();
            readers.attach(&source(), vec![Texts(vec![text(0, b"x")])], &outlets(), None, tell).unwrap();
            threads.insert(ended.recv_timeout(Duration::from_secs(20)).unwrap());
            // It is on its way back, and nobody can see when it has come there.
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(threads.len() < 50, "a thread for each");
    }
}
