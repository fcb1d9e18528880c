//! `scripts/install-agent` on nodes without systemd: the agent starts now, and with the node.
//!
//! A node is a folder with BusyBox and nothing else, that a shell has for its `/`.

use jstests::process::Process;
use jstests::{LONG, Output, run_with, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A script in place of the agent: it notes each start, and ends when it is told to.
const AGENT: &str = r#"#!/bin/sh
case $1 in
    --version) echo "jsagent 0" ;;
    enroll) echo '[main]' >/etc/jsagent/agent.toml ;;
    -c)
        trap 'exit 0' TERM
        echo $$ >>/starts
        while :; do sleep 0.1; done
        ;;
esac
"#;

const INSTALL: &[&str] =
    &["--from", "/agent", "--controller", "https://127.0.0.1:9", "--token", "t", "--gid", "1", "--nid", "1"];

struct Node {
    root: TempDir,
}

impl Node {
    /// A node, when one can be made here.
    #[allow(clippy::print_stdout)] // where it cannot run, the log says so
    fn new() -> Option<Node> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let Some(busybox) = std::env::split_paths(&path).map(|dir| dir.join("busybox")).find(|file| file.is_file())
        else {
            println!("SKIPPED: busybox is not installed (Debian: busybox), install-agent is not run on a node of it");
            return None;
        };
        let node = Node { root: tempfile::tempdir().expect("a folder") };
        for folder in ["bin", "sbin", "etc", "proc", "dev", "tmp", "usr/bin"] {
            fs::create_dir_all(node.path(folder)).expect("a folder");
        }
        fs::write(node.path("dev/null"), "").expect("a file");
        let libraries = run_with(Command::new("ldd").arg(&busybox)).stdout;
        let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
        for file in libraries.chain([busybox.clone()]) {
            let to = node.path(file.strip_prefix("/").expect("a whole path"));
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            fs::copy(&file, to).expect("a copy");
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install-agent");
        fs::copy(script, node.path("install-agent")).expect("a copy");
        node.script("agent", AGENT);
        run_with(Command::new(&busybox).args(["--install", "-s"]).arg(node.path("bin")));
        let output = node.run("true", &[]);
        if output.code != 0 {
            println!("SKIPPED: no folder can become a node here (unshare, chroot): {}", output.stderr);
            return None;
        }
        Some(node)
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn script(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().expect("a folder")).expect("a folder");
        fs::write(self.path(name), text).expect("a file");
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).expect("its mode");
    }

    /// Runs a program of the node.
    #[track_caller]
    fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new("unshare");
        // An account that is not root here is root there.
        if fs::metadata("/proc/self").expect("this process").uid() != 0 {
            command.arg("-r");
        }
        let enter = "mount --rbind /proc \"$1/proc\" && mount --bind /dev/null \"$1/dev/null\" && exec chroot \"$@\"";
        command.args(["-m", "sh", "-c", enter, "sh"]).arg(self.root.path()).arg(program).args(args);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("TMPDIR", "/tmp");
        run_with(&mut command)
    }

    #[track_caller]
    fn install(&self, args: &[&str]) -> Output {
        let output = self.run("/bin/sh", &[&["/install-agent"], args].concat());
        assert_eq!(output.code, 0, "{output:?}");
        output
    }

    fn starts(&self) -> Vec<i32> {
        self.read("starts").lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn is_alive(pid: i32) -> bool {
        kill(Pid::from_raw(pid), None).is_ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Ends the processes that a failed test has left: the loop first, for it would start another.
        for pid in self.read("run/jsagent.pid").trim().parse().into_iter().chain(self.starts()) {
            if fs::read_link(format!("/proc/{pid}/root")).is_ok_and(|root| root == self.root.path()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

#[test]
fn without_any_init_it_runs_and_says_that_it_will_not_start_by_itself() {
    let Some(node) = Node::new() else { return };
    let output = node.install(INSTALL);
    assert!(output.stderr.contains("does NOT start when this node boots"), "{output:?}");
    assert!(output.stderr.contains("/etc/init.d/jsagent start"), "{output:?}");
    wait_until("the agent runs", LONG, || node.starts().len() == 1);
    assert_eq!(node.run("/etc/init.d/jsagent", &["status"]).code, 0);
    assert_eq!(node.run("/etc/init.d/jsagent", &["start"]).code, 0, "a second one is not started");
    // It restarts by ending.
    let _ = kill(Pid::from_raw(node.starts()[0]), Signal::SIGTERM);
    wait_until("it is started again", LONG, || node.starts().len() == 2);
    node.install(&["--uninstall", "--purge"]);
    wait_until("it is gone", LONG, || !Node::is_alive(node.starts()[1]));
    assert_eq!(node.starts().len(), 2);
    let left = ["usr/bin/jsagent", "etc/init.d/jsagent", "etc/jsagent", "var/lib/jsagent", "var/log/jsagent.log"];
    assert_eq!(left.map(|name| node.path(name).exists()), [false; 5]);
}

#[test]
fn busyboxs_init_starts_it_with_the_node() {
    let Some(node) = Node::new() else { return };
    // Buildroot's: a script that starts whatever is called so.
    let rcs = "for i in /etc/init.d/S??*; do $i start; done";
    node.script("etc/init.d/rcS", rcs);
    let output = node.install(INSTALL);
    assert!(output.stderr.is_empty(), "{output:?}");
    wait_until("the agent runs", LONG, || node.starts().len() == 1);
    node.run("/etc/init.d/jsagent", &["stop"]);
    assert_eq!(node.run("/bin/sh", &["/etc/init.d/rcS"]).code, 0);
    wait_until("it runs after a boot", LONG, || node.starts().len() == 2);
    node.install(&["--uninstall"]);
    let left = fs::read_dir(node.path("etc/init.d")).expect("the folder").count();
    assert_eq!(left, 1, "its link is gone too");
    fs::remove_file(node.path("etc/init.d/rcS")).expect("removed");

    // Otherwise the table itself has a line, once; others stay as they were.
    let table = "# a table\n::sysinit:/bin/mount -a\n::respawn:/sbin/getty 115200 console\n";
    fs::write(node.path("etc/inittab"), table).expect("a table");
    for _ in 0..2 {
        let output = node.install(INSTALL);
        assert!(output.stderr.is_empty(), "{output:?}");
        assert_eq!(node.read("etc/inittab"), format!("{table}::once:/etc/init.d/jsagent start\n"));
    }
    node.install(&["--uninstall"]);
    assert_eq!(node.read("etc/inittab"), table);
    assert!(node.starts().iter().all(|pid| !Node::is_alive(*pid)), "nothing runs");
}

#[test]
fn openrc_supervises_it() {
    let Some(node) = Node::new() else { return };
    node.script("sbin/rc-update", "#!/bin/sh\necho \"$@\" >>/told\n");
    // As OpenRC does: the script's variables and functions, then the verb.
    let run = "#!/bin/sh\n. \"$1\"\ndepend() { :; }\necho \"$supervisor $command $command_args $2\" >>/told\n";
    node.script("sbin/openrc-run", run);
    let output = node.install(INSTALL);
    assert!(output.stderr.is_empty(), "{output:?}");
    let line = "supervise-daemon /usr/bin/jsagent -c /etc/jsagent/agent.toml";
    assert_eq!(node.read("told"), format!("-q add jsagent default\n{line} restart\n"));
    // An upgrade stops what the older script has started before that is replaced.
    node.install(&["--from", "/agent"]);
    assert!(node.read("told").ends_with(&format!("{line} stop\n-q add jsagent default\n{line} restart\n")));
    node.install(&["--uninstall"]);
    assert!(node.read("told").ends_with(&format!("{line} stop\n-q del jsagent default\n")), "{}", node.read("told"));
    assert!(!node.path("etc/init.d/jsagent").exists());
}

#[test]
fn openwrts_procd_supervises_it() {
    let Some(node) = Node::new() else { return };
    let common = "procd_open_instance() { :; }\nprocd_close_instance() { :; }\n\
        procd_set_param() { echo \"$@\" >>/told; }\n. \"$1\"\n\
        case $2 in restart) start_service ;; *) echo \"$2\" >>/told ;; esac\n";
    node.script("etc/rc.common", common);
    let output = node.install(INSTALL);
    assert!(output.stderr.is_empty(), "{output:?}");
    let told = node.read("told");
    assert!(told.starts_with("command /usr/bin/jsagent -c /etc/jsagent/agent.toml\nrespawn "), "{told}");
    let link = |name: &str| fs::read_link(node.path("etc/rc.d").join(name)).ok();
    assert_eq!(link("S95jsagent"), Some("../init.d/jsagent".into()));
    node.install(&["--uninstall"]);
    assert!(link("S95jsagent").is_none() && link("K05jsagent").is_none());
    assert!(node.read("told").ends_with("stop\n"), "{}", node.read("told"));
}

#[test]
fn an_image_gets_the_service_of_its_own_init() {
    let dir = tempfile::tempdir().expect("a folder");
    let agent = dir.path().join("agent");
    let config = "mkdir -p \"$out\"; echo '[main]' >\"$out/agent.toml\"";
    let text = format!("#!/bin/sh\n[ \"$1\" = enroll ] || exit 0\nfor out; do :; done\n{config}\n");
    fs::write(&agent, text).expect("a program");
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("its mode");
    let agent = agent.to_str().expect("a path in UTF-8");
    for (sign, service, link) in [
        (
            "usr/lib/systemd/system/x",
            "etc/systemd/system/jsagent.service",
            "etc/systemd/system/multi-user.target.wants/jsagent.service",
        ),
        ("sbin/openrc-run", "etc/init.d/jsagent", "etc/runlevels/default/jsagent"),
        ("etc/rc.common", "etc/init.d/jsagent", "etc/rc.d/S95jsagent"),
        ("etc/rc2.d/x", "etc/init.d/jsagent", "etc/rc2.d/S99jsagent"),
    ] {
        let image = dir.path().join("image");
        let sign = image.join(sign);
        fs::create_dir_all(sign.parent().expect("a folder")).expect("a folder");
        fs::write(&sign, "").expect("a file");
        fs::set_permissions(&sign, fs::Permissions::from_mode(0o755)).expect("its mode");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install-agent");
        let run = |args: &[&str]| {
            let output = run_with(Command::new("sh").arg(script).arg("--prefix").arg(&image).args(args));
            assert_eq!(output.code, 0, "{output:?}");
        };
        run(&["--from", agent, "--controller", "https://127.0.0.1:9", "--token", "t", "--gid", "1", "--nid", "1"]);
        assert!(image.join(service).is_file() && image.join(link).is_symlink(), "{service} {link}");
        run(&["--uninstall", "--purge"]);
        assert!(!image.join(service).exists() && !image.join(link).is_symlink(), "{service} {link}");
        fs::remove_dir_all(&image).expect("removed");
    }
}

#[test]
fn a_signal_ends_the_installation() {
    let dir = tempfile::tempdir().expect("a folder");
    for (signal, code) in [("HUP", 129), ("INT", 130), ("TERM", 143)] {
        for shell in ["sh", "busybox sh"] {
            let (prefix, temporary) = (dir.path().join("root"), dir.path().join("tmp"));
            fs::create_dir_all(&temporary).expect("a folder");
            // The signal comes to the shell while its child works.
            let agent = dir.path().join("agent");
            let text = format!(
                "#!/bin/sh\n[ \"$1\" = enroll ] || exit 0\nkill -{signal} $PPID\necho '[main]' >'{}'\n",
                prefix.join("etc/jsagent/agent.toml").display()
            );
            fs::write(&agent, text).expect("a program");
            let mut words = shell.split(' ');
            let mut command = Command::new(words.next().expect("a shell"));
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/install-agent");
            command.args(words).arg(script).arg("--prefix").arg(&prefix).arg("--from").arg(&agent);
            command.args(&INSTALL[2..]).env("TMPDIR", &temporary);
            let mut process = Process::spawn(&mut command, "install", dir.path(), Signal::SIGKILL);
            process.quiet = true;
            let status = process.wait(LONG).expect("it ends");
            assert_eq!(status.code(), Some(code), "{shell}: {}", process.output());
            assert!(!prefix.join("etc/systemd").exists(), "{shell}: it went on");
            assert_eq!(fs::read_dir(&temporary).expect("the folder").count(), 0, "{shell}: its folder is gone");
            fs::remove_dir_all(&prefix).expect("removed");
        }
    }
}
