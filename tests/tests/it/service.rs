//! The reports to a service manager, and its needs: readiness, life, an end with the right status.

use jstests::proc;
use jstests::process::Process;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, bin, wait_for};
use nix::sys::signal::Signal;
use serde_json::json;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

/// The socket of a service manager of a few lines.
struct Ear {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Ear {
    fn open() -> Ear {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        Ear { socket, dir }
    }

    fn env(&self) -> Vec<(String, String)> {
        let path = self.dir.path().join("notify").display().to_string();
        vec![("NOTIFY_SOCKET".to_owned(), path), ("WATCHDOG_USEC".to_owned(), "300000".to_owned())]
    }

    #[track_caller]
    fn hears(&self, word: &str) {
        wait_for(&format!("{word} is told"), LONG, || {
            let mut buffer = [0; 256];
            let n = self.socket.recv(&mut buffer).ok()?;
            (&buffer[..n] == word.as_bytes()).then_some(())
        });
    }
}

#[test]
fn the_agent_tells_that_it_is_ready_alive_and_stopping() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let ear = Ear::open();
    let mut agent = Agent::start(&acc, AgentOptions { env: ear.env(), ..AgentOptions::default() });
    ear.hears("READY=1");
    ear.hears("WATCHDOG=1");
    ear.hears("WATCHDOG=1");
    // A child of the agent must not speak in its name.
    let mut client = Client::new(&redis);
    let result = client.run("execute", json!({"cmd": "/usr/bin/env"}));
    let env = result["streams"][0].as_str().expect("stdout");
    assert!(!env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG"), "{env}");
    agent.signal(Signal::SIGTERM);
    ear.hears("STOPPING=1");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn the_controller_tells_that_it_is_ready_alive_and_stopping() {
    let redis = Redis::start();
    let ear = Ear::open();
    let mut acc = Acc::start(&redis, AccOptions { env: ear.env(), ..AccOptions::default() });
    ear.hears("READY=1");
    ear.hears("WATCHDOG=1");
    assert_eq!(acc.stop(), Some(0));
    ear.hears("STOPPING=1");
}

#[test]
fn an_agent_without_a_controller_starts_and_stops_well() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(bin("jsagent"));
    command.args(["--gid", "1", "--nid", "1", "--controller", "http://127.0.0.1:9", "--data-dir"]).arg(dir.path());
    let ear = Ear::open();
    command.envs(ear.env());
    let mut agent = Process::spawn(&mut command, "jsagent", dir.path(), Signal::SIGKILL);
    ear.hears("READY=1");
    assert!(agent.stop(LONG).is_some_and(|status| status.success()), "{}", agent.output());
}

#[test]
fn a_controller_ends_with_any_of_its_threads() {
    // The dispatcher with its first command, the wake-up reader with its first ring, the periodic tasks and the proxy at some
    // turn, one of the web server with its first request.
    for (point, thread) in [
        ("acc.taken", "dispatcher"),
        ("acc.heard", "wakeups"),
        ("acc.periodic:3", "periodic"),
        ("acc.proxy:20", "proxy"),
        ("acc.http", "http-"),
    ] {
        let redis = Redis::start();
        let mut acc = Acc::start_unready(&redis.url(), AccOptions::panicking_at(point));
        let mut client = Client::new(&redis);
        let id = wait_for("it ends by itself", LONG, || {
            let id = client.push(json!({"gid": 1, "nid": 10, "cmd": "ping", "expires": 1}));
            for ac in client.redis::<Vec<String>>(&["ZRANGE", "jsacc:acs", "0", "-1"]) {
                let _: i64 = client.redis(&["LPUSH", &format!("jsacc:bell:{ac}"), "1:10"]);
            }
            let _ = acc.anonymous().get("/health");
            acc.ended().then_some(id)
        });
        assert_eq!(acc.wait(), 1, "{thread}: {}", acc.output());
        let output = acc.output();
        assert!(
            output.contains(&format!("jsacc: the thread '{thread}")) && output.contains("' has failed"),
            "{output}"
        );
        // As the service manager starts it: what was pushed meanwhile is taken.
        acc.resume();
        assert_eq!(client.pop(&id)["state"], "ERROR", "{thread}");
        assert_eq!(acc.stop(), Some(0));
    }
}

#[test]
fn agent_whose_thread_panics_ends_with_one_and_names_it() {
    for (point, thread) in [
        ("agent.received", "poll main"),
        ("agent.received:2", "supervisor"),
        ("agent.posted", "send main"),
        ("agent.read", "output"),
        ("agent.logged", "logger"),
        ("agent.sampled", "monitor"),
        ("agent.flushed", "aggregator"),
    ] {
        let redis = Redis::start();
        let acc = Acc::start(&redis, AccOptions::default());
        let env = vec![("JS_PANIC_AT".to_owned(), point.to_owned())];
        let options = AgentOptions { env, ..AgentOptions::default() }.config("[stats]\ninterval = 1");
        let mut client = Client::new(&redis);
        let id = client.send("execute", json!({"cmd": "/bin/echo a"}));
        let mut agent = Agent::start(&acc, options);
        assert_eq!(agent.wait(), 1, "{thread}: {}", agent.output());
        let output = agent.output();
        assert!(output.contains(&format!("the thread '{thread}' panicked")), "{thread}: {output}");
        assert!(output.contains(&format!("the thread '{thread}' has failed: the agent ends")), "{thread}: {output}");
        // As the service manager starts it: nothing is lost.
        agent.resume();
        client.pop(&id);
        assert_eq!(client.run("ping", json!({}))["state"], "OK");
        assert_eq!(agent.stop(), Some(0));
    }
}

#[test]
fn the_hardened_unit_takes_nothing_that_the_agent_itself_needs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/packaging/hardened.conf");
    let text = std::fs::read_to_string(path).expect("the drop-in");
    let set = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    // It answers clone3 with ENOSYS, without which no short job starts inside a cgroup of its own.
    assert_eq!(set("RestrictNamespaces"), None);
    // Without it there would be more namespaces than a user's.
    assert!(set("CapabilityBoundingSet").is_some_and(|list| !list.contains("CAP_SYS_ADMIN")));
    assert_eq!(set("NoNewPrivileges"), Some("yes"));
    // Its credentials lie there, and it renews them.
    assert_eq!(set("ReadWritePaths"), Some("/etc/jsagent"));
}

#[test]
fn an_idle_controller_seldom_wakes_up() {
    let redis = Redis::start();
    let args = vec!["--log-level".to_owned(), "info".to_owned()];
    let acc = Acc::start(&redis, AccOptions { args, ..AccOptions::default() });
    let mut client = Client::new(&redis);
    for nid in [10, 11] {
        let node = acc.node(1, nid);
        std::thread::spawn(move || node.get(&format!("/1/{nid}/cmd?wait=60")));
        client.wait_seen(&format!("1:{nid}"));
    }
    // The work of a start is over: the polls are written down as seen, the web server's threads are back.
    let quiet = || proc::wakeups(&[acc.pid()], Duration::from_secs(1), || Ok(())).expect("it runs")[0];
    wait_for("it is idle", LONG, || (quiet() < 10).then_some(()));
    let count = proc::wakeups(&[acc.pid()], Duration::from_secs(15), || Ok(())).expect("it runs")[0];
    assert!(count < 60, "{count} wake-ups in 15 s, 240 a minute are the most");
}
