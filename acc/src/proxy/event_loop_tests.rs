use super::*;
use crate::auth::authenticate::{Admitted, PresentedCredentials};
use crate::http::Refusal;
use crate::proxy::accept::ACCEPT_PAUSE;

struct Anybody;

impl Authenticate for Anybody {
    fn admit(&self, _: &PresentedCredentials<'_>) -> Result<Admitted, Refusal> {
        Ok(Admitted::Open)
    }
}

#[test]
fn connections_without_a_descriptor_keep_no_core_busy() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let config = ProxyConfig {
        listen: listener.local_addr().unwrap(),
        tls: None,
        backend: crate::api::server::Backend::at("/nowhere".into()),
        limits: Limits::default(),
    };
    let (seen, _nodes) = crossbeam_channel::unbounded();
    let (_messages, inbox) = crossbeam_channel::unbounded();
    let (authenticator, metrics) = (Arc::new(Anybody), Arc::new(Metrics::new()));
    let parts = Parts { listener, inbox, woken: Arc::default(), config, authenticator, metrics, seen };
    let (mut event_loop, _waker) = EventLoop::new(parts).unwrap();
    event_loop.accept_more = true;
    assert_eq!(event_loop.poll_timeout(), Some(Duration::ZERO));
    // It had no descriptor a moment ago, and somebody new has come since.
    event_loop.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
    assert!(event_loop.poll_timeout().unwrap() > ACCEPT_PAUSE / 2, "{:?}", event_loop.poll_timeout());
    event_loop.accept_after = Some(Instant::now());
    event_loop.expire_deadlines();
    assert_eq!(event_loop.poll_timeout(), Some(Duration::ZERO), "after its rest it accepts again");
}
