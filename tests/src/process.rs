//! Programs that a test starts: found, watched, their output kept, ended with the test.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

/// How much of a program's output is shown when a test fails, in bytes.
const SHOWN: usize = 16 * 1024;

/// The path of a program of this workspace: `JS_BIN_DIR`, else a folder above the test executable.
///
/// Fails the test with the line that builds it when it is not there.
pub fn bin(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("JS_BIN_DIR") {
        return Path::new(&dir).join(name);
    }
    let here = std::env::current_exe().expect("the path of the test executable");
    let found = here.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not beside {}: cargo build --features failpoints -p jsacc -p jsagent", here.display())
    })
}

/// The path of a program in `dir`, or where `bin` finds it.
pub(crate) fn bin_of(dir: Option<&Path>, name: &str) -> PathBuf {
    dir.map_or_else(|| bin(name), |dir| dir.join(name))
}

/// The exit status and the output of a program that ended by itself.
#[derive(Debug)]
pub struct Output {
    /// Its exit status; 128 + n after signal n.
    pub code: i32,
    /// The text that it wrote on stdout.
    pub stdout: String,
    /// The text that it wrote on stderr.
    pub stderr: String,
}

/// Runs a program of this workspace to its end; fails the test when that takes longer than 30 s.
#[track_caller]
pub fn run<S: AsRef<str>>(name: &str, args: &[S]) -> Output {
    run_with(Command::new(bin(name)).args(args.iter().map(|a| a.as_ref())))
}

/// As `run`, of any command.
#[track_caller]
pub fn run_with(command: &mut Command) -> Output {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut process = Process::spawn(command, "run", dir.path(), Signal::SIGKILL);
    let status = process.wait(Duration::from_secs(30)).unwrap_or_else(|| {
        panic!("{command:?} did not end by itself");
    });
    let text =
        |name: &str| String::from_utf8_lossy(&fs::read(dir.path().join(name)).expect("captured output")).into_owned();
    process.quiet = true;
    Output { code: code(status), stdout: text("run.out"), stderr: text("run.err") }
}

/// Makes a program log everything, unless its arguments say how much.
pub(crate) fn log_level(command: &mut Command, args: &[String]) {
    if !args.iter().any(|arg| arg.starts_with("--log-level")) {
        command.args(["--log-level", "debug"]);
    }
}

/// The exit status as a shell would tell it.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A running program with its output in `<dir>/<name>.out` and `.err`.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    dir: PathBuf,
    ended: Option<ExitStatus>,
    /// Set when its output says nothing about a failing test.
    pub quiet: bool,
}

impl Process {
    /// Starts `command`; `when_orphaned` is the signal that it gets should the test process die.
    #[track_caller]
    pub fn spawn(command: &mut Command, name: &str, dir: &Path, when_orphaned: Signal) -> Process {
        let open = |end: &str| -> File {
            let path = dir.join(format!("{name}.{end}"));
            File::options().create(true).append(true).open(path).expect("a file for captured output")
        };
        command.stdin(Stdio::null()).stdout(open("out")).stderr(open("err"));
        die_with_us(command, when_orphaned);
        let child = spawn_from_lasting_thread(command).unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Process { child, name: name.to_owned(), dir: dir.to_owned(), ended: None, quiet: false }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, once it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("waitpid");
        }
        self.ended
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        while self.try_wait().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ended
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.try_wait().is_none() {
            let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
        }
    }

    /// Ends it as a power cut would, and waits.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait(Duration::from_secs(10)).expect("a killed program ends");
    }

    /// Asks it to end, waits `limit`, then kills it. The status is nothing when it had to be killed.
    pub fn stop(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.signal(Signal::SIGTERM);
        let status = self.wait(limit);
        if status.is_none() {
            self.kill();
        }
        status
    }

    /// Everything that it wrote so far, stdout before stderr.
    pub fn output(&self) -> String {
        let read = |end: &str| fs::read(self.dir.join(format!("{}.{end}", self.name))).unwrap_or_default();
        let mut bytes = read("out");
        bytes.extend(read("err"));
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            self.kill();
        }
        if std::thread::panicking() && !self.quiet {
            let output = self.output();
            let from = output.len().saturating_sub(SHOWN);
            let from = (from..).find(|i| output.is_char_boundary(*i)).unwrap_or(output.len());
            show(&format!("--- what {} wrote:\n{}\n---", self.name, &output[from..]));
        }
    }
}

#[allow(clippy::print_stderr)] // For who reads why a test failed; the test harness captures it.
fn show(text: &str) {
    eprintln!("{text}");
}

/// Makes the child get `signal` when this process dies, however it dies.
#[allow(unsafe_code)] // The only way to say so; between fork and exec it does one system call.
fn die_with_us(command: &mut Command, signal: Signal) {
    // SAFETY: prctl is async-signal-safe and the closure touches no memory of the parent.
    unsafe {
        command.pre_exec(move || set_pdeathsig(signal).map_err(io::Error::from));
    }
}

/// Starts a child from a thread that lives as long as this process: the kernel sends the death
/// signal when the *thread* that forked ends, and every test has a thread of its own.
fn spawn_from_lasting_thread(command: &mut Command) -> io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        Mutex::new(sender)
    });
    let (reply, answer) = mpsc::channel();
    // The command is moved there and back, for a job must own what it touches.
    let mut moved = std::mem::replace(command, Command::new(""));
    let job = Box::new(move || {
        let child = moved.spawn();
        let _ = reply.send((child, moved));
    });
    spawner.lock().expect("the spawner's lock").send(job).expect("the spawner lives");
    let (child, moved) = answer.recv().expect("the spawner answers");
    *command = moved;
    child
}

/// Kills every process that is left of an agent's jobs: those with its folder in their environment.
pub fn sweep(agent_home: &Path) {
    let wanted = format!("AGENT_HOME={}", agent_home.display()).into_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environ.split(|b| *b == 0).any(|var| var == wanted) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The processes (zombies aside) that carry a job's id in their environment.
pub fn processes_of(job: &str) -> Vec<i32> {
    let wanted = format!("AGENT_JOB_ID={job}").into_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let carries = |pid: &i32| {
        // Of a zombie the environment reads empty.
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| env.split(|b| *b == 0).any(|var| var == wanted))
    };
    pids.filter(carries).collect()
}
