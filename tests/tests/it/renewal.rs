//! Credentials over time: rotation, renewal, certificates that end, clocks that are off, a CA of one's own.

use jsacc::auth::ca::Ca;
use jsacc::auth::secrets::Secrets;
use jsacc::auth::tls::PeerCert;
use jscommon::NodeId;
use jstests::process::Process;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, Enrolled, FakeNode, LONG, Redis, Stage, bin, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

const NODE: NodeId = NodeId { gid: 1, nid: 10 };
const DAY: u64 = 86_400_000;

fn now() -> u64 {
    jstests::now_ms() as u64
}

/// An agent on the files of an enrolled node, as they lie there.
#[track_caller]
fn agent_of(enrolled: &Enrolled) -> Process {
    let mut command = Command::new(bin("jsagent"));
    command.arg("-c").arg(enrolled.dir.join("agent.toml"));
    Process::spawn(&mut command, "agent", &enrolled.dir, Signal::SIGTERM)
}

/// A client certificate of the CA in `dir`, made at `at` for so many days, in the place of the node's own.
#[track_caller]
fn put_certificate(dir: &Path, enrolled: &Enrolled, issued: Option<u64>, at: u64, days: i64) -> (PathBuf, PathBuf) {
    let ca = Ca::open(dir, now()).expect("the CA");
    let name = PeerCert { node: NODE, issued }.dns_name();
    let (cert, key) = ca.client(&name, at, days).expect("a certificate");
    let (cert_file, key_file) = (enrolled.dir.join("client.pem"), enrolled.dir.join("client.key"));
    fs::write(&cert_file, cert).expect("write");
    fs::write(&key_file, key).expect("write");
    (cert_file, key_file)
}

#[test]
fn an_idle_node_renews_soon_after_a_rotation() {
    let mut stage = Stage::start_secure();
    stage.client.wait_seen("1:10");
    let file = stage.agent.scratch().join("main.token");
    let old = fs::read_to_string(&file).expect("the token");
    assert_eq!(stage.acc.command(&["rotate"]).code, 0);
    wait_until("the waiting agent has fetched a new token", LONG, || {
        fs::read_to_string(&file).is_ok_and(|token| token.trim() != old.trim())
    });
    let secrets = Secrets::read(&stage.acc.state_dir()).expect("the secrets");
    let token = fs::read_to_string(&file).expect("the token");
    assert!(secrets.current.check(token.trim()).is_ok(), "it is of the new secret");
    let id = stage.client.send("ping", json!({}));
    assert_eq!(stage.client.pop(&id)["state"], "OK");
    // Two hold at a time: who rotates twice a day is told whom that shuts out.
    let again = stage.acc.command(&["rotate"]);
    assert!(again.stdout.contains("the one before them holds no longer"), "{again:?}");
    let shut_out = FakeNode::new(&stage.acc.url(), stage.acc.ca().as_deref(), 1, 10, Some(old.trim().to_owned()));
    wait_until("the first one is refused", LONG, || shut_out.get("/1/10/cmd?wait=0").status == 401);
}

#[test]
fn a_rotation_elsewhere_is_told_where_it_is_not_known() {
    let redis = Redis::start();
    let first = Acc::start(&redis, AccOptions::secure());
    let copied = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(first.state_dir()).expect("the state directory") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, copied.path().join(path.file_name().expect("a name"))).expect("copy");
    }
    let state_dir = Some(copied.path().to_owned());
    let second = Acc::start(&redis, AccOptions { state_dir, ..AccOptions::secure() });
    assert_eq!(first.command(&["rotate"]).code, 0);
    wait_until("the other machine's controller says what to copy", LONG, || {
        second.output().contains("copy its node.secret into")
    });
    fs::copy(first.state_dir().join("node.secret"), copied.path().join("node.secret")).expect("copy");
    let new = first.node(1, 10);
    let there = FakeNode::new(&second.url(), second.ca().as_deref(), 1, 10, Some(first.enroll(1, 10).token));
    wait_until("it holds there too", LONG, || there.get("/1/10/cmd?wait=0").status == 204);
    assert_eq!(new.get("/1/10/cmd?wait=0").status, 204);
}

#[test]
fn a_node_certificate_is_renewed_before_it_ends() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let enrolled = acc.enroll(1, 10);
    // Made 300 days ago, with 65 more to live.
    let made = now() - 300 * DAY;
    let (cert, _) = put_certificate(&acc.state_dir(), &enrolled, Some(made), made, 365);
    let before = fs::read_to_string(&cert).expect("the certificate");
    let _agent = agent_of(&enrolled);
    wait_until("it has a new one", LONG, || fs::read_to_string(&cert).is_ok_and(|text| text != before));
    wait_until("with the key to it", LONG, || {
        let cert = enrolled.client.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        let node = FakeNode::with_cert(&acc.url(), acc.ca().as_deref(), 1, 10, None, cert);
        node.get("/1/10/script?hash=zz").status == 400
    });
    let mut client = Client::new(&redis);
    let id = client.send("ping", json!({}));
    assert_eq!(client.pop(&id)["state"], "OK");
}

#[test]
fn a_certificate_that_has_ended_is_told_and_enrolling_again_mends_it() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let enrolled = acc.enroll(1, 10);
    let made = now() - 400 * DAY;
    put_certificate(&acc.state_dir(), &enrolled, Some(made), made, 365);
    let agent = agent_of(&enrolled);
    wait_until("the agent says what is wrong", LONG, || {
        agent.output().contains("certificate does not hold by the controller's clock: enrol it again")
    });
    acc.enroll_into(1, 10, &enrolled.dir);
    let mut client = Client::new(&redis);
    let id = client.send("ping", json!({}));
    assert_eq!(client.pop(&id)["state"], "OK", "without a restart");
}

#[test]
fn a_clock_that_is_off_is_called_a_clock() {
    // A controller that lives three days ahead of this node.
    let redis = Redis::start();
    let dir = tempfile::tempdir().expect("a folder");
    let ca = Ca::open(dir.path(), now()).expect("a CA");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let (cert, key) = ca.server(&names, now() + 3 * DAY, 30).expect("a certificate");
    let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&cert_file, format!("{cert}{}", ca.pem)).expect("write");
    fs::write(&key_file, key).expect("write");
    fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its mode");
    let args = ["--tls-cert", cert_file.to_str().unwrap(), "--tls-key", key_file.to_str().unwrap()];
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let acc = Acc::start_unready(&redis.url(), AccOptions { args, ..AccOptions::secure() });
    wait_until("it listens", LONG, || std::net::TcpStream::connect(("127.0.0.1", acc.port())).is_ok());
    let enrolled = acc.enroll(1, 10);
    let agent = agent_of(&enrolled);
    wait_until("the agent speaks of a clock", LONG, || agent.output().contains("clock: "));
    assert!(agent.output().contains("not valid yet by this node's clock"), "{}", agent.output());

    // One that refuses what it would take at its own time.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let body = json!({"error": "the credentials were revoked", "time": now() + 3_600_500}).to_string();
            let length = body.len();
            let head = format!("HTTP/1.1 401 x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    let plain = Acc::start(&redis, AccOptions { state_dir: Some(acc.state_dir()), ..AccOptions::default() });
    let options = AgentOptions { via: Some(url), ..AgentOptions::default() };
    let agent = Agent::start(&plain, options);
    wait_until("the agent says by how much", LONG, || {
        agent.output().contains("clock: this node's clock is 3600 s behind the controller's")
    });
    assert!(!agent.output().contains("refused (401)"), "{}", agent.output());
}

#[test]
fn nodes_come_with_certificates_of_a_ca_of_ones_own() {
    let redis = Redis::start();
    let own = tempfile::tempdir().expect("a folder");
    let ca = Ca::open(own.path(), now()).expect("a CA");
    let file = own.path().join("ca.pem").to_str().unwrap().to_owned();
    let start = |more: &[&str]| {
        let args = [&["--client-ca", &file], more].concat().iter().map(|arg| (*arg).to_owned()).collect();
        Acc::start(&redis, AccOptions { args, ..AccOptions::secure() })
    };
    let acc = start(&[]);
    let enrolled = acc.enroll(1, 10);
    let ask = |acc: &Acc, client: Option<(&Path, &Path)>, token: Option<&str>, path: &str| {
        FakeNode::with_cert(&acc.url(), acc.ca().as_deref(), 1, 10, token.map(str::to_owned), client).get(path).status
    };
    let name = PeerCert { node: NODE, issued: None }.dns_name();
    let (cert, key) = ca.client(&name, now(), 30).expect("a certificate");
    let (cert_file, key_file) = (own.path().join("node.pem"), own.path().join("node.key"));
    fs::write(&cert_file, cert).expect("write");
    fs::write(&key_file, key).expect("write");
    let theirs = Some((cert_file.as_path(), key_file.as_path()));
    let ours = enrolled.client.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
    assert!(ours.is_some());
    for client in [theirs, ours] {
        assert_eq!(ask(&acc, client, None, "/1/10/cmd?wait=0"), 204);
        assert_eq!(ask(&acc, client, None, "/1/11/cmd?wait=0"), 403, "it is bound to its node");
    }
    assert_eq!(ask(&acc, None, Some(&enrolled.token), "/1/10/cmd?wait=0"), 204);
    // Our CA does not replace a certificate that the other CA has signed.
    let node = FakeNode::with_cert(&acc.url(), acc.ca().as_deref(), 1, 10, None, theirs);
    let renewed = node.post("renew", &json!({}));
    assert_eq!((renewed.status, renewed.json()["client_cert"].as_str()), (200, Some("")), "{renewed:?}");

    let state_dir = acc.state_dir();
    let args = ["--client-ca", &file, "--require-client-cert"].map(str::to_owned).to_vec();
    let strict = Acc::start(&redis, AccOptions { args, state_dir: Some(state_dir), ..AccOptions::secure() });
    assert_eq!(ask(&strict, theirs, None, "/1/10/cmd?wait=0"), 204);
    assert_eq!(ask(&strict, None, Some(&enrolled.token), "/1/10/cmd?wait=0"), 401, "a token is not enough");
    assert_eq!(ask(&strict, ours, Some(&enrolled.token), "/1/10/cmd?wait=0"), 0, "nor is our certificate");
    let out = own.path().join("enrolled");
    let args = ["enroll", "1", "10", "--client-ca", &file, "--require-client-cert", "--out", out.to_str().unwrap()];
    assert_eq!(strict.command(&args).code, 0);
    assert!(Enrolled::read(&out).client.is_none(), "and enroll gives none");
}

#[test]
fn agents_resume_their_tls_sessions() {
    let mut stage = Stage::start_secure();
    stage.client.wait_seen("1:10");
    // The controller closes the connection of a refused request, so that each try is a connection of its own.
    assert_eq!(stage.acc.command(&["revoke", "1", "10"]).code, 0);
    let resumed = || {
        let text = stage.acc.anonymous().get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix("jsacc_tls_handshakes_total{kind=\"resumed\"} "));
        line.and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
    };
    wait_until("polls come over resumed sessions", LONG, || resumed() >= 3);
}

/// Whether the certificate of an enrolled node, without its token, opens a path of that node.
fn pair_holds(acc: &Acc, enrolled: &Enrolled) -> bool {
    let pair = enrolled.client.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
    let node = FakeNode::with_cert(&acc.url(), acc.ca().as_deref(), 1, 10, None, pair);
    node.get("/1/10/script?hash=zz").status == 400
}

/// The names in a folder that a renewal leaves only when it is interrupted.
fn left_over(dir: &Path) -> Vec<String> {
    let names =
        fs::read_dir(dir).expect("the folder").flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".renewal")).collect()
}

#[test]
fn renewal_interrupted_at_any_step_leaves_a_node_that_works() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let mut client = Client::new(&redis);
    // Before the decision, after it, and after each of the files but the last.
    for point in ["written", "decided", "replaced:1", "replaced:2"] {
        let enrolled = acc.enroll(1, 10);
        let made = now() - 300 * DAY;
        let (cert, _) = put_certificate(&acc.state_dir(), &enrolled, Some(made), made, 365);
        let before = fs::read_to_string(&cert).expect("the certificate");
        let mut command = Command::new(bin("jsagent"));
        command.arg("-c").arg(enrolled.dir.join("agent.toml")).env("JS_DIE_AT", format!("agent.credentials.{point}"));
        let mut dying = Process::spawn(&mut command, "dying", &enrolled.dir, Signal::SIGTERM);
        assert!(dying.wait(LONG).is_some(), "{point}: it dies");
        assert_eq!(left_over(&enrolled.dir).len(), usize::from(point != "written"), "{point}");
        let _agent = agent_of(&enrolled);
        let id = client.send("ping", json!({}));
        assert_eq!(client.pop(&id)["state"], "OK", "{point}");
        let renewed =
            || fs::read_to_string(&cert).is_ok_and(|text| text != before) && left_over(&enrolled.dir).is_empty();
        wait_until(&format!("{point}: the new set is in place"), LONG * 2, renewed);
        assert!(pair_holds(&acc, &enrolled), "{point}");
    }
}

#[test]
fn certificate_that_an_interrupted_renewal_left_beside_is_used() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let mut client = Client::new(&redis);
    let (cert, _) = acc.enroll(1, 10).client.expect("a certificate");
    let old = fs::read(&cert).expect("the certificate");
    // The second one writes over the files of the first.
    let enrolled = acc.enroll(1, 10);
    let new = fs::read(&cert).expect("the certificate");
    assert!(enrolled.client.as_ref().is_some_and(|pair| pair.0 == cert) && old != new);
    // The files that version 0.1.0 left when client.pem could not be replaced.
    let left = cert.with_added_extension("new");
    fs::rename(&cert, &left).expect("the new certificate");
    fs::write(&cert, &old).expect("the old certificate");
    let check = check_config(&enrolled);
    assert!(check.code == 0 && check.stderr.is_empty(), "{check:?}");
    assert!(left.exists() && fs::read(&cert).ok().as_ref() == Some(&old), "a check changes no file");
    let _agent = agent_of(&enrolled);
    let id = client.send("ping", json!({}));
    assert_eq!(client.pop(&id)["state"], "OK");
    assert!(!left.exists() && fs::read(&cert).ok() == Some(new), "it is in its place");
    assert!(pair_holds(&acc, &enrolled));
}

fn check_config(enrolled: &Enrolled) -> jstests::Output {
    let config = enrolled.dir.join("agent.toml");
    jstests::run("jsagent", &["--check-config", "-c", config.to_str().expect("UTF-8")])
}

#[test]
fn certificate_that_is_no_good_is_told_and_renewed_with_the_token() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let mut client = Client::new(&redis);
    let other = acc.enroll(1, 11).client.expect("a certificate").1;
    for (fault, said) in [
        ("the key is gone", "cannot read the key"),
        ("the key of another", "do not belong together"),
        ("no certificate", "there is no certificate in it"),
    ] {
        let enrolled = acc.enroll(1, 10);
        let (cert, key) = enrolled.client.clone().expect("a certificate");
        match fault {
            "the key is gone" => fs::remove_file(&key).expect("remove"),
            "the key of another" => drop(fs::copy(&other, &key).expect("copy")),
            _ => fs::write(&cert, "no certificate").expect("write"),
        }
        let check = check_config(&enrolled);
        assert!(check.code == 0 && check.stderr.contains(said), "{fault}: {check:?}");
        assert!(check.stderr.contains("controllers.main: ") && check.stderr.contains("token is used"), "{check:?}");
        let agent = agent_of(&enrolled);
        let id = client.send("ping", json!({}));
        assert_eq!(client.pop(&id)["state"], "OK", "{fault}");
        assert!(agent.output().contains(said), "{fault}: {}", agent.output());
        wait_until("the pair is renewed", LONG, || pair_holds(&acc, &enrolled));
    }
}
