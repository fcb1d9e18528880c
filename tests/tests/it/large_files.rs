//! Files above 16 MiB on their way to a node, in pieces.

use jscommon::token::sha256_hex;
use jstests::{
    Acc, AccOptions, Action, Agent, AgentOptions, Client, LONG, Proxy, Redis, Stage, fresh_id, proc, wait_until,
};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const PIECE: usize = 1 << 20;

/// A file of 40 MB, of which no two pieces are alike.
fn large() -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..40_000_000).map(next).collect()
}

/// Stores the pieces of a file as a client does.
fn send(client: &mut Client, file: &[u8]) -> String {
    let hash = sha256_hex(file);
    for (n, piece) in file.chunks(PIECE).enumerate() {
        set(client, &hash, n, piece);
    }
    hash
}

fn set(client: &mut Client, hash: &str, piece: usize, bytes: &[u8]) {
    let mut command = redis::cmd("SET");
    command.arg(format!("jsacc:blob:{hash}:{piece}")).arg(bytes).arg("EX").arg(3600);
    command.exec(&mut client.conn).expect("SET");
}

/// Asks the node to write the file; returns the id of the command.
fn put(client: &mut Client, hash: &str, size: usize, path: &Path) -> String {
    let args = json!({"path": path, "hash": hash, "size": size, "mode": "0640"});
    client.push(json!({"id": fresh_id(), "gid": 1, "nid": 10, "cmd": "put", "args": args}))
}

#[track_caller]
fn check(client: &mut Client, id: &str, path: &Path, file: &[u8]) {
    let result = client.pop(id);
    let data: Value = serde_json::from_str(result["data"].as_str().expect("data")).unwrap_or(Value::Null);
    assert_eq!((&result["state"], &data["changed"]), (&json!("OK"), &json!(true)), "{result}");
    assert_eq!(data["size"], file.len());
    assert!(fs::read(path).expect("the file") == file, "it has other bytes");
    assert_eq!(client.results(id), 0, "there is one result");
}

#[test]
fn large_file_arrives_over_the_kill_of_a_controller_and_is_never_whole_in_memory() {
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, AccOptions::dying_at("acc.blob:20"));
    let mut client = Client::new(&redis);
    let agent = Agent::start(&acc, AgentOptions::default());
    let (file, path) = (large(), agent.scratch().join("large"));
    let hash = send(&mut client, &file);
    client.wait_seen("1:10");
    proc::reset_peak_memory(agent.pid()).expect("the peak is reset");
    let before = proc::memory(agent.pid()).expect("memory");
    let id = put(&mut client, &hash, file.len(), &path);
    acc.wait();
    acc.resume();
    check(&mut client, &id, &path, &file);
    let peak = proc::peak_memory(agent.pid()).expect("memory");
    assert!(peak < before + (20 << 20), "{} KiB more", (peak - before) >> 10);
    let left = fs::read_dir(agent.data_dir().join("blobs")).expect("the folder").count();
    assert_eq!(left, 0, "no partial file is left");
}

#[test]
fn fetch_goes_on_where_it_was_when_the_agent_ended() {
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, AccOptions::dying_at("acc.blob:30"));
    let mut client = Client::new(&redis);
    let mut agent = Agent::start(&acc, AgentOptions::default().dying_at("agent.piece:15"));
    let (file, path) = (large(), agent.scratch().join("large"));
    let hash = send(&mut client, &file);
    let id = put(&mut client, &hash, file.len(), &path);
    agent.wait();
    // What it has is not fetched again.
    let forget = |client: &mut Client, pieces: std::ops::Range<usize>| {
        for piece in pieces {
            let _: usize = client.redis(&["DEL", &format!("jsacc:blob:{hash}:{piece}")]);
        }
    };
    forget(&mut client, 0..15);
    agent.resume();
    acc.wait();
    let part = agent.data_dir().join(format!("blobs/{hash}.part"));
    wait_until("29 pieces are there", LONG, || fs::metadata(&part).is_ok_and(|meta| meta.len() == 29 * PIECE as u64));
    forget(&mut client, 15..29);
    assert_eq!(agent.stop(), Some(0));
    assert!(!path.exists());
    acc.resume();
    agent.resume();
    check(&mut client, &id, &path, &file);
}

#[test]
fn wrong_and_missing_pieces_leave_the_old_file_in_place() {
    let mut stage = Stage::start();
    let client = &mut stage.client;
    let (file, path) = (large(), stage.agent.scratch().join("large"));
    fs::write(&path, "old").expect("the file");
    let hash = send(client, &file);
    let fault = |client: &mut Client, size: usize| {
        let id = put(client, &hash, size, &path);
        let result = client.pop(&id);
        assert_eq!(result["state"], "ERROR", "{result}");
        assert_eq!(fs::read(&path).expect("the file"), b"old");
        result["data"].as_str().expect("a sentence").to_owned()
    };
    set(client, &hash, 7, &file[..PIECE]);
    let said = fault(client, file.len());
    assert!(said.contains("do not match its hash") && said.contains("send all of them again"), "{said}");
    set(client, &hash, 7, &file[..PIECE - 1]);
    let said = fault(client, file.len());
    assert!(said.contains("piece 7") && said.contains("1048575 bytes and not 1048576"), "{said}");
    set(client, &hash, 7, &vec![0; PIECE + 1]);
    let said = fault(client, file.len());
    assert!(said.contains("longer than 1 MiB"), "{said}");
    let _: usize = client.redis(&["DEL", &format!("jsacc:blob:{hash}:7")]);
    let said = fault(client, file.len());
    assert!(said.contains("piece 7") && said.contains("send the pieces again"), "{said}");
    set(client, &hash, 7, &file[7 * PIECE..8 * PIECE]);
    let id = put(client, &hash, file.len(), &path);
    check(client, &id, &path, &file);
    // The same file again changes nothing.
    let id = put(client, &hash, file.len(), &path);
    let data = client.pop(&id)["data"].to_string();
    assert!(data.contains(r#"\"changed\":false"#), "{data}");
}

#[test]
fn pieces_have_bounds_and_need_the_credentials_of_the_node() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::with_auth());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let hash = "ab".repeat(32);
    set(&mut client, &hash, 0, "bytes".as_bytes());
    let ask = |query: &str| node.get(&node.path(&format!("blob?{query}")));
    let reply = ask(&format!("hash={hash}&piece=0"));
    assert_eq!((reply.status, &*reply.body), (200, "bytes"));
    let left: i64 = client.redis(&["TTL", &format!("jsacc:blob:{hash}:0")]);
    assert!(left > 80_000, "it stays for a day after it was read: {left}");
    assert_eq!(ask(&format!("hash={hash}&piece=1")).status, 404);
    for query in ["hash=ab&piece=0", "piece=0", &format!("hash={hash}"), &format!("hash={hash}&piece=-1")] {
        assert_eq!(ask(query).status, 400, "{query}");
    }
    let reply = ask(&format!("hash={hash}&piece=65536"));
    assert!(reply.status == 400 && reply.error().contains("from 0 to 65535"), "{}", reply.error());
    set(&mut client, &hash, 2, &vec![1; PIECE + 1]);
    assert_eq!(ask(&format!("hash={hash}&piece=2")).status, 400);
    let query = format!("hash={hash}&piece=0");
    assert_eq!(acc.anonymous().get(&format!("/1/10/blob?{query}")).status, 401);
    assert_eq!(acc.node(1, 11).get(&format!("/1/10/blob?{query}")).status, 403);
}

#[test]
fn killed_put_leaves_no_file_behind() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let proxy = Proxy::start(acc.port());
    // One piece comes, and the controller has no time for the others.
    proxy.rule(|request| match request.path == "blob" && request.nth > 0 {
        true => Action::Answer(503, String::new(), r#"{"error": "later"}"#.into()),
        false => Action::Forward,
    });
    let mut client = Client::new(&redis);
    let agent = Agent::start(&acc, AgentOptions { via: Some(proxy.url()), ..AgentOptions::default() });
    let (file, path) = (large(), agent.scratch().join("killed"));
    let hash = send(&mut client, &file);
    let id = put(&mut client, &hash, file.len(), &path);
    let part = agent.data_dir().join(format!("blobs/{hash}.part"));
    wait_until("a piece is there", LONG, || fs::metadata(&part).is_ok_and(|meta| meta.len() == PIECE as u64));
    client.ask("kill", json!({"id": id}));
    assert_eq!(client.pop(&id)["state"], "KILLED");
    proxy.rule(|_| Action::Forward);
    // The next one of this hash has its turn once the first has ended.
    let other = agent.scratch().join("other");
    let id = put(&mut client, &hash, file.len(), &other);
    check(&mut client, &id, &other, &file);
    assert!(!path.exists());
}
