//! Network interfaces that sysinfo leaves out: the loopback interface, tunnels, and what is not plugged in.
//!
//! sysinfo keeps those alone that have a hardware address and a link; a node's addresses belong to others
//! as well.

use crate::platform::Interface;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr};
use windows::Win32::Foundation::{ERROR_BUFFER_OVERFLOW, ERROR_SUCCESS};
use windows::Win32::NetworkManagement::IpHelper::{
    GAA_FLAG_SKIP_ANYCAST, GAA_FLAG_SKIP_DNS_SERVER, GAA_FLAG_SKIP_MULTICAST, GetAdaptersAddresses, GetIfEntry2,
    IP_ADAPTER_ADDRESSES_LH, IP_ADAPTER_UNICAST_ADDRESS_LH, MIB_IF_ROW2,
};
use windows::Win32::NetworkManagement::Ndis::NET_LUID_LH;
use windows::Win32::Networking::WinSock::{AF_INET, AF_INET6, AF_UNSPEC, SOCKADDR_IN, SOCKADDR_IN6};

/// Every interface of the system.
#[allow(unsafe_code)] // the system links the entries through the buffer that it is given, which lives until the end
pub(crate) fn interfaces() -> Vec<Interface> {
    let Some(buffer) = adapters() else { return Vec::new() };
    let mut list = Vec::new();
    let mut next = buffer.as_ptr().cast::<IP_ADAPTER_ADDRESSES_LH>();
    while let Some(adapter) = unsafe { next.as_ref() } {
        next = adapter.Next;
        let name = unsafe { adapter.FriendlyName.to_string() }.unwrap_or_default();
        let [mac @ .., _, _] = adapter.PhysicalAddress;
        list.push(Interface {
            name,
            mac: mac.map(|byte| format!("{byte:02x}")).join(":"),
            // The loopback interface has no limit.
            mtu: if adapter.Mtu == u32::MAX { 0 } else { u64::from(adapter.Mtu) },
            addrs: unsafe { addresses(adapter.FirstUnicastAddress) },
            counters: counters(adapter.Luid),
        });
    }
    list
}

/// The system's list, in words of eight bytes, for its entries are aligned so.
#[allow(unsafe_code)] // the system writes no more than the size that it is told
fn adapters() -> Option<Vec<u64>> {
    let flags = GAA_FLAG_SKIP_ANYCAST | GAA_FLAG_SKIP_MULTICAST | GAA_FLAG_SKIP_DNS_SERVER;
    let mut size: u32 = 16 * 1024;
    // The list may grow between two calls.
    for _ in 0..3 {
        let mut buffer = vec![0u64; (size as usize).div_ceil(8)];
        let at = buffer.as_mut_ptr().cast();
        let code = unsafe { GetAdaptersAddresses(u32::from(AF_UNSPEC.0), flags, None, Some(at), &raw mut size) };
        if code == ERROR_SUCCESS.0 {
            return Some(buffer);
        }
        if code != ERROR_BUFFER_OVERFLOW.0 {
            break;
        }
    }
    None
}

/// The addresses of a list, as `ip/prefix`.
///
/// # Safety
/// The list is one that the system has made, or null.
#[allow(unsafe_code)] // the entries and what they point to lie in the caller's buffer
unsafe fn addresses(first: *const IP_ADAPTER_UNICAST_ADDRESS_LH) -> Vec<String> {
    let mut list = Vec::new();
    let mut next = first;
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.Next;
        let (at, size) = (entry.Address.lpSockaddr, entry.Address.iSockaddrLength as usize);
        let Some(family) = unsafe { at.as_ref() }.map(|address| address.sa_family) else { continue };
        let prefix = entry.OnLinkPrefixLength;
        if family == AF_INET && size >= size_of::<SOCKADDR_IN>() {
            let address = unsafe { at.cast::<SOCKADDR_IN>().read_unaligned() };
            let bytes = unsafe { address.sin_addr.S_un.S_addr }.to_ne_bytes();
            list.push(format!("{}/{prefix}", Ipv4Addr::from(bytes)));
        } else if family == AF_INET6 && size >= size_of::<SOCKADDR_IN6>() {
            let address = unsafe { at.cast::<SOCKADDR_IN6>().read_unaligned() };
            let bytes = unsafe { address.sin6_addr.u.Byte };
            list.push(format!("{}/{prefix}", Ipv6Addr::from(bytes)));
        }
    }
    list
}

/// Bytes and errors of an interface, both ways; zeros where the system does not tell.
#[allow(unsafe_code)] // fills the one entry that it is given
fn counters(which: NET_LUID_LH) -> [u64; 4] {
    let mut row = MIB_IF_ROW2 { InterfaceLuid: which, ..MIB_IF_ROW2::default() };
    match unsafe { GetIfEntry2(&raw mut row) } {
        ERROR_SUCCESS => [row.InOctets, row.OutOctets, row.InErrors, row.OutErrors],
        _ => [0; 4],
    }
}
