use super::*;
use crate::auth::tls::PeerCert;

const NOW: u64 = 1_780_000_000_000;
const NODE: NodeId = NodeId { gid: 1, nid: 10 };
const OTHER: NodeId = NodeId { gid: 1, nid: 11 };

fn authenticator(rules: Rules) -> (Authenticator, Secrets) {
    let secrets = Secrets::generate().unwrap();
    let authenticator = Authenticator::new(rules, secrets.clone(), || NOW);
    assert_eq!(authenticator.set_revoked(HashMap::new()), []);
    (authenticator, secrets)
}

fn head<'a>(route: Route, bearer: Option<&'a str>, cert: Option<&'a PeerCert>) -> PresentedCredentials<'a> {
    PresentedCredentials { route, bearer, peer: "10.0.0.9".parse().unwrap(), cert }
}

#[track_caller]
fn refused(authenticator: &Authenticator, head: &PresentedCredentials<'_>, status: u16, word: &str) {
    let refusal = authenticator.admit(head).unwrap_err();
    assert_eq!(refusal.status, status, "{}", refusal.reason);
    assert!(refusal.reason.contains(word), "{}", refusal.reason);
}

#[test]
fn a_token_opens_the_paths_of_its_node() {
    let (authenticator, secrets) = authenticator(Rules::default());
    let token = secrets.current.issue(NODE, NOW);
    assert_eq!(authenticator.admit(&head(Route::Cmd(NODE), Some(&token), None)), Ok(Admitted::Node(NODE)));
    refused(&authenticator, &head(Route::Cmd(OTHER), Some(&token), None), 403, "1:10");
    refused(&authenticator, &head(Route::Cmd(NODE), None, None), 401, "no credentials");
    refused(&authenticator, &head(Route::Cmd(NODE), Some("x"), None), 401, "not valid");
    assert_eq!(authenticator.admit(&head(Route::Health, None, None)), Ok(Admitted::Open));
    assert_eq!(authenticator.admit(&head(Route::Enroll, None, None)), Ok(Admitted::Open));
}

#[test]
fn nodes_are_refused_until_revocations_are_known() {
    let secrets = Secrets::generate().unwrap();
    let token = secrets.current.issue(NODE, NOW);
    let cert = PeerCert { node: NODE, issued: Some(NOW) };
    for no_auth in [false, true] {
        let authenticator = Authenticator::new(Rules { no_auth, ..Rules::default() }, secrets.clone(), || NOW);
        let (tell, told) = crossbeam_channel::unbounded();
        authenticator.report_refusals(tell);
        for (bearer, cert) in [(None, None), (Some(&*token), None), (None, Some(&cert))] {
            refused(&authenticator, &head(Route::Cmd(NODE), bearer, cert), 503, "redis");
        }
        assert!(told.is_empty(), "nobody did anything wrong");
        assert_eq!(authenticator.admit(&head(Route::Health, None, None)), Ok(Admitted::Open));
        assert_eq!(authenticator.set_revoked(HashMap::from([(NODE, NOW)])), [NODE]);
        refused(&authenticator, &head(Route::Cmd(NODE), Some(&token), None), 401, "revoked");
    }
}

#[test]
fn certificate_is_as_good_as_a_token_and_both_must_agree() {
    let (authenticator, secrets) = authenticator(Rules::default());
    let cert = PeerCert { node: NODE, issued: Some(NOW) };
    assert_eq!(authenticator.admit(&head(Route::Log(NODE), None, Some(&cert))), Ok(Admitted::Node(NODE)));
    refused(&authenticator, &head(Route::Log(OTHER), None, Some(&cert)), 403, "1:11");
    let token = secrets.current.issue(OTHER, NOW);
    refused(&authenticator, &head(Route::Log(NODE), Some(&token), Some(&cert)), 403, "different nodes");
    refused(&authenticator, &head(Route::Log(OTHER), Some(&token), Some(&cert)), 403, "different nodes");
}

#[test]
fn token_alone_is_refused_where_a_certificate_is_required() {
    let (authenticator, secrets) = authenticator(Rules { require_cert: true, ..Rules::default() });
    let token = secrets.current.issue(NODE, NOW);
    refused(&authenticator, &head(Route::Cmd(NODE), Some(&token), None), 401, "client certificate");
    let cert = PeerCert { node: NODE, issued: None };
    assert_eq!(authenticator.admit(&head(Route::Cmd(NODE), None, Some(&cert))), Ok(Admitted::Node(NODE)));
}

#[test]
fn node_without_credentials_is_admitted_when_told_so() {
    let (authenticator, secrets) = authenticator(Rules { no_auth: true, ..Rules::default() });
    assert_eq!(authenticator.admit(&head(Route::Cmd(NODE), None, None)), Ok(Admitted::Node(NODE)));
    assert_eq!(authenticator.admit(&head(Route::Cmd(NODE), Some("junk"), None)), Ok(Admitted::Node(NODE)));
    let token = secrets.current.issue(OTHER, NOW);
    refused(&authenticator, &head(Route::Cmd(NODE), Some(&token), None), 403, "1:11");
}

#[test]
fn credentials_issued_before_a_revocation_are_refused() {
    let (authenticator, secrets) = authenticator(Rules::default());
    let old = secrets.current.issue(NODE, NOW - 5);
    let new = secrets.current.issue(NODE, NOW + 1);
    assert_eq!(authenticator.set_revoked(HashMap::from([(NODE, NOW)])), [NODE]);
    assert_eq!(authenticator.set_revoked(HashMap::from([(NODE, NOW)])), []);
    refused(&authenticator, &head(Route::Cmd(NODE), Some(&old), None), 401, "revoked");
    assert!(authenticator.admit(&head(Route::Cmd(NODE), Some(&new), None)).is_ok());
    // A certificate without a date is no better beside a newer token.
    assert!(authenticator.recheck_revocation(NODE, Some(&new), None).is_ok());
    assert!(
        authenticator.recheck_revocation(NODE, Some(&new), Some(0)).is_err()
            && authenticator.recheck_revocation(NODE, None, Some(0)).is_err()
    );
    let ahead = NOW + MAX_CLOCK_SKEW_MS;
    for (issued, good) in
        [(None, false), (Some(NOW), false), (Some(NOW + 1), true), (Some(ahead), true), (Some(ahead + 1), false)]
    {
        let cert = PeerCert { node: NODE, issued };
        assert_eq!(authenticator.admit(&head(Route::Cmd(NODE), None, Some(&cert))).is_ok(), good, "{issued:?}");
        assert_eq!(authenticator.recheck_revocation(NODE, None, Some(issued.unwrap_or(0))).is_ok(), good, "{issued:?}");
    }
}

#[test]
fn metrics_are_for_loopback_or_for_the_token() {
    let (open, _) = authenticator(Rules::default());
    let mut near = head(Route::Metrics, None, None);
    refused(&open, &near, 403, "loopback");
    near.peer = "::ffff:127.0.0.1".parse().unwrap();
    assert_eq!(open.admit(&near), Ok(Admitted::Operator));
    let (closed, _) = authenticator(Rules { metrics_token: Some("geheim".into()), ..Rules::default() });
    refused(&closed, &near, 401, "token");
    refused(&closed, &head(Route::NodeMetrics, Some("x"), None), 401, "token");
    assert_eq!(closed.admit(&head(Route::NodeMetrics, Some("geheim"), None)), Ok(Admitted::Operator));
}

#[test]
fn nodes_token_opens_the_nodes_figures_alone() {
    let own = |metrics: Option<&str>| {
        authenticator(Rules {
            nodes_token: Some("n".into()),
            metrics_token: metrics.map(str::to_owned),
            ..Rules::default()
        })
        .0
    };
    for authenticator in [own(None), own(Some("m"))] {
        assert_eq!(authenticator.admit(&head(Route::NodeMetrics, Some("n"), None)), Ok(Admitted::Operator));
        refused(&authenticator, &head(Route::NodeMetrics, Some("x"), None), 401, "token");
        let mut near = head(Route::NodeMetrics, None, None);
        near.peer = "127.0.0.1".parse().unwrap();
        refused(&authenticator, &near, 401, "token");
        // It opens nothing else.
        assert!(authenticator.admit(&head(Route::Metrics, Some("n"), None)).is_err());
    }
    assert_eq!(own(Some("m")).admit(&head(Route::NodeMetrics, Some("m"), None)), Ok(Admitted::Operator));
    let mut near = head(Route::Metrics, None, None);
    near.peer = "127.0.0.1".parse().unwrap();
    assert_eq!(own(None).admit(&near), Ok(Admitted::Operator));
}

#[test]
fn old_credentials_are_to_be_renewed() {
    let (authenticator, secrets) = authenticator(Rules::default());
    let old = secrets.current.issue(NODE, NOW - dates::days(CLIENT_DAYS));
    let new = secrets.current.issue(NODE, NOW);
    assert_eq!(authenticator.renewal(Some(&old), None), Some("certificate"));
    assert_eq!(authenticator.renewal(Some(&new), None), None);
    authenticator.set_secrets(secrets.rotated(NOW).unwrap());
    assert_eq!(authenticator.renewal(Some(&new), None), Some("secret"));
    assert_eq!(authenticator.renewal(None, None), None);
    assert_eq!(authenticator.renewal(None, Some(NOW - dates::days(CLIENT_DAYS - 10))), Some("certificate"));
    assert_eq!(authenticator.renewal(None, Some(NOW)), None);
}

#[test]
fn a_token_check_costs_about_what_its_mac_costs() {
    let (authenticator, secrets) = authenticator(Rules::default());
    let token = secrets.current.issue(NODE, NOW);
    let head = head(Route::Cmd(NODE), Some(&token), None);
    let time = |work: &dyn Fn()| {
        let begin = std::time::Instant::now();
        (0..100).for_each(|_| work());
        begin.elapsed()
    };
    // Others may have the processor in one of the two, so the shortest of many rounds are compared.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let (mut check, mut mac) = (std::time::Duration::MAX, std::time::Duration::MAX);
    loop {
        check = check.min(time(&|| assert!(authenticator.admit(&head).is_ok())));
        mac = mac.min(time(&|| drop(secrets.current.issue(NODE, NOW))));
        if check < mac * 20 {
            break;
        }
        assert!(std::time::Instant::now() < end, "{check:?} for 100 checks, {mac:?} for 100 codes");
    }
}
