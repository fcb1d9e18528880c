//! One client's socket, with TLS or without: bytes in, bytes out, never blocking.
//!
//! Owns: the socket, its TLS state, and what waits to be written.
//! Does not own: what the bytes mean (conn), or when to give up (the event loop).

use mio::net::TcpStream;
use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::certificate_end;
use crate::auth::tls::PeerCert;

/// Reads of the socket in one call that may pass without anything for the reader above.
const FRUITLESS_READS: usize = 16;

/// The socket of one client.
pub(crate) struct Transport {
    stream: TcpStream,
    tls: Option<Box<ServerConnection>>,
    /// The bytes to be written, and how many of the first piece are out.
    out: VecDeque<Vec<u8>>,
    sent: usize,
}

/// The outcome of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// So many bytes.
    Data(usize),
    /// Nothing now; the socket tells when there is more.
    Blocked,
    /// Nothing for the reader, and there may be more: call again, after the others had their turn.
    Again,
    /// The client sends no more.
    End,
}

impl Transport {
    /// A transport on an accepted socket.
    pub(crate) fn new(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> Result<Transport, rustls::Error> {
        let tls = tls.map(ServerConnection::new).transpose()?.map(Box::new);
        Ok(Transport { stream, tls, out: VecDeque::new(), sent: 0 })
    }

    /// The socket, to be registered.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Whether the TLS handshake is still under way.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Whether a client speaks plain HTTP where TLS is asked for: its first byte is a letter.
    pub(crate) fn speaks_plain(&self) -> bool {
        let mut first = [0];
        self.tls.is_some() && matches!(self.stream.peek(&mut first), Ok(1)) && first[0].is_ascii_uppercase()
    }

    /// Goes on without TLS, to tell such a client.
    pub(crate) fn drop_tls(&mut self) {
        self.tls = None;
    }

    /// Whether the session was resumed from a ticket; nothing without TLS.
    pub(crate) fn is_resumed(&self) -> Option<bool> {
        self.tls.as_ref().map(|tls| tls.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// The content of the client's certificate, once the handshake is over.
    pub(crate) fn peer_cert(&self) -> Option<PeerCert> {
        PeerCert::read(self.tls.as_ref()?.peer_certificates()?.first()?)
    }

    /// The last moment (ms since 1970) at which the client's certificate holds. One whose end cannot be read
    /// holds no more.
    pub(crate) fn cert_ends(&self) -> Option<NonZeroU64> {
        let cert = self.tls.as_ref()?.peer_certificates()?.first()?;
        certificate_end::ends(cert).and_then(NonZeroU64::new).or(Some(NonZeroU64::MIN))
    }

    /// Reads into `buf`. An error is the end of the connection; a TLS one has sent its alert.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<ReadOutcome> {
        let Some(tls) = &mut self.tls else {
            return outcome(self.stream.read(buf));
        };
        for _ in 0..FRUITLESS_READS {
            match tls.reader().read(buf) {
                Ok(0) => return Ok(ReadOutcome::End),
                Ok(n) => return Ok(ReadOutcome::Data(n)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // The end without close_notify is an end too: lengths are known here, nothing is cut unseen.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(ReadOutcome::End),
                Err(e) => return Err(e),
            }
            match outcome(tls.read_tls(&mut self.stream))? {
                ReadOutcome::Data(_) => {}
                ReadOutcome::End if tls.is_handshaking() => return Ok(ReadOutcome::End),
                // The reader says it once more, after what came before.
                ReadOutcome::End => {}
                other => return Ok(other),
            }
            let done = tls.process_new_packets();
            while tls.wants_write() {
                match tls.write_tls(&mut self.stream) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    // It goes out when the socket is writable again.
                    Err(_) => break,
                }
            }
            done.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
        }
        Ok(ReadOutcome::Again)
    }

    /// Reads and drops what comes in, without looking at it.
    pub(crate) fn discard(&mut self, buf: &mut [u8]) -> io::Result<ReadOutcome> {
        outcome(self.stream.read(buf))
    }

    /// Puts bytes in the line of what is to be written.
    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.out.push_back(bytes);
        }
    }

    /// Writes as much as the socket takes: whether all is gone, and whether any of it went now.
    pub(crate) fn flush(&mut self) -> io::Result<(bool, bool)> {
        let mut moved = false;
        loop {
            // Given back as soon as it is out, also when a read has pushed out what TLS still held of it.
            if self.out.front().is_some_and(|piece| self.sent == piece.len()) {
                self.out.pop_front();
                self.sent = 0;
            }
            let piece = self.out.front().map(|piece| &piece[self.sent..]);
            let wrote = match &mut self.tls {
                None => match piece {
                    None => break,
                    Some(piece) => self.stream.write(piece).inspect(|n| self.sent += n),
                },
                Some(tls) => {
                    if let Some(piece) = piece {
                        // It takes as much as its own bounded buffer holds.
                        self.sent += tls.writer().write(piece)?;
                    }
                    if !tls.wants_write() {
                        break;
                    }
                    tls.write_tls(&mut self.stream)
                }
            };
            match wrote {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => moved = true,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok((false, moved)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out = VecDeque::new();
        Ok((true, moved))
    }

    /// Says that nothing more comes from here; the other direction stays open.
    pub(crate) fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // When the socket is full the client does not read: then it has no use for a goodbye either.
            let _ = tls.write_tls(&mut self.stream);
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

fn outcome(read: io::Result<usize>) -> io::Result<ReadOutcome> {
    match read {
        Ok(0) => Ok(ReadOutcome::End),
        Ok(n) => Ok(ReadOutcome::Data(n)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(ReadOutcome::Blocked),
        Err(e) if e.kind() == ErrorKind::Interrupted => Ok(ReadOutcome::Again),
        Err(e) => Err(e),
    }
}
