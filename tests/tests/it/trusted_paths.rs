//! Paths that other accounts of a machine can change, and secrets that they can read. Needs root, for it makes files of
//! the account `nobody`.

use jscommon::token::sha256_hex;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Mounts, Redis, Stage, run, wait_until};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

const NOBODY: u32 = 65534;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("its mode");
}

/// A file or program of `nobody`'s, or of root's with this mode.
fn file(path: &Path, text: &str, mode: u32, owner: u32) {
    fs::write(path, text).expect("a file");
    set_mode(path, mode);
    chown(path, Some(owner), Some(owner)).expect("its owner");
}

/// An agent whose folder a shell changes by these lines before its first start; `$1` is the folder.
fn changed_by(lines: &str) -> AgentOptions {
    let once = format!("[ -e \"$1/changed\" ] || {{ : >\"$1/changed\"; {lines}; }}");
    AgentOptions { prelude: Some(once), ..AgentOptions::default() }
}

/// Starts an agent that refuses to start, and `--check-config` as well, with this sentence.
#[track_caller]
fn refused(acc: &Acc, options: AgentOptions, status: i32, sentence: &str) -> Agent {
    let mut agent = Agent::start(acc, options);
    let (code, output) = (agent.wait(), agent.output());
    assert_eq!(code, status, "{output}");
    assert!(output.contains(sentence), "{output}");
    let config = agent.config_file();
    let checked = run("jsagent", &["--check-config", "-c", config.to_str().expect("a path in UTF-8")]);
    assert_eq!(checked.code, 2, "{checked:?}");
    assert!(checked.stderr.contains(sentence), "{checked:?}");
    agent
}

#[test]
fn data_folder_of_another_account_is_refused() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut agent =
        refused(&acc, changed_by("mkdir \"$1/data\"; chown nobody \"$1/data\""), 1, "data belongs to nobody");
    // The command that it names mends it.
    chown(agent.data_dir(), Some(0), None).expect("the owner");
    agent.resume();
    let mut client = Client::new(&redis);
    client.wait_seen("1:10");
    assert_eq!(agent.stop(), Some(0));
    // A file that an intruder has left there meanwhile is refused as well.
    file(&agent.data_dir().join("outbox.db-wal"), "", 0o644, NOBODY);
    agent.resume();
    assert_eq!(agent.wait(), 1);
    assert!(agent.output().contains("outbox.db-wal belongs to nobody"), "{}", agent.output());
    fs::remove_file(agent.data_dir().join("outbox.db-wal")).expect("it is root's folder");

    // So is what others could write to, as long as nobody has looked at it.
    set_mode(&agent.data_dir(), 0o755);
    for name in ["state.db", "logs"] {
        let (path, before) = (agent.data_dir().join(name), mode(&agent.data_dir().join(name)));
        set_mode(&path, 0o777);
        agent.resume();
        assert_eq!(agent.wait(), 1);
        assert!(agent.output().contains(&format!("{name} has mode 0777")), "{}", agent.output());
        set_mode(&path, before);
    }
    assert_eq!(mode(&agent.data_dir()), 0o755);
    // In a folder that nobody else can pass its mode gave nobody anything.
    set_mode(&agent.data_dir(), 0o700);
    set_mode(&agent.data_dir().join("state.db"), 0o666);
    agent.resume();
    wait_until("it is closed", LONG, || mode(&agent.data_dir().join("state.db")) == 0o660);
    assert_eq!(agent.stop(), Some(0));

    refused(&acc, changed_by("mkdir -m 777 \"$1/data\""), 1, "data has mode 0777");
    refused(
        &acc,
        changed_by("mkdir -m 777 \"$1/a\"; sed -i 's#/data\"#/a/data\"#' \"$1/agent.toml\""),
        1,
        "a has mode 0777",
    );
    let linked = "mkdir \"$1/real\"; ln -s real \"$1/data\"; chown -h nobody \"$1/data\"";
    refused(&acc, changed_by(linked), 1, "chown -h root");
}

#[test]
fn configuration_and_credentials_that_others_can_change_are_refused() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    refused(&acc, changed_by("chmod 666 \"$1/agent.toml\""), 2, "agent.toml has mode 0666");
    let itself = "chmod 666 \"$1/agent.toml\"; sed -i 's/^gid/insecure_paths = true\\ngid/' \"$1/agent.toml\"";
    refused(&acc, changed_by(itself), 2, "agent.toml has mode 0666");
    refused(&acc, changed_by("chown nobody \"$1/main.token\""), 1, "main.token belongs to nobody");

    // The operator may insist: by the flag, and of everything else in the file.
    let mut client = Client::new(&redis);
    let flag = AgentOptions { args: vec!["--insecure-paths".into()], ..changed_by("chmod 666 \"$1/agent.toml\"") };
    let agent = Agent::start(&acc, flag);
    client.wait_seen("1:10");
    drop(agent);
    let key = "chown nobody \"$1/main.token\"; sed -i 's/^gid/insecure_paths = true\\ngid/' \"$1/agent.toml\"";
    let _agent = Agent::start(&acc, AgentOptions { nid: 11, ..changed_by(key) });
    client.wait_seen("1:11");
}

#[test]
fn secret_that_others_could_read_is_closed() {
    let lines = "chmod 755 \"$1\"; chmod 644 \"$1/main.token\"; mkdir -m 755 \"$1/data\"; umask 0";
    let mut stage = Stage::start_with(AccOptions::secure(), changed_by(lines));
    stage.client.wait_seen("1:10");
    let (data, token) = (stage.agent.data_dir(), stage.agent.scratch().join("main.token"));
    assert_eq!((mode(&data), mode(&token)), (0o700, 0o640));
    for name in ["state.db", "outbox.db", "logs/current.db", "lock"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
    for name in ["logs", "tmp"] {
        assert_eq!(mode(&data.join(name)), 0o700, "{name}");
    }
    for path in [data, token] {
        let want = format!("{} could be read by other accounts", path.display());
        wait_until("an event tells it", LONG, || told(&mut stage.client, &want));
    }
    // Folders that a job installs are for all, as before.
    let line = "umask; mkdir made; stat -c %a made; rmdir made";
    let args = json!({"cmd": "sh", "args": ["-c", line], "workingdir": "$tmp"});
    let result = stage.client.run("execute", args);
    assert_eq!(result["streams"][0], "0022\n755", "{result}");
}

#[test]
fn folder_that_the_user_of_a_job_may_not_pass_is_named() {
    let mut stage = Stage::start();
    let above = stage.agent.scratch().to_owned();
    set_mode(&above, 0o700);
    let args = json!({"cmd": "true", "workingdir": "$tmp", "user": "nobody"});
    let result = stage.client.run("execute", args.clone());
    let want = format!(": user nobody may not enter {0}; name another folder, or run chmod o+x {0}", above.display());
    assert!(result["data"].as_str().is_some_and(|data| data.ends_with(&want)), "{result}");
    set_mode(&above, 0o701);
    assert_eq!(stage.client.run("execute", args)["state"], "OK", "the command that it names mends it");
}

/// Whether an event `insecure_path` says this.
fn told(client: &mut Client, text: &str) -> bool {
    let says = |event: &Value| event["data"]["message"].as_str().is_some_and(|message| message.contains(text));
    client.events().iter().any(|event| event["name"] == "insecure_path" && says(event))
}

#[test]
fn script_and_program_that_others_can_change_do_not_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str| dir.path().join(name);
    set_mode(dir.path(), 0o755);
    fs::create_dir_all(of("scripts/ops")).expect("a folder");
    file(&of("scripts/ops/good.lua"), "result({1})", 0o644, 0);
    file(&of("scripts/ops/module.lua"), "", 0o646, 0);
    for name in ["tool", "watch"] {
        file(&of(name), "#!/bin/sh\necho ran\n", 0o755, NOBODY);
    }
    let config = format!(
        "[scripts]\npath = \"{0}/scripts\"\n[extensions.tool]\nbinary = \"{0}/tool\"\n\
         [startup.watch]\ncmd = \"execute\"\nargs = {{ cmd = \"{0}/watch\" }}\n\
         [startup.theirs]\ncmd = \"execute\"\nargs = {{ cmd = \"{0}/watch\", user = \"nobody\" }}\n",
        dir.path().display()
    );
    let mut stage = Stage::start_with(AccOptions::default(), AgentOptions::default().config(&config));
    let client = &mut stage.client;
    for text in ["extensions.tool.binary: ", "startup.watch: "] {
        wait_until("an event tells it", LONG, || told(client, text));
    }
    let failed = |events: Vec<Value>| events.iter().filter(|event| event["name"] == "job_failed").count();
    wait_until("the startup job has failed", LONG, || failed(client.events()) > 0);
    assert!(!told(client, "startup.theirs"), "a program of the account that it runs as");

    let (tool, script) = (json!({}), json!({"domain": "ops", "name": "good"}));
    let result = client.run("tool", tool.clone());
    assert_eq!((&result["state"], &result["code"]), (&json!("ERROR"), &json!(126)), "{result}");
    assert!(result["data"].as_str().is_some_and(|data| data.contains("tool belongs to nobody")), "{result}");
    // As that account it can do nothing that it could not before.
    let result = client.run("tool", json!({"user": "nobody"}));
    assert_eq!(result["streams"][0], "ran", "{result}");
    chown(of("tool"), Some(0), Some(0)).expect("the owner");
    assert_eq!(client.run("tool", tool)["streams"][0], "ran");

    let result = client.run("execute_js_lua", script.clone());
    assert!(result["data"].as_str().is_some_and(|data| data.contains("module.lua has mode 0646")), "{result}");
    set_mode(&of("scripts/ops/module.lua"), 0o644);
    assert_eq!(client.run("execute_js_lua", script.clone())["data"], "[1]");
    chown(of("scripts/ops"), Some(NOBODY), None).expect("an owner");
    let result = client.run("execute_js_lua", script);
    assert!(result["data"].as_str().is_some_and(|data| data.contains("ops belongs to nobody")), "{result}");
    assert_eq!(failed(client.events()), 1);
    let checked = run("jsagent", &["--check-config", "-c", stage.agent.config_file().to_str().expect("UTF-8")]);
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(checked.stderr.contains("startup.watch: ") && checked.stdout.contains("is good"), "{checked:?}");
}

#[test]
fn agent_starts_when_a_program_lies_on_a_silent_file_system() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = format!("[extensions.tool]\nbinary = \"{}/x/tool\"\n", dir.path().display());
    let mounts = Mounts::default().silent(dir.path());
    let agent = AgentOptions { mounts, ..AgentOptions::default() };
    let mut stage = Stage::start_with(AccOptions::default(), agent.config(&config));
    assert_eq!(stage.client.run("ping", json!({}))["state"], "OK");
    assert_eq!(stage.agent.stop(), Some(0));
}

#[test]
fn agent_of_an_account_trusts_its_own_files() {
    let lines =
        "dir=$1; shift; chown -R nobody: \"$dir\"; exec setpriv --reuid nobody --regid nogroup --clear-groups \"$@\"";
    let agent = AgentOptions { prelude: Some(lines.to_owned()), ..AgentOptions::default() };
    let mut stage = Stage::start_with(AccOptions::default(), agent);
    let result = stage.client.run("execute", json!({"cmd": "id", "args": ["-u"]}));
    assert_eq!(result["streams"][0], "65534", "{result}");
}

#[test]
fn put_follows_no_link_of_another_account() {
    let mut stage = Stage::start();
    let dir = tempfile::tempdir().expect("a folder");
    let of = |name: &str| dir.path().join(name);
    set_mode(dir.path(), 0o755);
    fs::create_dir(of("root")).expect("a folder");
    fs::create_dir(of("home")).expect("a folder");
    chown(of("home"), Some(NOBODY), Some(NOBODY)).expect("its owner");
    symlink("../root", of("home/.ssh")).expect("a link");
    lchown(of("home/.ssh"), Some(NOBODY), Some(NOBODY)).expect("its owner");
    let hash = sha256_hex(b"key");
    let _: () = stage.client.redis(&["SET", &format!("jsacc:script:{hash}"), "key", "EX", "3600"]);
    let mut put = |path: &str, owner: &str| {
        let args = json!({"path": of(path), "hash": hash, "owner": owner, "mkdir": true});
        stage.client.run("put", args)
    };
    for owner in ["nobody", ""] {
        let result = put("home/.ssh/authorized_keys", owner);
        assert_eq!(result["state"], "ERROR", "{result}");
        assert_eq!(fs::read_dir(of("root")).expect("the folder").count(), 0);
    }
    let result = put("home/new/key", "nobody");
    assert_eq!(result["state"], "OK", "{result}");
    for path in ["home/new", "home/new/key"] {
        assert_eq!(fs::metadata(of(path)).expect("it is there").uid(), NOBODY, "{path}");
    }
    assert_eq!((mode(&of("home/new")), mode(&of("home/new/key"))), (0o755, 0o644));
    assert_eq!(put("root/key", "nobody")["state"], "OK", "root gives it away in a folder of its own");
}

#[test]
fn controller_refuses_a_state_directory_of_another_account() {
    let redis = Redis::start();
    let dir = tempfile::tempdir().expect("a folder");
    let state = dir.path().join("state");
    fs::create_dir(&state).expect("a folder");
    chown(&state, Some(NOBODY), None).expect("its owner");
    let options = AccOptions { state_dir: Some(state.clone()), tls: true, ..AccOptions::default() };
    let mut acc = Acc::start_unready(&redis.url(), options.clone());
    assert_eq!(acc.wait(), 1);
    assert!(acc.output().contains("state belongs to nobody (uid 65534)"), "{}", acc.output());
    assert_eq!(fs::read_dir(&state).expect("the folder").count(), 0);
    // With `--insecure-paths` the controller starts, and the folder's owner has no key of it.
    let args = vec!["--insecure-paths".to_owned()];
    let _acc = Acc::start(&redis, AccOptions { args, ..options });
    for name in ["ca.key", "node.secret", "server.key"] {
        let meta = fs::metadata(state.join(name)).expect("it is there");
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o600), "{name}");
    }
}
