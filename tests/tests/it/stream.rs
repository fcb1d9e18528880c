//! Live output at the controller, with nodes that speak the protocol and run nothing.

use jscommon::frame::{self, Kind, MAX_PAYLOAD_BYTES};
use jstests::redis_cluster::Cluster;
use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, Reply, fresh_id, wait_for, wait_until};
use serde_json::{Value, json};
use std::collections::HashMap;

const MIB: usize = 1 << 20;

struct Site {
    redis: Redis,
    acc: Acc,
    client: Client,
    node: FakeNode,
}

fn site_with(args: &[&str]) -> Site {
    let redis = Redis::start();
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let acc = Acc::start(&redis, AccOptions { args, ..AccOptions::default() });
    let (client, node) = (Client::new(&redis), acc.node(1, 10));
    Site { redis, acc, client, node }
}

fn site() -> Site {
    site_with(&[])
}

type Entry = (String, HashMap<String, Vec<u8>>);

impl Site {
    /// Starts another controller of the same family.
    fn second(&self, options: AccOptions) -> Acc {
        Acc::start(&self.redis, AccOptions { state_dir: Some(self.acc.state_dir()), ..options })
    }

    /// Opens a watch on a job of 1:10 that redis knows, and returns its id.
    fn watched_job(&mut self) -> String {
        let id = fresh_id();
        self.job(&id);
        self.watch(&id, "0-0");
        id
    }

    fn job(&mut self, id: &str) {
        let words = ["HSET", &format!("jsacc:job:{id}"), "targets", "[\"1:10\"]", "1:10", "{\"state\":\"RUNNING\"}"];
        let _: i64 = self.client.redis(&words);
    }

    fn watch(&mut self, id: &str, read: &str) {
        let _: String = self.client.redis(&["SET", &format!("jsacc:watch:{id}"), read, "EX", "30"]);
    }

    fn entries(&mut self, id: &str) -> Vec<Entry> {
        self.client.redis(&["XRANGE", &format!("jsacc:stream:{id}"), "-", "+"])
    }

    /// Reads all entries: the bytes of the frames.
    fn bytes(&mut self, id: &str) -> Vec<u8> {
        self.entries(id).iter().flat_map(|(_, fields)| fields["d"].clone()).collect()
    }

    fn keys(&mut self, pattern: &str) -> Vec<String> {
        self.client.redis(&["KEYS", pattern])
    }
}

fn post(node: &FakeNode, id: &str, offset: usize, body: &[u8]) -> Reply {
    node.post_bytes(&format!("stream?id={id}&offset={offset}"), body)
}

/// Posts and returns `have`, whether the watch lives, and `room`.
#[track_caller]
fn answer(node: &FakeNode, id: &str, offset: usize, body: &[u8], status: u16) -> (usize, bool, usize) {
    let reply = post(node, id, offset, body);
    assert_eq!(reply.status, status, "{reply:?}");
    read(&reply.json())
}

fn read(json: &Value) -> (usize, bool, usize) {
    let number = |name: &str| json[name].as_u64().unwrap_or_else(|| panic!("no {name} in {json}")) as usize;
    (number("have"), number("watch") > 0, number("room"))
}

fn stdout(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes.chunks(MAX_PAYLOAD_BYTES).for_each(|chunk| frame::push(&mut out, Kind::Stdout, chunk));
    out
}

/// Frames that are so long together.
fn frames_of(length: usize, seed: u8) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < length {
        let payload = (length - out.len() - frame::HEADER_BYTES).min(128 << 10);
        let payload = if length - out.len() - 8 - payload < 8 { length - out.len() - 8 } else { payload };
        let bytes: Vec<u8> = (0..payload).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
        frame::push(&mut out, Kind::Stdout, &bytes);
    }
    assert_eq!(out.len(), length);
    out
}

#[test]
fn frames_are_stored_once_at_their_offset_whatever_their_bytes() {
    let mut site = site();
    let id = site.watched_job();
    let (first, second) = (stdout(&(0..=255).collect::<Vec<u8>>()), stdout(b"\r\n\0\"]]"));
    assert!(matches!(answer(&site.node, &id, 0, &[], 200), (0, true, room) if room > 500_000));
    assert_eq!(answer(&site.node, &id, 0, &first, 200).0, first.len());
    // Sent again, too early, too late.
    for offset in [0, 1, first.len() - 1, first.len() + 1, 1 << 40] {
        assert_eq!(answer(&site.node, &id, offset, &second, 409).0, first.len(), "{offset}");
    }
    assert_eq!(answer(&site.node, &id, first.len(), &second, 200).0, first.len() + second.len());
    let entries = site.entries(&id);
    assert_eq!(entries.len(), 2);
    assert_eq!((&entries[0].1["n"][..], &entries[0].1["o"][..]), (&b"1:10"[..], &b"0"[..]));
    assert_eq!(entries[1].1["o"], first.len().to_string().into_bytes());
    assert_eq!(site.bytes(&id), [first, second].concat());
    let metrics = site.node.get("/metrics").body;
    assert!(metrics.contains("jsacc_stream_entries_total 2\n"), "{metrics}");
    assert!(metrics.contains("jsacc_stream_refused_total{reason=\"offset\"} 5\n"), "{metrics}");
}

#[test]
fn node_without_the_job_or_its_ticket_is_refused() {
    let mut site = site();
    let id = site.watched_job();
    let other = site.acc.node(1, 11);
    assert_eq!(post(&other, &id, 0, &stdout(b"x")).status, 403);
    let with = |node: &FakeNode, ticket: &str| {
        node.post_bytes(&format!("stream?id={id}&offset=0&ticket={ticket}"), &stdout(b"x")).status
    };
    assert_eq!(with(&site.node, ".AAAA"), 403);
    assert_eq!(with(&other, ""), 403);
    assert!(site.keys("jsacc:stream*").is_empty());
    // A ticket is enough, also where redis has forgotten the job.
    let real = site.client.push(json!({"gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "true"}}));
    let batch = wait_for("a command comes", LONG, || site.node.poll(5, None));
    let ticket = batch.cmds[0]["ticket"].as_str().expect("a ticket").to_owned();
    let _: i64 = site.client.redis(&["DEL", &format!("jsacc:job:{real}")]);
    site.watch(&real, "0-0");
    let path = format!("stream?id={real}&offset=0&ticket={ticket}");
    assert_eq!(other.post_bytes(&path, &stdout(b"x")).status, 403);
    let reply = site.node.post_bytes(&path, &stdout(b"x"));
    assert_eq!((reply.status, read(&reply.json()).0), (200, 9), "{reply:?}");
}

#[test]
fn nothing_is_stored_without_a_watch() {
    let mut site = site();
    let id = fresh_id();
    site.job(&id);
    let reply = post(&site.node, &id, 0, &stdout(b"x"));
    assert_eq!(reply.status, 410, "{reply:?}");
    assert!(reply.error().contains(&id));
    // Many ids leave no keys.
    for _ in 0..50 {
        assert_eq!(post(&site.node, &fresh_id(), 0, &[]).status, 403);
    }
    assert!(site.keys("jsacc:stream*").is_empty());
    site.watch(&id, "0-0");
    assert_eq!(answer(&site.node, &id, 0, &stdout(b"x"), 200).0, 9);
    let ttl: i64 = site.client.redis(&["TTL", &format!("jsacc:stream:{id}")]);
    assert!(ttl > 600, "it outlives an outage of all controllers: {ttl}");
    let _: i64 = site.client.redis(&["DEL", &format!("jsacc:watch:{id}")]);
    assert_eq!(answer(&site.node, &id, 9, &stdout(b"y"), 200), (9, false, 0));
    assert_eq!(site.entries(&id).len(), 1);
    for key in site.keys("jsacc:stream*:*") {
        let ttl: i64 = site.client.redis(&["TTL", &key]);
        assert!((1..=60).contains(&ttl), "{key} {ttl}");
    }
}

#[test]
fn streams_that_nobody_posts_to_are_kept_with_their_watch_and_forgotten_after_it() {
    let mut site = site();
    let (kept, ended) = (site.watched_job(), site.watched_job());
    for id in [&kept, &ended] {
        answer(&site.node, id, 0, &frames_of(10_000, 1), 200);
    }
    let stream = |id: &str| format!("jsacc:stream:{id}");
    let state = |id: &str| format!("jsacc:streamstate:{{jsacc:stream:{id}}}");
    let _: i64 = site.client.redis(&["EXPIRE", &stream(&kept), "200"]);
    let _: i64 = site.client.redis(&["DEL", &format!("jsacc:watch:{ended}"), &stream(&ended), &state(&ended)]);
    wait_until("the stream is kept, and what is gone not counted", LONG, || {
        site.watch(&kept, "0-0");
        let ttl: i64 = site.client.redis(&["TTL", &stream(&kept)]);
        let counted: HashMap<String, u64> = site.client.redis(&["HGETALL", "jsacc:streams"]);
        ttl > 600 && !counted.contains_key(&ended) && counted[""] == counted[&kept]
    });
}

#[test]
fn room_ends_at_32_mib_and_comes_back_when_the_reader_has_read() {
    let mut site = site();
    let id = site.watched_job();
    let (mut have, mut room) = (0, 64 << 10);
    while room > 0 {
        let body = frames_of(room, 3);
        (have, _, room) = answer(&site.node, &id, have, &body, 200);
        site.watch(&id, "0-0");
    }
    assert!((31 * MIB..=32 * MIB).contains(&have), "{have}");
    let (after, _, none) = answer(&site.node, &id, have, &frames_of(1000, 4), 409);
    assert_eq!((after, none), (have, 0));
    let entries = site.entries(&id);
    assert_eq!(entries.iter().map(|(_, fields)| fields["d"].len()).sum::<usize>(), have, "nothing unread was trimmed");
    let half = entries.len() / 2;
    site.watch(&id, &entries[half].0);
    let (_, _, room) = answer(&site.node, &id, have, &[], 200);
    assert_eq!(room, MIB);
    assert_eq!(site.entries(&id).first().map(|(id, _)| id.clone()), Some(entries[half + 1].0.clone()));
    // Everything is read: everything goes, and the ids go on.
    let last = entries[entries.len() - 1].0.clone();
    site.watch(&id, &last);
    answer(&site.node, &id, have, &[], 200);
    assert!(site.entries(&id).is_empty());
    answer(&site.node, &id, have, &frames_of(100, 5), 200);
    let next: Vec<Entry> = site.client.redis(&["XRANGE", &format!("jsacc:stream:{id}"), &format!("({last}"), "+"]);
    assert_eq!(next.len(), 1);
}

#[test]
fn oldest_entries_go_where_nobody_is_waited_for() {
    let mut site = site();
    let id = site.watched_job();
    site.watch(&id, "1");
    let (mut have, mut room) = (0, 64 << 10);
    while have < 40 * MIB {
        (have, _, room) = answer(&site.node, &id, have, &frames_of(room.min(MIB), 3), 200);
        assert!(room > 0);
        site.watch(&id, "1");
    }
    let left: usize = site.entries(&id).iter().map(|(_, fields)| fields["d"].len()).sum();
    assert!((30 * MIB..=32 * MIB).contains(&left), "{left}");
}

#[test]
fn all_streams_share_stream_memory() {
    let mut site = site_with(&["--stream-memory", "2"]);
    let (first, second) = (site.watched_job(), site.watched_job());
    let (mut have, mut room) = (0, 64 << 10);
    while room > 0 {
        (have, _, room) = answer(&site.node, &first, have, &frames_of(room, 3), 200);
    }
    assert!((MIB..=2 * MIB).contains(&have), "{have}");
    assert_eq!(answer(&site.node, &second, 0, &frames_of(1 << 16, 1), 409), (0, true, 0));
    // Also at another controller of this redis.
    let args = vec!["--stream-memory".to_owned(), "2".to_owned()];
    let other = site.second(AccOptions { args, ..AccOptions::default() });
    assert_eq!(answer(&other.node(1, 10), &second, 0, &frames_of(1 << 16, 1), 409), (0, true, 0));
    let last = site.entries(&first).pop().expect("entries").0;
    site.watch(&first, &last);
    assert!(answer(&site.node, &first, have, &[], 200).2 > 0);
    assert!(answer(&other.node(1, 10), &second, 0, &frames_of(1 << 16, 1), 200).2 > 0);
}

#[test]
fn nodes_of_one_watch_share_its_room_and_who_ignores_it_is_slowed_down() {
    let mut site = site_with(&["--stream-memory", "1"]);
    let id = site.watched_job();
    let nodes: Vec<FakeNode> = (10..20).map(|nid| site.acc.node(1, nid)).collect();
    for node in &nodes {
        let _: i64 = site.client.redis(&["HSET", &format!("jsacc:job:{id}"), &format!("1:{}", node.nid), "{}"]);
        answer(node, &id, 0, &[], 200);
    }
    let (_, _, room) = answer(&nodes[0], &id, 0, &[], 200);
    assert!((MIB / 11..=MIB / 5).contains(&room), "{room}");
    let greedy = &nodes[1];
    let mut statuses = Vec::new();
    for _ in 0..80 {
        statuses.push(post(greedy, &id, 0, &frames_of(MIB, 1)).status);
        if statuses.last() == Some(&429) {
            break;
        }
    }
    assert_eq!(statuses.pop(), Some(429));
    assert!(statuses.iter().all(|status| *status == 409), "{statuses:?}");
    assert_eq!(answer(&nodes[2], &id, 0, &frames_of(1 << 16, 1), 200).0, 1 << 16);
}

#[test]
fn bodies_that_are_no_whole_frames_change_nothing() {
    let mut site = site();
    let id = site.watched_job();
    let good = stdout(b"x");
    for bad in [
        &b"x"[..],
        b"\0\0\0\0\0\0\0\0",
        b"\x06\0\0\0\0\0\0\0",
        b"\x01\0\x01\0\0\0\0\0",
        b"\x01\0\0\0\xff\xff\xff\xff",
        b"\x01\0\0\0\0\x04\0\x01",
        &good[..good.len() - 1],
        &[&good[..], b"\x01"].concat(),
    ] {
        let reply = post(&site.node, &id, 0, bad);
        assert_eq!(reply.status, 400, "{bad:?} {reply:?}");
        assert!(reply.error().contains("frame"), "{reply:?}");
    }
    let reply = post(&site.node, &id, 0, &frames_of(MIB + 8, 1));
    assert_eq!(reply.status, 400, "{reply:?}");
    for query in
        ["", "id=a", "offset=1", "id=&offset=0", "id=a&offset=-1", "id=a&offset=x", "id=a&offset=9007199254740992"]
    {
        let reply = site.node.post_bytes(&format!("stream?{query}"), &good);
        assert_eq!(reply.status, 400, "{query} {reply:?}");
    }
    assert!(site.keys("jsacc:stream*").is_empty());
}

#[test]
fn frames_survive_the_death_of_a_controller_once() {
    for point in ["acc.stream.storing", "acc.stream.stored"] {
        let mut site = site();
        let id = site.watched_job();
        let dying = site.second(AccOptions::dying_at(point));
        let body = frames_of(100_000, 7);
        let (first, second) = body.split_at(frame::whole_within(&body, 0));
        assert!(first.is_empty());
        assert_ne!(post(&dying.node(1, 10), &id, 0, second).status, 200);
        let reply = post(&site.node, &id, 0, &[]);
        let have = read(&reply.json()).0;
        assert_eq!(have, if point.ends_with("stored") { body.len() } else { 0 }, "{point}");
        if have == 0 {
            answer(&site.node, &id, 0, &body, 200);
        }
        assert_eq!(site.bytes(&id), body, "{point}");
    }
}

#[test]
fn frames_are_stored_once_on_a_cluster_where_a_controller_dies_between_its_steps() {
    let cluster = Cluster::start(false);
    let mut redis = cluster.connect().expect("the cluster answers");
    let acc = Acc::start_at(&cluster.address(), AccOptions::default());
    let node = acc.node(1, 10);
    for point in ["acc.stream.asked", "acc.stream.uncounted"] {
        let id = fresh_id();
        let set = |redis: &mut redis::cluster::ClusterConnection, read: &str| {
            redis::cmd("SET").arg(format!("jsacc:watch:{id}")).arg(read).arg("EX").arg(30).exec(redis).expect("SET");
        };
        assert_eq!(post(&node, &id, 0, &[]).status, 403);
        redis::cmd("HSET").arg(format!("jsacc:job:{id}")).arg("1:10").arg("{}").exec(&mut redis).expect("HSET");
        assert_eq!(post(&node, &id, 0, &[]).status, 410);
        set(&mut redis, "0-0");
        let options = AccOptions { state_dir: Some(acc.state_dir()), ..AccOptions::dying_at(point) };
        let dying = Acc::start_at(&cluster.address(), options);
        let body = frames_of(50_000, 7);
        assert_ne!(post(&dying.node(1, 10), &id, 0, &body).status, 200);
        let reply = post(&node, &id, 0, &body);
        assert!([200, 409].contains(&reply.status), "{reply:?}");
        assert_eq!(read(&reply.json()).0, body.len());
        let range = redis::cmd("XRANGE").arg(format!("jsacc:stream:{id}")).arg("-").arg("+").to_owned();
        let entries: Vec<Entry> = range.query(&mut redis).expect("XRANGE");
        assert_eq!(entries.len(), 1, "{point}");
        assert_eq!(entries[0].1["d"], body);
        set(&mut redis, &entries[0].0);
        answer(&node, &id, body.len(), &frames_of(100, 1), 200);
        answer(&node, &id, body.len() + 100, &frames_of(100, 1), 200);
        let entries: Vec<Entry> = range.query(&mut redis).expect("XRANGE");
        assert_eq!(entries.len(), 2, "what was read is gone");
        redis::cmd("DEL").arg(format!("jsacc:watch:{id}")).exec(&mut redis).expect("DEL");
        assert_eq!(answer(&node, &id, 0, &[], 200), (body.len() + 200, false, 0));
    }
}

#[test]
fn frames_that_come_again_after_redis_lost_them_hide_no_new_ones() {
    let mut site = site();
    let id = site.watched_job();
    let _: String = site.client.redis(&["SAVE"]);
    let small = stdout(b"a line\n");
    for n in 0..50 {
        answer(&site.node, &id, n * small.len(), &small, 200);
    }
    let read = site.entries(&id).pop().expect("entries").0;
    site.redis.kill();
    site.redis.resume();
    site.client = Client::new(&site.redis);
    site.watch(&id, &read);
    let have = wait_for("the controller is back", LONG, || {
        let reply = post(&site.node, &id, 0, &[]);
        (reply.status == 200).then(|| self::read(&reply.json()).0)
    });
    assert_eq!(have, 0, "redis has lost them");
    // The same frames and a new one, in one request.
    let body = [small.repeat(50), stdout(b"new")].concat();
    assert_eq!(answer(&site.node, &id, 0, &body, 200).0, body.len());
    let range = ["XRANGE", &format!("jsacc:stream:{id}"), &format!("({read}"), "+"];
    let unread: Vec<Entry> = site.client.redis(&range);
    assert_eq!(unread.iter().map(|(_, fields)| fields["d"].clone()).collect::<Vec<_>>(), [body]);
}
