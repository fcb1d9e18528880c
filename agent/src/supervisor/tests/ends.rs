//! Ending trees: whole ones, and nobody else's.

use super::*;

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
    assert!(entry.figures.processes >= 4, "{entry:?}");
    let killed = life.ask("k", "kill", json!({"id": "a"}));
    assert_eq!((killed.state, killed.data.as_str()), (State::Ok, "{\"killed\":[\"a\"]}"));
    let result = life.result("a");
    assert_eq!((result.state, result.data.as_str()), (State::Killed, "killed on request"));
    assert!(pids.iter().all(|pid| !lives(*pid)), "{pids:?}");
    // Every orphan was reaped: no zombie has the agent as its parent.
    let own = std::process::id();
    until("the orphans to be reaped", || {
        let zombies = process_tree::processes().iter().filter(|process| process.parent == own && process.dead).count();
        (zombies == 0).then_some(())
    });
}

#[cfg(target_os = "linux")]
#[test]
fn grandchild_whose_first_thread_ended_is_counted_and_ends_with_its_tree() {
    let node = Node::new();
    let life = node.live();
    let script = "import ctypes, os, platform, sys, threading, time\n\
        threading.Thread(target=time.sleep, args=(1000,)).start()\n\
        open(sys.argv[1], 'w').write(f'{os.getpid()}\\n')\n\
        ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)";
    std::fs::write(node.path("half.py"), script).unwrap();
    let path = |name: &str| node.path(name).display().to_string();
    life.shell("a", &format!("setsid python3 {} {} & wait", path("half.py"), path("pid")), json!({}));
    let pid: u32 = until("its pid", || {
        life.gather();
        assert!(life.results.borrow().is_empty(), "it ended: {:?}", life.results.borrow());
        node.read("pid").trim_end().parse().ok()
    });
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    until("its first thread to end", || state().contains(") Z ").then_some(()));
    // Where `python3` is a script, its own processes may be there for a moment more. An interpreter of Python has
    // several times the memory of a shell.
    until("both to be counted", || {
        let entry = life.wait_running("a");
        (entry.figures.processes == 2 && entry.figures.rss > 4 << 20).then_some(())
    });
    life.ask("k", "kill", json!({"id": "a"}));
    assert_eq!(life.result("a").state, State::Killed);
    assert!(!lives(pid));
    until("it to be gone", || state().is_empty().then_some(()));
}

#[test]
fn a_daemon_that_hides_is_found_by_its_cgroup() {
    let node = Node::new();
    let life = node.live();
    if process_tree::Cgroups::open("a test").is_none() {
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
            let parent = process_tree::processes().into_iter().find(|process| process.pid == pid)?.parent;
            (parent == std::process::id()).then_some(())
        });
        // The shell between them may be there for a moment more.
        until("both to be counted", || (life.remote().process(id)?.figures.processes == 2).then_some(()));
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
    let script = format!("(exec sleep 1000) & echo $! > {pid_file}; echo done");
    let begin = Instant::now();
    life.shell("a", &script, json!({}));
    let result = life.result("a");
    assert_eq!((result.state, result.streams[0].trim_end()), (State::Ok, "done"));
    // Its output was waited for, and that is no part of its time.
    assert!(result.time + 400 < begin.elapsed().as_millis() as u64, "{}", result.time);
    let daemon = pid_in(&node, "daemon");
    life.stop();
    assert!(lives(daemon));
    // Neither does the next life of the agent touch it.
    node.live().stop();
    assert!(lives(daemon));
    let seen = process_tree::processes().into_iter().find(|process| process.pid == daemon).unwrap();
    process_tree::signal_process(&seen, crate::platform::Signal::KILL);
}

#[test]
fn a_stopped_job_takes_its_stop_signal() {
    let node = Node::new();
    let life = node.live();
    // Two processes of the group, and one that has left it before the group stops.
    let out = node.path("out").display().to_string();
    let script = format!(
        "setsid sh -c 'echo $$ > {out}; kill -STOP $$' & until [ -s {out} ]; do sleep 0.01; done; (kill -STOP 0); wait"
    );
    life.shell("a", &script, json!({"stop_timeout": 3600}));
    let outside = pid_in(&node, "out");
    let is_stopped = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    let first = life.wait_running("a").pid;
    until("both to stop", || {
        life.gather();
        assert!(life.results.borrow().is_empty(), "it ended: {:?}", life.results.borrow());
        (is_stopped(outside) && is_stopped(first)).then_some(())
    });
    life.ask("k", "kill", json!({"id": "a"}));
    assert_eq!((life.result("a").code, lives(outside)), (143, false));
}
