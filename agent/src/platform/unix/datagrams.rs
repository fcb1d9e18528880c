//! Many datagrams with one system call.

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt};
use std::io::{self, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Datagrams of one call.
const BATCH: usize = 64;
/// No datagram is longer.
const LONGEST: usize = 65_536;

/// The memory that datagrams are received into; only what is used of it takes memory.
pub(crate) struct Datagrams {
    buffers: Vec<u8>,
    headers: MultiHeaders<SockaddrStorage>,
}

impl Default for Datagrams {
    fn default() -> Datagrams {
        Datagrams { buffers: vec![0; BATCH * LONGEST], headers: MultiHeaders::preallocate(BATCH, None) }
    }
}

impl Datagrams {
    /// Waits for a datagram, takes all that are there with it, and hands them over.
    pub(crate) fn receive<T>(
        &mut self,
        socket: &UdpSocket,
        take: impl FnOnce(&mut dyn Iterator<Item = &[u8]>) -> T,
    ) -> io::Result<T> {
        let mut lengths = [0; BATCH];
        {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> =
                self.buffers.chunks_mut(LONGEST).map(|buffer| [IoSliceMut::new(buffer)]).collect();
            let flags = MsgFlags::MSG_WAITFORONE;
            let received = recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None)?;
            for (length, message) in lengths.iter_mut().zip(received) {
                *length = message.bytes;
            }
        }
        let filled = self.buffers.chunks(LONGEST).zip(lengths).map(|(buffer, length)| &buffer[..length]);
        Ok(take(&mut filled.filter(|datagram| !datagram.is_empty())))
    }
}

/// Asks for a receive buffer of so many bytes: beyond the system's limit where this process may.
pub(crate) fn grow_receive_buffer(socket: &UdpSocket, bytes: usize) {
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        // As much of it as anybody gets.
        let _ = setsockopt(socket, sockopt::RcvBuf, &bytes);
    }
}
