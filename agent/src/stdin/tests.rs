//! Tests with real pipes.

use super::*;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::time::Instant;

fn pipe() -> (PipeReader, StdinEnd) {
    let (reader, writer) = io::pipe().unwrap();
    (reader, StdinEnd::new(OwnedFd::from(writer).into(), None).unwrap())
}

fn piece(offset: usize, bytes: &[u8], eof: bool) -> Piece {
    Piece { offset: Some(offset as u64), bytes: bytes.to_vec(), eof }
}

#[track_caller]
fn wait_until(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it takes too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn has_writer(stdin: &Stdin) -> bool {
    lock(&stdin.state).has_writer
}

#[test]
fn what_the_pipe_has_no_room_for_follows_later() {
    let (mut reader, end) = pipe();
    let stdin = Arc::new(Stdin::new(false));
    let bytes: Vec<u8> = (0..MAX_BYTES).map(|n| (n / 7) as u8).collect();
    // Before its run it is kept.
    assert_eq!(stdin.give(&piece(0, &bytes[..4], false)), Ok((4, MAX_BYTES - 4)));
    stdin.attach(end, b"first");
    assert_eq!(stdin.give(&piece(4, b"", false)), Ok((4, MAX_BYTES)));
    assert!(!has_writer(&stdin), "a pipe with room needs no thread");
    let (have, room) = stdin.give(&piece(4, &bytes[4..], true)).unwrap();
    assert!(have == bytes.len() as u64 && room < MAX_BYTES && has_writer(&stdin));
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert!(read == [b"first", &bytes[..]].concat());
    wait_until(|| !has_writer(&stdin));
    assert_eq!(stdin.give(&piece(bytes.len(), b"x", false)), Err("has had the end of its stdin"));
}

#[test]
fn end_of_a_run_frees_what_it_did_not_read() {
    let (reader, end) = pipe();
    let stdin = Arc::new(Stdin::new(false));
    stdin.attach(end, b"");
    assert_eq!(stdin.give(&piece(0, &[1; MAX_BYTES], false)).unwrap().0, MAX_BYTES as u64);
    let (have, room) = stdin.give(&piece(MAX_BYTES, &[1; MAX_BYTES], false)).unwrap();
    assert!(have == MAX_BYTES as u64 && room < MAX_BYTES, "there is no room for the whole");
    stdin.detach();
    wait_until(|| !has_writer(&stdin));
    assert_eq!(lock(&stdin.state).counted, 0);
    drop(reader);
    let (mut reader, end) = pipe();
    stdin.attach(end, b"");
    assert_eq!(stdin.give(&piece(MAX_BYTES, b"next", true)).unwrap().0, MAX_BYTES as u64 + 4);
    let mut read = String::new();
    reader.read_to_string(&mut read).unwrap();
    assert_eq!(read, "next");
}

#[test]
fn reader_that_has_gone_is_told_and_a_lapse_ends_the_pipe() {
    let (reader, end) = pipe();
    let stdin = Arc::new(Stdin::new(false));
    stdin.attach(end, b"");
    drop(reader);
    let _ = stdin.give(&piece(0, b"lost", false));
    assert_eq!(stdin.give(&piece(4, b"x", false)), Err("has closed its stdin"));
    assert_eq!(stdin.give(&piece(0, b"lost", false)).unwrap().0, 4, "a repeated piece was taken");
    stdin.detach();
    let (mut reader, end) = pipe();
    stdin.attach(end, b"");
    stdin.give(&piece(4, b"rest", false)).unwrap();
    stdin.end();
    let mut read = String::new();
    reader.read_to_string(&mut read).unwrap();
    assert_eq!(read, "rest");
    let size = TerminalSize { rows: 1, columns: 1 };
    assert!(stdin.resize(size).unwrap_err().contains("has no terminal"));
}
