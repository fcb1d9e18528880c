//! A single server does in one call of a script what a cluster does in steps: both leave the same in Redis, whatever the
//! keys hold and however often the same comes.

use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, now_ms, site, wait_for, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Points between two steps which are never passed so often: a controller that is to die there takes the steps.
const RESULTS_IN_STEPS: &str = "acc.result.guarded:1000000";
const COMMANDS_IN_STEPS: &str = "acc.hashed:1000000";

/// The content of a key, and for how many hours it is kept.
type Held = (Value, i64);

/// A controller with its own Redis, and a node of it.
struct Site {
    acc: Acc,
    client: Client,
    node: FakeNode,
    _redis: Redis,
}

impl Site {
    fn start(options: AccOptions) -> Site {
        let (redis, acc, client) = site(options);
        let node = acc.node(1, 10);
        Site { acc, client, node, _redis: redis }
    }

    /// One that does all in one call, and one that takes the steps which have this point. Both make the same tickets.
    fn both(steps: &str, args: &[&str]) -> [Site; 2] {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let one = Site::start(AccOptions { args: args.clone(), ..AccOptions::default() });
        let state_dir = Some(one.acc.state_dir());
        let other = Site::start(AccOptions { args, state_dir, ..AccOptions::dying_at(steps) });
        [one, other]
    }

    /// The content of all keys that match, without times.
    fn held(&mut self, pattern: &str) -> BTreeMap<String, Held> {
        let keys: Vec<String> = self.client.redis(&["KEYS", pattern]);
        keys.into_iter().map(|key| (key.clone(), self.key(&key))).collect()
    }

    fn key(&mut self, key: &str) -> Held {
        let client = &mut self.client;
        let kind: String = client.redis(&["TYPE", key]);
        let value = match kind.as_str() {
            "list" => json!(client.redis::<Vec<String>>(&["LRANGE", key, "0", "-1"])),
            "hash" => json!(client.redis::<BTreeMap<String, String>>(&["HGETALL", key])),
            // Their scores are times.
            "zset" => json!(client.redis::<Vec<String>>(&["ZRANGE", key, "0", "-1"])),
            _ => json!(client.redis::<Option<String>>(&["GET", key])),
        };
        let kept: i64 = client.redis(&["TTL", key]);
        let name = client.redis::<Vec<String>>(&["ZRANGE", "jsacc:acs", "0", "-1"]).remove(0);
        (without_times(&value, &name), if kept < 0 { kept } else { (kept + 120) / 3600 })
    }

    /// Counts of results by their outcome.
    fn outcomes(&self) -> Vec<String> {
        let metrics = self.acc.anonymous().get("/metrics").body;
        let counts = metrics
            .lines()
            .filter(|line| line.starts_with("jsacc_results_total{") || line.starts_with("jsacc_result_seconds_count"));
        counts.map(str::to_owned).collect()
    }
}

/// Without what differs from one moment to the next, and from one controller to another.
fn without_times(value: &Value, controller: &str) -> Value {
    let (mut text, mut digits) = (String::new(), String::new());
    for c in value.to_string().replace(controller, "ME").chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        text.push_str(if digits.len() < 13 { &digits } else { "TIME" });
        digits.clear();
        text.push(c);
    }
    serde_json::from_str(&text).expect("JSON as before")
}

/// One result of the job: its state, its level, and how many seconds after the first one its run started.
type Sent = (&'static str, u8, i64);

/// Jobs, what is done to their keys before their results come, and the results.
const RESULTS: &[(&str, &str, &[&str], &[Sent])] = &[
    ("plain", "{}", &[], &[("OK", 0, 0)]),
    ("repeated", "{}", &[], &[("OK", 0, 0), ("OK", 0, 0), ("ERROR", 0, 0)]),
    ("late", "{}", &[], &[("TIMEOUT", 0, 0), ("OK", 0, 5)]),
    ("quiet", r#"{"cmd": "ping", "quiet": true}"#, &[], &[("OK", 0, 0), ("OK", 0, 0)]),
    ("fanout", r#"{"nid": 0, "nodes": [[1, 10], [1, 11]]}"#, &[], &[("OK", 0, 0)]),
    ("forgotten", "{}", &["DEL jsacc:job:ID"], &[("OK", 0, 0), ("OK", 0, 0)]),
    ("others", "{}", &["HDEL jsacc:job:ID 1:10"], &[("OK", 0, 0)]),
    ("answered", "{}", &["HSET jsacc:done:{cmds_queue_ID} 1:10 ac"], &[("OK", 0, 0)]),
    ("pending", "{}", &["HSET jsacc:done:{cmds_queue_ID} 1:10 +START"], &[("OK", 0, 0), ("OK", 0, 0)]),
    ("long", r#"{"expires": 200000}"#, &[], &[("OK", 0, 0)]),
    ("recurs", RECURS, &[], &[("OK", 0, 0), ("OK", 0, 60), ("ERROR", 0, 120), ("ERROR", 0, 120), ("OK", 20, 180)]),
    ("recurs-forgotten", RECURS, &["DEL jsacc:job:ID"], &[("ERROR", 0, 0), ("OK", 0, 60)]),
    ("recurs-old", RECURS, &["SET jsacc:done:{cmds_queue_ID}:1:10:START 1"], &[("ERROR", 0, 0)]),
    ("recurs-answered", RECURS, &["HSET jsacc:done:{cmds_queue_ID} 1:10 ac"], &[("ERROR", 0, 0)]),
    ("recurs-pending", RECURS, &["ZADD jsacc:done:{cmds_queue_ID}:1:10 5 +START"], &[("ERROR", 0, 0)]),
    ("spoilt-job", "{}", &["SET jsacc:job:ID spoilt"], &[("OK", 0, 0)]),
    ("spoilt-done", "{}", &["SET jsacc:done:{cmds_queue_ID} spoilt"], &[("OK", 0, 0)]),
    ("spoilt-list", "{}", &["SET cmds_queue_ID spoilt"], &[("OK", 0, 0), ("ERROR", 0, 5)]),
    ("spoilt-list-of-none", "{}", &["DEL jsacc:job:ID", "SET cmds_queue_ID spoilt"], &[("OK", 0, 0)]),
    ("spoilt-counts", "{}", &["SET jsacc:audit:results spoilt"], &[("OK", 0, 0), ("OK", 0, 0)]),
    ("recurs-spoilt-runs", RECURS, &["SET jsacc:done:{cmds_queue_ID}:1:10 spoilt"], &[("ERROR", 0, 0)]),
    ("recurs-spoilt-list", RECURS, &["SET cmds_queue_ID spoilt"], &[("ERROR", 0, 0)]),
];

const RECURS: &str = r#"{"args": {"cmd": "/bin/true", "recurring_period": 60}}"#;

/// A job that node 1:10 has stored.
fn store_job(site: &mut Site, id: &str, fields: &str) -> Value {
    let mut command = json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "/bin/true"}});
    let fields: Value = serde_json::from_str(fields).expect("fields of a command");
    command.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    site.client.push(command);
    let batch = wait_for(&format!("{id} comes"), LONG, || site.node.poll(5, None));
    assert!(site.node.poll(0, Some(&batch.batch)).is_none());
    batch.cmds[0].clone()
}

#[test]
fn result_in_one_call_leaves_the_same_as_in_steps() {
    let mut sites = Site::both(RESULTS_IN_STEPS, &[]);
    let start = now_ms() - 3_600_000;
    for (id, fields, before, results) in RESULTS {
        if *id == "spoilt-job" {
            // From here on results fail half way, which is counted where they have got to.
            assert_eq!(sites[0].outcomes(), sites[1].outcomes());
        }
        let mut found = Vec::new();
        for site in &mut sites {
            let command = store_job(site, id, fields);
            let mut words: Vec<Vec<String>> = Vec::new();
            for line in *before {
                let line = line.replace("ID", id).replace("START", &start.to_string());
                words.push(line.split(' ').map(str::to_owned).collect());
            }
            let run = |site: &mut Site, words: &[&str]| {
                let _: redis::Value = site.client.redis(words);
            };
            words.iter().for_each(|words| run(site, &words.iter().map(String::as_str).collect::<Vec<_>>()));
            let mut seen = Vec::new();
            // A second time, once what was spoilt is good again.
            for _ in 0..2 {
                for (state, level, after) in *results {
                    let mut result = site.node.result_of(&command, state, "x");
                    result["starttime"] = json!(start + after * 1000);
                    result["level"] = json!(level);
                    seen.push(json!(site.node.post("result", &json!([result])).status));
                }
                let mut held = [site.held(&format!("*{id}")), site.held(&format!("*{{cmds_queue_{id}}}*"))];
                if ["others", "spoilt-job"].contains(id) {
                    // In steps it is decided before the job's hash is read: a decision is left that is not gone on with.
                    held[1].retain(|_, (done, _)| !done.to_string().contains("\"+"));
                }
                seen.push(json!([held, site.key("jsacc:audit:results").0]));
                for words in words.iter().filter(|words| words[0] == "SET" && words[2] == "spoilt") {
                    run(site, &["DEL", &words[1]]);
                }
            }
            let late = |event: &&Value| event["name"] == "late_result" && event["data"]["id"] == json!(id);
            seen.push(json!(site.client.events().iter().filter(late).count()));
            found.push(seen);
        }
        assert_eq!(found[0], found[1], "{id}");
    }
}

/// Nodes of a command, what is done to keys before it is pushed, and the commands: fields beside the id and the node.
const COMMANDS: &[(&str, &[&str], &[&str])] = &[
    ("plain", &[], &["{}"]),
    ("known", &[], &["{}", "{}", r#"{"cmd": "get_msgs"}"#]),
    ("quiet", &[], &[r#"{"quiet": true, "expires": 30}"#]),
    ("secret", &[], &[r#"{"cmd": "execute", "data": "geheim", "args": {"cmd": "x", "secret": true}}"#]),
    ("long", &[], &[r#"{"expires": 4000000}"#]),
    ("several", &[], &[r#"{"nid": 0, "nodes": [[2, NODE], [1, NODE], [3, NODE]]}"#]),
    ("held-here", &["HSET jsacc:{1:NODE}:meta ac ME"], &["{}"]),
    ("held-there", &["HSET jsacc:{1:NODE}:meta ac other"], &["{}", "{}"]),
    ("held-there-again", &["HSET jsacc:{1:NODE}:meta ac other"], &["{}"]),
    ("revoked", &["SET jsacc:{1:NODE}:revoked 5"], &["{}"]),
    ("one-revoked", &["SET jsacc:{2:NODE}:revoked 5"], &[r#"{"nid": 0, "nodes": [[1, NODE], [2, NODE]]}"#]),
    ("full", &["ZADD jsacc:{1:NODE}:queue 1 a 2 b", "HSET jsacc:{1:NODE}:cmds a x b y"], &["{}"]),
    ("withdrawn", &["ZADD jsacc:{1:NODE}:withdrawn 9000000000000000 ID"], &["{}"]),
    ("waits", &["ZADD jsacc:{1:NODE}:queue 1 ID", "HSET jsacc:{1:NODE}:cmds ID x"], &["{}"]),
    ("expiring", &["ZADD jsacc:expiring 9000000000000 1:NODE:ID"], &["{}"]),
    ("spoilt-job", &["SET jsacc:job:ID spoilt"], &["{}"]),
    ("spoilt-queue", &["SET jsacc:{1:NODE}:queue spoilt"], &["{}"]),
    ("spoilt-texts", &["SET jsacc:{1:NODE}:cmds spoilt"], &["{}"]),
    ("spoilt-meta", &["SET jsacc:{1:NODE}:meta spoilt"], &["{}"]),
    ("spoilt-marks", &["SET jsacc:{1:NODE}:withdrawn spoilt"], &["{}"]),
    ("one-spoilt", &["SET jsacc:{2:NODE}:cmds spoilt"], &[r#"{"nid": 0, "nodes": [[1, NODE], [2, NODE]]}"#]),
    ("spoilt-answers", &["SET jsacc:{1:NODE}:revoked 5", "SET cmds_queue_ID spoilt"], &["{}"]),
    ("spoilt-jobs", &["SET jsacc:jobs spoilt"], &["{}"]),
    ("spoilt-audit", &["DEL jsacc:jobs jsacc:audit", "SET jsacc:audit spoilt"], &["{}"]),
];

#[test]
fn command_in_one_call_leaves_the_same_as_in_steps() {
    let mut sites = Site::both(COMMANDS_IN_STEPS, &["--max-queue", "2"]);
    let lists = ["jsacc:jobs", "jsacc:audit", "jsacc:events", "jsacc:rejected", "jsacc:expiring"];
    for (nid, (id, before, commands)) in (100..).zip(COMMANDS) {
        let found = sites.each_mut().map(|site| {
            let me = site.client.redis::<Vec<String>>(&["ZRANGE", "jsacc:acs", "0", "-1"]).remove(0);
            let fill = |text: &str| text.replace("NODE", &nid.to_string()).replace("ID", id).replace("ME", &me);
            for line in *before {
                let line = fill(line);
                let _: redis::Value = site.client.redis(&line.split(' ').collect::<Vec<_>>());
            }
            for fields in *commands {
                let mut command = json!({"id": id, "gid": 1, "nid": nid, "cmd": "ping"});
                let fields: Value = serde_json::from_str(&fill(fields)).expect("fields of a command");
                command.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
                site.client.push(command);
            }
            wait_until(&format!("{id} is passed on"), LONG, || {
                let lists: Vec<String> = site.client.redis(&["KEYS", "jsacc:{cmds_queue}:taken:*"]);
                lists.is_empty() && site.client.redis::<i64>(&["LLEN", "cmds_queue"]) == 0
            });
            let mut held = site.held(&format!("*{id}*"));
            held.extend(site.held(&format!("jsacc:{{[123]:{nid}}}:*")));
            held.extend(site.held("jsacc:bell:other"));
            held.extend(lists.map(|key| (key.to_owned(), site.key(key))));
            held
        });
        let [one, other] = found;
        for (key, held) in &other {
            assert_eq!(one.get(key), Some(held), "{id}: {key}");
        }
        assert_eq!(one.len(), other.len(), "{id}");
        if id.starts_with("spoilt-jobs") {
            sites.iter_mut().for_each(|site| site.client.redis(&["DEL", "jsacc:jobs"]));
        }
    }
}

#[test]
fn finished_job_is_kept_for_as_long_as_is_set() {
    for site in &mut Site::both(RESULTS_IN_STEPS, &["--keep", "120"]) {
        let [job, nobody] = ["plain", "nobody"];
        let command = store_job(site, job, "{}");
        let mut kept = |key: &str| site.client.redis::<i64>(&["TTL", key]);
        assert!(kept("jsacc:job:plain") > 86_400, "one that runs is not finished");
        let result = site.node.result_of(&command, "OK", "");
        assert_eq!(site.node.post("result", &json!([result])).status, 200);
        site.client.push(json!({"id": nobody, "roles": ["nobody"], "cmd": "ping"}));
        wait_until("it is answered", LONG, || site.client.results(nobody) == 1);
        for id in [job, nobody] {
            let mut kept = |key: String| site.client.redis::<i64>(&["TTL", &key]);
            let (hash, list) = (kept(format!("jsacc:job:{id}")), kept(format!("cmds_queue_{id}")));
            assert!((100..=120).contains(&hash) && (100..=120).contains(&list), "{id}: {hash} s and {list} s");
            let done = kept(format!("jsacc:done:{{cmds_queue_{id}}}"));
            assert!(done > 86_000, "{id}: that it was answered is remembered for {done} s");
        }
        // It goes on, and is not finished.
        let recurs = store_job(site, "recurs", RECURS);
        assert_eq!(site.node.post("result", &json!([site.node.result_of(&recurs, "ERROR", "")])).status, 200);
        assert!(site.client.redis::<i64>(&["TTL", "jsacc:job:recurs"]) > 86_000);
    }
}
