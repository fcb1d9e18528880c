//! A whole sender with a real job store and upload queue, against a fake controller.

use super::*;
use crate::config::{Config, Overrides};
use crate::storage::job_store::JobUpdate;
use crate::uplink::fake::{Answer, Asked, Fake};
use serde_json::{Value, json};
use std::sync::Mutex;

struct Stage {
    _dir: tempfile::TempDir,
    job_store: Arc<JobStore>,
    upload_queue: Arc<UploadQueue>,
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
            ..Overrides::default()
        };
        let config = Config::parse("", &overrides).unwrap();
        let job_store = JobStore::open(dir.path()).unwrap();
        let upload_queue = UploadQueue::open(&config).unwrap();
        let controller = Arc::new(Controller::open(&config, "main", "i").unwrap());
        Stage { _dir: dir, job_store, upload_queue, seen, fake, controller }
    }

    fn results(&self, results: &[Value]) {
        for result in results {
            let id = result["id"].as_str().unwrap().to_owned();
            let accept = JobUpdate::Accept { id: id.clone(), controller: "main".into(), command: "{}".into(), now: 1 };
            self.job_store
                .commit(&[accept, JobUpdate::Finish { id, result: Some(result.to_string()), deferred_sync: false }])
                .unwrap();
        }
    }

    fn start(&self) -> Handle {
        Handle::start(self.controller.clone(), self.job_store.clone(), self.upload_queue.clone()).unwrap()
    }

    fn until_nothing_waits(&self) {
        while self.job_store.unsent_bytes() > 0 {
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
fn waiting_results_go_in_one_request_and_are_marked() {
    let stage = Stage::new(|_| ok());
    stage.results(&ids(&["a", "b", "c"]));
    stage.upload_queue.push_event(None, "startup", json!({}));
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
        json!({"id": "killed", "gid": 1, "nid": 10, "cmd": "x", "state": "KILLED", "code": 137, "args": {"a": large},
            "ticket": "r5.x", "tags": "t", "critical": "disk full", "level": 20, "streams": ["a", large]}),
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
    // A body that no controller takes is never sent.
    assert!(seen.iter().all(|asked| asked.body.len() <= 16 << 20));
    assert_eq!(of("huge")["args"], json!({"recurring_period": 5}));
    let killed = of("killed");
    assert_eq!(
        (&killed["ticket"], &killed["tags"], &killed["critical"]),
        (&json!("r5.x"), &json!("t"), &json!("disk full"))
    );
    // Every field that a client reads is there.
    assert_eq!((&killed["level"], &killed["streams"], &of("big")["tags"]), (&json!(0), &json!(["", ""]), &json!("")));
    let big = of("big");
    assert_eq!((&big["state"], &big["nid"], &big["starttime"]), (&json!("ERROR"), &json!(10), &json!(7)));
    let said = big["data"].as_str().unwrap();
    assert!(said.starts_with("the job ended OK, and its result of 2083 bytes") && said.contains("too large"), "{said}");
    assert_eq!((&of("killed")["state"], &of("killed")["code"]), (&json!("KILLED"), &json!(137)));
}

#[test]
fn answer_of_no_controller_loses_no_data() {
    let stage = Stage::new(|_| refused(400, json!({"error": "this port speaks HTTPS"})));
    stage.results(&ids(&["a"]));
    stage.upload_queue.push_event(None, "startup", json!({}));
    let sender = stage.start();
    while !stage.seen.lock().unwrap().iter().any(|asked| asked.line.ends_with("/event")) {
        thread_yield();
    }
    drop(sender);
    assert!(stage.job_store.unsent_bytes() > 0);
    assert!(stage.upload_queue.next("main", Kind::Event).is_some());
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
    stage.upload_queue.push_event(None, "startup", json!({}));
    let sender = stage.start();
    while !stage.seen.lock().unwrap().iter().any(|asked| asked.line.ends_with("/event")) {
        thread_yield();
    }
    assert!(stage.job_store.unsent_bytes() > 0);
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
    let stage = Stage::new(move |asked| match gate.load(Ordering::Relaxed) {
        true => (503, "retry-after: 3600\r\n".into(), String::new()),
        false if asked.line.starts_with("GET") => (204, String::new(), String::new()),
        false => ok(),
    });
    stage.results(&ids(&["a"]));
    let sender = stage.start();
    while stage.posted().is_empty() {
        thread_yield();
    }
    away.store(false, Ordering::Relaxed);
    while stage.job_store.unsent_bytes() > 0 {
        // The poller does this when it is answered again.
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
    assert!(stage.job_store.unsent_bytes() > 0);
    assert!(stage.posted().len() <= 2);
}

fn page(status: u16) -> Answer {
    (status, "content-type: text/html\r\nserver: nginx/1.0\r\n".into(), "<html>no</html>".into())
}

impl Stage {
    /// Waits until the uploader has nothing left of this kind.
    fn until_sent(&self, kind: Kind) {
        while self.upload_queue.next("main", kind).is_some() {
            thread_yield();
        }
    }

    /// Events of this name, as they were posted.
    fn events(&self, name: &str) -> Vec<Value> {
        let seen = self.seen.lock().unwrap();
        let bodies = seen.iter().filter(|asked| asked.line.ends_with("/event"));
        let events = bodies.map(|asked| serde_json::from_str::<Value>(&asked.body).unwrap());
        events.filter(|event| event["name"] == name).map(|event| event["data"].clone()).collect()
    }

    fn until_event(&self, name: &str) -> Value {
        loop {
            if let Some(event) = self.events(name).pop() {
                return event;
            }
            thread_yield();
        }
    }

    /// Sends a batch of series, unless one waits.
    fn post_another(&self) {
        if self.upload_queue.next("main", Kind::Stats).is_none() {
            self.upload_queue.push_stats(7, &[("1.10.d.n.k".into(), 1.0)]);
        }
    }

    /// Polls once, as the poller does while the controller answers it.
    fn poll(&self) {
        self.controller.poll(Duration::ZERO, None).unwrap();
    }
}

/// A controller that takes batches as the real one does, each number once and none below the last.
#[derive(Default)]
struct Taking {
    last: Mutex<std::collections::HashMap<String, u64>>,
    entries: Mutex<Vec<Value>>,
}

impl Taking {
    fn take(&self, asked: &Asked) -> Answer {
        if asked.line.starts_with("GET") {
            return (204, String::new(), String::new());
        }
        let body: Value = serde_json::from_str(&asked.body).unwrap();
        let Some(number) = body["batch"].as_u64() else { return ok() };
        let mut last = self.last.lock().unwrap();
        let last = last.entry(asked.line.clone()).or_default();
        if number <= *last {
            return (200, String::new(), json!({"last": *last}).to_string());
        }
        *last = number;
        let list = body["records"].as_array().or(body["series"].as_array()).unwrap();
        self.entries.lock().unwrap().extend(list.iter().cloned());
        ok()
    }

    fn has(&self) -> Vec<Value> {
        self.entries.lock().unwrap().clone()
    }
}

fn push_records(stage: &Stage, records: impl Iterator<Item = Value>) {
    let mut list = crate::storage::upload_queue::Records::default();
    records.for_each(|record| list.add(|json| json.extend_from_slice(record.to_string().as_bytes())));
    stage.upload_queue.push_log(&list, crate::storage::upload_queue::IdCheckpoint { last: 1, next: 2 }).unwrap();
    stage.upload_queue.close_log();
}

#[test]
fn answers_of_no_controller_mark_nothing_as_sent() {
    let foreign = Arc::new(AtomicBool::new(true));
    let gate = foreign.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| if gate.load(Ordering::Relaxed) { page(200) } else { taker.take(asked) });
    stage.results(&ids(&["a"]));
    stage.upload_queue.push_event(None, "startup", json!({}));
    stage.upload_queue.push_stats(5, &[("k".into(), 1.5)]);
    push_records(&stage, [json!({"jobid": "a", "data": "x"})].into_iter());
    let sender = stage.start();
    while stage.seen.lock().unwrap().len() < 4 {
        thread_yield();
    }
    assert!(stage.job_store.unsent_bytes() > 0);
    for kind in [Kind::Event, Kind::Log, Kind::Stats] {
        assert!(stage.upload_queue.next("main", kind).is_some(), "{kind:?}");
    }
    foreign.store(false, Ordering::Relaxed);
    stage.until_nothing_waits();
    [Kind::Event, Kind::Log, Kind::Stats].into_iter().for_each(|kind| stage.until_sent(kind));
    drop(sender);
    assert_eq!(taking.has().len(), 2);
}

/// One result is refused as `refusal` says while `bad` is set; series are taken.
fn one_result_refused(refusal: impl Fn() -> Answer + Send + Sync + 'static) {
    let bad = Arc::new(AtomicBool::new(true));
    let gate = bad.clone();
    let stage = Stage::new(move |asked| match asked.body.contains("\"bad\"") && asked.line.ends_with("/result") {
        true if gate.load(Ordering::Relaxed) => refusal(),
        _ if asked.line.starts_with("GET") => (204, String::new(), String::new()),
        _ => ok(),
    });
    stage.results(&ids(&["a", "b", "bad", "c"]));
    stage.controller.post("event", b"{}").unwrap();
    let sender = stage.start();
    let taken = |id: &str| stage.posted().iter().any(|ids| ids.len() < 4 && ids.contains(&id.to_owned()));
    while !["a", "b", "c"].iter().all(|id| taken(id)) {
        stage.post_another();
        thread_yield();
    }
    // Later ones go as well, and by those the culprit is known.
    stage.results(&ids(&["d"]));
    let _ = sender.waker().try_send(());
    let event = loop {
        if let Some(event) = stage.events("delivery_refused").pop().filter(|_| taken("d")) {
            break event;
        }
        stage.post_another();
        thread_yield();
    };
    assert!(event["item"].as_str().unwrap().starts_with("the result of bad"), "{event}");
    assert_eq!((&event["kind"], &event["dropped"]), (&json!("result"), &json!(false)));
    assert!(stage.job_store.unsent_bytes() > 0, "it is kept");
    drop(sender);
    // The next start tries it again.
    bad.store(false, Ordering::Relaxed);
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
}

#[test]
fn result_that_a_proxy_forbids_holds_up_no_other() {
    one_result_refused(|| page(403));
}

#[test]
fn result_that_a_proxy_answers_with_a_page_holds_up_no_other() {
    one_result_refused(|| page(200));
}

#[test]
fn result_that_a_controller_fails_at_holds_up_no_other() {
    one_result_refused(|| refused(500, json!({"error": "the controller failed at this request", "time": 1})));
}

#[test]
fn result_that_a_controller_cannot_store_holds_up_no_other() {
    one_result_refused(|| {
        (503, "retry-after: 0\r\n".into(), json!({"error": "redis: WRONGTYPE", "time": 1}).to_string())
    });
}

#[test]
fn result_at_which_a_proxy_cuts_the_connection_holds_up_no_other() {
    one_result_refused(|| (0, String::new(), String::new()));
}

#[test]
fn requests_stay_whole_while_only_polls_are_answered() {
    let away = Arc::new(AtomicBool::new(true));
    let gate = away.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| match gate.load(Ordering::Relaxed) && asked.line.starts_with("POST") {
        true => (503, "retry-after: 0\r\n".into(), json!({"error": "Redis is away", "time": 1}).to_string()),
        false if asked.line.ends_with("/result") => ok(),
        false => taker.take(asked),
    });
    stage.results(&ids(&["a", "b", "c", "d"]));
    push_records(&stage, (0..20).map(|n| json!({"id": n, "jobid": "j", "data": "x"})));
    stage.upload_queue.push_event(None, "startup", json!({}));
    stage.poll();
    let sender = stage.start();
    let logs = || stage.seen.lock().unwrap().iter().filter(|asked| asked.line.ends_with("/log")).count();
    while stage.posted().len() < 8 || logs() < 8 {
        stage.poll();
        let _ = sender.waker().try_send(());
        thread_yield();
    }
    away.store(false, Ordering::Relaxed);
    stage.until_nothing_waits();
    [Kind::Event, Kind::Log].into_iter().for_each(|kind| stage.until_sent(kind));
    drop(sender);
    assert!(stage.posted().iter().all(|ids| ids.len() == 4), "{:?}", stage.posted());
    assert_eq!((taking.has().len(), stage.events("delivery_refused").len()), (20, 0));
    let seen = stage.seen.lock().unwrap();
    assert!(seen.iter().filter(|asked| asked.line.ends_with("/log")).all(|asked| asked.body.contains("\"id\":19")));
}

#[test]
fn records_that_are_stored_and_not_acknowledged_are_stored_once() {
    let silent = Arc::new(AtomicBool::new(true));
    let gate = silent.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    // The answer is lost, as at the time limit of a proxy; everything else is taken.
    let stage = Stage::new(move |asked| match taker.take(asked) {
        _ if asked.line.ends_with("/log") && gate.load(Ordering::Relaxed) => page(504),
        answer => answer,
    });
    push_records(&stage, (0..20).map(|n| json!({"id": n, "jobid": "j", "data": "x"})));
    let sender = stage.start();
    let logs = || stage.seen.lock().unwrap().iter().filter(|asked| asked.line.ends_with("/log")).count();
    while logs() < 6 {
        stage.poll();
        stage.post_another();
        thread_yield();
    }
    silent.store(false, Ordering::Relaxed);
    stage.until_sent(Kind::Log);
    drop(sender);
    let ids: Vec<u64> = taking.has().iter().filter_map(|entry| entry["id"].as_u64()).collect();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
}

#[test]
fn record_that_was_set_aside_and_is_stored_without_an_answer_is_stored_once() {
    // First it is forbidden, then stored without an answer, then all is well.
    let phase = Arc::new(std::sync::atomic::AtomicU8::new(0));
    let gate = phase.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| match (asked.body.contains("attack"), gate.load(Ordering::Relaxed)) {
        (true, 0) if asked.line.ends_with("/log") => page(403),
        (true, 1) if asked.line.ends_with("/log") => {
            taker.take(asked);
            page(504)
        }
        _ => taker.take(asked),
    });
    let record = |n: u64| json!({"id": n, "jobid": "j", "data": if n == 0 { "attack" } else { "x" }});
    push_records(&stage, (0..2).map(record));
    stage.poll();
    let sender = stage.start();
    let aside = || stage.upload_queue.asides("main", Kind::Log).unwrap().len();
    while aside() == 0 || taking.has().is_empty() {
        thread_yield();
    }
    drop(sender);
    phase.store(1, Ordering::Relaxed);
    // A new start tries it at once.
    let sender = stage.start();
    while taking.has().len() < 2 {
        thread_yield();
    }
    // Newer ones must not take their turn before it.
    push_records(&stage, (2..4).map(record));
    let _ = sender.waker().try_send(());
    let before = stage.seen.lock().unwrap().len();
    while stage.seen.lock().unwrap().len() < before + 2 {
        thread_yield();
    }
    phase.store(2, Ordering::Relaxed);
    stage.until_sent(Kind::Log);
    while aside() > 0 {
        thread_yield();
    }
    drop(sender);
    let ids: Vec<u64> = taking.has().iter().filter_map(|entry| entry["id"].as_u64()).collect();
    assert_eq!(ids, [1, 0, 2, 3]);
}

#[test]
fn proxy_that_refuses_all_results_and_relents_gets_all() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let stage = Stage::new(move |asked| match asked.line.ends_with("/result") && !gate.load(Ordering::Relaxed) {
        true => page(403),
        false if asked.line.starts_with("GET") => (204, String::new(), String::new()),
        false => ok(),
    });
    stage.results(&ids(&["a", "b", "c", "d", "e", "f", "g", "h"]));
    stage.poll();
    let sender = stage.start();
    let event = stage.until_event("delivery_refused");
    assert_eq!((&event["by"], &event["status"]), (&json!("proxy"), &json!(403)));
    while stage.posted().len() < 6 {
        thread_yield();
    }
    assert_eq!(stage.events("delivery_refused").len(), 1, "one event for all");
    open.store(true, Ordering::Relaxed);
    stage.until_nothing_waits();
    drop(sender);
}

#[test]
fn record_batch_that_is_too_large_for_a_proxy_loses_only_the_culprit() {
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| if asked.body.len() > 2000 { page(413) } else { taker.take(asked) });
    let record = |n: u64| json!({"id": n, "jobid": "j", "data": format!("a, \"{n}\" [{{\\")});
    let large = json!({"id": 250, "jobid": "culprit", "data": "x".repeat(3000)});
    push_records(&stage, (0..500).map(|n| if n == 250 { large.clone() } else { record(n) }));
    stage.upload_queue.push_stats(7, &(0..200).map(|n| (format!("1.10.d.n.key{n}"), 1.0)).collect::<Vec<_>>());
    push_records(&stage, (500..510).map(record));
    stage.poll();
    let sender = stage.start();
    [Kind::Log, Kind::Stats].into_iter().for_each(|kind| stage.until_sent(kind));
    let (event, dropped) = (stage.until_event("delivery_refused"), stage.until_event("dropped"));
    drop(sender);
    let taken = taking.has();
    let ids: Vec<u64> = taken.iter().filter_map(|entry| entry["id"].as_u64()).collect();
    assert_eq!(ids, (0..510).filter(|n| *n != 250).collect::<Vec<_>>(), "in order, each once");
    assert_eq!(taken.iter().filter(|entry| entry.is_array()).count(), 200);
    assert!(event["item"].as_str().unwrap().starts_with("a record of job culprit"), "{event}");
    assert_eq!((&event["by"], &event["dropped"]), (&json!("proxy"), &json!(true)));
    assert_eq!(dropped, json!({"kind": "log", "count": 1}));
}

#[test]
fn proxy_that_calls_everything_too_large_loses_nothing() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| if gate.load(Ordering::Relaxed) { taker.take(asked) } else { page(413) });
    stage.results(&[json!({"id": "a", "state": "OK", "data": "x".repeat(5000)}), json!({"id": "b", "state": "OK"})]);
    push_records(&stage, std::iter::once(json!({"id": 1, "jobid": "j", "data": "x"})));
    stage.upload_queue.push_event(None, "startup", json!({}));
    open.store(true, Ordering::Relaxed);
    stage.poll();
    open.store(false, Ordering::Relaxed);
    let sender = stage.start();
    // The result that is larger is tried cut short, the others as they are.
    while !(stage.posted().iter().any(|ids| *ids == ["b"]) && stage.events("startup").len() > 1) {
        thread_yield();
    }
    assert!(stage.job_store.unsent_bytes() > 5000, "both results wait");
    open.store(true, Ordering::Relaxed);
    stage.until_nothing_waits();
    while taking.has().is_empty() {
        thread_yield();
    }
    drop(sender);
    assert_eq!(taking.has().len(), 1);
    assert!(stage.events("dropped").is_empty());
    let seen = stage.seen.lock().unwrap();
    let last = seen.iter().rev().find(|asked| asked.line.ends_with("/result") && asked.body.contains("\"a\""));
    assert!(last.unwrap().body.len() > 5000, "whole, and not cut short");
}

#[test]
fn record_that_a_proxy_forbids_is_set_aside_and_taken_later() {
    let bad = Arc::new(AtomicBool::new(true));
    let gate = bad.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| match gate.load(Ordering::Relaxed) && asked.body.contains("attack") {
        true if !asked.line.ends_with("/event") => page(403),
        _ => taker.take(asked),
    });
    let record = |n: u64| json!({"id": n, "jobid": "j", "data": if n == 5 { "attack" } else { "x" }});
    push_records(&stage, (0..20).map(record));
    stage.upload_queue.push_stats(7, &[("1.10.d.n.a".into(), 1.0), ("1.10.d.n.attack".into(), 1.0)]);
    stage.poll();
    let sender = stage.start();
    let mut said = Vec::new();
    while said.len() < 2 {
        said = stage.events("delivery_refused");
        thread_yield();
    }
    push_records(&stage, (20..30).map(record));
    stage.until_sent(Kind::Log);
    assert!(said.iter().any(|event| event["item"].as_str().unwrap().starts_with("a record of job j")), "{said:?}");
    assert!(said.iter().any(|event| event["item"].as_str().unwrap().starts_with("the series 1.10.d.n.attack")));
    drop(sender);
    bad.store(false, Ordering::Relaxed);
    let sender = stage.start();
    while [Kind::Log, Kind::Stats].into_iter().any(|kind| !stage.upload_queue.asides("main", kind).unwrap().is_empty())
    {
        thread_yield();
    }
    push_records(&stage, (30..40).map(record));
    stage.until_sent(Kind::Log);
    drop(sender);
    let mut ids: Vec<u64> = taking.has().iter().filter_map(|entry| entry["id"].as_u64()).collect();
    assert_eq!(
        ids.iter().filter(|n| **n != 5).copied().collect::<Vec<_>>(),
        (0..40).filter(|n| *n != 5).collect::<Vec<_>>()
    );
    ids.sort_unstable();
    assert_eq!(ids, (0..40).collect::<Vec<_>>(), "each once");
    assert_eq!(taking.has().iter().filter(|entry| entry.is_array()).count(), 2);
}

#[test]
fn record_that_was_set_aside_is_sent_again_under_a_number_that_is_high_enough() {
    // The upload queue was lost, and the clock is behind.
    let taking = Arc::new(Taking::default());
    taking.last.lock().unwrap().insert("POST /1/10/log".into(), 1 << 60);
    let (taker, bad) = (taking.clone(), Arc::new(AtomicBool::new(true)));
    let gate = bad.clone();
    let stage = Stage::new(move |asked| match gate.load(Ordering::Relaxed) && asked.line.ends_with("/log") {
        true => page(403),
        false => taker.take(asked),
    });
    push_records(&stage, std::iter::once(json!({"id": 1, "jobid": "j", "data": "x"})));
    stage.poll();
    let sender = stage.start();
    while stage.upload_queue.asides("main", Kind::Log).unwrap().is_empty() {
        thread_yield();
    }
    bad.store(false, Ordering::Relaxed);
    while !stage.upload_queue.asides("main", Kind::Log).unwrap().is_empty() {
        thread_yield();
    }
    drop(sender);
    assert_eq!(taking.has().len(), 1);
}

#[test]
fn event_that_a_proxy_forbids_holds_up_no_other() {
    let stage = Stage::new(|asked| match asked.body.contains("attack") && !asked.body.contains("delivery_refused") {
        true => page(403),
        _ if asked.line.starts_with("GET") => (204, String::new(), String::new()),
        _ => ok(),
    });
    stage.upload_queue.push_event(None, "attack", json!({}));
    stage.upload_queue.push_event(None, "startup", json!({}));
    stage.poll();
    let sender = stage.start();
    stage.until_event("startup");
    assert!(stage.until_event("delivery_refused")["item"].as_str().unwrap().starts_with("the event attack"));
    drop(sender);
}

#[test]
fn job_store_that_cannot_be_read_is_told_and_holds_up_no_other_lane() {
    let stage = Stage::new(|_| ok());
    stage.results(&ids(&["a"]));
    let other = rusqlite::Connection::open(stage._dir.path().join(crate::storage::job_store::FILE)).unwrap();
    other.execute_batch("ALTER TABLE jobs RENAME COLUMN result TO away").unwrap();
    stage.upload_queue.push_stats(5, &[("k".into(), 1.5)]);
    let sender = stage.start();
    let event = stage.until_event("local_fault");
    assert_eq!(event["what"], "ledger");
    assert!(event["error"].as_str().unwrap().starts_with("the job store cannot be read: "), "{event}");
    stage.until_sent(Kind::Stats);
    other.execute_batch("ALTER TABLE jobs RENAME COLUMN away TO result").unwrap();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.events("local_fault").len(), 1);
}

#[test]
fn upload_queue_that_cannot_be_read_is_told_and_holds_up_no_results() {
    let stage = Stage::new(|_| ok());
    stage.upload_queue.push_event(None, "startup", json!({}));
    let other = rusqlite::Connection::open(stage._dir.path().join(crate::storage::upload_queue::FILE)).unwrap();
    other.execute_batch("UPDATE items SET batch = 'x'").unwrap();
    stage.results(&ids(&["a"]));
    let sender = stage.start();
    stage.until_nothing_waits();
    assert_eq!(stage.until_event("local_fault")["what"], "outbox");
    stage.results(&ids(&["b"]));
    sender.waker().try_send(()).unwrap();
    stage.until_nothing_waits();
    drop(sender);
}

#[test]
fn result_that_was_sent_and_cannot_be_marked_is_not_sent_again() {
    let stage = Stage::new(|_| ok());
    stage.results(&ids(&["a"]));
    let other = rusqlite::Connection::open(stage._dir.path().join(crate::storage::job_store::FILE)).unwrap();
    let trigger = "CREATE TRIGGER full BEFORE UPDATE ON jobs WHEN old.state = 2 BEGIN SELECT raise(ABORT, 'full'); END";
    other.execute_batch(trigger).unwrap();
    let sender = stage.start();
    assert_eq!(stage.until_event("local_fault")["what"], "sent results");
    other.execute_batch("DROP TRIGGER full").unwrap();
    stage.results(&ids(&["b"]));
    sender.waker().try_send(()).unwrap();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.posted(), [vec!["a"], vec!["b"]]);
}

#[test]
fn keys_of_a_file_that_was_replaced_hold_up_no_result_of_the_new_one() {
    let stage = Stage::new(|asked| match asked.body.contains("\"bad\"") && asked.line.ends_with("/result") {
        true => page(403),
        false => ok(),
    });
    let path = stage._dir.path().join(crate::storage::job_store::FILE);
    stage.results(&ids(&["a", "bad"]));
    stage.controller.post("event", b"{}").unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    let full = "CREATE TRIGGER full BEFORE UPDATE ON jobs WHEN old.state = 2 BEGIN SELECT raise(ABORT, 'full'); END";
    other.execute_batch(full).unwrap();
    let sender = stage.start();
    // The one was sent and cannot be marked, the other is set aside.
    assert_eq!(stage.until_event("local_fault")["what"], "sent results");
    while !stage.posted().iter().any(|ids| *ids == ["bad"]) {
        thread_yield();
    }
    other.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    stage.job_store.rest();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    let counter = u32::from_be_bytes(bytes[24..28].try_into().unwrap()) + 1;
    bytes[24..28].copy_from_slice(&counter.to_be_bytes());
    // In place: a file that is cut off for a moment is another fault.
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    drop(other);
    // The new file begins with the keys that the old one began with.
    while stage.job_store.generation() == 0 {
        stage.job_store.rest();
        let _ = stage.job_store.knows("a");
        thread_yield();
    }
    stage.results(&ids(&["c", "d"]));
    // A waker that is full has woken it already.
    let _ = sender.waker().try_send(());
    stage.until_nothing_waits();
    drop(sender);
    let posted = stage.posted();
    for id in ["c", "d"] {
        assert_eq!(posted.iter().flatten().filter(|sent| *sent == id).count(), 1, "{posted:?}");
    }
}

#[test]
fn memory_is_given_back_once_and_nothing_is_read_until_something_is_due() {
    let (wake, woken) = bounded(1);
    let (begin, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
    let rests = std::cell::Cell::new(0);
    let rest = || rests.set(rests.get() + 1);
    let due = begin + Duration::from_millis(50);
    assert!(wait(&woken, Some(due), Some(begin), rest));
    assert!(Instant::now() >= due, "it looked before something was due");
    assert_eq!(rests.get(), 1);
    // Work that comes first keeps the memory for itself.
    wake.send(()).unwrap();
    assert!(!wait(&woken, None, Some(later), rest));
    assert!(!wait(&woken, Some(begin), Some(later), rest));
    // Woken while it rests.
    assert!(wait(&woken, None, Some(begin), || wake.send(()).unwrap()));
    assert_eq!(rests.get(), 1);
}
