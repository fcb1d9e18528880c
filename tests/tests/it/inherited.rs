//! Tests that jobs inherit nothing of the state that the agent was started with.

use jstests::{AccOptions, AgentOptions, Stage};
use serde_json::json;
use std::fs;

/// A stage whose agent is started by a shell that runs these lines first; `$1` is the agent's folder.
fn started_by(lines: &str) -> Stage {
    let agent = AgentOptions { prelude: Some(lines.to_owned()), ..AgentOptions::default() };
    Stage::start_with(AccOptions::default(), agent)
}

#[test]
fn jobs_inherit_nothing_of_what_the_agent_was_started_with() {
    let mut stage = started_by(
        "trap '' CHLD HUP INT USR1 USR2 TSTP TTOU; exec 9>\"$1/held\"; umask 077; echo 300 >/proc/$$/oom_score_adj
         mkdir \"$1/gone\"; cd \"$1/gone\"; rmdir \"$1/gone\"",
    );
    let script = "grep -c '^Sig\\(Blk\\|Ign\\):.0*$' /proc/self/status; umask; cat /proc/self/oom_score_adj; pwd
        ls -l /proc/self/fd | grep -c held; cut -d ' ' -f 6 /proc/$$/stat; echo $$; exit 7";
    let result = stage.client.run("execute", json!({"cmd": "sh", "args": ["-c", script]}));
    assert_eq!(result["code"], 7, "the end is told though SIGCHLD was ignored: {result}");
    let text = result["streams"][0].as_str().expect("stdout");
    let lines: Vec<&str> = text.lines().collect();
    // Where this test itself may not go below its own, neither may the agent.
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("a number");
    assert!(lines[2] == "0" || own.trim() != "0", "{text}");
    assert_eq!((&lines[..2], &lines[3..5]), (&["2", "0022"][..], &["/", "0"][..]), "{text}");
    assert_eq!(lines[5], lines[6], "it leads its session: {text}");
    // A script's interpreter and what that starts are no different.
    let folder = stage.agent.data_dir().join("jumpscripts/test");
    fs::create_dir_all(&folder).expect("a folder");
    // The C library ignores two signals of its own in what `os.execute` starts.
    let lua = r#"os.execute("umask; grep -c '^Sig[BI][lg][kn]:.0*\\(180000000\\)*$' /proc/self/status; ls /proc/self/fd | wc -l")"#;
    fs::write(folder.join("look.lua"), lua).expect("a script");
    let result = stage.client.run("execute_js_lua", json!({"domain": "test", "name": "look"}));
    assert_eq!(result["streams"][0].as_str().map(str::trim_end), Some("0022\n2\n4"), "{result}");
    // A job may ask for others of them.
    let args = json!({"cmd": "sh", "args": ["-c", "umask; cat /proc/self/oom_score_adj"], "umask": "027",
        "oom_score_adj": 1000});
    let result = stage.client.run("execute", args);
    assert_eq!(result["streams"][0].as_str().map(str::trim_end), Some("0027\n1000"), "{result}");
}

#[test]
fn jobs_inherit_no_privilege_over_time_and_not_the_agents_own_limit_of_descriptors() {
    let mut stage = started_by("ulimit -S -n 300; chrt -r -p 5 $$; renice -n -3 $$ >/dev/null; ionice -c 1 -p $$");
    jstests::wait_until("the agent has raised its own limit", jstests::LONG, || {
        let agent = fs::read_to_string(format!("/proc/{}/limits", stage.agent.pid())).expect("limits");
        let open = agent.lines().find(|line| line.starts_with("Max open files")).expect("a line");
        open.split_whitespace().nth(3) != Some("300")
    });
    let script = "ulimit -S -n; chrt -p $$ | head -n 1; nice; ionice -p $$";
    let result = stage.client.run("execute", json!({"cmd": "sh", "args": ["-c", script]}));
    let text = result["streams"][0].as_str().expect("stdout");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[2]), ("300", "0"), "{text}");
    assert!(lines[1].ends_with("SCHED_OTHER") && lines[3].starts_with("none"), "{text}");
    // A job may ask for others, and a niceness of the node that only restricts stays.
    let args = json!({"cmd": "sh", "args": ["-c", "ulimit -n; nice"], "rlimits": {"nofile": 200}, "nice": 4});
    let result = stage.client.run("execute", args);
    assert_eq!(result["streams"][0].as_str().map(str::trim_end), Some("200\n4"), "{result}");
}

#[test]
fn relative_folder_in_the_path_of_the_agent_is_not_searched() {
    let mut stage = started_by("export PATH=.:bin:$PATH:");
    let folder = stage.agent.scratch().join("shared");
    for place in [folder.clone(), folder.join("bin")] {
        fs::create_dir(&place).expect("a folder");
        for name in ["true", "python3"] {
            fs::write(place.join(name), "#!/bin/sh\necho intruder\n").expect("a program");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(place.join(name), mode).expect("its mode");
        }
    }
    let scripts = stage.agent.data_dir().join("jumpscripts/test");
    fs::create_dir_all(&scripts).expect("a folder");
    fs::write(scripts.join("none.py"), "").expect("a script");
    for (cmd, args) in [
        ("execute", json!({"cmd": "true", "workingdir": folder})),
        ("execute", json!({"cmd": "sh", "args": ["-c", "true"], "workingdir": folder})),
        ("execute_js_py", json!({"domain": "test", "name": "none", "workingdir": folder})),
    ] {
        let result = stage.client.run(cmd, args);
        assert_eq!((&result["state"], &result["streams"][0]), (&json!("OK"), &json!("")), "{result}");
    }
}

#[test]
fn a_lock_of_the_starter_is_free_once_the_agent_has_ended() {
    let mut stage = started_by("exec 9>\"$1/held\"; flock -n 9");
    let held = stage.agent.scratch().join("held");
    let daemon = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!";
    let result = stage.client.run("execute", json!({"cmd": "sh", "args": ["-c", daemon]}));
    let pid: i32 = result["streams"][0].as_str().and_then(|pid| pid.trim().parse().ok()).expect("a pid");
    let lock = || fs::File::open(&held).expect("the file").try_lock();
    assert!(lock().is_err(), "the agent holds it");
    assert_eq!(stage.agent.stop(), Some(0));
    let free = lock().is_ok();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("it lives");
    assert!(free, "what a job has left behind does not hold it");
}

#[test]
fn jobs_inherit_only_named_variables() {
    let text = "[extensions.show]\nbinary = \"/usr/bin/env\"\nenv = { OF_EXTENSION = \"e\" }\n";
    let prelude = "export HTTPS_PROXY=http://u:geheim@127.0.0.1:9 NO_PROXY=127.0.0.1 OTHER=geheim LUA_PATH=geheim
        export PYTHONPATH=geheim LC_TIME=C TZ=UTC LANG=C HOME=/root TMPDIR=/tmp NAMED=n NOTIFY_SOCKET=
        sed -i 's/^\\[main\\]$/[main]\\nenv = [\"NAMED\"]/' \"$1/agent.toml\"";
    let agent = AgentOptions { prelude: Some(prelude.to_owned()), ..AgentOptions::default() };
    let mut stage = Stage::start_with(AccOptions::default(), agent.config(text));
    let folder = stage.agent.data_dir().join("jumpscripts/test");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("look.lua"), "os.execute('/usr/bin/env')").expect("a script");
    fs::write(folder.join("look.py"), "import subprocess\nsubprocess.call('/usr/bin/env')").expect("a script");
    let always = [
        "AGENT_CONTROLLER_CA",
        "AGENT_CONTROLLER_NAME",
        "AGENT_CONTROLLER_URL",
        "AGENT_GID",
        "AGENT_HOME",
        "AGENT_JOB_ID",
        "AGENT_JOB_START",
        "AGENT_NID",
        "HOME",
        "LANG",
        "LC_TIME",
        "NAMED",
        "PATH",
        "TMPDIR",
        "TZ",
    ];
    let script = json!({"domain": "test", "name": "look", "env": {"GIVEN": "g"}});
    for (cmd, args, given) in [
        ("execute", json!({"cmd": "/usr/bin/env", "env": {"GIVEN": "g"}}), "GIVEN"),
        ("execute_js_py", script.clone(), "GIVEN"),
        ("execute_js_lua", script, "GIVEN"),
        ("show", json!({}), "OF_EXTENSION"),
    ] {
        let result = stage.client.run(cmd, args);
        let text = result["streams"][0].as_str().expect("stdout");
        assert!(!text.contains("geheim"), "{cmd}: {text}");
        let mut names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        // The shell between Lua and `env` sets these, Python its locale, and a wrapper of Python its own.
        names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"].contains(name) && !name.contains("PYENV"));
        names.sort_unstable();
        let mut want: Vec<&str> = always.iter().copied().chain([given]).collect();
        want.sort_unstable();
        assert_eq!(names, want, "{cmd}");
    }
}
