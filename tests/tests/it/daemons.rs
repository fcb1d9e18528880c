//! Daemons that finished jobs have started live on, however the agent ends, and whatever they write.

use jstests::{LONG, Stage, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// A daemon that writes 100,000 bytes to its stdout, then a mark into a file, for ever.
struct Daemon {
    pid: i32,
    rounds: PathBuf,
}

impl Daemon {
    #[track_caller]
    fn start(stage: &mut Stage, name: &str) -> Daemon {
        let rounds = stage.agent.scratch().join(name);
        let text = rounds.display();
        let work =
            format!("while :; do head -c 100000 /dev/zero | tr '\\\\0' x; echo; echo x >> {text}; sleep 0.1; done");
        let script = format!("nohup sh -c \"{work}\" & echo 20::$!");
        // No record of that much.
        let args = json!({"cmd": "sh", "args": ["-c", script], "loglevels_db": "9", "loglevels_ac": "9"});
        let result = stage.client.run("execute", args);
        assert_eq!(result["state"], "OK", "{result}");
        let pid = result["data"].as_str().and_then(|text| text.trim().parse().ok());
        Daemon { pid: pid.unwrap_or_else(|| panic!("no process id in {result}")), rounds }
    }

    fn count(&self) -> u64 {
        fs::metadata(&self.rounds).map_or(0, |file| file.len())
    }

    /// Waits until it has written more than a pipe holds.
    #[track_caller]
    fn goes_on(&self, when: &str) {
        let before = self.count();
        wait_until(&format!("the daemon writes on {when}"), LONG, || self.count() >= before + 6);
    }

    /// Waits for the processes that keep the pipe of its stdout readable: the agent starts one beside its other work.
    #[track_caller]
    fn keepers(&self) -> Vec<u32> {
        let found = || Some(self.keepers_now()).filter(|keepers| !keepers.is_empty());
        wait_for("a keeper holds the pipe of the daemon", LONG, found)
    }

    fn keepers_now(&self) -> Vec<u32> {
        let pipe = |fd: &Path| fs::read_link(fd).ok();
        let own = pipe(Path::new(&format!("/proc/{}/fd/1", self.pid))).expect("the stdout of the daemon");
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_keeper = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            line.ends_with(b"--keep-pipes\0") && fds.any(|fd| pipe(&fd.path()).as_ref() == Some(&own))
        };
        pids.filter(is_keeper).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
    }
}

#[test]
fn daemon_of_a_finished_job_writes_on_after_every_end_of_the_agent() {
    let mut stage = Stage::start();
    let first = Daemon::start(&mut stage, "first");
    first.goes_on("beside the agent");
    assert_eq!(stage.agent.stop(), Some(0));
    first.goes_on("after an orderly stop");
    stage.agent.resume();
    let second = Daemon::start(&mut stage, "second");
    let third = Daemon::start(&mut stage, "third");
    first.goes_on("beside the next agent");
    stage.agent.kill();
    for daemon in [&first, &second, &third] {
        daemon.goes_on("after kill -9 of the agent");
    }
    stage.agent.resume();
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
    let keepers: Vec<u32> = [&first, &second, &third].into_iter().flat_map(Daemon::keepers).collect();
    assert!(keepers.len() == 3 && keepers[1] == keepers[2], "one for each agent that had daemons: {keepers:?}");
    // `restart` is one more end of the agent.
    assert_eq!(stage.client.run("restart", json!({}))["state"], "OK");
    assert_eq!(stage.agent.wait(), 0);
    for daemon in [&first, &second, &third] {
        daemon.goes_on("after a restart");
    }
    drop([first, second, third]);
    let ended = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty();
    wait_for("the keepers end with the daemons", LONG, || keepers.iter().all(ended).then_some(()));
}

#[test]
fn agent_without_daemons_has_no_second_process() {
    let mut stage = Stage::start();
    let daemon = Daemon::start(&mut stage, "daemon");
    let keepers = daemon.keepers();
    assert_eq!(keepers.len(), 1);
    drop(daemon);
    // The agent ends it once it is at rest.
    let ended = || fs::read(format!("/proc/{}/cmdline", keepers[0])).unwrap_or_default().is_empty();
    wait_until("the keeper ends", LONG, ended);
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
}
