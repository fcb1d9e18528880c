//! The two programs on a command line: help, bad usage, bad files, and what they say then.

use jstests::process::{Output, run};
use jstests::redis_server::free_port;
use jstests::{Acc, AccOptions, Redis, bin};
use std::fs;
use std::path::Path;

/// Ends with `code` and one line on stderr that contains all of `words`.
#[track_caller]
fn one_line(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{output:?}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "one line, not {output:?}");
    for word in words {
        assert!(lines[0].contains(word), "`{}` does not say {word}", lines[0]);
    }
}

/// Ends with any code but 0 and 101 (a panic) and says all of `words`.
#[track_caller]
fn fails(output: &Output, words: &[&str]) {
    assert!(![0, 101, 134].contains(&output.code), "{output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "`{}` does not say {word}", output.stderr);
    }
    assert!(!output.stderr.contains("panicked"), "{output:?}");
}

#[test]
fn help_and_version() {
    for program in ["jsacc", "jsagent"] {
        let help = run(program, &["--help"]);
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{program}");
        for word in ["--help", "--version", "--log-level", "-c"] {
            assert!(help.stdout.contains(word), "{program} --help does not name {word}");
        }
        let version = run(program, &["--version"]);
        assert_eq!(version.code, 0, "{program}");
        assert!(version.stdout.contains(program) && version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    }
    let help = run("jsacc", &["--help"]).stdout;
    let words = "--port --bind --redis --state-dir --tls-cert --tls-key --client-ca --insecure-http --insecure-no-auth \
        --host --metrics-token-file --nodes-token-file enroll revoke rotate token";
    words.split(' ').for_each(|word| assert!(help.contains(word), "jsacc --help does not name {word}"));
    let help = run("jsagent", &["--help"]).stdout;
    let words = "--gid --nid --controller --data-dir --check-config enroll";
    words.split(' ').for_each(|word| assert!(help.contains(word), "jsagent --help does not name {word}"));
}

#[test]
fn bad_usage_is_code_2_and_one_line() {
    one_line(&run("jsacc", &["--no-such-flag"]), 2, &["--no-such-flag"]);
    one_line(&run("jsacc", &["-p", "eighty"]), 2, &["port", "eighty"]);
    one_line(&run("jsacc", &["-p", "70000"]), 2, &["70000"]);
    one_line(&run("jsacc", &["-p"]), 2, &["-p"]);
    one_line(&run("jsacc", &["no-such-command"]), 2, &["no-such-command"]);
    one_line(&run("jsacc", &["-b", "not an address"]), 2, &["not an address"]);
    one_line(&run("jsacc", &["--log-level", "loud"]), 2, &["loud"]);
    one_line(&run("jsacc", &["enroll", "1"]), 2, &["NID"]);
    one_line(&run("jsacc", &["enroll", "0", "1"]), 2, &["0"]);
    one_line(&run("jsacc", &["token", "--ttl", "soon"]), 2, &["soon"]);
    one_line(&run("jsagent", &["--no-such-flag"]), 2, &["--no-such-flag"]);
    one_line(&run("jsagent", &["--gid", "x"]), 2, &["gid", "x"]);
    one_line(&run("jsagent", &["--gid", "0", "--nid", "1", "--controller", "http://127.0.0.1:1"]), 2, &["gid"]);
    one_line(&run("jsagent", &["--controller", "ftp://x", "--gid", "1", "--nid", "1"]), 2, &["ftp://x"]);
    one_line(&run("jsagent", &["--log-level", "loud"]), 2, &["loud"]);
    one_line(&run::<&str>("jsagent", &[]), 2, &["-c"]);
    let enroll =
        ["enroll", "--controller", "https://h:70000", "--token", "t", "--gid", "1", "--nid", "1", "--out", "o"];
    one_line(&run("jsagent", &enroll), 2, &["--controller", "https://h:70000", "port"]);
}

#[test]
fn a_missing_file_is_named() {
    fails(&run("jsacc", &["-c", "/no/such/jsacc.toml"]), &["/no/such/jsacc.toml"]);
    fails(&run("jsagent", &["-c", "/no/such/agent.toml"]), &["/no/such/agent.toml"]);
    fails(&run("jsagent", &["--check-config", "-c", "/no/such/agent.toml"]), &["/no/such/agent.toml"]);
}

#[test]
fn a_port_in_use_is_said() {
    let redis = Redis::start();
    let first = Acc::start(&redis, AccOptions::default());
    let state = first.state_dir();
    let port = first.port().to_string();
    let state = state.to_str().expect("a path in UTF-8");
    let second = run("jsacc", &["-b", "127.0.0.1", "-p", &port, "-r", &redis.url(), "--state-dir", state]);
    fails(&second, &[&port, "in use"]);
}

#[test]
fn a_key_that_cannot_be_read_is_named() {
    let redis = Redis::start();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("a path in UTF-8");
    let port = free_port().to_string();
    let start = |more: &[&str]| {
        let mut args = vec!["-b", "127.0.0.1", "-p", &port, "-r"];
        let url = redis.url();
        args.push(&url);
        args.extend(["--state-dir", folder]);
        args.extend(more);
        run("jsacc", &args)
    };
    fails(&start(&["--tls-cert", "/no/cert.pem", "--tls-key", "/no/key.pem"]), &["/no/"]);
    fails(&start(&["--tls-cert", "/no/cert.pem"]), &["--tls-key"]);
    let garbage = format!("{folder}/garbage.pem");
    fs::write(&garbage, "no key at all").expect("write");
    fails(&start(&["--tls-cert", &garbage, "--tls-key", &garbage]), &["garbage.pem"]);
    // A key of its own that is spoilt: never silently made anew, for nodes trust the old one.
    let acc = Acc::start(&redis, AccOptions { tls: true, ..AccOptions::default() });
    let state = acc.state_dir();
    let redis_url = acc.redis_url().to_owned();
    let copy = format!("{folder}/state");
    copy_dir(&state, Path::new(&copy));
    drop(acc);
    let key = format!("{copy}/server.key");
    fs::write(&key, "spoilt").expect("write");
    let args = ["-b", "127.0.0.1", "-p", &port, "-r", &redis_url, "--state-dir", &copy];
    fails(&run("jsacc", &args), &["server.key"]);
    assert_eq!(fs::read_to_string(&key).expect("read"), "spoilt", "it was not replaced");
}

#[test]
fn a_redis_address_that_is_none_is_said() {
    let state = tempfile::tempdir().expect("a folder");
    let state = state.path().to_str().expect("a path in UTF-8");
    fails(&run("jsacc", &["-r", "gopher://x", "--state-dir", state]), &["redis", "unix:///path"]);
    fails(&run("jsacc", &["-r", "localhost:port", "--state-dir", state]), &["redis", "host:port"]);
}

#[test]
fn another_node_secret_refuses_to_start() {
    let redis = Redis::start();
    let _first = Acc::start(&redis, AccOptions { auth: true, ..AccOptions::default() });
    let mut second = Acc::start_unready(&redis.url(), AccOptions { auth: true, ..AccOptions::default() });
    assert!(![0, 101, 134].contains(&second.wait()), "{}", second.output());
    assert!(second.output().contains("secret"), "{}", second.output());
}

#[test]
fn the_state_directory_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(&acc.state_dir()), 0o700);
    for entry in fs::read_dir(acc.state_dir()).expect("the state directory") {
        let path = entry.expect("an entry").path();
        let secret = path.extension().is_some_and(|ext| ext == "key" || ext == "secret");
        assert!(!secret || mode(&path) == 0o600, "{} is {:o}", path.display(), mode(&path));
    }
    let fingerprints: Vec<String> = jstests::Client::new(&redis).redis(&["KEYS", "jsacc:*"]);
    assert!(!fingerprints.is_empty());
}

#[test]
fn check_config_names_every_fault_with_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agent.toml");
    let check = |text: &str| {
        fs::write(&file, text).expect("write");
        run("jsagent", &["--check-config", "-c", file.to_str().expect("a path in UTF-8")])
    };
    let good = "[main]\ngid = 1\nnid = 10\n[controllers.main]\nurl = \"https://ac.example:4000\"\n";
    let output = check(good);
    assert_eq!(output.code, 0, "{output:?}");
    let bad = "[main]\ngid = 0\nnid = \"ten\"\nrolls = [\"web\"]\n[controllers.main]\nurl = 5\n\
        [logging.db]\nlevels = \"1-99\"\n[monitor]\ninterval = -1\n[surprise]\n";
    let output = check(bad);
    fails(&output, &["gid", "nid", "rolls", "url", "levels", "interval", "surprise"]);
    for (line, key) in
        [(2, "gid"), (3, "nid"), (4, "rolls"), (6, "url"), (8, "levels"), (10, "interval"), (11, "surprise")]
    {
        let named = |text: &str| text.contains(key) && text.contains(&line.to_string());
        assert!(output.stderr.lines().any(named), "no line says {line} and {key}: {}", output.stderr);
    }
    fails(&check("[main\n"), &["1"]);
    fails(&check("[main]\ngid = 1\nnid = 10\n"), &["controllers"]);
    // The same faults stop a start.
    fs::write(&file, bad).expect("write");
    fails(&run("jsagent", &["-c", file.to_str().expect("a path in UTF-8")]), &["gid", "surprise"]);
}

#[test]
fn configuration_in_another_encoding_is_named_with_line_and_advice() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.toml");
    let path = file.to_str().expect("a path in UTF-8");
    let utf16: Vec<u8> = "\u{feff}[main]\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let faults: [(&[u8], &[&str]); 3] = [
        (&utf16, &["line 1: ", "UTF-16 (little endian)", "save it as UTF-8"]),
        (b"# one\n# f\xfcr\n", &["line 2: ", "0xfc", "Windows-1252", "save it as UTF-8"]),
        (b"# one\nx = \"C:\\data\\agent\\y\"\n", &["line 2: ", "escape", "single quotes"]),
    ];
    for (bytes, words) in faults {
        fs::write(&file, bytes).expect("write");
        for output in [run("jsagent", &["--check-config", "-c", path]), run("jsacc", &["-c", path])] {
            fails(&output, words);
            assert_eq!(output.stderr.matches("escape").count(), usize::from(words.contains(&"escape")), "{output:?}");
        }
    }
    let good = "\u{feff}[main]\r\ngid = 1\r\nnid = 10\r\n[controllers.main]\r\nurl = \"https://ac.example:4000\"\r\n";
    fs::write(&file, good).expect("write");
    assert_eq!(run("jsagent", &["--check-config", "-c", path]).code, 0);
    fs::write(&file, "\u{feff}port = 1\r\nstate_dir = \"/a\\nb\"\r\n").expect("write");
    fails(&run("jsacc", &["-c", path]), &["line 2: ", "state-dir", "control character", "single quotes"]);
}

#[test]
fn check_config_looks_into_the_files_of_credentials() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, token, ca) = (dir.path().join("agent.toml"), dir.path().join("token"), dir.path().join("ca.pem"));
    let text = format!(
        "[main]\ngid = 1\nnid = 10\n[controllers.main]\nurl = \"https://localhost:1\"\ntoken_file = {token:?}\nca = {ca:?}\n"
    );
    fs::write(&file, text).expect("write");
    let check = || run("jsagent", &["--check-config", "-c", file.to_str().expect("a path in UTF-8")]);
    let absent = check();
    assert_eq!(absent.code, 0, "a node may be enrolled later: {absent:?}");
    assert!(absent.stderr.contains("token") && absent.stderr.contains("controllers.main"), "{absent:?}");
    fs::write(&token, "1.10.5.abc\n").expect("write");
    fs::write(&ca, "no certificate").expect("write");
    let bad = check();
    assert_eq!(bad.code, 2, "{bad:?}");
    assert!(bad.stderr.contains("no certificate in") && !bad.stderr.contains("abc"), "{bad:?}");
}

#[test]
fn check_config_tells_a_token_that_no_controller_takes() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, token) = (dir.path().join("agent.toml"), dir.path().join("token"));
    let write = |more: &str| {
        let url = "http://localhost:1";
        let main = "[main]\ngid = 1\nnid = 10\ninsecure_paths = true";
        let text = format!("{main}\n[controllers.main]\nurl = \"{url}\"\n{more}");
        fs::write(&file, text).expect("write");
    };
    let check = || run("jsagent", &["--check-config", "-c", file.to_str().expect("a path in UTF-8")]);
    write("");
    let bare = check();
    assert!(bare.code == 0 && bare.stderr.contains("neither token_file nor client_cert"), "{bare:?}");
    write(&format!("token_file = {token:?}\n"));
    let absent = check();
    assert!(absent.code == 0 && absent.stderr.contains("does not start without it"), "{absent:?}");
    assert!(!absent.stdout.ends_with("is good\n"), "{absent:?}");
    let mac = "A".repeat(43);
    for (text, want) in [
        ("garbage".to_owned(), "is no node token"),
        ("1.10.5.AAAA".to_owned(), "is no node token"),
        (format!("jse1.id.1.99.{}", "a".repeat(64)), "exchange it for the node's own with jsagent enroll"),
        (format!("1.11.5.{mac}"), "is the token of node 1:11 and not of 1:10"),
    ] {
        fs::write(&token, text).expect("write");
        let bad = check();
        assert!(bad.code == 2 && bad.stderr.contains(want) && !bad.stderr.contains("AAAA"), "{bad:?}");
    }
    fs::write(&token, format!("1.10.5.{mac}")).expect("write");
    let good = check();
    assert!(good.code == 0 && good.stderr.is_empty() && good.stdout.ends_with("is good\n"), "{good:?}");
}

#[test]
fn pipe_or_device_in_place_of_a_file_is_refused_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, pipe) = (dir.path().join("agent.toml"), dir.path().join("pipe"));
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let real = dir.path().join("real");
    fs::write(&real, "x").expect("write");
    for place in [pipe.as_path(), Path::new("/dev/zero")] {
        for key in ["token_file", "ca", "client_cert"] {
            let both = if key == "client_cert" { format!("client_key = {real:?}\n") } else { String::new() };
            let text = format!(
                "[main]\ngid = 1\nnid = 10\ninsecure_paths = true\ndata_dir = {:?}\n[controllers.main]\n\
                 url = \"https://localhost:1\"\n{key} = {place:?}\n{both}",
                dir.path().join("data")
            );
            fs::write(&file, text).expect("write");
            let path = file.to_str().expect("a path in UTF-8");
            for (args, code) in [(&["--check-config", "-c", path][..], 2), (&["-c", path], 1)] {
                let output = run("jsagent", args);
                assert!(output.code == code && output.stderr.contains("it is no regular file"), "{key}: {output:?}");
            }
        }
        let place = place.to_str().expect("a path in UTF-8");
        for flag in ["--metrics-token-file", "--redis-ca"] {
            let state = dir.path().join("state");
            let port = free_port().to_string();
            let redis = "rediss://127.0.0.1:1";
            let args = ["-p", &port, "-r", redis, "--state-dir", state.to_str().expect("UTF-8"), flag, place];
            let output = run("jsacc", &[&args[..], &["--insecure-paths"]].concat());
            fails(&output, &["it is no regular file"]);
        }
    }
}

#[test]
fn check_config_tells_a_data_folder_that_cannot_be_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, place) = (dir.path().join("agent.toml"), dir.path().join("data"));
    let text =
        format!("[main]\ngid = 1\nnid = 10\ndata_dir = {place:?}\n[controllers.main]\nurl = \"http://localhost:1\"\n");
    fs::write(&file, text).expect("write");
    let path = file.to_str().expect("a path in UTF-8");
    fs::write(&place, "").expect("write");
    let refused = |want| {
        let output = run("jsagent", &["--check-config", "-c", path]);
        assert!(output.code == 2 && output.stderr.contains(want), "{output:?}");
        fails(&run("jsagent", &["-c", path]), &[want]);
    };
    refused("data is no folder");
    fs::remove_file(&place).expect("remove");
    std::os::unix::fs::symlink("nowhere", &place).expect("a link");
    refused("data is a link to a place that is not there");
}

#[test]
fn one_data_folder_has_one_agent() {
    let stage = jstests::Stage::start();
    let mut client = stage.client;
    client.wait_seen("1:10");
    let file = stage.agent.config_file();
    let second = run("jsagent", &["-c", file.to_str().expect("a path in UTF-8")]);
    let folder = stage.agent.data_dir();
    fails(&second, &[folder.to_str().expect("a path in UTF-8")]);
}

#[test]
fn flags_alone_are_enough_for_an_agent() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = jstests::Client::new(&redis);
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = std::process::Command::new(bin("jsagent"));
    command.args(["--gid", "3", "--nid", "4", "--controller", &acc.url(), "--data-dir"]).arg(folder.path());
    let signal = nix::sys::signal::Signal::SIGKILL;
    let mut agent = jstests::process::Process::spawn(&mut command, "jsagent", folder.path(), signal);
    let id = client.push(serde_json::json!({"gid": 3, "nid": 4, "cmd": "ping"}));
    assert_eq!(client.pop(&id)["state"], "OK");
    assert!(agent.stop(jstests::LONG).is_some_and(|status| status.success()));
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copy");
        }
    }
}
