//! The Windows agent, as `jsagent.exe` under wine, against a real controller and a private Redis.
//!
//! `scripts/test windows` builds the program, makes a wine prefix and runs this by name; it tells where
//! they are: `JS_WINE` (the loader), `JS_WINDOWS_AGENT` (a folder with the program and the libraries that
//! wine lacks), `WINEPREFIX`. What wine answers as an exit code says little, so every test demands a line
//! that only the real thing writes.

mod machine;
mod quoting;
mod replacing;

use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, wait_for, wait_until};
use machine::{Node, Session, drive, path, processes_with, windows};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

/// A controller as in real life, one Windows node at it, and a client.
struct Stage {
    client: Client,
    node: Node,
    acc: Acc,
    _redis: Redis,
}

impl Stage {
    #[track_caller]
    fn with(config: &str) -> Stage {
        let redis = Redis::start();
        let acc = Acc::start(&redis, AccOptions::secure());
        let node = Node::start(&acc, config);
        let mut client = Client::new(&redis);
        client.wait_seen("1:10");
        Stage { client, node, acc, _redis: redis }
    }

    /// The text that a command line wrote on stdout.
    #[track_caller]
    fn out(&mut self, args: Value) -> String {
        let result = self.client.run("execute", args);
        assert_eq!(result["state"], "OK", "{result}");
        result["streams"][0].as_str().expect("stdout").to_owned()
    }
}

#[test]
fn the_program_runs() {
    let output = windows(&["--version"]);
    assert_eq!(output.stdout.trim(), concat!("jsagent ", env!("CARGO_PKG_VERSION")));
    let output = windows(&["service", "start"]);
    assert!(output.stderr.contains("there is no service jsagent") || output.stdout.contains("runs"), "{output:?}");
}

#[test]
fn commands_run_with_windows_quoting_paths_and_code_pages() {
    let mut stage = Stage::with("");
    assert_eq!(stage.client.run("ping", json!({}))["data"], "\"pong\"");
    // A line is the program's own to read; in a list cmd gets each as it stands.
    assert_eq!(stage.out(json!({"cmd": r#"cmd /c echo "a  b"&echo marker-line"#})), "\"a  b\"\nmarker-line");
    assert_eq!(stage.out(json!({"cmd": "cmd", "args": ["/c", "echo \"a  b\""]})), "\"a  b\"");
    // Other programs unquote as C does.
    let agent = drive(&stage.node.program());
    let result = stage.client.run("execute", json!({"cmd": agent, "args": ["--gid", r#"a "b" c\"#]}));
    assert_eq!(result["code"], 2, "{result}");
    assert!(result["streams"][1].as_str().is_some_and(|said| said.contains(r#"not "a "b" c\""#)), "{result}");
    let home = drive(&stage.node.home());
    let args = json!({"cmd": r"$root\windows\system32\cmd.exe", "args": ["/c", "cd"], "workingdir": "$agentroot"});
    assert_eq!(stage.out(args), home);
    assert_eq!(stage.out(json!({"cmd": "cmd /c echo %AGENT_GID%.%AGENT_NID% %AGENT_HOME%"})), format!("1.10 {home}"));
    let missing = stage.client.run("execute", json!({"cmd": "no-such.exe"}));
    assert_eq!(missing["data"], "program not found: no-such.exe");
    assert_eq!(stage.client.run("execute", json!({"cmd": "cmd /c exit 7"}))["code"], 7);

    // The first line is of code page 437, the second UTF-8, the third a result.
    let text = path(stage.node.folder(), "text");
    fs::write(&text, b"\x81ber\r\n\xc3\xbcber\r\n20::\"\x84\"\r\n").expect("a file");
    let result = stage.client.run("execute", json!({"cmd": "cmd", "args": ["/c", "type", drive(&text)]}));
    assert_eq!((&result["streams"][0], &result["data"]), (&json!("über\nüber"), &json!("\"ä\"")), "{result}");
    let id = stage.client.push(json!({
        "cmd": "execute", "gid": 1, "nid": 10, "args": {"cmd": "cmd /c more"}, "data": "to its stdin\r\n",
    }));
    assert_eq!(stage.client.pop(&id)["streams"][0], "to its stdin");
}

#[test]
fn a_program_is_found_in_its_folder_and_never_beside_the_agent() {
    let mut stage = Stage::with("");
    let folder = path(stage.node.folder(), "w");
    fs::create_dir(&folder).expect("a folder");
    // Beside it lie the libraries that wine lacks.
    for entry in fs::read_dir(stage.node.program().parent().expect("its folder")).expect("the folder").flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "dll") {
            fs::copy(entry.path(), folder.join(entry.file_name())).expect("a library");
        }
    }
    fs::copy(stage.node.program(), folder.join("t.exe")).expect("a program");
    let version = concat!("jsagent ", env!("CARGO_PKG_VERSION"));
    for program in [r".\t.exe", r".\t", "./t.exe"] {
        let args = json!({"cmd": program, "args": ["--version"], "workingdir": drive(&folder)});
        assert_eq!(stage.out(args), version, "{program}");
    }
    // By a name alone it is found by PATH, and nowhere else.
    let args = json!({"cmd": "t", "args": ["--version"], "env": {"Path": drive(&folder)}});
    assert_eq!(stage.out(args), version);
    for (cmd, folder) in
        [("t.exe", drive(&folder)), ("jsagent.exe", drive(&folder)), (r".\jsagent.exe", drive(&folder))]
    {
        let result = stage.client.run("execute", json!({"cmd": cmd, "args": ["--version"], "workingdir": folder}));
        assert_eq!((&result["code"], &result["data"]), (&json!(127), &json!(format!("program not found: {cmd}"))));
    }
    let result = stage.client.run("execute", json!({"cmd": "cmd /c exit", "workingdir": r"C:\no-such"}));
    assert_eq!(result["data"], r"workingdir: there is no folder C:\no-such", "{result}");
    for (arg, value) in [("umask", json!("022")), ("oom_score_adj", json!(1))] {
        let mut args = json!({"cmd": "cmd /c exit"});
        args[arg] = value;
        let said = stage.client.run("execute", args)["data"].clone();
        assert_eq!(said, format!("{arg} cannot be set on Windows"));
    }
}

#[test]
fn the_five_infos_have_the_keys_that_they_have_on_linux() {
    let mut stage = Stage::with("");
    let _linux = Agent::start(&stage.acc, AgentOptions::nid(11));
    stage.client.wait_seen("1:11");
    // The keys of an answer, of every entry where it is a list: no list is empty, so each has some.
    let mut ask = |cmd: &str, nid: u32| {
        let id = stage.client.push(json!({"cmd": cmd, "gid": 1, "nid": nid}));
        let result = stage.client.pop(&id);
        assert_eq!(result["state"], "OK", "{result}");
        let data: Value = serde_json::from_str(result["data"].as_str().expect("data")).expect("JSON");
        let entries = data.as_array().cloned().unwrap_or_else(|| vec![data.clone()]);
        let keys = |entry: &Value| entry.as_object().expect("an object").keys().cloned().collect::<Vec<_>>().join(" ");
        let mut found: Vec<String> = entries.iter().map(keys).collect();
        found.dedup();
        assert_eq!(found.len(), 1, "{cmd} of 1:{nid}: {data}");
        (found.remove(0), data)
    };
    for cmd in ["get_cpu_info", "get_mem_info", "get_disk_info", "get_nic_info", "get_os_info"] {
        let ((windows, data), (linux, _)) = (ask(cmd, 10), ask(cmd, 11));
        assert_eq!(windows, linux, "{cmd}");
        match cmd {
            "get_os_info" => assert_eq!(data["os"], "windows"),
            "get_cpu_info" => {
                let usage: Vec<f64> =
                    data["usage"].as_array().expect("usage").iter().filter_map(Value::as_f64).collect();
                assert_eq!(Some(usage.len() as u64), data["logical"].as_u64(), "{data}");
                assert!(usage.iter().all(|usage| (0.0..=100.0).contains(usage)), "{data}");
            }
            "get_mem_info" => assert!(data["total"].as_u64() > Some(1 << 20), "{data}"),
            "get_disk_info" => {
                let disks = data.as_array().expect("a list");
                let c = disks.iter().find(|disk| disk["mount"] == "C:\\").expect("the system's drive");
                assert!(c["total"].as_u64() > c["free"].as_u64(), "{c}");
            }
            _ => {
                let nics = data.as_array().expect("a list");
                let lo = nics.iter().find(|nic| nic["addrs"].to_string().contains("\"127.0.0.1/8\""));
                assert!(lo.is_some(), "the loopback interface: {data}");
            }
        }
    }
}

#[test]
fn a_tree_ends_with_its_job_and_with_its_agent() {
    let mut stage = Stage::with("");
    // A number of pings that no other test asks for marks the tree.
    let mark = format!("{}", fastrand::u32(1_000_000..9_000_000));
    let tree = json!({"cmd": format!("cmd /c cmd /c ping -n {mark} 127.0.0.1"), "max_time": -1});
    let job = stage.client.send("execute", tree.clone());
    let processes = |stage: &mut Stage, job: &str| {
        let data = json!({"id": job}).to_string();
        let id = stage.client.push(json!({"cmd": "get_process_stats", "gid": 1, "nid": 10, "data": data}));
        let stats = stage.client.pop(&id);
        // Before it runs there is a sentence in place of figures.
        let figures: Option<Value> = stats["data"].as_str().and_then(|data| serde_json::from_str(data).ok());
        figures.and_then(|figures| figures["processes"].as_u64()).unwrap_or(0)
    };
    wait_until("the whole tree runs", LONG, || processes(&mut stage, &job) >= 3);
    wait_until("all three are processes of this system", LONG, || processes_with(&mark).len() >= 3);
    stage.client.ask("kill", json!({"id": job}));
    assert_eq!(stage.client.pop(&job)["state"], "KILLED");
    wait_until("the tree is gone", LONG, || processes_with(&mark).is_empty());

    let late = stage.client.run("execute", json!({"cmd": "ping -n 600 127.0.0.1", "max_time": 1}));
    assert_eq!(late["state"], "TIMEOUT", "{late}");

    let job = stage.client.send("execute", tree);
    wait_until("the second tree runs", LONG, || processes(&mut stage, &job) >= 3);
    stage.node.kill();
    wait_until("its job object ends it", LONG, || processes_with(&mark).is_empty());
    // A remembered job starts again with its agent.
    stage.node.resume();
    wait_until("it runs again", LONG, || processes(&mut stage, &job) >= 3);
    stage.client.ask("kill", json!({"id": job}));
    wait_until("and is gone", LONG, || processes_with(&mark).is_empty());
}

#[test]
fn the_log_is_rotated_and_no_record_is_lost() {
    let mut stage = Stage::with("[logging.db]\nmax_size_mb = 1\nkeep = 2\n");
    let text = path(stage.node.folder(), "text");
    let lines: String = (0..800).map(|n| format!("{n} {}\r\n", "x".repeat(1_000))).collect();
    fs::write(&text, lines).expect("a file");
    let mut last = String::new();
    for _ in 0..4 {
        let id = stage.client.send("execute", json!({"cmd": "cmd", "args": ["/c", "type", drive(&text)]}));
        assert_eq!(stage.client.pop(&id)["state"], "OK");
        last = id;
    }
    let logs = stage.node.home().join("logs");
    let databases = || {
        let names = fs::read_dir(&logs).expect("logs").flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.ends_with(".db")).collect::<Vec<_>>()
    };
    wait_until("two rotated databases and the current one", LONG, || databases().len() == 3);
    assert!(databases().contains(&"current.db".to_owned()), "{:?}", databases());
    // The last job's records span two databases.
    let mut seen = Vec::new();
    let mut after = 0;
    loop {
        let page = stage.client.ask("get_msgs", json!({"jobid": last, "levels": "1", "after": after}));
        let page = page.as_array().expect("a list");
        let Some(end) = page.last() else { break };
        after = end["id"].as_u64().expect("an id");
        seen.extend(page.iter().map(|record| record["data"].as_str().expect("data").to_owned()));
    }
    let numbers: Vec<usize> =
        seen.iter().filter_map(|line| line.split(' ').next().and_then(|n| n.parse().ok())).collect();
    assert_eq!(numbers, (0..800).collect::<Vec<_>>());
}

#[test]
fn files_that_all_users_can_change_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = dir.path().join("agent.toml");
    let token = dir.path().join("token");
    let data = dir.path().join("data");
    fs::create_dir(&data).expect("a folder");
    // 32 bytes that no key has signed.
    fs::write(&token, format!("1.10.1700000000000.{}", "A".repeat(43))).expect("write the token");
    let check = |insecure: bool| {
        let quoted = |path: &std::path::Path| serde_json::Value::from(drive(path)).to_string();
        let text = format!(
            "[main]\ngid = 1\nnid = 10\ninsecure_paths = {insecure}\ndata_dir = {}\n\
             [controllers.main]\nurl = \"https://127.0.0.1:1\"\ntoken_file = {}\n",
            quoted(&data),
            quoted(&token),
        );
        fs::write(&config, text).expect("write agent.toml");
        windows(&["--check-config", "-c", &drive(&config)])
    };
    let mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("chmod");
    };
    let first = check(false);
    assert_eq!(first.code, 0, "{first:?}");
    for (path, open, closed) in [(&token, 0o666, 0o600), (&data, 0o777, 0o700), (&config, 0o666, 0o600)] {
        mode(path, open);
        let refused = check(false);
        let named = refused.stderr.contains(&drive(path)) && refused.stderr.contains("can be changed by all users");
        assert!(refused.code != 0 && named, "{refused:?}");
        // The file in which it stands is looked at all the same.
        assert_eq!(check(true).code == 0, path != &config, "{path:?}");
        mode(path, closed);
    }
    assert_eq!(check(false).code, 0);
}

#[test]
fn the_service_is_installed_started_stopped_and_removed() {
    let session = Session::open();
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let mut client = Client::new(&redis);
    let folder = session.program_data().join("jsagent");
    // Removes the remains of a failed test.
    windows(&["service", "uninstall"]);
    let _ = fs::remove_dir_all(&folder);
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let url = acc.url();
    let out = r"C:\ProgramData\jsagent";
    #[track_caller]
    fn said(args: &[&str], word: &str) {
        let output = windows(args);
        assert!(output.code == 0 && output.stdout.contains(word), "{args:?}: {output:?}");
    }
    // A folder that another user has made beforehand is not trusted; only root can make one here.
    fs::create_dir(&folder).expect("a folder");
    if std::os::unix::fs::chown(&folder, Some(65534), None).is_ok() {
        let out = r"C:\PROGRAMDATA\jsagent";
        let enroll = ["enroll", "--controller", &url, "--token", &token, "--gid", "3", "--nid", "4", "--out", out];
        let output = windows(&enroll);
        assert!(output.code == 1 && output.stderr.contains("belongs to another user"), "{output:?}");
        assert_eq!(fs::read_dir(&folder).map(Iterator::count).ok(), Some(0));
    }
    fs::remove_dir(&folder).expect("the folder is empty");
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    said(
        &["enroll", "--controller", &url, "--token", &token, "--gid", "3", "--nid", "4", "--out", out],
        "node 3:4 is enrolled",
    );
    said(&["service", "install"], "the service jsagent is installed");
    said(&["service", "start"], "the service jsagent runs");
    client.wait_seen("3:4");
    let id = client.push(json!({"cmd": "execute", "gid": 3, "nid": 4, "args": {"cmd": "cmd /c echo marker-line"}}));
    assert_eq!(client.pop(&id)["streams"][0], "marker-line");
    // A job that runs when the service is stopped ends as one, and that is told.
    let id = client.push(json!({"cmd": "execute", "gid": 3, "nid": 4, "args": {"cmd": "ping -n 600 127.0.0.1"}}));
    wait_until("it runs", LONG, || client.state(&id, "3:4").as_deref() == Some("RUNNING"));
    said(&["service", "stop"], "is stopped");
    assert_eq!(client.pop(&id)["state"], "KILLED");
    let log = fs::read_to_string(folder.join("jsagent.log")).expect("the service's log");
    assert!(log.contains("agent 3:4 is up") && log.contains("stopping on signal the service manager"), "{log}");
    // Its folders are for administrators, which wine shows as rights of nobody else.
    wait_for("others have no rights", Duration::from_secs(1), || {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| fs::metadata(folder.join(name)).map(|meta| meta.permissions().mode() & 0o007);
        (mode("data").ok()? == 0 && mode("token").ok()? == 0 && mode("").ok()? == 0).then_some(())
    });
    // Once more: an upgrade is an installation over the old one.
    said(&["service", "install"], "is installed");
    said(&["service", "start"], "runs");
    said(&["service", "uninstall"], "is removed");
    let output = windows(&["service", "start"]);
    assert!(output.code == 1 && output.stderr.contains("there is no service jsagent"), "{output:?}");
}
