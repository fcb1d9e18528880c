//! Network interfaces where sysfs has none: containers and small images without `/sys/class/net`.

use crate::platform::Interface;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use std::fs;

/// The interfaces of `/proc/net/dev`, with their addresses from the system.
pub(crate) fn interfaces() -> Vec<Interface> {
    let mut list = parse(&String::from_utf8_lossy(&fs::read("/proc/net/dev").unwrap_or_default()));
    for found in getifaddrs().into_iter().flatten() {
        let Some(interface) = list.iter_mut().find(|interface| interface.name == found.interface_name) else {
            continue;
        };
        let Some(address) = found.address else { continue };
        if let Some(link) = address.as_link_addr().and_then(|link| link.addr()) {
            interface.mac = link.map(|byte| format!("{byte:02x}")).join(":");
        } else if let Some(text) = with_prefix(&address, found.netmask.as_ref()) {
            interface.addrs.push(text);
        }
    }
    for interface in &mut list {
        // The link's own figure lies in sysfs alone; IPv6 takes the same unless told otherwise.
        let path = format!("/proc/sys/net/ipv6/conf/{}/mtu", interface.name);
        interface.mtu = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    }
    list
}

fn with_prefix(address: &SockaddrStorage, mask: Option<&SockaddrStorage>) -> Option<String> {
    if let Some(v4) = address.as_sockaddr_in() {
        let bits = mask.and_then(SockaddrStorage::as_sockaddr_in).map_or(32, |m| u32::from(m.ip()).count_ones());
        return Some(format!("{}/{bits}", v4.ip()));
    }
    let v6 = address.as_sockaddr_in6()?;
    let bits = mask.and_then(SockaddrStorage::as_sockaddr_in6).map_or(128, |m| u128::from(m.ip()).count_ones());
    Some(format!("{}/{bits}", v6.ip()))
}

/// Reads the text of `/proc/net/dev` (proc(5)): two lines of heading, then `name: ` and 16 counters,
/// 8 of what came in and 8 of what went out, each beginning with bytes, packets, errors.
fn parse(text: &str) -> Vec<Interface> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> = counters.split_whitespace().map_while(|field| field.parse().ok()).collect();
            let [rx, _, rx_errors, _, _, _, _, _, tx, _, tx_errors, ..] = counters[..] else { return None };
            Some(Interface {
                name: name.trim().to_owned(),
                mac: "00:00:00:00:00:00".to_owned(),
                mtu: 0,
                addrs: Vec::new(),
                counters: [rx, tx, rx_errors, tx_errors],
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_dev() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:    3193      29    1    0    0     0          0         0     3194      30    2    0    0     0       0          0\n\
            broken: 1 2\n";
        let list = parse(text);
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].name.as_str(), list[0].counters), ("lo", [3193, 3194, 1, 2]));
    }

    #[test]
    fn the_loopback_interface_has_its_address() {
        let lo = interfaces().into_iter().find(|interface| interface.name == "lo").expect("a loopback interface");
        assert!(lo.addrs.iter().any(|address| address == "127.0.0.1/8"), "{lo:?}");
    }
}
