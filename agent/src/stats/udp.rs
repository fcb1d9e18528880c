//! statsd over UDP: datagrams in, many at one time where the system can.

use super::Inlet;
use crate::platform::Datagrams;
use anyhow::{Context, Result};
use jscommon::worker::Worker;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The receive buffer that is asked for, in bytes: a flush must not cost datagrams.
const BUFFER: usize = 16 << 20;
/// How long a stop takes when its datagram gets lost.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const STACK: usize = 128 * 1024;

/// The running listener; dropping it ends its thread.
pub(super) struct Handle {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    _worker: Worker,
}

impl Handle {
    /// Listens at `address` and brings what it gets to `inlet`.
    pub(super) fn start(address: SocketAddr, inlet: Inlet) -> Result<Handle> {
        let socket = UdpSocket::bind(address)
            .with_context(|| format!("stats.listen: {address} cannot be listened at (is it in use?)"))?;
        socket.set_read_timeout(Some(READ_TIMEOUT))?;
        crate::platform::grow_receive_buffer(&socket, BUFFER);
        let address = socket.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let worker = Worker::spawn("udp", STACK, move || run(&socket, &inlet, &stop))
            .context("the listener for stats cannot be started")?;
        Ok(Handle { address, stopping, _worker: worker })
    }

    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // An empty datagram wakes the thread.
        let (own, mut to) = (IpAddr::from(Ipv4Addr::LOCALHOST), self.address);
        match to.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => to.set_ip(own),
            IpAddr::V6(ip) if ip.is_unspecified() => to.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        let from: SocketAddr = if to.is_ipv4() { (own, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let from = if to.ip().is_loopback() { from } else { SocketAddr::new(to.ip(), 0) };
        let _ = UdpSocket::bind(from).and_then(|socket| socket.send_to(&[], to));
    }
}

fn run(socket: &UdpSocket, inlet: &Inlet, stopping: &AtomicBool) {
    let mut datagrams = Datagrams::default();
    while !stopping.load(Ordering::Relaxed) {
        match datagrams.receive(socket, |received| inlet.datagrams(received)) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(e) => {
                // Of a datagram that was sent, say; there is no connection that could be broken.
                log::debug!("stats: {e}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
