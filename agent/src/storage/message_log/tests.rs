//! The message log on real files.

mod faults;
mod follow;
mod records;
mod rotation;

use super::*;
use crate::storage::upload_queue::Kind;
use jscommon::Record;
use rusqlite::Connection;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

struct Bench {
    dir: TempDir,
    config: Config,
    upload_queue: Arc<UploadQueue>,
    handle: Option<Handle>,
}

impl Bench {
    fn start(change: impl FnOnce(&mut Config)) -> Bench {
        let dir = TempDir::new().unwrap();
        let mut config = Config::default();
        config.main.data_dir = dir.path().to_owned();
        (config.main.gid, config.main.nid) = (3, 4);
        config.controllers.insert("main".into(), crate::config::Controller::default());
        change(&mut config);
        let upload_queue = UploadQueue::open(&config).unwrap();
        let handle = Handle::start(&config, Arc::clone(&upload_queue)).unwrap();
        Bench { dir, config, upload_queue, handle: Some(handle) }
    }

    fn restart(&mut self) {
        self.handle = None;
        self.handle = Some(Handle::start(&self.config, Arc::clone(&self.upload_queue)).unwrap());
    }

    fn stop(&mut self) {
        self.handle = None;
    }

    fn remote(&self) -> LogReader {
        self.handle.as_ref().unwrap().remote()
    }

    fn push(&self, source: &Arc<JobLabel>, epoch: i64, messages: &[(u8, &str)]) {
        let mut batch = Batch::new(source, epoch, 0);
        for (level, text) in messages {
            batch.push(*level, text);
        }
        self.handle.as_ref().unwrap().inlet().push(batch);
    }

    fn get(&self, query: &Query) -> Vec<Record> {
        self.remote().get(query).unwrap()
    }

    fn texts(&self, query: &Query) -> Vec<String> {
        self.get(query).into_iter().map(|record| record.data).collect()
    }

    fn logs(&self) -> std::path::PathBuf {
        self.dir.path().join("logs")
    }

    fn current(&self) -> std::path::PathBuf {
        self.logs().join("current.db")
    }

    /// Everything that was forwarded, as JSON records.
    fn forwarded(&self) -> Vec<Record> {
        let mut all = Vec::new();
        self.upload_queue.close_log();
        while let Some(batch) = self.upload_queue.next("main", Kind::Log) {
            let body: serde_json::Value = serde_json::from_slice(&batch.body).unwrap();
            let records: Vec<Record> = serde_json::from_value(body["records"].clone()).unwrap();
            all.extend(records);
            self.upload_queue.taken("main", Kind::Log, batch.number);
        }
        all
    }
}

/// Runs `work` on a thread that sees a file system of its own at `dir`, and so do the threads that it starts.
#[cfg(target_os = "linux")]
fn on_tmpfs(dir: &Path, options: &str, work: impl FnOnce() + Send + 'static) {
    let (dir, options) = (dir.to_owned(), options.to_owned());
    let run = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("mount namespaces need root");
        let mount = |args: &[&str]| {
            let done = std::process::Command::new("mount").args(args).status().expect("mount");
            assert!(done.success(), "mount {args:?}");
        };
        mount(&["--make-rprivate", "/"]);
        mount(&["-t", "tmpfs", "-o", &options, "tmpfs", dir.to_str().unwrap()]);
        work();
    };
    std::thread::spawn(run).join().unwrap();
}

fn source(jobid: &str, db: &str, ac: &str) -> Arc<JobLabel> {
    Arc::new(JobLabel {
        jobid: jobid.into(),
        domain: "dom".into(),
        name: "nam".into(),
        db: LevelSet::parse(db).unwrap(),
        ac: LevelSet::parse(ac).unwrap(),
        stats_interval: None,
    })
}

fn ids(records: &[Record]) -> Vec<u32> {
    records.iter().map(|record| record.id).collect()
}

fn sql(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn databases(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".db")).collect();
    names.sort();
    names
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Changes the connection or the tables of the database that is written to.
fn execute(bench: &Bench, sql: &'static str) {
    bench.remote().on_writer(move |store| store.current().0.execute_batch(sql).unwrap()).unwrap();
}

fn by_level(levels: &str) -> Query {
    Query { levels: Some(LevelSet::parse(levels).unwrap()), ..Query::default() }
}

fn events(bench: &Bench) -> Vec<serde_json::Value> {
    std::iter::from_fn(|| {
        let event = bench.upload_queue.next("main", Kind::Event)?;
        bench.upload_queue.taken("main", Kind::Event, event.number);
        serde_json::from_slice(&event.body).ok()
    })
    .collect()
}
