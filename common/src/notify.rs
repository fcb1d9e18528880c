//! Messages to the service manager: ready, still alive, stopping (systemd's `sd_notify`).
//!
//! A datagram to the socket that `NOTIFY_SOCKET` names; without that variable, and on other systems
//! than Linux, nothing happens. The one module of this crate that does I/O: both programs need it in
//! the same form, and it is three small datagrams.

use std::time::Duration;

/// Tells that the program serves now.
pub fn ready() {
    send("READY=1");
}

/// Tells that the program is alive; due every `watchdog()`.
pub fn alive() {
    send("WATCHDOG=1");
}

/// Tells that the program ends on purpose.
pub fn stopping() {
    send("STOPPING=1");
}

/// How often the service manager wants to hear `alive`: a third of its limit, so that one late beat
/// kills nobody. Nothing when it does not ask, or asks another process.
pub fn watchdog() -> Option<Duration> {
    let asked = |name| std::env::var(name).ok();
    interval(asked("WATCHDOG_USEC")?, asked("WATCHDOG_PID"), std::process::id())
}

fn interval(limit: String, addressee: Option<String>, me: u32) -> Option<Duration> {
    if addressee.is_some_and(|pid| pid.parse() != Ok(me)) {
        return None;
    }
    let micros: u64 = limit.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros) / 3)
}

#[cfg(target_os = "linux")]
fn send(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Ok(name) = std::env::var("NOTIFY_SOCKET") else { return };
    // An `@` in front stands for the zero byte of an abstract name.
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    // Nobody to tell is no reason to fail.
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}

#[cfg(not(target_os = "linux"))]
fn send(_state: &str) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchdog_is_for_the_named_process() {
        let check = |limit: &str, pid: Option<&str>| interval(limit.to_owned(), pid.map(str::to_owned), 7);
        assert_eq!(check("60000000", None), Some(Duration::from_secs(20)));
        assert_eq!(check("60000000", Some("7")), Some(Duration::from_secs(20)));
        assert_eq!(check("60000000", Some("8")), None);
        assert_eq!(check("0", None), None);
        assert_eq!(check("soon", None), None);
    }
}
