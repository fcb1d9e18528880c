use super::*;
use crate::stream::{Posted, Reply};
use jscommon::frame::{self, Kind};
use std::sync::atomic::{AtomicBool, Ordering};

/// Keeps what comes, unless it is away.
#[derive(Default)]
struct Kept {
    stored: Mutex<HashMap<String, Vec<u8>>>,
    is_away: AtomicBool,
}

impl Post for Kept {
    fn post(&self, id: &str, offset: u64, _ticket: &str, frames: &[u8]) -> Posted {
        if self.is_away.load(Ordering::Relaxed) {
            return Posted::Failed("away".into(), None);
        }
        let mut stored = self.stored.lock().unwrap();
        let stored = stored.entry(id.to_owned()).or_default();
        assert_eq!(offset, stored.len() as u64);
        stored.extend_from_slice(frames);
        Posted::Answered(Reply { have: stored.len() as u64, watch: 30, room: 1 << 20 })
    }
}

impl Kept {
    /// The bytes of both streams, and the end.
    fn output(&self, id: &str) -> ([String; 2], Option<Value>) {
        let stored = self.stored.lock().unwrap().get(id).cloned().unwrap_or_default();
        let (mut streams, mut end) = ([String::new(), String::new()], None);
        for frame in frame::frames(&stored) {
            let frame = frame.unwrap();
            let text = String::from_utf8_lossy(frame.payload);
            match frame.kind {
                Kind::Stdout => streams[0] += &text,
                Kind::Stderr => streams[1] += &text,
                Kind::End => end = serde_json::from_str(&text).ok(),
                _ => panic!("a frame {:?}", frame.kind),
            }
        }
        (streams, end)
    }

    #[track_caller]
    fn end(&self, id: &str) -> ([String; 2], Value) {
        let end = until(&format!("the end of {id}"), || self.output(id).1);
        (self.output(id).0, end)
    }
}

fn node() -> (Node, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    (Node { post: Some(kept.clone()), ..Node::new() }, kept)
}

#[test]
fn streamed_job_is_sent_as_it_writes_and_its_restarts_share_one_end() {
    let (node, kept) = node();
    let life = node.live();
    let go = node.path("go");
    let script = format!(
        "printf one; printf two >&2; [ -e {0}.again ] || {{ touch {0}.again; exit 1; }}; \
         while [ ! -e {0} ]; do sleep 0.01; done; printf '\\n20::3\\n'",
        go.display()
    );
    life.shell("job", &script, json!({"stream": true, "max_restart": 3}));
    until("the output of two runs", || (kept.output("job").0 == ["oneone", "twotwo"]).then_some(()));
    assert!(kept.output("job").1.is_none(), "it runs");
    std::fs::write(&go, "").unwrap();
    let (streams, end) = kept.end("job");
    assert_eq!(streams, ["oneone\n20::3\n", "twotwo"]);
    let sha = |text: &str| jscommon::token::sha256_hex(text.as_bytes());
    assert_eq!(end["stdout"], json!({"bytes": 13, "sha256": sha(&streams[0])}));
    assert_eq!(end["stderr"], json!({"bytes": 6, "sha256": sha(&streams[1])}));
    assert_eq!(life.result("job").data, "3");
}

#[test]
fn job_that_cannot_start_has_an_end() {
    let (node, kept) = node();
    let life = node.live();
    life.push(json!({"id": "job", "cmd": "execute", "args": {"cmd": "/no/such/program", "stream": true}}));
    assert_eq!(kept.end("job").1["stdout"]["bytes"], 0);
    assert_eq!(life.result("job").code, 127);
}

#[test]
fn attach_opens_a_watch_on_a_job_that_runs_and_on_its_spool_afterwards() {
    let (node, kept) = node();
    let life = node.live();
    let go = node.path("go");
    let script = format!("echo before; while [ ! -e {} ]; do sleep 0.01; done; echo after", go.display());
    life.shell("job", &script, json!({}));
    let attach = |id: &str, data: Value| life.ask(id, "attach", data);
    until("its first line", || {
        let id = format!("p{}", fastrand::u64(..));
        let answer = attach(&id, json!({"id": "job", "tail": 0}));
        (answer.data == r#"{"from":[7,0]}"#).then_some(())
    });
    attach("w", json!({"id": "job", "tail": 0}));
    std::fs::write(&go, "").unwrap();
    let (streams, end) = kept.end("w");
    assert_eq!((streams[0].as_str(), &end["stdout"]["bytes"]), ("after\n", &json!(13)));
    life.result("job");
    assert_eq!(attach("later", json!({"id": "job", "from": [7, 0]})).data, r#"{"from":[7,0]}"#);
    assert_eq!(kept.end("later").0[0], "after\n");
    life.shell("plain", "echo x", json!({}));
    life.result("plain");
    for (data, why) in [
        (json!({"id": "plain"}), "job plain has no spool: nobody watched it"),
        (json!({}), "data has no id"),
        (json!({"id": "job", "from": [1]}), "from must be the positions"),
        (json!({"id": "job", "from": [1, 1], "tail": 1}), "give one of them"),
        (json!({"id": "job", "from": [99, 0]}), "from is beyond that"),
    ] {
        let answer = attach(&format!("f{}", fastrand::u64(..)), data);
        assert!(answer.state == State::Error && answer.data.contains(why), "{}", answer.data);
    }
}

#[test]
fn job_waits_while_its_spool_is_full_and_can_be_killed() {
    let (node, kept) = node();
    kept.is_away.store(true, Ordering::Relaxed);
    let life = node.live();
    let count = node.path("count");
    let script = format!("exec 2>{}; exec dd if=/dev/zero bs=65536 count=2000", count.display());
    life.shell("job", &script, json!({"stream": true, "loglevels": ""}));
    let size = || {
        let spool = life.config.main.data_dir.join("spool");
        let files = std::fs::read_dir(spool).into_iter().flatten().flatten();
        let files = files.flat_map(|dir| std::fs::read_dir(dir.path()).into_iter().flatten().flatten());
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum::<u64>()
    };
    until("a full spool", || (size() > 53 << 20).then_some(()));
    let killed = life.ask("kill", "kill", json!({"id": "job"}));
    assert_eq!((killed.state, life.result("job").state), (State::Ok, State::Killed));
    assert!(size() < 64 << 20);
    // Its output is sent once the controller is there.
    kept.is_away.store(false, Ordering::Relaxed);
    let end = kept.end("job").1;
    assert_eq!(end["stdout"]["bytes"], kept.output("job").0[0].len());
}

#[test]
fn get_sends_a_file() {
    let (node, kept) = node();
    let life = node.live();
    std::fs::write(node.path("file"), "0123456789").unwrap();
    let answer = life.ask("g", "get", json!({"path": node.path("file"), "offset": 2, "length": 3}));
    assert_eq!((answer.state, answer.level), (State::Ok, 20), "{}", answer.data);
    let (streams, end) = kept.end("g");
    assert_eq!((streams[0].as_str(), &end["size"]), ("234", &json!(10)));
    for (data, why) in [
        (json!({"path": "file"}), "path must be an absolute path"),
        (json!({"path": node.path("none")}), "none: "),
        (json!({"path": "/dev/null"}), "no regular file"),
    ] {
        let answer = life.ask(&format!("f{}", fastrand::u64(..)), "get", data);
        assert!(answer.state == State::Error && answer.data.contains(why), "{}", answer.data);
    }
}
