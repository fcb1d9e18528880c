//! Tests which jobs outlive the agent, and which are ended after its death.

use super::*;

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
    assert!(life.remote().process("long").is_none() && life.job_store.live().unwrap().is_empty());
}

#[test]
fn processes_of_a_dead_agent_are_ended_first() {
    let node = Node::new();
    let mut strays = Vec::new();
    {
        // A run as a dead agent would have left it: in the job store, alive, marked, and nobody's child.
        let life = node.live();
        let home = life.config.main.data_dir.display().to_string();
        for (id, args) in
            [("plain", json!({"cmd": "sleep 1000"})), ("long", json!({"cmd": "sleep 1000", "max_time": -1}))]
        {
            let command = json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": args}).to_string();
            let writes = [
                crate::storage::job_store::JobUpdate::Accept {
                    id: id.into(),
                    controller: "main".into(),
                    command,
                    now: 1,
                },
                crate::storage::job_store::JobUpdate::Start { id: id.into(), started: 77 },
            ];
            life.job_store.commit(&writes).unwrap();
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

#[cfg(unix)]
#[test]
fn leftover_that_ignores_its_stop_signal_holds_up_only_its_own_job() {
    let node = Node::new();
    let data = node.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let home = data.display().to_string();
    let args = json!({"cmd": "sleep 1000", "stop_timeout": 3600, "queue": "q"});
    let command = json!({"id": "left", "gid": 1, "nid": 10, "cmd": "execute", "args": args}).to_string();
    let accept = JobUpdate::Accept { id: "left".into(), controller: "main".into(), command, now: 1 };
    JobStore::open(&data).unwrap().commit(&[accept, JobUpdate::Start { id: "left".into(), started: 77 }]).unwrap();
    let mut stray = std::process::Command::new("setsid");
    stray.args(["sh", "-c", "trap '' TERM; echo $$ > $0; while :; do sleep 0.1; done"]).arg(node.path("pid"));
    stray.env("AGENT_HOME", &home).env("AGENT_JOB_ID", "left").env("AGENT_JOB_START", "77");
    let mut stray = stray.spawn().unwrap();
    let pid = pid_in(&node, "pid");

    let life = node.live();
    life.shell("other", "exit 4", json!({}));
    assert_eq!(life.result("other").code, 4);
    life.shell("next", "exit 5", json!({"queue": "q"}));
    assert_eq!(life.remote().process("left").unwrap().state, "STOPPING");
    assert_eq!(life.remote().process("next").unwrap().state, "QUEUED");
    assert!(life.stop().is_empty() && lives(pid));
    // As if the first attempt had been made an hour ago: KILL comes at once.
    let first = crate::process_tree::leftovers::uptime() - 3600;
    std::fs::write(data.join("leftovers"), format!("{first} 77-left\n")).unwrap();
    let life = node.live();
    let result = life.result("left");
    assert!(result.state == State::Error && result.data.contains("agent died"), "{}", result.data);
    assert!(!lives(pid));
    assert_eq!(life.result("next").code, 5);
    // The waiter may have reaped it.
    let _ = stray.wait();
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
    life.job_store
        .commit(&[crate::storage::job_store::JobUpdate::SetState { id: "once".into(), state: JobState::Sent }])
        .unwrap();
    life.stop();
}

#[test]
fn a_kill_that_the_agents_end_interrupted_is_answered_as_done() {
    let node = Node::new();
    let data = node.path("data");
    std::fs::create_dir_all(&data).unwrap();
    let accept = |command: Value| JobUpdate::Accept {
        id: command["id"].as_str().unwrap().to_owned(),
        controller: "main".into(),
        command: command.to_string(),
        now: 1,
    };
    let job_store = JobStore::open(&data).unwrap();
    let job = json!({"id": "a", "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "sleep 1000", "max_time": -1}});
    let kill = json!({"id": "k", "gid": 1, "nid": 10, "cmd": "kill", "data": {"id": "a"}});
    let other = json!({"id": "o", "gid": 1, "nid": 10, "cmd": "kill", "data": {"id": "b"}});
    let stands = |state| JobUpdate::SetState { id: "a".into(), state };
    job_store
        .commit(&[accept(job), JobUpdate::Start { id: "a".into(), started: 2 }, stands(JobState::Killing)])
        .unwrap();
    job_store.commit(&[accept(kill), accept(other)]).unwrap();
    drop(job_store);
    let life = node.live();
    assert_eq!(life.result("a").state, State::Killed);
    let killed = life.result("k");
    assert_eq!((killed.state, killed.data.as_str()), (State::Ok, "{\"killed\":[\"a\"]}"));
    assert_eq!(life.result("o").state, State::Error);
}
