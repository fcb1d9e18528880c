//! The supervisor with real processes, without controllers. Here: a node, its lives, and ways to wait.

mod commands;
mod crowd;
mod ends;
mod memory;
mod read_only;
mod restarts;
mod runs;
mod sync;
mod trouble;
#[cfg(unix)]
mod watches;

use super::*;
use crate::job::JobState;
use crate::stats;
use crate::storage::job_store::{JobStore, JobUpdate};
use crate::storage::{message_log, upload_queue};
use crate::stream::{Post, Streams};
use crossbeam_channel::Receiver;
use jscommon::{JobResult, State};
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(30);

/// One node: its folder outlives its agents.
struct Node {
    dir: TempDir,
    /// Where live output goes.
    post: Option<Arc<dyn Post>>,
}

/// One life of its agent.
struct Life {
    handle: Option<Handle>,
    job_store: Arc<JobStore>,
    config: Arc<Config>,
    _message_log: message_log::Handle,
    _stats: stats::Handle,
    notices: Receiver<Notice>,
    results: std::cell::RefCell<Vec<JobResult>>,
}

impl Node {
    fn new() -> Node {
        Node { dir: tempfile::tempdir().unwrap(), post: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn live(&self) -> Life {
        self.live_with(|_| {})
    }

    fn live_with(&self, change: impl FnOnce(&mut Config)) -> Life {
        let mut config = Config::default();
        config.main.gid = 1;
        config.main.nid = 10;
        config.main.data_dir = self.dir.path().join("data");
        std::fs::create_dir_all(&config.main.data_dir).unwrap();
        change(&mut config);
        let config = Arc::new(config);
        let upload_queue = upload_queue::UploadQueue::open(&config).unwrap();
        let job_store = JobStore::open(&config.main.data_dir).unwrap();
        let message_log = message_log::Handle::start(&config, upload_queue.clone()).unwrap();
        let stats = stats::Handle::start(&config, upload_queue).unwrap();
        let (tell, notices) = unbounded();
        let mut builtins = crate::commands::Context::new(config.clone());
        let post = self.post.iter().map(|post| ("main".to_owned(), post.clone()));
        builtins.streams = self.post.is_some().then(|| Streams::start(&config.main.data_dir, post));
        let handle = Handle::start(Parts {
            config: config.clone(),
            job_store: job_store.clone(),
            outlets: Outlets { message_log: message_log.inlet(), stats: stats.inlet() },
            builtins: Arc::new(builtins),
            notify: Arc::new(move |notice| drop(tell.send(notice))),
        })
        .unwrap();
        let results = std::cell::RefCell::default();
        Life { handle: Some(handle), job_store, config, _message_log: message_log, _stats: stats, notices, results }
    }
}

impl Life {
    fn remote(&self) -> Remote {
        self.handle.as_ref().unwrap().remote()
    }

    fn push(&self, commands: Value) {
        self.submit(commands).0.recv_timeout(LONG).unwrap();
    }

    fn submit(&self, commands: Value) -> (Receiver<()>, Receiver<()>) {
        let Value::Array(commands) = commands else { return self.submit(json!([commands])) };
        let commands = commands.into_iter().map(|mut command| {
            command["gid"] = 1.into();
            command["nid"] = 10.into();
            Command::from_value(command).unwrap()
        });
        self.remote().submit("main", commands.collect())
    }

    fn shell(&self, id: &str, script: &str, more: Value) {
        let mut args = json!({"cmd": "/bin/sh", "args": ["-c", script]});
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.push(json!({"id": id, "cmd": "execute", "args": args}));
    }

    fn ask(&self, id: &str, cmd: &str, data: Value) -> JobResult {
        self.push(json!({"id": id, "cmd": cmd, "data": data}));
        self.result(id)
    }

    /// The answer of `get_schedules`.
    #[track_caller]
    fn schedules(&self) -> Vec<Value> {
        let id = format!("s{}", fastrand::u64(..));
        serde_json::from_str(&self.ask(&id, "get_schedules", json!("")).data).unwrap()
    }

    /// Waits for the next result of this job.
    #[track_caller]
    fn result(&self, id: &str) -> JobResult {
        until(&format!("a result of {id}"), || {
            self.gather();
            let mut results = self.results.borrow_mut();
            let index = results.iter().position(|result| result.id == id)?;
            Some(results.remove(index))
        })
    }

    fn gather(&self) {
        let unsent = self.job_store.unsent("main", 1000, usize::MAX).unwrap();
        let keys: Vec<i64> = unsent.iter().map(|unsent| unsent.key).collect();
        self.job_store.mark_sent(0, &keys).unwrap();
        self.results
            .borrow_mut()
            .extend(unsent.iter().map(|unsent| serde_json::from_str::<JobResult>(&unsent.json).unwrap()));
    }

    #[track_caller]
    fn event(&self, wanted: &str) -> Value {
        until(&format!("an event {wanted}"), || match self.notices.recv_timeout(LONG) {
            Ok(Notice::Event { name, data, .. }) if name == wanted => Some(data),
            _ => None,
        })
    }

    /// Counts the events `duplicate` among the notices given so far.
    fn duplicates(&self) -> usize {
        self.notices.try_iter().filter(|notice| matches!(notice, Notice::Event { name: "duplicate", .. })).count()
    }

    #[track_caller]
    fn wait_running(&self, id: &str) -> ProcessEntry {
        until(&format!("{id} to run"), || self.remote().process(id).filter(|entry| entry.pid != 0))
    }

    fn stop(mut self) -> Vec<JobResult> {
        drop(self.handle.take());
        self.gather();
        self.results.take()
    }
}

#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < LONG, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lives(pid: u32) -> bool {
    process_tree::processes().iter().any(|process| process.pid == pid && !process.dead)
}

#[track_caller]
fn pid_in(node: &Node, name: &str) -> u32 {
    until(&format!("a pid in {name}"), || node.read(name).lines().next().and_then(|line| line.parse().ok()))
}
