//! Tables, every split of every request, and random bytes.

use super::*;
use crate::route::Route;
use jscommon::NodeId;
use proptest::prelude::*;

const MAX_HEAD: usize = 16 * 1024;
const MAX_BODY: usize = 16 * 1024 * 1024;
const NODE: NodeId = NodeId { gid: 1, nid: 10 };

fn conn() -> Conn {
    Conn::new(MAX_HEAD, MAX_BODY)
}

/// Everything that `parts`, fed one after the other, make; every head is admitted.
fn run<'a>(conn: &mut Conn, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in parts {
        conn.feed(part);
        loop {
            match conn.step() {
                Step::More => break,
                step => {
                    if matches!(step, Step::Head(_)) {
                        conn.admit();
                    }
                    steps.push(step);
                }
            }
        }
    }
    steps
}

#[track_caller]
fn whole(text: &str) -> (RequestHead, Vec<u8>, Conn) {
    let mut conn = conn();
    let steps = run(&mut conn, [text.as_bytes()]);
    match <[Step; 2]>::try_from(steps) {
        Ok([Step::Head(head), Step::Whole(body)]) => (head, body, conn),
        other => panic!("{text:?} makes {other:?}"),
    }
}

#[track_caller]
fn refused(text: impl AsRef<[u8]>, status: u16, label: &str) {
    let mut conn = conn();
    let steps = run(&mut conn, [text.as_ref()]);
    match steps.last() {
        Some(Step::Refused(refusal)) => {
            assert_eq!((refusal.status, refusal.label), (status, label), "{}", refusal.reason);
        }
        other => panic!("{:?} makes {other:?}", String::from_utf8_lossy(text.as_ref())),
    }
    assert_eq!(conn.stage(), Stage::Closed);
    assert!(!conn.keeps_alive() && !conn.finish());
    assert_eq!(
        run(&mut conn, [&b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"[..]]),
        [],
        "nothing is read after a refusal"
    );
}

const POLL: &str = "GET /1/10/cmd?role=a&wait=30 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t.o.k\r\n\r\n";
const POST: &str = "POST /1/10/result HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n[1,2]";

#[test]
fn poll_is_read() {
    let (head, body, mut conn) = whole(POLL);
    assert_eq!((head.route, head.query.as_str()), (Route::Cmd(NODE), "role=a&wait=30"));
    assert_eq!((head.bearer.as_deref(), head.length, body.len()), (Some("t.o.k"), 0, 0));
    assert_eq!(conn.stage(), Stage::Busy);
    assert!(conn.finish());
    assert_eq!(conn.stage(), Stage::Idle);
}

#[test]
fn a_body_and_the_next_request() {
    let (head, body, mut conn) = whole(POST);
    assert_eq!((head.route, body.as_slice()), (Route::Result(NODE), &b"[1,2]"[..]));
    assert!(conn.finish());
    assert_eq!(run(&mut conn, [POST.as_bytes()]).len(), 2);
    // A line end after a body is an old habit, and no request.
    assert!(conn.finish());
    assert_eq!(run(&mut conn, [&b"\r\n"[..]]), []);
    assert_eq!(conn.stage(), Stage::Idle);
    assert_eq!(run(&mut conn, [format!("{POST}\r\n").as_bytes()]).len(), 2);
}

#[test]
fn keep_alive_follows_version_and_header() {
    let kept = |line: &str| whole(line).2.keeps_alive();
    assert!(kept("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(!kept("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    assert!(!kept("GET /health HTTP/1.1\r\nHost: x\r\nconnection: TE , CLOSE\r\n\r\n"));
    assert!(!kept("GET /health HTTP/1.0\r\n\r\n"));
    assert!(kept("GET /health HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    assert!(!kept("GET /health HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"));
}

#[test]
fn unusual_forms_are_accepted() {
    assert_eq!(whole("GET http://ac.example:4000/health HTTP/1.1\r\nHost: x\r\n\r\n").0.route, Route::Health);
    assert!(whole("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n").0.bodiless);
    assert_eq!(whole("\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n").0.route, Route::Health);
    assert_eq!(whole("GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").0.length, 0);
    assert_eq!(whole("POST /enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 000\r\n\r\n").0.length, 0);
    assert_eq!(whole("GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Basic eDp5\r\n\r\n").0.bearer, None);
    assert_eq!(
        whole("GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: bearer  x \r\n\r\n").0.bearer.as_deref(),
        Some("x")
    );
}

#[test]
fn absolute_address_needs_a_host() {
    for good in
        ["http://x/health", "https://ac.example:4000/health", "http://[::1]:4000/health", "http://10.0.0.1/health?x=/"]
    {
        assert_eq!(whole(&format!("GET {good} HTTP/1.1\r\nHost: x\r\n\r\n")).0.route, Route::Health, "{good}");
    }
    for bad in [
        "http://x?/1/1/cmd",
        "http://x#/1/1/cmd",
        "http://x",
        "http://x?/health",
        "http:///health",
        "http://:4000/health",
        "http://user@x/health",
        "http://x:99999/health",
        "http://x:port/health",
        "http://x:1:2/health",
        "http://[::1/health",
        "http://[x]/health",
        "http://[::1]4000/health",
        "http://x]/health",
        "http://a\\b/health",
        "http:/health",
        "ftp://x/health",
        "x/health",
        "*",
        "/health#",
        "/health?a#b",
        "?/health",
    ] {
        refused(format!("GET {bad} HTTP/1.1\r\nHost: x\r\n\r\n"), 400, "path");
    }
}

#[test]
fn request_of_http_1_1_names_its_host() {
    refused("GET /health HTTP/1.1\r\n\r\n", 400, "host");
    refused("GET http://x/health HTTP/1.1\r\nAccept: */*\r\n\r\n", 400, "host");
    assert_eq!(whole("GET /health HTTP/1.0\r\n\r\n").0.route, Route::Health);
    assert_eq!(whole("GET /health HTTP/1.1\r\nHost:\r\n\r\n").0.route, Route::Health, "an empty one is one");
}

#[test]
fn a_body_that_waits_for_continue() {
    let mut conn = conn();
    let head = "POST /1/10/log HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let steps = run(&mut conn, [head.as_bytes()]);
    assert!(matches!(&steps[..], [Step::Head(head)] if head.expects));
    assert_eq!((conn.stage(), conn.missing()), (Stage::Body, 3));
    assert_eq!(run(&mut conn, [&b"abc"[..]]), [Step::Whole(b"abc".to_vec())]);
    assert!(!whole("GET /health HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n").0.expects);
    refused("GET /health HTTP/1.1\r\nHost: x\r\nExpect: cake\r\n\r\n", 417, "expect");
}

#[test]
fn ambiguous_framing_is_refused() {
    let post = |headers: &str| format!("POST /1/10/result HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    refused(post("Content-Length: 5\r\nContent-Length: 5\r\n"), 400, "framing");
    refused(post("Content-Length: 5\r\ncontent-length: 6\r\n"), 400, "framing");
    refused(post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400, "framing");
    refused(post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400, "framing");
    refused(post("Transfer-Encoding: chunked\r\n"), 411, "chunked");
    refused(post("Transfer-Encoding: xchunked\r\n"), 400, "framing");
    refused(post("Transfer-Encoding : chunked\r\n"), 400, "garbage");
    refused(post("Host: a\r\nHost: b\r\n"), 400, "framing");
    refused(post("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400, "framing");
    refused("POST /1/10/result HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "framing");
    refused(post(""), 411, "no-length");
    for length in ["", "+5", "-5", "5,5", "5 5", "0x5", "five", "5.0"] {
        refused(post(&format!("Content-Length: {length}\r\n")), 400, "framing");
    }
    for length in ["16777217", "99999999999999", "18446744073709551616", &"9".repeat(26), &"9".repeat(1000)] {
        refused(post(&format!("Content-Length: {length}\r\n")), 413, "body-too-long");
    }
    refused("GET /1/10/cmd HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", 400, "body");
}

#[test]
fn second_request_waits_for_the_first() {
    refused(format!("{POLL}{POLL}"), 400, "pipelined");
    refused(format!("{POST}{POST}"), 400, "pipelined");
    refused(format!("{POST}x"), 400, "pipelined");
    let (_, _, mut conn) = whole(POLL);
    assert_eq!(run(&mut conn, [POLL.as_bytes()]), []);
    assert!(conn.has_excess() && !conn.keeps_alive() && !conn.finish());
}

#[test]
fn garbage_is_told_at_its_first_byte() {
    for text in [&b"\x16\x03\x01\x02\x00"[..], b"\x00", b" GET", b"get /", b"{", b"\x80", b"\t", b"\n", b"\rx"] {
        let mut conn = conn();
        assert!(matches!(&run(&mut conn, [text])[..], [Step::Refused(r)] if r.status == 400), "{text:?}");
    }
    refused("GET /health HTTP/1.1\nHost: x\n\n", 400, "line-end");
    refused("GET /health HTTP/1.1\r\nHost: x\rY: z\r\n\r\n", 400, "line-end");
    refused("GET /health HTTP/1.1\r\nHost: x\0\r\n\r\n", 400, "garbage");
    refused("GET /health HTTP/1.1\r\n Host: x\r\n\r\n", 400, "garbage");
    refused("GET /health HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400, "garbage");
    refused("GET /health HTTP/1.1\r\nHost: x\r\nHo st: x\r\n\r\n", 400, "garbage");
    refused("GET /health HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n", 400, "garbage");
    refused("GET /health\r\n\r\n", 400, "garbage");
    refused("GET  /health HTTP/1.1\r\nHost: x\r\n\r\n", 400, "garbage");
    refused("GET /health HTTP/2.0\r\n\r\n", 505, "version");
    refused("GET /health HTTP/3.0\r\n\r\n", 505, "version");
    refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version");
    refused("\r\n\r\n\r\n", 400, "garbage");
}

#[test]
fn unknown_paths_and_methods_are_refused() {
    refused("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404, "path");
    for method in ["DELETE", "PUT"] {
        refused(format!("{method} /health HTTP/1.1\r\nHost: x\r\n\r\n"), 405, "path");
    }
    refused("GET /0/1/cmd HTTP/1.1\r\nHost: x\r\n\r\n", 400, "path");
    refused("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "path");
    refused("CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "path");
    refused("GET /\u{e9} HTTP/1.1\r\nHost: x\r\n\r\n", 400, "path");
}

#[test]
fn a_head_is_bounded() {
    let head = |length: usize| {
        let frame = "GET /health HTTP/1.1\r\nHost: x\r\nX: \r\n\r\n".len();
        format!("GET /health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(length - frame))
    };
    assert_eq!(whole(&head(MAX_HEAD)).0.route, Route::Health);
    refused(head(MAX_HEAD + 1), 431, "head-too-long");
    refused(head(100_000), 431, "head-too-long");
    refused("x".repeat(0) + "A".repeat(20_000).as_str(), 431, "head-too-long");
    let many: String = (0..65).map(|i| format!("X-{i}: y\r\n")).collect();
    refused(format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n"), 431, "head-too-long");
}

#[test]
fn every_split_makes_the_same() {
    let texts = [
        POLL.to_owned(),
        POST.to_owned(),
        format!("\r\n{POST}"),
        format!("{POST}\r\n"),
        format!("{POST}{POST}"),
        "POST /1/10/log HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
        "GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n".to_owned(),
        "GET /health HTTP/1.1\nHost: x\n\n".to_owned(),
    ];
    for text in &texts {
        let bytes = text.as_bytes();
        let want = run(&mut conn(), [bytes]);
        for at in 0..=bytes.len() {
            let got = run(&mut conn(), [&bytes[..at], &bytes[at..]]);
            same(&want, &got, text, at);
        }
        same(&want, &run(&mut conn(), bytes.chunks(1)), text, 1);
    }
}

/// Two runs are the same when they hand out the same requests; of a pipelined pair the first request
/// may be through by the time that the second one begins, and then the refusal is the excess.
#[track_caller]
fn same(want: &[Step], got: &[Step], text: &str, at: usize) {
    let pipelined = matches!(want.last(), Some(Step::Refused(r)) if r.label == "pipelined");
    if pipelined {
        let through = got.len() == 2 && matches!(got[1], Step::Whole(_));
        assert!(through || got.last() == want.last(), "{text:?} split at {at}: {got:?}");
    } else {
        assert_eq!(want, got, "{text:?} split at {at}");
    }
}

proptest! {
    /// No input makes it panic, in any pieces, and it never holds more than a head or a body.
    #[test]
    fn any_bytes_in_any_pieces_never_panic(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..50)) {
        let mut conn = Conn::new(1024, 1024);
        for part in &parts {
            run(&mut conn, [part.as_slice()]);
            prop_assert!(conn.buf.len() <= 2048 + 200);
        }
    }

    /// Near misses of HTTP: lines made of what heads are made of.
    #[test]
    fn almost_http_never_panics(text in "(GET|POST|HEAD) /(1/10/(cmd|result|log)|health)(\\?[a-z=&%]{0,9})? HTTP/1.[01]\r\n((Content-Length|Transfer-Encoding|Host|X): (0|3|chunked|[a-z]{0,4})\r?\n){0,4}\r\n[abc\r\n]{0,5}", split in 0usize..200) {
        let bytes = text.as_bytes();
        let at = split.min(bytes.len());
        let one = run(&mut conn(), [bytes]);
        let two = run(&mut conn(), [&bytes[..at], &bytes[at..]]);
        let handed = |steps: &[Step]| steps.iter().any(|s| matches!(s, Step::Whole(_)));
        if handed(&one) {
            prop_assert_eq!(one, two);
        }
    }

    /// A good request comes out as it went in, however it is cut.
    #[test]
    fn good_requests_are_read_in_any_pieces(body in proptest::collection::vec(any::<u8>(), 0..300), cuts in proptest::collection::vec(1usize..50, 1..20), token in "[A-Za-z0-9._-]{1,40}") {
        let mut bytes = format!("POST /7/8/log?a=b HTTP/1.1\r\nHost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(&body);
        let mut parts = Vec::new();
        let (mut rest, mut cut) = (bytes.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (part, tail) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
            parts.push(part);
            rest = tail;
        }
        let steps = run(&mut conn(), parts);
        prop_assert_eq!(steps.len(), 2);
        let Step::Head(head) = &steps[0] else { panic!() };
        prop_assert_eq!(head.bearer.as_deref(), Some(token.as_str()));
        prop_assert_eq!(&steps[1], &Step::Whole(body));
    }
}
