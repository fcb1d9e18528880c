//! `scripts/install-agent`: one line that makes a machine a node, and one that unmakes it.

use jsacc::auth::ca::Ca;
use jstests::process::{Output, Process};
use jstests::{Acc, AccOptions, Client, LONG, Redis, bin, run_with};
use nix::sys::signal::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs the script under a shell, below a folder instead of `/`.
#[track_caller]
fn install(prefix: &Path, args: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install-agent");
    let mut command = Command::new("/bin/sh");
    command.arg(script).arg("--prefix").arg(prefix).args(args);
    run_with(&mut command)
}

/// As above under BusyBox, with nothing but its applets to be found.
#[track_caller]
fn install_with_busybox(prefix: &Path, args: &[&str]) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install-agent");
    let applets = prefix.with_extension("applets");
    if !applets.exists() {
        fs::create_dir(&applets).expect("a folder");
        let mut command = Command::new("busybox");
        assert_eq!(run_with(command.args(["--install", "-s"]).arg(&applets)).code, 0, "busybox installs its applets");
    }
    let mut command = Command::new(applets.join("sh"));
    command.arg(script).arg("--prefix").arg(prefix).args(args).env("PATH", &applets);
    run_with(&mut command)
}

/// Serves a file to every client, as a web server of a few lines.
fn serve(file: &Path) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let body = fs::read(file).expect("the file");
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = socket.read(&mut request);
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(&body));
        }
    });
    format!("http://127.0.0.1:{port}/jsagent.tar.gz")
}

#[test]
fn busybox_and_an_address_are_enough() {
    let busybox = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join("busybox").is_file());
    assert!(busybox, "busybox is not installed; apt-get install busybox");
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let dir = tempfile::tempdir().expect("a folder");
    // As it is released: an archive with a folder.
    let folder = dir.path().join("jsagent-0");
    fs::create_dir(&folder).expect("a folder");
    std::os::unix::fs::symlink(bin("jsagent"), folder.join("jsagent")).expect("a link");
    let archive = dir.path().join("jsagent.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir.path()).args(["-chzf"]).arg(&archive).arg("jsagent-0");
    assert_eq!(run_with(&mut tar).code, 0);
    let (url, sum) = (serve(&archive), sum(&archive));
    let prefix = dir.path().join("root");
    let token = dir.path().join("token");
    fs::write(&token, acc.command(&["token"]).stdout).expect("the token");
    let (token, controller) = (token.display().to_string(), acc.url());
    let enrol = ["--controller", &controller, "--token", &token, "--gid", "6", "--nid", "8", "--role", "small"];

    let wrong = install_with_busybox(&prefix, &[&["--from", &url, "--sha256", &"0".repeat(64)][..], &enrol].concat());
    assert!(wrong.code == 1 && wrong.stderr.contains("nothing was changed"), "{wrong:?}");
    assert!(!prefix.join("usr").exists());
    let good = install_with_busybox(&prefix, &[&["--from", &url, "--sha256", &sum][..], &enrol].concat());
    assert_eq!(good.code, 0, "{good:?}");
    let mut command = Command::new(prefix.join("usr/bin/jsagent"));
    command.arg("--check-config").arg("-c").arg(prefix.join("etc/jsagent/agent.toml"));
    assert_eq!(run_with(&mut command).code, 0);
    let gone = install_with_busybox(&prefix, &["--uninstall", "--purge"]);
    assert_eq!(gone.code, 0, "{gone:?}");
    assert!(!prefix.join("usr/bin/jsagent").exists() && !prefix.join("etc/jsagent").exists());
}

/// A web server with TLS. It answers `/program` with a shell script, and everything else with a redirect to what
/// follows `?`.
fn serve_tls(ca: &Ca, now: u64) -> u16 {
    let (cert, key) = ca.server(&["localhost".to_owned()], now, 10).expect("a certificate");
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).map(|cert| cert.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).expect("a configuration"));
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).expect("a connection");
            let mut stream = StreamOwned::new(connection, socket);
            let mut request = [0; 4096];
            let Ok(length) = stream.read(&mut request) else { continue };
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let answer = match path.split_once('?') {
                Some((_, to)) => format!("HTTP/1.0 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"),
                None => format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{FETCHED}", FETCHED.len()),
            };
            let _ = stream.write_all(answer.as_bytes()).and_then(|()| stream.flush());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    port
}

/// A program that tells its version and is refused by every controller.
const FETCHED: &str = "#!/bin/sh\n[ \"$1\" = --version ] && echo fetched\n";

#[test]
fn https_address_stays_on_https_through_redirects() {
    let dir = tempfile::tempdir().expect("a folder");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_millis() as u64;
    let ca = Ca::open(dir.path(), now).expect("a CA");
    let port = serve_tls(&ca, now);
    let program = dir.path().join("program");
    fs::write(&program, FETCHED).expect("a program");
    let (plain, secure) = (serve(&program), format!("https://localhost:{port}"));
    let (ca, wgetrc) = (dir.path().join("ca.pem"), dir.path().join("wgetrc"));
    fs::write(&wgetrc, format!("ca_certificate = {}\n", ca.display())).expect("settings of wget");
    for tool in ["curl", "wget"] {
        // A folder of programs in which this one alone can fetch something.
        let tools = dir.path().join(tool);
        fs::create_dir(&tools).expect("a folder");
        assert_eq!(run_with(Command::new("busybox").args(["--install", "-s"]).arg(&tools)).code, 0);
        let _ = fs::remove_file(tools.join("wget"));
        std::os::unix::fs::symlink(Path::new("/usr/bin").join(tool), tools.join(tool)).expect("a link");
        let prefix = dir.path().join(format!("root-{tool}"));
        let fetch = |from: &str, checks: &[&str]| {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install-agent");
            let mut command = Command::new(tools.join("sh"));
            command.arg(script).arg("--prefix").arg(&prefix).args(["--from", from]).args(checks);
            command.args(["--controller", "https://127.0.0.1:9", "--token", "t", "--gid", "1", "--nid", "1"]);
            run_with(command.env("PATH", &tools).env("CURL_CA_BUNDLE", &ca).env("WGETRC", &wgetrc))
        };
        let sum = sum(&program);
        for checks in [&["--trust-tls"][..], &["--sha256", &sum]] {
            for (address, comes) in [
                ("/program".to_owned(), true),
                (format!("/there?{secure}/program"), true),
                ("/there?/program".to_owned(), true),
                (format!("/there?{plain}"), false),
                (format!("/there?{secure}/again?{plain}"), false),
                // Not one that only looks like it.
                (format!("/there?{plain}/:https://localhost/"), false),
                ("/program-for-nobody?ftp://localhost/".to_owned(), false),
            ] {
                let output = fetch(&format!("{secure}{address}"), checks);
                let fetched = output.stdout.contains("== fetched");
                assert_eq!((output.code, fetched), (1, comes), "{tool} {checks:?} {address}: {output:?}");
                assert!(comes || output.stderr.contains("cannot fetch"), "{tool} {address}: {output:?}");
            }
        }
    }
}

fn sum(path: &Path) -> String {
    jscommon::token::sha256_hex(&fs::read(path).expect("the program"))
}

#[test]
fn a_machine_becomes_a_node_and_ceases_to_be_one() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let token = acc.command(&["token"]).stdout.trim().to_owned();
    let prefix = tempfile::tempdir().expect("a folder");
    let prefix = prefix.path();
    let program = bin("jsagent");
    let from = program.to_str().expect("a path in UTF-8");
    let sum = sum(&program);
    let url = acc.url();
    let args = ["--from", from, "--sha256", &sum, "--controller", &url, "--token", &token, "--gid", "6", "--nid", "7"];
    let ca = acc.state_dir().join("ca.pem").display().to_string();
    let output = install(prefix, &[&args[..], &["--ca", &ca, "--role", "team/web", "--role", "db"][..]].concat());
    assert_eq!(output.code, 0, "{output:?}");

    let config = prefix.join("etc/jsagent/agent.toml");
    let mut command = Command::new(prefix.join("usr/bin/jsagent"));
    command.arg("-c").arg(&config).arg("--data-dir").arg(prefix.join("data"));
    let mut agent = Process::spawn(&mut command, "jsagent", prefix, Signal::SIGTERM);
    let mut client = Client::new(&redis);
    client.wait_seen("6:7");
    let id = client.push(json!({"cmd": "ping", "roles": ["team/web", "db"]}));
    assert_eq!(client.pop(&id)["state"], "OK");
    assert!(agent.stop(LONG).is_some_and(|status| status.success()));
    let unit = fs::read_to_string(prefix.join("etc/systemd/system/jsagent.service")).expect("the unit");
    assert!(unit.contains("Restart=always") && unit.contains("KillMode=process"), "{unit}");

    // An upgrade keeps what the node is.
    let before = fs::read_to_string(&config).expect("agent.toml");
    let output = install(prefix, &["--from", from]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(fs::read_to_string(&config).expect("agent.toml"), before);

    let output = install(prefix, &["--uninstall"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(!prefix.join("usr/bin/jsagent").exists() && config.exists());
    let output = install(prefix, &["--uninstall", "--purge"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert!(!config.exists());
}

#[test]
fn the_token_is_in_nobodys_arguments() {
    let dir = tempfile::tempdir().expect("a folder");
    // It notes what it was given, and is refused like an agent that no controller wants.
    let (program, seen) = (dir.path().join("jsagent"), dir.path().join("seen"));
    let note =
        format!("printf '%s|' \"$@\" >>'{0}'; [ \"$1\" = --version ] || {{ cat >>'{0}'; exit 1; }}", seen.display());
    fs::write(&program, format!("#!/bin/sh\n{note}\n")).expect("a program");
    let (file, prefix) = (dir.path().join("token"), dir.path().join("root"));
    fs::write(&file, "s3cret-token\n").expect("the token");
    for token in ["s3cret-token", file.to_str().expect("a path in UTF-8")] {
        let _ = fs::remove_file(&seen);
        let enrol = ["--controller", "https://127.0.0.1:9", "--token", token, "--gid", "6", "--nid", "9"];
        let from = ["--from", program.to_str().expect("a path in UTF-8")];
        let output = install(&prefix, &[&from[..], &enrol[..]].concat());
        assert!(output.code == 1 && output.stderr.contains("refused"), "{output:?}");
        let seen = fs::read_to_string(&seen).expect("what it was given");
        let (arguments, input) = seen.rsplit_once('|').expect("arguments");
        assert!(arguments.contains("|--token|-|") && !arguments.contains("s3cret"), "{seen}");
        assert_eq!(input, "s3cret-token");
    }
}

#[test]
fn wrong_argument_stops_the_installation_before_it_changes_anything() {
    let prefix = tempfile::tempdir().expect("a folder");
    let prefix = prefix.path();
    let program = bin("jsagent");
    let from = program.to_str().expect("a path in UTF-8");
    let enrol = ["--controller", "https://127.0.0.1:9", "--token", "t", "--gid", "1", "--nid", "1"];
    #[track_caller]
    fn refused(output: Output, code: i32, word: &str) {
        assert_eq!(output.code, code, "{output:?}");
        assert!(output.stderr.contains(word), "{output:?}");
    }
    refused(install(prefix, &[]), 2, "--from");
    refused(install(prefix, &["--surprise"]), 2, "--surprise");
    refused(install(prefix, &["--from", from]), 2, "--controller");
    refused(install(prefix, &["--from"]), 2, "--from");
    refused(install(prefix, &[&["--from", "/no/such/file"][..], &enrol[..]].concat()), 1, "/no/such/file");
    refused(install(prefix, &[&["--from", "http://127.0.0.1:9/jsagent"][..], &enrol[..]].concat()), 1, "--sha256");
    // The digit belongs to the address, and says nothing of --trust-tls.
    refused(install(prefix, &[&["--from", "https://127.0.0.1:9/jsagent-1"][..], &enrol[..]].concat()), 1, "--sha256");
    refused(install(prefix, &[&["--from", from, "--sha256", ""][..], &enrol[..]].concat()), 2, "64 hexadecimal digits");
    let long = "x".repeat(65);
    for role in ["", "*", "a&b", "a b", "a\"]\nx=[\"", "x;w/tmp/written\n#", "é", &long] {
        refused(install(prefix, &[&["--from", from, "--role", role][..], &enrol[..]].concat()), 2, "--role wants");
    }
    let wrong = "0".repeat(64);
    refused(install(prefix, &[&["--from", from, "--sha256", &wrong][..], &enrol[..]].concat()), 1, "sum");
    refused(install(prefix, &["--from", "/bin/sh", "--gid", "x"]), 2, "--gid");
    assert!(!prefix.join("usr").exists(), "nothing was installed");
}
