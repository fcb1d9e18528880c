//! A whole sender with a real job store and upload queue, against a controller for tests.

mod local_faults;
mod order;
mod refused;

use super::*;
use crate::config::{Config, Overrides};
use crate::storage::job_store::JobUpdate;
use crate::uplink::test_controller::{Answer, Asked, TestController};
use serde_json::{Value, json};
use std::sync::Mutex;

struct Stage {
    _dir: tempfile::TempDir,
    job_store: Arc<JobStore>,
    upload_queue: Arc<UploadQueue>,
    seen: Arc<Mutex<Vec<Asked>>>,
    fake: TestController,
    controller: Arc<Controller>,
}

impl Stage {
    fn new(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let seen: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let log = seen.clone();
        let fake = TestController::start(move |asked| {
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
