//! Which servers of a cluster, or which Sentinels, are asked first. Pure.
//!
//! Owns: their order, and which are forgotten. The one that answered last is asked first and the one that
//! failed last of all, so that a silent one costs a wait once and not with every connection; a server that
//! the cluster tells nothing of any more goes, unless the user has named it.
//! Does not own: asking (`router`, `sentinel`).

use jscommon::lock::lock;
use std::sync::Mutex;

/// Host and port.
pub(crate) type ServerAddr = (String, u16);

/// Most servers that are remembered.
const MAX_SERVERS: usize = 256;

/// Servers in the order in which they are to be asked; shared by all connections of a controller.
#[derive(Debug, Default)]
pub(crate) struct KnownServers {
    /// Those that the user has named: they stay, for a server that was told of may be gone one day.
    named: Vec<ServerAddr>,
    held: Mutex<Vec<ServerAddr>>,
}

impl KnownServers {
    /// The ones that the user has named.
    pub(crate) fn new(named: Vec<ServerAddr>) -> KnownServers {
        KnownServers { held: Mutex::new(named.clone()), named }
    }

    /// All of them, in their order.
    pub(crate) fn addrs(&self) -> Vec<ServerAddr> {
        lock(&self.held).clone()
    }

    /// This one has answered, and told of these: it goes first, and there are no others but those that were
    /// named. A new server is asked before a known one, which may be there no more.
    pub(crate) fn answered(&self, first: &ServerAddr, told: impl IntoIterator<Item = ServerAddr>) {
        let mut held = lock(&self.held);
        let told: Vec<ServerAddr> = told.into_iter().collect();
        let known = std::mem::take(&mut *held);
        let fresh = told.iter().filter(|addr| !known.contains(addr));
        let stays = known.iter().filter(|addr| told.contains(addr) || self.named.contains(addr));
        for addr in std::iter::once(first).chain(fresh).chain(stays) {
            if held.len() < MAX_SERVERS && !held.contains(addr) {
                held.push(addr.clone());
            }
        }
    }

    /// This one did not answer, or has led astray: it is asked last.
    pub(crate) fn failed(&self, addr: &ServerAddr) {
        let mut held = lock(&self.held);
        if let Some(at) = held.iter().position(|known| known == addr) {
            let addr = held.remove(at);
            held.push(addr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(name: &str) -> ServerAddr {
        (name.to_owned(), 1)
    }

    fn order(known_servers: &KnownServers) -> String {
        known_servers.addrs().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn server_that_answered_is_asked_first_and_one_that_failed_last() {
        let known_servers = KnownServers::new(vec![addr("a"), addr("b")]);
        known_servers.answered(&addr("b"), [addr("a"), addr("c")]);
        assert_eq!(order(&known_servers), "bca");
        known_servers.failed(&addr("b"));
        assert_eq!(order(&known_servers), "cab");
        known_servers.failed(&addr("x"));
        assert_eq!(order(&known_servers), "cab");
    }

    #[test]
    fn server_that_left_the_cluster_is_forgotten_and_a_named_one_stays() {
        let known_servers = KnownServers::new(vec![addr("a"), addr("b")]);
        known_servers.answered(&addr("a"), [addr("c"), addr("d")]);
        assert_eq!(order(&known_servers), "acdb");
        // All have moved: new servers do not stand behind those that are gone.
        known_servers.answered(&addr("d"), [addr("e"), addr("f")]);
        assert_eq!(order(&known_servers), "defab");
        // A Sentinel tells of none.
        known_servers.answered(&addr("b"), []);
        assert_eq!(order(&known_servers), "ba");
        known_servers.answered(&addr("x"), (0..2 * MAX_SERVERS as u16).map(|port| ("y".to_owned(), port)));
        assert!(known_servers.addrs().len() == MAX_SERVERS && known_servers.addrs()[0] == addr("x"));
    }
}
