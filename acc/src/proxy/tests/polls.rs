//! Polls that wait.

use super::*;

#[test]
fn poll_that_waits_is_refused_when_its_node_is_revoked() {
    let site = Site::new(Limits::default());
    let (mut client, mut idle) = (site.client(), site.client());
    idle.poll("wait=0");
    idle.expect(204);
    client.poll("wait=30");
    site.wait_parked(1);
    site.revoke();
    let got = client.expect(401);
    assert!(got.closes() && String::from_utf8_lossy(&got.body).contains("enrol it again"), "{got:?}");
    assert!(client.answer().is_none() && idle.answer().is_none(), "both connections end");
    site.wait_parked(0);
    assert_eq!(site.refusals("expelled"), 2);
}

#[test]
fn poll_of_a_node_that_was_enrolled_since_its_revocation_goes_on() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.send("GET /1/10/cmd?wait=30 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer new\r\n\r\n");
    site.wait_parked(1);
    site.revoke();
    site.remote().deliver(NODE, b"{}".to_vec());
    assert_eq!(client.expect(200).body, b"{}");
    assert_eq!(site.refusals("expelled"), 0);
}

#[test]
fn a_parked_poll_gets_what_is_delivered() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.poll("wait=30");
    site.wait_parked(1);
    site.remote().deliver(NODE, b"{\"batch\":\"1\"}".to_vec());
    assert_eq!(client.expect(200).body, b"{\"batch\":\"1\"}");
    site.wait_parked(0);
    // The next poll acknowledges: its handler sees it.
    client.poll("wait=30&ack=1");
    site.wait_parked(1);
    assert_eq!(site.asked(), 2);
}

#[test]
fn an_idle_poll_gets_204_and_the_next_one_is_parked_by_the_proxy() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    for _ in 0..3 {
        let start = Instant::now();
        client.poll("wait=1");
        assert!(!client.expect(204).closes());
        assert!(start.elapsed() >= Duration::from_millis(990));
    }
    assert_eq!((site.asked(), site.metrics.polls_shortcut.get()), (1, 2));
    // A wake-up between two polls is remembered.
    *site.desk.commands.lock().unwrap() = Some("[]".into());
    site.remote().deliver(NODE, Vec::new());
    client.poll("wait=1");
    client.expect(200);
    assert_eq!(site.asked(), 2);
}

#[test]
fn rechecked_poll_goes_to_its_handler_again() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.poll("wait=30");
    site.wait_parked(1);
    *site.desk.commands.lock().unwrap() = Some("[1]".into());
    site.remote().recheck_all();
    assert_eq!(client.expect(200).body, b"[1]");
    assert_eq!(site.asked(), 2);
}

#[test]
fn a_second_poll_replaces_the_first() {
    let site = Site::new(Limits::default());
    let (mut first, mut second) = (site.client(), site.client());
    first.poll("wait=30");
    site.wait_parked(1);
    second.poll("wait=30");
    first.expect(204);
    site.wait_parked(1);
    site.remote().deliver(NODE, b"{}".to_vec());
    second.expect(200);
}

#[test]
fn a_poll_whose_client_went_away_is_forgotten() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.poll("wait=30");
    site.wait_parked(1);
    drop(client);
    site.wait_parked(0);
    wait_until(|| site.metrics.connections.get() == 0);
}

#[test]
fn a_request_too_many_ends_the_poll_before_it() {
    let site = Site::new(Limits::default());
    let mut client = site.client();
    client.poll("wait=30");
    site.wait_parked(1);
    client.poll("wait=30");
    assert!(client.expect(204).closes());
    assert!(client.answer().is_none());
    assert_eq!(site.refusals("pipelined"), 1);
}

#[test]
fn many_polls_at_once_are_all_answered() {
    let site = Site::new(Limits::default());
    let mut clients: Vec<Client> = (0..300).map(|_| site.client()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let nid = i + 1;
        client.send(format!("GET /1/{nid}/cmd?wait=30 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer good\r\n\r\n"));
    }
    site.wait_parked(300);
    let remote = site.remote();
    for nid in 1..=300 {
        remote.deliver(NodeId { gid: 1, nid }, b"{}".to_vec());
    }
    for client in &mut clients {
        client.expect(200);
    }
}

#[test]
fn a_node_that_waits_was_seen_when_its_poll_came() {
    let site = Site::new(Limits::default());
    let (mut client, start) = (site.client(), Instant::now());
    client.poll("wait=30");
    site.wait_parked(1);
    let parked = Instant::now();
    // Told a second later.
    let seen = site.seen.recv_timeout(LONG).unwrap();
    assert!(matches!(seen[..], [(NODE, at)] if start <= at && at <= parked), "{seen:?}");
}
