//! Credentials: enrolment, revocation, rotation, certificates, what the state directory must fit to.

use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, run, wait_until};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn site() -> (Redis, Acc, Client) {
    jstests::site(AccOptions::secure())
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn enrolled_files_are_private_and_complete() {
    let (_redis, acc, _client) = site();
    let enrolled = acc.enroll(1, 10);
    for name in ["token", "client.key"] {
        assert_eq!(mode(&enrolled.dir.join(name)), 0o600, "{name}");
    }
    assert!(enrolled.ca.is_absolute() && enrolled.config.contains("gid = 1"));
    for name in ["ca.key", "server.key", "node.secret"] {
        assert_eq!(mode(&acc.state_dir().join(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&acc.state_dir()), 0o700);
    let again = acc.enroll(1, 10);
    assert_ne!(again.token, enrolled.token, "a second time it writes them anew");
}

#[test]
fn a_token_or_a_certificate_opens_ones_own_paths() {
    let (_redis, acc, mut client) = site();
    let enrolled = acc.enroll(1, 10);
    let (cert, key) = enrolled.client.clone().unwrap();
    let by_token = FakeNode::new(&acc.url(), Some(&enrolled.ca), 1, 10, Some(enrolled.token.clone()));
    let by_cert = FakeNode::with_cert(&acc.url(), Some(&enrolled.ca), 1, 10, None, Some((&cert, &key)));
    for node in [&by_token, &by_cert] {
        assert_eq!(node.get("/1/10/cmd?wait=0").status, 204);
        for path in ["/1/11/cmd?wait=0", "/2/10/cmd?wait=0", "/1/11/script?hash=x"] {
            let answer = node.get(path);
            assert_eq!(answer.status, 403, "{path}");
            assert!(answer.error().contains("1:10"), "{answer:?}");
        }
        for what in ["result", "log", "stats", "event", "renew"] {
            assert_eq!(node.post_text(&format!("/1/11/{what}"), "{}").status, 403, "{what}");
        }
    }
    for bad in [None, Some(""), Some("x"), Some("1.10.5.AAAA"), Some(&enrolled.token[1..])] {
        let answer = by_token.with_token(bad).get("/1/10/cmd?wait=0");
        assert_eq!(answer.status, 401, "{bad:?}");
        assert!(answer.json()["time"].as_u64().unwrap() > 1_700_000_000_000);
    }
    wait_until("the refused are told", LONG, || {
        client.events().iter().any(|event| event["name"] == "refused" && event["data"]["addr"] == "127.0.0.1")
    });
}

#[test]
fn a_certificate_can_be_demanded() {
    let redis = Redis::start();
    let options = AccOptions { args: vec!["--require-client-cert".into()], ..AccOptions::secure() };
    let acc = Acc::start(&redis, options);
    let enrolled = acc.enroll(1, 10);
    let (cert, key) = enrolled.client.clone().unwrap();
    let by_token = FakeNode::new(&acc.url(), Some(&enrolled.ca), 1, 10, Some(enrolled.token.clone()));
    let answer = by_token.get("/1/10/cmd?wait=0");
    assert_eq!(answer.status, 401);
    assert!(answer.error().contains("certificate"));
    let both = FakeNode::with_cert(&acc.url(), Some(&enrolled.ca), 1, 10, Some(enrolled.token), Some((&cert, &key)));
    assert_eq!(both.get("/1/10/cmd?wait=0").status, 204);
}

#[test]
fn revoked_credentials_are_refused_everywhere_within_seconds() {
    let redis = Redis::start();
    let one = Acc::start(&redis, AccOptions::secure());
    let two = Acc::start(&redis, AccOptions { state_dir: Some(one.state_dir()), ..AccOptions::secure() });
    let old = one.enroll(1, 10);
    let other = one.node(1, 11);
    let (cert, key) = old.client.clone().unwrap();
    let nodes = |acc: &Acc| {
        [
            FakeNode::new(&acc.url(), Some(&old.ca), 1, 10, Some(old.token.clone())),
            FakeNode::with_cert(&acc.url(), Some(&old.ca), 1, 10, None, Some((&cert, &key))),
        ]
    };
    let parked = nodes(&two)[0].clone();
    let waiting = std::thread::spawn(move || parked.get("/1/10/cmd?wait=60").status);
    Client::new(&redis).wait_seen("1:10");
    assert_eq!(one.command(&["revoke", "1", "10"]).code, 0);
    for acc in [&one, &two] {
        for node in nodes(acc) {
            wait_until("it is refused", LONG, || {
                let answer = node.get("/1/10/cmd?wait=0");
                answer.status == 401 && answer.error().contains("revoked")
            });
        }
    }
    assert_ne!(waiting.join().unwrap(), 200, "its waiting poll got nothing");
    assert_eq!(other.get("/1/11/cmd?wait=0").status, 204);
    let new = one.enroll_into(1, 10, &old.dir.join("new"));
    let node = FakeNode::new(&two.url(), Some(&new.ca), 1, 10, Some(new.token));
    assert_eq!(node.get("/1/10/cmd?wait=0").status, 204, "enrolling again gives new ones");
}

#[test]
fn a_rotated_secret_holds_for_a_day_and_nodes_can_renew() {
    let (_redis, acc, _client) = site();
    let old = acc.node(1, 10);
    assert_eq!(old.post("renew", &json!({})).status, 204, "there is nothing to renew");
    let done = acc.command(&["rotate"]);
    assert_eq!(done.code, 0, "{done:?}");
    let token = {
        let mut token = None;
        wait_until("the running controller knows of it", LONG, || {
            let answer = old.post("renew", &json!({}));
            assert!(answer.status == 200 || answer.status == 204, "the old secret still holds: {answer:?}");
            token = answer.json()["token"].as_str().map(str::to_owned);
            token.is_some()
        });
        token.unwrap()
    };
    assert_eq!(old.with_token(Some(&token)).get("/1/10/cmd?wait=0").status, 204);
    assert_eq!(old.get("/1/10/cmd?wait=0").status, 204);
    assert_eq!(acc.node(1, 12).get("/1/12/cmd?wait=0").status, 204);
}

#[test]
fn credentials_revoked_a_moment_ago_cannot_be_renewed() {
    let (_redis, acc, mut client) = site();
    let old = acc.node(1, 10);
    assert_eq!(acc.command(&["rotate"]).code, 0);
    wait_until("the old secret is to be renewed", LONG, || old.post("renew", &json!({})).status == 200);
    // As another machine's `revoke` leaves it in the moment before this controller looks.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let _: i64 = client.redis(&["HSET", "jsacc:{revoked}", "1:10", &now.to_string()]);
    let answer = old.post("renew", &json!({}));
    assert_eq!(answer.status, 401, "{answer:?}");
    assert!(answer.error().contains("revoked"), "{answer:?}");
}

#[test]
fn a_second_revocation_reaches_further_than_the_first() {
    let (_redis, acc, mut client) = site();
    // The first one came from a machine whose clock is an hour ahead.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let ahead = (now + 3_600_000).to_string();
    let _: i64 = client.redis(&["HSET", "jsacc:{revoked}", "1:10", &ahead]);
    let _: i64 = client.redis(&["INCR", "jsacc:{revoked}:version"]);
    let node = acc.node(1, 10);
    wait_until("enrolled again, it is let in", LONG, || node.get("/1/10/cmd?wait=0").status == 204);
    assert_eq!(acc.command(&["revoke", "1", "10"]).code, 0);
    wait_until("it is refused", LONG, || node.get("/1/10/cmd?wait=0").status == 401);
}

#[test]
fn enrolment_tokens_are_counted_and_end() {
    let (_redis, acc, mut client) = site();
    let token = |args: &[&str]| acc.command(&[&["token"], args].concat()).stdout.trim().to_owned();
    let body = json!({"gid": 1, "nid": 10}).to_string();
    let anonymous = acc.anonymous();
    let twice = anonymous.with_token(Some(&token(&["--uses", "2"])));
    let answer = twice.post_text("/enroll", &body);
    assert_eq!(answer.status, 200, "{answer:?}");
    let given = answer.json();
    let node = acc.anonymous().with_token(given["token"].as_str());
    assert_eq!(node.get("/1/10/cmd?wait=0").status, 204);
    for name in ["ca", "client_cert"] {
        assert!(given[name].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE"), "{name}");
    }
    assert_eq!(twice.post_text("/enroll", "{}").status, 400, "a bad body does not count");
    let other = json!({"gid": 1, "nid": 11}).to_string();
    assert_eq!(twice.post_text("/enroll", &other).status, 200);
    let spent = twice.post_text("/enroll", &body);
    assert_eq!(spent.status, 403);
    assert!(spent.error().contains("spent"), "{spent:?}");
    let short = anonymous.with_token(Some(&token(&["--ttl", "1s"])));
    // Such a body does not count, and is not looked at any more then.
    wait_until("it has expired", LONG, || {
        let answer = short.post_text("/enroll", "{\"gid\":1}");
        answer.status == 403 && answer.error().contains("expired")
    });
    assert_eq!(anonymous.post_text("/enroll", &body).status, 401);
    assert_eq!(anonymous.with_token(Some("jse1.a.b")).post_text("/enroll", &body).status, 403);
    assert!(client.events().iter().any(|event| event["name"] == "enrolled"));
    let text = token(&[]);
    let fingerprint = text.rsplit_once('.').unwrap().1;
    assert_eq!(fingerprint.len(), 64);
}

#[test]
fn the_server_certificate_is_replaced_without_a_restart() {
    let (redis, first, _client) = site();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let take = |from: &Acc| {
        std::fs::copy(from.state_dir().join("server.key"), &key).unwrap();
        std::fs::copy(from.state_dir().join("server.pem"), &cert).unwrap();
    };
    take(&first);
    let args = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let acc = Acc::start(&redis, AccOptions { args, state_dir: Some(first.state_dir()), ..AccOptions::secure() });
    let node = acc.node(1, 10);
    assert_eq!(node.get("/1/10/cmd?wait=0").status, 204);
    let other = Acc::start(&Redis::start(), AccOptions::secure());
    take(&other);
    let anonymous = FakeNode::new(&acc.url(), Some(&other.state_dir().join("ca.pem")), 1, 1, None);
    wait_until("the other certificate is shown", LONG, || anonymous.get("/health").status == 200);
}

#[test]
fn a_controller_of_another_family_does_not_start() {
    let (redis, _acc, _client) = site();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("other");
    let done =
        run("jsacc", &["-b", "127.0.0.1", "-p", "0", "-r", &redis.url(), "--state-dir", state.to_str().unwrap()]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("node secret"), "{done:?}");
}

#[test]
fn metrics_are_for_loopback_or_for_a_token() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "metrics-token\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let args = vec!["--metrics-token-file".into(), file.to_str().unwrap().to_owned()];
    let acc = Acc::start(&redis, AccOptions { args, ..AccOptions::default() });
    for path in ["/metrics", "/metrics/nodes"] {
        assert_eq!(acc.anonymous().get(path).status, 401);
        assert_eq!(acc.anonymous().with_token(Some("wrong")).get(path).status, 401);
        assert_eq!(acc.anonymous().with_token(Some("metrics-token")).get(path).status, 200);
    }
}

#[test]
fn a_revoked_node_is_refused_from_the_first_moment_after_a_start_without_redis() {
    let mut redis = Redis::start_durable();
    let mut acc = Acc::start(&redis, AccOptions::secure());
    let revoked = acc.node(1, 10);
    let good = acc.node(1, 11);
    assert_eq!(acc.command(&["revoke", "1", "10"]).code, 0);
    assert_eq!(acc.stop(), Some(0));
    redis.kill();
    acc.resume_unready();
    wait_until("it listens", LONG, || std::net::TcpStream::connect(("127.0.0.1", acc.port())).is_ok());
    assert_eq!(revoked.get("/1/10/cmd?wait=0").status, 503);
    redis.resume();
    wait_until("it is refused", LONG, || {
        let answer = revoked.get("/1/10/cmd?wait=0");
        assert!(matches!(answer.status, 401 | 503), "{answer:?}");
        answer.status == 401
    });
    wait_until("another node is let in", LONG, || good.get("/1/11/cmd?wait=0").status == 204);
}

#[test]
fn commands_beside_the_wrong_state_directory_refuse_and_make_none() {
    let (redis, acc, _client) = site();
    let home = tempfile::tempdir().unwrap();
    let (absent, empty, other) = (home.path().join("absent"), home.path().join("empty"), home.path().join("other"));
    std::fs::create_dir(&empty).unwrap();
    // A state directory of other controllers, whose tokens are good for nothing here.
    let elsewhere = Redis::start();
    let state_dir = Some(other.clone());
    drop(Acc::start(&elsewhere, AccOptions { state_dir, ..AccOptions::secure() }));
    let out = home.path().join("out");
    let tasks: [&[&str]; 4] =
        [&["token"], &["enroll", "1", "10", "--out", out.to_str().unwrap()], &["rotate"], &["revoke", "1", "10"]];
    let url = redis.url();
    for (dir, says) in [(&absent, "start jsacc with it first"), (&empty, "no ca.pem"), (&other, "another node secret")]
    {
        for task in tasks {
            let args = [task, &["-r", &url, "--state-dir", dir.to_str().unwrap()]].concat();
            let done = run("jsacc", &args);
            assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{task:?}: {}", done.stderr);
            assert!(done.stderr.contains(says) && done.stderr.contains(dir.to_str().unwrap()), "{}", done.stderr);
        }
    }
    assert!(!absent.exists() && !out.exists());
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    assert_eq!(acc.command(&["token"]).code, 0);
}

#[test]
fn a_certificate_that_nodes_would_refuse_stops_the_start() {
    let redis = Redis::start();
    let home = tempfile::tempdir().unwrap();
    // The built-in CA's own certificate: the kind that `openssl req -x509` makes.
    let acc = Acc::start(&redis, AccOptions::secure());
    let file = |name: &str| acc.state_dir().join(name).to_str().unwrap().to_owned();
    let (state, elsewhere) = (home.path().join("state"), Redis::start());
    let url = elsewhere.url();
    for (cert, key, says) in [("ca.pem", "ca.key", "that of a CA"), ("server.pem", "ca.key", "does not belong")] {
        let (cert, key) = (file(cert), file(key));
        let args = ["--tls-cert", &cert, "--tls-key", &key, "-r", &url, "-p", "0"];
        let done = run("jsacc", &[&args[..], &["-b", "127.0.0.1", "--state-dir", state.to_str().unwrap()]].concat());
        assert_eq!(done.code, 1, "{}", done.stderr);
        let line = done.stderr.lines().last().unwrap_or_default();
        assert!(line.starts_with("jsacc: ") && line.contains(says) && line.contains(&cert), "{}", done.stderr);
    }
}
