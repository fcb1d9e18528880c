//! Head and body of a request in one write: ureq writes them apart, and each write of a TLS connection is a record that
//! wakes the controller.
//!
//! Owns: output that waits for more. It goes out when an answer is awaited, or with much that follows it.
//! Does not own: the connection beneath, which writes it.

use std::fmt;
use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// Wraps each connection of the connector before it.
#[derive(Debug)]
pub(super) struct JoinWrites;

impl<In: Transport> Connector<In> for JoinWrites {
    type Out = JoinedWrites<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(|inner| JoinedWrites { inner, held: Vec::new() }))
    }
}

/// Most bytes that wait; more go out at once, behind those that waited.
const MAX_HELD: usize = 4096;

/// A connection whose writes wait for what follows them.
pub(super) struct JoinedWrites<T> {
    inner: T,
    held: Vec<u8>,
}

/// Without the bytes that wait: credentials are among them.
impl<T: fmt::Debug> fmt::Debug for JoinedWrites<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinedWrites").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<T: Transport> JoinedWrites<T> {
    /// Writes what waits, and behind it `amount` bytes of the output.
    fn flush(&mut self, mut amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let held = std::mem::take(&mut self.held);
        let output = self.inner.buffers().output();
        if let Some(room) = output.get_mut(..held.len() + amount) {
            room.copy_within(..amount, held.len());
            room[..held.len()].copy_from_slice(&held);
            amount = room.len();
        } else {
            // There is more room than this in any output; the bytes wait in the meantime.
            let rest = output[..amount].to_vec();
            output[..held.len()].copy_from_slice(&held);
            self.inner.transmit_output(held.len(), timeout)?;
            self.inner.buffers().output()[..rest.len()].copy_from_slice(&rest);
        }
        self.inner.transmit_output(amount, timeout)
    }
}

impl<T: Transport> Transport for JoinedWrites<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.held.len() + amount > MAX_HELD {
            return self.flush(amount, timeout);
        }
        self.held.extend_from_slice(&self.inner.buffers().output()[..amount]);
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        if !self.held.is_empty() {
            self.flush(0, timeout)?;
        }
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use ureq::unversioned::resolver::DefaultResolver;
    use ureq::unversioned::transport::LazyBuffers;

    /// Connections that keep each write apart and answer 200.
    #[derive(Clone, Debug, Default)]
    struct Recorder(Arc<Mutex<Vec<Vec<u8>>>>);

    #[derive(Debug)]
    struct Recorded {
        writes: Recorder,
        buffers: LazyBuffers,
    }

    impl Connector<()> for Recorder {
        type Out = Recorded;

        fn connect(&self, _: &ConnectionDetails, _: Option<()>) -> Result<Option<Recorded>, Error> {
            Ok(Some(Recorded { writes: self.clone(), buffers: LazyBuffers::new(4096, 8192) }))
        }
    }

    impl Transport for Recorded {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }

        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            let written = self.buffers.output()[..amount].to_vec();
            self.writes.0.lock().unwrap().push(written);
            Ok(())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            self.buffers.input_append_buf()[..answer.len()].copy_from_slice(answer);
            self.buffers.input_appended(answer.len());
            Ok(true)
        }

        fn is_open(&mut self) -> bool {
            true
        }
    }

    /// Posts a body of so many bytes, and returns how many writes that took; nothing of it is lost or out of order.
    #[track_caller]
    fn writes_of(length: usize) -> usize {
        let recorder = Recorder::default();
        let connector = recorder.clone().chain(JoinWrites);
        let agent = ureq::Agent::with_parts(Default::default(), connector, DefaultResolver::default());
        let body: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        for _ in 0..2 {
            recorder.0.lock().unwrap().clear();
            assert_eq!(agent.post("http://127.0.0.1/x").send(&body[..]).unwrap().status(), 200);
            let written = recorder.0.lock().unwrap().concat();
            let head = written.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            assert!(written.starts_with(b"POST /x HTTP/1.1\r\n") && written[head..] == body, "{length} bytes");
        }
        recorder.0.lock().unwrap().len()
    }

    #[test]
    fn small_request_is_one_write() {
        assert_eq!([writes_of(0), writes_of(1), writes_of(3000)], [1, 1, 1]);
    }

    #[test]
    fn large_request_comes_whole_and_in_order() {
        for length in [3900, 4096, 7000, 7900, 8000, 8192, 8193, 20_000, 100_000] {
            let writes = writes_of(length);
            assert!(writes <= length.div_ceil(8192) + 1, "{length} bytes in {writes} writes");
        }
    }

    #[test]
    fn bytes_that_wait_are_not_shown() {
        let waits = JoinedWrites { inner: (), held: b"authorization: Bearer 1.2.3".to_vec() };
        assert!(!format!("{waits:?}").contains("66"), "{waits:?}");
    }
}
