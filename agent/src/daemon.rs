//! The agent as a whole: what is started in which order, and ended in which.
//!
//! Owns the handle of every part. Holds no rules of its own: signals come from [`crate::platform`], jobs are the
//! supervisor's, the way to the controllers the pollers' and senders'.
//!
//! Start: lock of the data folder, controllers (their credentials are read, nothing is asked),
//! upload queue, job store, logger, stats, supervisor, monitor, uploaders, pollers.
//! Stop: pollers, supervisor (jobs end, their results are stored), monitor, stats, logger (their last
//! batches are in the upload queue), an event to the controllers, senders (a last round within their deadline).

use crate::commands::{self, info};
use crate::config::Config;
use crate::job::JobLabel;
use crate::output::Outlets;
use crate::storage::job_store::JobStore;
use crate::storage::message_log;
use crate::storage::upload_queue::UploadQueue;
use crate::stream::{Post, Streams};
use crate::supervisor::{self, Notice};
use crate::uplink::{Controller, poller, uploader};
use crate::{monitor, platform, script, stats, trusted_paths};
use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, Sender, bounded, never, select, tick, unbounded};
use jscommon::worker::Worker;
use jscommon::{level, notify};
use serde_json::json;
use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long an agent of which a thread has failed takes to end its jobs, at most.
const LONGEST_END: Duration = Duration::from_secs(90);

/// Runs the agent until a signal or a `restart` ends it; `ready` is called once it serves.
pub(crate) fn run(config: Config, ready: &dyn Fn()) -> Result<()> {
    let signals = platform::stop_signals().context("cannot take signals")?;
    let (_lock, tightened) = lock(&config)?;
    let failed = watch_threads();
    let daemon = Daemon::start(config, tightened)?;
    notify::ready();
    ready();
    let watchdog = notify::watchdog().map_or_else(never, tick);
    let mut pong = never();
    loop {
        select! {
            recv(signals) -> name => {
                log::info!("stopping on signal {}", name.unwrap_or("?"));
                break;
            }
            recv(daemon.restart) -> told => match told {
                Ok(()) => {
                    log::info!("stopping, to be started again");
                    break;
                }
                // Only a supervisor that died closes this; who starts the agent again starts a whole one.
                Err(_) => {
                    let why = failed.try_recv().unwrap_or_else(|_| "the supervisor has ended".to_owned());
                    return Err(fail(&why));
                }
            },
            recv(failed) -> why => return Err(fail(&why.unwrap_or_default())),
            // The service manager hears of a life that counts: the supervisor's. It answers nothing by
            // dropping the question (a full disk, say), and that is an answer too.
            recv(watchdog) -> _ => pong = daemon.supervisor.remote().submit("", Vec::new()).0,
            recv(pong) -> _ => {
                pong = never();
                notify::alive();
            }
        }
    }
    notify::stopping();
    daemon.stop();
    log::info!("stopped");
    Ok(())
}

/// Tells of the first thread that panics from now on. A panic on a thread that answers a command is not
/// told: it is that command's answer.
fn watch_threads() -> Receiver<String> {
    let (tell, failed) = bounded(1);
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
        let payload = panic.payload_as_str().unwrap_or("no reason is known");
        log::error!("the thread '{name}' panicked{place}: {payload}");
        if name != supervisor::COMMAND_THREAD {
            let _ = tell.try_send(format!("the thread '{name}' has failed: the agent ends, to be started again"));
        }
    }));
    failed
}

/// Returns the error that the agent ends with after a thread has failed. Its end is then bounded.
fn fail(why: &str) -> anyhow::Error {
    log::error!("{why}");
    let end = || {
        std::thread::sleep(LONGEST_END);
        std::process::exit(1);
    };
    let _ = std::thread::Builder::new().name("end".into()).stack_size(64 * 1024).spawn(end);
    anyhow::anyhow!("{why}")
}

/// The handles of all rooms. Dropping a handle ends its room and waits for it, and fields are dropped
/// from the first to the last: their order is the order of the stop.
struct Daemon {
    /// Closed to stop the pollers.
    polling: Sender<()>,
    restart: Receiver<()>,
    supervisor: supervisor::Handle,
    _last_streams: LastStreams,
    _monitor: monitor::Handle,
    _stats: stats::Handle,
    _message_log: message_log::Handle,
    shutdown_event: ShutdownEvent,
    _uploaders: Vec<uploader::Handle>,
    controllers: Vec<Arc<Controller>>,
}

/// Sends, when it goes, what jobs wrote last: they have ended by then.
struct LastStreams(Arc<Streams>);

impl Drop for LastStreams {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Tells the controllers, when it goes, that the agent has stopped and was not lost.
struct ShutdownEvent {
    upload_queue: Arc<UploadQueue>,
    instance: String,
    /// Whether it is said: only by an agent that ends in order, and not by one that a fault takes down.
    said: bool,
}

impl Drop for ShutdownEvent {
    fn drop(&mut self) {
        if self.said {
            self.upload_queue.push_event(None, "shutdown", json!({"instance": self.instance}));
        }
    }
}

impl Daemon {
    fn start(config: Config, tightened: Vec<String>) -> Result<Daemon> {
        let config = Arc::new(config);
        let instance = format!("{:016x}", fastrand::u64(..));
        let controllers: Vec<Arc<Controller>> = config
            .controllers
            .keys()
            .map(|name| Controller::open(&config, name, &instance).map(Arc::new))
            .collect::<Result<_>>()?;
        let upload_queue = UploadQueue::open(&config)?;
        let job_store = JobStore::open(&config.main.data_dir)?;
        job_store.controllers(config.controllers.keys().map(String::as_str))?;
        let message_log = message_log::Handle::start(&config, upload_queue.clone())?;
        let stats = stats::Handle::start(&config, upload_queue.clone())?;

        job_store.on_damage(tell_damage(&config, upload_queue.clone(), message_log.inlet()));
        let mut builtins = commands::Context::new(config.clone());
        builtins.message_log = Some(message_log.remote());
        builtins.controllers = controllers.clone();
        let origins = controllers.iter().map(|controller| controller.clone() as Arc<dyn script::ScriptSource>);
        builtins.scripts = Arc::new(script::Store::new(&config, origins.collect()));
        let posts = controllers.iter().map(|known| (known.name().to_owned(), known.clone() as Arc<dyn Post>));
        let streams = Streams::start(&config.main.data_dir, posts);
        builtins.streams = Some(streams.clone());
        let wakers: Arc<OnceLock<HashMap<String, Sender<()>>>> = Arc::default();
        let (tell_restart, restart) = unbounded();
        let supervisor = supervisor::Handle::start(supervisor::Parts {
            config: config.clone(),
            job_store: job_store.clone(),
            outlets: Outlets { message_log: message_log.inlet(), stats: stats.inlet() },
            builtins: Arc::new(builtins),
            notify: Arc::new(notify(upload_queue.clone(), message_log.inlet(), wakers.clone(), tell_restart)),
        })?;
        let monitor = monitor::start(&config, supervisor.remote(), stats.inlet())?;

        let startup = info::startup(&config, &instance);
        upload_queue.push_event(None, "startup", startup.clone());
        let (paths, events) = (config.clone(), upload_queue.clone());
        let warn = move || {
            for fault in tightened.into_iter().chain(trusted_paths::warned(&paths)) {
                log::warn!("{fault}");
                events.push_event(None, "insecure_path", json!({"message": fault}));
            }
        };
        // A program or a script may lie on a file system that does not answer, and the start waits for none.
        Worker::spawn("paths", 128 * 1024, warn).context("cannot start the look at paths")?.detach();
        let uploaders: Vec<uploader::Handle> = controllers
            .iter()
            .map(|controller| uploader::Handle::start(controller.clone(), job_store.clone(), upload_queue.clone()))
            .collect::<std::io::Result<_>>()
            .context("cannot start a sender")?;
        let by_name = || controllers.iter().map(|controller| controller.name().to_owned());
        let _ = wakers.set(by_name().zip(uploaders.iter().map(uploader::Handle::waker)).collect());
        // Items of earlier notices are stored, and each sender looks at everything stored once more.
        for uploader in &uploaders {
            let _ = uploader.waker().try_send(());
        }
        let (polling, stop) = bounded(0);
        for (controller, sender) in controllers.iter().zip(&uploaders) {
            let (remote, name) = (supervisor.remote(), controller.name().to_owned());
            let (storing, of) = (remote.clone(), name.clone());
            poller::start(poller::Parts {
                controller: controller.clone(),
                submit: Box::new(move |commands| remote.submit(&name, commands)),
                store_read_only: Box::new(move || storing.store_read_only(&of)),
                job_store: job_store.clone(),
                upload_queue: upload_queue.clone(),
                startup: startup.clone(),
                sender: sender.waker(),
                stop: stop.clone(),
            })
            .context("cannot start a poller")?;
        }
        let node = config.main.node();
        log::info!("agent {node} is up, its controllers: {}", by_name().collect::<Vec<_>>().join(", "));
        Ok(Daemon {
            polling,
            restart,
            supervisor,
            _last_streams: LastStreams(streams),
            _monitor: monitor,
            _stats: stats,
            _message_log: message_log,
            shutdown_event: ShutdownEvent { upload_queue, instance, said: false },
            _uploaders: uploaders,
            controllers,
        })
    }

    fn stop(mut self) {
        self.shutdown_event.said = true;
        drop(self.polling);
        self.controllers.iter().for_each(|controller| controller.stop_polls());
    }
}

/// Returns the function that acts on the supervisor's notices. It runs on the threads of the supervisor and the
/// pollers, so it never waits. The message log's thread does its writes to the upload queue, and ends after the supervisor.
fn notify(
    upload_queue: Arc<UploadQueue>,
    message_log: message_log::Inlet,
    wakers: Arc<OnceLock<HashMap<String, Sender<()>>>>,
    restart: Sender<()>,
) -> impl Fn(Notice) + Send + Sync {
    move |notice| match notice {
        Notice::Result { controller } => {
            if let Some(wake) = wakers.get().and_then(|wakers| wakers.get(&controller)) {
                let _ = wake.try_send(());
            }
        }
        Notice::Event { controller, name, data } => {
            let upload_queue = upload_queue.clone();
            message_log.then(move || upload_queue.push_event(controller.as_deref(), name, data));
        }
        Notice::Idle => {
            let upload_queue = upload_queue.clone();
            message_log.rest(move || upload_queue.rest());
        }
        Notice::Restart => {
            let _ = restart.send(());
        }
    }
}

/// Tells that the job store was found damaged: on the node, and to the controllers. Waits for nothing.
fn tell_damage(
    config: &Config,
    upload_queue: Arc<UploadQueue>,
    message_log: message_log::Inlet,
) -> impl Fn(&str) + Send + Sync + use<> {
    let source = Arc::new(JobLabel::of_job_store(config.logging.db.levels, config.logging.ac.levels));
    move |damage| {
        message_log.write(&source, level::CRITICAL, damage);
        let (upload_queue, data) = (upload_queue.clone(), json!({"message": damage}));
        message_log.then(move || upload_queue.push_event(None, "critical", data));
    }
}

/// Returns why there can be no data folder at `path`: what is there, or a step on the way to it, is no folder.
pub(crate) fn data_dir_fault(path: &Path) -> Option<String> {
    let found = path.ancestors().find(|step| step.symlink_metadata().is_ok())?;
    let what = match found.metadata() {
        Ok(meta) if meta.is_dir() => return None,
        Ok(_) => "is no folder",
        Err(error) if error.kind() == ErrorKind::NotFound => "is a link to a place that is not there",
        // Other faults are reported when the folder is used.
        Err(_) => return None,
    };
    let shown = found.display();
    Some(format!(
        "the data folder cannot be {}: {shown} {what}; name another data_dir, or move it away",
        path.display()
    ))
}

/// Makes the data folder and takes its lock: one agent owns it, for as long as the file is open. Returns the rights that
/// it has taken from others, too.
fn lock(config: &Config) -> Result<(File, Vec<String>)> {
    let data_dir = &config.main.data_dir;
    let what = || format!("cannot use the data folder {}", data_dir.display());
    if let Some(fault) = data_dir_fault(data_dir) {
        bail!(fault);
    }
    platform::make_private_dir(data_dir).with_context(what)?;
    let mut refused: Vec<String> = trusted_paths::refused_entries(config).into_iter().collect();
    let tightened = if refused.is_empty() { trusted_paths::tighten(config) } else { Vec::new() };
    refused.extend(trusted_paths::refused(config));
    if !refused.is_empty() {
        bail!(refused.join("; "));
    }
    let path = data_dir.join("lock");
    let mut file =
        fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).with_context(what)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            bail!("another agent (process {}) owns {}; stop it, or give --data-dir", pid.trim(), data_dir.display());
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(what),
    }
    // Only for people and the sentence above; the lock itself is the file's.
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(what)?;
    Ok((file, tightened))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::upload_queue::Kind;

    #[test]
    fn shutdown_event_is_sent_by_an_agent_that_ends_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.main.data_dir = dir.path().to_path_buf();
        config.controllers.insert("main".into(), Default::default());
        let upload_queue = UploadQueue::open(&config).unwrap();
        for said in [false, true] {
            drop(ShutdownEvent { upload_queue: upload_queue.clone(), instance: "1".into(), said });
            assert_eq!(upload_queue.next("main", Kind::Event).is_some(), said);
        }
    }

    #[test]
    fn data_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("folder")).unwrap();
        let mut wrong = vec![("file", "file is no folder"), ("file/a/b", "file is no folder")];
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("folder", at("good")).unwrap();
            std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
            assert_eq!(data_dir_fault(&at("good")), None);
            let what = "dangling is a link to a place that is not there";
            wrong.extend([("dangling", what), ("dangling/a", what)]);
        }
        for (name, want) in wrong {
            let fault = data_dir_fault(&at(name)).unwrap();
            assert!(fault.contains(want), "{name}: {fault}");
            let mut config = Config::default();
            config.main.data_dir = at(name);
            assert_eq!(lock(&config).unwrap_err().to_string(), fault);
        }
        for name in ["folder", "folder/new/deep"] {
            assert_eq!(data_dir_fault(&at(name)), None, "{name}");
        }
    }

    #[test]
    fn one_agent_owns_a_data_folder() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.main.data_dir = dir.path().join("a/b");
        let held = lock(&config).unwrap();
        let refused = lock(&config).unwrap_err().to_string();
        assert!(refused.contains(&format!("(process {})", std::process::id())), "{refused}");
        drop(held);
        lock(&config).unwrap();
    }
}
