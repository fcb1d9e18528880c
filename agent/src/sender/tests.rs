//! A whole sender with a real ledger and outbox, against a fake controller.

use super::*;
use crate::config::{Config, Overrides};
use crate::controller::fake::{Answer, Asked, Fake};
use crate::ledger::Write;
use serde_json::{Value, json};
use std::sync::Mutex;

struct Stage {
    _dir: tempfile::TempDir,
    ledger: Arc<Ledger>,
    outbox: Arc<Outbox>,
    seen: Arc<Mutex<Vec<Asked>>>,
    fake: Fake,
    controller: Arc<Controller>,
}

impl Stage {
    fn new(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let log = seen.clone();
        let fake = Fake::start(move |asked| {
            log.lock().unwrap().push(asked.clone());
            answer(asked)
        });
        let overrides = Overrides {
            gid: Some(1),
            nid: Some(10),
            controller: Some(fake.url.clone()),
            data_dir: Some(dir.path().into()),
        };
        let config = Config::parse("", &overrides).unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let outbox = Outbox::open(&config).unwrap();
        let controller = Arc::new(Controller::open(&config, "main", "i").unwrap());
        Stage { _dir: dir, ledger, outbox, seen, fake, controller }
    }

    fn results(&self, results: &[Value]) {
        for result in results {
            let id = result["id"].as_str().unwrap().to_owned();
            let accept = Write::Accept { id: id.clone(), controller: "main".into(), command: "{}".into(), now: 1 };
            self.ledger.commit(&[accept, Write::Finish { id, result: Some(result.to_string()), soon: false }]).unwrap();
        }
    }

    fn start(&self) -> Handle {
        Handle::start(self.controller.clone(), self.ledger.clone(), self.outbox.clone()).unwrap()
    }

    fn until_nothing_waits(&self) {
        while self.ledger.unsent_bytes() > 0 {
            thread_yield();
        }
    }

    /// The ids of the results in each request, in order.
    fn posted(&self) -> Vec<Vec<String>> {
        let ids = |body: &str| {
            let list: Vec<Value> = serde_json::from_str(body).unwrap();
            list.iter().map(|result| result["id"].as_str().unwrap().to_owned()).collect()
        };
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|asked| asked.line.ends_with("/result")).map(|asked| ids(&asked.body)).collect()
    }
}

fn thread_yield() {
    std::thread::sleep(Duration::from_millis(1));
}

fn ok() -> Answer {
    (200, String::new(), String::new())
}

fn refused(status: u16, error: Value) -> Answer {
    (status, String::new(), error.to_string())
}

fn ids(ids: &[&str]) -> Vec<Value> {
    ids.iter().map(|id| json!({"id": id})).collect()
}

#[test]
fn what_waits_goes_in_one_request_and_is_marked() {
    let stage = Stage::new(|_| ok());
    stage.results(&ids(&["a", "b", "c"]));
    stage.outbox.push_event(None, "startup", json!({}));
    let sender = stage.start();
    stage.until_nothing_waits();
    stage.results(&ids(&["d"]));
    sender.waker().try_send(()).unwrap();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.posted(), [vec!["a", "b", "c"], vec!["d"]]);
    let lines: Vec<String> = stage.seen.lock().unwrap().iter().map(|asked| asked.line.clone()).collect();
    assert_eq!(lines.iter().filter(|line| *line == "POST /1/10/event").count(), 1, "{lines:?}");
    assert_eq!(*stage.fake.connections.lock().unwrap(), 1);
}

#[test]
fn one_that_is_too_much_does_not_hold_up_the_others() {
    let stage = Stage::new(|asked| match asked.body.contains("\"bad\"") {
        true => refused(413, json!({"error": "too large"})),
        false => ok(),
    });
    stage.results(&ids(&["a", "b", "bad", "c", "d"]));
    // The poller has met this controller.
    stage.controller.post("event", b"{}").unwrap();
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
    let posted = stage.posted();
    // Once whole and once cut short, and then never again.
    let alone = posted.iter().filter(|ids| ids.contains(&"bad".to_owned()) && ids.len() == 1).count();
    assert_eq!(alone, 2, "{posted:?}");
    for id in ["a", "b", "c", "d"] {
        let taken = posted.iter().filter(|ids| ids.contains(&id.to_owned()) && !ids.contains(&"bad".to_owned()));
        assert_eq!(taken.count(), 1, "{id}: {posted:?}");
    }
}

#[test]
fn of_a_result_that_is_too_large_its_end_is_told() {
    let stage = Stage::new(|asked| match asked.body.len() > 1000 {
        true => refused(413, json!({"error": "too large"})),
        false => ok(),
    });
    let large = "x".repeat(2000);
    stage.results(&[
        json!({"id": "big", "gid": 1, "nid": 10, "cmd": "get_msgs", "state": "OK", "data": large, "starttime": 7}),
        json!({"id": "killed", "gid": 1, "nid": 10, "cmd": "x", "state": "KILLED", "code": 137, "args": {"a": large}}),
        json!({"id": "c"}),
        json!({"id": "huge", "state": "OK", "args": {"recurring_period": 5, "x": "x".repeat(17 << 20)}}),
    ]);
    stage.controller.post("event", b"{}").unwrap();
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
    let seen = stage.seen.lock().unwrap();
    let taken = seen.iter().filter(|asked| asked.line.ends_with("/result") && asked.body.len() <= 1000);
    let taken: Vec<Value> = taken.flat_map(|asked| serde_json::from_str::<Vec<Value>>(&asked.body).unwrap()).collect();
    let of = |id: &str| taken.iter().find(|result| result["id"] == id).unwrap();
    assert_eq!(taken.len(), 4, "{taken:?}");
    // What no controller takes is not even tried.
    assert!(seen.iter().all(|asked| asked.body.len() <= 16 << 20));
    assert_eq!(of("huge")["args"], json!({"recurring_period": 5}));
    let big = of("big");
    assert_eq!((&big["state"], &big["nid"], &big["starttime"]), (&json!("ERROR"), &json!(10), &json!(7)));
    let said = big["data"].as_str().unwrap();
    assert!(said.starts_with("the job ended OK, and its result of 2083 bytes") && said.contains("too large"), "{said}");
    assert_eq!((&of("killed")["state"], &of("killed")["code"]), (&json!("KILLED"), &json!(137)));
}

#[test]
fn what_is_no_controller_costs_nothing() {
    let stage = Stage::new(|_| refused(400, json!({"error": "this port speaks HTTPS"})));
    stage.results(&ids(&["a"]));
    stage.outbox.push_event(None, "startup", json!({}));
    let sender = stage.start();
    while !stage.seen.lock().unwrap().iter().any(|asked| asked.line.ends_with("/event")) {
        thread_yield();
    }
    drop(sender);
    assert!(stage.ledger.unsent_bytes() > 0);
    assert!(stage.outbox.next("main", Kind::Event).is_some());
}

#[test]
fn refused_ids_are_over_with_the_rest() {
    let stage = Stage::new(|_| refused(403, json!({"error": "not this node's", "refused": ["b"]})));
    stage.results(&ids(&["a", "b", "c"]));
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.posted(), [vec!["a", "b", "c"]]);
}

#[test]
fn a_node_that_is_refused_keeps_its_results_and_sends_what_it_may() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let stage = Stage::new(move |asked| match asked.line.ends_with("/result") && !gate.load(Ordering::Relaxed) {
        true => refused(401, json!({"error": "who are you"})),
        false => ok(),
    });
    stage.results(&ids(&["a"]));
    stage.outbox.push_event(None, "startup", json!({}));
    let sender = stage.start();
    while !stage.seen.lock().unwrap().iter().any(|asked| asked.line.ends_with("/event")) {
        thread_yield();
    }
    assert!(stage.ledger.unsent_bytes() > 0);
    open.store(true, Ordering::Relaxed);
    stage.until_nothing_waits();
    drop(sender);
}

#[test]
fn a_busy_controller_gets_all_of_it_later() {
    let tries = AtomicBool::new(false);
    let stage = Stage::new(move |_| match tries.swap(true, Ordering::Relaxed) {
        false => refused(503, json!({"error": "Redis is away"})),
        true => ok(),
    });
    stage.results(&ids(&["a", "b"]));
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.posted(), [vec!["a", "b"], vec!["a", "b"]]);
}

#[test]
fn a_controller_that_answers_the_poller_is_back_for_the_sender_too() {
    let away = Arc::new(AtomicBool::new(true));
    let gate = away.clone();
    let stage = Stage::new(move |_| match gate.load(Ordering::Relaxed) {
        true => (503, "retry-after: 3600\r\n".into(), String::new()),
        false => ok(),
    });
    stage.results(&ids(&["a"]));
    let sender = stage.start();
    while stage.posted().is_empty() {
        thread_yield();
    }
    away.store(false, Ordering::Relaxed);
    while stage.ledger.unsent_bytes() > 0 {
        // What the poller does when it is answered again.
        let _ = stage.controller.poll(Duration::ZERO, None);
        let _ = sender.waker().try_send(());
        thread_yield();
    }
}

#[test]
fn a_stop_sends_once_more_and_does_not_wait_for_a_dead_controller() {
    let stage = Stage::new(|_| refused(503, json!({"error": "later"})));
    let sender = stage.start();
    stage.results(&ids(&["a"]));
    let begun = Instant::now();
    drop(sender);
    assert!(begun.elapsed() < LAST_ROUND);
    assert!(stage.ledger.unsent_bytes() > 0);
    assert!(stage.posted().len() <= 2);
}
