//! Secrets: where they must never turn up, whatever happens to their command.

use jstests::{AccOptions, AgentOptions, LONG, Stage, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Nothing else on the machine says this.
const SECRET: &str = "geheim-5d41402abc4b2a76";

fn loud() -> Stage {
    let args = vec!["--log-level".to_owned(), "trace".to_owned()];
    let config = "[logging.ac]\nlevels = \"1-9,30\"\nflush_interval = 1\n[logging.db]\nlevels = \"*\"\n";
    let agent = AgentOptions { args: args.clone(), ..AgentOptions::default() }.config(config);
    Stage::start_with(AccOptions { args, ..AccOptions::secure() }, agent)
}

/// Every value of every key, as Redis tells it.
fn everything(stage: &mut Stage) -> Vec<(String, String)> {
    let keys: Vec<String> = stage.client.redis(&["KEYS", "*"]);
    let read = |key: String| {
        let kind: String = stage.client.redis(&["TYPE", &key]);
        let words: &[&str] = match kind.as_str() {
            // A key that is gone by now is an empty list.
            "list" | "none" => &["LRANGE", &key, "0", "-1"],
            "hash" => &["HGETALL", &key],
            "zset" => &["ZRANGE", &key, "0", "-1"],
            "set" => &["SMEMBERS", &key],
            _ => &["MGET", &key],
        };
        let values: Vec<String> = stage.client.redis(words);
        (key, values.join("\n"))
    };
    keys.into_iter().map(read).collect()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => files(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

#[test]
fn marked_env_and_data_turn_up_nowhere() {
    let mut stage = loud();
    stage.client.wait_seen("1:10");
    let args = |cmd: &str, more: Value| {
        let mut args = json!({"cmd": cmd, "env": {"PASSWORD": SECRET}, "secret": true, "domain": "d", "name": "n"});
        args.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        args
    };
    let mut ids = Vec::new();
    let mut push = |stage: &mut Stage, gid: u32, nid: u32, args: Value, expires: u32| {
        let command =
            json!({"gid": gid, "nid": nid, "cmd": "execute", "args": args, "data": SECRET, "expires": expires});
        ids.push(stage.client.push(command));
        ids.last().cloned().unwrap()
    };
    // One that works and has it, one that fails, one that is no program, one with an env that is none, one
    // that is killed, one whose node never comes.
    let check = format!("sh -c 'test \"$PASSWORD\" = {SECRET} && test \"$(cat)\" = {SECRET}'").replace(SECRET, "x");
    let good = push(&mut stage, 1, 10, args("sh -c 'echo $(echo -n $PASSWORD | wc -c) $(cat | wc -c)'", json!({})), 0);
    let result = stage.client.pop(&good);
    let n = SECRET.len();
    assert_eq!(result["streams"][0].as_str().map(str::trim), Some(format!("{n} {n}").as_str()), "{result}");
    for (args, state) in [
        (args(&check, json!({})), "ERROR"),
        (args("/no/such/program", json!({})), "ERROR"),
        (args("true", json!({"env": format!("PASSWORD={SECRET}")})), "ERROR"),
        (args("true", json!({"env": [SECRET]})), "ERROR"),
        (args("true", json!({"secret": "true"})), "ERROR"),
        (args("true", json!({"secret": 1})), "ERROR"),
        (args("sleep 60", json!({"max_time": 1, "stop_timeout": 1})), "TIMEOUT"),
    ] {
        let id = push(&mut stage, 1, 10, args, 0);
        let result = stage.client.pop(&id);
        assert_eq!(result["state"], state, "{result}");
        assert!(!result.to_string().contains(SECRET), "{result}");
    }
    let away = push(&mut stage, 1, 99, args("true", json!({})), 1);
    let result = stage.client.pop(&away);
    assert!(result["data"].as_str().is_some_and(|data| data.contains("expired")), "{result}");
    wait_until("the records are there", LONG, || {
        let records: Vec<Value> = stage.client.list("log.d.n");
        records.iter().filter(|record| record["level"] == 30).count() >= 4
    });
    let records = stage.client.ask("get_msgs", json!({"levels": "*"}));
    assert!(!records.to_string().contains(SECRET), "{records}");
    for (key, text) in everything(&mut stage) {
        assert!(!text.contains(SECRET), "{key}: {text}");
    }
    for (who, said) in [("jsacc", stage.acc.output()), ("jsagent", stage.agent.output())] {
        let line = said.lines().find(|line| line.contains(SECRET));
        assert_eq!(line, None, "the log of {who}");
    }
    let mut logs = Vec::new();
    files(&stage.agent.data_dir().join("logs"), &mut logs);
    assert!(!logs.is_empty());
    for file in logs {
        let bytes = fs::read(&file).unwrap_or_default();
        assert!(!bytes.windows(SECRET.len()).any(|some| some == SECRET.as_bytes()), "{}", file.display());
    }
}

#[test]
fn credentials_turn_up_in_no_log_and_no_argument() {
    let mut stage = loud();
    let id = stage.client.shell("cat /proc/$PPID/cmdline | tr '\\0' ' '; env");
    let seen = stage.client.pop(&id)["streams"][0].as_str().unwrap().to_owned();
    let token = fs::read_to_string(stage.agent.scratch().join("main.token")).expect("the token");
    let mac = token.trim().rsplit('.').next().unwrap();
    let secret = fs::read_to_string(stage.acc.state_dir().join("node.secret")).expect("the secret");
    let printed = stage.acc.command(&["token"]).stdout.trim().to_owned();
    let enrolment = printed.split('.').nth(4).unwrap();
    assert_eq!(stage.acc.command(&["rotate"]).code, 0);
    wait_until("it is renewed", LONG, || stage.agent.output().contains("credentials were renewed"));
    let renewed = fs::read_to_string(stage.agent.scratch().join("main.token")).expect("the token");
    let renewed = renewed.trim().rsplit('.').next().unwrap().to_owned();
    let redis: String = everything(&mut stage).into_iter().map(|(_, text)| text).collect();
    for what in [mac, secret.trim(), enrolment, &renewed] {
        assert!(what.len() >= 20, "{what}");
        let places = [("jsacc", stage.acc.output()), ("jsagent", stage.agent.output())];
        for (who, text) in places.iter().map(|(who, text)| (*who, text)).chain([("redis", &redis), ("a child", &seen)])
        {
            assert!(!text.contains(what), "{who} says {what}");
        }
    }
    let mode = |path: &Path| fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(&stage.agent.data_dir()), 0o700);
    assert_eq!(mode(&stage.agent.scratch().join("main.token")), 0o600, "as the renewal has written it");
}
