//! The supervisor with real processes, without controllers.

use super::*;
use crate::ledger::{Ledger, Standing, Write};
use crate::{logger, outbox, stats};
use crossbeam_channel::Receiver;
use jscommon::{JobResult, State};
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(30);

/// One node: its folder outlives its agents.
struct Node {
    dir: TempDir,
}

/// One life of its agent.
struct Life {
    handle: Option<Handle>,
    ledger: Arc<Ledger>,
    config: Arc<Config>,
    _logger: logger::Handle,
    _stats: stats::Handle,
    notices: Receiver<Notice>,
    results: std::cell::RefCell<Vec<JobResult>>,
}

impl Node {
    fn new() -> Node {
        Node { dir: tempfile::tempdir().unwrap() }
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
        let outbox = outbox::Outbox::open(&config).unwrap();
        let ledger = Ledger::open(&config.main.data_dir).unwrap();
        let logger = logger::Handle::start(&config, outbox.clone()).unwrap();
        let stats = stats::Handle::start(&config, outbox).unwrap();
        let (tell, notices) = unbounded();
        let handle = Handle::start(Parts {
            config: config.clone(),
            ledger: ledger.clone(),
            outlets: Outlets { logger: logger.inlet(), stats: stats.inlet() },
            builtins: Arc::new(builtin::Context::new(config.clone())),
            notify: Arc::new(move |notice| drop(tell.send(notice))),
        })
        .unwrap();
        let results = std::cell::RefCell::default();
        Life { handle: Some(handle), ledger, config, _logger: logger, _stats: stats, notices, results }
    }
}

impl Life {
    fn remote(&self) -> Remote {
        self.handle.as_ref().unwrap().remote()
    }

    fn push(&self, commands: Value) {
        let Value::Array(commands) = commands else { return self.push(json!([commands])) };
        let commands = commands.into_iter().map(|mut command| {
            command["gid"] = 1.into();
            command["nid"] = 10.into();
            Command::from_value(command).unwrap()
        });
        self.remote().submit("main", commands.collect()).recv_timeout(LONG).unwrap();
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
        let unsent = self.ledger.unsent("main", 1000, usize::MAX).unwrap();
        let keys: Vec<i64> = unsent.iter().map(|unsent| unsent.key).collect();
        self.ledger.mark_sent(&keys).unwrap();
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
    os::processes().iter().any(|process| process.pid == pid && !process.dead)
}

#[track_caller]
fn pid_in(node: &Node, name: &str) -> u32 {
    until(&format!("a pid in {name}"), || node.read(name).lines().next().and_then(|line| line.parse().ok()))
}

#[test]
fn a_quiet_agent_rests_once() {
    let node = Node::new();
    let life = node.live();
    until("the agent rests", || matches!(life.notices.recv_timeout(LONG), Ok(Notice::Quiet)).then_some(()));
    // Nothing happens, so nothing follows; whatever happens is followed by another rest.
    assert!(life.notices.recv_timeout(Duration::from_millis(2500)).is_err());
    assert!(life.remote().processes().is_empty());
    until("it rests again", || matches!(life.notices.recv_timeout(LONG), Ok(Notice::Quiet)).then_some(()));
}

#[test]
fn a_process_and_its_result() {
    let node = Node::new();
    let life = node.live();
    life.push(json!({"id": "a", "cmd": "execute", "tags": "t", "data": "hello",
        "args": {"cmd": "/bin/sh", "args": ["-c", "cat; echo; echo err >&2; echo '20::{\"a\": 1}'; exit 3"]}}));
    let result = life.result("a");
    assert_eq!((result.state, result.code, result.level), (State::Error, 3, 20));
    assert_eq!((result.data.as_str(), result.tags.as_str()), ("{\"a\": 1}", "t"));
    assert_eq!(result.streams.map(|stream| stream.trim_end().to_owned()), ["hello".to_owned(), "err".into()]);
    assert!(result.starttime > 1_600_000_000_000);
    assert_eq!(life.ask("p", "ping", json!("")).data, "\"pong\"");
}

#[test]
fn a_child_sees_its_job_and_its_places() {
    let node = Node::new();
    let life = node.live_with(|config| {
        let controller = crate::config::Controller { urls: vec!["https://c:1".into()], ..Default::default() };
        config.controllers.insert("main".into(), controller);
    });
    let script =
        "echo $AGENT_GID $AGENT_NID $AGENT_JOB_ID $AGENT_CONTROLLER_NAME $AGENT_CONTROLLER_URL $A; pwd; cd $tmp && pwd";
    life.shell("a", script, json!({"env": {"A": "b"}, "workingdir": "$agentroot"}));
    let home = life.config.main.data_dir.canonicalize().unwrap();
    let expected = format!("1 10 a main https://c:1 b\n{0}\n{0}/tmp", home.display());
    assert_eq!(life.result("a").streams[0].trim_end(), expected);
}

#[test]
fn bad_commands_are_answered() {
    let node = Node::new();
    let life = node.live();
    for (id, command, reason) in [
        ("a", json!({"cmd": "nope"}), "unknown command 'nope'"),
        ("b", json!({"cmd": "execute"}), "cmd is missing"),
        ("c", json!({"cmd": "execute", "args": {"cmd": "/no/such"}}), "program not found: /no/such"),
        ("d", json!({"cmd": "execute", "args": {"cmd": "no-such-program x"}}), "program not found: no-such-program"),
        ("e", json!({"cmd": "execute", "args": {"cmd": "ls", "max_time": "x"}}), "max_time must be"),
        ("f", json!({"cmd": "execute", "args": {"cmd": "ls", "workingdir": "/no"}}), "there is no folder /no"),
        ("g", json!({"cmd": "execute", "args": {"cmd": "ls", "user": "nobody-there"}}), "no user 'nobody-there'"),
        ("h", json!({"cmd": "execute", "args": {"cmd": "/etc/passwd"}}), "permission denied"),
        ("i", json!({"cmd": "kill", "data": {"id": "zzz"}}), "no job 'zzz'"),
        ("j", json!({"cmd": "kill"}), "data has no id"),
        ("k", json!({"cmd": "signal", "data": {"id": "a", "signal": "X"}}), "is no signal"),
        ("l", json!({"cmd": "get_process_stats", "data": {"id": "zzz"}}), "no job 'zzz'"),
        ("m", json!({"cmd": "get_processes_stats", "data": "{"}), "not JSON"),
    ] {
        let mut command = command;
        command["id"] = id.into();
        life.push(command);
        let result = life.result(id);
        assert_eq!((result.state, result.level), (State::Error, 0), "{id}");
        assert!(result.data.contains(reason), "{} does not say {reason}", result.data);
    }
    assert!(life.ledger.live().unwrap().is_empty());
}

#[test]
fn a_known_id_does_not_run_again() {
    let node = Node::new();
    let script = format!("echo x >> {}", node.path("out").display());
    {
        let life = node.live();
        life.shell("a", &script, json!({}));
        life.result("a");
        life.shell("a", &script, json!({}));
        assert_eq!(life.event("duplicate")["id"], "a");
        life.push(json!([{"id": "p", "cmd": "ping"}, {"id": "p", "cmd": "ping"}]));
        assert_eq!(life.event("duplicate")["id"], "p");
    }
    let life = node.live();
    life.shell("a", &script, json!({}));
    assert_eq!(life.event("duplicate")["id"], "a");
    assert_eq!(node.read("out"), "x\n");
}

#[test]
fn time_runs_out() {
    let node = Node::new();
    let life = node.live();
    life.shell("a", "sleep 1000", json!({"max_time": 0.2}));
    let result = life.result("a");
    assert_eq!((result.state, result.code, result.data.as_str()), (State::Timeout, 143, "its time was up"));
    life.shell("b", "trap '' TERM; while :; do sleep 0.05; done", json!({"max_time": 0.3, "stop_timeout": 0.2}));
    assert_eq!((life.result("b").code), 137);
}

#[test]
fn the_whole_tree_ends() {
    let node = Node::new();
    let life = node.live();
    let file = |name: &str| node.path(name).display().to_string();
    // A member of the group that ignores TERM, one in a session of its own, and one that detached
    // from both by forking twice.
    let script = format!(
        "(trap '' TERM; echo $(exec sh -c 'echo $PPID') > {}; while :; do sleep 0.1; done) &
         setsid sh -c 'echo $$ > {}; exec sleep 1000' &
         (setsid sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 0.1; done' & )
         sleep 1000",
        file("stubborn"),
        file("session"),
        file("detached")
    );
    life.shell("a", &script, json!({"stop_timeout": 0.3}));
    let pids = ["stubborn", "session", "detached"].map(|name| pid_in(&node, name));
    let entry = life.wait_running("a");
    assert!(entry.processes >= 4, "{entry:?}");
    let killed = life.ask("k", "kill", json!({"id": "a"}));
    assert_eq!((killed.state, killed.data.as_str()), (State::Ok, "{\"killed\":[\"a\"]}"));
    let result = life.result("a");
    assert_eq!((result.state, result.data.as_str()), (State::Killed, "killed on request"));
    assert!(pids.iter().all(|pid| !lives(*pid)), "{pids:?}");
    // Every orphan was reaped: no zombie has the agent as its parent.
    let own = std::process::id();
    until("the orphans to be reaped", || {
        let zombies = os::processes().iter().filter(|process| process.parent == own && process.dead).count();
        (zombies == 0).then_some(())
    });
}

#[test]
fn a_daemon_that_hides_is_found_by_its_cgroup() {
    let node = Node::new();
    let life = node.live();
    if os::Cgroups::open("a test").is_none() {
        return; // There is none that may be written here.
    }
    let hidden = node.path("hidden").display().to_string();
    // Detached, its parent gone, and with an environment that names no job. Where a process cannot be
    // started inside its group, only a long running job has one, and that a while after its start.
    let (wait, max_time) = if cfg!(target_arch = "x86_64") { ("", 0) } else { ("sleep 1;", -1) };
    let script =
        format!("{wait} (setsid env -i /bin/sh -c 'echo $$ > {hidden}; exec /bin/sleep 1000' &); exec sleep 1000");
    for id in ["a", "b"] {
        life.shell(id, &script, json!({"max_time": max_time}));
        let pid = pid_in(&node, "hidden");
        std::fs::remove_file(&hidden).unwrap();
        until("its parent to be gone", || {
            let parent = os::processes().into_iter().find(|process| process.pid == pid)?.parent;
            (parent == std::process::id()).then_some(())
        });
        let entry = life.remote().process(id).unwrap();
        assert_eq!(entry.processes, 2, "{entry:?}");
        match id {
            "a" => drop(life.ask("k", "kill", json!({"id": "a"}))),
            _ => life.remote().sender.send(Message::Stop).unwrap(),
        }
        assert_eq!(life.result(id).state, State::Killed);
        assert!(!lives(pid));
    }
}

#[test]
fn a_daemon_holds_neither_the_result_nor_dies_with_it() {
    let node = Node::new();
    let life = node.live();
    let pid_file = node.path("daemon").display().to_string();
    let script = format!("(sleep 5; echo later; exec sleep 1000) & echo $! > {pid_file}; echo done");
    let begin = Instant::now();
    life.shell("a", &script, json!({}));
    let result = life.result("a");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((result.state, result.streams[0].trim_end()), (State::Ok, "done"));
    // Its output was waited for, and that is no part of its time.
    assert!(result.time + 400 < begin.elapsed().as_millis() as u64, "{}", result.time);
    let daemon = pid_in(&node, "daemon");
    life.stop();
    assert!(lives(daemon));
    // Neither does the next life of the agent touch it.
    node.live().stop();
    assert!(lives(daemon));
    let seen = os::processes().into_iter().find(|process| process.pid == daemon).unwrap();
    os::signal_process(&seen, os::Signal::KILL);
}

#[test]
fn stdin_blocks_nobody() {
    let node = Node::new();
    let life = node.live();
    let data = "x".repeat(3_000_000);
    life.push(json!({"id": "deaf", "cmd": "execute", "data": data, "args": {"cmd": "sleep 1000"}}));
    life.push(json!({"id": "count", "cmd": "execute", "data": data, "args": {"cmd": "wc -c"}}));
    assert_eq!(life.result("count").streams[0].trim(), "3000000");
    life.ask("k", "kill", json!({"id": "deaf"}));
    assert_eq!(life.result("deaf").state, State::Killed);
}

#[test]
fn restarts_are_counted_and_end_in_an_alert() {
    let node = Node::new();
    let life = node.live();
    let script = format!("echo x >> {}; exit 7", node.path("runs").display());
    life.shell("a", &script, json!({"max_restart": 2, "name": "n"}));
    let result = life.result("a");
    assert_eq!((result.state, result.code), (State::Error, 7));
    assert!(result.critical.contains("failed 3 times"), "{}", result.critical);
    assert_eq!(node.read("runs"), "x\nx\nx\n");
    assert_eq!(life.event("critical")["id"], "a");
}

#[test]
fn recurrence() {
    let node = Node::new();
    let life = node.live();
    let runs = node.path("runs").display().to_string();
    let script =
        format!("echo x >> {runs}; n=$(wc -l < {runs}); [ $n = 3 ] && exit 3; [ $n = 2 ] && echo 20::two; true");
    life.shell("a", &script, json!({"recurring_period": 1}));
    let (first, second, third) = (life.result("a"), life.result("a"), life.result("a"));
    assert_eq!((first.state, first.quiet, first.level), (State::Ok, false, 0));
    assert_eq!((second.data.as_str(), second.quiet), ("two", false));
    assert_eq!((third.state, third.code), (State::Error, 3));
    for (earlier, later) in [(&first, &second), (&second, &third)] {
        let gap = later.starttime - earlier.starttime;
        assert!((900..2500).contains(&gap), "{gap}");
    }
    assert!(life.result("a").quiet);
    assert_eq!(life.ask("u", "unschedule", json!({"id": "a"})).state, State::Ok);
    assert!(life.remote().process("a").is_none_or(|entry| entry.state == "RUNNING"));
}

#[test]
fn a_queue_keeps_its_order_and_max_jobs_its_bound() {
    let node = Node::new();
    let life = node.live_with(|config| config.main.max_jobs = 3);
    let out = node.path("out").display().to_string();
    let jobs: Vec<Value> = (0..6)
        .map(|n| {
            let script = format!("echo start{n} >> {out}; sleep 0.05; echo end{n} >> {out}");
            json!({"id": format!("q{n}"), "cmd": "execute", "args": {"cmd": "sh", "args": ["-c", script], "queue": "q"}})
        })
        .collect();
    life.push(Value::Array(jobs));
    (0..6).for_each(|n| assert_eq!(life.result(&format!("q{n}")).state, State::Ok));
    let expected: String = (0..6).map(|n| format!("start{n}\nend{n}\n")).collect();
    assert_eq!(node.read("out"), expected);

    let jobs: Vec<Value> =
        (0..5).map(|n| json!({"id": format!("m{n}"), "cmd": "execute", "args": {"cmd": "sleep 1000"}})).collect();
    life.push(Value::Array(jobs));
    until("three jobs to run", || (life.remote().processes().len() == 3).then_some(()));
    assert_eq!(life.remote().process("m4").unwrap().state, "QUEUED");
    // Built-in commands are not held up, and what waits can be killed.
    assert_eq!(life.ask("k", "kill", json!({"id": "m4"})).state, State::Ok);
    assert_eq!(life.result("m4").state, State::Killed);
    let answer = life.ask("s", "get_processes_stats", json!(""));
    assert_eq!(serde_json::from_str::<Value>(&answer.data).unwrap().as_array().unwrap().len(), 3);
    assert_eq!(life.ask("ka", "killall", json!("")).state, State::Ok);
    for id in ["m0", "m1", "m2"] {
        assert_eq!(life.result(id).state, State::Killed, "{id}");
    }
    life.wait_running("m3");
}

#[test]
fn signals_reach_the_group() {
    let node = Node::new();
    let life = node.live();
    let script = format!(
        "trap 'echo usr1 > {}; exit 0' USR1; echo x > {}; while :; do :; done",
        node.path("out").display(),
        node.path("ready").display()
    );
    life.shell("a", &script, json!({}));
    life.wait_running("a");
    let answer = life.ask("s", "signal", json!({"id": "a", "signal": "CONT"}));
    assert!(answer.data.contains("CONT"), "{}", answer.data);
    until("the trap", || (!node.read("ready").is_empty()).then_some(()));
    life.ask("u", "signal", json!({"id": "a", "signal": "USR1"}));
    assert_eq!((life.result("a").state, node.read("out").as_str()), (State::Ok, "usr1\n"));
}

#[test]
fn figures_of_a_tree() {
    let node = Node::new();
    let life = node.live();
    life.shell("a", "sleep 1000 & while :; do :; done", json!({"domain": "d", "name": "n"}));
    life.wait_running("a");
    let entry = until("the tree to work", || life.remote().process("a").filter(|e| e.cpu > 5.0 && e.processes == 2));
    assert!(entry.rss > 0 && entry.vms > entry.rss && entry.state == "RUNNING" && entry.starttime > 0);
    let answer = life.ask("s", "get_process_stats", json!({"id": "a"}));
    let entry: Value = serde_json::from_str(&answer.data).unwrap();
    assert_eq!(
        (entry["id"].as_str(), entry["domain"].as_str(), entry["restarts"].as_u64()),
        (Some("a"), Some("d"), Some(0))
    );
    let none = life.ask("t", "get_processes_stats", json!({"domain": "x"}));
    assert_eq!(none.data, "[]");
}

#[test]
fn stopping_ends_jobs_and_remembers_some() {
    let node = Node::new();
    let life = node.live_with(|config| config.main.max_jobs = 2);
    life.shell("plain", "sleep 1000", json!({}));
    life.shell("long", "sleep 1000", json!({"max_time": -1}));
    life.shell("waits", "exit 5", json!({}));
    life.wait_running("plain");
    let first = life.wait_running("long").pid;
    let results = life.stop();
    assert_eq!(results.len(), 1, "{results:?}");
    assert_eq!((results[0].id.as_str(), results[0].state), ("plain", State::Killed));
    assert!(results[0].data.contains("told to stop"));
    assert!(!lives(first));
    let life = node.live();
    assert_eq!(life.result("waits").code, 5);
    let second = life.wait_running("long").pid;
    assert_ne!(first, second);
    // Killed, it is forgotten.
    life.ask("k", "kill", json!({"id": "long"}));
    assert_eq!(life.result("long").state, State::Killed);
    life.stop();
    let life = node.live();
    assert!(life.remote().process("long").is_none() && life.ledger.live().unwrap().is_empty());
}

#[test]
fn what_a_dead_agent_left_is_ended_first() {
    let node = Node::new();
    let mut strays = Vec::new();
    {
        // A run as a dead agent would have left it: in the ledger, alive, marked, and nobody's child.
        let life = node.live();
        let home = life.config.main.data_dir.display().to_string();
        for (id, args) in
            [("plain", json!({"cmd": "sleep 1000"})), ("long", json!({"cmd": "sleep 1000", "max_time": -1}))]
        {
            let command = json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": args}).to_string();
            let writes = [
                crate::ledger::Write::Accept { id: id.into(), controller: "main".into(), command, now: 1 },
                crate::ledger::Write::Start { id: id.into(), started: 77 },
            ];
            life.ledger.commit(&writes).unwrap();
            let mut stray = std::process::Command::new("setsid");
            stray.args(["sleep", "1000"]).env("AGENT_HOME", &home).env("AGENT_JOB_ID", id).env("AGENT_JOB_START", "77");
            strays.push(stray.spawn().unwrap());
        }
        // An earlier run's daemon, and another agent's job of the same name.
        for (home, start) in [(home.as_str(), "76"), ("/elsewhere", "77")] {
            let mut stray = std::process::Command::new("setsid");
            stray
                .args(["sleep", "1000"])
                .env("AGENT_HOME", home)
                .env("AGENT_JOB_ID", "plain")
                .env("AGENT_JOB_START", start);
            strays.push(stray.spawn().unwrap());
        }
    }
    let life = node.live();
    let result = life.result("plain");
    assert_eq!((result.state, result.starttime), (State::Error, 77));
    assert!(result.data.contains("agent died"));
    assert!(!lives(strays[0].id()) && !lives(strays[1].id()));
    assert!(lives(strays[2].id()) && lives(strays[3].id()));
    life.wait_running("long");
    for mut stray in strays {
        let _ = stray.kill();
    }
}

#[test]
fn startup_jobs() {
    let node = Node::new();
    let out = node.path("out").display().to_string();
    let startup = |config: &mut Config| {
        let args = |script: String| json!({"cmd": "sh", "args": ["-c", script]}).as_object().unwrap().clone();
        let job = |script| crate::config::Startup { cmd: "execute".into(), args: args(script), data: String::new() };
        config.startup.insert("once".into(), job(format!("echo x >> {out}")));
        config.startup.insert("bad".into(), job("exit 3".into()));
    };
    for life in 1..3 {
        let life_of_it = node.live_with(startup);
        let event = life_of_it.event("job_failed");
        assert_eq!((event["id"].as_str(), event["code"].as_i64()), (Some("bad"), Some(3)));
        until("the job", || (node.read("out") == "x\n".repeat(life)).then_some(()));
        assert!(life_of_it.stop().is_empty());
    }
    // A remembered job of a startup job's name gives way to it.
    let life = node.live_with(startup);
    life.ledger.commit(&[crate::ledger::Write::Stand { id: "once".into(), standing: Standing::Sent }]).unwrap();
    life.stop();
}

#[cfg(target_os = "linux")]
#[test]
fn limits_niceness_and_user() {
    let node = Node::new();
    let life = node.live();
    life.shell("a", "ulimit -n; nice; id -un", json!({"rlimits": {"nofile": 33}, "nice": 3}));
    let text = life.result("a").streams[0].clone();
    assert!(text.starts_with("33\n3\n"), "{text}");
    if nix::unistd::Uid::effective().is_root() {
        life.shell("b", "id -un; id -u; echo $HOME", json!({"user": "nobody"}));
        let result = life.result("b");
        assert!(result.streams[0].starts_with("nobody\n"), "{result:?}");
    }
}

#[test]
fn a_stop_signal_of_its_own() {
    let node = Node::new();
    let life = node.live();
    life.shell(
        "a",
        &format!(
            "trap 'echo 20::bye; exit 4' INT; trap '' TERM; echo x > {}; while :; do :; done",
            node.path("ready").display()
        ),
        json!({"stop_signal": "INT"}),
    );
    life.wait_running("a");
    until("the trap", || (!node.read("ready").is_empty()).then_some(()));
    life.ask("k", "kill", json!({"id": "a"}));
    let result = life.result("a");
    assert_eq!((result.state, result.code, result.data.as_str()), (State::Killed, 4, "bye"));
}

#[test]
fn a_full_disk_starts_nothing_until_there_is_room() {
    let node = Node::new();
    let life = node.live();
    // Another writer that keeps the table for itself is as good as a disk that takes nothing.
    let rival = rusqlite::Connection::open(life.config.main.data_dir.join(crate::ledger::FILE)).unwrap();
    life.shell("before", "true", json!({}));
    life.result("before");
    rival.execute_batch("CREATE TRIGGER full BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'full'); END").unwrap();
    let script = format!("echo x >> {}", node.path("out").display());
    let command =
        json!({"id": "a", "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "sh", "args": ["-c", script]}});
    let stored = life.remote().submit("main", vec![Command::from_value(command).unwrap()]);
    assert!(life.event("critical")["message"].as_str().unwrap().contains("takes nothing"));
    // Meanwhile nothing else is accepted either.
    let refused = json!({"id": "b", "gid": 1, "nid": 10, "cmd": "ping"});
    assert!(life.remote().submit("main", vec![Command::from_value(refused).unwrap()]).recv_timeout(LONG).is_err());
    assert_eq!(node.read("out"), "");
    rival.execute_batch("DROP TRIGGER full").unwrap();
    stored.recv_timeout(LONG).unwrap();
    assert_eq!(life.result("a").state, State::Ok);
    assert_eq!(node.read("out"), "x\n");
}

#[test]
fn a_flood_of_output_delays_nobody() {
    let node = Node::new();
    let life = node.live();
    life.shell("flood", "exec yes 0123456789", json!({}));
    life.wait_running("flood");
    let begin = Instant::now();
    life.shell("other", "true", json!({}));
    life.result("other");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    life.ask("k", "kill", json!({"id": "flood"}));
    assert_eq!(life.result("flood").state, State::Killed);
}

#[test]
fn a_kill_that_the_agents_end_interrupted_is_answered_as_done() {
    let node = Node::new();
    let data = node.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let accept = |command: Value| Write::Accept {
        id: command["id"].as_str().unwrap().to_owned(),
        controller: "main".into(),
        command: command.to_string(),
        now: 1,
    };
    let ledger = Ledger::open(&data).unwrap();
    let job = json!({"id": "a", "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "sleep 1000", "max_time": -1}});
    let kill = json!({"id": "k", "gid": 1, "nid": 10, "cmd": "kill", "data": {"id": "a"}});
    let other = json!({"id": "o", "gid": 1, "nid": 10, "cmd": "kill", "data": {"id": "b"}});
    let stands = |standing| Write::Stand { id: "a".into(), standing };
    ledger.commit(&[accept(job), Write::Start { id: "a".into(), started: 2 }, stands(Standing::Ending)]).unwrap();
    ledger.commit(&[accept(kill), accept(other)]).unwrap();
    drop(ledger);
    let life = node.live();
    assert_eq!(life.result("a").state, State::Killed);
    let killed = life.result("k");
    assert_eq!((killed.state, killed.data.as_str()), (State::Ok, "{\"killed\":[\"a\"]}"));
    assert_eq!(life.result("o").state, State::Error);
}

#[test]
fn so_many_jobs_wait_and_no_more() {
    let node = Node::new();
    let life = node.live_with(|config| config.main.max_jobs = 1);
    let many: Vec<Value> =
        (0..300).map(|n| json!({"id": format!("w{n}"), "cmd": "execute", "args": {"cmd": "sleep 1000"}})).collect();
    life.push(Value::Array(many));
    life.shell("more", "true", json!({}));
    let refused = life.result("more");
    assert_eq!(refused.state, State::Error);
    assert!(refused.data.contains("300 jobs run or wait"), "{}", refused.data);
    // What looks at them and ends them always has room, and makes some.
    assert_eq!(life.ask("p", "ping", json!({})).state, State::Ok);
    assert_eq!(life.ask("k", "kill", json!({"id": "w200"})).state, State::Ok);
    life.shell("now", "true", json!({}));
    assert_eq!(life.ask("s", "get_process_stats", json!({"id": "now"})).state, State::Ok);
}

/// A writer that waits because nothing that it writes is taken.
fn is_stuck(pid: u32) -> bool {
    let written = || std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let before = written();
    std::thread::sleep(Duration::from_millis(50));
    !before.is_empty() && written() == before
}

#[test]
fn output_that_nobody_takes_delays_no_start_no_result_and_no_kill() {
    let node = Node::new();
    let life = node.live();
    // The logger waits for this lock, its inbox fills up, and so do the pipes.
    let lock = rusqlite::Connection::open(node.path("data/logs/current.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    for name in ["f1", "f2"] {
        life.shell(name, "exec yes 0123456789", json!({"stats_interval": 1}));
        let pid = life.wait_running(name).pid;
        until("the flood to stand still", || is_stuck(pid).then_some(()));
    }
    // The logger gives up on the lock, and takes output again, much later than all this may take.
    let begin = Instant::now();
    life.shell("fails", "echo 9::alarm; exit 3", json!({"max_restart": 1, "domain": "d"}));
    assert_eq!((life.result("fails").code), 3);
    assert_eq!(life.event("critical")["id"], "fails");
    life.shell("kept", "exec sleep 1000", json!({}));
    assert_eq!(life.wait_running("kept").state, "RUNNING");
    for id in ["kept", "f1", "f2"] {
        assert_eq!(life.ask(&format!("k-{id}"), "kill", json!({"id": id})).state, State::Ok);
        assert_eq!(life.result(id).state, State::Killed);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    drop(lock);
}

#[test]
fn a_command_that_cannot_be_read_any_more_is_answered() {
    let node = Node::new();
    let data = node.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let ledger = Ledger::open(&data).unwrap();
    let accept =
        |id: &str, command: String| Write::Accept { id: id.into(), controller: "main".into(), command, now: 1 };
    ledger.commit(&[accept("damaged", "{".into())]).unwrap();
    drop(ledger);
    let life = node.live_with(|config| config.main.max_jobs = 1);
    let result = life.result("damaged");
    assert_eq!((result.state, result.gid, result.nid), (State::Error, 1, 10));
    assert!(result.data.contains("cannot be read"), "{}", result.data);

    // One that waits for its turn is read from the ledger when that has come.
    life.shell("first", "while [ ! -e $F ]; do sleep 0.05; done", json!({"env": {"F": node.path("go")}}));
    life.shell("second", "echo 20::1", json!({}));
    let other = rusqlite::Connection::open(data.join(crate::ledger::FILE)).unwrap();
    other.busy_timeout(LONG).unwrap();
    assert_eq!(other.execute("UPDATE jobs SET command = '{' WHERE id = 'second'", []).unwrap(), 1);
    std::fs::write(node.path("go"), "").unwrap();
    assert_eq!(life.result("first").state, State::Ok);
    let result = life.result("second");
    assert_eq!(result.state, State::Error);
    assert!(result.data.contains("cannot be read"), "{}", result.data);
}
