use super::*;
use crate::http::Request;
use std::io::{Read, Write};

struct Echo;

impl Handler for Echo {
    fn handle(&self, request: &mut Request) -> Reply {
        if request.query.first("panic").is_some() {
            panic!("asked to");
        }
        if request.query.first("cert").is_some() {
            return Reply::text("text/plain", format!("{:?} {:?}", request.cert_issued, request.cert_dated()));
        }
        let said = format!("{:?} {:?} {}", request.route, request.bearer, request.body.len());
        Reply { park: Some(7), retry_after: Some(3), ..Reply::text("text/plain", said) }
    }
}

fn start(threads: usize, handler: Arc<dyn Handler>) -> Handle {
    Handle::start(threads, handler, &crossbeam_channel::unbounded().0).unwrap()
}

fn ask(handle: &Handle, request: &str) -> String {
    let mut stream = UnixStream::connect(&handle.shared.socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn server_answers_until_it_is_dropped() {
    let handle = start(2, Arc::new(Echo));
    let body = "x".repeat(100_000);
    let head = "POST /1/2/log HTTP/1.1\r\nConnection: close\r\nX-JS-Node: 1:2\r\nAuthorization: Bearer t";
    let answer = ask(&handle, &format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("X-JS-Park: 7\r\n") && answer.contains("Retry-After: 3\r\n"), "{answer}");
    assert!(answer.ends_with("Log(NodeId { gid: 1, nid: 2 }) Some(\"t\") 100000"), "{answer}");
    let answer = ask(&handle, "GET /health?panic HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    let folder = handle.shared.folder.clone();
    assert!(folder.exists());
    drop(handle);
    assert!(!folder.exists());
}

#[test]
fn a_certificate_without_a_date_is_older_than_any_revocation() {
    let handle = start(1, Arc::new(Echo));
    for (header, want) in
        [("", "None None"), ("X-JS-Cert-Issued: 5\r\n", "Some(5) Some(5)"), ("X-JS-Cert-Issued: -\r\n", "None Some(0)")]
    {
        let answer = ask(&handle, &format!("GET /health?cert HTTP/1.1\r\nConnection: close\r\n{header}\r\n"));
        assert!(answer.ends_with(want), "{header}: {answer}");
    }
}

#[test]
fn server_is_made_anew_when_the_proxy_is_refused() {
    let handle = start(2, Arc::new(Echo));
    let dead = handle.shared.current().unwrap();
    // It listens as before: then nothing is done.
    handle.backend().refused();
    let answer = ask(&handle, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let end = std::time::Instant::now() + Duration::from_secs(20);
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        while !done() {
            assert!(std::time::Instant::now() < end, "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    wait("it was looked", &|| !handle.shared.refused.load(Ordering::SeqCst));
    wait("it was looked", &|| !handle.shared.remaking.load(Ordering::SeqCst));
    assert!(Arc::ptr_eq(&dead, &handle.shared.current().unwrap()));
    // A socket that nobody accepts from refuses connections as this one does.
    fs::remove_file(&handle.shared.socket).unwrap();
    drop(UnixListener::bind(&handle.shared.socket).unwrap());
    assert!(is_refused(&handle.shared.socket));
    wait("it is made anew", &|| {
        handle.backend().refused();
        !is_refused(&handle.shared.socket)
    });
    wait("it is the one", &|| !Arc::ptr_eq(&dead, &handle.shared.current().unwrap()));
    drop(dead);
    for _ in 0..4 {
        let answer = ask(&handle, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert!(handle.backend().taken() >= 5);
}

#[test]
fn server_is_made_anew_when_its_accept_loop_ended() {
    let handle = start(2, Arc::new(Echo));
    let dead = handle.shared.current().unwrap();
    handle.shared.remake(&dead, Some(&io::Error::other("a test")));
    assert!(!Arc::ptr_eq(&dead, &handle.shared.current().unwrap()));
    drop(dead);
    for _ in 0..4 {
        let answer = ask(&handle, "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}
