//! Linux: process groups, a subreaper and one waiter for all children.

use super::cgroup::Group;
use super::clone::{self, Call};
use super::proc::process;
use crate::platform::Signal;
use crate::process_tree::{Proc, Settings, Spawned, StartError, Step};
use jscommon::lock::lock;
use jscommon::worker::Worker;
use nix::errno::Errno;
use nix::sys::signal as posix;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// A command that runs in `folder`, with an empty environment. The child itself looks for its program, once it is there.
pub(crate) fn command(program: &str, folder: Option<&Path>, _path: Option<&str>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    command
}

/// The children of the agent: starts them, waits for them and for the orphans it adopts.
///
/// A child is reaped under the same lock under which it is signalled, so that a signal never reaches
/// a process that has taken over a dead one's id. The table is the whole process', for a wait for any
/// child is: nobody else in this process may wait for children of its own.
pub(crate) struct Children {
    exited: Exited,
    /// Tests choose another one than the best.
    call: Call,
}

/// Told of a run and its status.
type Exited = Arc<dyn Fn(u64, i32) + Send + Sync>;

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// Told when the start of a child is over.
    started: Condvar,
}

#[derive(Default)]
struct Table {
    /// Children that were not reaped, their runs, and who is told.
    runs: HashMap<u32, (u64, Exited)>,
    /// Ids of children that are being started, which no run has yet; 0 while there is no child.
    starting: Vec<(u64, Arc<AtomicI32>)>,
    /// Counts the children ever started.
    count: u64,
    waiting: bool,
}

static SHARED: LazyLock<Shared> = LazyLock::new(Shared::default);

impl Children {
    /// Makes the agent the parent of every orphan below it and starts the waiter thread, which calls
    /// `exited` with the run and its status (128 + n for signal n).
    pub(crate) fn start(exited: impl Fn(u64, i32) + Send + Sync + 'static) -> io::Result<Children> {
        // Without it a descendant whose parent ended would go to init, out of sight.
        if let Err(fault) = nix::sys::prctl::set_child_subreaper(true) {
            log::warn!("cannot adopt orphans ({fault}); descendants that detach are found by their environment alone");
        }
        let mut table = lock(&SHARED.table);
        if !table.waiting {
            // It may sit in a wait for an adopted daemon when the agent ends, so nobody joins it.
            Worker::spawn("waiter", 64 * 1024, || SHARED.wait())?.detach();
            table.waiting = true;
        }
        Ok(Children { exited: Arc::new(exited), call: Call::Best })
    }

    /// Starts a child for this run, with pipes for its output, and for its input where `stdin` says so;
    /// in `group` where there is one and the kernel can do that, which the answer says. One that is not wanted any
    /// more is not made.
    ///
    /// The table is free meanwhile: a child may wait for a file system before it is its program.
    pub(crate) fn spawn(
        &self,
        run: u64,
        command: &mut Command,
        stdin: bool,
        settings: &Settings,
        group: Option<&Group>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Spawned, StartError> {
        let pid = Arc::new(AtomicI32::new(0));
        lock(&SHARED.table).starting.push((run, pid.clone()));
        // From here on `abort_start` finds the child.
        let spawned = match is_wanted() {
            true => clone::spawn(command, stdin, settings, group, &pid, self.call),
            false => Err(StartError::at(Step::Process)(io::Error::other("the job was ended before its start"))),
        };
        let mut table = lock(&SHARED.table);
        table.starting.retain(|(_, known)| !Arc::ptr_eq(known, &pid));
        if let Ok(spawned) = &spawned {
            table.runs.insert(spawned.pid, (run, self.exited.clone()));
            table.count += 1;
        }
        SHARED.started.notify_all();
        spawned
    }

    /// Ends the child of a start that is under way, which may wait for a file system.
    pub(crate) fn abort_start(&self, run: u64) {
        // The waiter reaps no such child before its start is over, so its id is still its own.
        let table = lock(&SHARED.table);
        let pids = table.starting.iter().filter(|(known, _)| *known == run).map(|(_, pid)| pid.load(Ordering::Acquire));
        for pid in pids.filter(|pid| *pid > 0) {
            send(pid, Signal::KILL);
        }
    }

    /// Sends `signal` to the process group of this run's first process `pid`, as long as that one was
    /// not reaped; else nothing, and the answer is no.
    pub(crate) fn signal_group(&self, run: u64, pid: u32, signal: Signal) -> bool {
        let table = lock(&SHARED.table);
        table.runs.get(&pid).is_some_and(|(known, _)| *known == run) && send(-(pid as i32), signal)
    }

    /// Asks the whole tree to end by `signal`. A stopped process takes that only once it continues.
    pub(crate) fn stop_tree(&self, run: u64, pid: u32, members: &[Proc], signal: Signal) {
        self.signal_tree(run, pid, members, signal);
        self.signal_tree(run, pid, members, Signal::CONT);
    }

    /// Sends `signal` to the whole tree: the group, and each member outside of it.
    pub(crate) fn signal_tree(&self, run: u64, pid: u32, members: &[Proc], signal: Signal) {
        let whole_group = self.signal_group(run, pid, signal);
        for member in members {
            if !(whole_group && member.group == pid) {
                signal_process(member, signal);
            }
        }
    }
}

impl Table {
    /// Whether the start of the child `pid` is under way. An emulator tells a child's id only once it has made the
    /// child, so an unknown child may be of a start that has no id yet.
    fn may_be_starting(&self, pid: u32) -> bool {
        self.starting.iter().any(|(_, known)| match known.load(Ordering::Acquire) {
            0 => !self.runs.contains_key(&pid),
            known => known == pid as i32,
        })
    }
}

impl Shared {
    fn wait(&self) {
        loop {
            let before = lock(&self.table).count;
            match wait_for(None, LOOK) {
                Ok(None) | Err(Errno::EINTR) => {}
                Ok(Some((pid, _))) => {
                    let mut table = lock(&self.table);
                    // One that has ended already is not waited for long: its start ends with it.
                    while table.may_be_starting(pid) {
                        table = self.started.wait_timeout(table, MOMENT).unwrap_or_else(PoisonError::into_inner).0;
                    }
                    let child = reap(&mut table, pid);
                    drop(table);
                    if let Some(((run, exited), code)) = child {
                        exited(run, code);
                    }
                }
                // No child and so no descendant either: only a start can change that.
                Err(Errno::ECHILD) => {
                    let mut table = lock(&self.table);
                    while table.count == before {
                        table = self.started.wait(table).unwrap_or_else(PoisonError::into_inner);
                    }
                }
                Err(fault) => {
                    log::error!("cannot wait for processes: {fault}");
                    std::thread::sleep(std::time::Duration::from_secs(1));
                }
            }
        }
    }
}

/// Waits until this run's first process has ended, and reaps it. Nothing when the waiter came first: then
/// that one tells of the end.
///
/// For who has seen the end of its output, which most often is its own end too: the run is over with
/// that one piece of news, and nobody waits for the waiter to wake up.
pub(crate) fn wait_child(run: u64, pid: u32) -> Option<i32> {
    let is_its = |table: &Table| table.runs.get(&pid).is_some_and(|(known, _)| *known == run);
    if !is_its(&lock(&SHARED.table)) {
        return None;
    }
    // Whatever else it answers, the table knows whether there is still an end to be told.
    while wait_for(Some(pid), LOOK) == Err(Errno::EINTR) {}
    let mut table = lock(&SHARED.table);
    match is_its(&table) {
        true => reap(&mut table, pid).map(|(_, code)| code),
        false => None,
    }
}

/// Reaps a child that has ended, and says whose it was and its status. Nothing when that was done before.
fn reap(table: &mut Table, pid: u32) -> Option<((u64, Exited), i32)> {
    match wait_for(Some(pid), REAP) {
        Ok(ended) => ended.and_then(|(_, code)| Some((table.runs.remove(&pid)?, code))),
        // A child is in the table before it can be reaped, so one that the table has and the kernel has not was
        // reaped by somebody else in this process. Its end is told all the same.
        Err(Errno::ECHILD) => {
            let known = table.runs.remove(&pid)?;
            log::error!("process {pid} has ended and its status is lost; it counts as {LOST}");
            Some((known, LOST))
        }
        Err(_) => None,
    }
}

/// The status of a child that somebody else has reaped: no success, and none that a signal leaves.
const LOST: i32 = 255;

/// How often the end of a child whose start is under way is looked at again.
const MOMENT: Duration = Duration::from_millis(1);
/// Waits for an end, and leaves the child to be reaped.
const LOOK: i32 = nix::libc::WEXITED | nix::libc::WNOWAIT;
/// Reaps a child that has ended, and waits for none.
const REAP: i32 = nix::libc::WEXITED | nix::libc::WNOHANG;

/// Asks `waitid` for the end of this child (or any). The answer is its process id and status, which is
/// 128 + n for signal n; nothing where it is not to wait and there is none.
#[allow(unsafe_code)] // nix fails on a child that a real-time signal ended, and could not say which
fn wait_for(child: Option<u32>, flags: i32) -> Result<Option<(u32, i32)>, Errno> {
    use nix::libc;
    let (which, id) = child.map_or((libc::P_ALL, 0), |pid| (libc::P_PID, pid));
    let (pid, status, how) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        Errno::result(libc::waitid(which, id, &mut info, flags))?;
        (info.si_pid(), info.si_status(), info.si_code)
    };
    let code = if how == libc::CLD_EXITED { status } else { 128 + status };
    Ok((pid != 0).then_some((pid as u32, code)))
}

/// Signals a process (a group where `target` is negative); the answer is whether it was there.
#[allow(unsafe_code)] // nix has no names for every signal that a user may ask for
fn send(target: i32, signal: Signal) -> bool {
    match posix::Signal::try_from(signal.0) {
        Ok(signal) => posix::kill(Pid::from_raw(target), signal).is_ok(),
        Err(_) => unsafe { nix::libc::kill(target, signal.0) == 0 },
    }
}

/// Signals one process, when it is still the one that was seen.
pub(crate) fn signal_process(seen: &Proc, signal: Signal) -> bool {
    match process(seen.pid, &mut Vec::new()) {
        Some(now) if now.started == seen.started && !now.dead => send(seen.pid as i32, signal),
        _ => false,
    }
}

/// Asks one process to end, when it is still the one that was seen, stopped or not.
pub(crate) fn stop_process(seen: &Proc, signal: Signal) -> bool {
    signal_process(seen, signal) && signal_process(seen, Signal::CONT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{Identity, Limit, UMASK};
    use nix::sys::resource::RLIM_INFINITY;
    use nix::unistd::{Gid, Uid};
    use serde_json::json;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn folder_that_a_user_may_not_pass_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (shut, inner) = (dir.path().join("shut"), dir.path().join("shut/inner"));
        std::fs::create_dir_all(&inner).unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        set(dir.path(), 0o711);
        let owner = shut.metadata().unwrap();
        let identity = |uid, gid| Identity {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: Vec::new(),
            name: String::new(),
            home: String::new(),
        };
        let (other, member) = (identity(4_000_000, 4_000_000), identity(4_000_000, owner.gid()));
        let (o, g) = (Some("o+x"), Some("g+x"));
        for (mode, others, members) in [(0o700, o, g), (0o710, o, None), (0o701, None, g)] {
            set(&shut, mode);
            let barred = |identity: &Identity| {
                let (step, change) = identity.barred_by(&inner.join("leaf"))?;
                (step == shut).then_some(change)
            };
            assert_eq!((barred(&other), barred(&member)), (others, members), "{mode:o}");
        }
        set(&inner, 0o700);
        set(&shut, 0o711);
        assert_eq!(other.barred_by(&inner), Some((inner, "o+x")));
        assert_eq!(identity(0, 0).barred_by(&shut), None);
    }

    #[test]
    fn limits_are_read_or_refused() {
        assert_eq!(Limit::new("nofile", &json!(64)).unwrap().hard, 64);
        assert_eq!(Limit::new("core", &json!("unlimited")).unwrap().soft, RLIM_INFINITY);
        assert_eq!(Limit::new("cpu", &json!([1, 2])).unwrap().hard, 2);
        for (name, value) in [("x", json!(1)), ("nofile", json!("a")), ("nofile", json!([2, 1])), ("as", json!(-2))] {
            assert!(Limit::new(name, &value).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn child_that_is_not_wanted_any_more_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let children = Children::start(|_, _| ()).unwrap();
        let spawn = |run: u64, is_wanted: bool| {
            let mut command = Command::new("touch");
            command.arg(dir.path().join(run.to_string()));
            children.spawn(run, &mut command, false, &Settings::default(), None, &|| is_wanted)
        };
        assert!(spawn(1 << 40, false).is_err_and(|fault| fault.error.to_string().contains("ended before its start")));
        // A later child has ended, so an earlier one would have run.
        assert!(spawn(2 << 40, true).is_ok());
        let begin = std::time::Instant::now();
        while !dir.path().join((2_u64 << 40).to_string()).exists() {
            assert!(begin.elapsed().as_secs() < 30);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!dir.path().join((1_u64 << 40).to_string()).exists());
    }

    #[test]
    fn ends_are_told_by_wait() {
        let (tell, told) = crossbeam_channel::unbounded();
        let children = Children::start(move |run, code| {
            let _ = tell.send((run, code));
        })
        .unwrap();
        let spawn = |run: u64, script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let settings = Settings { nice: Some(1), ..Settings::default() };
            children.spawn(run, &mut command, false, &settings, None, &|| true).unwrap().pid
        };
        spawn(1, "exit 7");
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok((1, 7)));
        // A real-time signal has no name in nix, and its child must be reaped all the same.
        spawn(2, "kill -40 $$");
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok((2, 168)));
        let pid = spawn(3, "sleep 1000");
        assert!(children.signal_group(3, pid, Signal::KILL));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok((3, 137)));
        assert!(!children.signal_group(3, pid, Signal::KILL));
        // Each end is told once, to the waiter of that child or to all.
        for run in 4..12 {
            let pid = spawn(run, "exit 9");
            let by_waiter = || told.recv_timeout(std::time::Duration::from_secs(20)).ok();
            assert_eq!(wait_child(run, pid).map(|code| (run, code)).or_else(by_waiter), Some((run, 9)));
            assert_eq!(wait_child(run, pid), None);
        }
        assert!(told.is_empty());
    }

    /// Returns the output and the exit code of a child with these settings.
    #[track_caller]
    fn said(call: Call, command: &mut Command, settings: &Settings) -> Result<(String, i32), StartError> {
        use std::io::Read;
        let (tell, told) = crossbeam_channel::unbounded();
        let exited = move |_: u64, code: i32| tell.send(code).unwrap_or_default();
        let children = Children { call, ..Children::start(exited).unwrap() };
        let mut spawned = children.spawn(7, command, false, settings, None, &|| true)?;
        let mut text = String::new();
        spawned.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        Ok((text, told.recv_timeout(std::time::Duration::from_secs(20)).unwrap()))
    }

    #[test]
    fn a_child_inherits_no_signals_descriptors_umask_or_session() {
        use nix::sys::signal::{SigSet, Signal as Name};
        // A descriptor that a child would get, and a signal that it would never hear.
        let left = std::fs::File::open("/dev/full").unwrap();
        nix::fcntl::fcntl(&left, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut blocked = SigSet::empty();
        blocked.add(Name::SIGUSR1);
        blocked.thread_block().unwrap();
        let script = "grep -c '^Sig\\(Blk\\|Ign\\):.0*$' /proc/self/status; umask; cat /proc/self/oom_score_adj
            ls -l /proc/self/fd | grep -c /dev/full; cut -d ' ' -f 6 /proc/$$/stat; echo $$";
        // Only root may go below what this process was started with.
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap_or(0);
        let above = (own + 100).min(1000);
        for call in [Call::Best, Call::Fork, Call::Older] {
            for (umask, score) in [(UMASK, None), (0o077, Some(above))] {
                let settings = Settings { umask, oom_score_adj: score, ..Settings::default() };
                let (text, code) = said(call, Command::new("sh").args(["-c", script]), &settings).unwrap();
                let lines: Vec<&str> = text.lines().collect();
                let [masks, mask, adj, descriptors, session, pid] = lines[..] else { panic!("{text}") };
                assert_eq!((masks, code), ("2", 0), "{text}");
                assert_eq!(u32::from_str_radix(mask, 8), Ok(umask));
                let defaults = [0, own.max(0)].map(|adj: i32| adj.to_string());
                assert!(score.map_or(defaults.contains(&adj.to_owned()), |score| adj == score.to_string()), "{text}");
                assert_eq!(descriptors, "0", "{text}");
                assert_eq!(session, pid, "it leads a session of its own");
            }
        }
        blocked.thread_unblock().unwrap();
    }

    #[test]
    fn both_calls_tell_the_step_that_failed() {
        let limits = |value| vec![Limit::new("core", &json!(0)).unwrap(), Limit::new("nofile", &value).unwrap()];
        let beyond = Settings { limits: limits(json!(1u64 << 40)), ..Settings::default() };
        let few = Settings { limits: limits(json!(3)), oom_score_adj: Some(1000), ..Settings::default() };
        let plain = Settings::default();
        for call in [Call::Best, Call::Fork, Call::Older] {
            let step = |command: &mut Command, settings| said(call, command, settings).unwrap_err().step;
            assert_eq!(step(&mut Command::new("/no/such"), &plain), crate::process_tree::Step::Program);
            assert_eq!(step(Command::new("true").current_dir("/no"), &plain), crate::process_tree::Step::WorkingDir);
            assert_eq!(step(&mut Command::new("true"), &beyond), crate::process_tree::Step::Limit(1));
            assert_eq!(step(&mut Command::new("a\0b"), &plain), crate::process_tree::Step::Program);
            // A limit that leaves no room for another descriptor is no fault of an earlier step.
            assert!(said(call, &mut Command::new("/bin/true"), &few).is_ok());
        }
    }

    #[test]
    fn an_end_that_somebody_else_took_is_told() {
        let (tell, told) = crossbeam_channel::unbounded();
        let children = Children::start(move |run, code| {
            let _ = tell.send((run, code));
        })
        .unwrap();
        let mut command = Command::new("cat");
        let child = children.spawn(u64::MAX, &mut command, true, &Settings::default(), None, &|| true).unwrap();
        {
            let _nobody_else = lock(&SHARED.table);
            drop(child.stdin);
            assert_eq!(wait_for(Some(child.pid), nix::libc::WEXITED), Ok(Some((child.pid, 0))));
        }
        let by_waiter = || told.recv_timeout(std::time::Duration::from_secs(20)).ok().map(|(_, code)| code);
        assert_eq!(wait_child(u64::MAX, child.pid).or_else(by_waiter), Some(LOST));
        assert!(!children.signal_group(u64::MAX, child.pid, Signal::KILL));
    }
}
