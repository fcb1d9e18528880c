//! One controller against fakes: paths, credentials, kept connections, addresses in turn.

use super::connection::is_loopback;
use super::response::MAX_WAIT;
use super::*;
use crate::config::{Config, Overrides};
use crate::uplink::test_controller::{Answer, Asked, TestController};
use std::fs;

fn config(urls: &[&str], token_file: Option<&std::path::Path>) -> Config {
    let overrides = Overrides {
        gid: Some(1),
        nid: Some(10),
        controller: Some(urls[0].to_owned()),
        data_dir: Some("/d".into()),
        insecure_paths: false,
    };
    let mut config = Config::parse("", &overrides).unwrap();
    config.main.roles = vec!["web".into(), "a b/ü".into()];
    let main = config.controllers.get_mut("main").unwrap();
    main.urls = urls.iter().map(|url| (*url).to_owned()).collect();
    main.token_file = token_file.map(Into::into);
    config
}

fn open(config: &Config) -> Controller {
    Controller::open(config, "main", "i-1").unwrap()
}

#[test]
fn a_poll_says_who_asks_and_takes_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "1.10.5.abc\n").unwrap();
    let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let log = seen.clone();
    let fake = TestController::start(move |asked| {
        log.lock().unwrap().push(asked.clone());
        match asked.line.contains("ack=") {
            true => (204, String::new(), String::new()),
            false => (200, String::new(), r#"{"batch": 7, "cmds": [{"id": "a"}]}"#.to_owned()),
        }
    });
    let controller = open(&config(&[&fake.url], Some(&token)));
    let taken = controller.poll(Duration::from_secs(30), None).unwrap().unwrap();
    assert_eq!((taken.batch.as_str(), taken.cmds.len()), ("7", 1));
    assert!(controller.poll(Duration::from_secs(5), Some("7")).unwrap().is_none());
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].line, "GET /1/10/cmd?wait=30&role=web&role=a%20b%2F%C3%BC&instance=i-1");
    assert_eq!(seen[1].line, "GET /1/10/cmd?wait=5&role=web&role=a%20b%2F%C3%BC&ack=7&instance=i-1");
    assert!(seen[0].head.contains("authorization: bearer 1.10.5.abc\r\n"), "{}", seen[0].head);
    assert_eq!(*fake.connections.lock().unwrap(), 1, "the connection is kept");
}

#[test]
fn addresses_have_their_turns() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let fake = TestController::start(|_| (200, String::new(), String::new()));
    let no_controller = TestController::start(|_| (404, String::new(), "<html>".into()));
    let controller = open(&config(&[&no_controller.url, &closed, &fake.url], None));
    assert!(matches!(controller.post("event", b"{}"), Err(Failure::Foreign { status: 404, .. })));
    assert!(matches!(controller.post("event", b"{}"), Err(Failure::Away(_))));
    assert_eq!(controller.url(), fake.url);
    controller.post("event", b"{}").unwrap();
    controller.post("event", b"{}").unwrap();
    assert_eq!(controller.url(), fake.url, "what answers keeps its turn");
}

#[test]
fn busy_says_for_how_long() {
    let fake = TestController::start(|_| (503, "retry-after: 7\r\n".into(), r#"{"error": "Redis is away"}"#.into()));
    let failure = open(&config(&[&fake.url], None)).post("result", b"[]").unwrap_err();
    assert_eq!(failure.wait(), Some(Duration::from_secs(7)));
    assert_eq!(failure.to_string(), "it is busy (503): Redis is away");
}

#[test]
fn nobody_silences_a_node_for_long() {
    for asked in ["86400", "18446744073709551615"] {
        let fake = TestController::start(move |_| (503, format!("retry-after: {asked}\r\n"), String::new()));
        let failure = open(&config(&[&fake.url], None)).post("result", b"[]").unwrap_err();
        assert_eq!(failure.wait(), Some(MAX_WAIT), "{asked}");
    }
}

#[test]
fn a_script_is_there_or_not() {
    let hash = jscommon::token::sha256_hex(b"print(1)");
    let fake = TestController::start(|asked| match asked.line.split_once("hash=").map(|(_, hash)| &hash[..2]) {
        Some("bb") => (404, String::new(), r#"{"error": "no such script"}"#.into()),
        Some("cc") => (404, String::new(), "<html>".into()),
        _ => (200, String::new(), "print(1)".into()),
    });
    let controller = open(&config(&[&fake.url], None));
    assert_eq!(controller.script(&hash).unwrap().as_deref(), Some(&b"print(1)"[..]));
    assert_eq!(controller.script("bb").unwrap(), None);
    for other in ["cc", "aa"] {
        assert!(matches!(controller.script(other), Err(Failure::Foreign { .. })), "{other}");
    }
}

/// Answers that no controller gives to something posted.
const NO_RECEIPTS: [(u16, &str); 12] = [
    (200, "<html>maintenance</html>"),
    (200, " "),
    (200, "OK"),
    (200, "[]"),
    (200, "null"),
    (200, r#"{"error": "no"}"#),
    (200, r#"{"status": "ok"}"#),
    (201, "{}"),
    (202, "{}"),
    (204, ""),
    (206, "{}"),
    (302, "{}"),
];

#[test]
fn status_alone_is_no_receipt() {
    let answer: Arc<Mutex<Answer>> = Arc::default();
    let given = answer.clone();
    let fake = TestController::start(move |_| given.lock().unwrap().clone());
    let controller = open(&config(&[&fake.url], None));
    for (status, body) in NO_RECEIPTS {
        // A redirect is not followed, for the fake would answer there as well.
        *answer.lock().unwrap() = (status, format!("x: y\r\nlocation: {}/x\r\n", fake.url), body.to_owned());
        for what in ["result", "log", "stats", "event"] {
            let failure = controller.post(what, b"[]").unwrap_err();
            assert!(matches!(failure, Failure::Foreign { .. }), "{status} {body} {what}: {failure:?}");
        }
        assert!(controller.post_batch("log", b"{}").is_err(), "{status} {body}");
        assert!(controller.poll(Duration::from_secs(30), None).is_err(), "{status} {body}");
        assert!(controller.script(&"a".repeat(64)).is_err(), "{status} {body}");
        if status != 204 {
            assert!(controller.renew().is_err(), "{status} {body}");
        }
        assert!(enroll(&fake.url, "t", 1, 10, "u", &[]).is_err(), "{status} {body}");
    }
    assert_eq!(controller.requests_taken(), 0);
    for (extra, body, last) in
        [("", "{}", None), ("", r#"{"last": 7}"#, Some(7)), ("X-JS-Time: 5\r\n", r#"{"last": 7, "more": 1}"#, Some(7))]
    {
        *answer.lock().unwrap() = (200, extra.to_owned(), body.to_owned());
        assert_eq!(controller.post_batch("log", b"{}").unwrap(), last, "{body}");
    }
}

#[test]
fn answer_of_no_controller_gives_the_turn_to_the_next_address() {
    let portal = TestController::start(|_| (200, "content-type: text/html\r\n".into(), "<html>log in</html>".into()));
    let fake = TestController::start(|_| (200, String::new(), String::new()));
    let controller = open(&config(&[&portal.url, &fake.url], None));
    let failure = controller.post("result", b"[]").unwrap_err();
    let said = failure.to_string();
    assert!(said.starts_with("an answer that is not the controller's: status 200, text/html; check the url"), "{said}");
    controller.post("result", b"[]").unwrap();
    assert_eq!(controller.url(), fake.url);
}

#[test]
fn empty_answer_to_a_poll_needs_the_wait_or_a_mark() {
    let answer: Arc<Mutex<Answer>> = Arc::default();
    let given = answer.clone();
    let fake = TestController::start(move |_| {
        let answer = given.lock().unwrap().clone();
        if answer.1.contains("slow") {
            std::thread::sleep(Duration::from_millis(1200));
        }
        answer
    });
    let controller = open(&config(&[&fake.url], None));
    for (extra, wait, good) in [
        ("x: generate_204\r\n", 30, false),
        ("X-JS-Time: 5\r\n", 30, true),
        ("X-JS-Renew: old secret\r\n", 30, true),
        ("x: slow\r\n", 2, true),
        ("x: y\r\n", 0, true),
    ] {
        *answer.lock().unwrap() = (204, extra.to_owned(), String::new());
        let polled = controller.poll(Duration::from_secs(wait), Some("7"));
        assert_eq!(matches!(polled, Ok(None)), good, "{extra} {wait}: {polled:?}");
    }
}

#[test]
fn renewal_replaces_files_and_is_used_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "old").unwrap();
    let fake = TestController::start(|asked| match asked.line.as_str() {
        "POST /1/10/renew" => (200, String::new(), r#"{"token": "new", "ca": "", "client_cert": ""}"#.into()),
        _ if asked.head.contains("bearer new\r\n") => (200, String::new(), String::new()),
        _ => (200, "X-JS-Renew: old secret\r\n".into(), String::new()),
    });
    let controller = open(&config(&[&fake.url], Some(&token)));
    controller.post("event", b"{}").unwrap();
    assert!(controller.wants_renewal());
    assert!(controller.renew().unwrap() && !controller.wants_renewal());
    assert_eq!(fs::read_to_string(&token).unwrap(), "new\n");
    controller.post("event", b"{}").unwrap();
    assert!(!controller.wants_renewal());
    assert!(!controller.reload(), "the file holds what is in use");
    fs::write(&token, "newer").unwrap();
    assert!(controller.reload(), "somebody enrolled the node again");
}

#[test]
fn renewal_and_a_look_at_the_files_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, "0").unwrap();
    let (count, last) = (AtomicUsize::new(0), 100);
    let fake = TestController::start(move |_| {
        let n = count.fetch_add(1, Ordering::Relaxed) + 1;
        (200, String::new(), format!(r#"{{"token": "{n}", "ca": "", "client_cert": ""}}"#))
    });
    let controller = open(&config(&[&fake.url], Some(&token)));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(!controller.reload(), "the files hold what is in use, or will soon");
            }
        });
        let renewed = (0..last).map(|_| controller.renew().unwrap() && !controller.is_unfinished());
        let good = renewed.filter(|good| *good).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(good, last);
    });
    assert_eq!(fs::read_to_string(&token).unwrap(), format!("{last}\n"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_poll_can_be_ended_from_elsewhere() {
    let fake = TestController::start(|_| {
        std::thread::sleep(Duration::from_secs(20));
        (204, String::new(), String::new())
    });
    let controller = Arc::new(open(&config(&[&fake.url], None)));
    let polling = {
        let controller = controller.clone();
        std::thread::spawn(move || controller.poll(Duration::from_secs(30), None))
    };
    while *fake.connections.lock().unwrap() == 0 {
        std::thread::yield_now();
    }
    controller.stop_polls();
    assert!(polling.join().unwrap().is_err());
}

#[test]
fn bad_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let fault = |config: &Config| match Controller::open(config, "main", "i") {
        Ok(_) => panic!("it opened"),
        Err(error) => format!("{error:#}"),
    };
    let missing = fault(&config(&["https://127.0.0.1:1"], Some(&path)));
    assert!(missing.contains("cannot read the token file") && missing.contains("controller main"), "{missing}");
    fs::write(&path, "two\nlines").unwrap();
    assert!(fault(&config(&["https://127.0.0.1:1"], Some(&path))).contains("holds no token"));
    let mut with_ca = config(&["https://127.0.0.1:1"], None);
    with_ca.controllers.get_mut("main").unwrap().ca = Some(path);
    assert!(fault(&with_ca).contains("there is no certificate in"));
}

#[test]
fn files_of_windows_editors_are_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let with_token = config(&["http://127.0.0.1:1"], Some(&path));
    let open = |config: &Config| Controller::open(config, "main", "i").map(drop).map_err(|error| format!("{error:#}"));
    for text in ["1.10.5.abc\r\n", "\u{feff}1.10.5.abc\r\n", "\u{feff}1.10.5.abc"] {
        fs::write(&path, text).unwrap();
        assert_eq!(open(&with_token), Ok(()), "{text:?}");
    }
    let utf16: Vec<u8> = "\u{feff}1.10.5.abc\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&path, &utf16).unwrap();
    let fault = open(&with_token).unwrap_err();
    assert!(fault.contains("line 1: the file is UTF-16 (little endian): save it as UTF-8"), "{fault}");
    // A certificate behind a byte order mark is one; in UTF-16 that is said.
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(&path, format!("\u{feff}{pem}")).unwrap();
    assert_eq!(crate::uplink::read_certificates(&path).unwrap().len(), 1);
    fs::write(&path, pem.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let fault = format!("{:#}", crate::uplink::read_certificates(&path).unwrap_err());
    assert!(fault.contains("UTF-16"), "{fault}");
}

#[test]
fn a_path_that_swallows_everything_is_noticed() {
    // It takes connections into its backlog and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let fake = TestController::start(|_| (204, String::new(), String::new()));
    let short = Duration::from_millis(100);
    let timeouts = Timeouts { connect: short, answer: short, poll: short };
    let plain = config(&[&format!("http://{address}"), &fake.url], None);
    let controller = Controller::open_with(&plain, "main", "i", timeouts).unwrap();
    let failure = controller.poll(Duration::ZERO, None).unwrap_err();
    assert!(matches!(&failure, Failure::Away(reason) if reason.starts_with("no answer in time")), "{failure}");
    assert!(controller.poll(Duration::ZERO, None).unwrap().is_none(), "the next address answers");
    let mut https = config(&[&format!("https://{address}")], None);
    https.controllers.get_mut("main").unwrap().ca = Some("/etc/ssl/certs/ca-certificates.crt".into());
    if let Ok(controller) = Controller::open_with(&https, "main", "i", timeouts) {
        assert!(matches!(controller.post("result", b"[]"), Err(Failure::Away(_))), "a handshake that never ends");
    }
}

#[test]
fn silent_address_ends_the_other_requests() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let fake = TestController::start(|_| (200, String::new(), String::new()));
    let short = Duration::from_millis(100);
    let timeouts = Timeouts { connect: Duration::from_secs(60), answer: Duration::from_secs(60), poll: short };
    let plain = config(&[&format!("http://{address}"), &fake.url], None);
    let controller = Arc::new(Controller::open_with(&plain, "main", "i", timeouts).unwrap());
    let (begun, posting) = (std::time::Instant::now(), {
        let controller = controller.clone();
        std::thread::spawn(move || controller.post("stats", b"[]"))
    });
    let (mut stuck, _) = silent.accept().unwrap();
    std::io::Read::read(&mut stuck, &mut [0]).unwrap();
    assert!(controller.poll(Duration::ZERO, None).is_err());
    let failure = posting.join().unwrap().unwrap_err();
    assert!(matches!(failure, Failure::Away(_)), "{failure:?}");
    assert!(begun.elapsed() < timeouts.answer, "before its own time limit: {:?}", begun.elapsed());
    assert_eq!(controller.url(), fake.url, "they moved once");
    controller.post("stats", b"[]").unwrap();
}

#[test]
fn this_very_machine_needs_no_proxy() {
    for url in ["http://localhost:1", "https://LOCALHOST", "https://127.0.0.1:4000", "https://[::1]:4000"] {
        assert!(is_loopback(url), "{url}");
    }
    for url in ["https://ac.example:4000", "https://10.0.0.1", "https://localhost.example", "x"] {
        assert!(!is_loopback(url), "{url}");
    }
}
