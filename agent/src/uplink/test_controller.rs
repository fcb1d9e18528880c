//! A controller for tests: plain HTTP on loopback, every request answered by a closure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Method and target: `GET /1/10/cmd?wait=30`.
    pub(crate) line: String,
    /// The head without its first line, in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Status, further head lines (each ended by CR LF) and body. As a controller's, a 200 without a body gets
/// `{}`, and a 204 without head lines the time. With status 0 the connection is closed instead.
pub(crate) type Answer = (u16, String, String);

pub(crate) struct TestController {
    pub(crate) url: String,
    port: u16,
    stopped: Arc<AtomicBool>,
    /// Connections that were made.
    pub(crate) connections: Arc<Mutex<usize>>,
}

impl TestController {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> TestController {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stopped, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
        let (flag, count, answer) = (stopped.clone(), connections.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                *count.lock().unwrap() += 1;
                let answer = answer.clone();
                thread::spawn(move || serve(stream.unwrap(), &*answer));
            }
        });
        TestController { url: format!("http://127.0.0.1:{port}"), port, stopped, connections }
    }
}

impl Drop for TestController {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(stream: TcpStream, answer: &(impl Fn(&Asked) -> Answer + ?Sized)) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut head = String::new();
        loop {
            let before = head.len();
            match reader.read_line(&mut head) {
                Ok(0) | Err(_) => return,
                Ok(_) if head[before..].trim().is_empty() => break,
                Ok(_) => {}
            }
        }
        let (line, rest) = head.split_once("\r\n").unwrap();
        let rest = rest.to_lowercase();
        let length =
            rest.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let asked = Asked {
            line: line.trim_end_matches(" HTTP/1.1").to_owned(),
            head: rest,
            body: String::from_utf8(body).unwrap(),
        };
        let (status, mut extra, mut body) = answer(&asked);
        match status {
            0 => return,
            200 if body.is_empty() => body.push_str("{}"),
            204 if extra.is_empty() => extra.push_str("X-JS-Time: 1\r\n"),
            _ => {}
        }
        let text = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{extra}\r\n{body}", body.len());
        if stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}
