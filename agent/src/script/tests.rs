use super::*;
use crate::config::Config;
use jscommon::token::sha256_hex;
use serde_json::{Value, json};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A controller that knows some scripts and counts how often it is asked.
#[derive(Default)]
struct FakeSource {
    sources: Vec<(String, Vec<u8>)>,
    asked: AtomicUsize,
    trouble: Option<FetchError>,
}

impl FakeSource {
    fn with(source: &[u8]) -> (FakeSource, String) {
        let hash = sha256_hex(source);
        (FakeSource { sources: vec![(hash.clone(), source.to_vec())], ..FakeSource::default() }, hash)
    }
}

impl ScriptSource for FakeSource {
    fn source(&self, hash: &str) -> Result<Option<Vec<u8>>, FetchError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match &self.trouble {
            Some(trouble) => Err(trouble.clone()),
            None => Ok(self.sources.iter().find(|(known, _)| known == hash).map(|(_, source)| source.clone())),
        }
    }

    fn piece(&self, _hash: &str, _piece: u32) -> Result<Option<Vec<u8>>, FetchError> {
        Ok(None)
    }
}

fn config(dir: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.main.data_dir = dir.to_owned();
    config
}

fn context(config: Config, origins: Vec<Arc<dyn ScriptSource>>) -> (Store, Config) {
    let mut store = Store::new(&config, origins);
    store.timeout = Duration::ZERO;
    (store, config)
}

fn command(cmd: &str, args: Value) -> Command {
    let value = json!({"id": "a", "gid": 1, "nid": 1, "cmd": cmd, "args": args, "data": "DATA"});
    Command::from_value(value).unwrap()
}

#[track_caller]
fn refused((store, config): &(Store, Config), args: Value, reason: &str) {
    let fault = prepare(store, config, &command("execute_js_py", args)).unwrap_err().why;
    assert!(fault.contains(reason), "{fault} does not say {reason}");
}

#[test]
fn arguments_have_their_faults() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(config(dir.path()), Vec::new());
    refused(&context, json!({}), "which script?");
    refused(&context, json!({"domain": "ops"}), "name is missing");
    refused(&context, json!({"name": "disk"}), "domain is missing");
    refused(&context, json!({"domain": 1, "name": "disk"}), "domain must be a string");
    refused(&context, json!({"hash": "abc"}), "64 hexadecimal digits");
    refused(&context, json!({"hash": "g".repeat(64)}), "64 hexadecimal digits");
    refused(&context, json!({"domain": "ops", "name": "disk"}), "no script ops/disk.py in");
    refused(&context, json!({"domain": "..", "name": "etc/passwd"}), "lead out of the folder");
    refused(&context, json!({"domain": "ops", "name": "disk", "args": "x"}), "args must be a list");
    refused(&context, json!({"domain": "ops", "name": "disk", "args": [[]]}), "args must hold strings");
    refused(&context, json!({"hash": "0".repeat(64)}), "no script with hash 0000");
    assert!(is_script("execute_js_py") && is_script("execute_js_lua") && !is_script("execute"));
}

#[test]
fn python_gets_runner_source_and_data() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("jumpscripts/ops")).unwrap();
    fs::write(dir.path().join("jumpscripts/ops/disk.py"), "SOURCE").unwrap();
    let context = context(config(dir.path()), Vec::new());
    let args = json!({"domain": "ops", "name": "disk", "args": ["x", 1]});
    let spec = prepare(&context.0, &context.1, &command("execute_js_py", args)).unwrap();
    assert_eq!(spec.program, "python3");
    assert_eq!(spec.stdin, [python::RUNNER.as_bytes(), b"SOURCEDATA"].concat());
    let folder = dir.path().join("jumpscripts/ops");
    let file = folder.join("disk.py");
    let expected = ["6", file.to_str().unwrap(), folder.to_str().unwrap(), "x", "1"];
    assert_eq!(spec.args[0], "-c");
    assert_eq!(spec.args[2..], expected);
}

#[test]
fn lua_runs_in_the_agent_or_in_what_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, hash) = FakeSource::with(b"SOURCE");
    let fake: Arc<dyn ScriptSource> = Arc::new(fake);
    let built_in = context(config(dir.path()), vec![Arc::clone(&fake)]);
    let spec =
        prepare(&built_in.0, &built_in.1, &command("execute_js_lua", json!({"hash": hash, "name": "disk"}))).unwrap();
    assert_eq!(spec.program, std::env::current_exe().unwrap().to_str().unwrap());
    assert_eq!(spec.args[..3], ["--run-lua", "6", "=disk.lua"]);
    assert_eq!(spec.stdin, b"SOURCEDATA");
    let mut config = config(dir.path());
    config.scripts.lua = "lua5.4".into();
    let own = context(config, vec![fake]);
    let spec = prepare(&own.0, &own.1, &command("execute_js_lua", json!({"hash": hash}))).unwrap();
    assert_eq!((spec.program.as_str(), spec.args[0].as_str()), ("lua5.4", "-e"));
    assert!(spec.stdin.ends_with(b"SOURCEDATA"));
}

#[test]
fn byte_order_mark_of_a_lua_source_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, hash) = FakeSource::with(b"\xef\xbb\xbfSOURCE");
    let fake: Arc<dyn ScriptSource> = Arc::new(fake);
    for interpreter in ["", "lua5.4"] {
        let mut config = config(dir.path());
        config.scripts.lua = interpreter.into();
        let context = context(config, vec![Arc::clone(&fake)]);
        let spec = prepare(&context.0, &context.1, &command("execute_js_lua", json!({"hash": hash}))).unwrap();
        assert!(spec.stdin.ends_with(b"SOURCEDATA") && !spec.stdin.contains(&0xef), "{interpreter}");
        assert!(spec.args.iter().any(|arg| arg == "6" || arg.contains("io.read(6)")), "{:?}", spec.args);
    }
}

#[test]
fn a_script_is_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let (fake, hash) = FakeSource::with(b"pass");
    let (empty, fake) = (Arc::new(FakeSource::default()), Arc::new(fake));
    let context = context(config(dir.path()), vec![empty.clone(), fake.clone()]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // A hash may be given in either case.
            let args = json!({"hash": hash.to_ascii_uppercase()});
            let context = &context;
            scope.spawn(move || prepare(&context.0, &context.1, &command("execute_js_py", args)).unwrap());
        }
    });
    assert_eq!((empty.asked.load(Ordering::SeqCst), fake.asked.load(Ordering::SeqCst)), (1, 1));
    let kept = dir.path().join(format!("scripts/{hash}.py"));
    assert_eq!(fs::read(&kept).unwrap(), b"pass");
    // A stored script that was changed is fetched again before it is used.
    fs::write(&kept, "raise SystemExit").unwrap();
    prepare(&context.0, &context.1, &command("execute_js_py", json!({"hash": hash}))).unwrap();
    assert_eq!(fake.asked.load(Ordering::SeqCst), 2);
    assert_eq!(fs::read(&kept).unwrap(), b"pass");
}

#[test]
fn source_with_another_hash_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let hash = "0".repeat(64);
    let forged = FakeSource { sources: vec![(hash.clone(), b"evil".to_vec())], ..FakeSource::default() };
    let context = context(config(dir.path()), vec![Arc::new(forged)]);
    refused(&context, json!({"hash": hash}), "is another one");
    assert!(!dir.path().join("scripts").exists());
}

#[test]
fn a_controller_that_is_away_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let trouble = |retryable| Some(FetchError { reason: "the controller is away".into(), retryable });
    let hash = "0".repeat(64);
    let away = |retryable| Arc::new(FakeSource { trouble: trouble(retryable), ..FakeSource::default() });

    let refuses = away(false);
    let context = context(config(dir.path()), vec![refuses.clone()]);
    refused(&context, json!({"hash": hash}), "cannot be fetched: the controller is away");
    assert_eq!(refuses.asked.load(Ordering::SeqCst), 1);

    let flickers = away(true);
    let mut store = Store::new(&config(dir.path()), vec![flickers.clone()]);
    store.timeout = Duration::from_millis(600);
    let fault = store.find(&Wanted::Hash(hash, String::new()), Language::Python).unwrap_err();
    assert!(fault.why.contains("the controller is away") && fault.code == 126, "{fault:?}");
    let unknown = Store::new(&config(dir.path()), vec![Arc::new(FakeSource::default())]);
    let fault = unknown.find(&Wanted::Hash("1".repeat(64), String::new()), Language::Python).unwrap_err();
    assert_eq!(fault.code, 127, "{fault:?}");
    assert!(flickers.asked.load(Ordering::SeqCst) >= 1);
}
