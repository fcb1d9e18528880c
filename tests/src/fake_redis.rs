//! A server that speaks Redis' protocol and answers as a test wants: for versions and refusals that no
//! `redis-server` at hand gives.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The answer to a call (its words), as it travels; nothing closes the connection.
type Answers = dyn Fn(&[String]) -> Option<String> + Send + Sync;

/// A server on a port of loopback; it ends with its handle.
pub struct FakeRedis {
    port: u16,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl FakeRedis {
    /// A server that answers each call with what `answer` gives, as it travels (`+OK\r\n`).
    #[track_caller]
    pub fn start(answer: impl Fn(&[String]) -> Option<String> + Send + Sync + 'static) -> FakeRedis {
        FakeRedis::listen(None, Arc::new(answer))
    }

    /// A server that takes no connection, as one with too many clients or in protected mode: it says `words` (an
    /// error without its `-`) and closes.
    #[track_caller]
    pub fn refusing(words: &str) -> FakeRedis {
        FakeRedis::listen(Some(format!("-{words}\r\n")), Arc::new(|_: &[String]| None))
    }

    /// A server of this version of Redis, which answers nothing but what tells that.
    #[track_caller]
    pub fn of_version(version: &str) -> FakeRedis {
        let version = version.to_owned();
        let old = version.starts_with(|c: char| c < '6');
        FakeRedis::start(move |words| {
            Some(match words[0].to_uppercase().as_str() {
                "PING" => "+PONG\r\n".to_owned(),
                "HELLO" if !old => bulks(&["server", "redis", "version", &version, "mode", "standalone"]),
                "INFO" => {
                    let text = format!("# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n");
                    format!("${}\r\n{text}\r\n", text.len())
                }
                name => format!("-ERR unknown command `{name}`, with args beginning with: \r\n"),
            })
        })
    }

    #[track_caller]
    fn listen(greeting: Option<String>, answer: Arc<Answers>) -> FakeRedis {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ending, count) = (stop.clone(), accepted.clone());
        let thread = std::thread::spawn(move || {
            let mut clients = Vec::new();
            while let Ok((client, _)) = listener.accept() {
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                count.fetch_add(1, Ordering::SeqCst);
                let (greeting, answer, ending) = (greeting.clone(), answer.clone(), ending.clone());
                clients.push(std::thread::spawn(move || serve(client, greeting, &*answer, &ending)));
            }
            clients.into_iter().for_each(|client| drop(client.join()));
        });
        FakeRedis { port, stop, accepted, thread: Some(thread) }
    }

    /// Its address as `jsacc -r` and clients take it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for FakeRedis {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // The accepting thread sees it with its next connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Texts as a list that travels.
pub fn bulks(texts: &[&str]) -> String {
    let each: String = texts.iter().map(|text| format!("${}\r\n{text}\r\n", text.len())).collect();
    format!("*{}\r\n{each}", texts.len())
}

fn serve(mut client: TcpStream, greeting: Option<String>, answer: &Answers, ending: &AtomicBool) {
    if let Some(greeting) = greeting {
        let _ = client.write_all(greeting.as_bytes());
        return;
    }
    let _ = client.set_read_timeout(Some(Duration::from_millis(100)));
    let Ok(read) = client.try_clone() else { return };
    let mut read = BufReader::new(read);
    loop {
        match read.fill_buf() {
            Ok([]) => return,
            Ok(_) => {}
            // Nothing was asked for a while.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                if ending.load(Ordering::SeqCst) {
                    return;
                }
                continue;
            }
            Err(_) => return,
        }
        let Some(text) = call(&mut read).and_then(|words| answer(&words)) else { return };
        if client.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads one call: `*2\r\n$4\r\nECHO\r\n$1\r\nx\r\n`.
fn call(read: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut number = |mark: char| {
        let mut line = String::new();
        read.read_line(&mut line).ok()?;
        let count: usize = line.strip_prefix(mark)?.trim_end().parse().ok()?;
        let mut text = Vec::new();
        if mark == '$' {
            text = vec![0; count + 2];
            read.read_exact(&mut text).ok()?;
            text.truncate(count);
        }
        Some((count, String::from_utf8_lossy(&text).into_owned()))
    };
    let (count, _) = number('*')?;
    (0..count).map(|_| number('$').map(|(_, text)| text)).collect::<Option<Vec<String>>>().filter(|w| !w.is_empty())
}
