//! Datagrams, one with each system call.

use std::io;
use std::net::UdpSocket;

/// The memory that datagrams are received into.
pub(crate) struct Datagrams {
    buffer: Vec<u8>,
}

impl Default for Datagrams {
    fn default() -> Datagrams {
        Datagrams { buffer: vec![0; 65_536] }
    }
}

impl Datagrams {
    /// Waits for a datagram and hands it over.
    pub(crate) fn receive<T>(
        &mut self,
        socket: &UdpSocket,
        take: impl FnOnce(&mut dyn Iterator<Item = &[u8]>) -> T,
    ) -> io::Result<T> {
        let length = socket.recv(&mut self.buffer)?;
        Ok(take(&mut std::iter::once(&self.buffer[..length]).filter(|datagram| !datagram.is_empty())))
    }
}

/// Asks for a receive buffer of so many bytes.
pub(crate) fn grow_receive_buffer(socket: &UdpSocket, bytes: usize) {
    let _ = socket2::SockRef::from(socket).set_recv_buffer_size(bytes);
}
