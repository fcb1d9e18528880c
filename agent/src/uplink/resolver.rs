//! Names of controllers and their addresses, looked up once and not with every request.
//!
//! The HTTP client asks its resolver before each request, also where a connection stands already, and
//! each lookup takes a thread, for a lookup has no time limit of its own. That is a thread for each
//! result, and on a node without a name cache a question over its bad link as well.
//!
//! **Owns** what was looked up. **Does not** look up: that is the resolver behind it. A name whose
//! lookup fails keeps its last addresses: a name server that is away cuts off nobody.

use super::failure::unresolved;
use jscommon::lock::lock;
use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// For how long addresses are used without a new lookup.
const FRESH: Duration = Duration::from_secs(60);
/// The most names that are kept; a configuration has a handful.
const MOST: usize = 64;

/// Keeps what `R` has found; clones share it.
#[derive(Debug)]
pub(super) struct Resolve<R> {
    inner: Arc<R>,
    found: Arc<Mutex<HashMap<String, Found>>>,
}

impl<R> Clone for Resolve<R> {
    fn clone(&self) -> Resolve<R> {
        Resolve { inner: self.inner.clone(), found: self.found.clone() }
    }
}

#[derive(Debug)]
struct Found {
    addresses: Vec<SocketAddr>,
    /// Nothing: to be looked up again.
    until: Option<Instant>,
}

impl<R> Resolve<R> {
    pub(super) fn new(inner: R) -> Resolve<R> {
        Resolve { inner: Arc::new(inner), found: Arc::default() }
    }

    /// Has every name looked up again: an address was of no use.
    pub(super) fn invalidate(&self) {
        lock(&self.found).values_mut().for_each(|found| found.until = None);
    }
}

impl<R: Resolver> Resolver for Resolve<R> {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        if let Some(address) = literal(uri) {
            return Ok(list(self, [address]));
        }
        let name = uri.authority().map(|name| format!("{:?} {name}", uri.scheme_str())).unwrap_or_default();
        let now = Instant::now();
        if let Some(found) = lock(&self.found).get(&name)
            && found.until.is_some_and(|until| now < until)
        {
            return Ok(list(self, found.addresses.iter().copied()));
        }
        // Not under the lock: a lookup may take as long as it is allowed to.
        let looked_up = self.inner.resolve(uri, config, timeout);
        let mut known = lock(&self.found);
        match looked_up {
            Ok(addresses) => {
                if known.len() < MOST || known.contains_key(&name) {
                    let found = Found { addresses: addresses.to_vec(), until: Some(now + FRESH) };
                    known.insert(name, found);
                }
                Ok(addresses)
            }
            Err(failure) => match (known.get(&name), failure) {
                (Some(found), _) => Ok(list(self, found.addresses.iter().copied())),
                (None, ureq::Error::Io(error)) => {
                    Err(io::Error::new(error.kind(), unresolved(&error.to_string())).into())
                }
                (None, failure) => Err(failure),
            },
        }
    }
}

/// The address of a URI that names one by its number.
fn literal(uri: &Uri) -> Option<SocketAddr> {
    let port = uri.port_u16().or(match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    })?;
    let address: IpAddr = uri.host()?.trim_matches(['[', ']']).parse().ok()?;
    Some(SocketAddr::new(address, port))
}

fn list(resolver: &impl Resolver, addresses: impl IntoIterator<Item = SocketAddr>) -> ResolvedSocketAddrs {
    let mut list = resolver.empty();
    addresses.into_iter().for_each(|address| list.push(address));
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[derive(Debug, Default)]
    struct NameServer {
        asked: AtomicUsize,
        away: AtomicBool,
    }

    impl Resolver for NameServer {
        fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let n = self.asked.fetch_add(1, Ordering::Relaxed) as u8;
            if self.away.load(Ordering::Relaxed) {
                return Err(ureq::Error::HostNotFound);
            }
            Ok(list(self, [SocketAddr::from(([127, 0, 0, n], 1)), SocketAddr::from(([127, 0, 0, n], 2))]))
        }
    }

    fn ask(resolve: &Resolve<NameServer>, uri: &str) -> Option<Vec<String>> {
        let timeout = NextTimeout {
            after: Duration::from_secs(1).into(),
            reason: ureq::Timeout::Resolve,
            per_read: None,
            per_write: None,
        };
        let found = resolve.resolve(&uri.parse().unwrap(), &Config::default(), timeout).ok()?;
        Some(found.iter().map(SocketAddr::to_string).collect())
    }

    #[test]
    fn numbers_need_no_lookup() {
        let resolve = Resolve::new(NameServer::default());
        for (uri, want) in [
            ("https://10.1.2.3:4000/x", "10.1.2.3:4000"),
            ("https://10.1.2.3", "10.1.2.3:443"),
            ("http://[::1]/x", "[::1]:80"),
        ] {
            assert_eq!(ask(&resolve, uri).unwrap(), [want]);
        }
        assert_eq!(resolve.inner.asked.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_name_is_looked_up_once_and_again_when_in_doubt() {
        let resolve = Resolve::new(NameServer::default());
        let first = Some(vec!["127.0.0.0:1".to_owned(), "127.0.0.0:2".to_owned()]);
        assert_eq!(ask(&resolve, "https://ac.example:4000/1/10/cmd"), first);
        assert_eq!(ask(&resolve.clone(), "https://ac.example:4000/1/10/result"), first);
        assert_eq!(ask(&resolve, "https://other.example:4000").unwrap()[0], "127.0.0.1:1");
        resolve.invalidate();
        assert_eq!(ask(&resolve, "https://ac.example:4000").unwrap()[0], "127.0.0.2:1");
        assert_eq!(resolve.inner.asked.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_name_server_that_is_away_cuts_off_nobody() {
        let resolve = Resolve::new(NameServer::default());
        let before = ask(&resolve, "https://ac.example").unwrap();
        resolve.inner.away.store(true, Ordering::Relaxed);
        resolve.invalidate();
        assert_eq!(ask(&resolve, "https://ac.example").unwrap(), before);
        assert_eq!(ask(&resolve, "https://never.example"), None);
    }
}
