//! A poller against a controller for tests, with a supervisor of one line.

use super::*;
use crate::config::{Config, Overrides};
use crate::storage::job_store::JobUpdate;
use crate::uplink::test_controller::{Answer, Asked, TestController};
use crossbeam_channel::{bounded, unbounded};
use std::sync::Mutex;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);

struct Stage {
    _dir: tempfile::TempDir,
    job_store: Arc<JobStore>,
    controller: Arc<Controller>,
    /// The lines of the requests, as they came.
    asked: Receiver<String>,
    /// The commands as they were handed over, each with the way to say that they are stored.
    submitted: Receiver<(Vec<String>, Sender<()>)>,
    /// For each batch the channel that is open until the results of what only looks are taken.
    untaken: Receiver<Sender<()>>,
    /// The wishes that these are stored.
    wishes: Receiver<Sender<()>>,
    submit: Mutex<Option<(Submit, StoreReadOnly)>>,
    upload_queue: Arc<UploadQueue>,
    polling: Option<Sender<()>>,
}

impl Stage {
    fn new(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Stage {
        let (tell, asked) = unbounded();
        let fake = TestController::start(move |request| {
            let _ = tell.send(request.line.clone());
            answer(request)
        });
        let dir = tempfile::tempdir().unwrap();
        let overrides = Overrides {
            gid: Some(1),
            nid: Some(10),
            controller: Some(fake.url.clone()),
            data_dir: Some(dir.path().into()),
            ..Overrides::default()
        };
        // Its thread serves on for as long as the test runs.
        std::mem::forget(fake);
        let config = Config::parse("", &overrides).unwrap();
        let ((hand, submitted), (keep, untaken), (wish, wishes)) = (unbounded(), unbounded(), unbounded());
        let submit: Submit = Box::new(move |commands: Vec<Command>| {
            let ((stored, told), (open, taken)) = (bounded(1), bounded(0));
            let ids: Vec<String> = commands.into_iter().map(|command| command.id).collect();
            if ids.iter().any(|id| id == "look") {
                keep.send(open).unwrap();
            }
            hand.send((ids, stored)).unwrap();
            (told, taken)
        });
        let store: StoreReadOnly = Box::new(move || {
            let (stored, told) = bounded(1);
            wish.send(stored).unwrap();
            told
        });
        Stage {
            job_store: JobStore::open(dir.path()).unwrap(),
            upload_queue: UploadQueue::open(&config).unwrap(),
            controller: Arc::new(Controller::open(&config, "main", "i").unwrap()),
            _dir: dir,
            asked,
            submitted,
            untaken,
            wishes,
            submit: Mutex::new(Some((submit, store))),
            polling: None,
        }
    }

    fn start(&mut self) {
        let (polling, stop) = bounded(0);
        let (submit, store_read_only) = self.submit.lock().unwrap().take().unwrap();
        let parts = Parts {
            controller: self.controller.clone(),
            submit,
            store_read_only,
            job_store: self.job_store.clone(),
            upload_queue: self.upload_queue.clone(),
            startup: json!({}),
            sender: bounded(1).0,
            stop,
        };
        start(parts).unwrap();
        self.polling = Some(polling);
    }

    fn next(&self) -> String {
        self.asked.recv_timeout(LONG).expect("a request")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(self.polling.take());
        self.controller.stop_polls();
    }
}

/// One batch of these commands to the first who asks, and then nothing.
fn once(body: &'static str) -> impl Fn(&Asked) -> Answer + Send + Sync {
    let given = Mutex::new(false);
    move |asked| {
        let mut given = given.lock().unwrap();
        match *given && asked.line.contains("ack=") {
            true => {
                // Later polls wait, as at a real controller.
                drop(given);
                thread::sleep(Duration::from_millis(200));
                (204, String::new(), String::new())
            }
            false => {
                *given = true;
                (200, String::new(), body.to_owned())
            }
        }
    }
}

const BATCH: &str = r#"{"batch": "5", "cmds": [{"id": "a", "gid": 1, "nid": 10, "cmd": "ping"}, {"cmd": 5},
    {"id": "b", "cmd": "ping"}]}"#;

#[test]
fn a_batch_is_acknowledged_only_once_it_is_stored() {
    let mut stage = Stage::new(once(BATCH));
    stage.start();
    assert!(!stage.next().contains("ack="));
    let (ids, stored) = stage.submitted.recv_timeout(LONG).unwrap();
    assert_eq!(ids, ["a", "b"], "what is no command holds up nothing");
    assert!(stage.asked.try_recv().is_err(), "it asks for nothing before the batch is stored");
    stored.send(()).unwrap();
    assert!(stage.next().contains("&ack=5&"));
    let event = crate::storage::upload_queue::Kind::Event;
    assert!(String::from_utf8(stage.upload_queue.next("main", event).unwrap().body).unwrap().contains("bad_command"));
}

#[test]
fn batch_that_cannot_be_stored_is_not_acknowledged() {
    let mut stage = Stage::new(once(BATCH));
    stage.start();
    stage.next();
    let (_, stored) = stage.submitted.recv_timeout(LONG).unwrap();
    drop(stored);
    assert!(!stage.next().contains("ack="), "and it comes again");
    stage.submitted.recv_timeout(LONG).unwrap();
}

#[test]
fn commands_that_wait_to_be_stored_are_told_and_acknowledged_once_they_are() {
    let batch = once(BATCH);
    let mut stage = Stage::new(move |asked| match asked.line.starts_with("POST") {
        true => (200, String::new(), "{}".to_owned()),
        false => batch(asked),
    });
    stage.start();
    stage.next();
    let (_, stored) = stage.submitted.recv_timeout(LONG).unwrap();
    assert!(stage.next().starts_with("POST /1/10/event"), "the controller is told while they wait");
    stored.send(()).unwrap();
    assert!(stage.next().contains("&ack=5&"));
}

#[test]
fn it_comes_back_after_failures_and_keeps_its_acknowledgement() {
    let tries = Mutex::new(0);
    let mut stage = Stage::new(move |_| {
        let mut tries = tries.lock().unwrap();
        *tries += 1;
        match *tries {
            1 => (200, String::new(), BATCH.to_owned()),
            2 => (503, String::new(), r#"{"error": "Redis is away"}"#.to_owned()),
            3 => (500, String::new(), String::new()),
            4 => (200, String::new(), "no JSON".to_owned()),
            _ => (204, String::new(), String::new()),
        }
    });
    stage.start();
    stage.next();
    let (_, stored) = stage.submitted.recv_timeout(LONG).unwrap();
    stored.send(()).unwrap();
    for _ in 0..4 {
        assert!(stage.next().contains("ack=5"));
    }
    while stage.next().contains("ack=5") {}
}

#[test]
fn results_that_pile_up_stop_the_taking() {
    let mut stage = Stage::new(|_| (204, String::new(), String::new()));
    let result = "x".repeat(MAX_UNSENT as usize / 4 + 1);
    let mut writes = Vec::new();
    for id in ["a", "b", "c", "d"] {
        let (id, command) = (id.to_owned(), String::new());
        writes.push(JobUpdate::Accept { id: id.clone(), controller: "main".into(), command, now: 1 });
        writes.push(JobUpdate::Finish { id, result: Some(result.clone()), deferred_sync: false });
    }
    stage.job_store.commit(&writes).unwrap();
    stage.start();
    assert!(stage.asked.recv_timeout(FULL_PAUSE * 2).is_err(), "it asked while too much waits");
    let first = stage.job_store.unsent("main", 1, 1).unwrap();
    stage.job_store.mark_sent(0, &[first[0].key]).unwrap();
    stage.next();
}

const LOOK: &str = r#"{"batch": "6", "cmds": [{"id": "look", "cmd": "ping"}]}"#;

/// A poller that waits for the result of a command that only looks, until what is returned beside it is closed.
fn with_untaken_result() -> (Stage, Sender<()>) {
    let mut stage = Stage::new(once(LOOK));
    stage.start();
    assert!(!stage.next().contains("ack="));
    stage.submitted.recv_timeout(LONG).unwrap().1.send(()).unwrap();
    let open = stage.untaken.recv_timeout(LONG).unwrap();
    (stage, open)
}

#[test]
fn batch_of_what_only_looks_is_acknowledged_once_its_results_are_taken() {
    let (stage, open) = with_untaken_result();
    assert!(stage.asked.recv_timeout(Duration::from_millis(200)).is_err(), "it is not acknowledged");
    drop(open);
    assert!(stage.next().contains("ack=6"));
    assert!(stage.wishes.is_empty());
}

#[test]
fn results_that_are_not_taken_in_time_are_stored_before_the_acknowledgement() {
    let (stage, _open) = with_untaken_result();
    let stored = stage.wishes.recv_timeout(LONG).unwrap();
    assert!(stage.asked.recv_timeout(Duration::from_millis(200)).is_err(), "it is not acknowledged");
    stored.send(()).unwrap();
    assert!(stage.next().contains("ack=6"));
}

#[test]
fn results_that_can_neither_be_sent_nor_stored_are_not_acknowledged() {
    let (stage, _open) = with_untaken_result();
    drop(stage.wishes.recv_timeout(LONG).unwrap());
    assert!(!stage.next().contains("ack="), "the next poll brings it again");
}
